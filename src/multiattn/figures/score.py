"""Scored files as one HTML page: a table, and of each file P(fake) over time, deciding frames and attention maps."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.evaluation.measures import TextTable
from multiattn.figures.attention import RunMaps
from multiattn.figures.page import SECTION_STYLE, crop_figure, escape, jpeg_tag, section_table, whole_page
from multiattn.inference.attention_maps import deciding_crops, extreme_crops, model_with_maps, predict_maps
from multiattn.inference.detector import DeepfakeDetector
from multiattn.inference.runs import group_by_recipe
from multiattn.inference.score_files import ScoredFiles, unbroken, usual_step
from multiattn.runtime.text_tables import counted
from multiattn.scoring.distances import OUTSIDE, Outside

WIDTH, HEIGHT = 720, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 12, 34
TRACK_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of Okabe and Ito; tracks beyond the sixth take them again, with another dash."""
DASHES = ("", "6 3", "2 3")
MAP_SIDE = 132
STYLE = """
.timeline { width: 100%; max-width: 720px; height: auto; font: 11px system-ui, sans-serif; }
.timeline text { fill: var(--faint); }
.timeline .grid { stroke: var(--line); stroke-width: 1; }
.timeline .whole { stroke: var(--ink); stroke-width: 1.2; stroke-dasharray: 5 4; }
@media (max-width: 600px) { .timeline { font-size: 16px; } }
.legend { font-size: 12px; color: var(--faint); margin: 0 0 0.5rem; }
.legend span { margin-right: 1.2rem; }
.verdict { font-size: 1.05rem; margin: 0.2rem 0 0.6rem; }
.maps { display: flex; flex-wrap: wrap; gap: 4px; margin: 0.3rem 0 0.6rem; }
.maps img { max-width: 132px; max-height: 132px; }
"""


def attention_of(scored: ScoredFiles, detector: DeepfakeDetector, faces: Path) -> RunMaps | None:
    """Maps over the `extreme_crops` of the first recipe, by its first model that has any; None where none has."""
    model = model_with_maps(next(iter(group_by_recipe(detector.models).values())))
    if model is None:
        return None
    how = {"device": detector.device, "network": detector.network_in_memory(model)}
    with_maps = predict_maps(model, faces, extreme_crops(scored.first_crops), **how)[0]
    return RunMaps(model.name, with_maps, {}) if with_maps else None


def report_page(
    scored: ScoredFiles, detector: DeepfakeDetector, faces: Path, notes: Sequence[str], maps: RunMaps | None
) -> str:
    """The page of `detector.score`, with the maps of `attention_of` and lines that stand before how it was scored."""
    names = ", ".join(sorted({model.name.split("/", 1)[0] for model in detector.models}))
    how = (
        f"{counted(len(detector.models), 'model')} of {names}; a crop's "
        "P(fake) is their mean, a file's that of the scoring rule."
    )
    return score_page(f"Scores by {names}", scored, faces, [*notes, how], maps)


def score_page(title: str, scored: ScoredFiles, faces: Path, notes: Sequence[str], maps: RunMaps | None) -> str:
    """The page's HTML, with lines on how it was predicted and attention over the `extreme_crops` of the files'
    first recipe (None where no model of it has any); nothing in it is loaded from elsewhere."""
    files = scored.files
    table = files[["file", "probability", "faces", "frames", "status", "reason"]].rename(
        columns={"probability": "P(fake)"}
    )
    table["P(fake)"] = [f"{value:.4f}" if np.isfinite(value) else "none" for value in files["probability"]]
    parts = [section_table(TextTable("Files", table, tuple(notes)))]
    owners = extreme_crops(scored.first_crops)["video_id"].to_numpy()
    for row in files.itertuples():
        parts.append(_section(row, scored.crops[scored.crops["video_id"] == row.video_id], faces))
        if maps is not None and row.video_id in owners:
            parts.append(_attention(row.file, np.flatnonzero(owners == row.video_id), maps))
    return whole_page(title, "\n".join(parts) + "\n", style=SECTION_STYLE + STYLE)


