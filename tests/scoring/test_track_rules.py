"""Tracks -> video: RobustForensics' faces by the vectors of its code, the others by hand."""

import numpy as np
import pytest

from multiattn.scoring.frame_rules import TRACK_RULES, faces, faces_shrunk


def of(name: str, values: list[float], counts: list[int] | None = None, **settings) -> float:
    counts = [1] * len(values) if counts is None else counts
    return TRACK_RULES[name].of(np.array([values]), np.array([counts]), **settings).item()


@pytest.mark.parametrize(
    ("name", "values", "counts", "expected"),
    [
        pytest.param("weighted", [0.2, 0.8], [3, 1], 0.35, id="weighed by frames"),
        pytest.param("mean", [0.2, 0.8], [3, 1], 0.5, id="alike"),
        pytest.param("max", [0.2, 0.8], [3, 1], 0.8, id="the most forged"),
        pytest.param("first", [0.2, 0.8], [1, 3], 0.2, id="the lowest number, whatever the lengths"),
        pytest.param("faces", [0.95, 0.05], None, 0.95, id="one surely fake"),
        pytest.param("faces", [0.7, 0.65], None, 0.7, id="both fake"),
        pytest.param("faces", [0.1, 0.3], None, 0.1, id="both real"),
        pytest.param("faces", [0.85, 0.2], None, 0.525, id="undecided"),
        pytest.param("faces", [0.9, 0.5], None, 0.7, id="0.9 is not sure yet"),
        pytest.param("faces", [0.6, 0.8], None, 0.7, id="0.6 is not fake yet"),
        pytest.param("faces", [0.4, 0.2], None, 0.3, id="0.4 is not real yet"),
        pytest.param("faces", [0.2, 0.99, 0.3], [9, 1, 9], 0.2, id="the third longest has no say"),
        pytest.param("faces", [0.2, 0.3, 0.99], [4, 4, 4], 0.2, id="of equal lengths the lower numbers"),
        pytest.param("faces", [0.99, 0.2, 0.3], [1, 5, 9], 0.2, id="the longest come last"),
    ],
)
def test_every_rule_by_hand(name, values, counts, expected):
    assert of(name, values, counts) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("name", sorted(set(TRACK_RULES) - {"faces_shrunk"}))
@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_one_track_is_the_answer(name, value):
    assert of(name, [value], [7]) == value


@pytest.mark.parametrize("name", TRACK_RULES)
def test_no_rule_falls_when_a_track_rises_and_none_leaves_the_range(name):
    rng = np.random.default_rng(0)
    for tracks in (1, 2, 3, 5):
        values, counts = rng.random((4000, tracks)), rng.integers(1, 40, (4000, tracks))
        raised = values.copy()
        raised[np.arange(4000), rng.integers(0, tracks, 4000)] += rng.random(4000)
        before, after = (TRACK_RULES[name].of(np.minimum(p, 1), counts) for p in (values, raised))
        assert np.all(after >= before - 1e-15)
        assert np.all((before >= 0) & (after <= 1))


@pytest.mark.parametrize(
    ("value", "mended", "faithful"),
    [
        (0.0, 0.02, 0.02),
        (0.02, 0.02, 0.0392),
        (0.021, 0.021, 0.021),
        (0.5, 0.5, 0.5),
        (0.979, 0.979, 0.979),
        (0.98, 0.98, 0.9608),
        (1.0, 0.98, 0.98),
    ],
)
def test_the_shrink_is_mended_unless_asked_to_be_faithful(value, mended, faithful):
    assert of("faces_shrunk", [value]) == pytest.approx(mended, abs=1e-15)
    assert of("faces_shrunk", [value], faithful=True) == pytest.approx(faithful, abs=1e-15)


def test_the_faithful_shrink_falls_where_the_face_rises():
    """The fault, so that nobody takes it for ours."""
    rising = faces_shrunk(np.array([[0.979], [0.98]]), np.ones((2, 1)), faithful=True)
    assert rising[1] < rising[0]


def test_the_order_of_two_faces_changes_nothing():
    values = np.random.default_rng(1).random((500, 2))
    counts = np.full((500, 2), 6)
    assert np.array_equal(faces(values, counts), faces(values[:, ::-1], counts))


def test_no_videos_give_no_answers():
    for rule in TRACK_RULES.values():
        assert rule.of(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64)).shape == (0,)
