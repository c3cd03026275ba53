"""Which trained models a folder holds."""

from dataclasses import dataclass
from pathlib import Path

import torch

from multiattn.config import Experiment, from_json
from multiattn.model.checkpoints import load_weights
from multiattn.model.network import BaselineNet, MultiAttentionNet, make_network
from multiattn.runtime import read_json
from multiattn.tables import FOLDS
from multiattn.video.recipe import CropRecipe, describe_difference, read_recipe

CHECKPOINT = "best.safetensors"


@dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of one fold."""

    path: Path
    """The run folder `runs/<experiment>/fold<k>`."""
    fold: int
    experiment: Experiment
    recipe: CropRecipe
    """How the crops it was trained on were made; it must be given such crops."""

    @property
    def name(self) -> str:
        """`<experiment>/fold<k>`."""
        return f"{self.path.parent.name}/{self.path.name}"

    def load(self, device: torch.device) -> MultiAttentionNet | BaselineNet:
        """The network with its weights, in eval mode on the device."""
        network = make_network(self.experiment.model, load_weights=False)
        load_weights(network, self.path / CHECKPOINT)
        return network.to(device).eval()


def fold_folders(runs: Path) -> list[Path]:
    """The fold folders of an experiment's folder (or the one fold folder given), by number.

    Raises:
        FileNotFoundError: no such folder, or no fold in it.
    """
    runs = Path(runs)
    folders = (
        [runs] if (runs / "experiment.json").is_file() else [p for p in runs.glob("fold*") if p.name[4:].isdigit()]
    )
    if not folders:
        raise FileNotFoundError(
            f"{runs}: expected runs (fold0, fold1, ...), found none. Make them with `multiattn train`."
        )
    return sorted(folders, key=_fold_number)


def _fold_number(folder: Path) -> int:
    digits = folder.name.removeprefix("fold")
    if not digits.isdigit():
        raise ValueError(f"{folder}: expected a run folder named fold0, fold1, ..., found {folder.name!r}.")
    return int(digits)


def find_models(runs: Path) -> list[TrainedModel]:
    """Every fold's best checkpoint.

    Raises:
        FileNotFoundError: no runs there, or a fold without a checkpoint.
        ValueError: the folds were trained on crops made differently.
    """
    models = []
    for folder in fold_folders(runs):
        path = folder / "experiment.json"
        if not path.is_file() or not (folder / CHECKPOINT).is_file():
            missing = CHECKPOINT if path.is_file() else path.name
            raise FileNotFoundError(
                f"{folder}: no {missing}; the fold has not finished its first epoch. "
                "Run the same `multiattn train` command again."
            )
        experiment = from_json(Experiment, read_json(path), source=str(path))
        models.append(TrainedModel(folder, _fold_number(folder), experiment, read_recipe(folder)))
    for model in models[1:]:
        if difference := describe_difference(models[0].recipe, model.recipe):
            raise ValueError(f"{model.path}: trained on other crops than {models[0].path}: {difference}.")
    return models


def trained_on(runs: Path) -> set[str]:
    """File names without extension of all videos in the folds of an experiment.

    The 400 public test videos of the Kaggle competition lie inside training parts 0 to 2 under the same names, so a
    name that comes back in a test set is a video the models have seen.
    """
    tables = [FOLDS.read(folder / "folds.csv") for folder in fold_folders(runs)]
    return {Path(video).name for table in tables for video in table["video_id"]}
