"""How often what was called fake with a probability was fake: the reliability diagram (Murphy and Winkler 1977)."""

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import norm

from multiattn.figures.curves import BLUE
from multiattn.scoring.metrics import reliability

NUM_BINS = 10
LEVEL = 0.95


def draw_reliability(axes: Axes, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Share of fakes over mean P(fake), a point a bin with its Wilson interval and number of videos.

    Args:
        labels: (N,) of 0 and 1, N >= 1.
        probabilities: (N,) P(fake).
    """
    means, fakes, counts = reliability(labels, probabilities, bins=NUM_BINS)
    means, fakes, counts = means[counts > 0], fakes[counts > 0], counts[counts > 0]
    low, high = wilson_interval(fakes, counts)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.vlines(means, low, high, color=BLUE, linewidth=1.2, alpha=0.6)
    axes.plot(means, fakes, "o-", color=BLUE, markersize=4, linewidth=1)
    for x, y, count in zip(means, fakes, counts, strict=True):
        offset = (4, 6 if y < 0.5 else -11)
        axes.annotate(str(count), (x, y), xytext=offset, textcoords="offset points", fontsize=7, color="0.35")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xlabel="mean P(fake)", ylabel="share of fakes")
    axes.set_title("reliability (with numbers of videos)", fontsize=10, loc="left")


def wilson_interval(shares: np.ndarray, counts: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a share of `counts` draws, (B,) each; it stays in [0, 1], with few draws too (Wilson 1927).

    (p + z²/2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z²/n), z the normal quantile of the level.
    """
    z = norm.ppf((1 + level) / 2)
    scale = 1 + z**2 / counts
    middle = (shares + z**2 / (2 * counts)) / scale
    half = z * np.sqrt(shares * (1 - shares) / counts + z**2 / (4 * counts**2)) / scale
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
