"""Whether videos are new to models: what evaluation refuses, so that no figure comes from a video that was seen.

A run's `folds.csv` names every video it knows; a model has trained on those outside its own fold. A video is known by
its video_id, and by its bare name where names tell videos apart: within FF++ (the same clip at another compression)
and for DFDC's ten letters (the 400 videos of Kaggle's public test lie inside training parts 0 to 2).
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from multiattn.inference.runs import TrainedModel, folds_table
from multiattn.tables import FOLDS

DFDC_NAME = re.compile(r"[a-z]{10}")
FFPP_PREFIX = "ffpp/"


def known_folds(model: TrainedModel) -> pd.DataFrame:
    """The `folds` table of a model's run; empty for an imported checkpoint, of which nothing is known."""
    path = folds_table(model.path)
    if path.is_file():
        return FOLDS.read(path)
    if model.imported:
        return FOLDS.empty()
    raise FileNotFoundError(
        f"{path}: no such file, so nothing says which videos {model.name} was trained on. Evaluate the run's own "
        "folder, as `multiattn train` wrote it."
    )


def common_name(video_id: str) -> str:
    """What a video is called wherever it comes up again: `dfdc:aaqaifqrwn`, `ffpp:033_097`, else its video_id.

    FF++ fakes of one pair bear one name in all methods; the official splits never part them either.
    """
    name = PurePosixPath(video_id).name
    if DFDC_NAME.fullmatch(name):
        return f"dfdc:{name}"
    return f"ffpp:{name}" if video_id.startswith(FFPP_PREFIX) else video_id


def require_unseen(models: Sequence[TrainedModel], videos: pd.DataFrame, table: pd.DataFrame) -> None:
    """Refuse a test on videos that a run knows, and runs that know videos of any test split.

    A video in a run's folds counts even for the model that held it out: that model's best checkpoint was chosen on it.

    Args:
        videos: rows of `table` that shall be tested on.
        table: a `videos` table.

    Raises:
        ValueError: leak; says how many videos, of which run, and the first.
    """
    of_test_split = table.loc[table["split"] == "test", "video_id"]
    for folds, name in _distinct_folds(models):
        known = {common_name(video) for video in folds["video_id"]}
        for asked, what in ((videos["video_id"], "to be tested on"), (of_test_split, "of a test split")):
            leaked = sorted(video for video in asked if common_name(video) in known)
            if leaked:
                raise ValueError(
                    f"leak: {len(leaked)} of {len(asked)} videos {what} are in the folds of {name}; the first: "
                    f"{', '.join(leaked[:3])}. Figures on videos a run has seen say nothing: test on others, or make "
                    "the folds without them (`multiattn folds` leaves out what `multiattn index` marks as test) and "
                    "train again."
                )


def held_out_pairs(models: Sequence[TrainedModel], videos: pd.DataFrame) -> dict[str, set[str]]:
    """Model -> video_ids of those videos it was not trained on: for choosing on a validation split.

    Raises:
        ValueError: a video every model was trained on.
    """
    allowed: dict[str, set[str]] = {}
    for model in models:
        folds = known_folds(model)
        seen = {common_name(video) for video in folds.loc[folds["fold"] != model.fold, "video_id"]}
        allowed[model.name] = {video for video in videos["video_id"] if common_name(video) not in seen}
    by_none = sorted(set(videos["video_id"]).difference(*allowed.values()))
    if by_none:
        raise ValueError(
            f"leak: {len(by_none)} of {len(videos)} videos were trained on by every model of "
            f"{', '.join(sorted({name.split('/')[0] for name in allowed}))}; the first: {', '.join(by_none[:3])}. "
            "Pass the runs of all folds, so that each video has a model that held it out."
        )
    return allowed


def seen_originals(models: Sequence[TrainedModel], videos: pd.DataFrame) -> int:
    """How many fakes were made from a video in the folds of a run: not the same video, but the same scene.

    Celeb-DF's official test list has such fakes for whoever trains on the rest of Celeb-DF, so it is no error.
    """
    known = {common_name(video) for folds, _ in _distinct_folds(models) for video in folds["video_id"]}
    originals = videos.loc[videos["original"] != "", "original"]
    return int(originals.map(common_name).isin(known).sum())


def trained_datasets(models: Sequence[TrainedModel]) -> tuple[str, ...]:
    """Names of the data sets in the runs' folds, sorted; empty where only imported checkpoints are given."""
    names = {video.split("/", 1)[0] for folds, _ in _distinct_folds(models) for video in folds["video_id"]}
    return tuple(sorted(names))


def _distinct_folds(models: Sequence[TrainedModel]) -> list[tuple[pd.DataFrame, str]]:
    """Every folds table once, with the name of the first model it belongs to."""
    found: list[tuple[pd.DataFrame, str]] = []
    for model in models:
        folds = known_folds(model)
        if not any(_same_videos(folds, other) for other, _ in found):
            found.append((folds, model.name))
    return found


def _same_videos(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return np.array_equal(one["video_id"].to_numpy(), other["video_id"].to_numpy())
