"""An ablation as a dot plot: a panel a column, a row a cell; our mean with its spread, and the paper's figure."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from multiattn.evaluation.ablation_table import DEMO_NOTE, AblationTable
from multiattn.figures.page import new_figure, write_png

OURS, PAPER, FAILED = "#2f6db5", "#d9822b", "#b5482f"
PANELS_IN_A_ROW = 4


def draw_ablation(table: AblationTable, path: Path) -> None:
    """Write a PNG; columns without a single figure get no panel."""
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
