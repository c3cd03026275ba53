"""Frame probabilities -> one clipped probability a video.

The one rule that validation, out-of-fold scoring and submission share: frames of a track, tracks of a video, mean over
models, clip. The rules themselves are in `frame_rules.py` and `track_rules.py`, those of the winners in `recipes.py`.

Named aggregators: the plain ones, and the rules of the DFDC's winners and of ISPL, each for one model.

What `multiattn tune` tries. Models are blended after them; where a winner clipped, the recipe has that clip. The
formulas, their sources and what was mended are with the rules, in `frame_rules.py` and `track_rules.py`;
`dataclasses.replace(recipe, faithful=True)` brings a fault back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args, get_type_hints

import numpy as np
import pandas as pd

from multiattn.scoring.frame_groups import FrameGroups, equal_lengths
from multiattn.scoring.frame_rules import FRAME_RULES, TRACK_RULES, sigmoid

DEFAULT_CLIP = 0.01
DEFAULT_PRIOR = 0.5


@dataclass(frozen=True, kw_only=True)
class Aggregator:
    """How frames become a video's probability; saved in `card.json`."""

    frames: Literal[
        "mean",
        "median",
        "mean_logit",
        "median_logit",
        "trimmed",
        "power",
        "top_k",
        "confident",
        "sharpened",
        "gated",
        "dead_zone",
        "signed_power",
        "max_abs",
        "average_vote",
        "vote",
    ] = "mean"
    """Frames of a track -> track; formulas in `frame_rules.py`. `mean_logit` is the sigmoid of the mean logit, sharper
    than `mean`."""
    tracks: Literal["weighted", "mean", "max", "pooled", "first", "faces", "faces_shrunk"] = "weighted"
    """Tracks -> video; formulas in `track_rules.py`. `weighted` weighs each track by its frames, so a false detection
    of one frame hardly counts; `max` is for videos in which one of several people is forged; `pooled` makes one list of
    the frames of all tracks."""
    amount: float | None = None
    """The frame rule's one number, where it has one: `trimmed` share (0.1), `power` exponent (3), `top_k` share or
    number (0.25), `sharpened` exponent (0.65), `dead_zone` width (1), `signed_power` exponent (3). None: that one."""
    faithful: bool = False
    """With the fault of the original, for `confident` and `faces_shrunk`, which are mended otherwise."""
    clip: float = DEFAULT_CLIP
    """The result lies in [clip, 1 - clip]: bounds what one confident mistake costs (-ln 0.01 = 4.6)."""
    prior: float = DEFAULT_PRIOR
    """The answer for a video without a usable face."""

    def __post_init__(self) -> None:
        for name in ("frames", "tracks"):
            choices = get_args(get_type_hints(Aggregator)[name])
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}.")
        self._check_amount()
        if self.faithful and not (FRAME_RULES[self.frames].has_fault or self._track_fault):
            raise ValueError(
                f"--faithful: expected frames confident or tracks faces_shrunk, whose originals have a fault, "
                f"found frames {self.frames} and tracks {self.tracks}."
            )
        if not 0 < self.clip < 0.5:
            raise ValueError(f"--clip: expected a value in (0, 0.5), found {self.clip}.")
        if not self.clip <= self.prior <= 1 - self.clip:
            raise ValueError(
                f"--prior: expected a value in [clip, 1 - clip], found {self.prior} with clip {self.clip}."
            )

    def _check_amount(self) -> None:
        if self.amount is None:
            return
        rule = FRAME_RULES[self.frames]
        if rule.default is None:
            takers = ", ".join(name for name, other in FRAME_RULES.items() if other.default is not None)
            raise ValueError(
                f"--amount: frames {self.frames} takes no number, found {self.amount}; those that do: {takers}."
            )
        if not rule.accepts(self.amount):
            raise ValueError(f"--amount: expected {rule.expected} with frames {self.frames}, found {self.amount}.")

    @property
    def _track_fault(self) -> bool:
        return self.tracks in TRACK_RULES and TRACK_RULES[self.tracks].has_fault


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
    pooled = aggregator.tracks == "pooled"
    of_lists = np.empty(len(groups.unit_videos) if pooled else len(groups.frames_of_tracks))
    for stack in groups.stacks_of_units if pooled else groups.stacks_of_tracks:
        of_lists[stack.lists] = rule.of(getattr(stack, rule.takes), *amount, **settings)
    if pooled:
        return of_lists

    rule = TRACK_RULES[aggregator.tracks]
    settings = {"faithful": aggregator.faithful} if rule.has_fault else {}
    of_units = np.empty(len(groups.unit_videos))
    for units, tracks in equal_lengths(groups.unit_starts):
        of_units[units] = rule.of(of_lists[tracks], groups.frames_of_tracks[tracks], **settings)
    return of_units


RECIPES: Mapping[str, Aggregator] = MappingProxyType(
    {
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
)
"""Name -> aggregator. `gated` apart, none depends on the order of the frames."""
