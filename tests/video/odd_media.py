"""Odd but valid video files, made by ffmpeg, and what ffmpeg's own player pipeline shows of them."""

import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FFMPEG = shutil.which("ffmpeg")
WIDTH, HEIGHT, FRAMES = 96, 64, 30
ONE = 1 << 16
SOURCE = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-r", "25"]


def scene(width: int = WIDTH, height: int = HEIGHT, frames: int = FRAMES) -> np.ndarray:
    """(T, H, W, 3) uint8: smooth, unlike each of its mirror images, and other in every frame."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([150 * x / width, 150 * y / height, np.zeros(x.shape)], axis=2)  # (H, W, 3)
    images = np.repeat(ramps[None], frames, axis=0)
    images[..., 2] += np.linspace(20, 230, frames)[:, None, None]
    images[:, : height // 3, : width // 4, :2] += 90
    return images.astype(np.uint8)


def ffmpeg(*arguments: object, stdin: bytes | None = None) -> bytes:
    command = [FFMPEG, "-hide_banner", "-loglevel", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True, timeout=60).stdout


def encode(path: Path, *options: object, images: np.ndarray | None = None, more_inputs: tuple = ()) -> Path:
    """A file of the scene."""
    images = scene() if images is None else images
    size = f"{images.shape[2]}x{images.shape[1]}"
    ffmpeg(*SOURCE, "-s", size, "-i", "-", *more_inputs, *options, path, stdin=images.tobytes())
    return path


def shown(path: Path) -> list[np.ndarray]:
    """Every frame that ffmpeg shows of a file, with its autorotation and edit lists: (H, W, 3) uint8 each."""
    arguments = ("-an", "-sn", "-vsync", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-")
    content, images, at = ffmpeg("-i", path, *arguments), [], 0
    while at < len(content):
        magic, size, most, _ = content[at : at + 64].split(b"\n", 3)
        assert (magic, most) == (b"P6", b"255")
        width, height = map(int, size.split())
        at += len(magic) + len(size) + len(most) + 3
        images.append(np.frombuffer(content, np.uint8, 3 * width * height, at).reshape(height, width, 3))
        at += 3 * width * height
    return images


def boxes(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Kind -> (start, end) of the first box of its kind between two places of an MP4 file."""
    found: dict[bytes, tuple[int, int]] = {}
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        found.setdefault(kind, (start, start + size))
        start += size
    return found


def box(data: bytes, *path: bytes) -> tuple[int, int]:
    start, end = 0, len(data)
    for number, kind in enumerate(path):
        start, end = boxes(data, start + (8 if number else 0), end)[kind]
    return start, end


def with_matrix(path: Path, a: float, b: float, c: float, d: float) -> None:
    """Give the first track a display matrix (ISO/IEC 14496-12): x' = a x + c y, y' = b x + d y."""
    data = bytearray(path.read_bytes())
    start, _ = box(data, b"moov", b"trak", b"tkhd")
    at = start + 8 + 40
    values = [round(value * ONE) for value in (a, b, 0, c, d, 0, 0, 0)]
    data[at : at + 36] = struct.pack(">9i", *values, 1 << 30)
    path.write_bytes(data)


def with_edits(path: Path, *edits: tuple[float, float]) -> None:
    """Replace the one edit of the first track; (first second shown or -1 for a pause, seconds) each."""
    data = bytearray(path.read_bytes())
    assert data.index(b"moov") > data.index(b"mdat"), "the index comes last, so it may grow"
    parents = [box(data, b"moov"), box(data, b"moov", b"trak"), box(data, b"moov", b"trak", b"edts")]
    movie_scale, scale = (
        struct.unpack(">I", data[(at := box(data, *kinds)[0] + 20) : at + 4])[0]
        for kinds in ((b"moov", b"mvhd"), (b"moov", b"trak", b"mdia", b"mdhd"))
    )
    start, end = box(data, b"moov", b"trak", b"edts", b"elst")
    first = struct.unpack(">i", data[start + 20 : start + 24])[0]  # the delay of decoding
    entries = b"".join(
        struct.pack(">IiI", round(length * movie_scale), -1 if second < 0 else round(second * scale) + first, ONE)
        for second, length in edits
    )
    new = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    for at, until in parents:
        data[at : at + 4] = struct.pack(">I", until - at + len(new) - (end - start))
    data[start:end] = new
    path.write_bytes(data)


def without_start(path: Path) -> None:
    """Cut the first third off, at a packet of the transport stream."""
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 188 // 3 * 188 :])


@dataclass(frozen=True)
class Odd:
    """How one file is made."""

    name: str
    suffix: str
    make: Callable[[Path], object]

    def build(self, folder: Path) -> Path:
        path = folder / f"clip{self.suffix}"
        self.make(path)
        return path


