"""P(fake) of videos, real and fake apart."""

import numpy as np
from matplotlib.axes import Axes

from multiattn.figures.curves import BLUE, ORANGE

NUM_BINS = 20


def draw_class_histogram(axes: Axes, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Numbers of real videos upwards and of fake ones downwards, so that neither hides the other.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) P(fake).
    """
    edges = np.linspace(0, 1, NUM_BINS + 1)
    heights = {label: np.histogram(probabilities[labels == label], edges)[0] for label in (0, 1)}
    axes.bar(edges[:-1], heights[0], width=1 / NUM_BINS, align="edge", color=BLUE, label=f"real ({sum(heights[0])})")
    axes.bar(edges[:-1], -heights[1], width=1 / NUM_BINS, align="edge", color=ORANGE, label=f"fake ({sum(heights[1])})")
    axes.axhline(0, color="0.3", linewidth=0.8)
    most = max(1, *heights[0], *heights[1])
    axes.set(xlim=(0, 1), ylim=(-1.3 * most, 1.3 * most), xlabel="P(fake)", ylabel="videos")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title("real (up) and fake (down)", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)
