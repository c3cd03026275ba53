"""Basis of all pictures and pages: colours, figures drawn without a display, and HTML that loads nothing.

Pages carry their pictures inside, are light or dark as asked, and fit from a telephone's width up.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from multiattn.evaluation.measures import TextTable
from multiattn.runtime.crop_files import read_stored
from multiattn.runtime.files import atomic_path
from multiattn.runtime.text_tables import printable
from multiattn.video.decoding.pictures import decode_picture

BLACK, BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = (
    "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00",
)  # fmt: skip
"""The colours of Okabe and Ito, made for the colour-blind."""
LABEL_WORDS = {1: "fake", 0: "real", -1: "unlabelled"}


def escape(text: str) -> str:
    """Text for a page, in an attribute as well: control characters are written as escapes."""
    return html.escape(printable(text))


class PlainFigure(Figure):
    """A figure that shows names as they are: a `$` begins no formula, control characters are written as escapes."""

    def draw(self, renderer: RendererBase) -> None:
        with rc_context({"text.parse_math": False}):  # for ticks, which are made while they are drawn
            for text in self.findobj(Text):
                text.set_parse_math(False)
                text.set_text(printable(text.get_text(), keep="\n"))
            super().draw(renderer)


def new_figure(width: float, height: float, *, dpi: int, **settings: str) -> Figure:
    """An empty figure of so many inches that needs no display; `settings` go to matplotlib's `Figure`."""
    figure = PlainFigure(figsize=(width, height), dpi=dpi, **settings)
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


class InchPage:
    """A figure addressed in inches from its upper left corner, so that nothing moves to make room."""

    def __init__(self, width: float, height: float, *, dpi: int) -> None:
        self.figure, self.width, self.height = new_figure(width, height, dpi=dpi, facecolor="white"), width, height

    def text(self, x: float, y: float, words: str, **style: object) -> None:
        """Write words at a place; `style` goes to matplotlib."""
        self.figure.text(x / self.width, 1 - y / self.height, words, **{"size": 9, **style})

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes of a size with their upper left corner at a place."""
        box = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box)

    def image(self, x: float, y: float, side: float, picture: np.ndarray, **style: object) -> Axes:
        """Show a picture, (H, W, 3) uint8 RGB or (H, W), in a square of a side; `style` goes to `imshow`."""
        axes = self.axes(x, y, side, side)
        axes.imshow(picture, **style)
        axes.set_axis_off()
        return axes


def jpeg_tag(picture: np.ndarray, alt: str, *, longest: int | None = None, quality: int = 85) -> str:
    """A photograph, (H, W, 3) uint8 RGB, as an `img` tag; its longer side averaged down to `longest` pixels at most."""
    scale = 1.0 if longest is None else min(1.0, longest / max(picture.shape[:2]))
    if scale < 1:
        size_wh = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return _tag("jpeg", encoded.tobytes(), alt)


def png_tag(figure: Figure, alt: str) -> str:
    """A drawn figure as an `img` tag, at its own resolution."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return _tag("png", content.getvalue(), alt)


def _tag(kind: str, content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{data}">'


THUMBNAIL, THUMBNAIL_QUALITY = 88, 80
"""Longest side in pixels; JPEG quality."""
STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #5c5c5c; --line: #c9c9c9; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ececec; --paper: #16181b; --faint: #a8a8a8; --line: #454a50; }}
}}
body {{ margin: 2rem; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif;
  overflow-wrap: anywhere; }}
@media (max-width: 600px) {{ body {{ margin: 1rem; }} }}
h1 {{ font-size: 1.35rem; margin: 0 0 1rem; }}
small, .faint {{ color: var(--faint); font-size: 12px; }}
img {{ display: block; max-width: 100%; }}
.scroll {{ overflow-x: auto; }}
.drawing {{ margin: 0.8rem 0; }}
.drawing img {{ width: 100%; min-width: 620px; max-width: 1080px; background: #ffffff; }}
table {{ border-collapse: collapse; }}
.figures th, .figures td {{ text-align: right; padding: 3px 0.9rem 3px 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; font-weight: normal; white-space: nowrap; }}
.figures th:first-child {{ text-align: left; min-width: 8rem; white-space: normal; }}
.figures thead th {{ color: var(--faint); font-size: 12px; }}
article {{ border-top: 1px solid var(--line); padding: 0.6rem 0 0.8rem; }}
.strip {{ display: flex; flex-wrap: wrap; gap: 4px 8px; margin-top: 0.4rem; }}
figure {{ margin: 0; }}
figure img {{ max-width: {THUMBNAIL}px; max-height: {THUMBNAIL}px; }}
figcaption {{ font-size: 11px; color: var(--faint); font-variant-numeric: tabular-nums; }}
.missing {{ width: {THUMBNAIL}px; height: {THUMBNAIL}px; border: 1px dashed var(--line); font-size: 11px;
  overflow: hidden; }}
"""


SECTION_STYLE = """
h2 { font-size: 1.15rem; margin: 2.2rem 0 0.4rem; border-top: 2px solid var(--line); padding-top: 0.9rem; }
h3 { font-size: 0.98rem; margin: 1.2rem 0 0.3rem; }
h4 { font-size: 0.92rem; margin: 0; }
ul.notes { margin: 0.4rem 0 0; padding-left: 1.1rem; color: var(--faint); font-size: 13px; }
ul.warnings { padding-left: 1.1rem; }
"""
"""Rules of pages with a section a data set or file."""


def whole_page(title: str, body: str, *, style: str = "") -> str:
    """A page that stands alone; `body` is HTML below the title's heading and ends with a line break."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}</body>
</html>
"""


def figures_table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of finished words, as wide as it needs to be; the first column names the row."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table class="figures"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def drawing(image: str) -> str:
    """An `img` tag of a drawn figure, across the page; on a narrow one it scrolls instead of growing unreadable."""
    return f'<div class="scroll drawing">{image}</div>'


def crop_figure(path: Path, caption: str, alt: str) -> str:
    """A small copy of a crop with its caption; words where it cannot be read."""
    try:
        picture = decode_picture(read_stored(path))
    except (OSError, ValueError, cv2.error):
        picture = None
    image = (
        f'<div class="missing">no crop {escape(path.name)}</div>'
        if picture is None
        else jpeg_tag(picture, alt, longest=THUMBNAIL, quality=THUMBNAIL_QUALITY)
    )
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def section_table(table: TextTable) -> str:
    """Heading, table and notes; words in place of a table without rows."""
    if table.rows.empty:
        return f"<h3>{escape(table.title)}</h3>\n<p>None.</p>"
    rows = figures_table(map(str, table.rows), table.rows.astype(str).to_numpy())
    return f"<h3>{escape(table.title)}</h3>\n{rows}" + (bullets(table.notes, "notes") if table.notes else "")


def bullets(lines: Sequence[str], kind: str) -> str:
    """A list of lines of the CSS class `notes` or `warnings`."""
    return f'<ul class="{kind}">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
