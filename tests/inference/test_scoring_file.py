"""scoring.json: written and read back, chosen where it fits the runs, else refused, doubted where stale."""

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path

import pytest

from multiattn.config import to_json
from multiattn.inference.scoring_file import (
    UNTUNED,
    ScoringFile,
    choose_scoring,
    choose_scoring_file,
    default_scoring_path,
    held_out_digests,
    read_scoring_file,
    write_scoring,
)
from multiattn.runtime.layout import experiment_name, fold_name
from multiattn.scoring.aggregators import Aggregator
from multiattn.scoring.calibration import Calibration, PriorShift
from multiattn.scoring.ensembling import Ensemble
from multiattn.scoring.rule import ScoringRule

TUNED = ScoringRule(
    aggregator=Aggregator(frames="median", clip=0.003),
    ensemble=Ensemble(method="weighted", weights={"a": 0.25, "b": 0.75}),
    calibration=Calibration(method="temperature", parameters=(1.7,)),
    experiments=("a", "b"),
    out_of_fold={"log_loss": 0.3, "auc": 0.95},
)
OTHER = dataclasses.replace(TUNED, aggregator=Aggregator(clip=0.02))
FOR_B = dataclasses.replace(OTHER, ensemble=Ensemble(), experiments=("b",))


@pytest.fixture(autouse=True)
def say_all(caplog):
    caplog.set_level(logging.INFO, "multiattn")


def levels(caplog) -> list[str]:
    return [record.levelname for record in caplog.records]


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
    assert read_scoring_file(path).rule == TUNED
    assert json.loads(path.read_text())["report"] == {"figures": []}


def test_a_file_of_an_earlier_version_is_read_with_what_it_lacks_as_it_was(runs):
    path = default_scoring_path(runs)
    values = json.loads(path.read_text())
    for name in ("per_frame", "tta", "held_out"):
        del values["rule"][name]
    path.write_text(json.dumps(values))
    assert read_scoring_file(path).rule == TUNED


@pytest.mark.parametrize("folds", [False, True], ids=["experiments", "folds"])
@pytest.mark.parametrize("holder", ["a", "b"])
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_file_is_found_in_whichever_run_it_lies_and_named(order, holder, folds, runs, tmp_path, caplog):
    (tmp_path / "a" / "scoring.json").rename(tmp_path / holder / "scoring.json")
    given = [tmp_path / name / "fold0" if folds else tmp_path / name for name in order]
    assert choose_scoring(given, None) == TUNED
    assert [record.getMessage() for record in caplog.records] == [f"scoring rule of {tmp_path / holder}/scoring.json"]


def test_a_file_for_one_of_the_runs_does_not_hide_the_one_for_all(runs, caplog):
    write_scoring(FOR_B, runs[1] / "scoring.json", {})
    assert choose_scoring(runs[::-1], None) == TUNED
    assert choose_scoring(runs[1:], None) == FOR_B
    assert levels(caplog) == ["INFO", "INFO"]


def test_of_two_rules_that_fit_the_first_given_runs_is_used_and_said(runs, caplog):
    write_scoring(OTHER, runs[1] / "scoring.json", {})
    for given, rule in ((runs, TUNED), (runs[::-1], OTHER)):
        caplog.clear()
        assert choose_scoring(given, None) == rule
        assert levels(caplog) == ["WARNING", "INFO"]
        first, second = (str(run / "scoring.json") for run in given)
        assert f"{first} and {second} hold different rules" in caplog.text
        assert caplog.records[1].getMessage() == f"scoring rule of {first}"
    caplog.clear()
    write_scoring(TUNED, runs[1] / "scoring.json", {"made": "on another day"})
    assert choose_scoring(runs[::-1], None) == TUNED
    assert levels(caplog) == ["INFO"], "two files of one rule are one"


def test_what_is_no_rule_is_reported_where_another_fits_and_refused_where_none_does(runs, caplog):
    (runs[1] / "scoring.json").write_text("{}")
    assert choose_scoring(runs[::-1], None) == TUNED
    assert levels(caplog) == ["WARNING", "INFO"] and str(runs[1] / "scoring.json") in caplog.text
    (runs[0] / "scoring.json").unlink()
    with pytest.raises(ValueError, match="Make it again with `multiattn tune`"):
        choose_scoring(runs, None)


