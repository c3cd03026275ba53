"""One pass over a video: boxes linked to tracks by hand; what is detected, interpolated and cut."""

import weakref

import cv2
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

from drawn_faces import SquareDetector, draw, frames_of, landmarks_of
from multiattn.tables import BOX
from multiattn.video.crops.recipe import CropRecipe, align_crop
from multiattn.video.decoding.frames import Frame
from multiattn.video.detectors.registry import Faces
from multiattn.video.extraction.scan import (
    BATCH_FRAMES,
    TrackLinker,
    _assign,
    box_areas,
    match_tracks,
    paired_iou,
    pairwise_iou,
    rank_tracks,
    scan_faces,
    spurious_tracks,
)

NOBODY = np.zeros((0, 4))


def box(x: float, y: float = 0.0, side: float = 10.0) -> list[float]:
    return [x, y, x + side, y + side]


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def link(*frames: np.ndarray) -> list[list[int]]:
    """Final track numbers of each frame's boxes, as a scan gives them."""
    linker = TrackLinker()
    assigned = [linker.link(found) for found in frames]
    rank = rank_tracks(linker.lengths)
    return [rank[numbers].tolist() for numbers in assigned]


@pytest.mark.parametrize("shape", [(0, 0), (0, 2), (1, 1), (1, 4), (4, 1), (2, 3)], ids=str)
def test_boxes_are_assigned_as_scipy_does(shape):
    for iou in [*np.random.default_rng(0).random((20, *shape)), np.full(shape, 0.5), np.zeros(shape)]:
        pairs = [(int(row), int(column)) for row, column in _assign(iou)]
        assert pairs == [*zip(*map(list, linear_sum_assignment(iou, maximize=True)), strict=True)]


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [
        pytest.param([0, 0, 10, 10], [0, 0, 10, 10], 1.0, id="equal"),
        pytest.param([0, 0, 10, 10], [20, 20, 30, 30], 0.0, id="apart"),
        pytest.param([0, 0, 10, 10], [10, 0, 20, 10], 0.0, id="touching: right is exclusive"),
        pytest.param([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, id="a quarter of each"),
        pytest.param([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3, id="half of each"),
        pytest.param([0, 0, 10, 10], [2, 2, 4, 4], 0.04, id="one inside the other"),
        pytest.param([0, 0, 0, 0], [0, 0, 0, 0], 0.0, id="both empty"),
        pytest.param([0, 0, 10, 10], [5, 5, 5, 5], 0.0, id="one empty"),
        pytest.param([10, 10, 0, 0], [0, 0, 10, 10], 0.0, id="corners swapped"),
        pytest.param([-5, -5, 5, 5], [-5, 0, 5, 5], 0.5, id="left of the frame"),
    ],
)
def test_iou_equals_the_value_by_hand(first, second, iou):
    assert pairwise_iou(boxes(first), boxes(second)).tolist() == [[pytest.approx(iou, abs=1e-15)]]
    assert pairwise_iou(np.array([second]), np.array([first])).tolist() == [[pytest.approx(iou, abs=1e-15)]]


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_iou_has_a_row_and_a_column_a_box(rows, columns):
    found = pairwise_iou(boxes(*[box(0)] * rows), boxes(*[box(0)] * columns))
    np.testing.assert_array_equal(found, np.ones((rows, columns)))


@pytest.mark.parametrize(
    ("frames", "tracks"),
    [
        pytest.param([], [], id="no frames"),
        pytest.param([NOBODY], [[]], id="one frame without a face"),
        pytest.param([NOBODY, NOBODY, NOBODY], [[], [], []], id="no face at all"),
        pytest.param([np.array([])], [[]], id="no face as extraction passes it"),
        pytest.param([boxes(box(0))], [[0]], id="one face"),
        pytest.param([NOBODY, boxes(box(0)), NOBODY], [[], [0], []], id="one face among empty frames"),
        pytest.param([boxes(box(0), box(50))], [[0, 1]], id="two faces, one frame"),
        pytest.param([boxes(box(0))] * 5, [[0]] * 5, id="one face that stays"),
        pytest.param([boxes(box(2 * n)) for n in range(9)], [[0]] * 9, id="one face that walks"),
        pytest.param([boxes(box(0)), boxes(box(100))], [[0], [1]], id="a cut"),
        pytest.param([boxes(box(0), box(50)), boxes(box(50), box(0))], [[0, 1], [1, 0]], id="listed in another order"),
        # Greedily the left track would take the middle box (IoU .82) and leave the right one without a match.
        pytest.param([boxes(box(0), box(4)), boxes(box(1), box(-3))], [[0, 1], [1, 0]], id="the sum of overlaps"),
        pytest.param([boxes(box(0)), boxes(box(5.3))], [[0], [0]], id="IoU .307 links"),
        pytest.param([boxes(box(0)), boxes(box(5.5))], [[0], [1]], id="IoU .290 does not"),
        pytest.param([boxes(box(0)), *[NOBODY] * 2, boxes(box(1))], [[0], [], [], [0]], id="a gap of two is bridged"),
        pytest.param([boxes(box(0)), *[NOBODY] * 3, boxes(box(1))], [[0], [], [], [], [1]], id="one of three is not"),
        pytest.param(
            [boxes(box(0)), *[NOBODY] * 2, boxes(box(1)), *[NOBODY] * 2, boxes(box(2))],
            [[0], [], [], [0], [], [], [0]],
            id="every return starts the gap anew",
        ),
        pytest.param(
            [boxes(box(99)), *[boxes(box(0), box(50))] * 2, boxes(box(0)), boxes(box(50))],
            [[2], [0, 1], [0, 1], [0], [1]],
            id="numbered by length, ties by first appearance",
        ),
    ],
)
def test_tracks_by_hand(frames, tracks):
    assert link(*frames) == tracks


def test_two_people_who_cross_keep_their_tracks():
    """They pass each other on different heights; at the crossing each still overlaps himself most."""
    frames = [boxes(box(3 * n, 0), box(30 - 3 * n, 7)) for n in range(11)]
    assert link(*frames) == [[0, 1]] * 11
    assert pairwise_iou(frames[5][:1], frames[5][1:])[0, 0] > 0, "they do overlap"


def test_a_track_number_is_used_once_a_frame_whatever_the_boxes():
    rng = np.random.default_rng(0)
    for _ in range(30):
        frames = []
        for count in rng.integers(0, 6, size=12):
            corners = rng.uniform(0, 30, size=(count, 2))
            frames.append(np.concatenate([corners, corners + rng.uniform(1, 20, size=(count, 2))], axis=1))
        tracks = link(*frames)
        assert [len(numbers) for numbers in tracks] == [len(frame) for frame in frames]
        assert all(len(set(numbers)) == len(numbers) for numbers in tracks)
        lengths = np.bincount(np.concatenate(tracks).astype(int))
        assert (np.diff(lengths) <= 0).all()
        assert (lengths > 0).all()


def test_boxes_pair_by_pair_are_the_diagonal_of_all_pairs():
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 20, size=(2, 7, 2))
    first, second = (np.concatenate([one, one + rng.uniform(0, 20, size=(7, 2))], axis=1) for one in corners)
    np.testing.assert_array_equal(paired_iou(first, second), np.diagonal(pairwise_iou(first, second)))
    assert paired_iou(NOBODY, NOBODY).shape == (0,)


