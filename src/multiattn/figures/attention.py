"""Attention maps over faces: Figures 1 and 4-6 of arXiv:2103.02406, for one run or several side by side.

A row is a face; its columns are the crop and, for every run, the run's M maps over the crop and P(fake). Colours are
linear in the attention. One scale serves all pictures of a run, from 0 to the 99th percentile of its attention there (a
single hot cell would leave all else dark), so a weak or dead map appears weak or dead; runs have scales of their own,
since nothing ties the scale of one network's maps to another's. With `scale="map"` every picture has its own maximum,
as the normalised pooling, which divides a map's scale out, sees it.

Drawn as a PNG, and as an HTML page with a table of statistics.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps

from multiattn.config.choices import MapScale
from multiattn.figures.page import InchPage, escape, figures_table, jpeg_tag, whole_page, write_png
from multiattn.inference.attention_maps import FaceMaps

COLORS = colormaps["inferno"]
"""Perceptually uniform, rising in lightness: legible without colour and to the colour-blind."""
COLOR_WEIGHTS = (0.3, 0.85)
"""Share of the colour where there is no attention and where it is largest; the rest is the face in grey, so that no hue
of the skin mixes with the scale."""
BRIGHT_QUANTILE = 0.99
"""Quantile of the attention in a run's pictures that takes the brightest colour with the scale `run`."""
SCALE_WORDS = {
    "run": f"1 is the {100 * BRIGHT_QUANTILE:.0f}th percentile of the run's pictures",
    "map": "1 is the largest value of each picture",
}
DPI = 200
SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")

# All in inches.
LABEL, CELL, GAP, GROUP_GAP, PROBABILITY, MARGIN = 1.35, 1.2, 0.05, 0.22, 0.52, 0.12
HEADER, FOOTER, LINE, LEGEND = 0.52, 0.55, 0.165, 4.7


@dataclass(frozen=True)
class Row:
    """The words of a row: manipulation type, video_id, frame."""

    title: str
    video: str
    frame: int


@dataclass(frozen=True)
class RunMaps:
    """Attention maps of one run over the face of every row."""

    label: str
    faces: list[FaceMaps]
    statistics: dict[str, float]

    @property
    def num_maps(self) -> int:
        return len(self.faces[0].maps)

    def limits(self, row: int, scale: MapScale) -> np.ndarray:
        """(M,) the attention that takes the brightest colour in each picture of a row; above 0."""
        highest = self.faces[row].maps.max(axis=(1, 2))
        if scale == "run":
            everywhere = np.concatenate([face.maps.ravel() for face in self.faces])
            bright = np.quantile(everywhere, BRIGHT_QUANTILE)
            highest = np.full(self.num_maps, bright if bright > 0 else everywhere.max())
        return np.where(highest > 0, highest, 1.0)

    def pictures(self, row: int, scale: MapScale) -> list[np.ndarray]:
        """The overlays of a row, M of them, (H, W, 3) uint8 RGB."""
        face, limits = self.faces[row], self.limits(row, scale)
        return [overlay(face.crop, one, limit) for one, limit in zip(face.maps, limits, strict=True)]

    def describe(self) -> str:
        """The statistics in one line; empty without any."""
        known = [name for name in STATISTICS if name in self.statistics]
        return ", ".join(f"{STATISTICS[name]} {self.statistics[name]:.2f}" for name in known)


def overlay(crop: np.ndarray, attention: np.ndarray, limit: float) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a map (H, W), 0 or more, in colour over the face (H, W, 3) uint8 RGB in grey; from an
    attention of `limit` on the colour is the brightest."""
    grey = crop.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255  # luma of BT.601
    return blend(grey, np.clip(attention / limit, 0, 1))


def blend(grey: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Grey (...) and attention level (...), both in [0, 1] -> uint8 RGB (..., 3)."""
    weight = np.interp(level, (0, 1), COLOR_WEIGHTS)[..., None]
    return np.round(255 * ((1 - weight) * grey[..., None] + weight * COLORS(level)[..., :3])).astype(np.uint8)


def color_bar(steps: int = 256) -> np.ndarray:
    """(steps, 3) uint8: the colours from 0 to the largest attention over middle grey, as in the pictures."""
    return blend(np.full(steps, 0.5), np.linspace(0, 1, steps))


