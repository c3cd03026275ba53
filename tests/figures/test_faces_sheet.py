"""The contact sheet: doubt by hand, the doubtful first, a page that stands alone, a folder too large to show."""

import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from drawn_faces import write_faces_folder
from multiattn.figures import faces as sheet
from multiattn.figures.faces import contact_sheet, shown_rows, track_doubts
from multiattn.stages.figures import main
from multiattn.tables import FACES, LANDMARKS
from multiattn.video.crops.recipe import CropRecipe
from page_reader import Reader

FRAMES = 10
RECIPE = CropRecipe(num_frames=FRAMES, size=100, threshold=0.9)


def track(video: str, number: int = 0, *, rows: int = FRAMES, side=200.0, score=1.0, left=0.0) -> pd.DataFrame:
    """Rows of a track; side, score and left may be functions of the frame."""
    left, side, score = (
        np.array([float(value(frame) if callable(value) else value) for frame in range(rows)])
        for value in (left, side, score)
    )
    table = pd.DataFrame(
        {"frame_index": 3 * np.arange(rows), "score": score, "x1": left, "x2": left + side, "y2": side}
    )
    crops = [f"crops/{video}/{frame:06d}_{number}.jpg" for frame in table["frame_index"]]
    table = table.assign(video_id=video, track=number, crop=crops, seconds=0.0, y1=0.0)
    return table.assign(**dict.fromkeys(LANDMARKS, 0.0))


def faces_of(*tracks: pd.DataFrame) -> pd.DataFrame:
    faces = FACES.validate(pd.concat(tracks), "test") if tracks else FACES.empty()
    return faces.sort_values(list(FACES.key), ignore_index=True)


def doubts(*tracks: pd.DataFrame, num_frames: int = FRAMES) -> pd.DataFrame:
    faces = faces_of(*tracks)
    statuses = pd.DataFrame({"video_id": faces["video_id"].unique(), "num_frames": num_frames})
    return track_doubts(faces, statuses, threshold=0.9)


def write_folder(folder: Path, *tracks: pd.DataFrame, empty: dict[str, tuple[str, str]] | None = None) -> Path:
    """A faces folder of these tracks, and of videos without crops: name -> status, message."""
    faces = faces_of(*tracks)
    labels = {video: number % 2 for number, video in enumerate([*faces["video_id"].unique(), *(empty or {})])}
    write_faces_folder(folder, faces, labels, RECIPE, without=empty)
    for crop in faces["crop"]:
        (folder / crop).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / crop), np.full((100, 100, 3), int(crop[-12:-6]) * 8, np.uint8))
    return folder


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        pytest.param(track("v"), {}, id="nothing to see"),
        pytest.param(track("v", score=0.95), {"score": 0.5}, id="half way to the threshold"),
        pytest.param(track("v", score=0.8), {"score": 1}, id="below the threshold: the thorough pass"),
        pytest.param(track("v", score=lambda n: 0.9 if n < 4 else 1), {}, id="the median decides"),
        pytest.param(track("v", left=lambda n: 50 * n), {}, id="IoU 0.6: steady enough"),
        pytest.param(track("v", left=lambda n: 100 * (n > 4)), {"jump": (0.6 - 1 / 3) / 0.3}, id="one jump, IoU 1/3"),
        pytest.param(track("v", left=lambda n: 500 * (n > 4)), {"jump": 1}, id="one jump into nowhere"),
        pytest.param(track("v", side=64), {"tiny": 0.5}, id="64 pixels"),
        pytest.param(track("v", side=20), {"tiny": 1}, id="20 pixels"),
        pytest.param(track("v", side=0), {}, id="no boxes in the table"),
        pytest.param(track("v", rows=5), {}, id="half of the frames"),
        pytest.param(track("v", rows=3), {"seldom": 0.25}, id="three of ten frames"),
        pytest.param(track("v", rows=1), {"seldom": 0.5}, id="one of ten frames"),
    ],
)
def test_doubt_by_hand(rows, parts):
    found = doubts(rows).iloc[0]
    expected = {"score": 0, "jump": 0, "tiny": 0, "seldom": 0, **parts}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["doubt"] == pytest.approx(max(expected.values()))


def test_seldom_does_not_count_in_a_short_video():
    assert doubts(track("v", rows=1), num_frames=4)["doubt"].tolist() == [0]


def test_a_jump_is_within_a_track_and_not_from_one_to_the_next():
    found = doubts(track("v"), track("v", 1, left=900), track("w", left=4000))
    assert found["least_iou"].tolist() == [1, 1, 1]


def test_no_tracks_have_no_doubts():
    assert len(doubts()) == 0


