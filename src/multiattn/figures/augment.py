"""Contact sheets of augmentation: what the network is shown of a few crops, draw by draw."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from multiattn.runtime.files import atomic_path

DPI = 150
CELL, GAP, LABEL, MARGIN = 1.5, 0.04, 1.15, 0.12
"""In inches: at 150 dots an inch a cell shows 225 pixels."""
LINE, TITLE, HEADS = 0.16, 0.34, 0.24
DIFFERENCE_CELL = 0.75
DIFFERENCE_GAIN = 4
"""A difference of a quarter of the grey levels is white."""
MARKS = "#00d0ff"


@dataclass(frozen=True)
class SheetRow:
    """One crop and its draws."""

    kind: str
    video: str
    frame: int
    crop: np.ndarray
    """(H, W, 3) uint8 RGB."""
    draws: list[np.ndarray]
    """(H, W, 3) uint8 RGB each."""
    differences: list[np.ndarray]
    """(H, W) float, one a draw, shown below them; empty shows none."""
    landmarks: np.ndarray | None = None
    """(5, 2) pixels, marked in the first column."""
    outline: np.ndarray | None = None
    """(K, 2) pixels, marked there too."""


def draw_augmentations(rows: list[SheetRow], title: str, path: Path, *, note: str = "") -> None:
    """Write `augmentations_figure` as a PNG."""
    figure = augmentations_figure(rows, title, note=note)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def augmentations_figure(rows: list[SheetRow], title: str, *, note: str = "") -> Figure:
    """A row for each crop: the original, then its draws; below them what each differs in, where that is told.

    Args:
        note: a paragraph under the title.

    Raises:
        ValueError: no rows, or rows with different numbers of draws.
    """
    counts = {len(row.draws) for row in rows}
    if len(counts) != 1:
        raise ValueError(f"expected rows with one number of draws, found {sorted(counts) or 'no rows'}.")
    columns = 1 + counts.pop()
    width = 2 * MARGIN + LABEL + columns * (CELL + GAP)
    words = textwrap.wrap(" ".join(note.split()), round(17 * (width - 2 * MARGIN)))
    top = MARGIN + TITLE + LINE * len(words) + HEADS
    heights = [CELL + GAP + (DIFFERENCE_CELL + GAP if row.differences else 0) for row in rows]
    height = top + sum(heights) + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    page = _Page(figure, width, height)
    page.text(MARGIN, MARGIN, title, size=12, weight="bold", va="top")
    for number, line in enumerate(words):
        page.text(MARGIN, MARGIN + TITLE + LINE * number, line, size=8, va="top", color="0.3")
    for column in range(columns):
        head = "original" if column == 0 else str(column)
        page.text(page.column(column) + CELL / 2, top - 0.06, head, size=9, ha="center", va="bottom")
    for row, row_height in zip(rows, heights, strict=True):
        _draw_row(page, row, top)
        top += row_height
    return figure


class _Page:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, figure: Figure, width: float, height: float) -> None:
        self.figure, self.width, self.height = figure, width, height

    def column(self, number: int) -> float:
        return MARGIN + LABEL + number * (CELL + GAP)

    def text(self, x: float, y: float, words: str, **style) -> None:
        self.figure.text(x / self.width, 1 - y / self.height, words, **style)

    def image(self, x: float, y: float, side: float, picture: np.ndarray, **style) -> Axes:
        place = (x / self.width, 1 - (y + side) / self.height, side / self.width, side / self.height)
        axes = self.figure.add_axes(place)
        axes.imshow(picture, interpolation="antialiased", **style)
        axes.set_axis_off()
        return axes


def _draw_row(page: _Page, row: SheetRow, top: float) -> None:
    name = row.video.rsplit("/", 1)[-1]
    page.text(MARGIN, top + CELL / 2 - 0.04, textwrap.shorten(row.kind, 16, placeholder="…"), weight="bold", size=9)
    page.text(MARGIN, top + CELL / 2 + 0.04, f"{name[-18:]}\nframe {row.frame}", size=7, va="top", color="0.35")
    axes = page.image(page.column(0), top, CELL, row.crop)
    if row.landmarks is not None:
        axes.plot(*row.landmarks.T, "o", markersize=2.2, color=MARKS, markeredgewidth=0)
    if row.outline is not None:
        axes.plot(*np.vstack([row.outline, row.outline[:1]]).T, color=MARKS, linewidth=0.8)
        axes.set(xlim=(-0.5, row.crop.shape[1] - 0.5), ylim=(row.crop.shape[0] - 0.5, -0.5))
    for column, picture in enumerate(row.draws, start=1):
        page.image(page.column(column), top, CELL, picture)
    for column, difference in enumerate(row.differences, start=1):
        x = page.column(column) + (CELL - DIFFERENCE_CELL) / 2
        scaled = np.clip(DIFFERENCE_GAIN * difference / 255, 0, 1)
        page.image(x, top + CELL + GAP, DIFFERENCE_CELL, scaled, cmap="gray", vmin=0, vmax=1)
    if row.differences:
        words = f"difference\nx {DIFFERENCE_GAIN}"
        page.text(page.column(0) + CELL, top + CELL + GAP + DIFFERENCE_CELL / 2, words, size=7, ha="right", va="center")
