"""A video as an upload leaves it: all frames that a player shows, scaled down where asked, through H.264."""

import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2

from multiattn.video.decoding.frames import FrameReader

TIME_BASE = Fraction(1, 90_000)
"""Unit of the presentation times, which stay what they were."""
RATE = 30
"""Frames a second that the encoder is told, and that clips without times of their own get."""
LONGEST = 16_384
"""Pixels of a side that x264 takes."""
PRESET = "veryfast"
"""x264's preset: how long it searches; the quality is the constant rate factor's."""


class UnencodableVideoError(ValueError):
    """The encoder does not take frames of this size."""


@dataclass(frozen=True)
class ClipEncoding:
    """Settings of an encoder."""

    crf: int = 23
    """Constant rate factor of x264."""
    longest: int | None = None
    """Pixels that the longer side has at most; None keeps the size."""


def reencode_clip(source: Path, path: Path, encoding: ClipEncoding, *, fps: float | None = None) -> None:
    """Write the video, or folder of pictures, `source` as an MP4 without sound, upright, in one thread.

    Sides become even, as 4:2:0 needs them; pictures of other sizes are brought to the first one's.

    Args:
        fps: as of `FrameReader`.

    Raises:
        UnreadableVideoError: not one frame could be decoded.
        UnencodableVideoError: frames that x264 does not take.
    """
    size_wh, last = None, -1
    with av.open(f"file:{path.absolute()}", "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE)
        for place, frame in enumerate(FrameReader(source, sys.maxsize, fps=fps)):
            if size_wh is None:
                height, width = frame.image.shape[:2]
                scale = min(1.0, (encoding.longest or width + height) / max(width, height))
                size_wh = tuple(max(16, 2 * round(scale * side / 2)) for side in (width, height))
                if max(size_wh) > LONGEST:
                    raise UnencodableVideoError(f"{width}x{height} pixels: x264 takes sides of at most {LONGEST}")
                stream.width, stream.height, stream.pix_fmt = *size_wh, "yuv420p"
                stream.codec_context.time_base = TIME_BASE
                stream.options = {"crf": str(encoding.crf), "preset": PRESET, "threads": "1"}
            image = frame.image
            if image.shape[1::-1] != size_wh:
                image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            seconds = frame.seconds or place / RATE
            last = max(last + 1, round(seconds / TIME_BASE))
            picture.pts, picture.time_base = last, TIME_BASE
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