def draw_attention(
    rows: list[Row], runs: list[RunMaps], path: Path, *, note: str = "", scale: MapScale = "run"
) -> None:
    """Write a PNG; `note` says which crops the statistics are over.

    Raises:
        ValueError: no rows or no runs.
    """
    if not rows or not runs:
        raise ValueError(f"expected at least one face and one run to draw, found {len(rows)} and {len(runs)}.")
    wrapped = [textwrap.wrap(run.describe(), int(_group_width(run) * 16)) for run in runs]
    num_lines = max(map(len, wrapped)) + bool(note)
    groups = sum(GROUP_GAP + _group_width(run) for run in runs)
    width = LABEL + CELL + max(groups, LEGEND) + 2 * MARGIN
    height = HEADER + len(rows) * (CELL + GAP) + LINE * num_lines + FOOTER + 2 * MARGIN
    page = InchPage(width, height, dpi=DPI)
    top, left = MARGIN + HEADER, MARGIN + LABEL
    _draw_faces(page, rows, runs[0].faces, left, top)
    left += CELL + GROUP_GAP
    below = top + len(rows) * (CELL + GAP) + 0.06
    _draw_bar(page, left, below + LINE * num_lines + 0.08, scale)
    page.text(left, below + LINE * (num_lines - 1), note, va="top", size=7.5, color="0.35")
    for run, lines in zip(runs, wrapped, strict=True):
        _draw_run(page, run, left, top, scale)
        for number, line in enumerate(lines):
            page.text(left, below + LINE * number, line, va="top", size=7.5)
        left += _group_width(run) + GROUP_GAP
    write_png(page.figure, path)


def _draw_faces(page: InchPage, rows: list[Row], faces: list[FaceMaps], left: float, top: float) -> None:
    page.text(left + CELL / 2, top - 0.08, "face", ha="center", va="bottom")
    for number, (row, face) in enumerate(zip(rows, faces, strict=True)):
        y = top + number * (CELL + GAP)
        page.text(MARGIN, y + CELL / 2 - 0.05, textwrap.fill(row.title, 14), va="bottom", weight="bold")
        page.text(
            MARGIN, y + CELL / 2 + 0.02, f"{_shorten(row.video)}\nframe {row.frame}", va="top", size=7, color="0.35"
        )
        page.image(left, y, CELL, face.crop, interpolation="lanczos")


def _draw_run(page: InchPage, run: RunMaps, left: float, top: float, scale: MapScale) -> None:
    maps_width = run.num_maps * (CELL + GAP) - GAP
    label = textwrap.shorten(run.label, int(_group_width(run) * 13), placeholder="…")
    page.text(left, top - 0.34, label, va="bottom", weight="bold")
    line = page.axes(left, top - 0.30, _group_width(run), 0.01)
    line.axhline(0.5, color="0.5", linewidth=0.8)
    line.set_axis_off()
    for k in range(run.num_maps):
        page.text(
            left + k * (CELL + GAP) + CELL / 2, top - 0.08, f"A{k + 1}".translate(SUBSCRIPTS), ha="center", va="bottom"
        )
    right = left + maps_width + GAP + PROBABILITY / 2
    page.text(right, top - 0.08, "P(fake)", ha="center", va="bottom", size=8)
    for number, face in enumerate(run.faces):
        y = top + number * (CELL + GAP)
        for k, picture in enumerate(run.pictures(number, scale)):
            page.image(left + k * (CELL + GAP), y, CELL, picture, interpolation="lanczos")
        page.text(right, y + CELL / 2, f"{face.probability:.2f}", ha="center", va="center")


def _draw_bar(page: InchPage, x: float, y: float, scale: MapScale) -> None:
    axes = page.axes(x, y, 1.5, 0.12)
    axes.imshow(color_bar()[None], aspect="auto", extent=(0, 1, 0, 1))
    axes.set_yticks([])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.tick_params(labelsize=7, length=2, pad=2)
    page.text(x + 1.6, y + 0.06, f"attention; {SCALE_WORDS[scale]}", va="center", size=7.5)


def _group_width(run: RunMaps) -> float:
    return run.num_maps * (CELL + GAP) + PROBABILITY


