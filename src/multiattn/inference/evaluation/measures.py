"""The figures of a test in long form: per data set, method, compression and number of faces, with intervals.

Three levels: `video`, the scoring rule's answers; `frame`, single crops by the mean of the models; `frame of single
models`, each model's crops by itself and then the mean over models, which is what papers print.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from multiattn.inference.evaluation.answers import Answers
from multiattn.scoring.bootstrap import Interval, bootstrap_auc, bootstrap_log_loss
from multiattn.scoring.metrics import video_metrics
from multiattn.tables import FAKE, REAL

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
