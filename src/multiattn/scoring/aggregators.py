"""Aggregators: frame predictions -> one clipped probability a video, and the named ones that `multiattn tune` compares.

Frames of a track, tracks of a video, mean over models, clip: the same for validation, out-of-fold scores and
submission. `RECIPES`, `FRAME_RULES` and `TRACK_RULES` are the only lists: checks, messages, help and tuning read them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multiattn.scoring import DEFAULT_PRIOR
from multiattn.scoring.frame_groups import FrameGroups, equal_lengths
from multiattn.scoring.frame_rules import FRAME_RULES, TRACK_RULES, FrameRule, TrackRule, sigmoid

DEFAULT_CLIP = 0.01
"""Of a submission whose clip was not tuned: probabilities lie in [0.01, 0.99]."""


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
        for name, rules in (("frames", FRAME_RULES), ("tracks", TRACK_RULES)):
            if getattr(self, name) not in rules:
                raise ValueError(
                    f"aggregator: expected {name} to be one of {', '.join(rules)}, found {getattr(self, name)!r}."
                )
        frames, tracks = FRAME_RULES[self.frames], TRACK_RULES[self.tracks]
        if self.amount is not None and frames.default is None:
            raise ValueError(
                f"aggregator: frames {self.frames} takes no amount, found {self.amount}; those that do: "
                f"{_names(FRAME_RULES, lambda rule: rule.default is not None)}."
            )
        if self.amount is not None and not frames.accepts(self.amount):
            raise ValueError(
                f"aggregator: expected an amount that is {frames.expected} with frames {self.frames}, found "
                f"{self.amount}."
            )
        if self.faithful and not (frames.has_fault or tracks.has_fault):
            raise ValueError(
                f"aggregator: faithful is for rules whose originals have a fault: frames "
                f"{_names(FRAME_RULES, lambda rule: rule.has_fault)}, tracks "
                f"{_names(TRACK_RULES, lambda rule: rule.has_fault)}; found frames {self.frames}, tracks {self.tracks}."
            )
        if not 0 < self.clip < 0.5:
            raise ValueError(f"aggregator: expected a clip in (0, 0.5), found {self.clip}.")
        if not self.clip <= self.prior <= 1 - self.clip:
            raise ValueError(
                f"aggregator: expected a prior in [clip, 1 - clip], found {self.prior} with clip {self.clip}."
            )


def _names(rules: Mapping[str, FrameRule | TrackRule], wanted: Callable[[FrameRule | TrackRule], bool]) -> str:
    return ", ".join(name for name, rule in rules.items() if wanted(rule))


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

    A `scoring.json` that names one of its rules is read only by a process that has registered it.

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


def frame_predictions(crops: pd.DataFrame, logits: np.ndarray, *, model: str, fold: int) -> pd.DataFrame:
    """The rows of a `frame_predictions` table for one model's (N,) logits of N crops, rows of `faces`."""
    return crops[["video_id", "frame_index", "track"]].assign(
        model=model, fold=fold, logit=logits, probability=sigmoid(logits)
    )


def aggregate_units(predictions: pd.DataFrame | FrameGroups, aggregator: Aggregator) -> pd.DataFrame:
    """Frame predictions of any number of models -> one row a video and model.

    Args:
        predictions: a `frame_predictions` table, or the groups made of one, which serve any number of rules; may be
            empty.

    Returns:
        Columns video_id, model, probability (float64 in [0, 1], not clipped) and num_crops (int64), sorted by video_id
        and model. The order of the rows given changes nothing, not the last bit; neither do other videos and models.
    """
    groups = predictions if isinstance(predictions, FrameGroups) else FrameGroups.of(predictions)
    return pd.DataFrame(
        {
            "video_id": groups.video_ids.take(groups.unit_videos),
            "model": groups.models.take(groups.unit_models),
            "probability": _unit_probabilities(groups, aggregator),
            "num_crops": groups.frames_of_units,
        }
    )


def aggregate_frames(predictions: pd.DataFrame | FrameGroups, aggregator: Aggregator) -> pd.DataFrame:
    """Frame predictions of any number of models -> one row a video.

    Args:
        predictions: a `frame_predictions` table, or the groups made of one; may be empty.

    Returns:
        Columns video_id, probability (float64, mean over the models that saw the video, clipped) and num_crops (the
        most frames any model saw), sorted by video_id. The order of the rows given changes nothing.
    """
    groups = predictions if isinstance(predictions, FrameGroups) else FrameGroups.of(predictions)
    of_units = _unit_probabilities(groups, aggregator)
    probability = np.empty(len(groups.video_ids))
    num_crops = np.empty(len(groups.video_ids), dtype=np.int64)
    starts = np.searchsorted(groups.unit_videos, np.arange(len(groups.video_ids) + 1))
    for videos, units in equal_lengths(starts):
        probability[videos] = np.mean(of_units[units], axis=1)
        num_crops[videos] = np.max(groups.frames_of_units[units], axis=1)
    probability = np.clip(probability, aggregator.clip, 1 - aggregator.clip)
    return pd.DataFrame({"video_id": groups.video_ids, "probability": probability, "num_crops": num_crops})


def complete_videos(video_ids: pd.Series, aggregated: pd.DataFrame, prior: float) -> pd.DataFrame:
    """One row for each video asked for, in the order given; the prior, and 0 crops, where nothing was predicted."""
    table = pd.DataFrame({"video_id": video_ids.to_numpy()}).merge(aggregated, on="video_id", how="left")
    table["probability"] = table["probability"].fillna(prior)
    table["num_crops"] = table["num_crops"].fillna(0).astype("int64")
    return table


def _unit_probabilities(groups: FrameGroups, aggregator: Aggregator) -> np.ndarray:
    """(U,) P(fake) of every video as every model saw it."""
    rule = FRAME_RULES[aggregator.frames]
    settings = {"faithful": aggregator.faithful} if rule.has_fault else {}
    amount = () if rule.default is None else (rule.default if aggregator.amount is None else aggregator.amount,)
    track_rule = TRACK_RULES[aggregator.tracks]
    pooled = track_rule.pools_frames
    of_lists = np.empty(len(groups.unit_videos) if pooled else len(groups.frames_of_tracks))
    for stack in groups.stacks_of_units if pooled else groups.stacks_of_tracks:
        of_lists[stack.lists] = rule.of(getattr(stack, rule.takes), *amount, **settings)
    if pooled:
        return of_lists

    settings = {"faithful": aggregator.faithful} if track_rule.has_fault else {}
    of_units = np.empty(len(groups.unit_videos))
    for units, tracks in equal_lengths(groups.unit_starts):
        of_units[units] = track_rule.of(of_lists[tracks], groups.frames_of_tracks[tracks], **settings)
    return of_units
