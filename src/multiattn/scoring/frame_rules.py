"""Rules of aggregators: the frames of one track -> P(fake), and the tracks of one video -> P(fake).

`FRAME_RULES` and `TRACK_RULES` are the lists of both: a rule is a function here and a line there. p is P(fake), z its
logit.

A frame rule is a function of arrays whose last axis holds the n >= 1 frames of a list, in ascending order of value, so
that the order in which frames come can not reach the result; `gated` alone takes them in the order of time. Any number
of lists of one length are computed at once: with NumPy, because compiling one such rule takes longer than running it
(0.15 to 0.8 s against 0.002 to 0.12 s for 119,154 lists of 32 frames, one core).

A track rule takes (K, t) arrays of K videos with t >= 1 tracks each, one a person, in the order of their numbers:
track 0 is the person in most frames (`video/extraction/scan.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

HIGH, LOW, GATE_SHARE, GROUP_FRAMES = 0.85, 0.15, 0.7, 5
"""The gate of `gated`, over groups of 5 frames."""
SURE_FAKE, SURE_REAL = 0.8, 0.2
SHARPENED_RANGE = 0.01, 0.99
FACES = 2
"""Tracks that `faces` counts, the longest ones."""
LOGIT_FLOOR = 1e-6
"""Probabilities are moved into [1e-6, 1 - 1e-6] before a logit is taken: logits lie within 13.8 of 0."""


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """P(fake) in [0, 1], float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Logits of P(fake), float64, within 13.8 of 0; NaN stays."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return np.log(p) - np.log1p(-p)


def gate(values: np.ndarray, weights: np.ndarray | None = None, *, high: float, low: float, share: float) -> np.ndarray:
    """The mean of the sure ones where nearly all are sure of the same, else the mean of all: RobustForensics' gate.

    G = mean of {v > high} if their number exceeds `share` of all; else mean of {v < low} if theirs does; else mean.

    Args:
        values: (..., n) P(fake) of groups of frames, or of models.
        weights: of the means, (n,) or (..., n), not negative; a value of weight 0 is left out, and may be NaN. None:
            all alike.
        high, low, share: 0.85, 0.15, 0.7 over groups of frames; 0.8, 0.2, 0.7 over models.

    Returns:
        (...) in [0, 1]; NaN where every weight is 0.

    Source: Siyu-C/RobustForensics (DFDC, 4th place), `get_image_score` and `get_final_score_policy`. There too the
    share counts values, whatever their weights. Not monotone: a value that rises above `high` may lower the mean of
    those there, and one that rises from below `low` the mean it leaves. Departures: none.
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones(values.shape[-1]) if weights is None else np.asarray(weights, dtype=np.float64)
    weights = np.broadcast_to(weights, values.shape)
    present = weights > 0
    values = np.where(present, values, 0.5)
    above, below = present & (values > high), present & (values < low)
    number = np.maximum(np.count_nonzero(present, axis=-1), 1)
    all_above = np.count_nonzero(above, axis=-1) / number > share
    all_below = ~all_above & (np.count_nonzero(below, axis=-1) / number > share)
    chosen = np.where(all_above[..., None], above, np.where(all_below[..., None], below, present))
    return _weighted_mean(values, np.where(chosen, weights, 0.0))


def mean(p: np.ndarray) -> np.ndarray:
    """Mean of p. Monotone. Medics' 3D networks and WM use it (5th and 2nd place of the DFDC)."""
    return np.mean(p, axis=-1)


def mean_logit(z: np.ndarray) -> np.ndarray:
    """sigmoid(mean z): sharper than `mean`. Monotone. ISPL's `mean` (polimi-ispl/icpr2020dfdc, `aggregate`)."""
    return sigmoid(np.mean(z, axis=-1))


def median(p: np.ndarray) -> np.ndarray:
    """Median of p, of an even number the mean of the middle two. Monotone. Medics' 2D network; ISPL's `sigmedian`."""
    return _middle(p)


def median_logit(z: np.ndarray) -> np.ndarray:
    """sigmoid(median z): differs from `median` for an even number of frames only. Monotone. ISPL's `median`."""
    return sigmoid(_middle(z))


def trimmed(p: np.ndarray, share: float) -> np.ndarray:
    """Mean of p without the floor(share * n) lowest and as many highest. Monotone. As `scipy.stats.trim_mean`."""
    cut = int(share * p.shape[-1])
    return np.mean(p[..., cut : p.shape[-1] - cut], axis=-1)


def power(p: np.ndarray, exponent: float) -> np.ndarray:
    """(mean p^a)^(1/a): 1 is the mean, and the larger a, the more the most forged frames count. Monotone."""
    top = p[..., -1]
    relative = p / np.where(top > 0, top, 1.0)[..., None]  # no power of it underflows for all frames at once
    return top * np.mean(relative**exponent, axis=-1) ** (1 / exponent)


