"""Training that ends at any moment and is begun again comes to the same bits as training that was left alone."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from multiattn.config import AverageConfig, Experiment, ValidationConfig
from multiattn.experiments import get_experiment
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.engine.interruption import EXIT_CODE
from multiattn.training.engine.run_folder import load_state
from walk import TIMES, Pipeline, after, killed_when, train_fold_zero

TINY = get_experiment("demo", tiny=True)
EVERYTHING = dataclasses.replace(
    TINY,
    epochs=2,
    data=dataclasses.replace(TINY.data, frames_per_video=4, augmentation="light"),
    model=dataclasses.replace(TINY.model, drop_path_rate=0.2),
    optim=dataclasses.replace(TINY.optim, accumulate=2),
    validation=ValidationConfig(every_steps=2, metric="auc"),
    average=AverageConfig(ema_decay=0.9, best=2),
    save_minutes=1e-9,
)
"""Random draws of every kind, groups of batches, averages, validations inside an epoch, a saved state every update."""


@pytest.fixture(scope="module")
def undisturbed(pipeline: Pipeline, tmp_path_factory) -> Path:
    return train_fold_zero(pipeline, tmp_path_factory.mktemp("undisturbed"), EVERYTHING)


def assert_same_run(folder: Path, expected: Path) -> None:
    """Weights, averages, optimiser, records and predictions, bit for bit."""
    for name in ("last.safetensors", "best.safetensors"):
        found, wanted = (safetensors.torch.load_file(path / name) for path in (folder, expected))
        assert found.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []
    states = [load_state(path) for path in (folder, expected)]
    for state in states:
        state["progress"]["history"] = [
            {name: value for name, value in record.items() if name not in TIMES}
            for record in state["progress"]["history"]
        ]
        del state["random"], state["meter"]
    assert flat(states[0]) == flat(states[1])
    histories = [pd.read_csv(path / "epochs.csv").drop(columns=TIMES) for path in (folder, expected)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    pd.testing.assert_frame_equal(
        *(FRAME_PREDICTIONS.read(path / "oof.parquet") for path in (folder, expected)), check_exact=True
    )


def flat(value: object) -> object:
    """A state in which tensors can be compared as everything else."""
    if isinstance(value, dict):
        return {key: flat(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [flat(entry) for entry in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def test_the_undisturbed_run_has_what_is_compared(undisturbed):
    history = pd.read_csv(undisturbed / "epochs.csv")
    # 4 fake and as many visits of real videos, 4 frames each, in batches of 4, two of them an update.
    assert history["epochs_done"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert history["step"].tolist() == [2, 4, 6, 8]
    assert history["ema_log_loss"].notna().all()
    assert history["average_log_loss"].notna().any()
    state = load_state(undisturbed)
    assert state["average"] is not None and state["optimizer"]["state"]
    assert 1 <= len(state["progress"]["top"]) <= 2
    assert len(list((undisturbed / "candidates").iterdir())) >= len(state["progress"]["top"])


@pytest.mark.parametrize("saves", [1, 3, 4, 6, 9, 11], ids=lambda saves: f"after {saves} saved states")
def test_a_run_that_ends_after_any_saved_state_continues_to_the_same_bits(pipeline, undisturbed, tmp_path, saves):
    with killed_when(after(saves)):
        train_fold_zero(pipeline, tmp_path, EVERYTHING)
    torch.manual_seed(99)  # whatever the next process did before
    assert_same_run(train_fold_zero(pipeline, tmp_path, EVERYTHING), undisturbed)


def test_a_damaged_state_falls_back_to_the_one_before_it_and_comes_to_the_same_bits(
    pipeline, undisturbed, tmp_path, caplog
):
    with killed_when(after(5)):
        train_fold_zero(pipeline, tmp_path, EVERYTHING)
    state = tmp_path / "demo_tiny" / "fold0" / "resume.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    folder = train_fold_zero(pipeline, tmp_path, EVERYTHING)
    assert "damaged" in caplog.text and "resume.previous.pt" in caplog.text
    assert_same_run(folder, undisturbed)


def test_a_loss_that_stops_being_a_number_ends_the_run_and_leaves_its_state(pipeline, tmp_path):
    wild = dataclasses.replace(
        EVERYTHING, name="wild", optim=dataclasses.replace(EVERYTHING.optim, lr=1e30, clip_grad_norm=None)
    )
    with pytest.raises(ValueError, match=r"wild/fold0: epoch 0, step [1-9].*cross_entropy.*learning rate .*in fp32"):
        train_fold_zero(pipeline, tmp_path, wild)
    state = load_state(tmp_path / "wild" / "fold0")
    assert state is None or all(
        bool(torch.isfinite(value).all()) for value in state["step"].values() if value.is_floating_point()
    )


# --- real processes -----------------------------------------------------------------------------------------------


def words_of(pipeline: Pipeline, runs: Path, experiment: Experiment) -> list[str]:
    """`EVERYTHING` as a command line, with two workers."""
    options = {
        "faces": pipeline.faces, "folds": pipeline.folds, "runs": runs, "device": "cpu", "epochs": experiment.epochs,
        "data.frames-per-video": experiment.data.frames_per_video, "data.augmentation": experiment.data.augmentation,
        "data.num-workers": 2, "model.drop-path-rate": experiment.model.drop_path_rate,
        "optim.accumulate": experiment.optim.accumulate, "validation.every-steps": experiment.validation.every_steps,
        "validation.metric": experiment.validation.metric, "average.ema-decay": experiment.average.ema_decay,
        "average.best": experiment.average.best, "save-minutes": experiment.save_minutes,
    }  # fmt: skip
    words = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "multiattn", "train", "demo", "--tiny", *words]


def start(command: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as file:
        return subprocess.Popen(command, start_new_session=True, stdout=file, stderr=file)


def end_after(process: subprocess.Popen, seconds: float, number: int) -> float:
    """Signal the process and its workers `seconds` from now, unless it has ended; returns how long it then took."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    asked = time.monotonic()
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.wait(timeout=60)
    return time.monotonic() - asked


