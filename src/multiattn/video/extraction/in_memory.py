"""One video -> its encoded crops in memory: what the worker processes of a submission run."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from multiattn.video.decoding.frames import Frame, FrameReader
from multiattn.video.extraction.engine import is_out_of_memory
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask, find_crops


@dataclass(frozen=True)
class EncodedCrop:
    """One face of one sampled frame."""

    frame_index: int
    track: int
    jpeg: bytes
    """As a faces folder has it on disk."""


@dataclass(frozen=True)
class EncodedCrops:
    """What one video gave."""

    video_id: str
    status: str
    """`ok`, `no_face` or `unreadable`."""
    message: str
    num_frames: int
    """Decoded."""
    crops: list[EncodedCrop]
    """Sorted by frame and track."""
    decode_seconds: float
    search_seconds: float
    """Detection, tracks, alignment, encoding."""


class TimedReader(FrameReader):
    """A reader that knows how long it took.

    Attributes:
        seconds: spent on reading and decoding so far, over all iterations.
    """

    seconds = 0.0

    def __iter__(self) -> Iterator[Frame]:
        frames = super().__iter__()
        while True:
            started = time.perf_counter()
            try:
                frame = next(frames, None)
            finally:
                self.seconds += time.perf_counter() - started
            if frame is None:
                return
            yield frame


def encode_crops(task: VideoTask, settings: ExtractionSettings) -> EncodedCrops:
    """The crops that `extract_video` would write, byte by byte, and what they took.

    Where a GPU has no memory left, faces are detected on the CPU; other errors of the machine raise.
    """
    try:
        return _encode_crops(task, settings)
    except Exception as error:
        if settings.device == "cpu" or not is_out_of_memory(error):
            raise
        return _encode_crops(task, replace(settings, device="cpu"))


def _encode_crops(task: VideoTask, settings: ExtractionSettings) -> EncodedCrops:
    started = time.perf_counter()
    reader = TimedReader(task.path, settings.recipe.num_frames, fast_frames=settings.recipe.fast_frames)
    found = find_crops(task, settings, reader=reader)
    return EncodedCrops(
        video_id=task.video_id,
        status=found.status,
        message=found.message,
        num_frames=found.num_frames,
        crops=[EncodedCrop(crop.frame_index, crop.track, crop.jpeg) for crop in found.crops],
        decode_seconds=reader.seconds,
        search_seconds=max(0.0, time.perf_counter() - started - reader.seconds),
    )