@pytest.mark.parametrize(
    ("row", "area"),
    [
        pytest.param([0, 0, 2, 3], 6, id="a rectangle"),
        pytest.param([-2, -3, 0, 0], 6, id="outside the frame"),
        pytest.param([1, 1, 1, 5], 0, id="a line"),
        pytest.param([5, 5, 1, 1], 0, id="corners swapped"),
    ],
)
def test_areas_by_hand(row, area):
    assert box_areas(np.array(row, dtype=np.float64)) == area
    assert box_areas(boxes(row)).tolist() == [area]
    assert box_areas(NOBODY).shape == (0,)


def faces(*rows: tuple[int, int, list[float]]) -> pd.DataFrame:
    """(frame_index, track, box_xyxy) of one video as a table."""
    return pd.DataFrame([(frame, track, *at) for frame, track, at in rows], columns=["frame_index", "track", *BOX])


LEFT, RIGHT, AWAY = box(0), box(50), box(200)
TWO = [(frame, track, at) for frame in (0, 10, 20) for track, at in enumerate((LEFT, RIGHT))]


@pytest.mark.parametrize(
    ("first", "second", "persons"),
    [
        pytest.param([], [], {}, id="nobody"),
        pytest.param([], [(0, 0, LEFT)], {0: 0}, id="the second alone finds a face"),
        pytest.param(TWO, [], {}, id="the first alone finds faces"),
        pytest.param(TWO, TWO, {0: 0, 1: 1}, id="the same"),
        pytest.param(
            TWO, [(0, 0, box(51)), (10, 1, box(1))], {0: 1, 1: 0}, id="the other way round, boxes a little off"
        ),
        pytest.param(TWO, [(5, 0, RIGHT), (15, 0, RIGHT)], {0: 1}, id="at frames between"),
        pytest.param(TWO, [(0, 0, AWAY), (0, 1, LEFT)], {0: 2, 1: 0}, id="somebody new gets the next number"),
        pytest.param([(0, 0, LEFT), (10, 0, LEFT)], [(90, 0, LEFT)], {0: 1}, id="the same place long after"),
        pytest.param([(0, 3, LEFT)], [(40, 0, LEFT)], {0: 3}, id="one frame each"),
    ],
)
def test_tracks_of_two_searches_are_matched_by_their_boxes(first, second, persons):
    assert match_tracks(faces(*first), faces(*second)) == persons


