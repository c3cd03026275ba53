"""Starting a c40 run from a c23 run must not leak: the same clip lies in the same fold of both."""

from pathlib import Path

import pandas as pd
import pytest

from multiattn.tables import FOLDS
from multiattn.training.folds import require_same_folds


def folds(level: str, numbers: list[int]) -> pd.DataFrame:
    names = [f"ffpp/original_sequences/youtube/{level}/videos/{number:03}" for number in range(len(numbers))]
    return pd.DataFrame({"video_id": names, "label": [n % 2 for n in range(len(names))], "group": "g", "fold": numbers})


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A c23 run of fold 0."""
    FOLDS.write(folds("c23", [0, 0, 1, 1]), tmp_path / "fold0" / "folds.csv")
    return tmp_path


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([0, 0, 1, 1], id="the same folds"),
        pytest.param([0], id="one video, in its fold"),
    ],
)
def test_the_same_clips_in_the_same_folds_may_start_from_another_compression(start, numbers):
    require_same_folds(start, [0], folds("c40", numbers))


def test_a_clip_that_was_trained_on_and_is_held_out_now_is_a_leak(start):
    with pytest.raises(ValueError, match=r"leak: 1 videos lie in another fold there, .*/\*/videos/002"):
        require_same_folds(start, [0], folds("c40", [0, 0, 0, 1]))


def test_a_fold_that_was_not_trained_on_c23_is_named(start):
    with pytest.raises(FileNotFoundError, match=r"fold1.*run the same ablation on the c23 faces first"):
        require_same_folds(start, [0, 1], folds("c40", [0, 0, 1, 1]))
