"""Frame predictions sorted once: the layout by hand, and that nothing of how the table came survives."""

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions, random_predictions

from multiattn.scoring.aggregators import FrameGroups, equal_lengths
from multiattn.tables import FRAME_PREDICTIONS


def fields(groups: FrameGroups) -> dict[str, list]:
    names = ("video_ids", "models", "unit_videos", "unit_models", "unit_starts", "track_starts", "logits")
    return {name: getattr(groups, name).tolist() for name in (*names, "probabilities")}


def test_the_layout_of_a_table_made_by_hand():
    rows = [
        ("n", "b", 2, 0.1, 7),
        ("n", "b", 0, 0.2, 7),
        ("n", "b", 2, 0.3, 4),
        ("m", "b", 0, 0.4, 0),
        ("n", "a", 5, 0.5, 1),
    ]
    table = pd.DataFrame(rows, columns=["model", "video_id", "track", "probability", "frame_index"])
    groups = FrameGroups.of(FRAME_PREDICTIONS.validate(table.assign(fold=0, logit=-table["probability"]), "made here"))
    assert fields(groups) == {
        "video_ids": ["a", "b"],
        "models": ["m", "n"],
        "unit_videos": [0, 1, 1],
        "unit_models": [1, 0, 1],
        "unit_starts": [0, 1, 2, 4],
        "track_starts": [0, 1, 2, 3, 5],
        "probabilities": [0.5, 0.4, 0.2, 0.3, 0.1],
        "logits": [-0.5, -0.4, -0.2, -0.3, -0.1],
    }
    assert groups.frames_of_tracks.tolist() == [1, 1, 1, 2]
    assert groups.frames_of_units.tolist() == [1, 1, 3]
    of_two = groups.stacks_of_tracks[1]
    assert (of_two.lists.tolist(), of_two.logits_in_time.tolist()) == ([3], [[-0.3, -0.1]])
    assert (of_two.logits.tolist(), of_two.probabilities.tolist()) == ([[-0.3, -0.1]], [[0.1, 0.3]])
    of_three = groups.stacks_of_units[1]
    assert (of_three.lists.tolist(), of_three.logits_in_time.tolist()) == ([2], [[-0.2, -0.3, -0.1]])


@pytest.mark.parametrize("kind", ["str", "object", "category"])
def test_neither_the_order_of_the_rows_nor_the_kind_of_text_survives(kind):
    table = random_predictions(0)
    expected = fields(FrameGroups.of(table))
    for seed in range(5):
        shuffled = table.sample(frac=1, random_state=seed).astype({"video_id": kind, "model": kind})
        assert fields(FrameGroups.of(shuffled)) == expected


def test_categories_that_no_row_has_and_in_another_order_change_nothing():
    table = random_predictions(0)
    names = [*sorted(set(table["video_id"]), reverse=True), "a/never", "z/never"]
    strange = table.assign(video_id=pd.Categorical(table["video_id"], categories=names))
    assert fields(FrameGroups.of(strange)) == fields(FrameGroups.of(table))


@pytest.mark.parametrize(
    "empty",
    [FRAME_PREDICTIONS.empty(), FRAME_PREDICTIONS.empty().astype({"video_id": "category", "model": "category"})],
    ids=["str", "category"],
)
def test_no_frames_are_no_groups(empty):
    groups = FrameGroups.of(empty)
    starts = {"unit_starts": [0], "track_starts": [0]}
    assert fields(groups) == {**{name: [] for name in fields(groups)}, **starts}
    assert (groups.stacks_of_tracks, groups.stacks_of_units) == ([], [])


def test_names_are_sorted_by_code_points():
    names = ["b/10", "b/9", "B/1", "b/é", "b/z", "b/\U0001f600", "b/\uffee"]
    groups = FrameGroups.of(predictions(*[("m", name, 0, 0.5) for name in names]))
    assert groups.video_ids.tolist() == sorted(names)


@pytest.mark.parametrize("kind", ["stacks_of_tracks", "stacks_of_units"])
@pytest.mark.parametrize("seed", range(3))
def test_stacks_hold_every_frame_once(seed, kind):
    groups = FrameGroups.of(random_predictions(seed))
    stacks = getattr(groups, kind)
    assert sorted(np.concatenate([stack.frames.ravel() for stack in stacks])) == list(range(len(groups.logits)))
    lists = np.concatenate([stack.lists for stack in stacks])
    assert sorted(lists) == list(range(len(groups.frames_of_tracks if "tracks" in kind else groups.unit_videos)))
    for stack in stacks:
        assert np.all(np.diff(stack.logits, axis=1) >= 0)
        assert np.all(np.diff(stack.probabilities, axis=1) >= 0)
        assert np.array_equal(np.sort(stack.logits_in_time, axis=1), stack.logits)


def test_where_every_unit_has_one_track_frames_are_stacked_once():
    groups = FrameGroups.of(predictions(("m", "v", 0, 0.5), ("m", "w", 1, 0.5)))
    assert groups.stacks_of_units is groups.stacks_of_tracks


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        pytest.param([0], [], id="no segment"),
        pytest.param([0, 0], [], id="an empty one"),
        pytest.param([0, 3], [([0], [[0, 1, 2]])], id="one"),
        pytest.param([0, 2, 3, 3, 5], [([1], [[2]]), ([0, 3], [[0, 1], [3, 4]])], id="several"),
    ],
)
def test_segments_of_one_length_come_together(starts, expected):
    found = equal_lengths(np.array(starts, dtype=np.int64))
    assert [(segments.tolist(), positions.tolist()) for segments, positions in found] == expected


def test_the_table_given_is_left_as_it_was():
    table = random_predictions(1).astype({"video_id": "category"})
    before = table.copy()
    FrameGroups.of(table)
    pd.testing.assert_frame_equal(table, before)