GOOD, POOR = 0.99, 0.92
"""With the threshold 0.9 the middle is 0.95."""


@pytest.mark.parametrize(
    ("scores", "frames", "spurious"),
    [
        pytest.param({}, 0, set(), id="no face at all"),
        pytest.param({0: [POOR]}, 1, set(), id="one frame, one poor face"),
        pytest.param({0: [GOOD], 1: [POOR]}, 1, set(), id="one frame, a poor face beside a good one"),
        pytest.param({0: [GOOD] * 4, 1: [POOR]}, 4, set(), id="four frames are too few to decide"),
        pytest.param({0: [GOOD] * 5, 1: [POOR]}, 5, {1}, id="once in five, poor"),
        pytest.param({0: [GOOD] * 5, 1: [GOOD]}, 5, set(), id="once in five, good"),
        pytest.param({0: [GOOD] * 5, 1: [0.95]}, 5, set(), id="the middle is good enough"),
        pytest.param({0: [GOOD] * 5, 1: [POOR] * 2}, 5, set(), id="twice in five, poor"),
        pytest.param({0: [GOOD] * 32, 1: [POOR] * 3}, 32, {1}, id="three of 32 are less than a tenth"),
        pytest.param({0: [GOOD] * 32, 1: [POOR] * 4}, 32, set(), id="four of 32 are more"),
        pytest.param({0: [GOOD] * 32, 1: [POOR, POOR, GOOD]}, 32, set(), id="good once"),
        pytest.param({0: [POOR]}, 5, set(), id="never the only one"),
        pytest.param({0: [POOR], 1: [POOR], 2: [POOR], 3: [POOR], 4: [POOR]}, 5, {1, 2, 3, 4}, id="one always stays"),
        pytest.param({0: [POOR], 1: [POOR] * 9}, 10, {0}, id="the longest stays though it is poor"),
    ],
)
def test_spurious_tracks_by_hand(scores, frames, spurious):
    assert spurious_tracks(scores, frames_with_faces=frames, threshold=0.9) == spurious


def scan(frames, every: int = 1, detector=None):
    return scan_faces(frames, detector or SquareDetector(), CropRecipe(num_frames=12, size=32, detect_every=every))