X264 = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "12", "-pix_fmt", "yuv420p")
PLAIN = (*X264, "-bf", "0", "-g", "10")
BFRAMES = (*X264, "-bf", "2", "-g", "12", "-sc_threshold", "0")


def plain(suffix: str, *options: object, name: str = "", **more) -> Odd:
    return Odd(name or f"{suffix[1:]} {options[1]}", suffix, lambda path: encode(path, *options, **more))


def turned(name: str, *matrix: float, suffix: str = ".mp4") -> Odd:
    return Odd(f"matrix {name}", suffix, lambda path: with_matrix(encode(path, *PLAIN), *matrix))


def edited(name: str, *edits: tuple[float, float], options: tuple = BFRAMES, suffix: str = ".mp4") -> Odd:
    return Odd(f"edit list: {name}", suffix, lambda path: with_edits(encode(path, *options), *edits))


def copied(name: str, suffix: str, source: str, make: tuple, *options: object, before: tuple = ()) -> Odd:
    """A file, and then a copy of its packets."""

    def build(path: Path) -> None:
        first = encode(path.with_name(f"source{source}"), *make)
        ffmpeg(*before, "-i", first, "-c", "copy", *options, path)

    return Odd(name, suffix, build)


def with_cover(name: str, suffix: str, *options: object) -> Odd:
    """A picture as the first video stream, marked as the cover."""

    def build(path: Path) -> None:
        cover = encode(path.with_name("cover.png"), "-frames:v", "1", images=255 - scene(200, 200, 1))
        film = encode(path.with_name("film.mp4"), *PLAIN)
        ffmpeg("-i", cover, "-i", film, "-map", "0", "-map", "1", "-c", "copy", *options, path)

    return Odd(name, suffix, build)


def two_films(name: str, suffix: str, first: tuple[int, int], second: tuple[int, int], *options: object) -> Odd:
    def build(path: Path) -> None:
        films = [
            encode(path.with_name(f"film{number}.mp4"), *PLAIN, images=scene(*size, FRAMES - 5 * number))
            for number, size in enumerate((first, second))
        ]
        inputs = [part for film in films for part in ("-i", film)]
        ffmpeg(*inputs, "-map", "0:v", "-map", "1:v", "-c", "copy", *options, path)

    return Odd(name, suffix, build)