def test_sigterm_saves_and_ends_and_the_same_command_goes_on(pipeline, undisturbed, tmp_path):
    """As a scheduler does it: the signal goes to the process and to its loader's workers alike."""
    command, log = words_of(pipeline, tmp_path, EVERYTHING), tmp_path / "log"
    folder = tmp_path / "demo_tiny" / "fold0"
    rare = [*command[:-1], "1000"]  # nothing is saved by the clock: what is there afterwards came of the signal
    process = start(rare, log)
    while not (folder / "tensorboard").is_dir():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    took = end_after(process, 0.3, signal.SIGTERM)
    assert process.returncode == EXIT_CODE, log.read_text()[-2000:]
    assert took < 30
    assert "the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (folder / "resume.pt").is_file()
    process = start(command, log)
    assert process.wait(timeout=120) == 0, log.read_text()[-2000:]
    assert_same_run(folder, undisturbed)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(pipeline, undisturbed, tmp_path):
    command, log = words_of(pipeline, tmp_path, EVERYTHING), tmp_path / "log"
    folder, generator = tmp_path / "demo_tiny" / "fold0", np.random.default_rng(20261124)
    kills = 0
    while kills < 10:
        before = load_state(folder) if (folder / "resume.pt").is_file() else None
        process = start(command, log)
        # Long enough to get past the imports, and to a state or two.
        end_after(process, generator.uniform(4.0, 9.0), signal.SIGKILL)
        if process.returncode == 0:  # it came to its end: begin another
            assert_same_run(folder, undisturbed)
            subprocess.run(["rm", "-r", str(folder)], check=True)
            continue
        assert process.returncode == -signal.SIGKILL, log.read_text()[-2000:]
        kills += 1
        after = load_state(folder) if (folder / "experiment.json").is_file() else None
        if before is not None:
            assert len(after["progress"]["history"]) >= len(before["progress"]["history"])
    process = start(command, log)
    assert process.wait(timeout=120) == 0, log.read_text()[-2000:]
    assert_same_run(folder, undisturbed)
