"""What a set of video probabilities is worth: log loss in float64 with an explicit clip, AUC, accuracy."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

CONSTANT_LOG_LOSS = math.log(2)
"""Log loss of answering 0.5 to everything: 0.6931."""


@dataclass(frozen=True)
class VideoMetrics:
    """Metrics over videos."""

    log_loss: float
    """Mean natural-log loss."""
    auc: float | None
    """Area under the ROC curve in [0, 1]; None when only one class is present."""
    accuracy: float
    """Share of videos on the right side of 0.5, in [0, 1]; exactly 0.5 answers real."""
    num_videos: int

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
    labels, probabilities = _checked(labels, probabilities)
    clipped = np.clip(probabilities, clip, 1 - clip)
    return float(-np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped))))


def balanced_log_loss(labels: np.ndarray, probabilities: np.ndarray, *, clip: float = 1e-15) -> float:
    """Mean of the two classes' own log losses: what log loss would be if both were as frequent.

    Arguments and errors as `log_loss`; with one class present it is that class's log loss.
    """
    labels, probabilities = _checked(labels, probabilities)
    classes = [log_loss(labels[labels == label], probabilities[labels == label], clip=clip) for label in set(labels)]
    return float(np.mean(classes))


def video_metrics(labels: np.ndarray, probabilities: np.ndarray, *, clip: float) -> VideoMetrics:
    """Log loss (clipped), AUC and accuracy of (N,) probabilities against (N,) labels of 0 and 1."""
    loss = log_loss(labels, probabilities, clip=clip)
    labels, probabilities = _checked(labels, probabilities)
    auc = float(roc_auc_score(labels, probabilities)) if len(np.unique(labels)) == 2 else None
    accuracy = float(np.mean((probabilities > 0.5) == (labels == 1)))
    return VideoMetrics(loss, auc, accuracy, len(labels))


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
