"""A test as one HTML page: tables, reliability, ROC and histogram of each data set, and the worst videos with crops."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multiattn.figures.class_histogram import draw_class_histogram
from multiattn.figures.embedded_image import png_tag
from multiattn.figures.page import crop_figure, drawing, figures_table, whole_page
from multiattn.figures.reliability import draw_reliability
from multiattn.figures.roc import draw_roc

LABELS = {1: "fake", 0: "real"}
PAGE_STYLE = """
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem; border-top: 2px solid var(--line); padding-top: 0.9rem; }
h3 { font-size: 0.98rem; margin: 1.2rem 0 0.3rem; }
h4 { font-size: 0.92rem; margin: 0; }
ul.notes { margin: 0.4rem 0 0; padding-left: 1.1rem; color: var(--faint); font-size: 13px; }
ul.warnings { padding-left: 1.1rem; }
"""


@dataclass(frozen=True)
class PageTable:
    """A table of finished words."""

    title: str
    rows: pd.DataFrame
    """Text in every cell; the first column names the row."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetSection:
    """What the page says of one data set."""

    name: str
    tables: Sequence[PageTable]
    videos: pd.DataFrame
    """label and probability of every video."""
    frames: pd.DataFrame
    """label and probability of every crop; may be empty."""
    worst: pd.DataFrame
    """Columns video_id, path, label, method, compression, status, message, probability, loss; the worst first."""
    crops: dict[str, pd.DataFrame]
    """video_id -> folder, crop, frame_index, track, probability of the crops shown; absent where there are none."""


def evaluation_page(
    title: str, notes: Sequence[str], summary: PageTable, sections: Sequence[DatasetSection], *, warnings: Sequence[str]
) -> str:
    """The page's HTML; nothing in it is loaded from elsewhere.

    Args:
        notes: how it was measured, one line each.
        warnings: what a reader must know before the figures.
    """
    parts = [_list(warnings, "warnings") if warnings else "", _list(notes, "notes"), table_html(summary)]
    parts += [_section(section) for section in sections]
    return whole_page(title, "\n".join(part for part in parts if part) + "\n", style=PAGE_STYLE)


def table_html(table: PageTable) -> str:
    """Heading, table and notes; words in place of a table without rows."""
    if table.rows.empty:
        return f"<h3>{escape(table.title)}</h3>\n<p>None.</p>"
    return (
        f"<h3>{escape(table.title)}</h3>\n{figures_table(map(str, table.rows), table.rows.astype(str).to_numpy())}"
        + (_list(table.notes, "notes") if table.notes else "")
    )


def panels(section: DatasetSection) -> Figure:
    """Reliability, ROC and histogram side by side."""
    figure = Figure(figsize=(12.6, 3.9), layout="constrained", dpi=110, facecolor="white")
    reliability, roc, histogram = figure.subplots(1, 3)
    labels, probabilities = (section.videos[name].to_numpy() for name in ("label", "probability"))
    draw_reliability(reliability, labels, probabilities)
    frames = (section.frames["label"].to_numpy(), section.frames["probability"].to_numpy(dtype=np.float64))
    draw_roc(roc, {"videos": (labels, probabilities), "frames": frames})
    draw_class_histogram(histogram, labels, probabilities)
    for axes in (reliability, roc, histogram):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _section(section: DatasetSection) -> str:
    tables = "\n".join(map(table_html, section.tables))
    alt = f"{section.name}: reliability diagram, ROC curves, and histogram of P(fake) by class"
    articles = "\n".join(_article(video, section.crops.get(video.video_id)) for video in section.worst.itertuples())
    return (
        f"<h2>{escape(section.name)}</h2>\n{tables}\n"
        f"{drawing(png_tag(panels(section), alt))}\n"
        f"<h3>The {len(section.worst)} videos of the highest loss</h3>\n"
        f'<p class="faint">Under each crop: frame, track where there are several, and P(fake).</p>\n{articles}'
    )


def _article(video, crops: pd.DataFrame | None) -> str:
    kind = " ".join(filter(None, (LABELS[video.label], video.method, video.compression)))
    about = f"{kind}, P(fake) {video.probability:.3f}, loss {video.loss:.3f}, {video.status}"
    about += f", {video.message}" if isinstance(video.message, str) and video.message else ""
    strip = '<p class="faint">No crop was judged; the answer is the prior.</p>'
    if crops is not None and len(crops):
        several = crops["track"].nunique() > 1
        strip = f'<div class="strip">{"".join(_thumbnail(row, several) for row in crops.itertuples())}</div>'
    where = f"<h4>{escape(video.video_id)}</h4><small>{escape(video.path)}: {escape(about)}</small>"
    return f"<article>\n{where}\n{strip}</article>"


def _thumbnail(row, several: bool) -> str:
    track = f" t{row.track}" if several else ""
    return crop_figure(
        Path(row.folder) / row.crop,
        f"{row.frame_index}{track} · {row.probability:.2f}",
        f"Crop {row.crop}, P(fake) {row.probability:.2f}",
    )


def _list(lines: Sequence[str], kind: str) -> str:
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
