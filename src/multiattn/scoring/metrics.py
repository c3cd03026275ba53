"""Metrics of probabilities, of videos or frames, in float64, with an explicit clip; their intervals and comparisons.

Videos of one original, or of one part, are alike; drawing single videos would take them for independent and find
intervals that are too narrow. So the bootstrap draws whole groups, with replacement, as many as there are (Field and
Welsh 2007, "cluster bootstrap"). Each draw follows from seed, resample and place alone. 10,000 resamples of 5,000
videos take a twentieth of a second on one thread.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

CONSTANT_LOG_LOSS = math.log(2)
"""Log loss of answering 0.5 to everything: 0.6931."""
CALIBRATION_BINS = 15
LEVEL = 0.95
"""Share of the resamples inside an interval."""


@dataclass(frozen=True)
class VideoMetrics:
    """Metrics over videos, or over frames. Those that need both classes are None where only one is present."""

    log_loss: float
    """Mean natural-log loss of the clipped probabilities."""
    auc: float | None
    """Area under the ROC curve in [0, 1]."""
    accuracy: float
    """Share on the right side of 0.5, in [0, 1]; exactly 0.5 answers real."""
    num_videos: int
    balanced_log_loss: float
    """Mean of the two classes' own log losses."""
    average_precision: float | None
    """Average precision of the fakes, as scikit-learn sums it: precision times the step in recall."""
    eer: float | None
    """Equal error rate: the mean of both error rates at the ROC point where they differ least, not interpolated. The
    field takes the false positive rate there, which is the same where they meet, and 0 for a constant answer."""
    balanced_accuracy: float | None
    """Mean of the two classes' own accuracies."""
    brier: float
    """Mean squared difference from the label, of the clipped probabilities."""
    calibration_error: float
    """Expected calibration error: `reliability` with 15 bins, |mean probability - share of fakes| weighed by size."""


def log_loss(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> float:
    """Mean binary log loss, natural logarithm, float64.

    Args:
        labels: (N,) of 0 (real) and 1 (fake), N >= 1.
        probabilities: (N,) P(fake) in [0, 1].
        clip: probabilities are moved into [clip, 1 - clip] first.

    Raises:
        ValueError: no videos, shapes that differ, a label that is not 0 or 1, a probability outside [0, 1] or NaN.
    """
    return float(log_losses(labels, probabilities, clip=clip).mean())


def log_losses(labels: np.ndarray, probabilities: np.ndarray, *, clip: float) -> np.ndarray:
    """(N,) float64, the log loss of every single answer; arguments and errors as `log_loss`."""
    labels, probabilities = check_predictions(labels, probabilities)
    clipped = np.clip(probabilities, clip, 1 - clip)
    return -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))


