"""Train the folds of one experiment: what `train` does for one, and `ablation` for many."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from multiattn.config import Experiment
from multiattn.datasets.folds import read_folds
from multiattn.runtime.files import exclusive_folder
from multiattn.tables import FOLDS
from multiattn.training.crops import FACE_COLUMNS, split_crops
from multiattn.training.distributed import Ranks, wait_for_all
from multiattn.training.loop import train_fold
from multiattn.training.run_folder import RunFolder
from multiattn.video.crops.recipe import CropRecipe, read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """A faces folder and the folds over its videos, read and checked once."""

    folder: Path
    """The faces folder."""
    recipe: CropRecipe
    faces: pd.DataFrame
    videos: pd.DataFrame
    folds: pd.DataFrame

    def fold_numbers(self, text: str) -> list[int]:
        """The folds that `--fold` names: a number, or `all`.

        Raises:
            ValueError: neither, or no such fold.
        """
        present = sorted(int(number) for number in set(self.folds["fold"]) - {-1})
        if text == "all":
            return present
        if not text.isdigit():
            raise ValueError(f"--fold: expected a number or `all`, found {text!r}.")
        if int(text) not in present:
            raise ValueError(f"--fold {text}: no such fold; folds present: {present}, or all.")
        return [int(text)]


def read_training_data(faces: Path, folds: Path) -> TrainingData:
    """Read a faces folder and a folds CSV.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: a table breaks its contract, or the folds leak.
    """
    recipe = read_recipe(faces)
    crops, _, videos = read_faces_folder(faces, columns=FACE_COLUMNS)
    return TrainingData(faces, recipe, crops, videos, read_folds(folds, videos=videos))


@dataclass(frozen=True)
class FoldOutcome:
    """How the training of one fold ended."""

    fold: int
    error: str = ""
    """Why it failed; empty where it did not."""


def train_folds(
    experiment: Experiment,
    data: TrainingData,
    numbers: list[int],
    runs: Path,
    *,
    device: torch.device,
    ranks: Ranks,
    allow_changes: bool = False,
) -> Path:
    """Train folds one after the other; a finished one is skipped, a killed one continued.

    Returns:
        The experiment's folder, `runs/<experiment>`.

    Raises:
        ValueError: a folder holds a run with other settings, or settings do not fit the data.
    """
    for number in numbers:
        train_one(experiment, data, number, runs, device=device, ranks=ranks, allow_changes=allow_changes)
    return runs / experiment.name


def try_folds(
    experiment: Experiment, data: TrainingData, numbers: list[int], runs: Path, **options: Any
) -> list[FoldOutcome]:
    """The same, but a fold that fails does not take the others with it.

    For one process: among several ranks, the others would wait for the one that failed. Options as `train_folds`.
    """
    outcomes = []
    for number in numbers:
        try:
            train_one(experiment, data, number, runs, **options)
        except (OSError, RuntimeError, ValueError) as error:
            # What a user can mend needs no traceback; anything else does.
            logger.error("fold %d failed: %s", number, error, exc_info=isinstance(error, RuntimeError))
            outcomes.append(FoldOutcome(number, str(error)))
        else:
            outcomes.append(FoldOutcome(number))
    return outcomes


def train_one(
    experiment: Experiment,
    data: TrainingData,
    number: int,
    runs: Path,
    *,
    device: torch.device,
    ranks: Ranks,
    allow_changes: bool = False,
) -> None:
    """Train one fold; arguments and errors as `train_folds`."""
    crops = split_crops(
        data.faces,
        data.folds,
        number,
        data.folder,
        validation_frames=experiment.data.validation_frames,
        videos=data.videos,
    )
    run = RunFolder(runs / experiment.name / f"fold{number}", number)
    with exclusive_folder(run.path) if ranks.is_main else contextlib.nullcontext():
        if ranks.is_main:
            run.begin(
                experiment,
                data.recipe,
                crops,
                data.folds,
                device=device,
                world_size=ranks.world_size,
                allow_changes=allow_changes,
            )
        wait_for_all(ranks)
        train_fold(experiment, crops, run, device=device, ranks=ranks)


def require_same_folds(start: Path, numbers: list[int], folds: pd.DataFrame) -> None:
    """Refuse to start from runs that were trained on what is held out here, at another compression.

    Args:
        start: the folder of the experiment that is started from.
        folds: this experiment's folds table.

    Raises:
        FileNotFoundError: the runs to start from are not there.
        ValueError: a video lies in another fold there.
    """
    mine = folds.assign(video=_at_any_compression(folds["video_id"]))[["video", "fold"]]
    for number in numbers:
        path = start / f"fold{number}" / "folds.csv"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such run. The models of strongly compressed videos (c40) start from those of c23: run "
                "the same ablation on the c23 faces first, with the same --runs."
            )
        theirs = FOLDS.read(path)
        theirs = theirs.assign(video=_at_any_compression(theirs["video_id"]))[["video", "fold"]]
        joined = mine.merge(theirs, on="video", suffixes=("", "_there"))
        moved = joined[joined["fold"] != joined["fold_there"]]
        if len(moved):
            raise ValueError(
                f"{path}: leak: {len(moved)} videos lie in another fold there, {moved['video'].iloc[0]} the first. "
                "Make the folds of both compressions alike (one table for both, or the same groups and seed)."
            )


def _at_any_compression(video_ids: pd.Series) -> pd.Series:
    return video_ids.str.replace(r"/(c23|c40)/", "/*/", regex=True)
