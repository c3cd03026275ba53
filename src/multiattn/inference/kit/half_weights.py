"""A checkpoint at half its size, and what that changes: the same crops through both forms.

Only large kernels and matrices become float16, which is nearly all of a network's bytes. Small ones, biases and batch
normalisation stay as they are: they come first, or stand alone for a channel, and rounding them does most of the harm.
Measured on five folds of the demo's small network, 240 crops each: P(fake) moved by up to 4.2e-3 with everything in
float16, and by up to 1.0e-4 so. The arithmetic stays float32: `load_weights` widens the stored numbers.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from multiattn.config.choices import StoredPrecision
from multiattn.inference.attention_maps import BATCH_SIZE, spread_crops
from multiattn.inference.runs import TrainedModel
from multiattn.model.checkpoints import save_weights
from multiattn.model.predict import predict_logits
from multiattn.model.tuning import BASE_DIGEST, whole_state
from multiattn.runtime.crop_files import crops_root
from multiattn.runtime.layout import BEST_WEIGHTS
from multiattn.runtime.tensor_files import read_metadata
from multiattn.scoring.frame_rules import sigmoid
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import describe_difference, read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

SMALL = 1 << 14
"""Tensors of up to so many numbers stay float32."""
SMALLER_CHANGE = (SMALL, 1 << 15, 1 << 16, 1 << 17)
"""Tried in turn until P(fake) changes little enough. The plain Lite0 of the package, on 200 held-out crops:
2.0e-3 (7.2 MB), 1.6e-3 (7.5 MB), 1.2e-3 (8.0 MB), 3.0e-4 (9.0 MB)."""


@dataclass(frozen=True)
class StoredWeights:
    """The stored form of one fold's weights."""

    model: str
    """`<experiment>/fold<k>`."""
    stored: Literal["float16", "float32"]
    difference: float | None
    """The largest |change of P(fake)| that float16 makes on the crops compared; None where it was not tried, infinite
    where it does not give finite numbers."""
    crops: int


def half_state(state: Mapping[str, Tensor], small: int = SMALL) -> dict[str, Tensor]:
    """A state dict with its floating tensors of more than `small` numbers and two or more dimensions in float16, the
    others untouched."""
    return {
        name: tensor.half() if tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() > small else tensor
        for name, tensor in state.items()
    }


def store_weights(
    model: TrainedModel,
    folder: Path,
    crops: np.ndarray,
    *,
    precision: StoredPrecision,
    largest_change: float,
    device: torch.device,
) -> StoredWeights:
    """Write a model's checkpoint into `folder`, in float16 where that changes P(fake) by at most `largest_change`.

    Args:
        folder: a run folder to be, which has its experiment.json.
        crops: (N, size, size, 3) uint8 RGB of the model's size, N at least 1.
        precision: `auto` falls back to float32, `float16` refuses to, `float32` does not try.
    """
    path, original = folder / BEST_WEIGHTS, model.path / BEST_WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    difference, whole, notes = None, whole_state(original), read_metadata(original)
    is_part = notes.pop(BASE_DIGEST, None) is not None  # what is stored is whole, and needs no other file
    if precision != "float32":
        metadata = {**notes, "stored_as": "float16"}
        for small in SMALLER_CHANGE:
            state = half_state(whole, small)
            if difference is not None and all(tensor.dtype != torch.float16 for tensor in state.values()):
                break  # what is left of a small network is the original
            save_weights(state, path, metadata)
            difference = largest_difference(model, dataclasses.replace(model, path=folder), crops, device=device)
            if difference <= largest_change:
                return StoredWeights(model.name, "float16", difference, len(crops))
    if precision == "float16":
        raise ValueError(
            f"{original}: float16 changes P(fake) by up to {difference:.1e} on {len(crops)} crops, "
            f"more than {largest_change:.1e}. Use --precision auto (float32 for such folds), or allow more with "
            "--largest-change."
        )
    if is_part:
        save_weights(whole, path, notes)
    else:
        shutil.copyfile(original, path)
    return StoredWeights(model.name, "float32", difference, 0 if difference is None else len(crops))


def largest_difference(one: TrainedModel, other: TrainedModel, crops: np.ndarray, *, device: torch.device) -> float:
    """The largest |difference of P(fake)| between two models, both computed in float32; infinite where one of them
    gives a number that is not finite."""
    predictions = []
    for model in (one, other):
        batches = torch.from_numpy(crops).split(BATCH_SIZE)
        try:
            predictions.append(sigmoid(predict_logits(model.load(device), batches, device=device, precision="fp32")))
        except ValueError:  # a logit that is not finite: what a weight beyond float16's range leads to
            return float("inf")
    return float(np.abs(predictions[0] - predictions[1]).max(initial=0.0))


def crops_to_compare(model: TrainedModel, folders: Sequence[Path], count: int) -> np.ndarray:
    """At most `count` crops on which two forms of a model are compared: (N, size, size, 3) uint8 RGB, of the first
    faces folder made as its own, spread over the videos its fold held out, where the folder has such, else over all;
    without folders `drawn_crops`.

    Raises:
        ValueError: the folder has no crops, or all were made otherwise.
    """
    size = model.experiment.data.image_size
    if not folders:
        return drawn_crops(count, size)
    recipes, own = {folder: read_recipe(folder) for folder in folders}, model.recipe.for_prediction()
    alike = (folder for folder in folders if not describe_difference(own, recipes[folder].for_prediction()))
    faces = next(alike, folders[0])
    model.require_same_crops(faces, recipes[faces])
    table, _, _ = read_faces_folder(faces)
    if table.empty:
        raise ValueError(f"{faces}: expected crops to compare weights on, found none.")
    table = table.sort_values(["video_id", "frame_index", "track"])
    held_out = table["video_id"].isin(model.held_out_videos())
    chosen = spread_crops(table[held_out] if held_out.any() else table, count)
    root = crops_root(faces)
    return np.stack([read_crop(root / name, size) for name in chosen["crop"]])


def drawn_crops(count: int, size: int) -> np.ndarray:
    """Pictures for want of faces, the same at every call: (count, size, size, 3) uint8.

    Skin-coloured ovals with eyes and a mouth over smooth backgrounds, under noise of growing strength; never without
    noise: perfectly flat areas, which no camera makes, moved one network by 0.37, the next largest change was 5e-4.
    They are no faces: the change by float16 on them is right in its size, not in its last digit.
    """
    generator = np.random.default_rng(0)
    images = np.zeros((count, size, size, 3), np.uint8)
    for index in range(count):
        coarse = generator.uniform(0, 255, (4, 4, 3)).astype(np.float32)
        image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        skin = generator.uniform((120, 80, 60), (240, 200, 180))
        middle, axes = (size // 2, size // 2), (int(size * 0.36), int(size * 0.46))
        cv2.ellipse(image, middle, axes, 0, 0, 360, skin.tolist(), -1)
        for x in (0.36, 0.64):
            cv2.circle(image, (int(size * x), int(size * 0.42)), max(1, size // 20), (30.0, 20.0, 20.0), -1)
        cv2.ellipse(image, (size // 2, int(size * 0.7)), (size // 8, size // 24), 0, 0, 360, (150.0, 50.0, 60.0), -1)
        image += generator.normal(0, 4 + 36 * index / max(count - 1, 1), image.shape)
        images[index] = image.clip(0, 255)
    return images
