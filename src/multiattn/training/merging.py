"""Folds of one experiment that were trained in several places -> one folder of runs."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from multiattn.config import to_json
from multiattn.config.settings import differences
from multiattn.runtime import layout
from multiattn.runtime.files import exclusive_folder, file_digest, read_json
from multiattn.runtime.paths import names_only
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FOLDS
from multiattn.training.engine.run_folder import SETTINGS_FREE_TO_CHANGE, read_experiment
from multiattn.training.folds import what_is_left
from multiattn.video.crops.recipe import describe_difference, read_recipe

logger = logging.getLogger(__name__)

COPYING = ".{}.copying"
"""Name of the folder that a fold is copied into before it takes its own name: a killed merge leaves no half of one."""


def is_trained(folder: Path) -> bool:
    """True for a fold with weights to predict by, or a saved state to go on from; others hold settings and logs."""
    return (folder / layout.BEST_WEIGHTS).is_file() or _has_state(folder)


def is_unfinished(folder: Path) -> bool:
    """True for a fold that training goes on with: it has a saved state, and epochs left."""
    return _has_state(folder) and what_is_left(folder, read_experiment(folder))[0] > 0


def _has_state(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (layout.STATE_FILE, layout.PREVIOUS_STATE_FILE))


def merge_folds(folders: Sequence[Path], runs: Path) -> list[Path]:
    """Copy fold folders to `<runs>/<experiment>/fold<k>`, whole or not at all; returns those that are new there.

    Folds that are not trained (`is_trained`) are left out; unfinished ones come along, to be gone on with. Folds of one
    experiment must be made alike, those that are in `runs` already among them: settings (but for those that change no
    result, and where files lie), folds table, recipe of the crops. A fold that is there with the same bytes is left, so
    the same call goes on after a kill. Each copy is read back and compared with its source.

    Raises:
        ValueError: folds made differently, one fold with other bytes in two places, a folder in a fold's place that
            holds none that is trained, or a source that changes meanwhile; nothing is copied after the first three.
        FileNotFoundError: a folder without the files that say how a run was made.
    """
    by_name: dict[str, list[Path]] = {}
    for folder in filter(is_trained, folders):
        by_name.setdefault(layout.experiment_name(folder), []).append(folder)
    todo = []
    for name, found in by_name.items():
        there = list(filter(is_trained, layout.folds_below(runs / name, layout.EXPERIMENT_FILE)))
        chosen = _without_conflicts([*there, *found])
        _require_alike(list(chosen))
        new = [(folder, layout.fold_number(folder)) for folder in chosen if folder not in there]
        todo += [(folder, layout.fold_folder(runs / name, number), chosen[folder]) for folder, number in new]
    for _, target, _ in todo:
        if target.exists():
            raise ValueError(
                f"{target}: expected a trained fold, or no folder, found one without {layout.EXPERIMENT_FILE} or "
                f"without {layout.BEST_WEIGHTS} and {layout.STATE_FILE}. Move it away. Nothing was copied."
            )
    with progress_bar(len(todo), "copies", "folds") if todo else contextlib.nullcontext() as bar:
        for source, target, digests in todo:
            with exclusive_folder(target.parent):
                _copy(source, target, digests)
            bar.update()
    return [target for _, target, _ in todo]


def _without_conflicts(folders: Iterable[Path]) -> dict[Path, dict[str, str]]:
    """The first folder of each fold, with the digest of each of its files."""
    first: dict[int, Path] = {}
    digests: dict[Path, dict[str, str]] = {}
    for folder in folders:
        found = _digests(folder)
        other = first.setdefault(layout.fold_number(folder), folder)
        if found != digests.setdefault(other, found):
            changed = sorted({name for name, _ in found.items() ^ digests[other].items()})
            raise ValueError(
                f"{folder}: conflicts with {other}: the same fold with other {', '.join(changed[:3])}. Which is meant? "
                "Leave the other one out. Nothing was copied."
            )
    return digests


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file; locks and files that were being written are hidden, and are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _require_alike(folders: list[Path]) -> None:
    """Raise `ValueError` for a fold that was made otherwise than the first."""
    first = folders[0]
    settings, recipe, folds = _settings(first), read_recipe(first), FOLDS.read(first / layout.FOLDS_FILE)
    batch = read_json(first / layout.INPUTS_FILE).get("global_batch")
    for folder in folders[1:]:
        found = differences(settings, _settings(folder)).items()
        decisive = [(name, values) for name, values in found if name not in SETTINGS_FREE_TO_CHANGE]
        faults = [f"{name} {there!r} instead of {here!r}" for name, (here, there) in decisive]
        if crops := describe_difference(recipe, read_recipe(folder)):
            faults.append(f"crops: {crops}")
        if not FOLDS.read(folder / layout.FOLDS_FILE).equals(folds):
            faults.append("another folds table")
        if faults:
            raise ValueError(
                f"{folder}: expected a fold made as {first}, found {'; '.join(faults)}. They are folds of two "
                "experiments: keep them apart under two names. Nothing was copied."
            )
        if (other := read_json(folder / layout.INPUTS_FILE).get("global_batch")) != batch:
            logger.warning("%s: trained with a global batch of %s, %s with one of %s", folder, other, first, batch)


def _settings(folder: Path) -> dict:
    return names_only(to_json(read_experiment(folder)))


def _copy(source: Path, target: Path, digests: dict[str, str]) -> None:
    building = target.with_name(COPYING.format(target.name))
    if building.is_symlink():
        raise ValueError(f"{building}: expected a folder to copy into, found a link. Remove it.")
    if building.exists():  # of a merge that was killed
        shutil.rmtree(building)
    for name in digests:
        (building / name).parent.mkdir(parents=True, exist_ok=True)
        with (building / name).open("wb") as copy, (source / name).open("rb") as file:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())
    if (found := _digests(building)) != digests:
        changed = sorted({name for name, _ in found.items() ^ digests.items()})
        shutil.rmtree(building)
        raise ValueError(
            f"{source}: expected copies with the same SHA-256, found others of {', '.join(changed[:3])}. Is it still "
            "trained, or a disk damaged? Run the same command again."
        )
    building.rename(target)
