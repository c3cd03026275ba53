"""Bootstrap over groups: intervals of a log loss, of an AUC, and of the difference of two submissions.

Videos of one original, or of one part, are alike; drawing single videos would take them for independent and find
intervals that are too narrow. So whole groups are drawn, with replacement, as many as there are (Field and Welsh 2007,
"cluster bootstrap"). Each draw follows from seed, resample and place alone.

One thread: 10,000 resamples of 5,000 videos take a twentieth of a second, and numba's threads, where they are
OpenMP's, would change how many torch takes from then on.
"""

from dataclasses import dataclass

import numba
import numpy as np
import pandas as pd

from multiattn.scoring.metrics import check_predictions, log_losses


@dataclass(frozen=True)
class Interval:
    """A percentile interval; NaN where nothing can be said: fewer than two groups, or one class only (AUC)."""

    low: float
    high: float
    standard_error: float
    """Standard deviation over the resamples."""


@dataclass(frozen=True)
class Comparison:
    """Two sets of answers to the same videos."""

    difference: float
    """Log loss of a minus that of b; below 0, a is better."""
    low: float
    high: float
    """The interval of the difference."""
    standard_error: float
    probability_better: float
    """Share of the resamples in which a is better, ties counted half."""


def bootstrap_log_loss(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    clip: float,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of the mean log loss.

    Args:
        labels: (N,) of 0 and 1, N >= 1.
        probabilities: (N,) P(fake) in [0, 1].
        groups: (N,) names or numbers of what is drawn as a whole; None draws single videos, by their place: the same
            rows in another order give another draw of the same distribution. Of one group the interval is a point,
            which says that nothing could be drawn, not that the figure is certain.
        clip: probabilities are moved into [clip, 1 - clip] first.
        level: share of the resamples inside the interval.

    Raises:
        ValueError: as `metrics.log_loss`; groups of another length, no resamples, a level outside (0, 1).
    """
    losses = log_losses(labels, probabilities, clip=clip)
    return _interval(_mean_losses(losses, groups, resamples, seed), level)


def compare_log_loss(
    labels: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    clip: float,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Compare the log losses of the answers `a` and `b` on the same resamples.

    Arguments and errors as `bootstrap_log_loss`.
    """
    differences = log_losses(labels, a, clip=clip) - log_losses(labels, b, clip=clip)
    drawn = _mean_losses(differences, groups, resamples, seed)
    interval = _interval(drawn, level)
    better = float(np.mean((1 - np.sign(drawn)) / 2))  # NaN with fewer than two groups
    return Comparison(float(differences.mean()), interval.low, interval.high, interval.standard_error, better)


def bootstrap_auc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 2_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of the area under the ROC curve; resamples with one class only are left out.

    Arguments and errors as `bootstrap_log_loss`.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    codes, num_groups = _codes(groups, len(labels))
    _require_resamples(resamples, level)
    order = np.argsort(probabilities, kind="stable")
    ordered = probabilities[order]
    run_starts = np.append(np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])), len(ordered))
    drawn = _resampled_aucs(labels[order] == 1, codes[order], run_starts, num_groups, resamples, seed)
    drawn = drawn[~np.isnan(drawn)]
    return _interval(drawn if num_groups > 1 and len(drawn) else np.array([np.nan]), level)


def _mean_losses(losses: np.ndarray, groups: np.ndarray | None, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) the mean over the videos of the groups drawn."""
    codes, num_groups = _codes(groups, len(losses))
    _require_resamples(resamples, 0.5)
    if num_groups < 2:
        return np.full(resamples, np.nan)
    sizes = np.bincount(codes, minlength=num_groups).astype(np.float64)
    return _resampled_means(np.bincount(codes, weights=losses, minlength=num_groups), sizes, resamples, seed)


def _codes(groups: np.ndarray | None, length: int) -> tuple[np.ndarray, int]:
    """(N,) group numbers from 0, by sorted name so that the order of the rows changes nothing, and how many."""
    if groups is None:
        return np.arange(length), length
    if len(groups) != length:
        raise ValueError(f"groups: expected one for each of {length} videos, found {len(groups)}.")
    codes, names = pd.factorize(np.asarray(groups), sort=True, use_na_sentinel=False)
    return codes.astype(np.int64), len(names)


def _require_resamples(resamples: int, level: float) -> None:
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(f"expected at least 1 resample and a level in (0, 1), found {resamples} and {level}.")


def _interval(drawn: np.ndarray, level: float) -> Interval:
    _require_resamples(len(drawn), level)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float(drawn.std()))


@numba.njit(inline="always")
def _draw(seed, resample, place, count):
    """A whole number from 0 to `count` - 1: SplitMix64 (Steele, Lea and Flood 2014) of the three numbers."""
    mixed = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(resample)
    for _ in range(2):
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        mixed += np.uint64(place)
    return np.int64(((mixed >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@numba.njit(cache=False)
def _resampled_means(sums, sizes, resamples, seed):
    out = np.empty(resamples, dtype=np.float64)
    for resample in range(resamples):
        total, videos = 0.0, 0.0
        for place in range(len(sums)):
            group = _draw(seed, resample, place, len(sums))
            total += sums[group]
            videos += sizes[group]
        out[resample] = total / videos
    return out


@numba.njit(cache=False)
def _resampled_aucs(is_fake, codes, run_starts, num_groups, resamples, seed):
    """Videos in ascending probability; `run_starts` says where runs of equal ones begin, and the end."""
    out = np.empty(resamples, dtype=np.float64)
    for resample in range(resamples):
        times = np.zeros(num_groups, dtype=np.int64)
        for place in range(num_groups):
            times[_draw(seed, resample, place, num_groups)] += 1
        reals_below, fakes_above_twice, fakes = 0, 0, 0
        for run in range(len(run_starts) - 1):
            run_reals, run_fakes = 0, 0
            for row in range(run_starts[run], run_starts[run + 1]):
                if is_fake[row]:
                    run_fakes += times[codes[row]]
                else:
                    run_reals += times[codes[row]]
            fakes_above_twice += run_fakes * (2 * reals_below + run_reals)
            reals_below += run_reals
            fakes += run_fakes
        out[resample] = fakes_above_twice / (2 * fakes * reals_below) if fakes and reals_below else np.nan
    return out