@pytest.mark.parametrize(
    ("count", "every", "searched"),
    [
        pytest.param(0, 1, [], id="no frames"),
        pytest.param(0, 4, [], id="no frames, every fourth"),
        pytest.param(1, 1, [0], id="one frame"),
        pytest.param(1, 4, [0], id="one frame, every fourth"),
        pytest.param(2, 4, [0, 1], id="first and last only"),
        pytest.param(5, 4, [0, 4], id="the last is a fourth"),
        pytest.param(6, 4, [0, 4, 5], id="the last is none"),
        pytest.param(20, 1, list(range(20)), id="all"),
        pytest.param(20, 2, [*range(0, 20, 2), 19], id="over several batches"),
        pytest.param(20, 16, [0, 16, 19], id="farther apart than a batch"),
    ],
)
def test_every_kth_frame_and_the_last_are_searched(count, every, searched):
    detector = SquareDetector()
    found = scan(frames_of(lambda n: [(20, 20, 40, 1.0)], count), every, detector)
    assert detector.searched == {False: searched, True: []}
    assert found.detected_frames == len(searched)
    assert [crop.frame_index for crop in found.crops] == [10 * n for n in range(count)]
    assert list(found.frame_sizes_wh) == [10 * n for n in range(count)]


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_face_that_moves_evenly_is_where_the_detector_would_have_found_it(every):
    frames = frames_of(lambda n: [(2 * n, 3 + n, 40, 1.0)], 18)
    for crop, expected in zip(scan(frames, every).crops, scan(frames).crops, strict=True):
        assert (crop.frame_index, crop.track, crop.seconds) == (expected.frame_index, 0, expected.seconds)
        np.testing.assert_allclose(crop.box_xyxy, expected.box_xyxy, atol=1e-9)
        np.testing.assert_allclose(crop.landmarks, expected.landmarks, atol=1e-9)


@pytest.mark.parametrize(
    ("seconds", "lefts"),
    [
        pytest.param([0, 1, 2, 6, 8], [0, 5, 10, 30, 40], id="by the frames' times, not by their numbers"),
        pytest.param([0, 0, 0, 0, 0], [0, 10, 20, 30, 40], id="by number in a stream without times"),
        pytest.param([3, 1, 0, 2, 4], [0, 10, 20, 30, 40], id="by number where times run backwards"),
    ],
)
def test_places_between_are_linear_in_time(seconds, lefts):
    frames = frames_of(lambda n: [(10 * n, 0, 80, 1.0)], 5, seconds=lambda n: float(seconds[n]))
    assert [crop.box_xyxy[0] for crop in scan(frames, 4).crops] == pytest.approx(lefts)


def test_the_score_between_is_linear_too():
    scores = [1.0, 0.98, 0.98, 0.98, 0.92]
    found = scan(frames_of(lambda n: [(20, 20, 40, scores[n])], 5), 4)
    first, last = 255 / 255, round(255 * 0.92) / 255
    assert [crop.score for crop in found.crops] == pytest.approx(np.linspace(first, last, 5))


def test_nothing_is_added_beyond_the_ends_of_a_track():
    """Frames 3 to 9 show the face; 0, 4, 8 and 12 are searched."""
    found = scan(frames_of(lambda n: [(20, 20, 40, 1.0)] if 3 <= n <= 9 else [], 13), 4)
    assert [crop.frame_index for crop in found.crops] == [40, 50, 60, 70, 80]