def _shorten(video: str) -> str:
    """The end of a video_id; a long one loses its middle."""
    name = video.rsplit("/", 1)[-1]
    return name if len(name) <= 20 else f"{name[:9]}…{name[-9:]}"


PAGE_QUALITY = 92
STYLE = """
.grid th, .grid td { padding: 3px; text-align: center; vertical-align: middle; font-weight: normal; }
.grid thead th { padding: 4px 6px; }
.grid .run { font-weight: 600; border-bottom: 1px solid var(--line); }
.grid .first { padding-left: 1.1rem; }
.grid .row { text-align: left; padding-right: 1rem; min-width: 8rem; max-width: 13rem; }
.grid .row b { display: block; }
.grid img { width: 150px; height: 150px; max-width: none; }
.number { font-variant-numeric: tabular-nums; padding: 0 0.8rem; }
.bar { width: 300px; height: 14px; margin-top: 0.8rem; border: 1px solid var(--line); }
.ticks { width: 302px; display: flex; justify-content: space-between; font-size: 12px; }
"""
STATISTICS = {
    "map_cosine": "mean cosine between maps",
    "map_strongest_share": "share of faces with the same strongest map",
    "map_entropy": "entropy (0: one cell, 1: everywhere)",
    "map_dead_share": "share of dead maps",
}


def attention_page(title: str, rows: list[Row], runs: list[RunMaps], *, note: str = "", scale: MapScale = "run") -> str:
    """HTML of the grid that `draw_attention` draws, with a table of the statistics."""
    body = "\n".join(_table_row(number, row, runs, scale) for number, row in enumerate(rows))
    return whole_page(
        title,
        f"""<div class="scroll"><table class="grid">
<thead>
{_head(runs)}
</thead>
<tbody>
{body}
</tbody>
</table></div>
{_bar(scale)}
{_statistics(runs)}
<p class="faint">{escape(note)}</p>
""",
        style=STYLE,
    )


def _head(runs: list[RunMaps]) -> str:
    groups = "".join(
        f'<th class="run first" scope="colgroup" colspan="{run.num_maps + 1}">{escape(run.label)}</th>' for run in runs
    )
    columns = []
    for run in runs:
        maps = [f"<i>A</i><sub>{k + 1}</sub>" for k in range(run.num_maps)]
        columns += [f'<th class="first" scope="col">{maps[0]}</th>']
        columns += [f'<th scope="col">{name}</th>' for name in [*maps[1:], "P(fake)"]]
    return f'<tr><th></th><th></th>{groups}</tr>\n<tr><th></th><th scope="col">face</th>{"".join(columns)}</tr>'


def _table_row(number: int, row: Row, runs: list[RunMaps], scale: MapScale) -> str:
    where = f"{row.title}, {row.video}, frame {row.frame}"
    cells = [
        f'<th class="row" scope="row"><b>{escape(row.title)}</b>'
        f"<small>{escape(row.video)}<br>frame {row.frame}</small></th>",
        f"<td>{jpeg_tag(runs[0].faces[number].crop, f'Face: {where}', quality=PAGE_QUALITY)}</td>",
    ]
    for run in runs:
        for k, picture in enumerate(run.pictures(number, scale)):
            alt = f"Attention map {k + 1} of {run.label} over the face: {where}"
            cells.append(f"<td{' class=first' if k == 0 else ''}>{jpeg_tag(picture, alt, quality=PAGE_QUALITY)}</td>")
        cells.append(f'<td class="number">{run.faces[number].probability:.3f}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _bar(scale: MapScale) -> str:
    colors = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in color_bar(17))
    return (
        f'<div role="img" aria-label="Colour scale from dark to bright: {SCALE_WORDS[scale]}">'
        f'<div class="bar" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="ticks"><span>0</span><span>0.5</span><span>1</span></div></div>'
        f'<p class="faint">Attention; {SCALE_WORDS[scale]}. The colour lies over the face in grey.</p>'
    )


def _statistics(runs: list[RunMaps]) -> str:
    names = [name for name in STATISTICS if any(name in run.statistics for run in runs)]
    rows = [
        [STATISTICS[name], *(f"{run.statistics[name]:.3f}" if name in run.statistics else "none" for run in runs)]
        for name in names
    ]
    return figures_table(["", *(run.label for run in runs)], rows)
