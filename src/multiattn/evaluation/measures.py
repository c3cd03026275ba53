"""Answers to the videos of a test, and every figure of them: per data set, method, compression and number of faces.

Three levels: `video`, the scoring rule's answers; `frame`, single crops by the mean of the models; `frame of single
models`, each model's crops by itself and then the mean over models, which is what papers print.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from multiattn.evaluation.selection import Extracted, Selection
from multiattn.scoring.aggregators import complete_videos
from multiattn.scoring.bootstrap import Interval, bootstrap_auc, bootstrap_log_loss
from multiattn.scoring.metrics import video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FAKE, REAL

ALL = "all videos"
SINGLE = "frame of single models"
COLUMNS = ("dataset", "by", "value", "level", "metric", "figure", "low", "high", "num_real", "num_fake")
MOST_FACES = 3
"""Videos with so many tracks or more are one group."""
FRAME_CLIP = 1e-6


@dataclass(frozen=True)
class Answers:
    """Answers to the videos of one data set."""

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
        blended, single = (table[table["video_id"].isin(set(videos["video_id"]))] for table in (frames, answers.frames))
        groups = blended["video_id"].map(videos.set_index("video_id")["group"])
        rows += _with_intervals(videos, videos["group"], {**place, "level": "video"}, answers.rule.clip, seed)
        if len(blended):
            rows += _with_intervals(blended, groups, {**place, "level": "frame"}, FRAME_CLIP, seed)
            one_model = single[single["model"] == single["model"].iloc[0]]
            rows += _rows({**place, "level": SINGLE}, single_model_figures(single), one_model["label"])
        rows += _rows({**place, "level": "coverage"}, _coverage(videos), videos["label"])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def parts(videos: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(by, value, rows): all videos, then its methods, compressions and numbers of faces where there are several.

    A method's part holds its fakes and all real videos, as the field reports FF++; a number of faces is that of the
    tracks that were predicted, 0 for videos without any.
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
    labels, probabilities, names = rows["label"].to_numpy(), rows["probability"].to_numpy(), groups.to_numpy()
    metrics = video_metrics(labels, probabilities, clip=clip)
    intervals = {"log_loss": bootstrap_log_loss(labels, probabilities, names, clip=clip, seed=seed)}
    if metrics.auc is not None:
        intervals["auc"] = bootstrap_auc(labels, probabilities, names, seed=seed)
    figures = {metric: figure for metric, figure in metrics.as_dict().items() if metric != "num_videos"}
    return _rows(place, figures, rows["label"], intervals)


def _rows(
    place: dict[str, str],
    figures: Mapping[str, float | None],
    labels: pd.Series,
    intervals: Mapping[str, Interval] | None = None,
) -> list[dict[str, Any]]:
    """A row a figure, with the numbers of real and fake ones it is over."""
    counts = {"num_real": int((labels == REAL).sum()), "num_fake": int((labels == FAKE).sum())}
    rows = []
    for metric, figure in figures.items():
        interval = (intervals or {}).get(metric)
        low, high = (interval.low, interval.high) if interval is not None else (np.nan, np.nan)
        rows.append({**place, "metric": metric, "figure": _number(figure), "low": low, "high": high, **counts})
    return rows


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


def _coverage(videos: pd.DataFrame) -> dict[str, float]:
    counts = videos["status"].value_counts()
    return {
        "n_videos": len(videos),
        **{f"n_{status}": int(counts.get(status, 0)) for status in ("ok", "no_face", "unreadable")},
        "n_frames": int(videos["num_frames"].sum()),
        "n_crops": int(videos["num_crops"].sum()),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


class Figures:
    """Figures of a table of `measure`, by their place in it."""

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
