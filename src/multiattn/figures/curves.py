"""How a training went, from epochs.csv: losses, validation, learning rate and what the attention maps did."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from multiattn.model.diagnostics import COLLAPSED_COSINE, COLLAPSED_SHARE, DEAD_SHARE
from multiattn.runtime import atomic_path

REQUIRED = ("epoch", "phase", "loss", "learning_rate", "validation_log_loss", "validation_auc")
CHANCE_LOG_LOSS = float(np.log(2))

LOSSES = {
    "loss": ("sum", "#000000"),
    "cross_entropy": ("cross entropy", "#0072b2"),
    "auxiliary": ("auxiliary, unweighted", "#d55e00"),
    "cross_entropy_agda": ("cross entropy, AGDA copy", "#009e73"),
    "match": ("match, unweighted", "#cc79a7"),
}
"""Terms of the loss: name and colour. The colours are those of Okabe and Ito, made for the colour-blind."""
MAPS = {
    "map_cosine": ("mean cosine between maps", "#0072b2", COLLAPSED_COSINE),
    "map_strongest_share": ("share of the strongest map", "#d55e00", COLLAPSED_SHARE),
    "map_dead_share": ("share of dead maps", "#cc79a7", DEAD_SHARE),
    "map_entropy": ("entropy", "#009e73", None),
}
"""Attention statistics: name, colour, and the value above which they count as collapsed."""


def read_epochs(folder: Path) -> pd.DataFrame:
    """The epochs.csv of a fold's folder.

    Raises:
        FileNotFoundError: no epoch has ended yet.
        ValueError: not the table `multiattn train` writes.
    """
    path = Path(folder) / "epochs.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no finished epoch there. Train with `multiattn train`.")
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a table of epochs, found something else: {error}.") from error
    missing = [name for name in REQUIRED if name not in table]
    if missing or table.empty:
        found = f"no {', '.join(missing)}" if missing else "no rows"
        raise ValueError(f"{path}: expected columns {', '.join(REQUIRED)} and a row an epoch, found {found}.")
    return table


def draw_curves(folds: dict[str, pd.DataFrame], title: str, path: Path) -> None:
    """Write `curves_figure` as a PNG."""
    figure = curves_figure(folds, title)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def curves_figure(folds: dict[str, pd.DataFrame], title: str) -> Figure:
    """A thin line for each fold, and a thick one for their mean where there are several.

    Args:
        folds: a fold's name -> its `read_epochs`; folds may have gone through different numbers of epochs.

    Raises:
        ValueError: no folds.
    """
    if not folds:
        raise ValueError("expected at least one fold with epochs, found none.")
    columns = {name for table in folds.values() for name in table.columns[table.notna().any()]}
    with_maps = "map_entropy" in columns
    figure = Figure(figsize=(13 if with_maps else 9, 6.4), layout="constrained", dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(2, 3 if with_maps else 2, sharex=True).flat)
    longest = max(folds.values(), key=len)
    words = f", {len(folds)} folds (thin) and their mean (thick)" if len(folds) > 1 else f", {next(iter(folds))}"
    figure.suptitle(f"{title}{words}", fontsize=12)
    _draw_losses(panels[0], folds, columns)
    _draw_log_loss(panels[1], folds)
    _draw_auc(panels[2], folds, columns)
    rate, *attention = panels[3:]
    _draw_learning_rate(rate, folds)
    if with_maps:
        _draw_maps(attention[0], folds, columns)
        _draw_centers(attention[1], folds, columns)
    for number, axes in enumerate(panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(longest["epoch"].min() - 0.5, longest["epoch"].max() + 0.5)
        _mark_phases(axes, longest, named=number < len(panels) // 2)
        if number >= len(panels) // 2:
            axes.set_xlabel("epoch")
    return figure


def _curve(axes: Axes, folds: dict[str, pd.DataFrame], column: str, label: str, color: str) -> None:
    tables = [table.set_index("epoch")[column] for table in folds.values() if column in table]
    several = len(tables) > 1
    for values in tables if several else []:
        axes.plot(values.index, values, color=color, alpha=0.35, linewidth=0.8)
    mean = pd.concat(tables, axis=1).mean(axis=1)
    marker = "o" if len(mean) <= 30 else None  # an epoch on its own must be seen too
    axes.plot(mean.index, mean, color=color, linewidth=1.8, marker=marker, markersize=3, label=label)


def _draw_losses(axes: Axes, folds: dict[str, pd.DataFrame], columns: set[str]) -> None:
    axes.set_title("training loss and its terms", fontsize=10, loc="left")
    for name, (label, color) in LOSSES.items():
        if name in columns:
            _curve(axes, folds, name, label, color)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.legend(fontsize=8, frameon=False)


def _draw_log_loss(axes: Axes, folds: dict[str, pd.DataFrame]) -> None:
    axes.set_title("validation log loss (videos)", fontsize=10, loc="left")
    _curve(axes, folds, "validation_log_loss", "log loss", "#0072b2")
    best = [table.loc[table["validation_log_loss"].idxmin()] for table in folds.values()]
    axes.scatter(
        [row["epoch"] for row in best],
        [row["validation_log_loss"] for row in best],
        marker="*",
        s=90,
        color="#d55e00",
        zorder=4,
        label="lowest of a fold",
    )
    axes.axhline(CHANCE_LOG_LOSS, color="0.4", linestyle="--", linewidth=1, label="constant 0.5")
    highest = max(table["validation_log_loss"].max() for table in folds.values())
    axes.set_ylim(0, 1.08 * max(highest, CHANCE_LOG_LOSS))
    axes.legend(fontsize=8, frameon=False)


def _draw_auc(axes: Axes, folds: dict[str, pd.DataFrame], columns: set[str]) -> None:
    axes.set_title("validation AUC and accuracy (videos)", fontsize=10, loc="left")
    _curve(axes, folds, "validation_auc", "AUC", "#0072b2")
    if "validation_accuracy" in columns:
        _curve(axes, folds, "validation_accuracy", "accuracy", "#009e73")
    axes.set_ylim(axes.get_ylim()[0] - 0.03, 1.03)
    axes.legend(fontsize=8, frameon=False)


def _draw_learning_rate(axes: Axes, folds: dict[str, pd.DataFrame]) -> None:
    axes.set_title("learning rate at the end of the epoch", fontsize=10, loc="left")
    _curve(axes, folds, "learning_rate", "", "#000000")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))  # two digits write any tick
    axes.yaxis.set_major_formatter("{x:.1e}")


def _draw_maps(axes: Axes, folds: dict[str, pd.DataFrame], columns: set[str]) -> None:
    axes.set_title("attention maps (dashed: collapsed above)", fontsize=10, loc="left")
    for name, (label, color, threshold) in MAPS.items():
        if name not in columns:
            continue
        _curve(axes, folds, name, label, color)
        if threshold is not None:
            axes.axhline(threshold, color=color, linestyle="--", linewidth=1)
    axes.set_ylim(-0.03, 1.42)  # room for the legend above what a share can be
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)


def _draw_centers(axes: Axes, folds: dict[str, pd.DataFrame], columns: set[str]) -> None:
    axes.set_title("mean distance between the centres of the maps", fontsize=10, loc="left")
    if "center_distance" in columns:
        _curve(axes, folds, "center_distance", "", "#000000")
        axes.set_ylim(bottom=0)
    else:
        axes.text(0.5, 0.5, "no centres: trained without RIL", transform=axes.transAxes, ha="center", color="0.4")
        axes.set_yticks([])


def _mark_phases(axes: Axes, table: pd.DataFrame, *, named: bool) -> None:
    """Every other phase shaded; their names above the upper panels. Nothing where there is only one."""
    spans = table.groupby("phase", sort=False)["epoch"].agg(["min", "max"])
    for number, (name, first, last) in enumerate(spans.itertuples() if len(spans) > 1 else []):
        if number % 2 == 1:
            axes.axvspan(first - 0.5, last + 0.5, color="0.9", zorder=0, linewidth=0)
        if named:
            axes.set_title(axes.get_title(loc="left"), fontsize=10, loc="left", pad=18)
            middle = (first + last) / 2
            axes.annotate(
                name, (middle, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8, color="0.4"
            )
