"""Training curves from epochs.csv: losses, validation, learning rate and the statistics of the attention maps.

One run is drawn with a colour for each quantity, several with a colour for each run and the main quantity of each
panel. Folds are thin lines, their mean is thick.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from multiattn.figures.page import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, YELLOW, new_figure
from multiattn.model.diagnostics import COLLAPSED_COSINE, COLLAPSED_SHARE, DEAD_SHARE
from multiattn.runtime.layout import EPOCHS_FILE, IMPORT_FILE, fold_folder, folds_below, is_run_folder
from multiattn.runtime.table_files import read_history
from multiattn.runtime.text_tables import counted
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS
from multiattn.training.engine.validation import PREFIXES

REQUIRED = ("epoch", "phase", "loss", "learning_rate", "validation_log_loss", "validation_auc")
DONE = "epochs_done"
RUN_COLORS = (BLUE, ORANGE, GREEN, PINK, BLACK, YELLOW, SKY)

LOSSES = {
    "loss": ("sum", BLACK),
    "cross_entropy": ("cross entropy", BLUE),
    "auxiliary": ("auxiliary, unweighted", ORANGE),
    "cross_entropy_agda": ("cross entropy, AGDA copy", GREEN),
    "match": ("match, unweighted", PINK),
}
"""Terms of the loss: name and colour."""
CANDIDATES = {
    f"{PREFIXES['last']}log_loss": ("last weights", BLUE, "-"),
    f"{PREFIXES['ema']}log_loss": ("moving average", GREEN, "--"),
    f"{PREFIXES['average']}log_loss": ("average of the best", PINK, (0, (1.5, 1))),
}
"""Validation log loss of the weights that were validated: name, colour, line."""
BALANCED = {"validation_balanced_log_loss": ("last weights, balanced", SKY, (0, (4, 1, 1, 1)))}
"""The same, balanced over the classes, in the same panel."""
SCORES = {"validation_auc": ("AUC", BLUE, "-"), "validation_accuracy": ("accuracy", GREEN, "--")}
MAPS = {
    "map_cosine": ("mean cosine between maps", BLUE, COLLAPSED_COSINE),
    "map_strongest_share": ("share of the strongest map", ORANGE, COLLAPSED_SHARE),
    "map_dead_share": ("share of dead maps", PINK, DEAD_SHARE),
    "map_entropy": ("entropy", GREEN, None),
}
"""Attention statistics: name, colour, and the value above which they count as collapsed."""

Folds = dict[str, pd.DataFrame]
"""A fold's name -> its `read_epochs`; folds may have gone through different numbers of epochs."""


def read_runs(folders: tuple[Path, ...]) -> dict[str, Folds]:
    """The tables of several runs, each by its experiment's name; runs of one name are named by their paths.

    Raises:
        FileNotFoundError: a run that has not been validated yet.
        ValueError: see `read_epochs`.
    """
    runs: dict[str, Folds] = {}
    for folder in folders:
        single = (folder / EPOCHS_FILE).is_file() or is_run_folder(folder)
        folds = [folder] if single else folds_below(folder, EPOCHS_FILE) or [fold_folder(folder, 0)]
        tables = {path.name: read_epochs(path) for path in folds}
        name = folder.resolve().parent.name if single else folder.resolve().name
        runs[name if name not in runs else str(folder)] = tables
    return runs


def read_epochs(folder: Path) -> pd.DataFrame:
    """As `read_history`, of a fold's folder, each place once and in order.

    Raises:
        FileNotFoundError: no validation yet.
        ValueError: as `read_history`.
    """
    path = Path(folder) / EPOCHS_FILE
    if not path.is_file():
        advice = "Train with `multiattn train`."
        if (path.parent / IMPORT_FILE).is_file():
            advice = "An imported checkpoint has no history: leave it out of --runs."
        elif is_run_folder(path.parent):
            advice = "It was not validated yet: the same `multiattn train` command goes on with it."
        raise FileNotFoundError(f"{path}: no finished epoch there. {advice}")
    table = read_history(path, REQUIRED)
    return table.drop_duplicates(DONE, keep="last").sort_values(DONE, ignore_index=True)


