"""Metrics of probabilities, of videos or frames, in float64, with an explicit clip; their intervals and comparisons.

Videos of one original, or of one part, are alike; drawing single videos would take them for independent and find
intervals that are too narrow. So the bootstrap draws whole groups, with replacement, as many as there are (Field and
Welsh 2007, "cluster bootstrap"). Each draw follows from seed, resample and place alone.
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
"""Share of intervals that hold the truth."""
MIN_GROUPS = 5
"""Below, no interval is given."""
NO_INTERVAL = f"fewer than {MIN_GROUPS} groups"
"""Stands in place of an interval."""
WIDEST = 4
"""An interval is at most so many times as wide as Student's."""


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


def describe_losses(plain: float, balanced: float | None) -> str:
    """`0.0179 (balanced 0.0192)`, the plain log loss alone where the balanced one is not known (None, NaN or NA)."""
    return f"{plain:.4f}" + ("" if pd.isna(balanced) else f" (balanced {balanced:.4f})")


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
    """(N,) float64, the log loss of every single answer; arguments as of `log_loss`."""
    labels, probabilities = check_predictions(labels, probabilities)
    clipped = np.clip(probabilities, clip, 1 - clip)
    return -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))


def balanced_log_loss(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> float:
    """Mean of the two classes' own log losses: what log loss would be if both were as frequent; with one class present
    that class's log loss. Arguments as of `log_loss`."""
    losses, is_fake = log_losses(labels, probabilities, clip=clip), np.asarray(labels) == 1
    return float(np.mean([losses[of_class].mean() for of_class in (is_fake, ~is_fake) if of_class.any()]))


def video_metrics(labels: np.ndarray, probabilities: np.ndarray, *, clip: float) -> VideoMetrics:
    """All metrics of (N,) probabilities against (N,) labels of 0 and 1. The clip is for log loss, Brier score and
    calibration; ranks and sides of 0.5 are those of what was given."""
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
    fakes: np.ndarray
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
    """Both as arrays, the probabilities float64; raises as `log_loss`."""
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
    """A 95 % interval; NaN where nothing can be said: fewer than 5 groups, or one class only (AUC)."""

    low: float
    high: float
    standard_error: float = math.nan
    """Over groups; NaN of one group."""

    @classmethod
    def of(cls, low: float | None, high: float | None) -> "Interval":
        """The interval of two cells of a table or a file, in which None, NaN or NA stands for none."""
        return cls(*(math.nan if pd.isna(end) else float(end) for end in (low, high)))

    @property
    def is_known(self) -> bool:
        """False where nothing can be said."""
        return not math.isnan(self.low)

    def words(self, *, sign: str = "", without: str = NO_INTERVAL) -> str:
        """`0.0116 to 0.0422`, or `without` where nothing can be said; `sign` "+" writes the sign of each end."""
        return f"{self.low:{sign}.4f} to {self.high:{sign}.4f}" if self.is_known else without

    def beside(self, figure: float, *, sign: str = "") -> str:
        """`0.0179 (0.0116 to 0.0422)`, the figure alone where nothing can be said of it."""
        return f"{figure:{sign}.4f}" + (f" ({self.words(sign=sign)})" if self.is_known else "")


@dataclass(frozen=True)
class Comparison:
    """Two sets of answers to the same videos."""

    difference: float
    """Log loss of a minus that of b; below 0, a is better."""
    low: float
    high: float
    standard_error: float
    probability_better: float
    """Confidence that a is better, in [0, 1]; 0.5 where they are equal, NaN with fewer than 5 groups."""

    @property
    def interval(self) -> Interval:
        """The interval of the difference."""
        return Interval(self.low, self.high, self.standard_error)


def bootstrap_log_loss(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    clip: float,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """The interval of the mean log loss; labels, probabilities and clip as of `log_loss`.

    Args:
        groups: (N,) names or numbers of what is drawn as a whole; None draws single videos, by their place: the same
            rows in another order give another draw of the same distribution.

    Raises:
        ValueError: as `log_loss`; groups of another length, no resamples.
    """
    interval, _ = _studentized(log_losses(labels, probabilities, clip=clip), groups, resamples, seed)
    return Interval(max(interval.low, 0.0), interval.high, interval.standard_error)


def mean_interval(values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of the mean of (N,) values of any sign, such as differences of losses, as `bootstrap_log_loss` finds
    it; groups and errors as there."""
    return _studentized(np.asarray(values, dtype=np.float64), groups)[0]


def balanced_interval(labels: np.ndarray, values: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of the mean of both classes' own means of (N,) values, as `bootstrap_log_loss` finds it, within the
    values.

    Each value is replaced by its share of the figure, m + (v - m_c) N / (2 N_c), whose mean is the figure m.

    Raises:
        ValueError: one class only, groups of another length, no resamples.
    """
    labels, values = np.asarray(labels), np.asarray(values, dtype=np.float64)
    if len(np.unique(labels)) < 2:
        raise ValueError("a balanced figure needs real and fake videos, found one class only.")
    counts, sums = np.bincount(labels, minlength=2), np.bincount(labels, weights=values, minlength=2)
    means = sums / counts
    shares = means.mean() + (values - means[labels]) * len(labels) / (2 * counts[labels])
    found = _studentized(shares, groups)[0]
    low, high = np.clip([found.low, found.high], values.min(), values.max())  # NaN stays
    return Interval(float(low), float(high), found.standard_error)


def compare_log_loss(
    labels: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    clip: float,
    weights: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare the log losses of the answers `a` and `b`, video by video; other arguments as of `bootstrap_log_loss`.

    Args:
        weights: (N,) of the videos, of mean 1; None: all count alike.
    """
    differences = log_losses(labels, a, clip=clip) - log_losses(labels, b, clip=clip)
    differences = differences if weights is None else differences * weights
    interval, better = _studentized(differences, groups, resamples, seed)
    return Comparison(float(differences.mean()), interval.low, interval.high, interval.standard_error, better)


def auc_interval(labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of the area under the ROC curve: Student's, of its logit, with G - 1 degrees of freedom.

    Source: Obuchowski, "Nonparametric analysis of clustered ROC curve data" (Biometrics 1997), the variance of an AUC
    from the sums of its components over groups. Departures: the logit, which keeps the interval in [0, 1].
    """
    from scipy.special import expit, logit, stdtrit

    codes, num_groups = _codes(groups, len(labels))
    auc, shares = _auc_shares(labels, probabilities)
    if num_groups < MIN_GROUPS or np.isnan(auc):
        return Interval(np.nan, np.nan, np.nan)
    error = _error_of_sum(shares, codes, num_groups)
    if not 0 < auc < 1:
        return Interval(float(auc), float(auc), error)
    away = stdtrit(num_groups - 1, (1 + LEVEL) / 2) * error / (auc * (1 - auc))
    low, high = (float(expit(logit(auc) + side)) for side in (-away, away))
    return Interval(low, high, error)


def metric_intervals(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray | None = None, *, clip: float
) -> dict[str, Interval]:
    """Intervals of log loss and, of both classes, of AUC and the balanced figures of `video_metrics`, by their names;
    arguments and errors as `bootstrap_log_loss`."""
    found = {"log_loss": bootstrap_log_loss(labels, probabilities, groups, clip=clip)}
    if len(np.unique(labels)) > 1:
        losses, is_right = log_losses(labels, probabilities, clip=clip), (probabilities > 0.5) == (labels == 1)
        found["auc"] = auc_interval(labels, probabilities, groups)
        found["balanced_log_loss"] = balanced_interval(labels, losses, groups)
        found["balanced_accuracy"] = balanced_interval(labels, is_right, groups)
    return found


def compare_auc(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, Interval]:
    """The AUC of the answers `a` minus that of `b` to the same videos, and its interval: Student's, with the variance
    of the differences of both answers' components summed over groups.

    Arguments and errors as `bootstrap_log_loss`; source as of `auc_interval`. NaN with one class only.
    """
    from scipy.special import stdtrit

    codes, num_groups = _codes(groups, len(labels))
    (auc_a, shares_a), (auc_b, shares_b) = (_auc_shares(labels, answers) for answers in (a, b))
    difference = auc_a - auc_b
    if num_groups < MIN_GROUPS or np.isnan(difference):
        return difference, Interval(np.nan, np.nan, np.nan)
    error = _error_of_sum(shares_a - shares_b, codes, num_groups)
    away = stdtrit(num_groups - 1, (1 + LEVEL) / 2) * error
    return difference, Interval(difference - away, difference + away, error)


def _auc_shares(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, np.ndarray]:
    """The AUC, NaN with one class only, and (N,) what each answer adds to its distance from what is expected of it."""
    labels, probabilities = check_predictions(labels, probabilities)
    classes = [np.sort(probabilities[labels == label]) for label in (0, 1)]
    if min(map(len, classes)) == 0:
        return float("nan"), np.zeros(len(labels))
    components = np.empty(len(labels))
    for label, other in ((1, classes[0]), (0, classes[1])):
        mine = probabilities[labels == label]
        below = (np.searchsorted(other, mine, "left") + np.searchsorted(other, mine, "right")) / (2 * len(other))
        components[labels == label] = below if label else 1 - below
    auc = components[labels == 1].mean()
    return float(auc), (components - auc) / np.where(labels == 1, len(classes[1]), len(classes[0]))


def _error_of_sum(shares: np.ndarray, codes: np.ndarray, num_groups: int) -> float:
    """sqrt(G / (G - 1) sum_g (sum of g's shares)^2), of (N,) shares whose sum is 0."""
    away = np.bincount(codes, weights=shares)
    return float(np.sqrt(num_groups / (num_groups - 1) * away @ away))


def standard_error(values: np.ndarray, groups: np.ndarray) -> float:
    """sqrt(G / (G - 1) sum_g (sum of g's values - its number * mean)^2) / N of the mean of (N,) values; NaN of one
    group."""
    codes, num_groups = _codes(groups, len(values))
    if num_groups < 2:
        return float("nan")
    return _error_of_sum(values - values.mean(), codes, num_groups) / len(values)


def _studentized(
    values: np.ndarray, groups: np.ndarray | None, resamples: int = 10_000, seed: int = 0
) -> tuple[Interval, float]:
    """The interval of the mean of (N,) values, and the confidence that the mean lies below 0.

    The bootstrap-t over groups (Efron and Tibshirani 1993, §12.5), which follows the skewness of losses, but nowhere
    narrower than Student's interval on sums of groups with G - 1 degrees of freedom, and at most WIDEST times as wide:
    where few mistakes cost nearly all there is, some resamples know none. Of the two confidences the less certain one.
    Coverage stands in README.md (`tests/scoring/test_intervals.py`); Student's is 0.88 with 5 groups, 0.91 with 18.
    """
    if resamples < 1:
        raise ValueError(f"expected at least 1 resample, found {resamples}.")
    codes, num_groups = _codes(groups, len(values))
    mean, error = float(values.mean()), standard_error(values, codes)
    if num_groups < MIN_GROUPS:
        return Interval(np.nan, np.nan, error), np.nan
    if error == 0:
        return Interval(mean, mean, 0.0), float((1 - np.sign(mean)) / 2)
    from scipy.special import stdtr, stdtrit

    from multiattn.scoring.compiled import studentized_means

    sums, sizes = np.bincount(codes, weights=values - mean), np.bincount(codes).astype(np.float64)
    quantile = stdtrit(num_groups - 1, (1 + LEVEL) / 2)
    drawn = studentized_means(sums, sizes, resamples, seed).clip(-WIDEST * quantile, WIDEST * quantile)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    interval = Interval(float(mean - max(high, quantile) * error), float(mean + max(-low, quantile) * error), error)
    below = float(np.mean((1 + np.sign(drawn - mean / error)) / 2)), float(stdtr(num_groups - 1, -mean / error))
    return interval, min(below, key=lambda confidence: abs(confidence - 0.5))


def _codes(groups: np.ndarray | None, length: int) -> tuple[np.ndarray, int]:
    """(N,) group numbers from 0, by sorted name so that the order of the rows changes nothing, and how many."""
    if groups is None:
        return np.arange(length), length
    if len(groups) != length:
        raise ValueError(f"groups: expected one for each of {length} videos, found {len(groups)}.")
    codes, names = pd.factorize(np.asarray(groups), sort=True, use_na_sentinel=False)
    return codes.astype(np.int64), len(names)
