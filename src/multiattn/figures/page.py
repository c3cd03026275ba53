"""Pictures as `img` tags that carry their own pixels, for pages that load nothing.

What every HTML page shares: nothing loaded from elsewhere, light or dark as asked, from a telephone's width up.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def jpeg_tag(picture: np.ndarray, alt: str, *, longest: int | None = None, quality: int = 85) -> str:
    """A photograph.

    Args:
        picture: (H, W, 3) uint8 RGB.
        alt: what it shows, in words.
        longest: its longer side is averaged down to so many pixels; None keeps it, and a smaller one stays as it is.
    """
    scale = 1.0 if longest is None else min(1.0, longest / max(picture.shape[:2]))
    if scale < 1:
        size_wh = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return _tag("jpeg", encoded.tobytes(), alt)


def png_tag(figure: Figure, alt: str) -> str:
    """A drawn figure, at its own resolution."""
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return _tag("png", content.getvalue(), alt)


def _tag(kind: str, content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{escape(alt, quote=True)}" src="data:image/{kind};base64,{data}">'


THUMBNAIL = 88
"""Longest side in pixels."""
JPEG_QUALITY = 80
STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --faint: #5c5c5c; --line: #c9c9c9; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #ececec; --paper: #16181b; --faint: #a8a8a8; --line: #454a50; }}
}}
body {{ margin: 2rem; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }}
@media (max-width: 600px) {{ body {{ margin: 1rem; }} }}
h1 {{ font-size: 1.35rem; margin: 0 0 1rem; }}
h1, h2, h3, h4 {{ overflow-wrap: anywhere; }}
small, .faint {{ color: var(--faint); font-size: 12px; }}
img {{ display: block; max-width: 100%; }}
.scroll {{ overflow-x: auto; }}
.drawing {{ margin: 0.8rem 0; }}
.drawing img {{ width: 100%; min-width: 620px; max-width: 1080px; background: #ffffff; }}
table {{ border-collapse: collapse; }}
.figures th, .figures td {{ text-align: right; padding: 3px 0.9rem 3px 0; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; font-weight: normal; white-space: nowrap; }}
.figures th:first-child {{ text-align: left; }}
.figures tbody th {{ min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }}
.figures thead th {{ color: var(--faint); font-size: 12px; }}
article {{ border-top: 1px solid var(--line); padding: 0.6rem 0 0.8rem; }}
.strip {{ display: flex; flex-wrap: wrap; gap: 4px; margin-top: 0.4rem; }}
figure {{ margin: 0; }}
figure img {{ max-width: {THUMBNAIL}px; max-height: {THUMBNAIL}px; }}
figcaption {{ font-size: 11px; color: var(--faint); font-variant-numeric: tabular-nums; }}
.missing {{ width: {THUMBNAIL}px; height: {THUMBNAIL}px; border: 1px dashed var(--line); font-size: 11px;
  overflow: hidden; }}
"""


def whole_page(title: str, body: str, *, style: str = "") -> str:
    """A page that stands alone.

    Args:
        body: HTML below the title's heading, ending with a line break.
        style: CSS beside `STYLE`.
    """
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
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    image = (
        f'<div class="missing">no crop {escape(path.name)}</div>'
        if picture is None
        else jpeg_tag(picture, alt, longest=THUMBNAIL, quality=JPEG_QUALITY)
    )
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"
