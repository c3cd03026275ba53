"""Folds in turn and in processes of their own, the summary of their ends, and starts from runs that must not leak."""

import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.experiments import get_experiment
from multiattn.runtime.progress import WorkBar
from multiattn.runtime.signals import Interruption
from multiattn.tables import FOLDS
from multiattn.training import folds as training
from multiattn.training.engine.budget import Budget
from multiattn.training.folds import (
    _STOPPED,
    FoldOutcome,
    _environment,
    _run,
    describe_folds,
    parse_slots,
    require_same_folds,
    without_options,
)
from pipeline import Pipeline


@pytest.mark.parametrize(
    ("text", "slots"), [("0", ["0"]), ("0,1,3", ["0", "1", "3"]), ("cpu, cpu", ["cpu", "cpu"]), ("0,cpu", ["0", "cpu"])]
)
def test_places_are_gpus_or_the_cpu(text, slots):
    assert parse_slots(text) == slots


@pytest.mark.parametrize("text", ["", "all", "0,,1", "0,0", "-1", "cuda:0"])
def test_other_places_are_refused(text):
    with pytest.raises(ValueError, match=r"--gpus: expected numbers of GPUs, each once"):
        parse_slots(text)


@pytest.mark.parametrize(
    ("words", "left"),
    [
        pytest.param([], [], id="empty"),
        pytest.param(["demo", "--fold", "all", "--tiny"], ["demo", "--tiny"], id="two words"),
        pytest.param(["demo", "--gpus=0,1", "--folds", "x"], ["demo", "--folds", "x"], id="one word, a longer name"),
        pytest.param(["demo", "--device", "cuda"], ["demo"], id="the last"),
    ],
)
def test_options_of_the_parent_are_left_out_for_the_children(words, left):
    assert list(without_options(words, ("--fold", "--gpus", "--device"))) == left


@pytest.mark.parametrize(
    ("visible", "slot", "expected"),
    [("", "2", "2"), ("4,5,6", "1", "5"), ("GPU-a,GPU-b", "0", "GPU-a")],
    ids=["all are visible", "some are", "by their names"],
)
def test_a_child_sees_its_own_gpu_alone(monkeypatch, visible, slot, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = _environment(slot, 3)
    assert (found["CUDA_VISIBLE_DEVICES"], found["LOCAL_WORLD_SIZE"]) == (expected, "3")


@pytest.mark.parametrize(
    "options",
    [pytest.param(["--gpus", "cpu,cpu"], id="at once", marks=pytest.mark.slow), pytest.param([], id="in turn")],
)
def test_a_fold_that_fails_does_not_take_the_others_with_it(pipeline: Pipeline, tmp_path: Path, capfd, options):
    """Fold 0 is in the way of itself: its folder holds a run of other settings. Fold 1 is trained all the same."""
    words = ["--faces", str(pipeline.faces), "--folds", str(pipeline.folds), "--runs", str(tmp_path)]
    shutil.copytree(pipeline.experiment / "fold0", tmp_path / "demo_tiny/fold0")
    assert main(["train", "demo", "--tiny", "--fold", "all", "--seed", "1", *options, *words]) == 2
    out, err = capfd.readouterr()
    lines = {line.split()[0]: line.split()[1] for line in out.splitlines()[:3]}
    assert lines == {"fold": "ended", "0": "failed", "1": "well"}
    assert f"fold 0 failed: {'exit code 2: error: ' if options else ''}" in out and "seed: 7 there, 1 asked" in out
    assert "1 of 2 folds failed; the same command tries them again" in err and "Traceback" not in err
    assert (tmp_path / "demo_tiny/fold1/best.safetensors").is_file()
    assert (tmp_path / "demo_tiny/fold1/train.log").is_file() == bool(options)
    log = (tmp_path / "demo_tiny/fold1/train.log").read_text() if options else err
    assert "epoch 0: loss" in log


def test_the_log_of_a_fold_in_a_process_tells_the_bar_its_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SECONDS_BETWEEN_READINGS", 0.0)
    log, reports = tmp_path / "demo/fold1/train.log", []
    log.parent.mkdir(parents=True)
    log.write_text("demo/fold1: 7/8 samples, 1.0 samples/s, 00:01 left\n")  # of an earlier command
    monkeypatch.setattr(WorkBar, "report", lambda self, *reported: reports.append(reported))
    forecasts, budget = [], Budget(2, num_epochs=4)
    monkeypatch.setattr(Budget, "forecast", lambda self, seconds: forecasts.append(seconds))
    script = (
        "import time; print('demo/fold1: 3/8 samples, 1.0 samples/s, 00:05 left', flush=True);"
        "print('plan: an epoch takes 12.5 s with its validations; of', flush=True); time.sleep(1)"
    )
    assert _run([sys.executable, "-c", script], {**os.environ}, log, Interruption(), WorkBar("demo", 2), budget) == 0
    assert set(reports) == {("demo/fold1", 3, 8)}
    assert forecasts == [12.5] and budget.epochs_left == {1: 2.5}


def test_the_summary_shows_the_best_candidate_of_each_fold(tmp_path):
    experiment = get_experiment("demo")
    (tmp_path / "fold0").mkdir()
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 1], "epochs_done": [1.0, 1.5, 2.0], "phase": "train", "candidate": ["last", "ema", "last"],
            "seconds": [60.0, 30.0, 60.0], "validation_log_loss": [0.5, 0.45, 0.6], "validation_auc": [0.7, 0.75, 0.6],
            "ema_log_loss": [0.55, 0.4, 0.61], "ema_auc": [0.65, 0.8, 0.6],
        }
    )  # fmt: skip
    history.to_csv(tmp_path / "fold0" / "epochs.csv", index=False)
    text = describe_folds(experiment, tmp_path, [FoldOutcome(0), FoldOutcome(1, "no GPU left")])
    assert text.splitlines()[1].split() == ["0", "well", "2", "0.4000", "0.8000", "1", "ema", "0.6000", "2.0"]
    assert text.splitlines()[2].split() == ["1", "failed", "0"]
    assert text.splitlines()[3] == "fold 1 failed: no GPU left"
    stopped = [
        FoldOutcome(0, stopped="after 1.5 of 3 epochs"),
        *(FoldOutcome(k, stopped="not reached") for k in (1, 2)),
    ]
    last = describe_folds(experiment, tmp_path, stopped).splitlines()[-1]
    assert "--budget-hours: fold 0 after 1.5 of 3 epochs; folds 1, 2 not reached. All is saved" in last
    (found,) = _STOPPED.findall(describe_folds(experiment, tmp_path, stopped[:1]))
    assert found == "after 1.5 of 3 epochs", "as the parent of a fold's process reads it"


