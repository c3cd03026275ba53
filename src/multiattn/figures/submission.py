"""What a submission looks like at a glance."""

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

NUM_BINS = 20


def draw_probabilities(videos: pd.DataFrame) -> Figure:
    """Histogram of P(fake) over the videos of a submission, those answered with the prior in a colour of their own.

    Args:
        videos: a `video_predictions` table.
    """
    figure = Figure(figsize=(7, 3), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    judged = videos["status"] == "ok"
    series = [videos.loc[judged, "probability"], videos.loc[~judged, "probability"]]
    names = [f"judged ({judged.sum()})", f"prior, no usable face ({(~judged).sum()})"]
    axes.hist(series, bins=np.linspace(0, 1, NUM_BINS + 1), stacked=True, color=["#2f6db5", "#b5482f"], label=names)
    axes.set(xlabel="P(fake)", ylabel="videos", xlim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
