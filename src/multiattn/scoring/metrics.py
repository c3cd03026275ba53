"""What probabilities of videos, or of frames, are worth: log loss with an explicit clip, ranking, calibration; float64."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

CONSTANT_LOG_LOSS = math.log(2)
"""Log loss of answering 0.5 to everything: 0.6931."""
CALIBRATION_BINS = 15
"""As Guo et al. (arXiv:1706.04599)."""


@dataclass(frozen=True)
class VideoMetrics:
    """Metrics over videos, or over frames; None where only one class is present and the metric needs both."""

    log_loss: float
    """Mean natural-log loss."""
    auc: float | None
    """Area under the ROC curve in [0, 1]."""
    accuracy: float
    """Share on the right side of 0.5, in [0, 1]; exactly 0.5 answers real."""
    num_videos: int
    balanced_log_loss: float
    """Mean of the two classes' own log losses; of the one class where there is no other."""
    average_precision: float | None
    """Of fakes, by steps, in [0, 1]."""
    eer: float | None
    """Equal error rate in [0, 1], as `equal_error_rate`."""
    balanced_accuracy: float | None
    """Mean of the two classes' own accuracies, in [0, 1]."""
    brier: float
    """Mean squared distance between probability and label, in [0, 1]."""
    calibration_error: float
    """In [0, 1], as `calibration_error`."""

    def as_dict(self) -> dict[str, float | int | None]:
        """Field name -> value."""
        return asdict(self)


def log_loss(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> float:
    """Mean binary log loss, natural logarithm, float64.

    Args:
        labels: (N,) of 0 (real) and 1 (fake), N >= 1.
        probabilities: (N,) P(fake) in [0, 1].
        clip: probabilities are moved into [clip, 1 - clip] first.

    Raises:
        ValueError: no videos, shapes that differ, a label that is not 0 or 1, a probability outside [0, 1] or NaN.
    """
    return float(np.mean(log_losses(labels, probabilities, clip=clip)))


def log_losses(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> np.ndarray:
    """(N,) float64: the log loss of each video. Arguments and errors as `log_loss`."""
    labels, probabilities = check_predictions(labels, probabilities)
    clipped = np.clip(probabilities, clip, 1 - clip)
    return -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))


def balanced_log_loss(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> float:
    """Mean of the two classes' own log losses: what log loss would be if both were as frequent.

    Arguments and errors as `log_loss`; with one class present it is that class's log loss.
    """
    return _balanced(np.asarray(labels), log_losses(labels, probabilities, clip=clip))


def equal_error_rate(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The false positive rate where it is nearest to the false negative rate, in [0, 1].

    As everyone in the field computes it: `fpr[argmin |fnr - fpr|]` over scikit-learn's `roc_curve`, a point of the
    curve; nothing is interpolated, and points in the middle of a straight piece are left out.

    Raises:
        ValueError: as `log_loss`, or only one class.
    """
    false_positives, true_positives = roc_points(labels, probabilities)
    return float(false_positives[np.argmin(np.abs(1 - true_positives - false_positives))])


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: sum over bins of n_b / N |mean P(fake) - share of fakes|, in [0, 1].

    Bins as in `reliability`: of P(fake) itself (Naeini et al. 2015), not of the confidence in the more likely class
    (Guo et al., Eq. 3), so that answering every fake 0.1 and every real 0.1 is seen as wrong about fakes.

    Raises:
        ValueError: as `reliability`.
    """
    probability, share, counts = reliability(labels, probabilities, bins=bins)
    filled = counts > 0
    return float(np.sum(counts[filled] * np.abs(probability - share)[filled]) / counts.sum())


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, *, bins: int = CALIBRATION_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a reliability diagram shows, for each of `bins` equal intervals of P(fake).

    Args:
        bins: interval b is (b / bins, (b + 1) / bins]; 0 lies in the first.

    Returns:
        (bins,) mean P(fake) and (bins,) share of fakes, both in [0, 1] and NaN where the bin is empty, and (bins,)
        int64 numbers of videos.

    Raises:
        ValueError: as `log_loss`, or less than one bin.
    """
    if bins < 1:
        raise ValueError(f"expected bins >= 1, found {bins}.")
    labels, probabilities = check_predictions(labels, probabilities)
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    of_bin = np.digitize(probabilities, inner_edges, right=True)
    counts = np.bincount(of_bin, minlength=bins)
    divisor = np.where(counts > 0, counts, np.nan)
    probability = np.bincount(of_bin, weights=probabilities, minlength=bins) / divisor
    return probability, np.bincount(of_bin, weights=labels, minlength=bins) / divisor, counts


def roc_points(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the ROC curve, from (0, 0) to (1, 1): false and true positive rates, two float64 arrays.

    Raises:
        ValueError: as `log_loss`, or only one class.
    """
    labels, probabilities = check_predictions(labels, probabilities)
    if not _both_classes(labels):
        raise ValueError(f"expected reals and fakes, found only label {int(labels[0])}: no ROC curve.")
    false_positives, true_positives, _ = roc_curve(labels, probabilities)
    return false_positives, true_positives


def video_metrics(labels: np.ndarray, probabilities: np.ndarray, *, clip: float) -> VideoMetrics:
    """All metrics of (N,) probabilities against (N,) labels of 0 and 1, of videos or of frames.

    Args:
        clip: of the two log losses; everything else is of the probabilities as they are.

    Raises:
        ValueError: as `log_loss`.
    """
    losses = log_losses(labels, probabilities, clip=clip)
    labels, probabilities = check_predictions(labels, probabilities)
    both = _both_classes(labels)
    right = (probabilities > 0.5) == (labels == 1)
    return VideoMetrics(
        log_loss=float(np.mean(losses)),
        auc=float(roc_auc_score(labels, probabilities)) if both else None,
        accuracy=float(np.mean(right)),
        num_videos=len(labels),
        balanced_log_loss=_balanced(labels, losses),
        average_precision=float(average_precision_score(labels, probabilities)) if both else None,
        eer=equal_error_rate(labels, probabilities) if both else None,
        balanced_accuracy=_balanced(labels, right) if both else None,
        brier=float(np.mean((probabilities - labels) ** 2)),
        calibration_error=calibration_error(labels, probabilities),
    )


def check_predictions(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) labels of 0 and 1 as int64, (N,) probabilities as float64.

    Raises:
        ValueError: as `log_loss`.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if labels.shape != probabilities.shape or labels.ndim != 1 or len(labels) == 0:
        raise ValueError(
            f"expected (N,) labels and probabilities, N >= 1, found {labels.shape}, {probabilities.shape}."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"expected labels of 0 (real) and 1 (fake), found {np.unique(labels)[:5].tolist()}.")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("expected probabilities in [0, 1], found others (or NaN).")
    return labels.astype(np.int64), probabilities


def _balanced(labels: np.ndarray, values: np.ndarray) -> float:
    return float(np.mean([np.mean(values[labels == label]) for label in np.unique(labels)]))


def _both_classes(labels: np.ndarray) -> bool:
    return 0 < labels.sum() < len(labels)
