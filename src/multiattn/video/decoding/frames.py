"""Evenly spaced frames of a video as a player shows it, decoded only as far as needed; of pictures too.

A picture is a video of one frame, a folder of pictures (`runtime/frame_folders.py`) a video of a frame each.
"""

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from multiattn.runtime.files import require_plain_file
from multiattn.runtime.frame_folders import frame_names, frame_numbers, is_image_name
from multiattn.runtime.text_tables import counted, printable
from multiattn.video.decoding.packets import DecodingPlan, PacketFacts, UnitParser, plan_decoding
from multiattn.video.decoding.pictures import MAX_PIXELS, UnreadableVideoError, read_image

OPEN_OPTIONS = {
    "max_pixels": str(MAX_PIXELS),
    "protocol_whitelist": "file",
    # Files of one film: a playlist (HLS, ffconcat, SDP) of any name would make FFmpeg read other files.
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,live_flv,mxf,ogg,gif,apng,nut,ivf,obu,dv,rm,"
    "wtv,nsv,amv,bink,smk,yuv4mpegpipe,h263,h264,hevc,m4v,vc1,mjpeg",
}
DEFAULT_STREAM = 5_000_000
"""Pixels that a stream marked as the default counts more, where FFmpeg chooses one of several."""
FRAMES_UNLIKE_PACKETS = frozenset({"vp8", "mpeg1video", "mpeg2video"})
"""Codecs that have packets of no frame of their own (hidden ones, leading ones of an open group)."""
QUARTER_TURN_TOLERANCE = 1.0
"""Degrees within which an angle counts as a quarter turn, as in FFmpeg."""


@dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    index: int
    """Position in the order of presentation, in which decoders hand frames out, from 0; of a folder of pictures as
    `frame_numbers` has it."""
    seconds: float
    """Presentation time; 0 in a folder of pictures whose frame rate is not known."""
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

    Of a folder of pictures the first that can be decoded. Without one `UnreadableVideoError` is raised.
    """
    try:
        if Path(path).is_dir() or is_image_name(Path(path).name):
            reader = FrameReader(path, sys.maxsize)
            height, width = next(iter(reader)).image.shape[:2]
            return VideoShape(width, height, reader.count())
        with _opened(path) as (container, stream):
            first = next(container.decode(stream), None)
            if first is None:
                raise UnreadableVideoError("no frame could be decoded")
            height, width = to_image(first).shape[:2]
        return VideoShape(width, height, FrameReader(path, 0).count())
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideoError(_describe(error)) from error


def clip_seconds(path: Path) -> float | None:
    """The length that a video's file states; None where it states none, as of a picture, or cannot be opened."""
    if is_image_name(Path(path).name):
        return None
    try:
        with _opened(path) as (container, stream):
            if stream.duration is not None and stream.time_base is not None:
                return float(stream.duration * stream.time_base)
            return None if container.duration is None else container.duration / av.time_base
    except (av.FFmpegError, OSError, ValueError):
        return None


def read_ahead(frames: Iterable[Frame], most: int) -> Iterator[Frame]:
    """The same frames, up to `most` of them read by another thread while the caller is at work; raises what they do."""
    source = iter(frames)
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, source, None) for _ in range(most))
        try:
            while (frame := waiting.popleft().result()) is not None:
                waiting.append(reader.submit(next, source, None))
                yield frame
        finally:
            for one in waiting:
                one.cancel()


@dataclass(frozen=True, eq=False)
class FrameArray:
    """Frames in memory, in place of a file."""

    images: np.ndarray
    """(N, H, W, 3) uint8 RGB, upright, N >= 1; (H, W, 3) is one frame."""

    def __post_init__(self) -> None:
        images = self.images[None] if self.images.ndim == 3 else self.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(
                f"frames: expected RGB uint8 (N, H, W, 3) or (H, W, 3), none of them 0, found {self.images.dtype} "
                f"{self.images.shape}."
            )
        object.__setattr__(self, "images", images)

    def __str__(self) -> str:
        number, height, width, _ = self.images.shape
        return f"{number} frame{'s' * (number > 1)} of {width}x{height}"


