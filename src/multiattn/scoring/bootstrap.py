"""How far a figure may be off, and which of two submissions is better: percentile bootstrap over groups of videos.

Videos of one original, or of one part, go wrong together; whole groups are drawn with replacement, and each resample
takes all videos of the groups it drew (Field and Welsh 2007). The draws of resample r come from its own SplitMix64
sequence, which starts at a hash of the seed and r: neither threads nor the order of rows change a bit of the result.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

from multiattn.scoring.metrics import check_predictions, log_losses

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
HALF_WORD, LOW_HALF = np.uint64(32), np.uint64(0xFFFFFFFF)

Groups = Sequence[Hashable] | np.ndarray | pd.Series


@dataclass(frozen=True)
class Interval:
    """Where a figure lies; NaN where nothing can be said: fewer than two groups, or (AUC) one class."""

    low: float
    high: float
    standard_error: float
    """Standard deviation over the resamples."""


@dataclass(frozen=True)
class Comparison:
    """The log loss of a minus that of b on the same videos: negative where a is better.

    All but the difference are NaN where nothing can be said: fewer than two groups.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    probability_better: float
    """Share of resamples in which a is better; a tie counts half."""


def bootstrap_log_loss(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Groups | None = None,
    *,
    clip: float,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of the mean log loss.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) P(fake) in [0, 1].
        groups: (N,) original or part of each video; None: every video by itself.
        clip: probabilities are moved into [clip, 1 - clip] first.
        level: share of resamples inside the interval, as many below as above it.

    Raises:
        ValueError: what cannot be scored (as `log_loss`), a missing group, fewer than two resamples, a level outside
            (0, 1).
    """
    _check(resamples, level)
    means = _means_of_resamples(log_losses(labels, probabilities, clip=clip), groups, resamples, seed)
    return _interval(means, level)


def compare_log_loss(
    labels: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    groups: Groups | None = None,
    *,
    clip: float,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Two submissions on the same videos: the difference of their losses is drawn, video by video.

    Args:
        a, b: (N,) P(fake) in [0, 1].

    Other arguments and errors as `bootstrap_log_loss`.
    """
    _check(resamples, level)
    differences = log_losses(labels, a, clip=clip) - log_losses(labels, b, clip=clip)
    means = _means_of_resamples(differences, groups, resamples, seed)
    interval = _interval(means, level)
    # The sign of NaN is NaN.
    better = float(np.mean((1 - np.sign(means)) / 2))
    return Comparison(float(np.mean(differences)), interval.low, interval.high, interval.standard_error, better)


def bootstrap_auc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: Groups | None = None,
    *,
    resamples: int = 2_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of the area under the ROC curve; a tie between a real and a fake counts half.

    A resample of one class has no AUC and is left out.

    Arguments and errors as `bootstrap_log_loss`.
    """
    _check(resamples, level)
    labels, probabilities = check_predictions(labels, probabilities)
    order = np.lexsort((labels, probabilities))
    labels, probabilities = labels[order], probabilities[order]
    codes, num_groups = _group_codes(groups, order)
    if num_groups < 2:
        return _interval(np.full(resamples, np.nan), level)
    new_value = np.append(True, np.diff(probabilities) > 0)
    return _interval(_resampled_aucs(labels == 1, new_value, codes, num_groups, resamples, np.uint64(seed)), level)


def _check(resamples: int, level: float) -> None:
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(f"expected resamples >= 2 and a level in (0, 1), found {resamples} and {level}.")


def _interval(values: np.ndarray, level: float) -> Interval:
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float(np.std(values, ddof=1)))


def _means_of_resamples(values: np.ndarray, groups: Groups | None, resamples: int, seed: int) -> np.ndarray:
    """(R,) means over the videos of the groups drawn; NaN with fewer than two groups."""
    order = np.argsort(values, kind="stable")
    codes, num_groups = _group_codes(groups, order)
    if num_groups < 2:
        return np.full(resamples, np.nan)
    sums = np.bincount(codes, weights=values[order], minlength=num_groups)
    return _resampled_means(sums, np.bincount(codes).astype(np.float64), resamples, np.uint64(seed))


def _group_codes(groups: Groups | None, order: np.ndarray) -> tuple[np.ndarray, int]:
    """(N,) number of the group of each video, the videos in `order`; the groups in an order of their own."""
    if groups is None:
        return np.arange(len(order)), len(order)
    groups = pd.Series(list(groups), dtype=object)
    if len(groups) != len(order):
        raise ValueError(f"expected a group for each of {len(order)} videos, found {len(groups)}.")
    codes, names = pd.factorize(groups)
    if (codes < 0).any():
        raise ValueError(f"expected a group for each video, found {int((codes < 0).sum())} videos without one.")
    rank = np.empty(len(names), dtype=np.int64)
    rank[sorted(range(len(names)), key=lambda number: repr(names[number]))] = np.arange(len(names))
    return rank[codes][order], len(names)


@numba.njit(inline="always")
def _mixed(state: np.uint64) -> np.uint64:
    """SplitMix64's output function (Steele, Lea and Flood 2014, with Stafford's 13th constants)."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@numba.njit(inline="always")