def curves_figure(runs: dict[str, Folds]) -> Figure:
    """A thin line for each fold of each run, by the run's name, and a thick one for the mean of several.

    Raises:
        ValueError: no runs, or one without folds.
    """
    if not runs or not all(runs.values()):
        raise ValueError("expected at least one run with a validated fold, found none.")
    tables = [table for folds in runs.values() for table in folds.values()]
    columns = {name for table in tables for name in table.columns[table.notna().any()]}
    with_maps = "map_entropy" in columns
    figure = new_figure(13 if with_maps else 9, 6.4, dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(2, 3 if with_maps else 2, sharex=True).flat)
    figure.suptitle(_title(runs), fontsize=12)
    sheet = _Panels(runs, columns)
    drawings = (sheet.losses, sheet.log_loss, sheet.scores, sheet.learning_rate, sheet.maps, sheet.centers)
    for draw, axes in zip(drawings, panels, strict=False):  # maps and centres only where there are maps
        draw(axes)
    longest = max(tables, key=lambda table: table[DONE].max())
    alike = all(_same_phases(table, longest) for table in tables)
    for number, axes in enumerate(panels):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0, 1.03 * longest[DONE].max())
        if alike:
            _mark_phases(axes, longest, named=number < len(panels) // 2)
        if number >= len(panels) // 2:
            axes.set_xlabel("epochs done")
    if len(runs) > 1:
        lines = [Line2D([], [], color=color, linewidth=2.5) for color in sheet.colors]
        figure.legend(lines, list(runs), loc="outside lower center", ncols=min(len(runs), 4), frameon=False, fontsize=9)
    return figure


def _title(runs: dict[str, Folds]) -> str:
    several = any(len(folds) > 1 for folds in runs.values())
    if len(runs) > 1:
        return counted(len(runs), "run") + (": means over their folds (thick), folds (thin)" if several else "")
    name, folds = next(iter(runs.items()))
    return f"{name}, {len(folds)} folds (thin) and their mean (thick)" if several else f"{name}, {next(iter(folds))}"


def _curve(
    axes: Axes, folds: Folds, column: str, label: str, color: str, line: str | tuple = "-", *, mean_only: bool = False
) -> None:
    """The folds' lines and their mean; a fold without the column is left out."""
    tables = [table.set_index(DONE)[column] for table in folds.values() if column in table]
    tables = [values for values in tables if values.notna().any()]
    if not tables:
        return
    for values in tables if len(tables) > 1 and not mean_only else []:
        axes.plot(values.index, values, color=color, alpha=0.35, linewidth=0.8, linestyle=line)
    mean = mean_over_folds(tables)
    style = {"linewidth": 1.3 if mean_only else 1.8, "linestyle": line, "color": color}
    marker = "o" if len(mean) <= 30 else None  # a validation on its own must be seen too
    axes.plot(mean.index, mean, marker=marker, markersize=2 if mean_only else 3, label=label or None, **style)


def mean_over_folds(tables: list[pd.Series]) -> pd.Series:
    """The mean of series over `epochs_done`, at the places of the longest of them.

    Folds of different sizes are validated at slightly different shares of an epoch, so each is interpolated linearly
    between its own places. It counts up to half of its usual distance before its first and after its last one, and
    not next to a value that is missing.
    """
    places = max(tables, key=lambda values: (len(values), values.index.max())).index.to_numpy(float)
    aligned = []
    for values in tables:
        own = values.index.to_numpy(float)
        near = 0.5 * (np.median(np.diff(own)) if len(own) > 1 else 1.0)
        known = values.notna().to_numpy()
        whole = np.interp(places, own[known], values.to_numpy(float)[known])
        nearest = np.abs(places[:, None] - own).argmin(axis=1)
        outside = (places < own[known][0] - near) | (places > own[known][-1] + near)
        missing = ~known[nearest] & (np.abs(own[nearest] - places) <= near)
        aligned.append(np.where(outside | missing, np.nan, whole))
    counts = np.sum(~np.isnan(aligned), axis=0)
    sums = np.nansum(aligned, axis=0)
    return pd.Series(np.divide(sums, counts, out=np.full(len(places), np.nan), where=counts > 0), index=places)


class _Panels:
    """The panels: of a single run a colour for each quantity, of several runs one for each run."""

    def __init__(self, runs: dict[str, Folds], columns: set[str]) -> None:
        self.runs, self.columns, self.alone = runs, columns, len(runs) == 1
        self.colors = [RUN_COLORS[number % len(RUN_COLORS)] for number in range(len(runs))]

    def losses(self, axes: Axes) -> None:
        axes.set_title("training loss and its terms" if self.alone else "training loss", fontsize=10, loc="left")
        if self.alone:
            self._draw(axes, {name: (label, color, "-") for name, (label, color) in LOSSES.items()})
            axes.legend(fontsize=8, frameon=False)
        else:
            self._draw(axes, {"loss": ("", BLACK, "-")})
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

    def log_loss(self, axes: Axes) -> None:
        axes.set_title("validation log loss (videos)", fontsize=10, loc="left")
        shown = {name: style for name, style in (CANDIDATES | BALANCED).items() if name in self.columns}
        if self.alone and len(CANDIDATES.keys() & shown) == 1:
            names = ("log loss", "balanced")
            shown = {name: (words, *style) for (name, (_, *style)), words in zip(shown.items(), names, strict=False)}
        self._draw(axes, shown)
        for folds, color in zip(self.runs.values(), [ORANGE] if self.alone else self.colors, strict=True):
            _mark_lowest(axes, folds, color, "lowest of a fold" if self.alone else None)
        if not self.alone:
            axes.scatter([], [], marker="*", s=60, color="0.3", label="lowest of a fold")
        axes.axhline(CONSTANT_LOG_LOSS, color="0.4", linestyle=":", linewidth=1.2, label="constant 0.5")
        tables = [table for folds in self.runs.values() for table in folds.values()]
        highest = max(table[name].max() for table in tables for name in shown if name in table)
        axes.set_ylim(0, 1.08 * np.nanmax([highest, CONSTANT_LOG_LOSS]))
        axes.legend(fontsize=8, frameon=False, handlelength=3)  # long enough to show dashes

    def scores(self, axes: Axes) -> None:
        axes.set_title("validation AUC and accuracy (videos)", fontsize=10, loc="left")
        scores = {name: (label, color, "-" if self.alone else line) for name, (label, color, line) in SCORES.items()}
        self._draw(axes, scores)
        axes.set_ylim(axes.get_ylim()[0] - 0.03, 1.03)
        axes.legend(fontsize=8, frameon=False)

    def learning_rate(self, axes: Axes) -> None:
        axes.set_title("learning rate", fontsize=10, loc="left")
        self._draw(axes, {"learning_rate": ("", BLACK, "-")})
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))  # two digits write any tick
        axes.yaxis.set_major_formatter("{x:.1e}")

    def maps(self, axes: Axes) -> None:
        if self.alone:
            axes.set_title("attention maps (dashed: collapsed above)", fontsize=10, loc="left")
            for name, (label, color, threshold) in MAPS.items():
                self._draw(axes, {name: (label, color, "-")})
                if name in self.columns and threshold is not None:
                    axes.axhline(threshold, color=color, linestyle="--", linewidth=1)
            axes.set_ylim(-0.03, 1.42)  # room for the legend above what a share can be
            axes.set_yticks(np.linspace(0, 1, 6))
            axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
            return
        name = "map_cosine" if "map_cosine" in self.columns else "map_entropy"
        label, color, threshold = MAPS[name]
        axes.set_title(f"attention maps: {label}", fontsize=10, loc="left")
        self._draw(axes, {name: ("", color, "-")})
        if threshold is not None:
            axes.axhline(threshold, color="0.4", linestyle=":", linewidth=1.2, label="collapsed above")
            axes.legend(fontsize=8, frameon=False)
        axes.set_ylim(-0.03, 1.03)

    def centers(self, axes: Axes) -> None:
        axes.set_title("mean distance between the centres of the maps", fontsize=10, loc="left")
        self._draw(axes, {"center_distance": ("", BLACK, "-")})
        if "center_distance" in self.columns:
            axes.set_ylim(bottom=0)
        else:
            axes.text(0.5, 0.5, "no centres: trained without RIL", transform=axes.transAxes, ha="center", color="0.4")
            axes.set_yticks([])

    def _draw(self, axes: Axes, quantities: dict[str, tuple[str, str, str | tuple]]) -> None:
        """Lines of quantities, column -> label, colour, line; of several runs the colour is the run's, and the legend
        names the quantities in grey."""
        for name, (label, color, line) in quantities.items():
            if name not in self.columns:
                continue
            if self.alone:
                _curve(axes, next(iter(self.runs.values())), name, label, color, line)
                continue
            for folds, own in zip(self.runs.values(), self.colors, strict=True):
                _curve(axes, folds, name, "", own, line, mean_only=line != "-")
            if label:
                axes.plot([], [], color="0.3", linestyle=line, label=label)


