"""Distances of faces from those of a run's training: fitted once, kept in the run folder, read wherever it predicts."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from multiattn.inference.attention_maps import spread_crops
from multiattn.inference.predictor import face_sides, load_network, num_workers, watched
from multiattn.inference.runs import TrainedModel
from multiattn.model.distance import LEAST_CROPS, VERSION, Faces, fit_distance, see_faces
from multiattn.runtime.files import file_digest
from multiattn.runtime.layout import BEST_WEIGHTS, DIGESTS_FILE, DISTANCE_FILE, FOLDS_FILE, experiment_folder
from multiattn.runtime.processor import tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.tensor_files import read_metadata
from multiattn.video.crops.images import CropImages, crop_loader
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

MOST_CROPS = 2000
"""Training and held-out crops each, evenly spaced over the videos: enough for a 99th percentile."""
BATCH_SIZE = 32


def keep_distances(models: Sequence[TrainedModel], folder: Path, *, device: torch.device) -> int:
    """Fit the distance of each model to its training faces, those of the folder, and write it into the run folder;
    returns how many models have one now.

    A model that has one of its present weights is left as it is. One with too few crops gets none, and the log says so.

    Raises:
        ValueError: crops made another way, a model whose training videos are not known or that is a packaged run's, or
            other videos than its.
    """
    recipe, faces, kept = read_recipe(folder), None, 0
    if device.type == "cpu":
        tune_cpu()
    for model in models:
        digest, path = file_digest(model.path / BEST_WEIGHTS), model.path / DISTANCE_FILE
        made_of = {"weights": digest, "version": VERSION}
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
        if min(map(len, tables)) < LEAST_CROPS:
            logger.warning(
                "%s: expected %d training and %d held-out crops or more in %s, found %d and %d: how far faces lie from "
                "its training will not be measured.", model.name, LEAST_CROPS, LEAST_CROPS, folder, *map(len, tables),
            )  # fmt: skip
            continue
        network = load_network(model, device)
        seen = [_see(model, network, folder, table, device) for table in tables]
        fit_distance(*seen, {"weights": digest}).save(path)
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
    """Evenly spaced crops of a table, as the network sees them; in float32, the measure of every other precision."""
    table = spread_crops(table, MOST_CROPS)
    dataset = CropImages(folder, table["crop"], model.experiment.data.image_size)
    batches = crop_loader(dataset, batch_size=BATCH_SIZE, num_workers=num_workers(device))
    with progress_bar(len(table), f"{model.name}, familiar faces", "crops") as bar:
        return see_faces(network, watched(batches, bar), face_sides(table, folder), device=device)
