"""220 seeded mutations of the real clips: no crash, no hang, and every one ends with a status.

Most are made of the first frames of each clip, cut out without encoding anything anew, and only decoded, in a process
of their own that may crash without ending the test run; a few are whole clips, and a few go through extraction.
"""

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from multiattn.datasets.manifest import video_row
from multiattn.tables import VIDEOS
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.faces_folder import extract_faces
from multiattn.video.extraction.isolation import call_isolated

pytestmark = pytest.mark.shared
PACKETS, WANTED = 12, 3
SEEDS = 22
TIME_LIMIT = 60
BOXES = (b"moov", b"tkhd", b"mdhd", b"stsd", b"avc1", b"avcC", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"mdat")


@pytest.fixture(scope="module")
def clips(shared: Path) -> list[Path]:
    """The real clips."""
    found = sorted((shared / "videos").rglob("*.mp4"))
    assert len(found) == 7
    return found


@pytest.fixture(scope="module")
def starts(clips: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The first packets of each clip as files, every second with its index in front."""
    folder = tmp_path_factory.mktemp("starts")
    contents = []
    for number, clip in enumerate(clips):
        path = folder / f"{number}.mp4"
        with av.open(str(clip)) as whole, av.open(
            str(path), "w", options={"movflags": "faststart"} if number % 2 else {}
        ) as start:  # fmt: skip
            stream = start.add_stream_from_template(whole.streams.video[0])
            for count, packet in enumerate(whole.demux(whole.streams.video[0])):
                if count == PACKETS:
                    break
                packet.stream = stream
                start.mux(packet)
        contents.append(path.read_bytes())
    return contents


def flip(content: bytearray, rng: np.random.Generator, start: int, end: int, most: int) -> None:
    """Flip bits of fewer than 2 ** `most` bytes."""
    for place in rng.integers(start, end, size=2 ** rng.integers(0, most)):
        content[place] ^= 1 << rng.integers(0, 8)


def block(content: bytearray, rng: np.random.Generator, least_parts: int) -> slice:
    """A piece of it, at most one of so many parts."""
    size = int(rng.integers(1, len(content) // least_parts))
    start = int(rng.integers(0, len(content) - size))
    return slice(start, start + size)


def truncate(content: bytearray, rng: np.random.Generator) -> None:
    del content[rng.integers(1, len(content)) :]


def flip_bits(content: bytearray, rng: np.random.Generator) -> None:
    flip(content, rng, 0, len(content), 9)


def flip_bits_of_the_header(content: bytearray, rng: np.random.Generator) -> None:
    start = content.index(b"moov") - 4
    flip(content, rng, start, min(len(content), start + int.from_bytes(content[start : start + 4], "big")), 6)


def flip_bits_of_the_parameter_sets(content: bytearray, rng: np.random.Generator) -> None:
    start = content.index(b"avcC") + 4
    flip(content, rng, start, start + 40, 4)


def zero_a_block(content: bytearray, rng: np.random.Generator) -> None:
    part = block(content, rng, 2)
    content[part] = bytes(part.stop - part.start)


def overwrite_a_block(content: bytearray, rng: np.random.Generator) -> None:
    part = block(content, rng, 4)
    content[part] = rng.bytes(part.stop - part.start)


def declare_huge_sizes(content: bytearray, rng: np.random.Generator) -> None:
    box = BOXES[rng.integers(len(BOXES))]
    place = content.index(box) + int(rng.choice([-4, 4, 8, 12, 16, 24, 28, 32]))
    value = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xf0", b"\x00\xff\xff\xff"][rng.integers(4)]
    content[place : place + 4] = value


def move_a_block(content: bytearray, rng: np.random.Generator) -> None:
    part = block(content, rng, 3)
    moved = content[part]
    del content[part]
    at = int(rng.integers(0, len(content)))
    content[at:at] = moved


def lose_the_start(content: bytearray, rng: np.random.Generator) -> None:
    del content[: rng.integers(1, len(content) // 2)]


def replace_it(content: bytearray, rng: np.random.Generator) -> None:
    other = [b"", b"\0", b"just text\n" * 999, bytes(5000), rng.bytes(5000), b"\xff\xd8\xff\xe0\0\x10JFIF", b"ftyp" * 9]
    content[:] = other[rng.integers(len(other))]


MUTATIONS: list[Callable[[bytearray, np.random.Generator], None]] = [
    truncate, flip_bits, flip_bits_of_the_header, flip_bits_of_the_parameter_sets, zero_a_block,
    overwrite_a_block, declare_huge_sizes, move_a_block, lose_the_start, replace_it,
]  # fmt: skip
NAMES = ["clip.mp4", "a clip  with spaces .mp4", "клип 影片 é\u0301 🎬.mp4", "-y.mp4", "%d 100%.mp4", "clip.avi"]
NAMES += ["clip.txt", "c"]


def status_of(path: Path, num_frames: int, *, fast_frames: bool = False) -> str:
    """Decode in a process of its own; `ok`, `partly` or `unreadable`, after checks that hold for each."""
    arguments = pickle.dumps((path, num_frames, fast_frames))
    _, outcome, value = call_isolated("", "misbehaving:decode", arguments, TIME_LIMIT)
    assert outcome == "done", f"{outcome}: {value}"
    found = pickle.loads(value)
    assert found["num_frames"] == len(found["frames"]) <= num_frames
    indices = [index for index, _, _ in found["frames"]]
    assert indices == sorted(set(indices))
    assert bool(found["frames"]) == (not found["unreadable"])
    words = found["message"] + found["unreadable"] + found["probe"]
    assert str(path.parent) not in words, "tables of two machines must be equal"
    if found["unreadable"]:
        return "unreadable"
    return "partly" if found["message"] else "ok"


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_every_mutation_ends_with_a_status(mutate, starts, tmp_path):
    counts = Counter()
    for seed in range(SEEDS):
        rng = np.random.default_rng([MUTATIONS.index(mutate), seed])
        content = bytearray(starts[seed % len(starts)])
        mutate(content, rng)
        path = tmp_path / str(seed) / NAMES[seed % len(NAMES)]
        path.parent.mkdir()
        path.write_bytes(content)
        counts[status_of(path, WANTED, fast_frames=seed % 3 == 0)] += 1
    assert counts.total() == SEEDS
    assert counts["unreadable"] > 0, "mutations that harm nothing show nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_file_is_read_whatever_its_name(name, starts, tmp_path):
    path = tmp_path / name
    path.write_bytes(starts[3])
    assert status_of(path, WANTED) == "ok"


@pytest.mark.parametrize(
    ("share", "status"), [(0.5, "partly"), (0.02, "unreadable")], ids=["half of it", "next to nothing of it"]
)
def test_a_partial_download_of_a_whole_clip(share, status, clips, tmp_path):
    """The FF++ clip has its index in front, as a partial download must to be read at all."""
    content = next(clip for clip in clips if clip.stem == "519").read_bytes()
    front = content.index(b"moov") < content.index(b"mdat")
    path = tmp_path / "clip.mp4"
    path.write_bytes(content[: int(share * len(content))])
    assert status_of(path, 4) == (status if front else "unreadable")


def test_extraction_of_broken_clips_gives_each_a_row(starts, tmp_path):
    kinds = [truncate, declare_huge_sizes, replace_it]
    paths = {}
    for number, mutate in enumerate(kinds):
        content = bytearray(starts[3])
        mutate(content, np.random.default_rng(number))
        paths[mutate.__name__] = tmp_path / f"{mutate.__name__} é.mp4"
        paths[mutate.__name__].write_bytes(content)
    paths["whole"] = tmp_path / "whole 影.mp4"
    paths["whole"].write_bytes(starts[3])
    videos = VIDEOS.validate(pd.DataFrame([video_row("clips", f"{name}.mp4", label=0) for name in paths]), "clips")
    tasks = [VideoTask(video_id=f"clips/{name}", path=path) for name, path in paths.items()]
    settings = ExtractionSettings(recipe=CropRecipe(num_frames=2, size=64))
    statuses = extract_faces(videos, tasks, tmp_path / "faces", settings, jobs=1, time_limit=TIME_LIMIT)
    found = dict(zip(statuses["video_id"].str[6:], statuses["status"], strict=True))
    assert found.keys() == paths.keys()
    assert found["whole"] == "ok"
    assert found["replace_it"] == "unreadable"
    assert not statuses["message"][statuses["status"] == "unreadable"].eq("").any()
