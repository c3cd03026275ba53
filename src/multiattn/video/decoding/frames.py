"""Evenly spaced frames of a video, decoded only as far as needed; a picture as a video of one frame."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from multiattn.video.decoding.packets import DecodingPlan, UnitParser, plan_decoding

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
MAX_PIXELS = 1 << 26
"""Bound on a frame, 8192 x 8192: a damaged header may declare sizes that would take all memory."""


class UnreadableVideoError(Exception):
    """Not one wanted frame could be decoded; the message is the decoder's."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    index: int
    """Position in the order of presentation, in which decoders hand frames out, from 0."""
    seconds: float
    """Presentation time."""
    image: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""


@dataclass(frozen=True)
class VideoShape:
    """Size and length of a video, without decoding it all."""

    width: int
    height: int
    """Upright, as `Frame.image`."""
    total_frames: int


def evenly_spaced_indices(total_frames: int, num_frames: int) -> list[int]:
    """The middle frames of `num_frames` equal pieces of a video, each index once, ascending.

    A video shorter than `num_frames` gives every frame once. Middles instead of ends: the last frame of a container's
    count is often missing, and the first is often black.
    """
    if total_frames <= num_frames:
        return list(range(total_frames))
    return [(2 * piece + 1) * total_frames // (2 * num_frames) for piece in range(num_frames)]


def probe_video(path: Path) -> VideoShape:
    """Size and number of frames; the first frame is decoded, since only it has the rotation.

    Raises:
        UnreadableVideoError: no such file, no video, or its first frame cannot be decoded.
    """
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container)
            first = next(container.decode(stream), None)
            if first is None:
                raise UnreadableVideoError("no frame could be decoded")
            size_wh = (first.width, first.height)[:: -1 if _quarter_turns(first) % 2 else 1]
            total = stream.frames
        return VideoShape(*size_wh, total_frames=total or _count_packets(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideoError(_describe(error)) from error


class FrameReader:
    """Iterates over evenly spaced frames of one video, one in memory at a time; over the one frame of a picture.

    Only wanted frames are converted to RGB. Where the packets of an H.264 or HEVC stream allow it (`packets.py`),
    frames that no wanted frame is predicted from are not decoded; the frames yielded and their pixels are those of
    decoding everything.

    A file damaged in its middle yields the frames before the damage.

    Args:
        num_frames: how many.
        fast_frames: take the reference frame nearest to each wanted frame instead, the earlier of two equally near,
            each once. Saves what the wanted frames themselves cost beside those they are predicted from (5 to 10 % of
            the packets at 32 of 300 frames). Streams that are decoded whole give the wanted frames as always.

    Attributes:
        num_frames: frames yielded by the latest iteration.
        message: the damage it met; empty when there was none.
        seconds: spent on reading and decoding, over all iterations.

    Raises:
        UnreadableVideoError: while iterating, when not one wanted frame could be decoded.
    """

    def __init__(self, path: Path, num_frames: int, *, fast_frames: bool = False) -> None:
        self.path, self.wanted, self.fast_frames = Path(path), num_frames, fast_frames
        self.seconds, self.num_frames, self.message = 0.0, 0, ""

    def __iter__(self) -> Iterator[Frame]:
        self.num_frames, self.message = 0, ""
        frames, frame = self._read(), None
        while True:
            started = time.perf_counter()
            try:
                frame = next(frames, None)
            except (av.FFmpegError, OSError, ValueError) as error:
                self.message, frame = _describe(error), None
            finally:
                self.seconds += time.perf_counter() - started
            if frame is None:
                break
            yield frame
        if self.num_frames == 0:
            raise UnreadableVideoError(self.message or "no frame could be decoded")

    def _read(self) -> Iterator[Frame]:
        if is_image_name(self.path.name):
            image, self.num_frames = read_image(self.path), 1
            yield Frame(index=0, seconds=0.0, image=image)
            return
        total, plan = self._plan()
        frames = evenly_spaced_indices(total, self.wanted) if plan is None else plan.frames
        if not frames:
            raise UnreadableVideoError("no frames in the video stream")
        with av.open(str(self.path)) as container:
            stream = _video_stream(container)
            codec = stream.codec_context
            codec.thread_count = 1  # the work is parallel over videos
            codec.options = {"max_pixels": str(MAX_PIXELS)}
            decoded = enumerate(container.decode(stream)) if plan is None else _decode(container, stream, plan)
            yield from self._select(decoded, frames, total)

    def _plan(self) -> tuple[int, DecodingPlan | None]:
        """The number of frames, by the header where it has one, and the plan to decode by; None for everything."""
        with av.open(str(self.path)) as container:
            stream = _video_stream(container)
            total = stream.frames
            parser = UnitParser(stream.codec_context.name, stream.codec_context.extradata)
            if not parser.understood:
                return total or _count_packets(self.path), None
            reorders = stream.codec_context.has_b_frames
            packets = [parser.read(packet) for packet in container.demux(stream) if packet.size]
        total = total or len(packets)
        wanted = evenly_spaced_indices(total, self.wanted)
        return total, plan_decoding(packets, wanted, reorders=reorders, fast_frames=self.fast_frames)

    def _select(self, decoded: Iterator[tuple[int, av.VideoFrame]], frames: list[int], total: int) -> Iterator[Frame]:
        wanted, last_index = set(frames), -1
        for index, frame in decoded:
            if frame.is_corrupt:  # FFmpeg filled it up with the pixels of another frame
                self.message = f"frame {index} of {total} is damaged"
                if self.num_frames:
                    return  # what follows builds on it
                continue
            last_index = index
            if index in wanted:
                self.num_frames += 1
                yield Frame(index=index, seconds=float(frame.time or 0.0), image=to_image(frame))
            if index >= frames[-1]:
                break
        else:
            self.message = f"the file ends after frame {last_index} of {total}"
        if not self.message and self.num_frames < len(frames):
            self.message = f"{len(frames) - self.num_frames} frames of {len(frames)} were not decoded"


def _decode(
    container: av.container.InputContainer, stream: av.VideoStream, plan: DecodingPlan
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames of a plan, and others decoded on the way to them, each with its index."""
    codec = stream.codec_context

    def numbered(packet: av.Packet | None) -> Iterator[tuple[int, av.VideoFrame]]:
        for frame in codec.decode(packet):
            frame.time_base = stream.time_base
            if frame.pts in plan.index_of_pts:  # a decoder may invent frames where the stream is damaged
                yield plan.index_of_pts[frame.pts], frame

    for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
        if number in plan.restarts:
            yield from numbered(None)
            codec.flush_buffers()
        if number < len(plan.send) and plan.send[number]:
            yield from numbered(packet)
    yield from numbered(None)


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise UnreadableVideoError("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UnreadableVideoError("its codec is unknown")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise UnreadableVideoError(f"declares frames of {width}x{height}")
    return stream


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Quarter turns of the container's display rotation: phones record portrait lying down."""
    return round(getattr(frame, "rotation", 0) / 90) % 4


def to_image(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the display rotation applied."""
    image = frame.to_ndarray(format="rgb24")
    quarter_turns = _quarter_turns(frame)
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _count_packets(path: Path) -> int:
    """Packets of the video stream, for containers whose header has no frame count; nothing is decoded."""
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)


def _describe(error: Exception) -> str:
    """FFmpeg's message without the path, which differs between machines and would make the tables differ."""
    return f"{type(error).__name__}: {error.strerror if isinstance(error, av.FFmpegError) else error}"


def is_image_name(name: str) -> bool:
    """True for the name of a picture: by its extension, in any case; hidden files are none."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright as its EXIF says; transparency is dropped, sixteen bits become eight.

    Raises:
        UnreadableVideoError: no such file, not a picture OpenCV reads, or one of more than `MAX_PIXELS`.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if content.size else None
    except (OSError, cv2.error) as error:  # cv2: a header that declares more pixels than OpenCV's own bound
        reason = error.strerror if isinstance(error, OSError) else error.err
        raise UnreadableVideoError(f"{type(error).__name__}: {reason}") from error
    if image is None:
        raise UnreadableVideoError("not a readable picture")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise UnreadableVideoError(f"a picture of {image.shape[1]}x{image.shape[0]}")
    return image