def _first_state(seed: np.uint64, resample: int) -> np.uint64:
    return _mixed(_mixed(seed + GOLDEN) + np.uint64(resample) * GOLDEN)


@numba.njit(parallel=True)
def _resampled_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: np.uint64) -> np.ndarray:
    """(R,) sum of the drawn groups' sums over the sum of their counts; both (G,) float64, G < 2^32.

    A word gives two draws, each a half of it times G over 2^32: uneven by G / 2^32 at most.
    """
    num_groups = np.uint64(len(sums))
    means = np.empty(resamples)
    for resample in numba.prange(resamples):
        state = _first_state(seed, resample)
        total, count = 0.0, 0.0
        for _ in range(len(sums) // 2):
            state += GOLDEN
            word = _mixed(state)
            first = ((word >> HALF_WORD) * num_groups) >> HALF_WORD
            second = ((word & LOW_HALF) * num_groups) >> HALF_WORD
            total += sums[first] + sums[second]
            count += counts[first] + counts[second]
        if len(sums) % 2:
            last = ((_mixed(state + GOLDEN) >> HALF_WORD) * num_groups) >> HALF_WORD
            total += sums[last]
            count += counts[last]
        means[resample] = total / count
    return means


@numba.njit(parallel=True)
def _resampled_aucs(
    is_fake: np.ndarray, new_value: np.ndarray, codes: np.ndarray, num_groups: int, resamples: int, seed: np.uint64
) -> np.ndarray:
    """(R,) AUC of the drawn groups' videos, NaN where they are of one class.

    Args:
        is_fake, codes: (N,) class and group of the videos in order of rising probability.
        new_value: (N,) whether a video's probability is above that of the one before.
    """
    aucs = np.empty(resamples)
    for resample in numba.prange(resamples):
        times = np.zeros(num_groups, dtype=np.int64)
        state = _first_state(seed, resample)
        for _ in range(num_groups):
            state += GOLDEN
            times[((_mixed(state) >> HALF_WORD) * np.uint64(num_groups)) >> HALF_WORD] += 1
        reals_below, reals_here, fakes_here, fakes, twice_won = 0, 0, 0, 0, 0
        for video in range(len(codes)):
            if new_value[video]:
                twice_won += fakes_here * (2 * reals_below + reals_here)
                reals_below += reals_here
                reals_here, fakes_here = 0, 0
            drawn = times[codes[video]]
            if is_fake[video]:
                fakes_here += drawn
                fakes += drawn
            else:
                reals_here += drawn
        twice_won += fakes_here * (2 * reals_below + reals_here)
        pairs = (reals_below + reals_here) * fakes
        aucs[resample] = twice_won / (2 * pairs) if pairs else np.nan
    return aucs