def _mark_lowest(axes: Axes, folds: Folds, color: str, label: str | None) -> None:
    """A star at each fold's lowest log loss of all weights validated."""
    places = []
    for table in folds.values():
        candidates = table[[name for name in CANDIDATES if name in table]].min(axis=1)
        if candidates.notna().any():
            places.append((table.loc[candidates.idxmin(), DONE], candidates.min()))
    if places:
        axes.scatter(*zip(*places, strict=True), marker="*", s=70, color=color, zorder=4, label=label)


def _phase_ends(table: pd.DataFrame) -> pd.Series:
    """Phase, in the order they were gone through -> `epochs_done` of its last validation."""
    return table.groupby("phase", sort=False)[DONE].max()


def _same_phases(table: pd.DataFrame, longest: pd.DataFrame) -> bool:
    """Return whether a table went through the first phases of the longest one, each as long but for its last, which it
    may not have ended."""
    own, other = _phase_ends(table), _phase_ends(longest)
    ended = own.iloc[:-1]
    names_alike = own.index.tolist() == other.index[: len(own)].tolist()
    return names_alike and np.allclose(ended, other.iloc[: len(ended)], atol=0.1)


def _mark_phases(axes: Axes, table: pd.DataFrame, *, named: bool) -> None:
    """Every other phase shaded, from the end of the one before it; their names above the upper panels. Nothing where
    there is only one."""
    ends = _phase_ends(table)
    starts = [0.0, *ends.iloc[:-1]]
    for number, (name, first, last) in enumerate(zip(ends.index, starts, ends, strict=True) if len(ends) > 1 else []):
        if number % 2 == 1:
            axes.axvspan(first, last, color="0.9", zorder=0, linewidth=0)
        if named:
            axes.set_title(axes.get_title(loc="left"), fontsize=10, loc="left", pad=18)
            middle = (first + last) / 2
            axes.annotate(
                name, (middle, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8, color="0.4"
            )
