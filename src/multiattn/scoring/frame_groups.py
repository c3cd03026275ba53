"""A `frame_predictions` table as arrays, sorted once, for any number of rules.

What a rule sees are stacks: all lists of one length as the rows of one array, so that a rule is a few operations on
arrays, whatever the number of videos.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class FrameStack:
    """The K lists of frames that have n frames each; arrays are (K, n) float64, made when first asked for."""

    lists: np.ndarray
    """(K,) int64: which lists."""
    frames: np.ndarray
    """(K, n) int64: where their frames lie, in the order of time."""
    all_logits: np.ndarray
    all_probabilities: np.ndarray
    """(N,) of the groups it is a part of."""

    @cached_property
    def probabilities(self) -> np.ndarray:
        """P(fake), ascending."""
        return np.sort(self.all_probabilities[self.frames], axis=1)

    @cached_property
    def logits(self) -> np.ndarray:
        """Logits, ascending."""
        return np.sort(self.all_logits[self.frames], axis=1)

    @property
    def logits_in_time(self) -> np.ndarray:
        """Logits in the order of their frames; of several tracks, track after track."""
        return self.all_logits[self.frames]


@dataclass(frozen=True, eq=False)
class FrameGroups:
    """Frames of tracks of units, a unit being one video as one model saw it.

    Sorted by (video_id, model, track, frame_index), text by code points. The order of the rows it was made from
    reaches nothing here.
    """

    video_ids: pd.Index
    """(V,) in ascending order, each once."""
    models: pd.Index
    """(M,) likewise."""
    unit_videos: np.ndarray
    """(U,) int64: positions in `video_ids`, ascending."""
    unit_models: np.ndarray
    """(U,) int64: positions in `models`, ascending within a video."""
    unit_starts: np.ndarray
    """(U + 1,) int64: the first track of every unit, and the number of tracks, T."""
    track_starts: np.ndarray
    """(T + 1,) int64: the first frame of every track, and the number of frames, N."""
    logits: np.ndarray
    """(N,) float64."""
    probabilities: np.ndarray
    """(N,) float64 in [0, 1], as the table has them."""

    @classmethod
    def of(cls, predictions: pd.DataFrame) -> Self:
        """Sort a `frame_predictions` table (its key, logit and probability; text may be categories). May be empty."""
        video, video_ids = _codes(predictions["video_id"])
        model, models = _codes(predictions["model"])
        unit = video * max(len(models), 1) + model
        track = predictions["track"].to_numpy(np.int64)
        time = predictions["frame_index"].to_numpy(np.int64)
        logits = predictions["logit"].to_numpy(np.float64)
        probabilities = predictions["probability"].to_numpy(np.float64)
        order = np.lexsort((time, track, unit))
        unit, track = unit[order], track[order]
        new_unit = np.diff(unit, prepend=-1) != 0
        new_track = new_unit | (np.diff(track, prepend=0) != 0)
        track_starts = _starts(new_track)
        unit_starts = _starts(new_unit[track_starts[:-1]])
        units = unit[track_starts[:-1]][unit_starts[:-1]]
        unit_videos, unit_models = np.divmod(units, max(len(models), 1))
        return cls(
            video_ids=video_ids,
            models=models,
            unit_videos=unit_videos,
            unit_models=unit_models,
            unit_starts=unit_starts,
            track_starts=track_starts,
            logits=logits[order],
            probabilities=probabilities[order],
        )

    @cached_property
    def frames_of_tracks(self) -> np.ndarray:
        """(T,) int64: frames of every track."""
        return np.diff(self.track_starts)

    @cached_property
    def frames_of_units(self) -> np.ndarray:
        """(U,) int64: frames of every unit, over all tracks."""
        return np.diff(self.track_starts[self.unit_starts])

    @cached_property
    def stacks_of_tracks(self) -> list[FrameStack]:
        """Every track is a list of frames."""
        return self._stacks(self.track_starts)

    @cached_property
    def stacks_of_units(self) -> list[FrameStack]:
        """Every unit is one, with the frames of all its tracks."""
        if len(self.unit_starts) == len(self.track_starts):  # one track each: the same, sorted already
            return self.stacks_of_tracks
        return self._stacks(self.track_starts[self.unit_starts])

    def _stacks(self, starts: np.ndarray) -> list[FrameStack]:
        return [FrameStack(*stack, self.logits, self.probabilities) for stack in equal_lengths(starts)]


def equal_lengths(starts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Consecutive segments of an array, those of one length together, shortest first.

    Args:
        starts: (S + 1,) int64, ascending: where every segment begins, and where the last one ends.

    Yields:
        (K,) int64 numbers of the segments of length n, and (K, n) int64 positions of their elements. None of length 0.
    """
    lengths = np.diff(starts)
    order = np.argsort(lengths, kind="stable")
    for segments in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        length = lengths[segments[0]] if len(segments) else 0
        if length:
            yield segments, starts[segments][:, None] + np.arange(length)


def _codes(names: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """(N,) int64 positions in the sorted names, and those names, each once. Categories are not turned into text."""
    if isinstance(names.dtype, pd.CategoricalDtype):
        present, uniques = pd.factorize(names.cat.codes.to_numpy())
        uniques = names.cat.categories.take(uniques)
    else:
        present, uniques = pd.factorize(names)
        uniques = pd.Index(uniques)
    order = uniques.argsort()
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[present], uniques[order]


def _starts(is_new: np.ndarray) -> np.ndarray:
    """(S + 1,) int64: where `is_new`, and the length at the end."""
    return np.append(np.flatnonzero(is_new), len(is_new)).astype(np.int64)
