"""A video's P(fake) and the doubts about it -> an answer in words, beside those of held-out videos.

`multiattn tune` keeps that in `scoring.json`: where P lies among the answers for held-out reals and fakes, and two
thresholds with their error rates. There are three answers, and none is "authentic": a video without a sign of what the
network knows may have been made in a way that it does not know.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from multiattn.config.settings import require, require_fields

AnswerName = Literal["looks manipulated", "no sign found", "cannot tell"]
MANIPULATED, NO_SIGN, CANNOT_TELL = get_args(AnswerName)
ERROR_RATE = 0.05
"""Share of held-out reals that look manipulated, and of held-out fakes in which no sign is found."""
LEAST_VIDEOS = 100
"""Held-out reals, and fakes, below which there are no thresholds. Of 100 videos 5 lie beyond a threshold, which leaves
its error rate between 1.6 % and 11.3 % (Clopper and Pearson's 95 % interval)."""
LEAST_GROUPS = 3
"""Groups of held-out videos below which there are none either: the thresholds of each rest on two others at least."""
QUANTILES = 100
"""Held-out answers kept of each class: shares of videos are whole percents."""
MIN_FACE_PIXELS, MIN_FRAMES, MOST_UNLIKE = 48, 3, 0.5
"""A video is doubted where fewer frames show a face so large, or where a greater share of its faces lies outside what
the network was trained on."""
SOUND_NOTE = "Sound was not examined."


@dataclass(frozen=True, kw_only=True)
class HeldOutAnswers:
    """Calibrated answers for videos with a face that neither the models nor the rule had seen; part of a scoring rule.

    Where there are too few videos, quantiles and thresholds are empty.
    """

    datasets: tuple[str, ...]
    num_reals: int
    num_fakes: int
    num_groups: int
    crops: int
    """Crops a video, their median."""
    real_quantiles: tuple[float, ...] = ()
    """P(fake) of held-out reals, `QUANTILES` of equal share, ascending."""
    fake_quantiles: tuple[float, ...] = ()
    manipulated_from: float | None = None
    """From this P(fake) on a video looks manipulated; None: never, for too many reals have the highest answer."""
    no_sign_until: float | None = None
    """Up to this P(fake) no sign is found; None: never."""
    reals_manipulated: float | None = None
    """Share of held-out reals that look manipulated, with the threshold set on other folds; as the next three."""
    fakes_manipulated: float | None = None
    reals_no_sign: float | None = None
    fakes_no_sign: float | None = None

    def __post_init__(self) -> None:
        require_fields(self)
        for name in ("real_quantiles", "fake_quantiles"):
            right = len(getattr(self, name)) == (0 if self.lacks else QUANTILES)
            require(right, self, name, f"{QUANTILES} numbers, none where there are too few videos")

    @property
    def lacks(self) -> str:
        """Number of videos or groups that there are too few of, in words; empty where there are enough."""
        return _too_few(self.num_reals, self.num_fakes, self.num_groups)

    @property
    def thresholds(self) -> tuple[float, float]:
        """The P(fake) from which a video looks manipulated, and that up to which no sign is found; infinite where that
        is never said."""
        return (
            math.inf if self.manipulated_from is None else self.manipulated_from,
            -math.inf if self.no_sign_until is None else self.no_sign_until,
        )

    def beside(self, probability: float) -> str:
        """`of held-out real faces of dfdc 3% score higher, of fakes 62% lower`; empty where there are too few."""
        if self.lacks:
            return ""
        higher = np.mean(np.array(self.real_quantiles) > probability)
        lower = np.mean(np.array(self.fake_quantiles) < probability)
        names = " and ".join(self.datasets)
        return f"of held-out real faces of {names} {_percent(higher)} score higher, of fakes {_percent(lower)} lower"

    def describe(self) -> str:
        """Both thresholds with their error rates, and what they rest on."""
        videos = f"{self.num_reals:,} real and {self.num_fakes:,} fake held-out videos in {self.num_groups:,} groups"
        if self.lacks:
            return f"{self.lacks} ({videos})"
        parts = [f'"{MANIPULATED}" is never said: too many reals have the highest P(fake)']
        if self.manipulated_from is not None:
            rates = f"{self.reals_manipulated:.1%} of reals (false alarms), {self.fakes_manipulated:.1%} of fakes"
            parts = [f'"{MANIPULATED}" from P(fake) {self.manipulated_from:.3f}: {rates}']
        if self.no_sign_until is not None:
            rates = f"{self.fakes_no_sign:.1%} of fakes (missed), {self.reals_no_sign:.1%} of reals"
            parts.append(f'"{NO_SIGN}" up to {self.no_sign_until:.3f}: {rates}')
        else:
            parts.append(f'"{NO_SIGN}" is never said: too many fakes have the lowest P(fake)')
        return f"{'; '.join(parts)}. Measured on {videos}, with thresholds set on other folds"


@dataclass(frozen=True)
class AnswerInWords:
    """The answer for one video, in words."""

    answer: AnswerName
    reasons: tuple[str, ...]
    """Reasons why it cannot be told; empty otherwise."""
    beside: str
    """P(fake) among the held-out videos, as of `HeldOutAnswers.beside`; may be empty."""

    def __str__(self) -> str:
        return f"{self.answer}: {'; '.join(self.reasons)}" if self.reasons else self.answer


def answer_in_words(
    probability: float | None, held_out: HeldOutAnswers | None, doubts: Sequence[str] = ()
) -> AnswerInWords:
    """The answer for one video by P(fake) of the scoring rule, None or NaN without a face, the rule's own `held_out`
    and reasons not to answer, such as those of `find_doubts`."""
    if probability is None or math.isnan(probability):
        return AnswerInWords(CANNOT_TELL, (*doubts, "no face was found"), "")
    reasons, beside = list(doubts), held_out.beside(probability) if held_out is not None else ""
    if held_out is None:
        reasons.append("these runs have no thresholds, which `multiattn tune` sets")
    elif held_out.lacks:
        reasons.append(held_out.lacks)
    if reasons:
        return AnswerInWords(CANNOT_TELL, tuple(reasons), beside)
    manipulated, no_sign = held_out.thresholds
    if probability >= manipulated:
        return AnswerInWords(MANIPULATED, (), beside)
    if probability <= no_sign:
        return AnswerInWords(NO_SIGN, (), beside)
    between = f"P(fake) lies where held-out reals and fakes are not told apart at error rates of {ERROR_RATE:.0%}"
    return AnswerInWords(CANNOT_TELL, (between,), beside)


def find_doubts(face_pixels: np.ndarray, *, num_frames: int, unlike: float | None = None) -> list[str]:
    """Reasons not to answer for a video with a face: a picture needs one face of 48 px, a video three frames with one.

    Args:
        face_pixels: (F,) of the frames that show a face, the longer side of the largest face's box in pixels of the
            frame; NaN where that is not known, as of crops made elsewhere, which are not doubted for it.
        num_frames: frames decoded; 1 is a picture.
        unlike: share of faces that lie outside what the network was trained on; None or NaN: not measured.
    """
    doubts = []
    sides = np.asarray(face_pixels, dtype=np.float64)
    needed, large = 1 if num_frames == 1 else MIN_FRAMES, int(np.sum(~(sides < MIN_FACE_PIXELS)))
    if large < needed and num_frames == 1:
        doubts.append(f"the face is {np.max(sides, initial=0):.0f} px large, {MIN_FACE_PIXELS} px are needed")
    elif large < needed:
        seen = f"a face of {MIN_FACE_PIXELS} px is seen in {large} of {num_frames} frames"
        doubts.append(f"{seen}, {needed} are needed")
    if unlike is not None and unlike > MOST_UNLIKE:
        doubts.append(f"{unlike:.0%} of the faces are unlike those the network was trained on")
    return doubts


def held_out_answers(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    datasets: Sequence[str],
    crops: int,
) -> HeldOutAnswers:
    """Summary, for `scoring.json`, of (N,) P(fake) of videos with a face that neither models nor rule were fitted on.

    The error rates of one fold are those of thresholds set on the others.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    counts = {"num_reals": int(np.sum(labels == 0)), "num_fakes": int(np.sum(labels == 1))}
    counts["num_groups"] = len(np.unique(groups))
    known = {"datasets": tuple(datasets), "crops": crops, **counts}
    if _too_few(**counts):
        return HeldOutAnswers(**known)
    called = np.zeros((2, len(labels)), dtype=bool)  # looks manipulated, no sign found
    for fold in np.unique(folds):
        mine = folds == fold
        above, below = set_thresholds(labels[~mine], probabilities[~mine])
        called[:, mine] = probabilities[mine] >= above, probabilities[mine] <= below
    shares = {
        f"{videos}_{name}": float(row[labels == label].mean())
        for name, row in zip(("manipulated", "no_sign"), called, strict=True)
        for videos, label in (("reals", 0), ("fakes", 1))
    }
    above, below = set_thresholds(labels, probabilities)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    real_quantiles, fake_quantiles = (
        tuple(np.quantile(probabilities[labels == label], levels, method="inverted_cdf").tolist()) for label in (0, 1)
    )
    return HeldOutAnswers(
        **known,
        real_quantiles=real_quantiles,
        fake_quantiles=fake_quantiles,
        manipulated_from=above if math.isfinite(above) else None,
        no_sign_until=below if math.isfinite(below) else None,
        **shares,
    )


def set_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """The least answer from which on lie at most 5 % of the reals, and the largest up to which lie at most 5 % of the
    fakes; infinite where there is none. Where both hold of the answers between them, these are left to neither."""
    reals, fakes = (np.sort(probabilities[labels == label]) for label in (0, 1))
    values = np.unique(probabilities) if len(reals) and len(fakes) else np.zeros(0)
    reals_from = len(reals) - np.searchsorted(reals, values, "left")
    fakes_until = np.searchsorted(fakes, values, "right")
    above = float(np.min(values[reals_from <= ERROR_RATE * len(reals)], initial=math.inf))
    below = float(np.max(values[fakes_until <= ERROR_RATE * len(fakes)], initial=-math.inf))
    if -math.inf < below and above < math.inf:
        above, below = max(above, below), min(above, below)
    return above, below


def _too_few(num_reals: int, num_fakes: int, num_groups: int) -> str:
    for count, least, videos in (
        (num_reals, LEAST_VIDEOS, "real videos"),
        (num_fakes, LEAST_VIDEOS, "fake videos"),
        (num_groups, LEAST_GROUPS, "groups of videos"),
    ):
        if count < least:
            return f"an answer in words takes {least} held-out {videos}, these runs have {count}"
    return ""


def _percent(share: float) -> str:
    return f"{share:.0%}" if share else "less than 1%"
