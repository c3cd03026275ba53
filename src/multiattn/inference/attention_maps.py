"""Crops that say most of a run or a file, and their attention maps and P(fake), as in the paper's Figures 1, 4-6."""

import difflib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from multiattn.inference.runs import TrainedModel, find_models
from multiattn.model.attention import resize_maps
from multiattn.model.diagnostics import AttentionStatistics
from multiattn.model.precision import resolve_precision
from multiattn.model.predict import predict_logits
from multiattn.runtime.crop_files import crops_root
from multiattn.runtime.layout import fold_folders
from multiattn.scoring.frame_rules import sigmoid
from multiattn.tables import FAKE, REAL
from multiattn.video.crops.images import CropImages, read_crop
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

BATCH_SIZE = 16


@dataclass(frozen=True)
class FaceMaps:
    """One crop with its attention maps."""

    crop: np.ndarray
    """(H, W, 3) uint8 RGB, as the network got it."""
    maps: np.ndarray
    """(M, H, W) float32, non-negative: resized to the crop the way the network's pooling resizes them."""
    probability: float


def attention_model(run: Path) -> TrainedModel:
    """The model of a fold's folder, or of the first fold of an experiment's folder; a baseline is refused."""
    model = find_models(fold_folders(run)[0])[0]
    if model.experiment.model.network == "baseline":
        raise ValueError(
            f"{model.path}: expected a run with attention maps, found a baseline, which has none. "
            "Give the run it is the twin of."
        )
    return model


def held_out_faces(models: list[TrainedModel], folder: Path) -> pd.DataFrame:
    """Crops of videos that none of the models was trained on: rows of the folder's `faces` table, in its order, with
    the columns `label` and `type` (of `video_types`).

    Raises:
        ValueError: crops the models do not know, or no such crop.
    """
    faces = _typed_faces(models, folder)
    allowed = ~faces["video_id"].isin(set().union(*(model.trained_videos() for model in models)))
    if not allowed.any():
        raise ValueError(
            f"{folder}: expected crops of videos held out by {' and '.join(model.name for model in models)}, found "
            f"none among {len(faces)} crops. Name the videos to show with --videos."
        )
    return faces[allowed].reset_index(drop=True)


def faces_of(videos: list[str], models: list[TrainedModel], folder: Path) -> pd.DataFrame:
    """Crops of the named videos, in their order, as `held_out_faces`; a warning names those a model was trained on.

    Raises:
        ValueError: crops the models do not know, a video the folder does not have, or one without a face.
    """
    faces = _typed_faces(models, folder)
    present = set(faces["video_id"])
    for video in videos:
        if video not in present:
            near = difflib.get_close_matches(video, sorted(present), n=1, cutoff=0)
            hint = f" The nearest is {near[0]!r}." if near else ""
            raise ValueError(f"--videos {video}: no crops of this video in {folder}.{hint}")
    for model in models:
        if seen := sorted(model.trained_videos().intersection(videos)):
            logger.warning("%s was trained on %s: its maps there say little.", model.name, ", ".join(seen))
    return pd.concat([faces[faces["video_id"] == video] for video in videos], ignore_index=True)


def video_types(videos: pd.DataFrame) -> pd.Series:
    """Row names of the paper's figures: `real`, the manipulation method, or `fake` where the method is not known."""
    types = videos["method"].where(videos["method"] != "", "fake").where(videos["label"] == FAKE, "unknown")
    return types.where(videos["label"] != REAL, "real")


