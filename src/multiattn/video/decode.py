"""Evenly spaced frames of a video, decoded with PyAV and only as far as needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


class UnreadableVideoError(Exception):
    """Not one wanted frame could be decoded; the message is the decoder's."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    index: int
    """Position in decoding order, from 0."""
    seconds: float
    """Presentation time."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""


def evenly_spaced_indices(total_frames: int, num_frames: int) -> list[int]:
    """The middle frames of `num_frames` equal pieces of a video, each index once, ascending.

    A video shorter than `num_frames` gives every frame once. Middles instead of ends: the last frame of a container's
    count is often missing, and the first is often black.
    """
    if total_frames <= num_frames:
        return list(range(total_frames))
    return [(2 * piece + 1) * total_frames // (2 * num_frames) for piece in range(num_frames)]


class FrameReader:
    """Iterates over evenly spaced frames of one video, one in memory at a time.

    After the iteration `message` says what went wrong on the way (empty when nothing did) and `num_frames` how many
    frames were yielded. A file damaged in its middle yields the frames before the damage.

    Raises:
        UnreadableVideoError: while iterating, when not one wanted frame could be decoded.
    """

    def __init__(self, path: Path, num_frames: int) -> None:
        self.path = Path(path)
        self.wanted = num_frames
        self.num_frames = 0
        self.message = ""

    def __iter__(self) -> Iterator[Frame]:
        self.num_frames, self.message = 0, ""
        try:
            with av.open(str(self.path), mode="r") as container:
                yield from self._read(container)
        except (av.FFmpegError, OSError, ValueError) as error:
            self.message = _describe(error)
        if self.num_frames == 0:
            raise UnreadableVideoError(self.message or "no frame could be decoded")

    def _read(self, container: av.container.InputContainer) -> Iterator[Frame]:
        if not container.streams.video:
            raise UnreadableVideoError("no video stream")
        stream = container.streams.video[0]
        # The parallelism is over videos: one thread a decoder keeps the cores busy without fighting over them.
        stream.codec_context.thread_count = 1
        total = stream.frames or _count_frames(self.path)
        indices = evenly_spaced_indices(total, self.wanted)
        if not indices:
            raise UnreadableVideoError("no frames in the video stream")
        wanted = set(indices)
        last_index = -1
        for index, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:  # FFmpeg filled it up with the pixels of another frame
                self.message = f"frame {index} of {total} is damaged"
                if self.num_frames:
                    return  # what follows builds on it
                continue
            last_index = index
            if index in wanted:
                self.num_frames += 1
                yield Frame(index=index, seconds=float(frame.time or 0.0), image=_upright(frame))
            if index >= indices[-1]:
                return
        self.message = f"the file ends after frame {last_index} of {total}"


def _upright(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the container's display rotation applied (phones record portrait lying down)."""
    image = frame.to_ndarray(format="rgb24")
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _count_frames(path: Path) -> int:
    """Packets of the video stream, for containers whose header has no frame count; nothing is decoded."""
    with av.open(str(path), mode="r") as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def _describe(error: Exception) -> str:
    """FFmpeg's words without the path, which differs between machines and would make the tables differ."""
    if isinstance(error, av.FFmpegError):
        return f"{type(error).__name__}: {error.strerror}"
    return f"{type(error).__name__}: {error}"
