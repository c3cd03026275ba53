"""The page of scored files and its timeline: whole, loading nothing, and true to the numbers."""

import re
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn.figures.attention import RunMaps
from multiattn.figures.score import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, score_page, timeline_svg
from multiattn.inference.attention_maps import FaceMaps
from multiattn.inference.score_files import ScoredFiles
from page_reader import Reader


def crops_of(tracks: dict[int, list[tuple[float, float]]]) -> pd.DataFrame:
    """track -> (seconds, probability) of its frames, ten frames a second."""
    rows = [
        (track, round(10 * seconds), seconds, probability, "crop.jpg", 2.0 * track, "dark" * track)
        for track, frames in tracks.items()
        for seconds, probability in frames
    ]
    columns = ["track", "frame_index", "seconds", "probability", "crop", "distance", "distance_reason"]
    return pd.DataFrame(rows, columns=columns)


def drawn(crops: pd.DataFrame, probability: float = 0.5) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*</svg>", timeline_svg(crops, probability, 'a "clip" <1>'))[0])


def test_points_lie_at_their_time_and_probability():
    root = drawn(crops_of({0: [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5)]}))
    places = [(float(circle.get("cx")), float(circle.get("cy"))) for circle in root.iter("circle")]
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    assert places == [(LEFT, bottom), ((LEFT + right) / 2, TOP), (right, (TOP + bottom) / 2)]
    assert root.get("aria-label") == 'a "clip" <1>'


@pytest.mark.parametrize(
    ("tracks", "lines"),
    [
        pytest.param({0: [(0.5, 0.2)]}, 1, id="one frame"),
        pytest.param({0: [(0.0, 0.2)]}, 1, id="one frame at the start"),
        pytest.param({0: [(0, 0.2), (1, 0.3), (2, 0.3)], 3: [(0, 0.9), (1, 0.8)]}, 2, id="a line a track"),
        pytest.param({0: [(0, 0.2), (1, 0.3), (5, 0.3), (6, 0.4)]}, 2, id="none across a gap"),
        pytest.param({number: [(0, 0.1), (1, 0.2)] for number in range(20)}, 20, id="more tracks than colours"),
        pytest.param({0: [(0, 0.2), (0, 0.3)]}, 1, id="a stream without times"),
    ],
)
def test_each_track_has_its_line_and_legend(tracks, lines):
    crops = crops_of(tracks)
    root = drawn(crops)
    assert len(list(root.iter("polyline"))) == lines
    assert len(list(root.iter("circle"))) == len(crops)
    assert "nan" not in ET.tostring(root, encoding="unicode")
    words = Reader(timeline_svg(crops, 0.5, "a clip")).text
    assert all(
        f"track {track}, {len(frames)} frame{'s' * (len(frames) > 1)}" in words for track, frames in tracks.items()
    )


def test_the_page_has_a_section_a_file_and_loads_nothing(tmp_path):
    cv2.imwrite(str(tmp_path / "crop.jpg"), np.full((64, 64, 3), 120, np.uint8))
    clip = crops_of({0: [(0, 0.2), (1, 0.9)], 1: [(0, 0.4)]})
    picture = crops_of({0: [(0.0, 0.7)]})
    rows = [
        ("a/<x>.mp4", "file/0", 0.61, 2, 2, 3, "ok", "frame 9 is damaged"),
        ("b/x.png", "file/1", 0.7, 1, 1, 1, "ok", ""),
        ("bad.mp4", "file/2", np.nan, 0, 0, 0, "unreadable", "InvalidDataError"),
        ("wall.jpg", "file/3", np.nan, 0, 1, 0, "no_face", ""),
    ]
    columns = ["file", "video_id", "probability", "faces", "frames", "crops", "status", "reason"]
    crops = pd.concat([clip.assign(video_id="file/0"), picture.assign(video_id="file/1")], ignore_index=True)
    scored = ScoredFiles(pd.DataFrame(rows, columns=columns), pd.DataFrame(), crops)
    crop, grids = np.zeros((64, 64, 3), np.uint8), np.ones((2, 64, 64))
    maps = RunMaps("run/fold0", [FaceMaps(crop, grids, probability) for probability in (0.9, 0.2, 0.7)], {})
    page = score_page("Scores", scored, tmp_path, ["how it was predicted"], maps)
    read = Reader(page)
    assert read.loaded == []
    assert len(read.images) == 4 + 3 * 3  # four crops; of three faces the crop and two maps
    assert page.count("<svg") == 1  # a picture has no time
    for words in (
        "a/<x>.mp4", "P(fake) 0.6100, from 3 crops of 2 face tracks", "frame 9 is damaged", "how it was predicted",
        "1 of 3 crops (33%) lie outside the faces of the training (dark 1)", "outside: dark",
        "P(fake) 0.7000, from 1 crop of 1 face track", "It could not be read: InvalidDataError",
        "No face was found. There is no answer", "Attention of run/fold0",
    ):  # fmt: skip
        assert words in read.text
    assert "nan" not in read.text
    without = Reader(score_page("Scores", scored, tmp_path, [], None))
    assert len(without.images) == 4
    assert "Attention of" not in without.text
