"""A run folder: everything one fold of an experiment leaves behind (training/README.md), and its saved states.

The state is written last and whole, so whatever moment a run is killed at, the next one continues from the last state
and writes the same files again. A new state is written beside the old one, synced, read back and compared, and only
then takes its name; the old one is kept as `resume.previous.pt`. Whoever reads meanwhile finds one of the two whole. A
file that was cut off or altered is noticed by its checksums when it is read, and the previous one takes its place.
"""

import logging
import os
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, get_args

import pandas as pd
import torch
from torch import nn

from multiattn.config import Experiment, run_experiment, to_json
from multiattn.config.choices import Tta
from multiattn.config.model import HALF
from multiattn.config.settings import differences
from multiattn.model.backbone import settle_input
from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.model.precision import Precision, training_precision
from multiattn.model.tuning import BASE_DIGEST, merged_state, tuned_state
from multiattn.runtime import layout
from multiattn.runtime.environment import describe_environment, git_commit
from multiattn.runtime.files import atomic_path, read_json, write_csv, write_json
from multiattn.runtime.layout import BEST_WEIGHTS, EXPERIMENT_FILE, INPUTS_FILE, PREVIOUS_STATE_FILE, STATE_FILE
from multiattn.runtime.tensor_files import first_line, read_metadata, state_problems
from multiattn.tables import FOLDS, FRAME_PREDICTIONS
from multiattn.training.data.crops import FoldCrops
from multiattn.training.engine.step import TrainingStep
from multiattn.video.crops.recipe import CropRecipe, describe_difference, read_recipe, write_recipe

logger = logging.getLogger(__name__)

