"""Pictures as `img` tags that carry their own pixels, for pages that load nothing."""

import base64
import io
from html import escape

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
