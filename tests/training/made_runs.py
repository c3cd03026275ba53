"""Folders of runs as training leaves them, made without it."""

import dataclasses
import json
from pathlib import Path

import pandas as pd

from multiattn.config import to_json
from multiattn.experiments import get_experiment
from multiattn.runtime import layout
from multiattn.tables import FOLDS
from multiattn.video.crops.recipe import CropRecipe, write_recipe

VIDEOS = {"video_id": ["d/a", "d/b"], "label": [0, 1], "group": ["d/a", "d/b"], "fold": [0, 1]}


def make_fold(runs: Path, number: int, *, weights: bytes = b"weights", **settings) -> Path:
    """A fold's folder of `dfdc_b4` as `train` leaves it, its tensors aside."""
    folder = layout.fold_folder(runs / "dfdc_b4", number)
    (folder / "tensorboard").mkdir(parents=True)
    experiment = dataclasses.replace(get_experiment("dfdc_b4"), **settings)
    (folder / "experiment.json").write_text(json.dumps(to_json(experiment)))
    (folder / "inputs.json").write_text(json.dumps({"global_batch": 12, "precision": "fp16", "crops": str(number)}))
    FOLDS.write(FOLDS.validate(pd.DataFrame({**VIDEOS, "label_source": ""}), "folds"), folder / "folds.csv")
    write_recipe(CropRecipe(), folder)
    (folder / "best.safetensors").write_bytes(weights * (number + 1))
    (folder / "tensorboard" / "events").write_bytes(b"curve")
    (folder / ".lock").touch()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def write_anew(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
