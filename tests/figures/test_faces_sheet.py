"""The contact sheet: doubt by hand, the doubtful first, a page that stands alone, a folder too large to show."""

import base64
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from multiattn.figures import faces as sheet
from multiattn.figures.faces import ContactSheet, contact_sheet, shown_rows, track_doubts
from multiattn.stages.figures import main
from multiattn.tables import FACES, LANDMARKS, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import CropRecipe, write_recipe
from page_reader import Reader

FRAMES = 10
RECIPE = CropRecipe(num_frames=FRAMES, size=100, threshold=0.9)


def track(video: str, number: int = 0, *, rows: int = FRAMES, side=200.0, score=1.0, left=0.0) -> list[dict]:
    """Rows of a track; side, score and left may be functions of the frame."""

    def at(value, frame: int) -> float:
        return float(value(frame) if callable(value) else value)

    return [
        {
            "video_id": video,
            "frame_index": 3 * frame,
            "seconds": frame / 10,
            "track": number,
            "crop": f"crops/{video}/{3 * frame:06d}_{number}.jpg",
            "x1": at(left, frame),
            "y1": 0.0,
            "x2": at(left, frame) + at(side, frame),
            "y2": at(side, frame),
            "score": at(score, frame),
            **dict.fromkeys(LANDMARKS, 0.0),
        }
        for frame in range(rows)
    ]


def tables(*tracks: list[dict], empty: dict[str, tuple[str, str]] | None = None):
    """`faces`, `video_status` and `videos` of these tracks, and of videos without crops: name -> status, message."""
    rows = [row for one in tracks for row in one]
    faces = FACES.validate(pd.DataFrame(rows), "test") if rows else FACES.empty()
    counts = faces.groupby("video_id").size()
    statuses = [(video, "ok", FRAMES, int(count), "") for video, count in counts.items()]
    statuses += [(video, status, 0, 0, message) for video, (status, message) in (empty or {}).items()]
    videos = [
        (video, f"{video}.mp4", "set", number % 2, "", "", "", "", "", "", "")
        for number, (video, *_) in enumerate(statuses)
    ]
    return (
        faces.sort_values(list(FACES.key), ignore_index=True),
        VIDEO_STATUS.validate(pd.DataFrame(statuses, columns=list(VIDEO_STATUS.columns)), "test"),
        VIDEOS.validate(pd.DataFrame(videos, columns=list(VIDEOS.columns)), "test"),
    )


def write_folder(folder: Path, *tracks: list[dict], **options) -> Path:
    faces, statuses, videos = tables(*tracks, **options)
    FACES.write(faces, folder / "faces.parquet")
    VIDEO_STATUS.write(statuses, folder / "video_status.csv")
    VIDEOS.write(videos, folder / "videos.csv")
    write_recipe(RECIPE, folder)
    for crop in faces["crop"]:
        (folder / crop).parent.mkdir(parents=True, exist_ok=True)
        level = int(crop[-12:-6]) * 8
        cv2.imwrite(str(folder / crop), np.full((100, 100, 3), level, np.uint8))
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
    faces, statuses, _ = tables(rows)
    found = track_doubts(faces, statuses, threshold=0.9).iloc[0]
    expected = {"score": 0, "jump": 0, "tiny": 0, "seldom": 0, **parts}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["doubt"] == pytest.approx(max(expected.values()))


def test_seldom_does_not_count_in_a_short_video():
    faces, statuses, _ = tables(track("v", rows=1))
    assert track_doubts(faces, statuses.assign(num_frames=4), threshold=0.9)["doubt"].tolist() == [0]


def test_a_jump_is_within_a_track_and_not_from_one_to_the_next():
    faces, statuses, _ = tables(track("v"), track("v", 1, left=900), track("w", left=4000))
    assert track_doubts(faces, statuses, threshold=0.9)["least_iou"].tolist() == [1, 1, 1]


def test_no_tracks_have_no_doubts():
    faces, statuses, _ = tables(empty={"v": ("no_face", "")})
    assert len(track_doubts(faces, statuses, threshold=0.9)) == 0


def test_the_most_doubtful_comes_first_and_ties_are_broken():
    order = [track("steady"), track("a", score=0.95), track("b", score=0.95, side=80), track("z", score=0.91)]
    faces, statuses, _ = tables(*order)
    assert track_doubts(faces, statuses, threshold=0.9)["video_id"].tolist() == ["z", "b", "a", "steady"]


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
    shown = (shown_rows(pd.DataFrame(rows))["frame_index"] // 3).tolist()
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


def test_thumbnails_are_the_crops_made_small(tmp_path):
    folder = write_folder(tmp_path, track("set/v", rows=3))
    for image, level in zip(Reader(contact_sheet(folder)).images, (0, 24, 48), strict=True):
        content = base64.b64decode(re.fullmatch(r"data:image/jpeg;base64,(\S+)", image["src"])[1])
        assert len(content) < 5000
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (88, 88, 3) and abs(picture.mean() - level) < 2


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
    with pytest.raises(ValueError, match="--videos: 'set/9' is not in"):
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
        ContactSheet(faces=folder, out=tmp_path / "x.html", limit=0).draw()
    with pytest.raises(FileNotFoundError, match="not a faces folder"):
        ContactSheet(faces=tmp_path, out=tmp_path / "x.html").draw()


def test_doubts_of_a_hundred_thousand_tracks_take_seconds():
    """20,000 tracks here, in well under the fifth of 30 seconds."""
    rows = pd.DataFrame(track("v", rows=32))
    count = 20_000
    faces = pd.concat([rows] * count, ignore_index=True)
    faces["video_id"] = np.repeat([f"set/{number:06d}" for number in range(count)], 32)
    statuses = pd.DataFrame({"video_id": faces["video_id"].unique(), "num_frames": 32})
    started = time.process_time()
    assert len(track_doubts(faces, statuses, threshold=0.9)) == count
    assert time.process_time() - started < 6