def balanced_log_loss(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> float:
    """Mean of the two classes' own log losses: what log loss would be if both were as frequent.

    Arguments and errors as `log_loss`; with one class present it is that class's log loss.
    """
    losses, is_fake = log_losses(labels, probabilities, clip=clip), np.asarray(labels) == 1
    return float(np.mean([losses[of_class].mean() for of_class in (is_fake, ~is_fake) if of_class.any()]))


def video_metrics(labels: np.ndarray, probabilities: np.ndarray, *, clip: float) -> VideoMetrics:
    """All metrics of (N,) probabilities against (N,) labels of 0 and 1; errors as `log_loss`.

    The clip is for log loss, Brier score and calibration; ranks and sides of 0.5 are those of what was given.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels, probabilities = check_predictions(labels, probabilities)
    clipped = np.clip(probabilities, clip, 1 - clip)
    is_right = (probabilities > 0.5) == (labels == 1)
    both = 0 < labels.sum() < len(labels)
    binned = reliability(labels, clipped)
    return VideoMetrics(
        log_loss=log_loss(labels, clipped, clip=clip),
        auc=float(roc_auc_score(labels, probabilities)) if both else None,
        accuracy=float(is_right.mean()),
        num_videos=len(labels),
        balanced_log_loss=balanced_log_loss(labels, clipped, clip=clip),
        average_precision=float(average_precision_score(labels, probabilities)) if both else None,
        eer=_equal_error_rate(labels, probabilities) if both else None,
        balanced_accuracy=float((is_right[labels == 0].mean() + is_right[labels == 1].mean()) / 2) if both else None,
        brier=float(np.mean((clipped - labels) ** 2)),
        calibration_error=float(np.sum(binned.counts * np.abs(binned.probabilities - binned.fakes)) / len(labels)),
    )


def roc_points(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, (P,) each, ascending from (0, 0) to (1, 1): one point a distinct probability.

    Raises:
        ValueError: as `log_loss`; only one class.
    """
    from sklearn.metrics import roc_curve

    labels, probabilities = check_predictions(labels, probabilities)
    if len(np.unique(labels)) < 2:
        raise ValueError("a ROC curve needs real and fake videos, found one class only.")
    false_positives, true_positives, _ = roc_curve(labels, probabilities, drop_intermediate=False)
    return false_positives, true_positives


class Reliability(NamedTuple):
    """Probabilities beside what came true, in bins that are not empty; arrays of (B,)."""

    probabilities: np.ndarray
    """Mean probability."""
    fakes: np.ndarray
    """Share of fakes."""
    counts: np.ndarray


def reliability(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = CALIBRATION_BINS) -> Reliability:
    """Bins of equal width over [0, 1]; a value on an edge belongs to the upper bin, 1 to the last.

    Raises:
        ValueError: as `log_loss`.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    places = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    counts = np.bincount(places, minlength=bins)
    filled = counts > 0
    sums = [np.bincount(places, weights=values, minlength=bins)[filled] for values in (probabilities, labels)]
    return Reliability(sums[0] / counts[filled], sums[1] / counts[filled], counts[filled])


def _equal_error_rate(labels: np.ndarray, probabilities: np.ndarray) -> float:
    false_positives, true_positives = roc_points(labels, probabilities)
    false_negatives = 1 - true_positives
    nearest = np.argmin(np.abs(false_negatives - false_positives))
    return float((false_negatives[nearest] + false_positives[nearest]) / 2)


def check_predictions(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, the probabilities float64; errors as `log_loss`."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"expected (N,) labels and probabilities, N >= 1, found {labels.shape}, {probabilities.shape}."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"expected labels of 0 (real) and 1 (fake), found {np.unique(labels)[:5].tolist()}.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("expected probabilities in [0, 1], found others (or NaN).")
    return labels, probabilities


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
) -> Interval:
    """The interval of the mean log loss.

    Args:
        labels: (N,) of 0 and 1, N >= 1.
        probabilities: (N,) P(fake) in [0, 1].
        groups: (N,) names or numbers of what is drawn as a whole; None draws single videos, by their place: the same
            rows in another order give another draw of the same distribution. Of one group the interval is a point,
            which says that nothing could be drawn, not that the figure is certain.
        clip: probabilities are moved into [clip, 1 - clip] first.

    Raises:
        ValueError: as `metrics.log_loss`; groups of another length, no resamples.
    """
    return _interval(_mean_losses(log_losses(labels, probabilities, clip=clip), groups, resamples, seed))


def compare_log_loss(
    labels: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    clip: float,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare the log losses of the answers `a` and `b` on the same resamples.

    Arguments and errors as `bootstrap_log_loss`.
    """
    differences = log_losses(labels, a, clip=clip) - log_losses(labels, b, clip=clip)
    drawn = _mean_losses(differences, groups, resamples, seed)
    interval = _interval(drawn)
    better = float(np.mean((1 - np.sign(drawn)) / 2))  # NaN with fewer than two groups
    return Comparison(float(differences.mean()), interval.low, interval.high, interval.standard_error, better)


def bootstrap_auc(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """The interval of the area under the ROC curve; resamples with one class only are left out.

    Arguments and errors as `bootstrap_log_loss`.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    codes, num_groups = _codes(groups, len(labels), resamples)
    order = np.argsort(probabilities, kind="stable")
    ordered = probabilities[order]
    run_starts = np.append(np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])), len(ordered))
    from multiattn.scoring.compiled import resampled_aucs

    drawn = resampled_aucs(labels[order] == 1, codes[order], run_starts, num_groups, resamples, seed)
    drawn = drawn[~np.isnan(drawn)]
    return _interval(drawn if num_groups > 1 and len(drawn) else np.array([np.nan]))


def _mean_losses(losses: np.ndarray, groups: np.ndarray | None, resamples: int, seed: int) -> np.ndarray:
    """(resamples,) the mean over the videos of the groups drawn."""
    codes, num_groups = _codes(groups, len(losses), resamples)
    if num_groups < 2:
        return np.full(resamples, np.nan)
    sizes = np.bincount(codes, minlength=num_groups).astype(np.float64)
    from multiattn.scoring.compiled import resampled_means

    return resampled_means(np.bincount(codes, weights=losses, minlength=num_groups), sizes, resamples, seed)


def _codes(groups: np.ndarray | None, length: int, resamples: int) -> tuple[np.ndarray, int]:
    """(N,) group numbers from 0, by sorted name so that the order of the rows changes nothing, and how many."""
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, found {resamples}.")
    if groups is None:
        return np.arange(length), length
    if len(groups) != length:
        raise ValueError(f"groups: expected one for each of {length} videos, found {len(groups)}.")
    codes, names = pd.factorize(np.asarray(groups), sort=True, use_na_sentinel=False)
    return codes.astype(np.int64), len(names)


def _interval(drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), float(drawn.std()))
