"""The steps of the demo's table: over which videos, and with intervals of what is drawn whole."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiattn.evaluation.scoring_steps import steps_on_test, steps_out_of_fold
from multiattn.scoring.aggregators import frame_predictions
from multiattn.scoring.metrics import bootstrap_log_loss
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS

NAMES = [f"v{number:02d}.mp4" for number in range(12)]
LABELS = np.arange(12) % 2
GROUPS = [f"v{number // 2 * 2:02d}.mp4" for number in range(12)]
LOGITS = np.random.default_rng(0).normal(2 * LABELS - 1, 1.5)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A submission of one model, a crop a video, with labels and groups in another order each."""
    crops = pd.DataFrame({"video_id": [f"folder/{Path(name).stem}" for name in NAMES], "frame_index": 0, "track": 0})
    predictions = frame_predictions(crops, LOGITS, model="a/fold0", fold=0)
    FRAME_PREDICTIONS.write(predictions, tmp_path / "frame_predictions.parquet")
    rng = np.random.default_rng(1)
    for column, values in (("label", LABELS), ("group", GROUPS)):
        table = pd.DataFrame({"filename": NAMES, column: values}).iloc[rng.permutation(12)]
        table.to_csv(tmp_path / f"{column}s.csv", index=False)
    return tmp_path


def test_the_intervals_on_test_are_those_of_a_bootstrap_over_the_groups(folder):
    steps = steps_on_test(folder, folder / "labels.csv", folder / "groups.csv", ScoringRule())
    answers = np.clip(1 / (1 + np.exp(-LOGITS)), ScoringRule().clip, 1 - ScoringRule().clip)
    expected = bootstrap_log_loss(LABELS, answers, np.array(GROUPS), clip=1e-6)
    single = bootstrap_log_loss(LABELS, answers, clip=1e-6)
    assert steps["name"].tolist() == ["one fold", "all folds, mean", "all folds, tuned"]
    for row in steps.itertuples():
        assert (row.low, row.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
        assert (row.low, row.high) != pytest.approx((single.low, single.high), abs=1e-3)
        assert (row.num_videos, row.num_groups) == (12, 6)


def test_the_steps_out_of_fold_are_the_figures_of_tuning_with_what_it_drew(tmp_path):
    figure = {"log_loss": 0.3, "low": 0.2, "high": 0.4, "balanced_log_loss": 0.5, "auc": 0.9, "brier": 0.1}
    names = ["constant 0.5", "equal mean, untuned", "tuned, nested"]
    report = {"videos": {"number": 150, "groups": 5}, "figures": [{"name": name, **figure} for name in names]}
    (tmp_path / "scoring.json").write_text(json.dumps({"report": report}))
    steps = steps_out_of_fold(tmp_path / "scoring.json")
    assert steps["name"].tolist() == ["all folds, mean", "all folds, tuned (nested)"]
    assert steps[["low", "high", "num_videos", "num_groups"]].drop_duplicates().to_numpy().tolist() == [
        [0.2, 0.4, 150, 5]
    ]
    with pytest.raises(FileNotFoundError, match="multiattn tune"):
        steps_out_of_fold(tmp_path / "nothing.json")