@pytest.mark.parametrize(
    ("hidden", "every", "rows", "tracks"),
    [
        pytest.param({2}, 1, [0, 1, 3, 4, 5, 6, 7, 8], 1, id="a gap of one keeps the track and gets no row"),
        pytest.param({2, 3}, 1, [0, 1, 4, 5, 6, 7, 8], 1, id="a gap of two"),
        pytest.param({2, 3, 4}, 1, [0, 1, 5, 6, 7, 8], 2, id="a gap of three ends the track"),
        pytest.param({4}, 2, [0, 1, 2, 6, 7, 8], 1, id="nothing between a detection and a miss"),
        pytest.param({3}, 2, list(range(9)), 1, id="nothing is missed in a frame that is not searched"),
    ],
)
def test_a_gap_is_bridged_by_number_and_not_filled(hidden, every, rows, tracks):
    found = scan(frames_of(lambda n: [] if n in hidden else [(20, 20, 40, 1.0)], 9), every)
    assert [crop.frame_index // 10 for crop in found.crops] == rows
    assert {crop.track for crop in found.crops} == set(range(tracks))


def test_two_people_are_interpolated_each_on_his_own():
    def people(n: int) -> list:
        return [(2 * n, 0, 40, 1.0), (110 - 2 * n, 50, 40, 0.99)]

    frames = frames_of(people, 9)
    for crop, expected in zip(scan(frames, 8).crops, scan(frames).crops, strict=True):
        np.testing.assert_allclose(crop.box_xyxy, expected.box_xyxy, atol=1e-9)
        assert crop.score == pytest.approx(expected.score)
    assert [crop.track for crop in scan(frames, 8).crops] == [0, 1] * 9


def test_nothing_is_interpolated_across_a_change_of_size():
    images = [draw([(20, 20, 40, 1.0)], size_wh=(160, 96) if n < 3 else (200, 96)) for n in range(7)]
    frames = [Frame(index=n, seconds=n / 25, image=image) for n, image in enumerate(images)]
    found = scan(frames, 2)  # searched: 0, 2, 4, 6
    assert [crop.frame_index for crop in found.crops] == [0, 1, 2, 4, 5, 6]
    assert found.frame_sizes_wh[2] == (160, 96) and found.frame_sizes_wh[3] == (200, 96)


def test_a_crop_is_cut_from_its_own_frame_and_stored_without_chroma_subsampling():
    frames = frames_of(lambda n: [(20 + n, 20, 40, 1.0)], 3)
    boxes = CropRecipe(size=32, alignment="box", margin=0.8)  # 40 px x 0.8 = the crop's side: pixels as they are
    for frame, crop in zip(frames, scan_faces(frames, SquareDetector(), boxes).crops, strict=True):
        stored = cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        left = 24 + frame.index // 10
        assert np.abs(stored.astype(int) - frame.image[24:56, left : left + 32]).max() <= 3
    for frame, crop in zip(frames, scan(frames, 2).crops, strict=True):
        stored = cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        cut = align_crop(frame.image, landmarks_of(20 + frame.index // 10, 20, 40), 32)
        assert np.abs(stored.astype(int) - cut).max() <= 3
        header = crop.jpeg.index(b"\xff\xc0")  # baseline; 3 components, each sampled 1x1
        assert [crop.jpeg[header + 11 + 3 * component] for component in range(3)] == [0x11] * 3


def test_a_spurious_track_is_left_out_and_the_numbers_stay_without_a_gap():
    def people(n: int) -> list:
        ghost = [(110, 50, 30, 0.92)] if n == 0 else []
        return [(20, 20, 40, 1.0), *ghost, *([(110, 10, 30, 1.0)] if n > 5 else [])]

    found = scan(frames_of(people, 12))
    assert [crop.track for crop in found.crops] == [0] * 6 + [0, 1] * 6
    assert (found.crops[0].frame_index, found.crops[1].frame_index) == (0, 10)


@pytest.mark.parametrize(
    "landmarks",
    [
        pytest.param(np.full((5, 2), 20.0), id="in one place"),
        pytest.param(np.full((5, 2), np.nan), id="not numbers"),
        pytest.param(np.where(np.arange(10).reshape(5, 2) == 3, np.inf, landmarks_of(0, 0, 40)), id="infinite"),
    ],
)
def test_a_face_that_cannot_be_aligned_is_left_out(landmarks):
    class Broken(SquareDetector):
        def _find(self, grey, threshold):
            whole = super()._find(grey, threshold)
            return Faces(
                np.concatenate([[[0, 0, 9, 9]], whole.boxes_xyxy]),
                np.concatenate([[1.0], whole.scores]),
                np.concatenate([landmarks[None], whole.landmarks]),
            )

    found = scan(frames_of(lambda n: [(20, 20, 40, 1.0)], 3), detector=Broken())
    found = [(crop.frame_index, crop.track, crop.box_xyxy.tolist()) for crop in found.crops]
    assert found == [(10 * n, 0, [20, 20, 60, 60]) for n in range(3)]


@pytest.mark.parametrize("every", [1, 4, 16])
def test_full_frames_are_held_for_one_batch_and_the_wait_for_a_detection_only(every):
    alive, most = set(), 0

    def stream():
        nonlocal most
        for n in range(60):
            image = draw([(20, 20, 40, 1.0)], mark=n % 40)
            alive.add(n)
            weakref.finalize(image, alive.discard, n)
            most = max(most, len(alive))
            yield Frame(index=n, seconds=n / 25, image=image)

    found = scan(stream(), every)
    assert len(found.crops) == 60
    assert most <= BATCH_FRAMES + every + 4, "a batch, those that wait, and the few at work"
