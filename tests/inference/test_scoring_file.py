"""scoring.json: written and read back, chosen where it fits the runs, refused where it does not."""

import json
import logging

import pytest

from multiattn.inference.scoring_file import (
    UNTUNED,
    choose_scoring,
    default_scoring_path,
    experiment_name,
    read_scoring,
    write_scoring,
)
from multiattn.scoring.aggregation import Aggregator
from multiattn.scoring.calibration import Calibration
from multiattn.scoring.ensembling import Ensemble
from multiattn.scoring.rule import ScoringRule

TUNED = ScoringRule(
    aggregator=Aggregator(frames="median", clip=0.003),
    ensemble=Ensemble(method="weighted", weights={"a": 0.25, "b": 0.75}),
    calibration=Calibration(method="temperature", parameters=(1.7,)),
    experiments=("a", "b"),
    out_of_fold={"log_loss": 0.3, "auc": 0.95},
)


@pytest.fixture
def runs(tmp_path):
    """Folders of two experiments with a fold each, the first with a scoring.json for both."""
    for name in "ab":
        (tmp_path / name / "fold0").mkdir(parents=True)
        (tmp_path / name / "fold0" / "experiment.json").write_text("{}")
    write_scoring(TUNED, tmp_path / "a" / "scoring.json", {"figures": []})
    return [tmp_path / "a", tmp_path / "b"]


def test_a_rule_is_read_as_it_was_written(runs):
    path = default_scoring_path(runs)
    assert read_scoring(path) == TUNED
    assert json.loads(path.read_text())["report"] == {"figures": []}


def test_the_first_runs_file_is_used_where_it_was_tuned_for_these_runs(runs):
    assert choose_scoring(runs, None) == TUNED
    assert choose_scoring([run / "fold0" for run in runs], None) == TUNED


def test_no_file_and_none_are_the_untuned_rule(runs, tmp_path):
    assert choose_scoring([tmp_path / "b", tmp_path / "a"], None) == ScoringRule()
    assert choose_scoring(runs, UNTUNED) == ScoringRule()


def test_a_file_for_other_runs_is_left_with_a_warning_or_refused_by_name(runs, caplog):
    with caplog.at_level(logging.WARNING):
        assert choose_scoring(runs[:1], None) == ScoringRule()
    assert "tuned for a, b, not for a: not used" in caplog.text
    with pytest.raises(ValueError, match=r"tuned for a, b, not for a. Run `multiattn tune"):
        choose_scoring(runs[:1], runs[0] / "scoring.json")


def test_a_rule_that_names_no_experiments_serves_any(runs, tmp_path):
    write_scoring(ScoringRule(aggregator=Aggregator(clip=0.02)), tmp_path / "any.json", {})
    assert choose_scoring(runs[:1], tmp_path / "any.json").clip == 0.02


def test_a_named_file_that_is_not_there_is_refused(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no scoring rule here. Make it with `multiattn tune`"):
        choose_scoring(runs, tmp_path / "gone.json")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{}", id="nothing in it"),
        pytest.param("[]", id="a list"),
        pytest.param('{"rule": null}', id="no rule"),
        pytest.param('{"rule": {"aggregator": {}}}', id="a rule in part"),
        pytest.param(json.dumps({"rule": {**TUNED.as_dict(), "clips": 1}}), id="an unknown field"),
        pytest.param(json.dumps({"rule": {**TUNED.as_dict(), "ensemble": {"method": "magic"}}}), id="another ensemble"),
    ],
)
def test_what_is_no_rule_is_refused_with_its_path(text, tmp_path):
    path = tmp_path / "scoring.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"scoring.json: .*Make it again with `multiattn tune`"):
        read_scoring(path)


def test_the_experiment_of_a_folder(runs):
    assert experiment_name(runs[0]) == experiment_name(runs[0] / "fold0") == "a"
