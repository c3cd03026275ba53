"""Runs + faces folder -> frame predictions: every fold's best checkpoint on every crop."""

import logging
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader

from multiattn.inference.runs import TrainedModel
from multiattn.model.predict import predict_logits
from multiattn.model.rewrites import fold_batch_norms
from multiattn.runtime.devices import resolve_precision
from multiattn.runtime.processor import tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.scoring.aggregators import frame_predictions
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.video.crops.batches import crop_loader
from multiattn.video.crops.images import CropImages
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

BATCH_SIZE = 32


def predict_faces(
    models: list[TrainedModel],
    folder: Path,
    *,
    device: torch.device,
    precision: str,
    video_ids: Collection[str] | None = None,
) -> pd.DataFrame:
    """A `frame_predictions` table of every crop by every model; empty when the folder has no crops.

    Args:
        precision: `auto` is half precision on a GPU and float32 on a CPU.
        video_ids: the videos whose crops are predicted; None takes all of the folder.

    Raises:
        ValueError: the crops were not made the way the models' were.
    """
    recipe = read_recipe(folder)
    for model in models:
        model.require_same_crops(folder, recipe)
    faces, _, _ = read_faces_folder(folder)
    if video_ids is not None:
        faces = faces[faces["video_id"].isin(set(video_ids))].reset_index(drop=True)
    precision = resolve_precision(precision, device)
    if device.type == "cpu":
        tune_cpu()
    tables = [FRAME_PREDICTIONS.empty()]
    with progress_bar(len(models) * len(faces), "predict", "crops") as bar:
        for model in models if len(faces) else []:
            network = model.load(device)
            if device.type == "cpu":
                network = fold_batch_norms(network)  # the same logits to rounding, in about 0.6 of the time
            dataset = CropImages(folder, faces["crop"], model.experiment.data.image_size)
            workers = 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
            batches = _watched(crop_loader(dataset, batch_size=BATCH_SIZE, num_workers=workers), bar)
            logits = predict_logits(network, batches, device=device, precision=precision)
            tables.append(frame_predictions(faces, logits, model=model.name, fold=model.fold))
    return FRAME_PREDICTIONS.validate(pd.concat(tables, ignore_index=True), f"predictions of {folder}")


def _watched(loader: DataLoader, bar) -> Iterator[torch.Tensor]:
    for batch in loader:
        yield batch
        bar.update(len(batch))
