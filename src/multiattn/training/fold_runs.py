"""Train the folds of one experiment: what `train` does for one, and `ablation` for many."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from multiattn.config import Experiment
from multiattn.datasets.folds import read_folds
from multiattn.runtime import exclusive_folder
from multiattn.tables import FOLDS
from multiattn.training.crops import split_crops
from multiattn.training.distributed import Ranks, wait_for_all
from multiattn.training.loop import train_fold
from multiattn.training.run_folder import RunFolder
from multiattn.video.faces_folder import read_faces_folder
from multiattn.video.recipe import CropRecipe, read_recipe


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
    crops, _, videos = read_faces_folder(faces)
    return TrainingData(faces, recipe, crops, videos, read_folds(folds, videos=videos))


def train_folds(
    experiment: Experiment, data: TrainingData, numbers: list[int], runs: Path, *, device: torch.device, ranks: Ranks
) -> Path:
    """Train folds one after the other; a finished one is skipped, a killed one continued.

    Returns:
        The experiment's folder, `runs/<experiment>`.

    Raises:
        ValueError: a folder holds a run with other settings, or settings do not fit the data.
    """
    folder = runs / experiment.name
    for number in numbers:
        crops = split_crops(
            data.faces, data.folds, number, data.folder, validation_frames=experiment.data.validation_frames
        )
        run = RunFolder(folder / f"fold{number}", number)
        with exclusive_folder(run.path) if ranks.is_main else contextlib.nullcontext():
            if ranks.is_main:
                run.begin(experiment, data.recipe, crops, data.folds, device=device, world_size=ranks.world_size)
            wait_for_all(ranks)
            train_fold(experiment, crops, run, device=device, ranks=ranks)
    return folder


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
