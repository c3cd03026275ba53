"""Which crops pair up: by original, frame and track, and by where the face was cut from the frame."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiattn.tables import BOX
from multiattn.training.data.sampling import find_pairs

FOLDER = Path("faces")
SIDE = 200.0


def make_tables(*rows: tuple, originals: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """`training`, `faces` and `videos` of rows (video, frame, track[, shift of the box in pixels]); r... is real."""
    rows = [(*row, 0.0)[:4] for row in rows]
    training = pd.DataFrame([row[:3] for row in rows], columns=["video_id", "frame_index", "track"])
    training["label"] = [int(video[0] == "f") for video in training["video_id"]]
    training["face"] = np.arange(len(rows))[::-1]  # rows of the whole table are others than those of the training's
    boxes = [(100 + shift, 50, 100 + shift + SIDE, 50 + SIDE / 2) for *_, shift in rows]
    faces = pd.DataFrame(boxes[::-1], columns=list(BOX), dtype="float32")
    names = sorted(set(training["video_id"]) | set(originals))
    return training, faces, pd.DataFrame({"video_id": names, "original": [originals.get(name, "") for name in names]})


@pytest.mark.parametrize(
    ("rows", "originals", "expected"),
    [
        pytest.param([("r", 3, 0), ("f", 3, 0)], {"f": "r"}, [(0, 1)], id="one pair"),
        pytest.param(
            [("r", 0, 0), ("r", 9, 0), ("f1", 0, 0), ("f1", 9, 0), ("f2", 9, 0)],
            {"f1": "r", "f2": "r"},
            [(0, 2), (1, 3), (1, 4)],
            id="several fakes of one real crop",
        ),
        pytest.param(
            [("r", 0, 0), ("r", 0, 1), ("f", 0, 0), ("f", 0, 1)], {"f": "r"}, [(0, 2), (1, 3)], id="two tracks"
        ),
        pytest.param(
            [("r", 0, 0), ("r", 1, 0), ("f", 0, 0), ("f", 1, 0), ("f", 2, 0)],
            {"f": "r"},
            [(0, 2), (1, 3)],
            id="a frame the real one lacks",
        ),
        pytest.param(
            [("f", 0, 0), ("f2", 0, 0), ("r", 0, 0), ("r2", 0, 0)],
            {"f": "r2", "f2": "r"},
            [(2, 1), (3, 0)],
            id="fakes before reals, crosswise",
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0), ("f2", 0, 0), ("f3", 0, 0)],
            {"f": "r", "f2": "elsewhere", "f3": ""},
            [(0, 1)],
            id="originals that are not trained on",
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0), ("f2", 0, 0)], {"f": "r", "f2": "f"}, [(0, 1)], id="a fake is no original"
        ),
        pytest.param(
            [("r", 0, 0), ("r", 1, 0), ("f", 0, 0, 2.0), ("f", 1, 0, 2.1)], {"f": "r"}, [(0, 2)], id="1 % of the side"
        ),
    ],
)
def test_pairs_are_crops_of_one_frame_and_track_cut_at_one_place(rows, originals, expected):
    found = find_pairs(FOLDER, *make_tables(*rows, originals=originals))
    assert sorted(map(tuple, found.tolist())) == sorted(expected)


def test_what_is_left_out_is_counted_in_one_line(caplog):
    tables = make_tables(
        ("r", 0, 0), ("r", 1, 0), ("f", 0, 0), ("f", 1, 0), ("f2", 0, 0), ("f2", 1, 0, 9.0), ("f2", 2, 0), ("f3", 0, 0),
        originals={"f": "r", "f2": "r"},
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        find_pairs(FOLDER, *tables)
    (record,) = caplog.records
    assert record.getMessage() == (
        "paired sampling: 3 pairs of 1 real and 2 fake videos; left out: 1 fake crops without one of their original at "
        "the same frame and track, 1 whose box lies elsewhere, 1 fake videos of no known original"
    )


@pytest.mark.parametrize(
    ("rows", "originals", "message"),
    [
        pytest.param([], {}, "of 0 fake videos to train on none", id="nothing"),
        pytest.param([("r", 0, 0), ("f", 0, 0)], {}, "of 1 fake videos to train on none names a real", id="unknown"),
        pytest.param([("r", 0, 0), ("f", 0, 0)], {"f": "r2"}, "of 1 fake videos", id="of a video outside the training"),
        pytest.param(
            [("r", 0, 0), ("f", 1, 0)], {"f": "r"}, "of 1 fake crops .* 0 are: 1 have no crop", id="other frames"
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0, 5.0)], {"f": "r"}, "0 are: 0 have no crop .* 1 have their box", id="other boxes"
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0), ("f", 1, 0), ("f", 2, 0)], {"f": "r"}, "of 3 fake crops .* 1 are", id="a third"
        ),
    ],
)
def test_faces_that_are_not_aligned_are_refused_with_the_command_that_aligns_them(rows, originals, message):
    with pytest.raises(ValueError, match=message) as caught:
        find_pairs(FOLDER, *make_tables(*rows, originals=originals))
    assert "multiattn faces --reuse-original" in str(caught.value)
    assert "--sampling balanced" in str(caught.value)


def test_originals_that_nobody_gave_are_unknown():
    training, faces, _ = make_tables(("r", 0, 0), ("f", 0, 0), originals={})
    with pytest.raises(ValueError, match="--reuse-original"):
        find_pairs(FOLDER, training, faces, None)
