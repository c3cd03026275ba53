"""Scored files as one HTML page: a table, and of each file its timeline, deciding frames and attention overlays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.figures.attention import RunMaps
from multiattn.figures.embedded_image import jpeg_tag
from multiattn.figures.evaluation_page import PAGE_STYLE, PageTable, table_html
from multiattn.figures.page import crop_figure, whole_page
from multiattn.figures.timeline import timeline_svg

MAP_SIDE = 132
STYLE = """
.timeline { width: 100%; max-width: 720px; height: auto; font: 11px system-ui, sans-serif; }
.timeline text { fill: var(--faint); }
.timeline .grid { stroke: var(--line); stroke-width: 1; }
.timeline .whole { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 5 4; }
.legend { font-size: 12px; color: var(--faint); margin: 0 0 0.5rem; }
.legend span { margin-right: 1.2rem; }
.verdict { font-size: 1.05rem; margin: 0.2rem 0 0.6rem; }
.maps { display: flex; flex-wrap: wrap; gap: 4px; margin: 0.3rem 0 0.6rem; }
.maps img { max-width: 132px; max-height: 132px; }
"""


@dataclass(frozen=True)
class FileSection:
    """What the page says of one file."""

    file: str
    probability: float
    """NaN without a face."""
    status: str
    reason: str
    frames: int
    crops: pd.DataFrame
    """track, frame_index, seconds, probability of every crop; may be empty."""
    deciding: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Those crops that are shown, with `crop`, the path below the faces folder; falling probability."""
    map_rows: tuple[int, ...] = ()
    """Rows of the page's `maps` that are of this file."""


def score_page(
    title: str, sections: Sequence[FileSection], faces: Path, notes: Sequence[str], maps: RunMaps | None
) -> str:
    """The page's HTML; nothing in it is loaded from elsewhere.

    Args:
        faces: the faces folder, whose crops are read while the page is made.
        notes: how it was judged, one line each.
        maps: attention over some crops; None where no model has any.
    """
    table = pd.DataFrame(
        [
            {
                "file": section.file,
                "P(fake)": _probability(section.probability),
                "faces": str(section.crops["track"].nunique()),
                "frames": str(section.frames),
                "status": section.status,
                "reason": section.reason,
            }
            for section in sections
        ]
    )
    parts = [table_html(PageTable("Files", table, tuple(notes)))]
    parts += [_section(section, faces, maps) for section in sections]
    return whole_page(title, "\n".join(parts) + "\n", style=PAGE_STYLE + STYLE)


def _probability(value: float) -> str:
    return f"{value:.4f}" if np.isfinite(value) else "none"


def _section(section: FileSection, faces: Path, maps: RunMaps | None) -> str:
    head = f"<h2>{escape(section.file)}</h2>"
    if section.crops.empty:
        words = {"no_face": "No face was found", "unreadable": "It could not be read"}.get(section.status, "No crop")
        reason = f": {section.reason}" if section.reason else ""
        return f'{head}\n<p class="verdict">{escape(words + reason)}. Nothing was judged.</p>'
    crops, tracks = section.crops, section.crops["track"].nunique()
    verdict = f"P(fake) {section.probability:.4f}, from {len(crops)} crops of {tracks} face track{'s' * (tracks > 1)}"
    parts = [head, f'<p class="verdict">{escape(verdict)}</p>']
    if section.reason:
        parts.append(f'<p class="faint">{escape(section.reason)}</p>')
    if section.frames > 1:
        alt = f"P(fake) of {section.file} over time, a line a face track"
        parts.append(timeline_svg(crops, section.probability, alt))
    parts.append(_deciding(section, faces))
    if maps is not None and section.map_rows:
        parts.append(_attention(section, maps))
    return "\n".join(parts)


def _deciding(section: FileSection, faces: Path) -> str:
    thumbnails = "".join(
        crop_figure(
            faces / row.crop,
            f"{row.seconds:.2f} s t{row.track} · {row.probability:.2f}",
            f"Track {row.track} at {row.seconds:.2f} s, P(fake) {row.probability:.2f}",
        )
        for row in section.deciding.itertuples()
    )
    every = len(section.deciding) == len(section.crops)
    what = "All crops, the most fake first" if every else "The frames that decided: most fake, then most real"
    return f'<h3>{what}</h3>\n<div class="strip">{thumbnails}</div>'


def _attention(section: FileSection, maps: RunMaps) -> str:
    lines = []
    for row in section.map_rows:
        probability = maps.probabilities[row]
        alt = f"face of {section.file}, P(fake) {probability:.2f} by {maps.label}"
        pictures = [jpeg_tag(maps.crops[row], f"The {alt}", longest=MAP_SIDE)]
        pictures += [
            jpeg_tag(picture, f"Attention map {number} over the {alt}", longest=MAP_SIDE)
            for number, picture in enumerate(maps.pictures(row, "run"), start=1)
        ]
        lines.append(
            f"<small>P(fake) {probability:.2f} by {escape(maps.label)}</small>"
            f'<div class="maps">{"".join(pictures)}</div>'
        )
    return (
        f"<h3>Attention of {escape(maps.label)}</h3>\n"
        '<p class="faint">The crop, and each attention map in colour over it; one scale for the whole page.</p>\n'
        + "\n".join(lines)
    )