def _section(row, crops: pd.DataFrame, faces: Path) -> str:
    """A row of `ScoredFiles.files` in words, its timeline and its deciding frames."""
    head = f"<h2>{escape(row.file)}</h2>"
    if crops.empty:
        words = {"no_face": "No face was found", "unreadable": "It could not be read"}.get(row.status, "No crop")
        reason = f": {row.reason}" if row.reason else ""
        return f'{head}\n<p class="verdict">{escape(words + reason)}. There is no answer.</p>'
    tracks = crops["track"].nunique()
    verdict = f"P(fake) {row.probability:.4f}, from {counted(len(crops), 'crop')} of {counted(tracks, 'face track')}"
    parts = [head, f'<p class="verdict">{escape(verdict)}</p>']
    parts += [
        f'<p class="faint">{escape(words)}</p>' for words in (row.reason, Outside.count(crops).describe()) if words
    ]
    if row.frames > 1:
        parts.append(timeline_svg(crops, row.probability, f"P(fake) of {row.file} over time, a line a face track"))
    deciding = deciding_crops(crops)
    thumbnails = "".join(
        crop_figure(
            faces / crop.crop,
            f"{crop.seconds:.2f} s t{crop.track} · {crop.probability:.2f}{_outside(crop)}",
            f"Track {crop.track} at {crop.seconds:.2f} s, P(fake) {crop.probability:.2f}",
        )
        for crop in deciding.itertuples()
    )
    every = len(deciding) == len(crops)
    what = "All crops, the most fake first" if every else "The frames that decided: most fake, then most real"
    return "\n".join([*parts, f'<h3>{what}</h3>\n<div class="strip">{thumbnails}</div>'])


def _outside(crop) -> str:
    """Words under a crop that lies outside the faces of the training."""
    if not crop.distance > OUTSIDE:
        return ""
    return f" · outside: {crop.distance_reason}" if crop.distance_reason else " · outside"


def _attention(file: str, places: Iterable[int], maps: RunMaps) -> str:
    lines = []
    for place in places:
        face = maps.faces[place]
        alt = f"face of {file}, P(fake) {face.probability:.2f} by {maps.label}"
        pictures = [jpeg_tag(face.crop, f"The {alt}", longest=MAP_SIDE)]
        pictures += [
            jpeg_tag(picture, f"Attention map {number} over the {alt}", longest=MAP_SIDE)
            for number, picture in enumerate(maps.pictures(place, "run"), start=1)
        ]
        lines.append(
            f"<small>P(fake) {face.probability:.2f} by {escape(maps.label)}</small>"
            f'<div class="maps">{"".join(pictures)}</div>'
        )
    return (
        f"<h3>Attention of {escape(maps.label)}</h3>\n"
        '<p class="faint">The crop, and each attention map in colour over it; one scale for the whole page.</p>\n'
        + "\n".join(lines)
    )


def timeline_svg(crops: pd.DataFrame, probability: float, alt: str) -> str:
    """The drawing of one file's crops (track, frame_index, seconds, probability; at least one), `alt` in words; the
    whole file's probability is a dashed line."""
    last = max(float(crops["seconds"].max()), 1e-9)
    first = min(0.0, float(crops["seconds"].min()))

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (seconds - first) / (last - first)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value)

    parts, step = [_axes(x, y, first, last)], usual_step(crops)
    parts.append(
        f'<line class="whole" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(probability):.1f}" y2="{y(probability):.1f}"/>'
    )
    for number, (track, rows) in enumerate(crops.groupby("track", sort=True)):
        color = TRACK_COLORS[number % len(TRACK_COLORS)]
        dash = DASHES[(number // len(TRACK_COLORS)) % len(DASHES)]
        parts += _lines(unbroken(rows, step), x, y, color, dash)
        parts += [
            f'<circle cx="{x(row.seconds):.1f}" cy="{y(row.probability):.1f}" r="2.6" fill="{color}">'
            f"<title>track {track}, frame {row.frame_index}, {row.seconds:.2f} s: {row.probability:.3f}</title>"
            "</circle>"
            for row in rows.itertuples()
        ]
    return (
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg>{_legend(crops)}"
    )


def _axes(x, y, first: float, last: float) -> str:
    lines = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        for value in (0, 0.5, 1)
    )
    times = [first + (last - first) * step / 4 for step in range(5)]
    ticks = "".join(
        f'<text x="{x(seconds):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{seconds:.3g}</text>'
        for seconds in times
    )
    return f'{lines}{ticks}<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">seconds</text>'


def _lines(pieces: Iterable[pd.DataFrame], x, y, color: str, dash: str) -> Iterator[str]:
    """A track in time, cut where it was away."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    for piece in pieces:
        points = " ".join(f"{x(row.seconds):.1f},{y(row.probability):.1f}" for row in piece.itertuples())
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"{dashes}/>'


def _legend(crops: pd.DataFrame) -> str:
    tracks = sorted(crops["track"].unique())
    names = "".join(
        f'<span><b style="color: {TRACK_COLORS[number % len(TRACK_COLORS)]}">&#9679;</b> track {track}, '
        f"{counted(int((crops['track'] == track).sum()), 'frame')}</span>"
        for number, track in enumerate(tracks)
    )
    return f'<p class="legend">P(fake) over time: {names}<span>dashed: the whole file</span></p>'
