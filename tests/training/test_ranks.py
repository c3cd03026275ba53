"""Processes under torchrun: one run folder, every crop seen once, the numbers of one process, and an end together."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from multiattn.config import LossConfig
from multiattn.experiments import get_experiment
from multiattn.model.network import make_network
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.engine import budget, loop
from multiattn.training.engine.run_folder import load_state
from pipeline import Pipeline, exit_with, finish, start, train_fold_zero

TINY = get_experiment("demo", tiny=True)
STEADY = dataclasses.replace(
    TINY,
    name="steady",
    epochs=2,
    model=dataclasses.replace(TINY.model, global_dropout=0.0, drop_path_rate=0.0),
    agda=dataclasses.replace(TINY.agda, mode="none"),
    data=dataclasses.replace(TINY.data, batch_size=8, frames_per_video=4),
    optim=dataclasses.replace(TINY.optim, name="sgd", lr=1e-3),
)
"""Nothing is drawn in a step, and the optimiser does not blow rounding up as Adam does, which divides a gradient of
next to nothing by its own size: one process and several then compute the same."""


def torchrun(processes: int, *words: object, restarts: int = 0) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*command, "--max-restarts", str(restarts), "-m", "multiattn", "train", *map(str, words)]


def steady_words(pipeline: Pipeline, runs: Path, batch_size: int) -> list[object]:
    return [
        "demo", "--tiny", "--name", STEADY.name, "--epochs", STEADY.epochs, "--device", "cpu", "--runs", runs,
        "--faces", pipeline.faces, "--folds", pipeline.folds, "--model.global-dropout", 0, "--model.drop-path-rate", 0,
        "--agda.mode", "none", "--data.batch-size", batch_size, "--data.frames-per-video", 4, "--optim.lr", 1e-3,
        "--optim.name", "sgd",
    ]  # fmt: skip


def launch(processes: int, words: list[str], work: Callable[[list[str]], None] = exit_with) -> None:
    """As torchrun does, by its own agent, but with ranks that are forked and need not import anything."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, start_method="fork", run_id="ranks",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    elastic_launch(config, work)(words)


def with_clocks_apart(words: list[str]) -> None:
    """The work of a rank. The main one's hours are over after its second update; the other's clock is ahead from the
    start, and nobody asks it."""
    updates, real_update = [], loop.update

    def update(*given) -> None:
        updates.append(1)
        real_update(*given)

    loop.update = update
    budget.process_seconds = lambda: 1e9 if os.environ["RANK"] == "1" or len(updates) == 2 else 0.0
    exit_with(words)


@pytest.fixture(scope="module")
def alone(pipeline: Pipeline, tmp_path_factory) -> Path:
    return train_fold_zero(pipeline, tmp_path_factory.mktemp("alone"), STEADY)


@pytest.mark.slow
def test_two_processes_whose_hours_stop_them_train_as_one_with_the_same_global_batch(pipeline, alone, tmp_path):
    log, folder = tmp_path / "log", tmp_path / STEADY.name / "fold0"
    words = ["train", *map(str, steady_words(pipeline, tmp_path, 4))]
    process = start(launch, 2, [*words, "--budget-hours", "1"], with_clocks_apart, log=log)
    assert finish(process) == 0, log.read_text()[-3000:]
    assert log.read_text().count("Stopped by --budget-hours: fold 0 after") == 1
    assert load_state(folder)["progress"]["batch"] == 3, "both ranks stop an update after the main one's hours are over"
    process = start(launch, 2, words, log=log)
    assert finish(process) == 0, log.read_text()[-3000:]
    found, expected = pd.read_csv(folder / "epochs.csv"), pd.read_csv(alone / "epochs.csv")
    for name in ("loss", "cross_entropy", "auxiliary"):
        assert abs(found[name].iloc[0] - expected[name].iloc[0]) < 1e-5 * max(1, expected[name].iloc[0])
    assert found["validation_log_loss"].tolist() == pytest.approx(expected["validation_log_loss"].tolist(), abs=1e-4)
    states = [load_state(path)["step"] for path in (folder, alone)]
    torch.testing.assert_close(states[0]["auxiliary.centers"], states[1]["auxiliary.centers"], atol=1e-5, rtol=1e-4)
    assert states[0]["auxiliary.centers"].norm() > 1e-2
    oof, wanted = (FRAME_PREDICTIONS.read(path / "oof.parquet") for path in (folder, alone))
    key = ["video_id", "frame_index", "track"]
    pd.testing.assert_frame_equal(oof[key], wanted[key])  # each held-out crop once, whichever rank predicted it


@pytest.mark.slow
def test_two_processes_tune_norms_by_pairs_over_both_as_one_does(pipeline, tmp_path):
    model, loss = dataclasses.replace(STEADY.model, tune="norms"), LossConfig(auxiliary="align-uniform")
    alone = train_fold_zero(pipeline, tmp_path / "alone", dataclasses.replace(STEADY, model=model, loss=loss))
    words = [*steady_words(pipeline, tmp_path, 4), "--model.tune", "norms", "--loss.auxiliary", "align-uniform"]
    process = start(launch, 2, ["train", *map(str, words)], log=tmp_path / "log")
    assert finish(process) == 0, (tmp_path / "log").read_text()[-3000:]
    folder = tmp_path / STEADY.name / "fold0"
    losses = [pd.read_csv(path / "epochs.csv")["auxiliary"].iloc[0] for path in (folder, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    found, expected = (load_state(path)["step"] for path in (folder, alone))
    torch.manual_seed(STEADY.seed)
    first = make_network(model).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)
        if "backbone.net" in name and tensor.ndim > 1:  # no normalisation's
            assert torch.equal(found[name], first[name.removeprefix("network.")])


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_a_restart_continues(pipeline, tmp_path):
    """By hand (no restarts allowed), then by torchrun itself (one restart)."""
    words = [*steady_words(pipeline, tmp_path, 4), "--epochs", 60, "--save-minutes", 0.001]
    folder, log = tmp_path / STEADY.name / "fold0", tmp_path / "log"

    def start_and_kill_a_rank(restarts: int, beyond: int) -> subprocess.Popen:
        with log.open("ab") as file:
            process = subprocess.Popen(
                torchrun(2, *words, restarts=restarts), stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not (folder / "resume.pt").is_file() or load_state(folder)["progress"]["epoch"] < beyond:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.1)
        os.kill(children(process)[-1], signal.SIGKILL)
        return process

    process = start_and_kill_a_rank(restarts=0, beyond=1)
    assert process.wait(timeout=90) != 0
    assert "Signal 9 (SIGKILL)" in log.read_text()
    reached = load_state(folder)["progress"]["epoch"]
    assert 1 <= reached < 60
    log.write_text("")
    process = start_and_kill_a_rank(restarts=1, beyond=reached + 1)
    deadline = time.monotonic() + 120
    while log.read_text().count("continues in epoch") < 4:  # two ranks, twice begun
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)  # pre-emption: both ranks save after the same step
    process.wait(timeout=60)
    # Asked in the middle of a validation, one rank may end while the other waits for it, and loses the connection.
    said, lost = (log.read_text().count(w) for w in ("the same command continues from it", "Connection closed by peer"))
    assert said == 2 or (said == 1 and lost), log.read_text()[-3000:]
    state = load_state(folder)
    assert state["progress"]["epoch"] > reached
    assert len(state["random"]) == 2