def top_k(p: np.ndarray, amount: float) -> np.ndarray:
    """Mean of the highest k: k = amount from 1 on (at most n), else ceil(amount * n). Monotone.

    For fakes that show in part of the frames only.
    """
    n = p.shape[-1]
    count = min(n, int(amount)) if amount >= 1 else math.ceil(round(amount * n, 9))
    return np.mean(p[..., n - max(1, count) :], axis=-1)


def confident(p: np.ndarray, *, faithful: bool = False) -> np.ndarray:
    """The mean of the sure frames where many are sure: selim's `confident_strategy`.

    With H = {p > 0.8} and L = {p < 0.2}: mean of H if |H| > floor(n / 2.5) (and |H| > 11); else mean of L if
    |L| > 0.9 n; else mean of p.

    Args:
        faithful: with `|H| > 11`, which n <= 11 frames can never fulfil, and 0.5 for a single frame (its 0-d tensor
            raised an error that was caught as 0.5). Otherwise without either, which is the same from n = 28 on: there
            floor(n / 2.5) >= 11. Scaling the 11 to n (11 n / 32) is the same as leaving it out: it then never binds.

    Source: selimsef/dfdc_deepfake_challenge (1st place), `kernel_utils.py`. There over all faces of a video: with
    tracks "pooled". Not monotone: a frame that rises above 0.8 may lower the mean of H.
    """
    n = p.shape[-1]
    sure_fake, sure_real = p > SURE_FAKE, p < SURE_REAL
    num_fake = np.count_nonzero(sure_fake, axis=-1)
    is_fake = num_fake > n // 2.5
    if faithful:
        is_fake &= num_fake > 11
    is_real = ~is_fake & (np.count_nonzero(sure_real, axis=-1) > 0.9 * n)
    chosen = np.where(is_fake[..., None], sure_fake, sure_real | ~is_real[..., None])
    result = _weighted_mean(p, chosen)
    return np.full_like(result, 0.5) if faithful and n == 1 else result


def sharpened(p: np.ndarray, exponent: float) -> np.ndarray:
    """Mean of p pushed away from 0.5, weighed by how far it was from there: NTech's rule.

    With d = p - 0.5: q = clip(0.5 + sign(d) |d|^0.65, 0.01, 0.99), w = |d| + 1e-4; sum(w q) / sum(w).

    Source: NTech-Lab/deepfake-detection-challenge (3rd place), `predict.py`; there over the predictions of all tracks
    and models: with tracks "pooled". The exponent undoes how mixing real with fake in training shrinks p, so networks
    trained on hard labels hardly gain. Not monotone: a frame that rises towards 0.5 loses weight. Departures: none.
    """
    d = p - 0.5
    distance = np.abs(d)
    return _weighted_mean(np.clip(0.5 + np.sign(d) * distance**exponent, *SHARPENED_RANGE), distance + 1e-4)


