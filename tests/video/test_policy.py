"""Which faces of a video are kept, with masks drawn over drawn faces."""

import numpy as np
import pytest

from drawn_faces import SIZE_WH, SquareDetector, draw, frames_of, landmarks_of, write_clip
from multiattn.tables import FAKE, REAL, UNKNOWN
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import Frame, evenly_spaced_indices
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
def test_a_fake_whose_forged_face_cannot_be_told_is_left_out(squares, message, tmp_path):
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


def test_the_share_is_that_of_the_boxes_by_hand(tmp_path):
    mask = mask_of(tmp_path, (10, 20, 20, 1.0), (90, 20, 30, 1.0))
    assert forged_shares(two_people(), mask, NUM_FRAMES) == {0: pytest.approx(1 / 4), 1: pytest.approx(1 / 4)}


def test_frames_in_which_the_mask_is_dark_do_not_count(tmp_path):
    mask = mask_of(tmp_path, (10, 20, 20, 1.0), dark={1, 4})
    assert forged_shares(two_people(), mask, NUM_FRAMES) == {0: pytest.approx(1 / 4), 1: 0}


def test_a_mask_of_half_the_size_is_laid_over_the_video(tmp_path):
    mask = mask_of(tmp_path, (5, 10, 10, 1.0), size_wh=(SIZE_WH[0] // 2, SIZE_WH[1] // 2))
    assert forged_shares(two_people(), mask, NUM_FRAMES) == {0: pytest.approx(1 / 4), 1: 0}


@pytest.mark.parametrize("total", [12, 11, 15], ids=["as long", "a frame shorter", "three frames longer"])
def test_a_mask_of_nearly_the_same_length_is_matched_frame_by_frame(total, tmp_path):
    assert kept(two_people(), mask_of(tmp_path, middle(LEFT, 0.5), total=total)) == ({0}, "")


def test_frames_of_a_much_longer_mask_belong_to_no_frame_of_the_video(tmp_path):
    mask = mask_of(tmp_path, middle(LEFT, 0.5), total=60, dark=range(20))
    assert forged_shares(two_people(), mask, NUM_FRAMES) == {}


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
