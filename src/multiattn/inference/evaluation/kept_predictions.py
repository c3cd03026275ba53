"""Frame predictions kept beside a result, and made again only for what has changed.

    frame_predictions.parquet   the predictions
    frame_predictions.json      what they are of: SHA-256 of every checkpoint and of the faces, precision, device

A model whose checkpoint is the same keeps its predictions as long as the faces, the videos asked for and the precision
are the same. They are written after each model, so an interrupted command continues with the next one.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import CHECKPOINT, TrainedModel
from multiattn.runtime.devices import resolve_precision
from multiattn.runtime.files import file_digest, read_json, write_json
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.video.crops.images import names_digest
from multiattn.video.crops.recipe import RECIPE_FILE

logger = logging.getLogger(__name__)

PREDICTIONS_FILE = "frame_predictions.parquet"


def predict_kept(
    models: Sequence[TrainedModel],
    folders: dict[Path, list[str]],
    out: Path,
    *,
    device: torch.device,
    precision: str,
) -> pd.DataFrame:
    """The predictions of some videos, from `out/frame_predictions.parquet` where they are those asked for.

    Args:
        folders: faces folder -> video_ids to predict there; no video in two of them.
        out: the folder they are kept in.

    Raises:
        ValueError: crops that were not made the way a model's were.
    """
    path = out / PREDICTIONS_FILE
    basis = {
        "faces": faces_digest(folders),
        "precision": resolve_precision(precision, device),
        "device": device.type,
    }
    checkpoints = {model.name: file_digest(model.path / CHECKPOINT) for model in models}
    kept, kept_checkpoints = _read_kept(path, basis)
    same = {name for name, digest in checkpoints.items() if kept_checkpoints.get(name) == digest}
    if same:
        logger.info("%s: predictions of %d of %d models are kept from before", path, len(same), len(models))
    tables = [kept[kept["model"].isin(same)]]
    for model in models:
        if model.name in same:
            continue
        for folder, videos in folders.items():
            tables.append(predict_faces([model], folder, device=device, precision=precision, video_ids=videos))
        same.add(model.name)
        done = {name: digest for name, digest in checkpoints.items() if name in same}
        _write(pd.concat(tables, ignore_index=True), path, {**basis, "checkpoints": done})
    return pd.concat(tables, ignore_index=True)


def faces_digest(folders: dict[Path, list[str]]) -> str:
    """SHA-256, in hex, of which crops are predicted: recipes, tables of faces and video_ids, in whatever order."""
    parts = []
    for folder, videos in folders.items():
        files = [file_digest(folder / name) for name in (RECIPE_FILE, "faces.parquet")]
        parts.append("".join([*files, names_digest(sorted(videos))]))
    return names_digest(sorted(parts))


def _read_kept(path: Path, basis: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, str]]:
    """What is kept of these faces, and of which checkpoints; nothing where the basis is another."""
    facts_path = path.with_suffix(".json")
    if not path.is_file() or not facts_path.is_file():
        return FRAME_PREDICTIONS.empty(), {}
    facts = read_json(facts_path)
    checkpoints = facts.pop("checkpoints", {})
    if facts != basis:
        logger.info("%s: of other faces, videos or precision, so everything is predicted anew", path)
        return FRAME_PREDICTIONS.empty(), {}
    return FRAME_PREDICTIONS.read(path, allow_empty=True), checkpoints


def _write(predictions: pd.DataFrame, path: Path, facts: dict[str, Any]) -> None:
    # Between the two writes a kill must not leave facts that promise more than the table holds.
    path.with_suffix(".json").unlink(missing_ok=True)
    FRAME_PREDICTIONS.write(predictions, path)
    write_json(path.with_suffix(".json"), facts)
