"""Which faces of a video are kept, with masks drawn over drawn faces; fakes cropped as their originals are."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from drawn_faces import SIZE_WH, SquareDetector, draw, frames_of, landmarks_of, write_clip
from multiattn.tables import FAKE, REAL, UNKNOWN
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import Frame, evenly_spaced_indices
from multiattn.video.extraction.extract import ExtractionSettings, VideoFaces, VideoTask, extract_video
from multiattn.video.extraction.policy import choose_faces, forged_shares, largest_track
from multiattn.video.extraction.scan import FaceCrop, Scan, scan_faces

NUM_FRAMES = 4
LEFT, RIGHT = (10, 20, 40, 1.0), (90, 20, 60, 1.0)
TOTAL = 12


def two_people(total: int = TOTAL) -> Scan:
    """A video of `total` frames with one person on the left (track 0) and a larger one on the right (track 1)."""
    frames = [
        Frame(index=index, seconds=index / 25, image=draw([LEFT, RIGHT]))
        for index in evenly_spaced_indices(total, NUM_FRAMES)
    ]
    found = scan_faces(frames, SquareDetector(), CropRecipe(num_frames=NUM_FRAMES, size=32))
    tracks = {crop.track: crop.box_xyxy[0] for crop in found.crops}
    assert tracks == {0: 10, 1: 90}
    return found


def crop(frame_index: int, track: int, side: float) -> FaceCrop:
    return FaceCrop(frame_index, 0.0, track, np.array([0, 0, side, side]), 1.0, landmarks_of(0, 0, side), b"")


def middle(face, share: float) -> tuple:
    """A square in the middle of a face that covers this share of its area, as bright as can be."""
    left, top, side, _ = face
    inner = round(side * share**0.5)
    return (left + (side - inner) // 2, top + (side - inner) // 2, inner, 1.0)


def mask_of(tmp_path, *squares, total: int = TOTAL, size_wh=SIZE_WH, dark=()):
    images = [draw([] if n in dark else squares, size_wh=size_wh) for n in range(total)]
    return write_clip(tmp_path / "mask.mp4", images)


def kept(scan: Scan, mask, *, label: int = FAKE, policy: str = "forged-mask") -> tuple[set[int], str]:
    crops, note = choose_faces(scan, policy, label=label, mask=mask, num_frames=NUM_FRAMES)
    return {crop.track for crop in crops}, note


@pytest.mark.parametrize("policy", ["all-tracks", "largest", "forged-mask"])
def test_a_video_without_a_face_keeps_none_and_there_is_nothing_to_say(policy, tmp_path):
    assert choose_faces(Scan(), policy, label=FAKE, mask=tmp_path / "absent.mp4", num_frames=4) == ([], "")


@pytest.mark.parametrize(
    ("sides", "track"),
    [
        pytest.param({0: [10]}, 0, id="the only one"),
        pytest.param({0: [10, 10], 1: [20, 20]}, 1, id="the larger of two"),
        pytest.param({0: [20, 20], 1: [20, 20]}, 0, id="as large: the lower number"),
        pytest.param({0: [10, 10, 10], 1: [9, 9, 100]}, 0, id="the median, not the largest box"),
        pytest.param({0: [10, 10, 10], 1: [8, 11, 11]}, 1, id="the median, not the mean"),
        pytest.param({0: [10] * 4, 1: [50]}, 0, id="a passer-by close to the camera"),
        pytest.param({0: [10] * 4, 1: [50] * 2}, 1, id="half as long is long enough"),
    ],
)
def test_the_largest_track_by_hand(sides, track):
    crops = [crop(frame, number, side) for number, all_of in sides.items() for frame, side in enumerate(all_of)]
    assert largest_track(crops) == track
    chosen, note = choose_faces(Scan(crops=crops), "largest", label=FAKE, mask=None, num_frames=4)
    assert (chosen, note) == ([one for one in crops if one.track == track], "")


@pytest.mark.parametrize(
    ("squares", "tracks"),
    [
        pytest.param([middle(LEFT, 0.5)], {0}, id="the left face"),
        pytest.param([middle(RIGHT, 0.5)], {1}, id="the right face"),
        pytest.param([middle(LEFT, 0.5), middle(RIGHT, 0.5)], {0, 1}, id="both"),
        pytest.param([middle(LEFT, 0.9), middle(RIGHT, 0.16)], {0}, id="the other a little, as a neighbour's chin"),
        pytest.param([(*middle(LEFT, 0.5)[:3], 0.2)], {0}, id="a dark grey mask"),
    ],
)
def test_the_faces_under_the_mask_are_kept(squares, tracks, tmp_path):
    assert kept(two_people(), mask_of(tmp_path, *squares)) == (tracks, "")


@pytest.mark.parametrize("label", [REAL, UNKNOWN], ids=["real", "unknown"])
def test_a_video_that_is_no_known_fake_keeps_every_face(label):
    assert kept(two_people(), None, label=label) == ({0, 1}, "")


@pytest.mark.parametrize(
    ("squares", "message"),
    [
        pytest.param([], "its mask is black in every sampled frame", id="black"),
        pytest.param([(10, 20, 40, 0.05)], "its mask is black in every sampled frame", id="coding noise"),
        pytest.param([(60, 70, 20, 1.0)], "its mask marks no face, at most 0.0% of one", id="beside the faces"),
        pytest.param([middle(LEFT, 0.04)], "its mask marks no face, at most 4.0% of one", id="a speck"),
    ],
)
def test_a_fake_whose_forged_face_is_not_known_is_left_out(squares, message, tmp_path):
    tracks, note = kept(two_people(), mask_of(tmp_path, *squares))
    assert tracks == set()
    assert note.startswith(f"left out: {message}")


def test_a_fake_without_a_mask_or_with_a_broken_one_is_left_out(tmp_path):
    assert kept(two_people(), None)[0] == set()
    assert "a fake without a mask" in kept(two_people(), None)[1]
    for content in (None, b"text"):
        if content:
            (tmp_path / "mask.mp4").write_bytes(content)
        tracks, note = kept(two_people(), tmp_path / "mask.mp4")
        assert tracks == set()
        assert note.startswith("left out: its mask cannot be read: ") and str(tmp_path) not in note


@pytest.mark.parametrize(
    ("squares", "options", "shares"),
    [
        pytest.param([(10, 20, 20, 1.0), (90, 20, 30, 1.0)], {}, {0: 1 / 4, 1: 1 / 4}, id="a quarter of each box"),
        pytest.param([(10, 20, 20, 1.0)], {"dark": {1, 4}}, {0: 1 / 4, 1: 0}, id="dark frames do not count"),
        pytest.param(
            [(5, 10, 10, 1.0)], {"size_wh": (SIZE_WH[0] // 2, SIZE_WH[1] // 2)}, {0: 1 / 4, 1: 0}, id="half the size"
        ),
        pytest.param([middle(LEFT, 0.5)], {"total": 60, "dark": range(20)}, {}, id="a much longer mask has no frames"),
    ],
)
def test_the_share_is_that_of_the_boxes_by_hand(squares, options, shares, tmp_path):
    assert forged_shares(two_people(), mask_of(tmp_path, *squares, **options), NUM_FRAMES) == pytest.approx(shares)


@pytest.mark.parametrize("total", [12, 11, 15], ids=["as long", "a frame shorter", "three frames longer"])
def test_a_mask_of_nearly_the_same_length_is_matched_frame_by_frame(total, tmp_path):
    assert kept(two_people(), mask_of(tmp_path, middle(LEFT, 0.5), total=total)) == ({0}, "")


def test_boxes_that_leave_the_picture_are_cut_to_it(tmp_path):
    frames = frames_of(lambda n: [LEFT], NUM_FRAMES)
    found = scan_faces(frames, SquareDetector(), CropRecipe(num_frames=NUM_FRAMES, size=32))
    moved = [
        FaceCrop(one.frame_index, 0, 0, np.array([-20, -20, 20, 20]), 1.0, one.landmarks, b"") for one in found.crops
    ]
    found.crops = moved + [
        FaceCrop(one.frame_index, 0, 1, np.array([-50, -50, -10, -10]), 1.0, one.landmarks, b"") for one in moved
    ]
    mask = mask_of(tmp_path, (0, 0, 20, 1.0), total=31)
    assert forged_shares(found, mask, NUM_FRAMES) == {0: 1.0}, "and a box outside it has no share"


RECIPE = CropRecipe(num_frames=6, size=32, reuse_original=True)


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
    detector.searched[False].clear()
    assert (len(result.rows), result.reused) == (12, False)
    return path, json.loads(json.dumps(result.rows))


def test_a_fake_is_cropped_where_its_original_is_without_detection(original, detector, tmp_path):
    path, rows = original
    fake = clip(tmp_path / "fake.mp4", left=24)  # the detector would find it 4 pixels farther right
    result = run(fake, tmp_path / "faces", original=path, rows=rows)
    assert (result.status, result.reused, result.detected_frames, result.message) == ("ok", True, 0, "")
    assert detector.searched == {False: [], True: []}
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
    ("changes", "rows_of", "reason"),
    [
        pytest.param({"size_wh": (192, 96)}, list, "192x96, the original 160x96", id="wider"),
        pytest.param({"total": 13}, list, "13 frames, the original 12", id="longer"),
        pytest.param({"total": 11}, list, "11 frames, the original 12", id="shorter"),
        pytest.param({}, lambda rows: None, "the original shows no face", id="the original is not extracted"),
        pytest.param({}, lambda rows: [], "the original shows no face", id="the original has no face"),
        pytest.param(
            {},
            lambda rows: [[row[0], row[1] + 1, *row[2:]] for row in rows],
            "frame 2 was sampled of the original only",
            id="rows of other frames",
        ),
    ],
)
def test_a_fake_unlike_its_original_is_detected_anew_and_says_why(
    changes, rows_of, reason, original, detector, tmp_path
):
    path, rows = original
    result = run(clip(tmp_path / "fake.mp4", **changes), tmp_path / "faces", original=path, rows=rows_of(rows))
    assert (result.status, result.reused, len(result.rows)) == ("ok", False, 12)
    assert result.detected_frames == len(detector.searched[False]) == 6
    assert result.message == f"not cropped like the original: {reason}"


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
