"""Labelled videos of any number of data sets, and what models answer to them: the basis of every figure of a test.

The figures of a test in long form: per data set, method, compression and number of faces, with intervals.

Three levels: `video`, the scoring rule's answers; `frame`, single crops by the mean of the models; `frame of single
models`, each model's crops by itself and then the mean over models, which is what papers print.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from multiattn.scoring.aggregators import complete_videos
from multiattn.scoring.bootstrap import Interval, bootstrap_auc, bootstrap_log_loss
from multiattn.scoring.metrics import video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FAKE, REAL, UNKNOWN
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


ALL = "all videos"
SINGLE = "frame of single models"
COLUMNS = ("dataset", "by", "value", "level", "metric", "figure", "low", "high", "num_real", "num_fake")
MOST_FACES = 3
"""Videos with so many tracks or more are one group."""
FRAME_CLIP = 1e-6


def measure(answers: Answers, *, seed: int = 0) -> pd.DataFrame:
    """Every metric of `VideoMetrics` for the data set and its parts, in the order of `COLUMNS`.

    `figure` is NaN where a metric needs both classes and one is missing; `low` and `high`, the bootstrap's 95 %
    interval over groups, are there for log loss and AUC of videos and frames. `num_real` and `num_fake` count videos
    or crops. Coverage stands at level `coverage`: the numbers of videos by status, of decoded frames and of crops.
    """
    frames = answers.blended_frames()
    rows: list[dict[str, Any]] = []
    for by, value, videos in parts(answers.videos):
        place = {"dataset": answers.name, "by": by, "value": value}
        of_part = frames[frames["video_id"].isin(set(videos["video_id"]))]
        groups = of_part["video_id"].map(videos.set_index("video_id")["group"])
        rows += _with_intervals(videos, videos["group"], {**place, "level": "video"}, answers.rule.clip, seed)
        rows += _with_intervals(of_part, groups, {**place, "level": "frame"}, FRAME_CLIP, seed)
        rows += _single_models(answers.frames, videos, place)
        rows += _coverage(videos, place)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def parts(videos: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(by, value, rows): all videos, then its methods, compressions and numbers of faces where there are several.

    A method's part holds its fakes and all real videos, as the field reports FF++; a number of faces is that of the
    tracks that were judged, 0 for videos without any.
    """
    yield ALL, "", videos
    methods = sorted(set(videos.loc[videos["label"] == FAKE, "method"]) - {""})
    for method in methods if len(methods) > 1 else []:
        yield "method", method, videos[(videos["method"] == method) | (videos["label"] == REAL)]
    compressions = sorted(set(videos["compression"]))
    for compression in compressions if len(compressions) > 1 else []:
        yield "compression", compression or "none", videos[videos["compression"] == compression]
    faces = videos["num_tracks"].clip(upper=MOST_FACES)
    for number in sorted(set(faces)) if faces.nunique() > 1 else []:
        yield "faces", f"{number}{' or more' if number == MOST_FACES else ''}", videos[faces == number]


def _with_intervals(
    rows: pd.DataFrame, groups: pd.Series, place: dict[str, str], clip: float, seed: int
) -> list[dict[str, Any]]:
    if rows.empty:
        return []
    labels, probabilities = rows["label"].to_numpy(), rows["probability"].to_numpy()
    names = groups.to_numpy()
    metrics = video_metrics(labels, probabilities, clip=clip)
    intervals = {"log_loss": bootstrap_log_loss(labels, probabilities, names, clip=clip, seed=seed)}
    if metrics.auc is not None:
        intervals["auc"] = bootstrap_auc(labels, probabilities, names, seed=seed)
    counts = {"num_real": int((labels == REAL).sum()), "num_fake": int((labels == FAKE).sum())}
    return [
        {**place, "metric": metric, "figure": _number(figure), **_bounds(intervals.get(metric)), **counts}
        for metric, figure in metrics.as_dict().items()
        if metric != "num_videos"
    ]


def _single_models(frames: pd.DataFrame, videos: pd.DataFrame, place: dict[str, str]) -> list[dict[str, Any]]:
    of_part = frames[frames["video_id"].isin(set(videos["video_id"]))]
    if of_part.empty:
        return []
    crops = of_part[of_part["model"] == of_part["model"].iloc[0]]
    counts = {"num_real": int((crops["label"] == REAL).sum()), "num_fake": int((crops["label"] == FAKE).sum())}
    return [
        {**place, "level": SINGLE, "metric": metric, "figure": figure, **_bounds(None), **counts}
        for metric, figure in single_model_figures(of_part).items()
    ]


def single_model_figures(frames: pd.DataFrame) -> dict[str, float]:
    """`accuracy` and `auc` (NaN with one class) of each model's crops by itself, then the mean over models.

    Args:
        frames: rows of `Answers.frames`, at least one.
    """
    found = [
        video_metrics(rows["label"].to_numpy(), rows["probability"].to_numpy(), clip=FRAME_CLIP)
        for _, rows in frames.groupby("model")
    ]
    return {
        "accuracy": float(np.mean([metrics.accuracy for metrics in found])),
        "auc": float(np.mean([_number(metrics.auc) for metrics in found])),
    }


def _coverage(videos: pd.DataFrame, place: dict[str, str]) -> list[dict[str, Any]]:
    counts = videos["status"].value_counts()
    numbers = {
        "n_videos": len(videos),
        **{f"n_{status}": int(counts.get(status, 0)) for status in ("ok", "no_face", "unreadable")},
        "n_frames": int(videos["num_frames"].sum()),
        "n_crops": int(videos["num_crops"].sum()),
    }
    classes = {"num_real": int((videos["label"] == REAL).sum()), "num_fake": int((videos["label"] == FAKE).sum())}
    return [
        {**place, "level": "coverage", "metric": name, "figure": float(number), **_bounds(None), **classes}
        for name, number in numbers.items()
    ]


def _bounds(interval: Interval | None) -> dict[str, float]:
    return {"low": np.nan, "high": np.nan} if interval is None else {"low": interval.low, "high": interval.high}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


class Figures:
    """Looks figures up in a table of `measure`."""

    def __init__(self, table: pd.DataFrame) -> None:
        key = ["dataset", "by", "value", "level", "metric"]
        self.table = table
        self._rows = table.set_index(key).sort_index()

    def of(self, dataset: str, by: str, value: str, level: str, metric: str) -> tuple[float, float, float]:
        """Figure, low and high; NaN where it is not measured."""
        place = (dataset, by, value, level, metric)
        if place not in self._rows.index:
            return np.nan, np.nan, np.nan
        row = self._rows.loc[place]
        return float(row["figure"]), float(row["low"]), float(row["high"])

    def places(self, dataset: str) -> list[tuple[str, str]]:
        """(by, value) of a data set, in the order measured."""
        mine = self.table.loc[self.table["dataset"] == dataset, ["by", "value"]].drop_duplicates()
        return list(mine.itertuples(index=False, name=None))
