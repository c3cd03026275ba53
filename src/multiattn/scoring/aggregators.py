"""Aggregators: frame predictions -> one clipped probability a video, and the named ones that `multiattn tune` compares.

Frames of a track, tracks of a video, mean over models, clip: the same for validation, out-of-fold scores and
submission. `RECIPES`, `FRAME_RULES` and `TRACK_RULES` are the only lists: checks, messages, help and tuning read them.

A table of frames is sorted once, into `FrameGroups`, for any number of rules. A rule sees stacks of them: all lists of
one length as the rows of one array, so that it is a few operations on arrays, whatever the number of videos.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from multiattn.config.settings import require, require_fields
from multiattn.scoring import DEFAULT_PRIOR
from multiattn.scoring.frame_rules import FRAME_RULES, TRACK_RULES, FrameRule, TrackRule, sigmoid

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_CLIP = 0.01
"""Clip of a submission whose clip was not tuned: probabilities lie in [0.01, 0.99]."""


@dataclass(frozen=True, kw_only=True)
class Aggregator:
    """Settings of the way from frames to a video's probability; part of `scoring.json`.

    Raises:
        ValueError: a rule that is not registered, or a value that it does not take.
    """

    frames: str = "mean"
    """One of `FRAME_RULES`: frames of a track -> track. `mean_logit`, the sigmoid of the mean logit, is sharper than
    `mean`."""
    tracks: str = "weighted"
    """One of `TRACK_RULES`: tracks -> video. `weighted` weighs each track by its frames, so that a false detection of
    one frame hardly counts."""
    amount: float | None = None
    """The frame rule's one number, where it has one; None: the rule's default."""
    faithful: bool = False
    """With the fault of the original, for rules that are mended otherwise."""
    clip: float = DEFAULT_CLIP
    """The result lies in [clip, 1 - clip]: bounds what one confident mistake costs (-ln 0.01 = 4.6)."""
    prior: float = DEFAULT_PRIOR
    """The answer for a video without a usable face."""

    def __post_init__(self) -> None:
        require_fields(self, frames=FRAME_RULES, tracks=TRACK_RULES)
        frames, tracks = FRAME_RULES[self.frames], TRACK_RULES[self.tracks]
        if self.amount is not None:
            with_one = ", ".join(name for name, rule in FRAME_RULES.items() if rule.default is not None)
            expected = frames.expected or f"None (frames that take a number: {with_one})"
            accepted = frames.default is not None and frames.accepts(self.amount)
            require(accepted, self, "amount", f"{expected} with frames {self.frames}")
        if self.faithful:
            at_fault = [name for rules in (FRAME_RULES, TRACK_RULES) for name, rule in rules.items() if rule.has_fault]
            expected = f"False with frames {self.frames} and tracks {self.tracks} (originals with a fault have "
            require(frames.has_fault or tracks.has_fault, self, "faithful", f"{expected}{', '.join(at_fault)})")
        require(0 < self.clip < 0.5, self, "clip", "a number in (0, 0.5)")
        require(self.clip <= self.prior <= 1 - self.clip, self, "prior", f"in [clip, 1 - clip] with clip {self.clip}")


RECIPES: dict[str, Aggregator] = {
    "mean": Aggregator(),
    "mean_of_tracks": Aggregator(tracks="mean"),
    "highest_track": Aggregator(tracks="max"),
    "faces": Aggregator(tracks="faces"),
    "mean_logit": Aggregator(frames="mean_logit"),
    "median": Aggregator(frames="median"),
    "median_logit": Aggregator(frames="median_logit"),
    "trimmed": Aggregator(frames="trimmed"),
    "power": Aggregator(frames="power"),
    "top_k": Aggregator(frames="top_k"),
    "signed_power": Aggregator(frames="signed_power"),
    "dead_zone": Aggregator(frames="dead_zone"),
    "max_abs": Aggregator(frames="max_abs"),
    "average_vote": Aggregator(frames="average_vote"),
    "vote": Aggregator(frames="vote"),
    # The 1st: all faces of all persons are one list.
    "selim": Aggregator(frames="confident", tracks="pooled"),
    # The 2nd, the authors of the multi-attention paper: the mean of one face a frame.
    "wm": Aggregator(frames="mean", tracks="first"),
    # The 3rd: made for networks trained on mixed labels.
    "ntech": Aggregator(frames="sharpened", tracks="pooled"),
    # The 4th, and the same for its two networks b3 and r34.
    "robust_forensics": Aggregator(frames="gated", tracks="faces"),
    "robust_forensics_shrunk": Aggregator(frames="gated", tracks="faces_shrunk"),
    # The 5th: its 3D networks, and its 2D network.
    "medics": Aggregator(frames="mean", tracks="mean", clip=0.001),
    "medics_2d": Aggregator(frames="median", tracks="mean", clip=0.001),
    # The 41st: the mean logit of one face a frame.
    "ispl": Aggregator(frames="mean_logit", tracks="first"),
}
"""Name -> aggregator: the plain ones and, each for one model, the rules of the first five of the DFDC and of ISPL.
Models are blended after them; where a winner clipped, the recipe has that clip. `gated` apart, none depends on the
order of time."""


def register_aggregator(
    name: str, frames: str | FrameRule = "mean", tracks: str | TrackRule = "weighted", **settings: float | bool
) -> Aggregator:
    """Add an aggregator to `RECIPES`, from outside the package: from then on `multiattn tune` compares it.

    Args:
        name: of the recipe, and of the rules given as rules.
        frames, tracks: names of rules, or new rules, which are registered under `name`.
        settings: other fields of `Aggregator`.

    Raises:
        ValueError: the name is taken, or the settings are none of an `Aggregator`.
    """
    if any(name in registry for registry in (RECIPES, FRAME_RULES, TRACK_RULES)):
        raise ValueError(f"aggregator: the name {name} is taken; choose another one.")
    if isinstance(frames, FrameRule):
        FRAME_RULES[name], frames = frames, name
    if isinstance(tracks, TrackRule):
        TRACK_RULES[name], tracks = tracks, name
    try:
        RECIPES[name] = Aggregator(frames=frames, tracks=tracks, **settings)
    except (TypeError, ValueError):
        FRAME_RULES.pop(name, None), TRACK_RULES.pop(name, None)
        raise
    return RECIPES[name]


def frame_predictions(
    crops: "pd.DataFrame",
    logits: np.ndarray,
    *,
    model: str,
    fold: int,
    distances: np.ndarray | float = np.nan,
    reasons: Sequence[str] | str = "",
) -> "pd.DataFrame":
    """The rows of a `frame_predictions` table for one model's (N,) logits of N crops, rows of `faces`, with their
    distances and the reasons for them where they were measured."""
    return crops[["video_id", "frame_index", "track"]].assign(
        model=model,
        fold=fold,
        logit=logits,
        probability=sigmoid(logits),
        distance=distances,
        distance_reason=reasons,
    )


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

    video_ids: "pd.Index"
    """(V,) in ascending order, each once."""
    models: "pd.Index"
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
    def of(cls, predictions: "pd.DataFrame | FrameGroups") -> Self:
        """Sort a `frame_predictions` table (its key, logit and probability; text may be categories), which may be
        empty; groups stay as they are."""
        if isinstance(predictions, FrameGroups):
            return predictions
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
        units_of = (unit_videos, unit_models, unit_starts)
        return cls(video_ids, models, *units_of, track_starts, logits[order], probabilities[order])

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
    """Consecutive segments of an array, those of one length together, shortest first: (K,) int64 numbers of the
    segments of length n > 0, and (K, n) int64 positions of their elements.

    `starts` (S + 1,) int64, ascending, is where every segment begins, and where the last one ends.
    """
    lengths = np.diff(starts)
    order = np.argsort(lengths, kind="stable")
    for segments in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        length = lengths[segments[0]] if len(segments) else 0
        if length:
            yield segments, starts[segments][:, None] + np.arange(length)


def _codes(names: "pd.Series") -> "tuple[np.ndarray, pd.Index]":
    """(N,) int64 positions in the sorted names, and those names, each once. Categories are not turned into text."""
    present = names.astype("category").cat.remove_unused_categories().cat
    order = present.categories.argsort()
    return np.argsort(order)[present.codes], present.categories[order]


def _starts(is_new: np.ndarray) -> np.ndarray:
    """(S + 1,) int64: where `is_new`, and the length at the end."""
    return np.append(np.flatnonzero(is_new), len(is_new)).astype(np.int64)


def aggregate_units(predictions: "pd.DataFrame | FrameGroups", aggregator: Aggregator) -> "pd.DataFrame":
    """Frame predictions of any number of models -> one row a video and model: video_id, model, probability (float64 in
    [0, 1], not clipped) and num_crops (int64), sorted by the first two.

    The order of the rows given changes nothing, not the last bit; neither do other videos and models.
    """
    import pandas as pd

    groups = FrameGroups.of(predictions)
    rule, track_rule = FRAME_RULES[aggregator.frames], TRACK_RULES[aggregator.tracks]
    settings = {"faithful": aggregator.faithful} if rule.has_fault else {}
    amount = () if rule.default is None else (rule.default if aggregator.amount is None else aggregator.amount,)
    pooled = track_rule.pools_frames
    of_lists = np.empty(len(groups.unit_videos) if pooled else len(groups.frames_of_tracks))
    for stack in groups.stacks_of_units if pooled else groups.stacks_of_tracks:
        of_lists[stack.lists] = rule.of(getattr(stack, rule.takes), *amount, **settings)
    of_units = of_lists
    if not pooled:
        settings = {"faithful": aggregator.faithful} if track_rule.has_fault else {}
        of_units = np.empty(len(groups.unit_videos))
        for units, tracks in equal_lengths(groups.unit_starts):
            of_units[units] = track_rule.of(of_lists[tracks], groups.frames_of_tracks[tracks], **settings)
    return pd.DataFrame(
        {
            "video_id": groups.video_ids.take(groups.unit_videos),
            "model": groups.models.take(groups.unit_models),
            "probability": of_units,
            "num_crops": groups.frames_of_units,
        }
    )


def complete_videos(video_ids: "pd.Series", aggregated: "pd.DataFrame", prior: float) -> "pd.DataFrame":
    """One row for each video asked for, in the order given; the prior, and 0 crops, where nothing was predicted."""
    import pandas as pd

    table = pd.DataFrame({"video_id": video_ids.to_numpy()}).merge(aggregated, on="video_id", how="left")
    table["probability"] = table["probability"].fillna(prior)
    table["num_crops"] = table["num_crops"].fillna(0).astype("int64")
    return table
