"""A crop as a video codec leaves it: the clip around it encoded and decoded again, in memory.

Source: the third place of DFDC (github.com/NTech-Lab/deepfake-detection-challenge, TrackTransform), with its ranges.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import cv2
import numpy as np

from multiattn.training.data.augment.steps import EARLIER_CROPS, CropContext, Draws, Step

logger = logging.getLogger(__name__)
os.environ.setdefault("SVT_LOG", "1")  # errors only: SVT-AV1 describes itself on the terminal for every clip

SOURCE_FPS = 30
FPS = (15, 29)
SCALE = (0.25, 1.0)
CRF = (17, 39)
"""Constant rate factor of x264: 17 is nearly without loss, 39 blocky; 23 is the encoder's default."""
TUNES = ("film", "animation", "grain", "stillimage", "fastdecode", "zerolatency")
PRESET = "veryfast"
"""x264's preset. `medium`, its default and the source's, took 1.8 times as long for a clip of four crops at 380 px."""


@dataclass(frozen=True)
class Codec:
    """A video codec as ffmpeg names its encoder and decoder."""

    encoder: str
    decoder: str
    crf: tuple[int, int]
    """Constant rate factors of one frame from little loss to blocks and smears, a face still recognised. x264 spends
    less on a frame that no other refers to, so its range begins lower."""
    options: dict[str, str]
    """One thread, nothing on the terminal, and a fast preset: single crops have no motion to search for."""


CODECS = {
    "h264": Codec("libx264", "h264", (10, 40), {"preset": PRESET, "threads": "1"}),
    "h265": Codec(
        "libx265",
        "hevc",
        (18, 42),
        {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "pools=none:frame-threads=1:log-level=none"},
    ),
    "av1": Codec("libsvtav1", "libdav1d", (20, 60), {"preset": "10", "svtav1-params": "lp=1"}),
}


@cache
def encoders() -> tuple[str, ...]:
    """Names of `CODECS` that the installed PyAV encodes and decodes; the others are named in the log, once."""
    found = []
    for name, codec in CODECS.items():
        try:
            av.CodecContext.create(codec.encoder, "w")
            av.CodecContext.create(codec.decoder, "r")
        except av.codec.codec.UnknownCodecError as error:
            logger.warning("PyAV %s has no codec %s: clips are not encoded with %s", av.__version__, error, name)
        else:
            found.append(name)
    return tuple(found)


@dataclass(frozen=True)
class Encoding:
    """Settings of an encoder for one clip."""

    codec: str = "h264"
    """One of `CODECS`."""
    fps: int = SOURCE_FPS
    scale: float = 1.0
    """Factor on the sides before encoding; the result is scaled back."""
    crf: int = 23
    tune: str = "film"
    """A setting of x264 alone."""

    @classmethod
    def draw(cls, draws: Draws, *, crf: tuple[int, int], scale: tuple[float, float]) -> "Encoding":
        """Another frame rate and another scale with probability 0.5 each; ranges include both ends."""
        numbers = draws.generator
        return cls(
            fps=int(numbers.integers(FPS[0], FPS[1] + 1)) if draws.chance(0.5) else SOURCE_FPS,
            scale=float(numbers.uniform(*scale)) if draws.chance(0.5) else 1.0,
            crf=int(numbers.integers(crf[0], crf[1] + 1)),
            tune=str(numbers.choice(TUNES)),
        )


def reencode(clip: list[np.ndarray], encoding: Encoding) -> np.ndarray:
    """The last frame, (H, W, 3) uint8 RGB, of a clip of such frames, oldest first, after a codec.

    One thread encodes, so the same clip gives the same pixels every time.

    Departures: a frame rate below `SOURCE_FPS` leaves earlier frames out, as ffmpeg's filter does, but never the last.
    """
    height, width = clip[-1].shape[:2]
    small_wh = tuple(max(16, 2 * round(encoding.scale * side / 2)) for side in (width, height))  # even: 4:2:0
    step = SOURCE_FPS / encoding.fps
    kept = [len(clip) - 1 - round(number * step) for number in range(len(clip))]
    frames = [_resized(clip[position], small_wh) for position in reversed(kept) if position >= 0]
    codec = CODECS[encoding.codec]
    encoder = av.CodecContext.create(codec.encoder, "w")
    encoder.width, encoder.height = small_wh
    encoder.pix_fmt = "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(encoding.fps), Fraction(1, encoding.fps)
    tune = {"tune": encoding.tune} if encoding.codec == "h264" else {}
    encoder.options = {"crf": str(encoding.crf), **tune, **codec.options}
    packets = []
    with _scheduled_as_before():
        encoder.open()
    for time, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
        picture.pts = time
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create(codec.decoder, "r")
    decoder.thread_count = 1
    decoded = [picture for packet in packets for picture in decoder.decode(packet)] + decoder.decode(None)
    return _resized(decoded[-1].to_ndarray(format="rgb24"), (width, height))


@contextlib.contextmanager
def _scheduled_as_before() -> Iterator[None]:
    """Give this thread its scheduling back: SVT-AV1, run by root, makes whoever opens it a real-time thread, which no
    other process gets the processor from."""
    if not hasattr(os, "sched_setscheduler"):  # on Linux alone
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != before[0]:
            os.sched_setscheduler(0, *before)


def _resized(frame: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    if frame.shape[1::-1] == size_wh:
        return np.ascontiguousarray(frame)
    smaller = size_wh[0] < frame.shape[1]
    return cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def reencoding(
    probability: float, *, alone: bool = False, crf: tuple[int, int] = CRF, scale: tuple[float, float] = SCALE
) -> Step:
    """A step that re-encodes the clip of the earlier crops and this one, or this one where there are none.

    `alone`, a clip of one frame has the codec's blocks without its prediction over time, at a third of the cost.
    """

    def change(crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        if not draws.chance(probability):
            return crop
        encoding = Encoding.draw(draws, crf=crf, scale=scale)
        earlier = [] if alone or context.clip is None else context.clip()[-EARLIER_CROPS:]
        return reencode([*earlier, crop], encoding)

    return Step(change, needs_clip=not alone)