SETTINGS_FREE_TO_CHANGE = ("data.num_workers", "data.cache", "data.cache_gb", "save_minutes")
"""Settings that change how fast a run is, not what it learns."""
SETTINGS_OF_THE_BEGINNING = ("start_from", "model.weights", "model.pretrained")
"""Settings that decide the first weights alone."""
TYPES = "types"
"""Key of a saved state under which the kinds of its numbers stand."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and contents of `runs/<experiment>/fold<k>`."""

    path: Path
    fold: int

    @property
    def model_name(self) -> str:
        """`<experiment>/fold<k>`, the model's name in tables of predictions."""
        return layout.fold_name(self.path)

    @property
    def has_begun(self) -> bool:
        """True where there are results, and the settings they came from."""
        has_results = any((self.path / name).exists() for name in layout.RESULT_FILES)
        return has_results and (self.path / EXPERIMENT_FILE).is_file()

    @property
    def precision(self) -> str:
        """As `begin` recorded it."""
        return read_json(self.path / INPUTS_FILE)["precision"]

    def settle(self, experiment: Experiment) -> Experiment:
        """The experiment with the numbers that its input is normalised by, where it names none: those this run was
        begun with, or has from the run it starts from, else timm's of the backbone's weights.

        Raises:
            FileNotFoundError: no run to start from.
            ValueError: weights to start from that lie without the settings of their run.
        """
        model, start = experiment.model, None
        if model.input_mean is None and not self.has_begun and experiment.start_from:
            start = find_start(experiment.start_from, self.fold)
        folder = start.parent if start is not None else self.path
        is_known = (start is not None or self.has_begun) and (folder / EXPERIMENT_FILE).is_file()
        if model.input_mean is None and is_known:
            kept = read_experiment(folder).model
            if kept.backbone.split(".")[0] == model.backbone.split(".")[0]:
                model = replace(model, input_mean=kept.input_mean, input_std=kept.input_std)
        elif start is not None and settle_input(model) != replace(model, input_mean=HALF, input_std=HALF):
            read_metadata(start)  # refuses what holds no weights
            raise ValueError(
                f"--start-from {experiment.start_from}: no {EXPERIMENT_FILE} beside it says by which numbers the input "
                "of these weights was normalised. Give them as --model.input-mean and --model.input-std (0.5 0.5 0.5 "
                "both, where they are of version 0.2 or earlier)."
            )
        return replace(experiment, model=settle_input(model))

    def begin(
        self,
        experiment: Experiment,
        recipe: CropRecipe,
        crops: FoldCrops,
        folds: pd.DataFrame,
        *,
        device: torch.device,
        world_size: int,
        allow_changes: bool = False,
    ) -> None:
        """Write how the run is made, or check that it is made the same way as the run already there.

        Other settings or another global batch are allowed with `allow_changes`, and noted in `changes.json`; other
        folds never: what was held out may have been trained on.

        Raises:
            ValueError: the folder holds a run with other settings, folds or crops; lists the differences. Other folds
                are never allowed: what was held out may have been trained on.
        """
        precision, inputs = self._inputs(experiment, crops, device, world_size)
        logger.info("%s: trains in %s: %s", self.model_name, precision.name, precision.reason)
        # A run that failed before its first saved state has nothing that other settings could spoil.
        if not self.has_begun:
            FOLDS.write(folds, self.path / layout.FOLDS_FILE)
        elif changes := self._changes(experiment, recipe, folds, inputs, allow_changes):
            self._note(changes)
        else:
            return
        write_recipe(recipe, self.path)
        write_json(self.path / INPUTS_FILE, inputs)
        write_json(self.path / layout.ENVIRONMENT_FILE, describe_environment(device) | {"precision": vars(precision)})
        write_json(self.path / EXPERIMENT_FILE, to_json(experiment))

    def require_same(
        self,
        experiment: Experiment,
        recipe: CropRecipe,
        crops: FoldCrops,
        folds: pd.DataFrame,
        *,
        device: torch.device,
        world_size: int,
        allow_changes: bool = False,
    ) -> None:
        """Raise `ValueError` where `begin` would refuse the run that is there; nothing is written."""
        if self.has_begun:
            _, inputs = self._inputs(experiment, crops, device, world_size)
            self._changes(experiment, recipe, folds, inputs, allow_changes)

    def _inputs(
        self, experiment: Experiment, crops: FoldCrops, device: torch.device, world_size: int
    ) -> tuple[Precision, dict[str, Any]]:
        """The precision to train in, and what the run folder keeps of all that a training is made of beside its
        settings."""
        precision = training_precision(experiment, device, recorded=self.precision if self.has_begun else None)
        batch = experiment.data.batch_size * world_size
        return precision, {"global_batch": batch, "precision": precision.name, "crops": crops.fingerprint()}

    def _changes(
        self, experiment: Experiment, recipe: CropRecipe, folds: pd.DataFrame, inputs: dict[str, Any], allowed: bool
    ) -> list[str]:
        """Differences from the run that is there, in words; those that are not allowed or not possible are an error,
        and those free to change do not count."""
        differences = _differences(to_json(read_experiment(self.path)), to_json(experiment))
        if other_crops := describe_difference(read_recipe(self.path), recipe):
            differences.append(f"faces: {other_crops}")
        differences += _differences(read_json(self.path / INPUTS_FILE), inputs)
        other_folds = not FOLDS.read(self.path / layout.FOLDS_FILE).equals(FOLDS.validate(folds, "folds"))
        if other_folds:
            differences.append("folds: not the folds this run was begun with")
        if differences and (other_folds or not allowed):
            raise ValueError(
                f"{self.path}: holds a run with other settings: {'; '.join(differences)}. Give the same settings to "
                "continue it, or another name or folder to begin a new one"
                + ("; `multiattn train --allow-changes` goes on with these." if not other_folds else ".")
            )
        if differences:
            self._require_possible(experiment, differences)
        return differences

    def _note(self, changes: list[str]) -> None:
        """Say that the run goes on with changes, and keep them."""
        logger.warning("%s: goes on with changes: %s", self.model_name, "; ".join(changes))
        path = self.path / layout.CHANGES_FILE
        earlier = read_json(path) if path.is_file() else []
        write_json(path, [*earlier, {"commit": git_commit(), "changes": changes}])

    def _require_possible(self, experiment: Experiment, differences: list[str]) -> None:
        """Refuse changes that a saved state cannot go on with."""
        state = load_state(self.path)
        if state is None:
            return
        decided = tuple(f"{name}:" for name in SETTINGS_OF_THE_BEGINNING)
        if experiment.save == "tuned":  # what the rest of the weights was trained to would be in no file
            decided += ("model.tune:", "save:")
        if late := [difference for difference in differences if difference.startswith(decided)]:
            raise ValueError(
                f"{self.path}: cannot go on with {'; '.join(late)}: that decides the weights a run begins with, and "
                "this one has begun. Leave it as it was, or give another name or folder to begin a new run."
            )
        network = TrainingStep(experiment, load_weights=False).state_dict()
        if problems := state_problems(network, state["step"]):
            raise ValueError(
                f"{self.path}: cannot go on with {'; '.join(differences)}: that makes another network than the saved "
                f"one ({'; '.join(problems)}). Give another name or folder to begin a new run."
            )

    def save_best(self, network: nn.Module, predictions: pd.DataFrame, record: dict[str, Any]) -> None:
        for name in (layout.DISTANCE_FILE, *(layout.held_out_file(tta) for tta in get_args(Tta) if tta != "none")):
            (self.path / name).unlink(missing_ok=True)  # of other weights
        FRAME_PREDICTIONS.write(predictions, self.path / layout.HELD_OUT_FILE)
        self._save_weights(network, BEST_WEIGHTS, record)

    def save_validation(
        self, network: nn.Module, predictions: pd.DataFrame | None, history: list[dict[str, Any]]
    ) -> None:
        """The table of validations; the latest weights, and their predictions of the held-out fold if there are any."""
        write_csv(self.path / layout.EPOCHS_FILE, pd.DataFrame(history))
        self._save_weights(network, layout.LAST_WEIGHTS, history[-1])
        if predictions is not None:
            FRAME_PREDICTIONS.write(predictions, self.path / layout.LAST_HELD_OUT_FILE)

    def _save_weights(self, network: nn.Module, name: str, record: dict[str, Any]) -> None:
        """Write what `Experiment.save` says: the whole network with the names of an untuned one, or the tuned part."""
        experiment, notes = read_experiment(self.path), _metadata(record)
        if experiment.save == "whole":
            state = merged_state(network.state_dict())
        else:
            state, notes[BASE_DIGEST] = tuned_state(network, experiment.model.tune)
        save_weights(state, self.path / name, notes)


