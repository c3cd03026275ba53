"""Odd but valid files show what Debian's ffmpeg shows of them; files that make FFmpeg read others are refused."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from odd_media import FFMPEG, ODD_FILES, Odd, encode, scene, shown
from PIL import Image

from drawn_faces import write_clip
from multiattn.video.crops.images import read_crop
from multiattn.video.decoding.frames import FrameReader, evenly_spaced_indices, probe_video
from multiattn.video.decoding.pictures import UnreadableVideoError

needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="needs the program ffmpeg")
MOST_APART = 6
"""Mean difference of levels: another conversion of colours, the jagged border of a picture that was turned by 30°."""


def apart(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second).mean()) if first.shape == second.shape else np.inf


FAST = {
    "matrix 270", "matrix mirrored", "matrix transposed", "matrix of zeros", "edit list: the middle",
    "edit list: two pieces", "edit list: mpeg4", "cut without coding", "HEVC, open GOP, cut", "mp4, the cover first",
    "two films, the larger second", "two films, the default second",
}  # fmt: skip


def row(odd: Odd) -> object:
    """One of each kind is read each time; the rest in the slow tests."""
    return pytest.param(odd, id=odd.name, marks=[] if odd.name in FAST else [pytest.mark.slow])


@needs_ffmpeg
@pytest.mark.parametrize("odd", map(row, ODD_FILES))
def test_what_a_player_shows_is_what_is_read(odd, tmp_path):
    path = odd.build(tmp_path)
    expected = shown(path)
    probed = probe_video(path)
    assert (probed.total_frames, probed.height, probed.width) == (len(expected), *expected[0].shape[:2])
    for wanted in (len(expected), 4):
        reader = FrameReader(path, wanted)
        frames = list(reader)
        assert [frame.index for frame in frames] == evenly_spaced_indices(len(expected), wanted)
        assert reader.message == ""
        assert max(apart(frame.image, expected[frame.index]) for frame in frames) < MOST_APART


def test_there_are_at_least_forty_odd_files():
    names = {odd.name for odd in ODD_FILES}
    assert len(names) == len(ODD_FILES) >= 40 and names >= FAST


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi", "clip.m3u8"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param("ffconcat version 1.0\nfile other.mp4\n", id="ffconcat"),
        pytest.param("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n", id="HLS"),
        pytest.param("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n", id="SDP"),
    ],
)
def test_a_list_of_other_files_is_not_followed(content, name, tmp_path):
    write_clip(tmp_path / "other.mp4", [np.full((64, 64, 3), 99, np.uint8)] * 3)
    (tmp_path / name).write_text(content)
    for read in (lambda: list(FrameReader(tmp_path / name, 2)), lambda: probe_video(tmp_path / name)):
        with pytest.raises(UnreadableVideoError, match=r"a list of other files|Invalid data"):
            read()


@pytest.mark.parametrize("name", ["concat:a|b.mp4", "http:x.mp4", "-i.mp4", "%03d.mp4", "a:b.mp4"])
def test_a_name_means_the_file_and_nothing_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(Path("clip.mp4"), [np.full((64, 64, 3), 99, np.uint8)] * 3).rename(name)
    assert [frame.index for frame in FrameReader(Path(name), 3)] == [0, 1, 2]


@pytest.mark.parametrize("name", ["clip.mp4", "picture.png"])
def test_a_fifo_is_refused_before_anyone_waits_for_it(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnreadableVideoError, match="expected a file, found a FIFO"):
        list(FrameReader(tmp_path / name, 2))


def huge_png(path: Path, side: int = 32000) -> Path:
    """One-bit pixels, all zero: 124 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


READ_HUGE = """
import resource
import sys
from pathlib import Path
from multiattn.video.crops.images import read_crop
from multiattn.video.decoding.frames import FrameReader

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for read in (lambda path: list(FrameReader(path, 2)), lambda path: read_crop(path, 32)):
    try:
        read(Path(sys.argv[1]))
    except Exception as error:
        print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_picture_of_a_billion_pixels_is_refused_by_its_header(tmp_path):
    path = huge_png(tmp_path / "bomb.png")
    assert path.stat().st_size < 200_000
    ended = subprocess.run([sys.executable, "-c", READ_HUGE, path], capture_output=True, text=True, check=True)
    first, second, kilobytes = ended.stdout.splitlines()
    assert first == "UnreadableVideoError ValueError: a picture: more than 67108864 pixels"
    assert second.startswith(f"ValueError {path}: more than 67108864 pixels")
    assert int(kilobytes) < 50_000, "and decoded it would take gigabytes"


@needs_ffmpeg
def test_a_film_of_huge_pictures_is_unreadable(tmp_path, monkeypatch):
    path = encode(tmp_path / "clip.mov", "-c:v", "png", images=scene(96, 64, 2))
    content = bytearray(path.read_bytes())
    for place in (content.index(b"IHDR") + 4, content.index(b"png ") + 28):
        content[place : place + 8] = (32000).to_bytes(4, "big") * 2 if content[place - 4 : place] == b"IHDR" else (
            (32000).to_bytes(2, "big") * 2 + content[place + 4 : place + 8]
        )  # fmt: skip
    path.write_bytes(content)
    with pytest.raises(UnreadableVideoError):
        list(FrameReader(path, 2))


def test_a_small_crop_of_another_format_is_read_too(tmp_path):
    Image.new("RGB", (32, 32), (9, 8, 7)).save(tmp_path / "a.webp", lossless=True)
    assert read_crop(tmp_path / "a.webp", 32)[0, 0].tolist() == [9, 8, 7]