def test_the_most_doubtful_comes_first_and_ties_are_broken():
    order = [track("steady"), track("a", score=0.95), track("b", score=0.95, side=80), track("z", score=0.91)]
    assert doubts(*order)["video_id"].tolist() == ["z", "b", "a", "steady"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(track("v", rows=1), [0], id="one row"),
        pytest.param(track("v", rows=8), list(range(8)), id="as many as fit"),
        pytest.param(
            track("v", rows=32, score=lambda n: 0.9 if n == 5 else 1, left=lambda n: 900 * (n > 20)),
            [0, 5, 12, 20, 21, 31],
            id="the lowest score and both sides of the jump",
        ),
    ],
)
def test_the_rows_that_are_shown(rows, expected):
    shown = (shown_rows(rows)["frame_index"] // 3).tolist()
    assert shown == sorted(set(shown)) and len(shown) == min(8, len(rows))
    assert set(expected) <= set(shown)


def test_the_page_shows_every_video_with_the_doubtful_first_and_loads_nothing(tmp_path):
    folder = write_folder(
        tmp_path / "faces<1>",
        track("set/good"),
        track("set/bad", score=0.93),
        track("set/two"),
        track("set/two", 1, rows=2, side=40),
        empty={"set/none": ("no_face", ""), "set/broken": ("unreadable", "no <moov> atom")},
    )
    reader = Reader(contact_sheet(folder))
    assert reader.loaded == []
    assert "Faces of faces<1>" in reader.text
    assert "Videos: 3 ok, 1 no_face, 1 unreadable" in reader.text
    assert "Videos without crops: 2 of 2" in reader.text and "no <moov> atom" in reader.text
    places = [reader.text.index(name) for name in ("set/none", "set/broken", "set/two", "set/bad", "set/good")]
    assert places == sorted(places)
    assert "track 1, doubt 0.88" in reader.text and "side 40 px" in reader.text
    assert len(reader.images) == 8 + 8 + 8 + 2
    assert len({image["alt"] for image in reader.images}) == len(reader.images)
    assert "set/two, track 1, frame 3" in {image["alt"] for image in reader.images}


def test_a_crop_that_is_gone_leaves_its_name(tmp_path):
    folder = write_folder(tmp_path, track("set/v", rows=2))
    (folder / "crops/set/v/000003_0.jpg").unlink()
    reader = Reader(contact_sheet(folder))
    assert len(reader.images) == 1 and "no crop 000003_0.jpg" in reader.text


def test_a_folder_without_a_face_has_a_page_too(tmp_path):
    reader = Reader(contact_sheet(write_folder(tmp_path, empty={"set/v": ("no_face", "")})))
    assert reader.images == [] and "Videos with crops: 0 of 0" in reader.text


def test_named_videos_and_the_limit_bound_what_is_read(tmp_path, monkeypatch):
    tracks = [track(f"set/{number}", score=0.9 + number / 100) for number in range(5)]
    empty = {f"set/none{number}": ("no_face", "") for number in range(4)}
    folder = write_folder(tmp_path, *tracks, empty=empty)
    read = []
    monkeypatch.setattr(sheet, "crop_figure", lambda path, caption, alt: read.append(alt.split(",")[0]) or "")
    text = Reader(contact_sheet(folder, limit=2)).text
    assert set(read) == {"set/0", "set/1"} and "Videos with crops: 2 of 5" in text
    assert "Videos without crops: 2 of 4" in text
    read.clear()
    text = Reader(contact_sheet(folder, videos=("set/4", "set/none3"))).text
    assert set(read) == {"set/4"} and "set/none3" in text and "set/none0" not in text
    assert "Videos: 5 ok, 4 no_face" in text, "the counts are the folder's"
    with pytest.raises(ValueError, match=r"--videos: 'set/9' is not in .* Did you mean 'set/"):
        contact_sheet(folder, videos=("set/9",))


def test_a_crowd_is_cut_short(tmp_path):
    folder = write_folder(tmp_path, *[track("set/v", number, rows=2) for number in range(9)])
    reader = Reader(contact_sheet(folder))
    assert len(reader.images) == 2 * 6 and "and 3 less doubtful tracks" in reader.text


def test_the_stage_writes_the_page(tmp_path, capsys):
    folder = write_folder(tmp_path / "faces", track("set/v", rows=2))
    main(["faces", "--faces", str(folder), "--out", str(tmp_path / "new/sheet.html")])
    assert f"written: {tmp_path / 'new/sheet.html'}" in capsys.readouterr().out
    assert (tmp_path / "new/sheet.html").read_text() == contact_sheet(folder)
    with pytest.raises(ValueError, match="--limit: expected at least 1, found 0"):
        main(["faces", "--faces", str(folder), "--out", str(tmp_path / "x.html"), "--limit", "0"])
    with pytest.raises(FileNotFoundError, match="not a faces folder"):
        main(["faces", "--faces", str(tmp_path), "--out", str(tmp_path / "x.html")])


def test_doubts_of_a_hundred_thousand_tracks_take_seconds():
    """5,000 tracks here, in well under the twentieth of 30 seconds."""
    count = 5_000
    faces = track("v", rows=32).iloc[np.tile(np.arange(32), count)].reset_index(drop=True)
    faces["video_id"] = np.repeat([f"set/{number:06d}" for number in range(count)], 32)
    statuses = pd.DataFrame({"video_id": faces["video_id"].unique(), "num_frames": 32})
    started = time.process_time()
    assert len(track_doubts(faces, statuses, threshold=0.9)) == count
    assert time.process_time() - started < 1.5