def read_experiment(folder: Path) -> Experiment:
    """The settings of a run."""
    path = folder / EXPERIMENT_FILE
    return run_experiment(read_json(path), source=str(path))


def _differences(kept: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Settings that differ, as `name: value there, value asked`; those that are free to change are left out."""
    found = differences(kept, asked).items()
    return [
        f"{name}: {there!r} there, {now!r} asked" for name, (there, now) in found if name not in SETTINGS_FREE_TO_CHANGE
    ]


def _metadata(record: dict[str, Any]) -> dict[str, str]:
    kept = ("epoch", "step", "candidate", "validation_log_loss", "validation_balanced_log_loss")
    return {name: str(record[name]) for name in kept}


def start_from(network: nn.Module, source: str | Path, fold: int) -> None:
    """Fill a network with the best weights of another run; errors as `find_start`, and for another network's."""
    path = find_start(source, fold)
    load_weights(network, path)
    logger.info("The network starts from %s.", path)


def find_start(source: str | Path, fold: int) -> Path:
    """The weights that `Experiment.start_from` names.

    Of an experiment's folder the same fold is taken (its held-out videos stay unseen), of a packaged run the first.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a packaged run whose files have changed.
    """
    run = layout.named_run(source)
    places = [run, run / BEST_WEIGHTS, layout.fold_folder(run, fold) / BEST_WEIGHTS]
    if run != Path(source):
        places = [folder / BEST_WEIGHTS for folder in layout.fold_folders(run)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"--start-from {source}: expected a run with {BEST_WEIGHTS} (of fold {fold}) or a safetensors file, found "
            "neither. Train that run first."
        )
    return path


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain types; one that cannot be read back leaves the state before it as it was.

    Raises:
        OSError: the disk does not take it, or gives back something else; the state before it is left as it was.
    """
    path, previous = folder / STATE_FILE, folder / PREVIOUS_STATE_FILE
    with atomic_path(path) as temporary:
        torch.save({**state, TYPES: _types(state)}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            fault = _fault(file)
        if fault:
            raise OSError(f"{path}: the state that was just written cannot be read back ({fault}). Is the disk sound?")
        if path.is_file():
            _keep(path, previous)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The latest state that can be read, of tensors and plain types; None where there is none, an error where all are
    damaged."""
    faults = []
    for path in (folder / STATE_FILE, folder / PREVIOUS_STATE_FILE):
        try:
            file = path.open("rb")  # once, so that what was checked is what is loaded, whatever is renamed meanwhile
        except FileNotFoundError:
            continue
        with file:
            fault = _fault(file)
            if fault is None:
                file.seek(0)
                try:
                    state = torch.load(file, map_location="cpu", weights_only=True)
                    fault = _state_fault(state)
                except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
                    fault = first_line(error)
                if fault is None:
                    if faults:
                        logger.warning("%s; going on from the state before it, %s.", "; ".join(faults), path.name)
                    return state
        faults.append(f"{path}: damaged ({fault})")
    if faults:
        raise ValueError(f"{'; '.join(faults)}. Delete both to train this fold from its beginning.")
    return None


def _state_fault(state: object) -> str | None:
    """Describe why a file's content cannot be gone on from."""
    if not isinstance(state, dict):
        return f"expected a saved state, found a {type(state).__name__}"
    saved, found = state.pop(TYPES, None), _types(state)
    if saved not in (None, found):  # earlier versions kept none
        other = set(found.items()).symmetric_difference(saved.items() if isinstance(saved, dict) else ())
        return f"{min(other)[0] if other else TYPES} holds numbers of another kind than were saved"
    name = first_not_finite(state)
    return None if name is None else f"{name} is not finite"


def first_not_finite(state: dict[str, Any]) -> str | None:
    """The name of the first tensor of weights, averages or the optimiser with a value that is no finite number."""
    parts = {name: state[name] for name in ("step", "average", "optimizer") if name in state}
    bad = (name for name, tensor in _tensors(parts) if tensor.is_floating_point() and not tensor.isfinite().all())
    return next(bad, None)


def _types(state: dict[str, Any]) -> dict[str, str]:
    """Name -> kind of numbers of each tensor in a state that holds others than float32, which nearly all do.

    Restoring would turn them into what the network has, and integers in place of weights, say, would never be noticed.
    """
    return {name: str(tensor.dtype) for name, tensor in _tensors(state) if tensor.dtype != torch.float32}


def _tensors(values: dict[str, Any] | list[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in dictionaries and lists, with its keys and places joined by dots."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, torch.Tensor):
            yield str(key), value
        elif isinstance(value, dict | list):
            yield from ((f"{key}.{name}", tensor) for name, tensor in _tensors(value))


def _keep(path: Path, previous: Path) -> None:
    """Give the state a second name, so that the first one is never without a file."""
    link = previous.with_name(f".{previous.name}.link")
    link.unlink(missing_ok=True)  # of a write that was killed here
    try:
        os.link(path, link)
        link.replace(previous)
    except OSError:  # a disk without links (exFAT): the name is free for a moment, and a reader takes the other state
        path.replace(previous)
    finally:
        link.unlink(missing_ok=True)  # a rename onto the same file's other name leaves both


def _fault(file: IO[bytes]) -> str | None:
    """Describe the fault of a file of `torch.save`, a zip archive with a checksum for every entry."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except Exception as error:  # of any kind: altered bytes may name a place, a compression or a text there is not
        return str(error) or type(error).__name__
    return f"entry {damaged} does not match its checksum" if damaged else None
