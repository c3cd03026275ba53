"""The videos a test is made on: their split and labels, where their faces lie, and that no run has seen them.

A run's `folds.csv` names every video it knows; a model has trained on those outside its own fold. A video is known by
its video_id, and by its bare name where names distinguish videos: within FF++ (the same clip at another compression)
and for DFDC's ten letters (the 400 videos of Kaggle's public test lie inside training parts 0 to 2).
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pandas as pd

from multiattn.config.choices import Split
from multiattn.inference.runs import TrainedModel, folds_table
from multiattn.runtime.text_tables import counted
from multiattn.tables import FOLDS, UNKNOWN
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

DFDC_NAME = re.compile(r"[a-z]{10}")
FFPP_PREFIX = "ffpp/"


@dataclass(frozen=True)
class Selection:
    """Which videos are evaluated, and what was left out."""

    split: Split
    datasets: dict[str, pd.DataFrame]
    """Data set -> rows of the `videos` table, labelled, sorted by video_id; never empty."""
    unsplit: tuple[str, ...] = ()
    """Data sets without any split, of which all videos are taken."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Data set -> why none of its videos is taken."""
    unlabelled: dict[str, int] = field(default_factory=dict)
    """Data set -> videos of the split without a label, which are not counted."""

    @property
    def videos(self) -> pd.DataFrame:
        return pd.concat(self.datasets.values(), ignore_index=True)


def select_videos(table: pd.DataFrame, split: Split) -> Selection:
    """Every data set's videos of the split; of one without any split, all of them for a test and none to choose.

    Raises:
        ValueError: nothing is left; says of every data set why.
    """
    datasets, unsplit, left_out, unlabelled = {}, [], {}, {}
    for name, videos in table.sort_values("video_id").groupby("dataset", sort=True):
        has_splits = (videos["split"] != "").any()
        chosen = videos[videos["split"] == split] if has_splits or split == "val" else videos
        labelled = chosen[chosen["label"] != UNKNOWN]
        if labelled.empty:
            found = ", ".join(f"{number} {part or 'none'}" for part, number in videos["split"].value_counts().items())
            left_out[name] = f"no video of split {split} (splits: {found})"
            if len(chosen):
                left_out[name] = f"none of its {counted(len(chosen), 'video')} of split {split} has a label"
            continue
        datasets[name] = labelled.reset_index(drop=True)
        unsplit += [] if has_splits else [name]
        if len(labelled) < len(chosen):
            unlabelled[name] = len(chosen) - len(labelled)
    if not datasets:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items()) or "the table is empty"
        raise ValueError(f"--videos: nothing to evaluate: {reasons}. Splits and labels come from `multiattn index`.")
    return Selection(split, datasets, tuple(unsplit), left_out, unlabelled)


@dataclass(frozen=True)
class Extracted:
    """The faces of the selected videos."""

    by_folder: dict[Path, list[str]]
    """Faces folder -> its selected videos."""
    statuses: pd.DataFrame
    """Their rows of the `video_status` tables."""
    faces: pd.DataFrame
    """Their rows of the `faces` tables, with the column `folder`."""


def find_faces(selection: Selection, folders: Sequence[Path]) -> tuple[Selection, Extracted]:
    """The selection without data sets that no folder knows (named in `left_out`), and the faces of the rest.

    Raises:
        ValueError: a video in two folders, a data set of which only some videos are extracted, or none at all.
    """
    wanted = set(selection.videos["video_id"])
    folder_of: dict[str, Path] = {}
    statuses, faces = [], []
    for folder in folders:
        rows, found, _ = read_faces_folder(folder)
        found = found[found["video_id"].isin(wanted)]
        if twice := sorted(set(found["video_id"]) & set(folder_of)):
            raise ValueError(f"--faces: {twice[0]} is in {folder_of[twice[0]]} and in {folder}. Pass one of them.")
        folder_of |= dict.fromkeys(found["video_id"].tolist(), folder)
        statuses.append(found)
        faces.append(rows[rows["video_id"].isin(set(found["video_id"]))].assign(folder=str(folder)))
    datasets, left_out = {}, dict(selection.left_out)
    for name, videos in selection.datasets.items():
        missing = videos.loc[~videos["video_id"].isin(set(folder_of)), "video_id"]
        if len(missing) == len(videos):
            left_out[name] = f"none of its {counted(len(videos), 'video')} is in --faces"
            logger.warning("%s: %s, so it is left out", name, left_out[name])
        elif len(missing):
            raise ValueError(
                f"--faces: expected all {len(videos)} {name} videos of split {selection.split}, {len(missing)} are not "
                f"extracted; the first: {missing.iloc[0]}. Run `multiattn faces` on this --videos with the same --out."
            )
        else:
            datasets[name] = videos
    if not datasets:
        raise ValueError(
            f"--faces: none of the {len(wanted)} selected videos is in {', '.join(map(str, folders))}. Make them "
            "with `multiattn faces --videos` and this table."
        )
    by_folder = {folder: found["video_id"].tolist() for folder, found in zip(folders, statuses, strict=True)}
    tables = (pd.concat(statuses, ignore_index=True), pd.concat(faces, ignore_index=True))
    extracted = Extracted({folder: ids for folder, ids in by_folder.items() if ids}, *tables)
    return replace(selection, datasets=datasets, left_out=left_out), extracted


