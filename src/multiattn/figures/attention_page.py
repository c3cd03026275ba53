"""The attention figure as one HTML page: images inside it, nothing loaded from elsewhere, light or dark as asked."""

from html import escape

from multiattn.figures.attention import SCALE_WORDS, Row, RunMaps, Scale, check_rows, color_bar
from multiattn.figures.embedded_image import jpeg_tag
from multiattn.figures.page import whole_page

JPEG_QUALITY = 92
STYLE = """
.grid th, .grid td { padding: 3px; text-align: center; vertical-align: middle; font-weight: normal; }
.grid thead th { padding: 4px 6px; }
.grid .run { font-weight: 600; border-bottom: 1px solid var(--line); }
.grid .first { padding-left: 1.1rem; }
.grid .row { text-align: left; padding-right: 1rem; min-width: 8rem; overflow-wrap: anywhere; max-width: 13rem; }
.grid .row b { display: block; }
.grid img { width: 150px; height: 150px; max-width: none; }
.number { font-variant-numeric: tabular-nums; padding: 0 0.8rem; }
.bar { width: 300px; height: 14px; margin-top: 0.8rem; border: 1px solid var(--line); }
.ticks { width: 302px; display: flex; justify-content: space-between; font-size: 12px; }
.statistics { margin-top: 1.2rem; }
.statistics th, .statistics td { padding: 2px 0.8rem 2px 0; text-align: left; font-weight: normal; }
.statistics td { text-align: right; font-variant-numeric: tabular-nums; }
"""
STATISTICS = {
    "map_cosine": "mean cosine between maps",
    "map_strongest_share": "share of faces with the same strongest map",
    "map_entropy": "entropy (0: one cell, 1: everywhere)",
    "map_dead_share": "share of dead maps",
}


def attention_page(title: str, rows: list[Row], runs: list[RunMaps], *, note: str = "", scale: Scale = "run") -> str:
    """HTML of the grid that `draw_attention` draws, with a table of the statistics.

    Args:
        note: what the statistics are over, in words.

    Raises:
        ValueError: as `draw_attention`.
    """
    check_rows(rows, runs)
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


def _table_row(number: int, row: Row, runs: list[RunMaps], scale: Scale) -> str:
    where = f"{row.title}, {row.video}, frame {row.frame}"
    cells = [
        f'<th class="row" scope="row"><b>{escape(row.title)}</b>'
        f"<small>{escape(row.video)}<br>frame {row.frame}</small></th>",
        f"<td>{jpeg_tag(runs[0].crops[number], f'Face: {where}', quality=JPEG_QUALITY)}</td>",
    ]
    for run in runs:
        for k, picture in enumerate(run.pictures(number, scale)):
            alt = f"Attention map {k + 1} of {run.label} over the face: {where}"
            cells.append(f"<td{' class=first' if k == 0 else ''}>{jpeg_tag(picture, alt, quality=JPEG_QUALITY)}</td>")
        cells.append(f'<td class="number">{run.probabilities[number]:.3f}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _bar(scale: Scale) -> str:
    colors = ", ".join("#{:02x}{:02x}{:02x}".format(*color) for color in color_bar(17))
    return (
        f'<div role="img" aria-label="Colour scale from dark to bright: {SCALE_WORDS[scale]}">'
        f'<div class="bar" style="background: linear-gradient(to right, {colors})"></div>'
        f'<div class="ticks"><span>0</span><span>0.5</span><span>1</span></div></div>'
        f'<p class="faint">Attention; {SCALE_WORDS[scale]}. The colour lies over the face in grey.</p>'
    )


def _statistics(runs: list[RunMaps]) -> str:
    names = [name for name in STATISTICS if any(name in run.statistics for run in runs)]
    heads = "".join(f'<th scope="col">{escape(run.label)}</th>' for run in runs)
    lines = []
    for name in names:
        values = [f"{run.statistics[name]:.3f}" if name in run.statistics else "none" for run in runs]
        cells = "".join(f"<td>{value}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{STATISTICS[name]}</th>{cells}</tr>')
    return f'<table class="statistics"><thead><tr><th></th>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
