"""The leaderboard as a picture: our submissions as bars, published log losses as dots on an axis of their own."""

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from multiattn.runtime import atomic_path

OURS, PUBLISHED, CONSTANT = "#2f6db5", "#8a8a8a", "#b5482f"


def draw_leaderboard(table: pd.DataFrame, scored_on: str, path: Path) -> None:
    """Write a PNG.

    Args:
        table: `Leaderboard.table()`; rows without a log loss are left out.
        scored_on: what our figures are over, in words.
    """
    table = table.dropna(subset=["log_loss"])
    ours = table[table["source"] == "ours"]
    published = table[table["source"] == "published"]
    constant = float(table.loc[table["source"] == "reference", "log_loss"].iloc[0])
    heights = [max(len(ours), 1) + 1, len(published)]
    figure = Figure(figsize=(9, 1.6 + 0.38 * sum(heights)), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=heights)

    upper.barh(ours["name"], ours["log_loss"], color=OURS, height=0.6)
    for name, value in zip(ours["name"], ours["log_loss"], strict=True):
        upper.text(value, name, f" {value:.4f}", va="center", ha="left", fontsize=9)
    if ours.empty:
        upper.text(0.5, 0.5, "no submission was scored", transform=upper.transAxes, ha="center", va="center")
        upper.set_yticks([])
    upper.axvline(constant, color=CONSTANT, linewidth=1.2, linestyle="--")
    upper.text(
        constant,
        1.0,
        f"constant 0.5: {constant:.4f} ",
        transform=upper.get_xaxis_transform(),
        ha="right",
        va="bottom",
        color=CONSTANT,
        fontsize=9,
    )
    upper.set_ylim(max(len(ours), 1) - 0.3, -0.7)
    upper.set_title(f"Ours, on {scored_on}", loc="left", fontsize=10, pad=16)

    lower.scatter(published["log_loss"], published["name"], color=PUBLISHED, zorder=3)
    for name, value in zip(published["name"], published["log_loss"], strict=True):
        lower.text(value, name, f"  {value:.4f}", va="center", ha="left", fontsize=9)
    lower.invert_yaxis()
    lower.set_title(
        "Published, on the 5,000 DFDC test videos: not comparable with other videos", loc="left", fontsize=10
    )
    lower.set_xlabel("log loss, lower is better")
    for axes in (upper, lower):
        axes.set_xlim(0, max(constant, *table["log_loss"]) * 1.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
