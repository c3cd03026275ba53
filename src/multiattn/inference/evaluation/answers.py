"""Labelled videos of any number of data sets, and what models answer to them: the basis of every figure of a test."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from multiattn.scoring.aggregators import complete_videos
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import UNKNOWN
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

Split = Literal["test", "val"]


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
        """All of them in one table."""
        return pd.concat(self.datasets.values(), ignore_index=True)


def select_videos(table: pd.DataFrame, split: Split) -> Selection:
    """Of every data set its videos of the split; of one without any split, all of them for a test and none to choose.

    Args:
        table: a `videos` table.

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
            left_out[name] = (
                f"none of its {len(chosen)} videos of split {split} has a label"
                if len(chosen)
                else f"no video of split {split} (splits: {found})"
            )
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

    folder_of: dict[str, Path]
    """video_id -> the faces folder that holds it."""
    statuses: pd.DataFrame
    """Their rows of the `video_status` tables."""
    faces: pd.DataFrame
    """Their rows of the `faces` tables, with the column `folder`."""

    def by_folder(self) -> dict[Path, list[str]]:
        """Faces folder -> its selected videos."""
        folders: dict[Path, list[str]] = {}
        for video, folder in self.folder_of.items():
            folders.setdefault(folder, []).append(video)
        return folders


def find_faces(selection: Selection, folders: Sequence[Path]) -> tuple[Selection, Extracted]:
    """Where the selected videos' faces lie.

    Returns:
        The selection without data sets no folder knows (named in `left_out`), and the faces of the rest.

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
            left_out[name] = f"none of its {len(videos)} videos is in --faces"
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
    kept = Selection(selection.split, datasets, selection.unsplit, left_out, selection.unlabelled)
    extracted = Extracted(folder_of, pd.concat(statuses, ignore_index=True), pd.concat(faces, ignore_index=True))
    return kept, extracted


@dataclass(frozen=True)
class Answers:
    """What was answered to the videos of one data set."""

    name: str
    videos: pd.DataFrame
    """Columns of `videos`, and: group (what the bootstrap draws as a whole), status, message, num_frames, num_tracks,
    probability (of the scoring rule; its prior where there is no prediction), num_crops."""
    frames: pd.DataFrame
    """Every crop of every model: model, video_id, frame_index, track, probability, label."""
    rule: ScoringRule

    @property
    def models(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted(self.frames["model"].unique())

    def blended_frames(self) -> pd.DataFrame:
        """One row a crop: video_id, frame_index, track, label and the mean probability over the models that saw it."""
        key = ["video_id", "frame_index", "track"]
        return self.frames.groupby(key, as_index=False).agg(
            label=("label", "first"), probability=("probability", "mean")
        )


def answer_videos(selection: Selection, extracted: Extracted, predictions: pd.DataFrame, rule: ScoringRule) -> list:
    """The `Answers` of every data set, by name.

    A video without predictions, be it without a face or unreadable, is answered with the prior and stays in the table.

    Args:
        predictions: a `frame_predictions` table of the selected videos.
    """
    answers = []
    for name, videos in selection.datasets.items():
        ids = videos["video_id"]
        mine = predictions[predictions["video_id"].isin(set(ids))]
        scored = complete_videos(ids, rule.score(mine), rule.prior)
        tracks = mine.groupby("video_id")["track"].nunique()
        facts = extracted.statuses.drop(columns="num_crops")
        table = videos.merge(facts, on="video_id", how="left", validate="one_to_one").merge(scored, on="video_id")
        table["num_tracks"] = table["video_id"].map(tracks).fillna(0).astype("int64")
        table["group"] = table["original"].where(table["original"] != "", table["video_id"])
        columns = ["model", "video_id", "frame_index", "track", "probability"]
        frames = mine[columns].merge(videos[["video_id", "label"]], on="video_id", validate="many_to_one")
        frames = frames.sort_values(columns[:4], ignore_index=True)
        answers.append(Answers(name, table, frames, rule))
    return answers
