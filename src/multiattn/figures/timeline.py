"""P(fake) over a video's time, a line a face track, as SVG inside a page."""

from html import escape

import pandas as pd

WIDTH, HEIGHT = 720, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 12, 34
TRACK_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of Okabe and Ito; tracks beyond the sixth take them again, with another dash."""
DASHES = ("", "6 3", "2 3")
GAP_SECONDS = 1.5
"""Times the track's usual distance: further apart, no line joins two frames."""


def timeline_svg(crops: pd.DataFrame, probability: float, alt: str) -> str:
    """The drawing; colours of text and axes follow the page.

    Args:
        crops: track, frame_index, seconds and probability of one file's crops, at least one.
        probability: of the whole file, a dashed line.
        alt: what is drawn, in words.
    """
    last = max(float(crops["seconds"].max()), 1e-9)
    first = min(0.0, float(crops["seconds"].min()))

    def x(seconds: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (seconds - first) / (last - first)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value)

    parts = [_axes(x, y, first, last)]
    parts.append(
        f'<line class="whole" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(probability):.1f}" y2="{y(probability):.1f}"/>'
    )
    for number, (track, rows) in enumerate(crops.groupby("track", sort=True)):
        rows = rows.sort_values(["seconds", "frame_index"])
        color = TRACK_COLORS[number % len(TRACK_COLORS)]
        dash = DASHES[(number // len(TRACK_COLORS)) % len(DASHES)]
        parts += [_line(piece, x, y, color, dash) for piece in _pieces(rows)]
        parts += [
            f'<circle cx="{x(row.seconds):.1f}" cy="{y(row.probability):.1f}" r="2.6" fill="{color}">'
            f"<title>track {track}, frame {row.frame_index}, {row.seconds:.2f} s: {row.probability:.3f}</title>"
            "</circle>"
            for row in rows.itertuples()
        ]
    return (
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(alt, quote=True)}">'
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


def _pieces(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """A track's rows, cut where it was away."""
    steps = rows["seconds"].diff()
    away = steps > GAP_SECONDS * steps.median()
    return [piece for _, piece in rows.groupby(away.cumsum(), sort=True)]


def _line(rows: pd.DataFrame, x, y, color: str, dash: str) -> str:
    points = " ".join(f"{x(row.seconds):.1f},{y(row.probability):.1f}" for row in rows.itertuples())
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.6"{dashes}/>'


def _legend(crops: pd.DataFrame) -> str:
    tracks = sorted(crops["track"].unique())
    names = "".join(
        f'<span><b style="color: {TRACK_COLORS[number % len(TRACK_COLORS)]}">&#9679;</b> track {track}, '
        f"{int((crops['track'] == track).sum())} frames</span>"
        for number, track in enumerate(tracks)
    )
    return f'<p class="legend">P(fake) over time: {names}<span>dashed: the whole file</span></p>'