def require_unseen(models: Sequence[TrainedModel], videos: pd.DataFrame, table: pd.DataFrame) -> None:
    """Refuse a test on videos that a run knows, and runs that know videos of any test split.

    A video in a run's folds counts even for the model that held it out: that model's best checkpoint was chosen on it.
    `videos` are the rows of `table` that shall be tested on.
    """
    of_test_split = table.loc[table["split"] == "test", "video_id"]
    for folds, name in _distinct_folds(models):
        known = {common_name(video) for video in folds["video_id"]}
        for asked, what in ((videos["video_id"], "to be tested on"), (of_test_split, "of a test split")):
            leaked = sorted(video for video in asked if common_name(video) in known)
            if leaked:
                raise ValueError(
                    f"leak: {len(leaked)} of {counted(len(asked), 'video')} {what} in the folds of {name}; the first: "
                    f"{', '.join(leaked[:3])}. Figures on videos a run has seen say nothing: test on others, or make "
                    "the folds without them (`multiattn folds` leaves out what `multiattn index` marks as test) and "
                    "train again."
                )


def held_out_pairs(models: Sequence[TrainedModel], videos: pd.DataFrame) -> dict[str, set[str]]:
    """Model -> video_ids of those videos it was not trained on: for choosing on a validation split. A video that every
    model was trained on is refused."""
    allowed: dict[str, set[str]] = {}
    for model in models:
        folds = known_folds(model)
        seen = {common_name(video) for video in folds.loc[folds["fold"] != model.fold, "video_id"]}
        allowed[model.name] = {video for video in videos["video_id"] if common_name(video) not in seen}
    by_none = sorted(set(videos["video_id"]).difference(*allowed.values()))
    if by_none:
        raise ValueError(
            f"leak: {len(by_none)} of {counted(len(videos), 'video')} trained on by every model of "
            f"{', '.join(sorted({name.split('/')[0] for name in allowed}))}; the first: {', '.join(by_none[:3])}. "
            "Pass the runs of all folds, so that each video has a model that held it out."
        )
    return allowed


def seen_originals(models: Sequence[TrainedModel], videos: pd.DataFrame) -> int:
    """Number of fakes made from a video in the folds of a run: not the same video, but the same scene.

    Celeb-DF's official test list has such fakes for whoever trains on the rest of Celeb-DF, so it is no error.
    """
    known = {common_name(video) for folds, _ in _distinct_folds(models) for video in folds["video_id"]}
    originals = videos.loc[videos["original"] != "", "original"]
    return int(originals.map(common_name).isin(known).sum())


def trained_datasets(models: Sequence[TrainedModel]) -> tuple[str, ...]:
    """Names of the data sets in the runs' folds, sorted; empty where only imported checkpoints are given."""
    videos = {video for folds, _ in _distinct_folds(models) for video in folds["video_id"]}
    return tuple(sorted({video.split("/", 1)[0] for video in videos}))


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
    """Name of a video wherever it comes up again: `dfdc:aaqaifqrwn`, `ffpp:033_097`, else its video_id.

    FF++ fakes of one pair bear one name in all methods; the official splits never part them either.
    """
    name = PurePosixPath(video_id).name
    if DFDC_NAME.fullmatch(name):
        return f"dfdc:{name}"
    return f"ffpp:{name}" if video_id.startswith(FFPP_PREFIX) else video_id


def _distinct_folds(models: Sequence[TrainedModel]) -> list[tuple[pd.DataFrame, str]]:
    """Every folds table once, with the name of the first model it belongs to."""
    found: list[tuple[pd.DataFrame, str]] = []
    for model in models:
        folds = known_folds(model)
        if not any(folds["video_id"].equals(other["video_id"]) for other, _ in found):
            found.append((folds, model.name))
    return found
