"""Pictures as files, decoded only after their size is known."""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from multiattn.runtime.files import require_plain_file

MAX_PIXELS = 1 << 26
"""Bound on a frame, 8192 x 8192: a damaged header may declare sizes that would take all memory."""


class UnreadableVideoError(Exception):
    """Not one wanted frame could be decoded; the message is the decoder's."""


def decode_picture(content: bytes, flags: int = cv2.IMREAD_COLOR_RGB, source: str = "a picture") -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, upright as its EXIF says; None for what is no picture.

    Raises:
        ValueError: more than `MAX_PIXELS`; a small file may declare gigabytes, so this is read before it is decoded.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"{source}: more than {MAX_PIXELS} pixels") from error
    except (OSError, ValueError, SyntaxError):
        return None
    if width * height > MAX_PIXELS:
        raise ValueError(f"{source}: {width}x{height}, more than {MAX_PIXELS} pixels")
    return cv2.imdecode(np.frombuffer(content, np.uint8), flags)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright as its EXIF says; transparency is dropped, sixteen bits become eight.

    Raises:
        UnreadableVideoError: no such file, not a picture OpenCV reads, or one of more than `MAX_PIXELS`.
    """
    try:
        require_plain_file(path)
        image = decode_picture(Path(path).read_bytes())
    except (OSError, ValueError, cv2.error) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "err", error)
        raise UnreadableVideoError(f"{type(error).__name__}: {reason}") from error
    if image is None:
        raise UnreadableVideoError("not a readable picture")
    return image
