"""Results beside published ones: the leaderboard as a picture and a page, an ablation table as a dot plot."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multiattn.evaluation.ablation_table import DEMO_NOTE, AblationTable
from multiattn.evaluation.leaderboard import Leaderboard
from multiattn.figures.page import drawing, escape, figures_table, new_figure, png_tag, whole_page, write_png
from multiattn.runtime.text_tables import printable
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS

OURS, PAPER, PUBLISHED, CONSTANT, FAILED = "#2f6db5", "#d9822b", "#8a8a8a", "#b5482f", "#b5482f"
PANELS_IN_A_ROW = 4
MOST_SHOWN = 30
"""The best ones; more would be a picture nobody reads."""
LINE = 32
"""Letters; a longer name is written smaller, on two lines."""


def draw_leaderboard(board: Leaderboard) -> Figure:
    """A row a submission that was scored, the best on top: its log loss, and the interval as a bar."""
    shown = board.ours.dropna(subset=["log_loss"]).head(MOST_SHOWN)
    anchors = board.scale.anchors if board.scale is not None else {}
    num_rows = max(len(shown), 1) + len(anchors)
    figure = new_figure(9, 1.4 + 0.36 * num_rows, dpi=120, layout="constrained")
    axes = figure.subplots()
    ends = shown[["high", "log_loss", "balanced_log_loss"]].max(axis=1)
    for place, (row, end) in enumerate(zip(shown.itertuples(), ends, strict=True)):
        axes.plot([row.low, row.high], [place, place], color=OURS, linewidth=7, alpha=0.35, solid_capstyle="butt")
        axes.plot(row.balanced_log_loss, place, "d", color=OURS, markerfacecolor="white", markersize=6, zorder=3)
        axes.plot(row.log_loss, place, "o", color=OURS, markersize=5, zorder=3)
        _write(axes, f"{row.log_loss:.4f}", end, place)
    if shown.empty:
        axes.text(0.5, 0, "no submission was scored", transform=axes.get_yaxis_transform(), ha="center", va="center")
    first_anchor = max(len(shown), 1)
    for place, value in enumerate(anchors.values(), start=first_anchor):
        # Up through our rows: the published figures differ by less than a label is wide, so each has a row of its own.
        axes.plot([value, value], [-0.6, place], color=PUBLISHED, linewidth=0.8, zorder=1)
        axes.plot(value, place, "D", color=PUBLISHED, markersize=4, zorder=3)
        _write(axes, f"{value:.4f}", value, place, colour=PUBLISHED)
    ticks = [*range(len(shown)), *range(first_anchor, num_rows)]
    axes.set_yticks(ticks, [_short(name) for name in [*shown["name"], *anchors]])
    for label in axes.get_yticklabels():
        label.set_fontsize(7.5 if "\n" in label.get_text() else 10)
    for label in axes.get_yticklabels()[len(shown) :]:
        label.set_color(PUBLISHED)
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.axvline(CONSTANT_LOG_LOSS, color=CONSTANT, linewidth=1.2, linestyle="--", zorder=1)
    words = f"constant 0.5: {CONSTANT_LOG_LOSS:.4f}"
    _write(axes, words, CONSTANT_LOG_LOSS, num_rows - 0.6, colour=CONSTANT, to_the_left=True)
    axes.set_xlim(0, 1.12 * max([CONSTANT_LOG_LOSS, *ends, *anchors.values()]))
    grey = "; grey is published" if anchors else ""
    bars = f"\nbars are 95 % intervals of a bootstrap that draws {board.drawn}" if board.has_intervals else ""
    axes.set_xlabel(f"log loss, lower is better; diamonds are balanced over the classes{grey}{bars}")
    axes.set_title(f"Log loss on {board.scored_on}", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def _write(
    axes: Axes, text: str, value: float, place: float, *, colour: str = "black", to_the_left: bool = False
) -> None:
    """A word beside a place of the picture."""
    axes.annotate(
        text,
        (value, place),
        xytext=(-5 if to_the_left else 5, 0),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="center",
        fontsize=9,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},  # a published line may run behind
    )


def _short(name: str) -> str:
    """On two lines at most; a name too long for that by its two ends."""
    name = printable(name)
    if len(name) > 2 * LINE:
        name = f"{name[:LINE]}…{name[1 - LINE :]}"
    return name if len(name) <= LINE else f"{name[:LINE]}\n{name[LINE:]}"


def leaderboard_page(board: Leaderboard, figure: Figure) -> str:
    """The leaderboard as a page that stands alone, with the figure of `draw_leaderboard`."""
    notes = "".join(f"<p><strong>Warning:</strong> {escape(warning)}</p>\n" for warning in board.warnings)
    return whole_page(
        "Leaderboard",
        f"<p>Scored on: {escape(board.scored_on)}.</p>\n{notes}"
        f"{drawing(png_tag(figure, 'log loss of every submission, plain and balanced, with its interval'))}\n"
        f"{figures_table(*board.rows())}\n<p>{escape(board.legend)}</p>\n"
        + "".join(f"{figures_table(*table)}\n" for table in board.published()),
    )


def draw_ablation(table: AblationTable, path: Path) -> None:
    """Write a PNG: a panel a column, a row a cell, our mean with its spread and the paper's figure.

    Columns without a single figure get no panel.
    """
    rows, note = table.rows(), DEMO_NOTE if table.ablation.is_demo else ""
    cells = list(dict.fromkeys(rows["cell"]))
    names = [
        name
        for name in dict.fromkeys(rows["column"])
        if rows.loc[rows["column"] == name, ["mean", "paper"]].notna().any(axis=None)
    ]
    across = min(max(len(names), 1), PANELS_IN_A_ROW)
    down = -(-max(len(names), 1) // across)
    labels_width = 0.075 * max(map(len, cells))
    height = down * (1.0 + 0.42 * len(cells)) + 1.1
    figure = new_figure(max(labels_width + 2.7 * across, 6), height, dpi=120, layout="constrained")
    figure.suptitle(table.title + (f"\n{note}" if note else ""), fontsize=11)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _draw_panel(axes, rows[rows["column"] == name].set_index("cell").loc[cells])
        axes.set_title(name, fontsize=10)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    panels[0].set_yticks(range(len(cells)), cells)
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    if not names:
        panels[0].set_visible(True)
        panels[0].text(0.5, 0.5, "nothing measured yet", transform=panels[0].transAxes, ha="center", va="center")
        panels[0].set_xticks([])
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    write_png(figure, path)


def _draw_panel(axes: Axes, rows: pd.DataFrame) -> None:
    positions = np.arange(len(rows))
    measured = rows["mean"].notna().to_numpy()
    if measured.any():
        axes.errorbar(
            rows["mean"][measured],
            positions[measured],
            xerr=rows["spread"][measured].fillna(0),
            fmt="o",
            color=OURS,
            capsize=3,
            label="ours, mean ± sd over seeds",
            zorder=3,
        )
    quoted = rows["paper"].notna().to_numpy()
    if quoted.any():
        # Drawn below our dot, so that both can be read where they fall together.
        axes.scatter(
            rows["paper"][quoted], positions[quoted] + 0.22, marker="D", s=26, color=PAPER, label="paper", zorder=2
        )
    for position in positions[(rows["status"] == "failed").to_numpy() & ~measured]:
        axes.text(0.02, position, "failed", transform=axes.get_yaxis_transform(), va="center", color=FAILED, fontsize=9)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
