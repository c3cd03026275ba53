"""Folders of pictures as clips: their names, order, numbers and identity."""

import os
import time
from pathlib import Path

import pytest

from multiattn.runtime.files import content_fingerprint
from multiattn.runtime.frame_folders import clip_facts, clip_fingerprint, frame_names, frame_numbers, is_image_name


@pytest.mark.parametrize(
    ("is_image", "names"), [(True, ["a.jpg", "a.JPEG", "a.b.png"]), (False, [".hidden.png", "a.mp4", "png", ""])]
)
def test_a_picture_is_known_by_its_name(is_image, names):
    assert {name: is_image_name(name) for name in names} == dict.fromkeys(names, is_image)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["1.png", "2.png", "10.png"], [1, 2, 10], id="not padded"),
        pytest.param(["clip7_0000.jpg", "clip7_0030.jpg"], [0, 30], id="the last of several numbers"),
        pytest.param(["000001_0.jpg", "000002_0.jpg"], [0, 1], id="the last number stays the same"),
        pytest.param(["a.png", "b.png"], [0, 1], id="no numbers"),
        pytest.param(["a2.png", "b1.png"], [0, 1], id="numbers that fall"),
        pytest.param(["cover.png", "f1.png"], [0, 1], id="one without a number"),
        pytest.param(["12345678901234567890.png"], [0], id="no frame's number"),
        pytest.param(["01.png", "1.png"], [0, 1], id="a number twice"),
        pytest.param(["\u0663.png"], [0], id="digits of another script"),
    ],
)
def test_frames_are_in_natural_order_and_numbered_by_their_names_where_these_rise(names, numbers, tmp_path):
    for name in (*reversed(names), ".hidden.png", "readme.txt"):
        (tmp_path / name).touch()
    assert frame_names(tmp_path) == names
    assert frame_numbers(names) == numbers


def make_clip(folder: Path) -> Path:
    folder.mkdir()
    for name in ("1.png", "2.png"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        pytest.param(lambda clip: (clip / "1.png").write_bytes(b"3.png"), True, id="other pixels of the same size"),
        pytest.param(lambda clip: (clip / "2.png").unlink(), True, id="a frame less"),
        pytest.param(lambda clip: (clip / "2.png").rename(clip / "3.png"), True, id="another number"),
        pytest.param(lambda clip: (clip / "notes.txt").touch(), False, id="no frame"),
        pytest.param(lambda clip: os.utime(clip / "1.png", (0, 0)), False, id="another time"),
    ],
)
def test_a_clip_of_pictures_is_known_by_its_content(change, is_another, tmp_path):
    clip = make_clip(tmp_path / "clip")
    before, facts = clip_fingerprint(clip), clip_facts(clip)
    time.sleep(0.02)  # a file system's clock ticks
    change(clip)
    assert (clip_fingerprint(clip) != before) == is_another
    assert clip_facts(clip) != facts, "whoever looks reads the content again"


def test_a_file_is_known_as_any_file_and_nothing_has_no_facts(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"clip")
    assert clip_fingerprint(path) == content_fingerprint(path)
    assert clip_facts(path)[0] == 4
    assert clip_facts(tmp_path / "gone") == []