def test_a_tuned_rule_brings_its_views_and_refuses_others(runs):
    with_flip = dataclasses.replace(TUNED, tta="flip")
    for rule, other in ((TUNED, "flip"), (with_flip, "none")):
        write_scoring(rule, runs[0] / "scoring.json", {})
        assert read_scoring_file(runs[0] / "scoring.json").rule == rule
        assert choose_scoring(runs, None).tta == choose_scoring(runs, None, rule.tta).tta == rule.tta
        with pytest.raises(ValueError, match=rf"--tta {other}: .* with --tta {rule.tta}\. .*pass --scoring none"):
            choose_scoring(runs, None, other)
    assert choose_scoring(runs, UNTUNED, "scales") == ScoringRule(tta="scales")
    assert choose_scoring(runs[1:], None, "flip+scales") == ScoringRule(tta="flip+scales")
    with pytest.raises(ValueError, match=r"expected one of none, flip, scales, flip\+scales, found 'rotate'"):
        choose_scoring(runs, UNTUNED, "rotate")
    values = json.loads((runs[0] / "scoring.json").read_text())
    values["rule"]["tta"] = "rotate"
    (runs[0] / "scoring.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"ScoringRule\.tta: expected one of none, flip"):
        choose_scoring(runs, None)


def test_no_file_and_none_are_the_untuned_rule(runs, caplog):
    assert choose_scoring(runs, UNTUNED) == ScoringRule()
    (runs[0] / "scoring.json").unlink()
    assert choose_scoring(runs, None) == ScoringRule()
    assert [record.getMessage() for record in caplog.records] == [
        "scoring rule: plain means, as asked for",
        "no scoring.json for these runs: plain means",
    ]


def test_what_is_not_tuned_but_could_be_says_how(trained, caplog):
    (trained[0] / "scoring.json").unlink()
    assert choose_scoring_file([trained[1] / "fold0", trained[0]], None) == ScoringFile()
    assert caplog.records[0].getMessage() == (
        f"no scoring.json for these runs: plain means; `multiattn tune --runs {trained[1]} {trained[0]}` makes one"
    )


def test_a_file_for_other_runs_is_left_with_a_warning_or_refused_by_name(runs, caplog):
    assert choose_scoring(runs[:1], None) == ScoringRule()
    assert "tuned for a, b, not for a: not used" in caplog.text
    assert levels(caplog) == ["WARNING", "INFO"]
    with pytest.raises(ValueError, match=r"tuned for a, b, not for a. Run `multiattn tune"):
        choose_scoring(runs[:1], runs[0] / "scoring.json")


def test_a_named_rule_without_experiments_serves_any_and_one_that_is_not_there_is_refused(runs, tmp_path):
    write_scoring(ScoringRule(aggregator=Aggregator(clip=0.02)), tmp_path / "any.json", {})
    assert choose_scoring(runs[:1], tmp_path / "any.json").clip == 0.02
    with pytest.raises(FileNotFoundError, match=r"no scoring rule here. Make it with `multiattn tune`"):
        choose_scoring(runs, tmp_path / "gone.json")


def with_digests(digests) -> str:
    return json.dumps({"rule": to_json(TUNED), "tuned_on": digests})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("{}", "an object for ScoringRule, found NoneType", id="nothing in it"),
        pytest.param("[]", "an object for ScoringRule, found list", id="a list"),
        pytest.param("3", "an object for ScoringRule, found int", id="a number"),
        pytest.param("null", "an object for ScoringRule, found NoneType", id="null"),
        pytest.param('{"rule": null}', "an object for ScoringRule, found NoneType", id="no rule"),
        pytest.param('{"rule": []}', "an object for ScoringRule, found list", id="a rule that is a list"),
        pytest.param('{"rule": 3}', "an object for ScoringRule, found int", id="a rule that is a number"),
        pytest.param(with_digests({"a": 1}), "found 1", id="no digests of folds"),
        pytest.param(with_digests({"a": None}), "found None", id="null for digests of folds"),
        pytest.param(with_digests({"a": ["xy"]}), r"found \['xy'\]", id="a list of folds"),
        pytest.param(with_digests({"a": {"fold0": 1}}), "found 1", id="no digest"),
        pytest.param(with_digests([]), r"tuned_on: expected .*, found \[\]", id="a list of digests"),
        pytest.param('{"rule": {"aggregator": {}}}', "found no ", id="a rule in part"),
        pytest.param(json.dumps({"rule": {**to_json(TUNED), "clips": 1}}), "no setting 'clips'", id="an unknown field"),
        pytest.param(
            json.dumps({"rule": {**to_json(TUNED), "ensemble": {"method": "magic"}}}), "Ensemble", id="another ensemble"
        ),
    ],
)
def test_what_is_no_rule_is_refused_with_its_path(text, found, tmp_path):
    path = tmp_path / "scoring.json"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=rf"scoring.json: not a scoring rule: .*{found}.*Make it again with `multiattn tune`"
    ):
        read_scoring_file(path)


