"""ROC curves of videos and of single frames."""

import numpy as np
from matplotlib.axes import Axes

from multiattn.figures.curves import BLUE, ORANGE
from multiattn.scoring.metrics import roc_points

COLORS = (BLUE, ORANGE)


def draw_roc(axes: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A step for each of at most two sets of answers; words instead where none has both classes.

    Args:
        curves: name -> labels (N,) of 0 and 1, and P(fake) (N,); N may be 0.
    """
    drawn = False
    for (name, (labels, probabilities)), color in zip(curves.items(), COLORS, strict=False):
        if len(np.unique(labels)) < 2:
            continue
        false_positives, true_positives = roc_points(labels, probabilities)
        area = np.trapezoid(true_positives, false_positives)
        axes.plot(false_positives, true_positives, color=color, linewidth=1.6, label=f"{name}, AUC {area:.4f}")
        drawn = True
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="reals called fake", ylabel="fakes called fake")
    axes.set_title("ROC", fontsize=10, loc="left")
    if drawn:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    else:
        axes.text(0.5, 0.62, "no ROC: one class only", ha="center", color="0.35", fontsize=9)
