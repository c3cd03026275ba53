"""Frame probabilities -> one clipped probability a video.

The one rule that validation, out-of-fold scoring and submission share: frames of a track, tracks of a video, mean over
models, clip.
"""

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

import numba
import numpy as np
import pandas as pd

DEFAULT_CLIP = 0.01
DEFAULT_PRIOR = 0.5


@dataclass(frozen=True, kw_only=True)
class Aggregator:
    """How frames become a video's probability; saved in `card.json`."""

    frames: Literal["mean", "median", "mean_logit"] = "mean"
    """Frames of a track -> track. `mean_logit` is the sigmoid of the mean logit, sharper than `mean`."""
    tracks: Literal["weighted", "mean", "max"] = "weighted"
    """Tracks -> video. `weighted` weighs each track by its frames, so a false detection of one frame hardly counts;
    `max` is for videos in which one of several people is forged."""
    clip: float = DEFAULT_CLIP
    """The result lies in [clip, 1 - clip]: bounds what one confident mistake costs (-ln 0.01 = 4.6)."""
    prior: float = DEFAULT_PRIOR
    """The answer for a video without a usable face."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Aggregator).items():
            if get_args(hint) and getattr(self, name) not in get_args(hint):
                raise ValueError(
                    f"--{name}: expected one of {', '.join(get_args(hint))}, found {getattr(self, name)!r}."
                )
        if not 0 < self.clip < 0.5:
            raise ValueError(f"--clip: expected a value in (0, 0.5), found {self.clip}.")
        if not self.clip <= self.prior <= 1 - self.clip:
            raise ValueError(
                f"--prior: expected a value in [clip, 1 - clip], found {self.prior} with clip {self.clip}."
            )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """P(fake) in [0, 1], float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def frame_predictions(crops: pd.DataFrame, logits: np.ndarray, *, model: str, fold: int) -> pd.DataFrame:
    """The rows of a `frame_predictions` table for one model's (N,) logits of N crops, rows of `faces`."""
    return crops[["video_id", "frame_index", "track"]].assign(
        model=model, fold=fold, logit=logits, probability=sigmoid(logits)
    )


def aggregate_frames(predictions: pd.DataFrame, aggregator: Aggregator) -> pd.DataFrame:
    """Frame predictions of any number of models -> one row a video.

    Args:
        predictions: a `frame_predictions` table (model, video_id, track, logit, probability); may be empty.

    Returns:
        Columns video_id, probability (float64, mean over the models that saw the video, clipped) and num_crops (the
        most frames any model saw), sorted by video_id. The order of the rows given changes nothing.
    """
    keys = ["video_id", "model", "track"]
    # Sorting by value as well makes sums, and with them the last bit, independent of the order of the rows given.
    column = "logit" if aggregator.frames == "mean_logit" else "probability"
    ordered = predictions.sort_values([*keys, column], kind="stable", ignore_index=True)
    if ordered.empty:
        return pd.DataFrame(
            {"video_id": pd.Series(dtype=str), "probability": [], "num_crops": pd.Series(dtype="int64")}
        )
    values = ordered[column].to_numpy(np.float64)
    starts = _starts(ordered, keys)
    track = ordered.loc[starts[:-1], keys].reset_index(drop=True)
    track["frames"] = np.diff(starts)
    reduced = _segment_median(values, starts) if aggregator.frames == "median" else _segment_mean(values, starts)
    track["probability"] = sigmoid(reduced) if aggregator.frames == "mean_logit" else reduced

    starts = _starts(track, ["video_id", "model"])
    weights = track["frames"].to_numpy(np.float64)
    if aggregator.tracks == "mean":
        weights = np.ones_like(weights)
    probability = track["probability"].to_numpy(np.float64)
    video = track.loc[starts[:-1], ["video_id"]].reset_index(drop=True)
    video["num_crops"] = np.add.reduceat(track["frames"].to_numpy(), starts[:-1])
    if aggregator.tracks == "max":
        video["probability"] = np.maximum.reduceat(probability, starts[:-1])
    else:
        video["probability"] = _segment_weighted_mean(probability, weights, starts)
    blended = video.groupby("video_id", as_index=False).agg(
        probability=("probability", "mean"), num_crops=("num_crops", "max")
    )
    blended["probability"] = blended["probability"].clip(aggregator.clip, 1 - aggregator.clip)
    return blended


def complete_videos(video_ids: pd.Series, aggregated: pd.DataFrame, prior: float) -> pd.DataFrame:
    """One row for each video asked for, in the order given; the prior, and 0 crops, where nothing was predicted."""
    table = pd.DataFrame({"video_id": video_ids.to_numpy()}).merge(aggregated, on="video_id", how="left")
    table["probability"] = table["probability"].fillna(prior)
    table["num_crops"] = table["num_crops"].fillna(0).astype("int64")
    return table


def _starts(ordered: pd.DataFrame, keys: list[str]) -> np.ndarray:
    """(S + 1,) int64: where each run of equal keys begins, and the length at the end."""
    changed = np.zeros(len(ordered), dtype=bool)
    changed[0] = True
    for key in keys:
        codes = pd.factorize(ordered[key])[0]
        changed[1:] |= codes[1:] != codes[:-1]
    return np.append(np.flatnonzero(changed), len(ordered)).astype(np.int64)


@numba.njit(cache=False)
def _segment_mean(values, starts):
    out = np.empty(len(starts) - 1, dtype=np.float64)
    for segment in range(len(out)):
        out[segment] = np.mean(values[starts[segment] : starts[segment + 1]])
    return out


@numba.njit(cache=False)
def _segment_median(values, starts):
    out = np.empty(len(starts) - 1, dtype=np.float64)
    for segment in range(len(out)):
        out[segment] = np.median(values[starts[segment] : starts[segment + 1]])
    return out


@numba.njit(cache=False)
def _segment_weighted_mean(values, weights, starts):
    out = np.empty(len(starts) - 1, dtype=np.float64)
    for segment in range(len(out)):
        low, high = starts[segment], starts[segment + 1]
        out[segment] = np.sum(values[low:high] * weights[low:high]) / np.sum(weights[low:high])
    return out