@pytest.mark.parametrize(
    ("here", "run", "fold", "name"),
    [
        pytest.param(".", "a", "a/fold0", "a", id="relative"),
        pytest.param("a", ".", "fold0", "a", id="the folder one is in"),
        pytest.param("a/fold1", "..", "../fold0", "a", id="the folder above"),
        pytest.param("a/fold1", "../../a", "../../a/fold0", "a", id="up and down again"),
        pytest.param(".", "link", "link/fold0", "link", id="a link"),
        pytest.param("link", ".", "fold0", "a", id="inside a link"),
    ],
)
def test_an_experiment_is_called_what_the_path_calls_it(here, run, fold, name, runs, tmp_path, monkeypatch):
    (tmp_path / "a" / "fold1").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path / here)
    assert experiment_name(Path(run)) == experiment_name(Path(fold)) == name
    assert fold_name(Path(fold)) == f"{name}/fold0"


@pytest.fixture
def trained(runs):
    """Two folds with predictions in each of the two experiments, and the rule tuned on them."""
    for run in runs:
        for fold in ("fold0", "fold1"):
            make_fold(run / fold)
    write_scoring(TUNED, runs[0] / "scoring.json", {}, held_out_digests(runs))
    return runs


def make_fold(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "experiment.json").write_text("{}")
    (folder / "oof.parquet").write_bytes(f"{folder.parent.name} {folder.name}".encode())


def test_digests_are_those_of_the_predictions_whatever_the_order_and_the_folds_given(trained):
    expected = {
        name: {fold: hashlib.sha256(f"{name} {fold}".encode()).hexdigest() for fold in ("fold0", "fold1")}
        for name in "ab"
    }
    for given in (trained, trained[::-1], [run / "fold1" for run in trained]):
        assert json.dumps(held_out_digests(given)) == json.dumps(expected)
    assert read_scoring_file(trained[0] / "scoring.json") == ScoringFile(rule=TUNED, tuned_on=expected)
    (trained[0] / "fold1" / "oof.parquet").unlink()
    assert held_out_digests(trained)["a"] == {"fold0": expected["a"]["fold0"]}
    assert held_out_digests([]) == {}


def retrain(run: Path) -> None:
    (run / "fold1" / "oof.parquet").write_bytes(b"of another training")


def weights_only(run: Path) -> None:
    for path in run.glob("fold*/oof.parquet"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda run: None, None, id="nothing"),
        pytest.param(retrain, "fold1 replaced", id="a fold trained again"),
        pytest.param(lambda run: make_fold(run / "fold2"), "fold2 added", id="a fold more"),
        pytest.param(lambda run: shutil.rmtree(run / "fold0"), "fold0 gone", id="a fold less"),
        pytest.param(
            lambda run: (retrain(run), (run / "fold0").rename(run / "fold3")),
            "fold1 replaced; fold3 added; fold0 gone",
            id="all of it",
        ),
        pytest.param(weights_only, None, id="no predictions, as in a bundle"),
        pytest.param(lambda run: (weights_only(run), shutil.rmtree(run / "fold0")), None, id="a fold of a bundle"),
        pytest.param(lambda run: (run / "fold1" / "oof.parquet").unlink(), None, id="predictions that are away"),
    ],
)
@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
def test_other_predictions_than_it_was_tuned_on_are_noticed(named, change, words, trained, caplog):
    change(trained[1])
    scoring = trained[0] / "scoring.json"
    assert choose_scoring(trained, scoring if named else None) == TUNED, "a warning, no refusal"
    assert levels(caplog) == ["INFO"] + (["WARNING"] if words else [])
    if words:
        message = caplog.records[1].getMessage()
        assert message.startswith(
            f"{scoring}: the out-of-fold predictions of b are not those it was tuned on ({words})"
        )
        assert f"Run `multiattn tune --runs {trained[0]} {trained[1]}` again" in message
        assert "predictions of a " not in caplog.text


def test_a_single_fold_given_is_no_fold_lost(trained, caplog):
    assert choose_scoring([trained[0] / "fold0", trained[1]], None) == TUNED
    assert levels(caplog) == ["INFO"]


def test_a_file_without_digests_is_taken_as_it_is(trained, caplog):
    write_scoring(TUNED, trained[0] / "scoring.json", {})
    assert set(json.loads((trained[0] / "scoring.json").read_text())) == {"rule", "report"}
    retrain(trained[1])
    assert choose_scoring_file(trained, None) == ScoringFile(rule=TUNED)
    assert levels(caplog) == ["INFO"]


def test_the_command_to_run_again_makes_this_file_for_this_share_of_fakes(trained, tmp_path, caplog):
    shifted = dataclasses.replace(TUNED, prior_shift=PriorShift(training=0.8, test=0.5))
    write_scoring(shifted, tmp_path / "my rules" / "own.json", {}, held_out_digests(trained))
    retrain(trained[1])
    choose_scoring(trained, tmp_path / "my rules" / "own.json")
    assert (
        f"`multiattn tune --runs {trained[0]} {trained[1]} --test-prior 0.5 --out '{tmp_path}/my rules/own.json'` again"
    ) in caplog.text
