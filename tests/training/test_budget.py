"""A command's hours: what is said to fit, folds that are left for the next time, and how that is told."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from multiattn.__main__ import main
from multiattn.runtime.signals import Interruption
from multiattn.training import folds
from multiattn.training.engine import budget as budget_module
from multiattn.training.engine import loop
from multiattn.training.engine.budget import Budget
from pipeline import Pipeline

FIVE_FOLDS = dict.fromkeys(range(5), 20.0)


@pytest.fixture
def passed(monkeypatch) -> list[float]:
    """Seconds since the process began, to be set as its only element."""
    seconds = [0.0]
    monkeypatch.setattr(budget_module, "process_seconds", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize(
    ("epochs_left", "places", "hours_passed", "said"),
    [
        pytest.param({}, 1, 0, ["no fold is left"], id="empty"),
        pytest.param({0: 10.0}, 1, 0, ["fold 0 will be finished"], id="one that fits"),
        pytest.param({0: 10.0}, 1, 9, ["fold 0 will be stopped on the way", "takes 65 min more"], id="one begun late"),
        pytest.param({2: 1.0, 3: 20.0}, 1, 9.99, ["folds 2, 3 will not be reached"], id="no time left"),
        pytest.param(
            FIVE_FOLDS, 1, 0,
            ["folds 0, 1 will be finished; fold 2 will be stopped on the way; folds 3, 4 will not", "10.1 hours more"],
            id="five in turn",
        ),
        pytest.param(
            FIVE_FOLDS, 2, 0, ["folds 0, 1, 2, 3 will be finished; fold 4 will be stopped", "2.1 hours more"],
            id="two at once",
        ),
    ],
)  # fmt: skip
def test_the_plan_says_once_which_folds_fit(epochs_left, places, hours_passed, said, passed, caplog):
    """10 hours less a reserve of 300 s; a fold takes 4 hours."""
    caplog.set_level("INFO")
    passed[0] = 3600.0 * hours_passed
    budget = Budget(10, places=places, num_epochs=20, epochs_left=epochs_left)
    for _ in range(2):
        budget.forecast(720.0)
    assert len(caplog.messages) == 1
    assert [words for words in said if words not in caplog.text] == []


def test_without_hours_there_is_always_time_and_nothing_to_say(passed, caplog):
    caplog.set_level("INFO")
    passed[0] = 1e9
    budget = Budget(epochs_left=FIVE_FOLDS)
    budget.forecast(720.0)
    assert budget.seconds_left == float("inf") and caplog.text == ""


def test_folds_that_do_not_fit_are_left_to_the_same_command(pipeline: Pipeline, tmp_path, passed, monkeypatch, capsys):
    """An update takes a minute, a validation half of one: of two folds of 4 updates 480 s have time for one and a half,
    each update with room for another."""

    def slower(real: Callable, seconds: float) -> Callable:
        def slow(*given) -> object:
            passed[0] += seconds
            return real(*given)

        return slow

    monkeypatch.setattr(loop, "update", slower(loop.update, 60))
    monkeypatch.setattr(loop, "validate", slower(loop.validate, 30))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: passed[0]))
    budget = ("--budget-hours", 500 / 3600, "--data.validation-frames", 1)
    words = pipeline.training(tmp_path, "--fold", "all", *budget)
    folder = tmp_path / "demo_tiny"
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["0", "well"], ["1", "stopped"]]
    assert "Stopped by --budget-hours: fold 1 after 0.5 of 1 epochs. All is saved; the same command goes on" in out
    assert "plan: no epoch was measured yet" in err
    assert "an epoch takes 276.0 s" in err and "fold 0 will be finished; fold 1 will be stopped on the way" in err
    assert (folder / "fold1/resume.pt").is_file() and not (folder / "fold1/best.safetensors").exists()

    passed[0] = 499.0
    assert main(words) == 0, "no time at all is no error"
    assert "fold 1 not reached" in capsys.readouterr().out

    passed[0] = 0.0
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["0", "well"], ["1", "well"]]
    assert "Stopped" not in out and err.index("plan: an epoch takes 270.0 s") < err.index(
        "continues in epoch 0, batch 2"
    )
    for name in ("fold0", "fold1"):
        found, expected = (
            safetensors.torch.load_file(path / name / "last.safetensors") for path in (folder, pipeline.experiment)
        )
        assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


def test_no_fold_is_begun_after_one_that_was_stopped(pipeline: Pipeline, tmp_path, passed, monkeypatch, capsys):
    """Nor in the time that was too short for that one's validation."""
    monkeypatch.setattr(loop, "_validation_seconds", lambda _: 3000.0)
    assert main(pipeline.training(tmp_path, "--fold", "all", "--budget-hours", 0.8)) == 0
    out = capsys.readouterr().out
    assert "Stopped by --budget-hours: fold 0 after 1 of 1 epochs; fold 1 not reached." in out
    assert not (tmp_path / "demo_tiny/fold1").exists()


@pytest.mark.parametrize("slots", ["cpu", "cpu,cpu"])
def test_no_process_is_started_where_no_time_is_left(pipeline: Pipeline, tmp_path, passed, slots, capsys):
    passed[0] = 3600.0
    assert main(pipeline.training(tmp_path, "--fold", "all", "--gpus", slots, "--budget-hours", 1)) == 0
    assert "folds 0, 1 not reached" in capsys.readouterr().out
    assert list(tmp_path.rglob("*.log")) == []


def test_no_process_is_started_after_one_that_was_stopped(tmp_path, passed):
    budget = Budget(1, num_epochs=2, epochs_left={1: 2.0}, has_stopped=True)
    how = {"interruption": Interruption(), "bar": None, "budget": budget}
    assert folds._train_process([], 1, "cpu", tmp_path / "fold1", **how).stopped == "not reached"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("hours", [0, -1])
def test_hours_that_are_none_are_refused(hours, pipeline: Pipeline, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(pipeline.training(tmp_path, "--budget-hours", hours))
    assert "--budget-hours: expected hours above 0" in capsys.readouterr().err
