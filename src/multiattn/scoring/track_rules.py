"""One P(fake) of a video from those of its tracks, one a person.

Every rule takes (K, t) arrays of K videos with t >= 1 tracks each, in the order of their numbers: track 0 is the person
seen most (`video/tracks.py`). Results are in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FACES = 2
"""At most so many faces have a say in `faces`."""


def weighted(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean weighed by frames, so that a false detection of one frame hardly counts. Monotone."""
    return np.sum(values * counts, axis=-1) / np.sum(counts, axis=-1)


def mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Every track alike. Monotone. Medics (DFDC, 5th place)."""
    return np.mean(values, axis=-1)


def highest(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The most forged track, for videos in which one of several people is forged. Monotone."""
    return np.max(values, axis=-1)


def first(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The person seen most, nobody else. Monotone. WM and ISPL look at one face a frame.

    Departures: WM takes each frame's largest box, ISPL the one of the best score; tables of predictions hold neither.
    """
    return values[..., 0]


def faces(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """RobustForensics' face policy over the two longest tracks (of equal ones, the lower number).

    With M = max a: M if M > 0.9; M if all a > 0.6; min a if all a < 0.4; else mean a.

    Source: Siyu-C/RobustForensics (DFDC, 4th place), `get_image_score`. Monotone: each answer lies between the mean
    and the max or, where every face counts as real, is the min. Departures: none.
    """
    longest = np.argsort(-counts, axis=-1, kind="stable")[..., :FACES]
    values = np.take_along_axis(values, longest, axis=-1)
    high, low = np.max(values, axis=-1), np.min(values, axis=-1)
    undecided = np.where(high < 0.4, low, np.mean(values, axis=-1))
    return np.where((high > 0.9) | (low > 0.6), high, undecided)


def faces_shrunk(values: np.ndarray, counts: np.ndarray, *, faithful: bool = False) -> np.ndarray:
    """`faces`, kept in [0.02, 0.98]: what RobustForensics does to its two least careful networks, b3 and r34.

    Args:
        faithful: as there, s <- 0.5 + 0.96 (s - 0.5) where s >= 0.98 or s <= 0.02, which is not monotone: 0.979 stays
            and 0.98 becomes 0.9608. Otherwise s <- clip(s, 0.02, 0.98): the same at 0, at 1 and in between, and
            monotone.
    """
    score = faces(values, counts)
    if faithful:
        return np.where((score >= 0.98) | (score <= 0.02), 0.5 + 0.96 * (score - 0.5), score)
    return np.clip(score, 0.02, 0.98)


@dataclass(frozen=True)
class TrackRule:
    """A rule, and whether `faithful` brings back a fault of the original."""

    of: Callable[..., np.ndarray]
    """(K, t) P(fake) of tracks, (K, t) their frames -> (K,) P(fake)."""
    has_fault: bool = False


TRACK_RULES: dict[str, TrackRule] = {
    "weighted": TrackRule(weighted),
    "mean": TrackRule(mean),
    "max": TrackRule(highest),
    "first": TrackRule(first),
    "faces": TrackRule(faces),
    "faces_shrunk": TrackRule(faces_shrunk, has_fault=True),
}
"""Beside them `pooled`, which has no tracks: all frames of a video are one list of the frame rule."""
