"""A run folder: everything one fold of an experiment leaves behind, and how a killed run continues.

    experiment.json, inputs.json, environment.json, faces.json, folds.csv   how it was made
    epochs.csv, tensorboard/         how it went
    best.safetensors, oof.parquet    the best epoch: weights, and frame predictions of the held-out fold
    last.safetensors, resume.pt      the latest epoch: weights, and all that training needs to go on

`resume.pt` is written last in an epoch and holds the whole state, so whatever moment a run is killed at, the next one
continues from the last epoch that ended and writes the same files again.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from multiattn.config import Experiment, from_json, to_json
from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.runtime import atomic_path, describe_environment, read_json, resolve_precision, write_json
from multiattn.tables import FOLDS, FRAME_PREDICTIONS
from multiattn.training.crops import FoldCrops
from multiattn.video.recipe import CropRecipe, describe_difference, read_recipe, write_recipe

logger = logging.getLogger(__name__)

BEST_WEIGHTS = "best.safetensors"
SETTINGS_FREE_TO_CHANGE = ("data.num_workers",)
"""They change how fast a run is, not what it learns."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and contents of `runs/<experiment>/fold<k>`."""

    path: Path
    fold: int

    @property
    def model_name(self) -> str:
        """`<experiment>/fold<k>`, the model's name in tables of predictions."""
        return f"{self.path.parent.name}/{self.path.name}"

    def begin(
        self,
        experiment: Experiment,
        recipe: CropRecipe,
        crops: FoldCrops,
        folds: pd.DataFrame,
        *,
        device: torch.device,
        world_size: int,
    ) -> None:
        """Write how the run is made, or check that it is made the same way as the run already there.

        Raises:
            ValueError: the folder holds a run with other settings, folds or crops; lists the differences.
        """
        inputs = {
            "global_batch": experiment.data.batch_size * world_size,
            "precision": resolve_precision(experiment.precision, device),
            "crops": crops.fingerprint(),
        }
        if not (self.path / "experiment.json").is_file():
            write_json(self.path / "inputs.json", inputs)
            write_recipe(recipe, self.path)
            FOLDS.write(folds, self.path / "folds.csv")
            write_json(self.path / "environment.json", describe_environment(device))
            write_json(self.path / "experiment.json", to_json(experiment))
            return
        kept = to_json(self.read_experiment())
        differences = _differences(kept, to_json(experiment))
        if other_crops := describe_difference(read_recipe(self.path), recipe):
            differences.append(f"faces: {other_crops}")
        differences += _differences(read_json(self.path / "inputs.json"), inputs)
        if not FOLDS.read(self.path / "folds.csv").equals(FOLDS.validate(folds, "folds")):
            differences.append("folds: not the folds this run was begun with")
        if differences:
            raise ValueError(
                f"{self.path}: holds a run with other settings: {'; '.join(differences)}. "
                "Pass the same settings to continue it, or another --name to begin a new one."
            )

    def read_experiment(self) -> Experiment:
        """The experiment the run was made with."""
        path = self.path / "experiment.json"
        return from_json(Experiment, read_json(path), source=str(path))

    def save_best(self, network: nn.Module, predictions: pd.DataFrame, record: dict[str, Any]) -> None:
        """Weights and held-out frame predictions of the best epoch so far."""
        FRAME_PREDICTIONS.write(predictions, self.path / "oof.parquet")
        save_weights(network, self.path / BEST_WEIGHTS, _metadata(record))

    def save_epoch(self, network: nn.Module, state: dict[str, Any]) -> None:
        """End an epoch: its table, the latest weights, and last of all `resume.pt`, which makes it count."""
        history = pd.DataFrame(state["history"])
        with atomic_path(self.path / "epochs.csv") as temporary:
            history.to_csv(temporary, index=False)
        save_weights(network, self.path / "last.safetensors", _metadata(state["history"][-1]))
        with atomic_path(self.path / "resume.pt") as temporary:
            torch.save(state, temporary)

    def load_resume(self) -> dict[str, Any] | None:
        """The state of the last epoch that ended; None in a new run. Loads tensors and plain types only.

        Raises:
            ValueError: `resume.pt` is damaged.
        """
        path = self.path / "resume.pt"
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path}: damaged ({error}). Delete it to train this fold from its beginning.") from error


def start_from(network: nn.Module, source: str | Path, fold: int) -> None:
    """Fill a network with the best weights of another run.

    Args:
        source: an experiment's folder, of which the same fold is taken (its held-out videos stay unseen), a fold's
            folder, or a safetensors file.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the weights of another network.
    """
    source = Path(source)
    candidates = [source, source / BEST_WEIGHTS, source / f"fold{fold}" / BEST_WEIGHTS]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"--start-from {source}: expected a run with {BEST_WEIGHTS} (of fold {fold}) or a safetensors file, found "
            "neither. Train that run first."
        )
    load_weights(network, path)
    logger.info("The network starts from %s.", path)


def _metadata(record: dict[str, Any]) -> dict[str, str]:
    return {"epoch": str(record["epoch"]), "validation_log_loss": repr(record["validation_log_loss"])}


def _differences(kept: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in kept:
        path = f"{prefix}{name}"
        if isinstance(kept[name], dict):
            found += _differences(kept[name], asked[name], f"{path}.")
        elif kept[name] != asked[name] and path not in SETTINGS_FREE_TO_CHANGE:
            found.append(f"{path}: {kept[name]!r} there, {asked[name]!r} asked")
    return found