class FrameReader:
    """Iterates over evenly spaced frames of one video, one in memory at a time; over the one frame of a picture.

    Pictures of a folder that cannot be decoded are left out and named in the message: no other builds on them.

    Only wanted frames are converted to RGB. Where the packets of an H.264 or HEVC stream allow it (`packets.py`),
    frames that no wanted frame is predicted from are not decoded; the frames yielded and their pixels are those of
    decoding everything.

    A file damaged in its middle yields the frames before the damage.

    Args:
        fast_frames: take the reference frame nearest to each wanted frame instead; as `plan_decoding`. Streams that are
            decoded whole give the wanted frames as always.
        fps: frames a second of a folder of pictures or an array; None where it is not known.
        also: further (num_frames, fast_frames) whose frames are yielded by the same pass, each frame once.

    Attributes:
        num_frames: frames yielded by the latest iteration.
        frames_of: (num_frames, fast_frames) -> indices of its frames, of the latest iteration.
        message: the damage it met; empty when there was none.
        seconds: spent on reading and decoding, over all iterations.

    Raises:
        UnreadableVideoError: while iterating, when not one wanted frame could be decoded.
    """

    def __init__(
        self,
        path: Path | FrameArray,
        num_frames: int,
        *,
        fast_frames: bool = False,
        fps: float | None = None,
        also: Iterable[tuple[int, bool]] = (),
    ) -> None:
        self.path = path if isinstance(path, FrameArray) else Path(path)
        self.fps = fps
        self.frames_of: dict[tuple[int, bool], set[int]] = {want: set() for want in [(num_frames, fast_frames), *also]}
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
        if isinstance(self.path, FrameArray):
            for index in self._wanted(len(self.path.images)):
                yield self._made(index, np.ascontiguousarray(self.path.images[index]))
            return
        if self.path.is_dir():
            yield from self._read_pictures()
            return
        if is_image_name(self.path.name):
            self._wanted(1)
            image, self.num_frames = read_image(self.path), 1
            yield Frame(index=0, seconds=0.0, image=image)
            return
        total, plan = self._plan()
        frames = self._wanted(total) if plan is None else plan.frames
        if not frames:
            raise UnreadableVideoError("no frames in the video stream")
        with _opened(self.path) as (container, stream):
            decoded = enumerate(container.decode(stream)) if plan is None else _decode(container, stream, plan)
            yield from self._select(decoded, frames, total)

    def _wanted(self, total: int) -> list[int]:
        """The wanted of so many frames, ascending; notes which are whose."""
        self.frames_of = {want: set(evenly_spaced_indices(total, want[0])) for want in self.frames_of}
        return sorted(set().union(*self.frames_of.values()))

    def _read_pictures(self) -> Iterator[Frame]:
        names = frame_names(self.path)
        if not names:
            raise UnreadableVideoError("a folder without pictures")
        numbers, wanted, broken = frame_numbers(names), self._wanted(len(names)), []
        self.frames_of = {want: {numbers[place] for place in places} for want, places in self.frames_of.items()}
        for place in wanted:
            try:
                image = read_image(self.path / names[place])
            except UnreadableVideoError as error:
                broken.append(f"{printable(names[place])}: {error}")
                number = counted(len(broken), f"frame of {len(wanted)} was", f"frames of {len(wanted)} were")
                self.message = f"{number} not decoded; the first: {broken[0]}"
                continue
            yield self._made(numbers[place], image)

    def _made(self, index: int, image: np.ndarray) -> Frame:
        """A frame of pictures or an array, counted."""
        self.num_frames += 1
        return Frame(index=index, seconds=index / self.fps if self.fps else 0.0, image=image)

    def count(self) -> int:
        """The number of frames that a player shows."""
        if self.path.is_dir():
            return len(frame_names(self.path))
        return 1 if is_image_name(self.path.name) else self._plan()[0]

    def _plan(self) -> tuple[int, DecodingPlan | None]:
        """The number of frames that a player shows, and the plan to decode by; None for everything."""
        with _opened(self.path) as (container, stream):
            codec = stream.codec_context
            # The index of an MP4 file also tells of frames that a cut-off file lacks; an edit list leaves others out.
            declared = sum(not entry.is_discard for entry in stream.index_entries) if stream.frames else 0
            declared = declared if container.format.name.startswith("mov,") else 0
            parser = UnitParser(codec.name, codec.extradata)
            packets = [parser.read(packet) for packet in container.demux(stream) if packet.size]
            total = max(declared, sum(packet.shown for packet in packets))
            plan = None
            if parser.understood:
                plan = self._joined_plan(packets, total, reorders=codec.has_b_frames)
            starts_within = parser.reads_units and packets and not packets[0].starts_anew
        if plan is None and total and (codec.name in FRAMES_UNLIKE_PACKETS or starts_within):
            with contextlib.suppress(av.FFmpegError), _opened(self.path) as (container, stream):  # damage: as it is
                total = sum(1 for _ in container.decode(stream))
        return total, plan

    def _joined_plan(self, packets: list[PacketFacts], total: int, *, reorders: bool) -> DecodingPlan | None:
        """The plan of all wanted frames together; notes which are whose."""
        self._wanted(total)
        plans = {
            want: plan_decoding(packets, sorted(frames), reorders=reorders, fast_frames=want[1])
            for want, frames in self.frames_of.items()
        }
        if None in plans.values():  # of the stream, whatever is wanted
            return None
        self.frames_of = {want: set(plan.frames) for want, plan in plans.items()}
        if len(plans) == 1:
            return next(iter(plans.values()))
        together = sorted(set().union(*self.frames_of.values()))
        return plan_decoding(packets, together, reorders=reorders, fast_frames=False)

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
            missing, of = len(frames) - self.num_frames, f"of {len(frames)}"
            self.message = counted(missing, f"frame {of} was not decoded", f"frames {of} were not decoded")


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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video file and its film: of several video streams the one that FFmpeg chooses, and never a cover picture."""
    require_plain_file(path)
    try:  # as file:, whatever its name means
        opened = av.open(f"file:{Path(path).absolute()}", options=OPEN_OPTIONS)
    except av.error.ArgumentError as error:
        raise UnreadableVideoError("a list of other files, or of a format that no film has") from error
    with opened as container:
        films = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
        if not films:
            raise UnreadableVideoError("no video stream")
        known = [one for one in films if one.codec_context is not None]
        if not known:
            raise UnreadableVideoError("its codec is unknown")
        stream = max(known, key=_preference)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            raise UnreadableVideoError(f"declares frames of {width}x{height}")
        stream.codec_context.thread_count = 1  # the work is parallel over videos
        stream.codec_context.options = {"max_pixels": OPEN_OPTIONS["max_pixels"]}
        yield container, stream


def _preference(stream: av.VideoStream) -> int:
    is_default = bool(stream.disposition & Disposition.default)
    return stream.codec_context.width * stream.codec_context.height + DEFAULT_STREAM * is_default


def to_image(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB, turned and mirrored as the container's display matrix says."""
    matrix = next((bytes(data) for data in frame.side_data if data.type == SideData.DISPLAYMATRIX), None)
    image = frame.to_ndarray(format="rgb24")
    return image if matrix is None else turned_upright(image, np.frombuffer(matrix, np.int32).reshape(3, 3))