def middle_crops(faces: pd.DataFrame) -> pd.DataFrame:
    """The rows of the middle crop of each video's longest track, the videos in the table's order."""
    chosen = []
    for _, crops in faces.groupby("video_id", sort=False):
        track = crops[crops["track"] == crops["track"].mode().iloc[0]]  # of equally long ones the lowest number
        chosen.append(track.sort_values("frame_index").iloc[len(track) // 2].name)
    return faces.loc[chosen]


def representative_crops(faces: pd.DataFrame, *, per_type: int | None) -> pd.DataFrame:
    """`middle_crops` of `held_out_faces`: of the first `per_type` videos of each type, real ones first and then the
    methods by name; None takes every video."""
    rows = middle_crops(faces)
    if per_type is not None:
        rows = rows.groupby("type", sort=False).head(per_type)
        order = rows["type"].where(rows["label"] != REAL, "")  # before every name
        rows = rows.iloc[np.argsort(order.to_numpy(dtype=object), kind="stable")]
    return rows.reset_index(drop=True)


def spread_crops(faces: pd.DataFrame, number: int) -> pd.DataFrame:
    """At most `number` rows, evenly spaced over the table."""
    kept = np.unique(np.linspace(0, len(faces) - 1, min(number, len(faces))).round().astype(int))
    return faces.iloc[kept].reset_index(drop=True)


def predict_maps(
    model: TrainedModel,
    folder: Path,
    shown: pd.DataFrame,
    measured: pd.DataFrame | None = None,
    *,
    device: torch.device,
    network: nn.Module | None = None,
) -> tuple[list[FaceMaps], dict[str, float]]:
    """Predict a model's maps of the crops shown, and the figures of `AttentionStatistics` over those measured.

    Args:
        shown: rows of the folder's `faces` table; without rows no network is loaded.
        measured: the same, for the statistics; None: no statistics.
        network: the model's, where it is in memory already.

    Raises:
        ValueError: a crop that cannot be read.
    """
    if shown.empty:
        return [], {}
    network, size = network or model.load(device), model.experiment.data.image_size
    precision = resolve_precision("auto", device).name
    grids: list[torch.Tensor] = []
    statistics = AttentionStatistics()

    def predict(rows: pd.DataFrame, watch) -> np.ndarray:
        loader = DataLoader(CropImages(folder, rows["crop"], size), batch_size=BATCH_SIZE)
        return predict_logits(network, loader, device=device, precision=precision, watch=watch)

    logits = predict(shown, lambda _, output: grids.extend(output.attention.float().cpu()))
    if measured is not None:
        predict(measured, lambda _, output: statistics.update(output.attention))
    align_corners, root = model.experiment.model.align_corners, crops_root(folder)
    faces = [
        FaceMaps(
            read_crop(root / name, size),
            resize_maps(grid[None], (size, size), align_corners=align_corners)[0].numpy(),
            float(probability),
        )
        for name, grid, probability in zip(shown["crop"], grids, sigmoid(logits), strict=True)
    ]
    return faces, {} if measured is None else statistics.compute()


def _typed_faces(models: list[TrainedModel], folder: Path) -> pd.DataFrame:
    recipe = read_recipe(folder)
    for model in models:
        model.require_same_crops(folder, recipe)
    faces, _, videos = read_faces_folder(folder)
    videos = videos.assign(type=video_types(videos))
    return faces.merge(videos[["video_id", "label", "type"]], on="video_id", validate="many_to_one")


def deciding_crops(crops: pd.DataFrame, each_side: int = 4) -> pd.DataFrame:
    """The rows of one file's `ScoredFiles.crops` with the highest and the lowest P(fake), at most `each_side` of both,
    the highest first, equal ones in order of track and frame."""
    ordered = crops.sort_values(["probability", "track", "frame_index"], ascending=[False, True, True])
    if len(ordered) <= 2 * each_side:
        return ordered.reset_index(drop=True)
    return pd.concat([ordered.head(each_side), ordered.tail(each_side)], ignore_index=True)


def extreme_crops(crops: pd.DataFrame) -> pd.DataFrame:
    """Per file, the crop with the highest P(fake) and the one with the lowest; one where there is one."""
    of_files = [deciding_crops(rows, each_side=1) for _, rows in crops.groupby("video_id", sort=True)]
    return pd.concat(of_files, ignore_index=True) if of_files else crops.head(0)


def model_with_maps(models: list[TrainedModel]) -> TrainedModel | None:
    """The first that has attention maps; None where all are baselines."""
    return next((model for model in models if model.experiment.model.network != "baseline"), None)
