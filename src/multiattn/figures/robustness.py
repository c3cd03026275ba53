"""Robustness as a picture of curves, a panel a distortion, and as one page."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from multiattn.evaluation.distortions import DISTORTIONS, VIDEO_DISTORTIONS
from multiattn.evaluation.measures import TextTable
from multiattn.evaluation.robustness import Robustness
from multiattn.evaluation.robustness_table import DISTORTED, PLAIN, robustness_tables, summary_words
from multiattn.figures.page import (
    BLUE,
    ORANGE,
    SECTION_STYLE,
    bullets,
    drawing,
    escape,
    new_figure,
    png_tag,
    section_table,
    whole_page,
)

PANELS_IN_A_ROW = 4


def robustness_figure(found: Robustness) -> Figure:
    """Log loss over the levels of each distortion with its 95 % band, the crops as they are as a line across; runs
    beside in a second colour. One scale for all, so that panels compare."""
    cells = found.cells[found.cells["kind"].isin(DISTORTED)]
    plain = found.cells[(found.cells["kind"] == PLAIN) & (found.cells["part"] == "")].iloc[0]
    names = list(dict.fromkeys(cells["distortion"]))
    down = max(1, -(-len(names) // PANELS_IN_A_ROW))
    figure = new_figure(10.8, 1.2 + 1.85 * down, dpi=110, layout="constrained", facecolor="white")
    panels = figure.subplots(down, PANELS_IN_A_ROW, sharey=True, squeeze=False).ravel()
    sides = {"": (found.runs, BLUE)} | ({"beside_": (found.beside, ORANGE)} if found.beside else {})
    for axes, name in zip(panels, names, strict=False):
        rows = cells[cells["distortion"] == name]
        for prefix, (_, color) in sides.items():
            axes.axhline(plain[f"{prefix}log_loss"], color=color, linewidth=1, linestyle="--", alpha=0.7)
            _draw_curve(axes, rows, f"{prefix}log_loss", color)
        axes.set_title(name, fontsize=9, loc="left")
        axes.set_xticks(range(len(rows)), [level or "once" for level in rows["level"]], fontsize=8)
        axes.set_xlim(-0.4, len(rows) - 0.6)
    for place, axes in enumerate(panels):
        axes.set_visible(place < len(names))
        axes.grid(axis="y", alpha=0.25)
        axes.tick_params(axis="y", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    lines = [Line2D([], [], color=color, marker="o", markersize=4) for _, color in sides.values()]
    labels = [name for name, _ in sides.values()]
    lines, labels = [*lines, Line2D([], [], color="0.3", linestyle="--", linewidth=1)], [*labels, "crops as they are"]
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("Log loss over the levels of each distortion, with 95 % intervals over sources", fontsize=11)
    return figure


def _draw_curve(axes: Axes, rows: pd.DataFrame, name: str, color: str) -> None:
    """A figure over the levels, the mildest first, and its band; of a single level a dot and a bar."""
    places, values = range(len(rows)), rows[name].to_numpy()
    low, high = (rows[f"{name}_{end}"].to_numpy() for end in ("low", "high"))
    axes.plot(places, values, "o-", color=color, markersize=3.5, linewidth=1.4)
    if len(rows) > 1:
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    else:
        axes.vlines(places, low, high, color=color, alpha=0.4, linewidth=4)


def robustness_page(found: Robustness) -> str:
    """The page's HTML: summary, curves, tables, and where the levels come from; nothing in it is loaded."""
    beside = f" beside {found.beside}" if found.beside else ""
    units = {name: (one.levels, one.unit, one.source or "ours") for name, one in DISTORTIONS.items()}
    units |= {name: (levels, unit, "ours") for name, (_, levels, unit) in VIDEO_DISTORTIONS.items()}
    shown = [name for name in units if name in set(found.cells["distortion"])]
    rows = [[name, ", ".join(f"{level:g}" for level in units[name][0]), *units[name][1:]] for name in shown]
    levels = TextTable("Levels", pd.DataFrame(rows, columns=["distortion", "levels", "unit", "source"]))
    parts = [
        f"<p><strong>{escape(summary_words(found.cells))}</strong></p>",
        bullets(found.warnings, "warnings") if found.warnings else "",
        drawing(png_tag(robustness_figure(found), "Log loss over the levels of each distortion, a panel each")),
        *map(section_table, [*robustness_tables(found.cells, found.beside), levels]),
    ]
    return whole_page(f"Robustness of {found.runs}{beside}", "\n".join(filter(None, parts)) + "\n", style=SECTION_STYLE)
