"""Fakes cropped where their originals' faces are: the identical transform, and every reason not to."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from drawn_faces import SquareDetector, draw, write_clip
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction import extract
from multiattn.video.extraction.extract import ExtractionSettings, VideoFaces, VideoTask, extract_video

RECIPE = CropRecipe(num_frames=6, size=32, reuse_original=True)


@pytest.fixture
def detector(monkeypatch) -> SquareDetector:
    """In place of the networks."""
    found = SquareDetector()
    monkeypatch.setattr(extract, "load_detector", lambda *_, **__: found)
    return found


def run(path: Path, folder: Path, *, original: Path | None = None, rows=None, **changes) -> VideoFaces:
    settings = ExtractionSettings(recipe=dataclasses.replace(RECIPE, **changes))
    task = VideoTask(video_id=path.stem, path=path, original="original", original_path=original)
    return extract_video(task, folder, settings, rows)


def clip(path: Path, *, total: int = 12, left: int = 20, size_wh=(160, 96), faces=range(99)) -> Path:
    squares = [(left, 20, 40, 1.0), (100, 30, 50, 0.95)]
    return write_clip(path, [draw(squares if n in faces else [], size_wh=size_wh) for n in range(total)])


@pytest.fixture
def original(detector, tmp_path) -> tuple[Path, list]:
    """A real video and its rows, as they come back from the journal."""
    path = clip(tmp_path / "original.mp4")
    result = run(path, tmp_path / "faces")
    detector.looked_at[False].clear()
    assert (len(result.rows), result.reused) == (12, False)
    return path, json.loads(json.dumps(result.rows))


def test_a_fake_is_cropped_where_its_original_is_without_detection(original, detector, tmp_path):
    path, rows = original
    fake = clip(tmp_path / "fake.mp4", left=24)  # the detector would find it 4 pixels farther right
    result = run(fake, tmp_path / "faces", original=path, rows=rows)
    assert (result.status, result.reused, result.detected_frames, result.message) == ("ok", True, 0, "")
    assert detector.looked_at == {False: [], True: []}
    assert [row[5:] for row in result.rows] == [row[5:] for row in rows], "places and scores to the last bit"
    assert [row[1:4] for row in result.rows] == [row[1:4] for row in rows], "frames and tracks"
    assert [row[4] for row in result.rows] == [row[4].replace("original", "fake") for row in rows]
    crop = cv2.imread(str(tmp_path / "faces" / result.rows[0][4]))
    assert crop[:, 0].max() < 60 < crop[:, -1].min(), "its own pixels: the square begins 4 of 40 pixels later"


def test_a_copy_of_the_original_gives_the_same_bytes(original, tmp_path):
    path, rows = original
    shutil.copy(path, tmp_path / "copy.mp4")
    result = run(tmp_path / "copy.mp4", tmp_path / "faces", original=path, rows=rows)
    for mine, other in zip(result.rows, rows, strict=True):
        first, second = (tmp_path / "faces" / row[4] for row in (mine, other))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"size_wh": (192, 96)}, "192x96, the original 160x96", id="wider"),
        pytest.param({"total": 13}, "13 frames, the original 12", id="longer"),
        pytest.param({"total": 11}, "11 frames, the original 12", id="shorter"),
    ],
)
def test_a_fake_unlike_its_original_is_detected_anew_and_says_why(changes, reason, original, detector, tmp_path):
    path, rows = original
    result = run(clip(tmp_path / "fake.mp4", **changes), tmp_path / "faces", original=path, rows=rows)
    assert (result.status, result.reused, len(result.rows)) == ("ok", False, 12)
    assert result.detected_frames == len(detector.looked_at[False]) == 6
    assert result.message == f"not cropped like the original: {reason}"


@pytest.mark.parametrize("rows", [None, []], ids=["not extracted", "no face"])
def test_without_rows_of_the_original_the_fake_is_detected(rows, original, tmp_path):
    result = run(clip(tmp_path / "fake.mp4"), tmp_path / "faces", original=original[0], rows=rows)
    assert (result.reused, result.detected_frames) == (False, 6)
    assert result.message == "not cropped like the original: the original shows no face"


def test_an_original_that_cannot_be_read_is_a_reason_too(original, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"text")
    result = run(clip(tmp_path / "fake.mp4"), tmp_path / "faces", original=broken, rows=original[1])
    assert (result.status, result.reused) == ("ok", False)
    assert "the original cannot be read" in result.message and str(tmp_path) not in result.message


def test_a_fake_that_cannot_be_read_is_unreadable(original, tmp_path):
    (tmp_path / "fake.mp4").write_bytes(b"text")
    result = run(tmp_path / "fake.mp4", tmp_path / "faces", original=original[0], rows=original[1])
    assert (result.status, result.reused, result.rows) == ("unreadable", False, [])


def test_rows_of_other_frames_are_not_taken(original, detector, tmp_path):
    path, rows = original
    shifted = [[row[0], row[1] + 1, *row[2:]] for row in rows]
    result = run(clip(tmp_path / "fake.mp4"), tmp_path / "faces", original=path, rows=shifted)
    assert (result.reused, result.detected_frames) == (False, 6)
    assert result.message == "not cropped like the original: frame 2 was sampled of the original only"


def test_an_original_with_a_face_in_some_frames_gives_the_fake_the_same_frames(detector, tmp_path):
    path = clip(tmp_path / "original.mp4", faces=range(4, 9))
    rows = run(path, tmp_path / "faces").rows
    result = run(clip(tmp_path / "fake.mp4"), tmp_path / "faces", original=path, rows=rows)
    assert result.reused
    assert [row[1] for row in result.rows] == [row[1] for row in rows] == [5, 5, 7, 7]


def test_reuse_is_an_option(original, tmp_path):
    path, rows = original
    result = run(clip(tmp_path / "fake.mp4"), tmp_path / "faces", original=path, rows=rows, reuse_original=False)
    assert (result.reused, result.detected_frames, result.message) == (False, 6, "")


def test_a_policy_chooses_among_the_originals_tracks(original, tmp_path):
    path, rows = original
    fake = clip(tmp_path / "fake.mp4")
    result = run(fake, tmp_path / "faces", original=path, rows=rows, policy="largest")
    assert result.reused
    assert {row[3] for row in result.rows} == {1}, "its number is the original's"


@pytest.mark.shared
def test_real_fakes_of_ffpp_lie_where_their_originals_do(shared, tmp_path):
    """Real clips, the real detector. A swap leaves most pixels of a crop as they were."""
    root = shared / "videos/ffpp"
    real = root / "original_sequences/youtube/c23/videos/634.mp4"
    fake = root / "manipulated_sequences/FaceSwap/c23/videos/634_660.mp4"
    rows = run(real, tmp_path, num_frames=4, size=128).rows
    result = run(fake, tmp_path, original=real, rows=rows, num_frames=4, size=128)
    assert (result.status, result.reused, result.detected_frames) == ("ok", True, 0)
    assert len(result.rows) == len(rows) >= 4
    for mine, other in zip(result.rows, rows, strict=True):
        assert mine[5:] == other[5:]
        pictures = [cv2.imread(str(tmp_path / row[4])).astype(int) for row in (mine, other)]
        border = np.ones((128, 128), dtype=bool)
        border[16:, 16:112] = False
        assert np.abs(pictures[0] - pictures[1])[border].mean() < 8, "the same place around the face"
