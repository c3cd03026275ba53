"""Distances of faces from those of a run's training: fitted once, kept in the run folder, read wherever it predicts."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from multiattn.inference.attention_maps import spread_crops
from multiattn.inference.predictor import face_sides, num_workers, watched
from multiattn.inference.runs import TrainedModel
from multiattn.inference.runtimes import load_network
from multiattn.model.distance import LEAST_CROPS, VERSION, Faces, fit_distance, see_faces
from multiattn.runtime.files import file_digest
from multiattn.runtime.layout import BEST_WEIGHTS, DIGESTS_FILE, DISTANCE_FILE, FOLDS_FILE, experiment_folder
from multiattn.runtime.processor import tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.tensor_files import read_metadata
from multiattn.video.crops.images import CropImages, crop_loader, moved_crop
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

MOST_CROPS = 2000
"""Training and held-out crops each, evenly spaced over the videos: enough for a 99th percentile."""
BATCH_SIZE = 32
MOST_SCALE, MOST_SHIFT, MOST_DEGREES = 1.15, 0.1, 10.0
"""Bounds of what another detector's box differs by: factor on the side, sides of the crop, degrees."""
SHOWN = "as they are and moved"
"""The crops that a distance is fitted to, among its notes."""


def keep_distances(models: Sequence[TrainedModel], folder: Path, *, device: torch.device) -> int:
    """Fit the distance of each model to its training faces, those of the folder, and write it into the run folder;
    returns how many models have one now.

    Each crop counts twice, as it is and as `another_cut`, so that faces that another program cut are not unlike by
    that alone. A model that has such a distance of its present weights is left as it is. One with too few crops gets
    none, and the log says so.

    Raises:
        ValueError: crops made another way, a model whose training videos are not known or that is a packaged run's, or
            other videos than its.
    """
    recipe, faces, kept = read_recipe(folder), None, 0
    if device.type == "cpu":
        tune_cpu()
    for model in models:
        digest, path = file_digest(model.path / BEST_WEIGHTS), model.path / DISTANCE_FILE
        made_of = {"weights": digest, "version": VERSION, "shown": SHOWN}
        if path.is_file() and made_of.items() <= _notes(path).items():
            kept += 1
            continue
        if (experiment_folder(model.path) / DIGESTS_FILE).is_file():
            raise ValueError(
                f"{model.path}: belongs to a packaged run, which stays as it is. Fit the run it is made of."
            )
        model.require_same_crops(folder, recipe)
        faces = read_faces_folder(folder)[0] if faces is None else faces
        folds = model.folds().set_index("video_id")["fold"]
        if folds.empty:
            raise ValueError(f"{model.path}: expected a run trained here, with {FOLDS_FILE}, found none.")
        fold_of_crop = faces["video_id"].map(folds)
        tables = faces[fold_of_crop.notna() & (fold_of_crop != model.fold)], faces[fold_of_crop == model.fold]
        tables = tuple(spread_crops(table, MOST_CROPS) for table in tables)
        if min(map(len, tables)) < LEAST_CROPS:
            logger.warning(
                "%s: expected %d training and %d held-out crops or more in %s, found %d and %d: how far faces lie from "
                "its training will not be measured.", model.name, LEAST_CROPS, LEAST_CROPS, folder, *map(len, tables),
            )  # fmt: skip
            continue
        network = load_network(model, device)
        seen = [_see(model, network, folder, table, device) for table in tables]
        counts = {"training_crops": str(len(tables[0])), "held_out_crops": str(len(tables[1]))}
        fit_distance(*seen, {"weights": digest, "shown": SHOWN, **counts}).save(path)
        logger.info("%s: statistics of the faces it was trained on are kept in %s", model.name, path)
        kept += 1
    return kept


def _notes(path: Path) -> dict[str, str]:
    """The facts beside the numbers of a kept distance; nothing in a damaged one, which is fitted again."""
    try:
        return read_metadata(path)
    except ValueError as error:
        logger.warning("%s", error)
        return {}


def _see(model: TrainedModel, network: nn.Module, folder: Path, table: pd.DataFrame, device: torch.device) -> Faces:
    """The crops of a table as the network sees them, as they are and then moved; in float32, the measure of every
    other precision."""
    seen = []
    for change, words in ((None, "familiar faces"), (another_cut, "familiar faces, moved")):
        dataset = CropImages(folder, table["crop"], model.experiment.data.image_size, change=change)
        batches = crop_loader(dataset, batch_size=BATCH_SIZE, num_workers=num_workers(device))
        with progress_bar(len(table), f"{model.name}, {words}", "crops") as bar:
            seen.append(see_faces(network, watched(batches, bar), face_sides(table, folder), device=device))
    return Faces(*map(np.concatenate, zip(*seen, strict=True)))


def another_cut(crop: np.ndarray, address: str) -> np.ndarray:
    """A crop as another detector's box might have cut it, (S, S, 3) uint8: its pixels sampled anew, its scale, place
    and angle drawn by its address."""
    draws = np.random.default_rng([*address.encode()])
    shift = draws.uniform(-MOST_SHIFT, MOST_SHIFT, 2)
    scale, degrees = draws.uniform(2 - MOST_SCALE, MOST_SCALE), draws.uniform(-MOST_DEGREES, MOST_DEGREES)
    return moved_crop(crop, scale=scale, shift_xy=tuple(shift), degrees=degrees)
