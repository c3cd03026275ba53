"""P(fake) of videos, real and fake apart.

How often what was called fake with a probability was fake: the reliability diagram (Murphy and Winkler 1977).

ROC curves of videos and of single frames.

A test as one HTML page: tables, reliability, ROC and histogram of each data set, and the worst videos with crops.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import norm

from multiattn.figures.curves import BLUE, ORANGE
from multiattn.figures.page import crop_figure, drawing, figures_table, png_tag, whole_page
from multiattn.scoring.metrics import reliability, roc_points

HISTOGRAM_BINS = 20


def draw_class_histogram(axes: Axes, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Numbers of real videos upwards and of fake ones downwards, so that neither hides the other.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) P(fake).
    """
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    heights = {label: np.histogram(probabilities[labels == label], edges)[0] for label in (0, 1)}
    axes.bar(
        edges[:-1], heights[0], width=1 / HISTOGRAM_BINS, align="edge", color=BLUE, label=f"real ({sum(heights[0])})"
    )
    axes.bar(
        edges[:-1], -heights[1], width=1 / HISTOGRAM_BINS, align="edge", color=ORANGE, label=f"fake ({sum(heights[1])})"
    )
    axes.axhline(0, color="0.3", linewidth=0.8)
    most = max(1, *heights[0], *heights[1])
    axes.set(xlim=(0, 1), ylim=(-1.3 * most, 1.3 * most), xlabel="P(fake)", ylabel="videos")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title("real (up) and fake (down)", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=2)


RELIABILITY_BINS = 10
LEVEL = 0.95


def draw_reliability(axes: Axes, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Share of fakes over mean P(fake), a point a bin with its Wilson interval and number of videos.

    Args:
        labels: (N,) of 0 and 1, N >= 1.
        probabilities: (N,) P(fake).
    """
    means, fakes, counts = reliability(labels, probabilities, bins=RELIABILITY_BINS)
    means, fakes, counts = means[counts > 0], fakes[counts > 0], counts[counts > 0]
    low, high = wilson_interval(fakes, counts)
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.vlines(means, low, high, color=BLUE, linewidth=1.2, alpha=0.6)
    axes.plot(means, fakes, "o-", color=BLUE, markersize=4, linewidth=1)
    for x, y, count in zip(means, fakes, counts, strict=True):
        offset = (4, 6 if y < 0.5 else -11)
        axes.annotate(str(count), (x, y), xytext=offset, textcoords="offset points", fontsize=7, color="0.35")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.05, 1.05), xlabel="mean P(fake)", ylabel="share of fakes")
    axes.set_title("reliability (with numbers of videos)", fontsize=10, loc="left")


def wilson_interval(shares: np.ndarray, counts: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The interval of a share of `counts` draws, (B,) each; it stays in [0, 1], with few draws too (Wilson 1927).

    (p + z²/2n ± z sqrt(p (1 - p) / n + z² / 4n²)) / (1 + z²/n), z the normal quantile of the level.
    """
    z = norm.ppf((1 + level) / 2)
    scale = 1 + z**2 / counts
    middle = (shares + z**2 / (2 * counts)) / scale
    half = z * np.sqrt(shares * (1 - shares) / counts + z**2 / (4 * counts**2)) / scale
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


COLORS = (BLUE, ORANGE)


def draw_roc(axes: Axes, curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A step for each of at most two sets of answers; words instead where none has both classes.

    Args:
        curves: name -> labels (N,) of 0 and 1, and P(fake) (N,); N may be 0.
    """
    drawn = False
    for (name, (labels, probabilities)), color in zip(curves.items(), COLORS, strict=False):
        if len(np.unique(labels)) < 2:
            continue
        false_positives, true_positives = roc_points(labels, probabilities)
        area = np.trapezoid(true_positives, false_positives)
        axes.plot(false_positives, true_positives, color=color, linewidth=1.6, label=f"{name}, AUC {area:.4f}")
        drawn = True
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="reals called fake", ylabel="fakes called fake")
    axes.set_title("ROC", fontsize=10, loc="left")
    if drawn:
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    else:
        axes.text(0.5, 0.62, "no ROC: one class only", ha="center", color="0.35", fontsize=9)


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
