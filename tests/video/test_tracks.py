"""Boxes of one person over frames: overlap by hand, crossings, gaps, order."""

import numpy as np
import pytest

from multiattn.video.extraction.scan import (
    TrackLinker,
    box_areas,
    paired_iou,
    pairwise_iou,
    rank_tracks,
    spurious_tracks,
)

NOBODY = np.zeros((0, 4))


def box(x: float, y: float = 0.0, side: float = 10.0) -> list[float]:
    return [x, y, x + side, y + side]


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def link_tracks(frames: list[np.ndarray]) -> list[np.ndarray]:
    """Final track numbers of each frame's boxes, as a scan gives them."""
    linker = TrackLinker()
    assigned = [linker.link(found) for found in frames]
    rank = rank_tracks(linker.lengths)
    return [rank[numbers] for numbers in assigned]


def link(*frames: np.ndarray) -> list[list[int]]:
    return [tracks.tolist() for tracks in link_tracks(list(frames))]


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
    assert pairwise_iou(boxes(second), boxes(first)).tolist() == [[pytest.approx(iou, abs=1e-15)]]


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (0, 3), (3, 0), (2, 3)])
def test_iou_has_a_row_and_a_column_a_box(rows, columns):
    found = pairwise_iou(boxes(*[box(0)] * rows), boxes(*[box(0)] * columns))
    np.testing.assert_array_equal(found, np.ones((rows, columns)))


def test_iou_of_whole_numbers_is_a_fraction_too():
    assert pairwise_iou(np.array([[0, 0, 2, 2]]), np.array([[1, 1, 3, 3]]))[0, 0] == pytest.approx(1 / 7)


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
    ],
)
def test_tracks_by_hand(frames, tracks):
    assert link(*frames) == tracks


def test_two_people_who_cross_keep_their_tracks():
    """They pass each other on different heights; at the crossing each still overlaps himself most."""
    frames = [boxes(box(3 * n, 0), box(30 - 3 * n, 7)) for n in range(11)]
    assert link(*frames) == [[0, 1]] * 11
    assert pairwise_iou(frames[5][:1], frames[5][1:])[0, 0] > 0, "they do overlap"


def test_the_sum_of_overlaps_decides_not_the_first_come():
    """Greedily the left track would take the middle box (IoU .82) and leave the right one without a match."""
    before = boxes(box(0), box(4))
    after = boxes(box(1), box(-3))
    tracks = link(before, after)
    assert sorted(tracks[1]) == [0, 1]
    assert tracks[1] == [1, 0]


@pytest.mark.parametrize(("missing", "same"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_a_gap_of_two_frames_is_bridged_and_one_of_three_is_not(missing, same):
    tracks = link(boxes(box(0)), *[NOBODY] * missing, boxes(box(1)))
    assert (tracks[-1] == [0]) == same


def test_every_return_starts_the_gap_anew():
    tracks = link(boxes(box(0)), NOBODY, NOBODY, boxes(box(1)), NOBODY, NOBODY, boxes(box(2)))
    assert tracks == [[0], [], [], [0], [], [], [0]]


@pytest.mark.parametrize(
    ("shift", "same"), [(5.0, True), (5.3, True), (5.5, False)], ids=["IoU .333", "IoU .307", "IoU .290"]
)
def test_faces_that_overlap_too_little_are_two_people(shift, same):
    assert link(boxes(box(0)), boxes(box(shift)))[1] == ([0] if same else [1])


def test_tracks_are_numbered_by_length_and_ties_by_first_appearance():
    passer_by, speaker, listener = box(100), box(0), box(50)
    frames = [boxes(passer_by), boxes(speaker, listener), boxes(listener, speaker), boxes(speaker), boxes(listener)]
    assert link(*frames) == [[2], [0, 1], [1, 0], [0], [1]]


def test_a_track_number_is_used_once_a_frame_whatever_the_boxes():
    rng = np.random.default_rng(0)
    for _ in range(30):
        frames = []
        for count in rng.integers(0, 6, size=12):
            corners = rng.uniform(0, 30, size=(count, 2))
            frames.append(np.concatenate([corners, corners + rng.uniform(1, 20, size=(count, 2))], axis=1))
        tracks = link_tracks(frames)
        assert [len(numbers) for numbers in tracks] == [len(frame) for frame in frames]
        assert all(len(set(numbers)) == len(numbers) for numbers in map(np.ndarray.tolist, tracks))
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


def test_a_linker_counts_by_first_appearance_and_the_rank_by_length():
    linker = TrackLinker()
    frames = [boxes(box(100)), boxes(box(0)), boxes(box(0), box(50))]
    assert [linker.link(frame).tolist() for frame in frames] == [[0], [1], [1, 2]]
    assert linker.lengths == [1, 2, 1]
    assert rank_tracks(linker.lengths).tolist() == [1, 0, 2]
    assert rank_tracks([]).tolist() == []


GOOD, POOR = 0.99, 0.92
"""With the threshold 0.9 the middle is 0.95."""


@pytest.mark.parametrize(
    ("scores", "frames", "spurious"),
    [
        pytest.param({}, 0, set(), id="no face at all"),
        pytest.param({0: [POOR]}, 1, set(), id="one frame, one poor face"),
        pytest.param({0: [GOOD], 1: [POOR]}, 1, set(), id="one frame, a poor face beside a good one"),
        pytest.param({0: [GOOD] * 4, 1: [POOR]}, 4, set(), id="four frames are too few to judge"),
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