OPEN = (*X264, "-x264-params", "open-gop=1:keyint=8:bframes=3")
HEVC_OPEN = ("-c:v", "libx265", "-x265-params", "log-level=error:open-gop=1:keyint=8:min-keyint=8:bframes=3:crf=12")
SECOND = ("-disposition:v:0", 0, "-disposition:v:1", "default")
SOUND = ("-f", "lavfi", "-i", "sine=d=1.2")
ODD_FILES = [
    plain(".mp4", *BFRAMES, name="mp4, B-frames"),
    plain(".mov", *PLAIN, name="mov"),
    plain(".mkv", *BFRAMES, name="mkv"),
    plain(".avi", *BFRAMES, name="avi, H.264 with B-frames"),
    plain(".avi", "-c:v", "mpeg4", "-q:v", 2, name="avi, mpeg4"),
    plain(".avi", "-c:v", "mpeg4", "-q:v", 2, "-bf", 2, name="avi, mpeg4 with B-frames"),
    plain(".ts", *BFRAMES, name="transport stream"),
    plain(".m2ts", *PLAIN, name="m2ts"),
    plain(".mpg", "-c:v", "mpeg2video", "-q:v", 2, "-bf", 2, name="program stream, mpeg2"),
    plain(".vob", "-c:v", "mpeg2video", "-q:v", 2, "-f", "vob", name="vob"),
    plain(".mxf", "-c:v", "mpeg2video", "-q:v", 2, name="mxf"),
    plain(".flv", "-c:v", "flv", "-q:v", 2, name="flv"),
    plain(".wmv", "-c:v", "wmv2", "-q:v", 2, name="wmv"),
    plain(".3gp", "-c:v", "mpeg4", "-q:v", 2, name="3gp"),
    plain(".webm", "-c:v", "libvpx", "-b:v", "2M", "-auto-alt-ref", 1, "-lag-in-frames", 10, name="webm, VP8"),
    plain(".webm", "-c:v", "libvpx-vp9", "-b:v", "2M", "-deadline", "realtime", "-cpu-used", 8, name="webm, VP9"),
    plain(".ogv", "-c:v", "libtheora", "-q:v", 9, name="theora"),
    plain(".gif", "-vf", "fps=25", name="gif"),
    plain(".mov", "-c:v", "prores_ks", name="prores"),
    plain(".mov", "-c:v", "png", name="png in mov"),
    plain(".mkv", "-c:v", "ffv1", name="ffv1"),
    plain(".mov", "-c:v", "mjpeg", "-q:v", 2, "-pix_fmt", "yuvj420p", name="mjpeg"),
    plain(".mp4", "-c:v", "libx265", "-x265-params", "log-level=error:crf=12", name="hevc"),
    plain(".mkv", "-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "crf=9", name="hevc, 10 bits"),
    plain(".mp4", *X264[:-1], "yuv444p", name="4:4:4"),
    plain(".mp4", *X264[:-1], "gray", name="grey"),
    plain(".mp4", *X264, "-flags", "+ilme+ildct", "-x264-params", "interlaced=1", name="interlaced"),
    plain(".mp4", *X264, "-vf", "setsar=2/1", name="anamorphic"),
    plain(".mkv", *X264, "-vf", "setsar=1/3", name="anamorphic, flat"),
    plain(".mp4", *OPEN, name="open GOP"),
    plain(".mp4", *BFRAMES, "-movflags", "frag_keyframe+empty_moov", name="fragmented"),
    plain(".mp4", *BFRAMES, "-movflags", "faststart", name="index in front"),
    plain(".mp4", *X264, "-vf", "select='mod(n\\,3)',setpts=N*N/25/TB/5", "-vsync", "vfr", name="variable rate"),
    plain(".mp4", *PLAIN, "-frames:v", 1, name="one frame"),
    plain(".mp4", *X264[:-1], "yuv444p", name="odd size", images=scene(67, 45)),
    turned("upright", 1, 0, 0, 1),
    turned("90", 0, 1, -1, 0),
    turned("180", -1, 0, 0, -1),
    turned("270", 0, -1, 1, 0, suffix=".mov"),
    turned("mirrored", -1, 0, 0, 1),
    turned("upside down, mirrored", 1, 0, 0, -1),
    turned("transposed", 0, 1, 1, 0),
    turned("transposed the other way", 0, -1, -1, 0),
    turned("of zeros", 0, 0, 0, 0),
    turned("twice as large", 2, 0, 0, 2),
    turned("wide", 0, 1, -2, 0),
    turned("a little askew", 0.9998, 0.0175, -0.0175, 0.9998),
    turned("30 degrees", 0.866, 0.5, -0.5, 0.866),
    edited("the middle", (0.3, 0.5)),
    edited("the middle, no B-frames", (0.28, 0.4), options=PLAIN),
    edited("the end", (0.6, 0.6)),
    edited("the start", (0.0, 0.4)),
    edited("a pause first", (-1, 0.5), (0.0, 1.2)),
    edited("two pieces", (0.2, 0.2), (0.8, 0.2)),
    edited("longer than the film", (0.2, 5.0)),
    edited("a pause between two pieces", (0.0, 0.4), (-1, 0.4), (0.4, 0.4)),
    edited("a piece twice", (0.2, 0.4), (0.2, 0.4)),
    edited("mpeg4", (0.3, 0.5), options=("-c:v", "mpeg4", "-q:v", 2, "-g", 8), suffix=".mov"),
    edited("hevc", (0.3, 0.5), options=("-c:v", "libx265", "-x265-params", "log-level=error:crf=12:keyint=10")),
    copied("cut without coding", ".mp4", ".mp4", BFRAMES, "-t", 0.5, before=("-ss", 0.33)),
    Odd("a transport stream cut before its first key frame", ".ts", lambda path: without_start(encode(path, *OPEN))),
    copied("HEVC, open GOP, cut", ".mp4", ".mkv", HEVC_OPEN, before=("-ss", 0.4)),
    copied("a transport stream cut in its middle", ".ts", ".ts", BFRAMES, before=("-ss", 0.3)),
    copied("open GOP cut in its middle", ".mkv", ".mkv", OPEN, before=("-ss", 0.4)),
    copied("negative times", ".mkv", ".mp4", BFRAMES, "-avoid_negative_ts", "disabled", before=("-itsoffset", -20)),
    with_cover("mp4, the cover first", ".mp4", "-disposition:v:0", "attached_pic"),
    with_cover("mkv, the cover first", ".mkv", "-disposition:v:0", "attached_pic"),
    two_films("two films, the larger second", ".mkv", (64, 48), (96, 64)),
    two_films("two films, the default second", ".mkv", (96, 64), (64, 48), *SECOND),
    two_films("two films in mp4", ".mp4", (64, 48), (96, 64)),
    plain(".mp4", *PLAIN, "-c:a", "aac", "-map", "1", "-map", "0", name="the sound first", more_inputs=SOUND),
]  # fmt: skip