def turned_upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The frame as FFmpeg's autorotation shows it.

    Quarter turns and mirroring move pixels; any other angle turns the picture about its centre within its own bounds.
    A matrix without an angle, of zeros for example, changes nothing, and so does scaling.

    Args:
        image: (H, W, 3) uint8.
        matrix: (3, 3) int32, `a b u; c d v; x y w` of ISO/IEC 14496-12.

    Returns:
        (H, W, 3) or (W, H, 3) uint8, contiguous.
    """
    (a, b), (c, d) = (matrix[:2, :2] / 65536).tolist()
    if not (math.hypot(a, c) and math.hypot(b, d)):
        return image
    angle = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))) % 360
    quarters = round(angle / 90)
    if abs(angle - 90 * quarters) >= QUARTER_TURN_TOLERANCE:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1)
        return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR)
    if quarters % 2:
        is_mirrored = c > 0 if quarters == 1 else c < 0
        image = image.swapaxes(0, 1)  # mirrored along the diagonal; a turn mirrors once more
        if quarters == 1:
            image = image if is_mirrored else image[:, ::-1]
        else:
            image = image[::-1, ::-1] if is_mirrored else image[::-1]
    else:
        image = image[:, ::-1] if quarters == 2 and a < 0 else image
        image = image[::-1] if d < 0 else image
    return np.ascontiguousarray(image)


def _describe(error: Exception) -> str:
    """FFmpeg's message without the path, which differs between machines and would make the tables differ."""
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