def gated(logits_in_time: np.ndarray) -> np.ndarray:
    """`gate` over groups of 5 consecutive frames, each sigmoid(mean z): the one rule that uses the order of time.

    Up to 4 frames after the last whole group are left out. Source: RobustForensics (DFDC, 4th place),
    `get_image_score`; with tracks "faces". Not monotone. Departures: fewer than 5 frames make one group (there a
    division by zero dropped the model); groups are of all frames given (there of every ceil(n / 35)-th).
    """
    *lists, n = logits_in_time.shape
    size = min(n, GROUP_FRAMES)
    groups = logits_in_time[..., : n // size * size].reshape(*lists, n // size, size)
    groups = sigmoid(np.mean(groups, axis=-1))
    return gate(groups, high=HIGH, low=LOW, share=GATE_SHARE)


def dead_zone(z: np.ndarray, width: float) -> np.ndarray:
    """sigmoid(mean of the z with |z| > width), 0.5 where none is: ISPL's `deadzone` before its `mean`.

    Not monotone: a frame that rises into the zone leaves the mean. Departures: the default width is ours; there it is
    a parameter without one.
    """
    kept = np.abs(z) > width
    number = np.count_nonzero(kept, axis=-1)
    return sigmoid(np.sum(np.where(kept, z, 0.0), axis=-1) / np.maximum(number, 1))


def signed_power(z: np.ndarray, exponent: float) -> np.ndarray:
    """sigmoid of m with sign(m) |m|^a = mean of sign(z) |z|^a: sure frames count more. Monotone. ISPL's `meanp`."""
    largest = np.maximum(np.abs(z[..., 0]), np.abs(z[..., -1]))
    relative = z / np.where(largest > 0, largest, 1.0)[..., None]  # powers can not overflow
    powered = np.mean(np.sign(relative) * np.abs(relative) ** exponent, axis=-1)
    return sigmoid(largest * np.sign(powered) * np.abs(powered) ** (1 / exponent))


def max_abs(z: np.ndarray) -> np.ndarray:
    """sigmoid of the z furthest from 0, the fake one of two as far. Monotone. ISPL's `maxabs`."""
    lowest, highest = z[..., 0], z[..., -1]
    return sigmoid(np.where(-lowest > highest, lowest, highest))


def average_vote(z: np.ndarray) -> np.ndarray:
    """(1 + mean of sign z) / 2: the share of frames called fake, ties half. Monotone. ISPL's `avgvoting`."""
    return (1 + np.mean(np.sign(z), axis=-1)) / 2


def vote(z: np.ndarray) -> np.ndarray:
    """(1 + sign of mean z) / 2: 0 or 1, and 0.5 for a mean of 0. Monotone. ISPL's `voting`.

    Departures: there a mean of 0 counts as real.
    """
    return (1 + np.sign(np.mean(z, axis=-1))) / 2


def _middle(ascending: np.ndarray) -> np.ndarray:
    n = ascending.shape[-1]
    return (ascending[..., (n - 1) // 2] + ascending[..., n // 2]) / 2


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN where the weights are all 0."""
    total = np.sum(weights, axis=-1, dtype=np.float64)
    weighted = np.sum(values * weights, axis=-1)
    return np.divide(weighted, total, out=np.full(total.shape, np.nan), where=total > 0)


def weighted(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean weighed by frames, so that a false detection of one frame hardly counts. Monotone."""
    return np.sum(values * counts, axis=-1) / np.sum(counts, axis=-1)


def track_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Every track alike. Monotone. Medics (DFDC, 5th place)."""
    return np.mean(values, axis=-1)


def highest(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The most forged track, for videos in which one of several people is forged. Monotone."""
    return np.max(values, axis=-1)


def first(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The person seen most, nobody else. Monotone. WM and ISPL take one face a frame.

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
class FrameRule:
    """A frame rule, and which values and settings of an `Aggregator` it takes."""

    of: Callable[..., np.ndarray]
    """(K, n) values -> (K,) P(fake); a second argument is the rule's one number, where it has one."""
    takes: Literal["probabilities", "logits", "logits_in_time"] = "probabilities"
    """The values; the first two ascending."""
    default: float | None = None
    """Default of the rule's one number; None: it has none."""
    expected: str = ""
    accepts: Callable[[float], bool] = math.isfinite
    """Range of that number, in words and as a check."""
    has_fault: bool = False
    """Takes `faithful`, which brings back a fault of the original."""


def _positive(value: float) -> bool:
    return 0 < value < math.inf


FRAME_RULES: dict[str, FrameRule] = {
    "mean": FrameRule(mean),
    "median": FrameRule(median),
    "mean_logit": FrameRule(mean_logit, "logits"),
    "median_logit": FrameRule(median_logit, "logits"),
    "trimmed": FrameRule(trimmed, "probabilities", 0.1, "a share in [0, 0.5)", lambda share: 0 <= share < 0.5),
    "power": FrameRule(power, "probabilities", 3.0, "an exponent above 0", _positive),
    "top_k": FrameRule(
        top_k,
        "probabilities",
        0.25,
        "a share in (0, 1) or a whole number from 1 on",
        lambda amount: 0 < amount < 1 or (1 <= amount < math.inf and amount == int(amount)),
    ),
    "confident": FrameRule(confident, "probabilities", has_fault=True),
    "sharpened": FrameRule(sharpened, "probabilities", 0.65, "an exponent above 0", _positive),
    "gated": FrameRule(gated, "logits_in_time"),
    "dead_zone": FrameRule(dead_zone, "logits", 1.0, "a logit from 0 on", lambda width: 0 <= width < math.inf),
    "signed_power": FrameRule(signed_power, "logits", 3.0, "an exponent above 0", _positive),
    "max_abs": FrameRule(max_abs, "logits"),
    "average_vote": FrameRule(average_vote, "logits"),
    "vote": FrameRule(vote, "logits"),
}


@dataclass(frozen=True)
class TrackRule:
    of: Callable[..., np.ndarray]
    """(K, t) P(fake) of tracks, (K, t) their frames -> (K,) P(fake)."""
    has_fault: bool = False
    """Takes `faithful`, which brings back a fault of the original."""
    pools_frames: bool = False
    """The frames of all tracks are one list of the frame rule, and that list is the only track."""


TRACK_RULES: dict[str, TrackRule] = {
    "weighted": TrackRule(weighted),
    "mean": TrackRule(track_mean),
    "max": TrackRule(highest),
    "pooled": TrackRule(first, pools_frames=True),
    "first": TrackRule(first),
    "faces": TrackRule(faces),
    "faces_shrunk": TrackRule(faces_shrunk, has_fault=True),
}