@pytest.mark.parametrize("content", ["", "epoch\n0\n"], ids=["empty", "columns"])
def test_the_summary_refuses_what_is_no_history(content, tmp_path):
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0" / "epochs.csv").write_text(content)
    with pytest.raises(ValueError, match=r"fold0/epochs.csv: expected .* Put back what"):
        describe_folds(get_experiment("demo"), tmp_path, [FoldOutcome(0)])


@pytest.mark.parametrize("options", [["--gpus", "cpu,cpu"], []], ids=["at once", "in turn"])
def test_crops_that_are_too_small_are_refused_before_any_fold_begins(pipeline, tmp_path, capfd, options):
    words = ["--faces", str(pipeline.faces), "--folds", str(pipeline.folds), "--runs", str(tmp_path), *options]
    assert main(["train", "demo", "--tiny", "--fold", "all", "--data.image-size", "96", *words]) == 2
    error = capfd.readouterr().err
    assert "expected crops of 96 pixels or more, which demo_tiny trains on, found crops of 64" in error
    assert "multiattn faces --size 96" in error and "--data.image-size 64" in error
    assert not list(tmp_path.iterdir())


def test_under_torchrun_the_folds_are_not_spread_a_second_time(pipeline: Pipeline, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--faces", str(pipeline.faces), "--folds", str(pipeline.folds), "--gpus", "cpu"]
    assert main(["train", "demo", "--tiny", *words]) == 2
    assert "leave it out under torchrun" in capsys.readouterr().err


def folds(level: str, numbers: list[int]) -> pd.DataFrame:
    names = [f"ffpp/original_sequences/youtube/{level}/videos/{number:03}" for number in range(len(numbers))]
    return pd.DataFrame({"video_id": names, "label": [n % 2 for n in range(len(names))], "group": "g", "fold": numbers})


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A c23 run of fold 0."""
    FOLDS.write(folds("c23", [0, 0, 1, 1]), tmp_path / "fold0" / "folds.csv")
    return tmp_path


@pytest.mark.parametrize("numbers", [[0, 0, 1, 1], [0]], ids=["the same folds", "one video, in its fold"])
def test_the_same_clips_in_the_same_folds_may_start_from_another_compression(start, numbers):
    require_same_folds(start, [0], folds("c40", numbers))


def test_a_clip_that_was_trained_on_and_is_held_out_now_is_a_leak_and_a_fold_without_a_run_is_named(start):
    with pytest.raises(ValueError, match=r"leak: 1 video lies in another fold there, .*/\*/videos/002"):
        require_same_folds(start, [0], folds("c40", [0, 0, 0, 1]))
    with pytest.raises(FileNotFoundError, match=r"fold1.*run the same ablation on the c23 faces first"):
        require_same_folds(start, [0, 1], folds("c40", [0, 0, 1, 1]))
