"""SIGKILL at an arbitrary moment, then the same command again: the same tables as without the kill."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch

from multiattn.tables import FACES, FRAME_PREDICTIONS
from walk import FACES_OPTIONS, Pipeline, run

TIMES = ["seconds", "samples_per_second"]


def start(*words: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "multiattn", *map(str, words)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen, ready: Callable[[], bool], *, seconds: float = 120) -> None:
    """SIGKILL the process and all its children as soon as `ready`; it must not have ended by itself."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_killed_faces_continue_to_the_same_tables(pipeline: Pipeline, tmp_path):
    words = ["faces", "--videos", pipeline.videos, "--out", tmp_path / "faces", *FACES_OPTIONS, "--jobs", 2]
    journal = tmp_path / "faces" / "journal.jsonl"
    kill_when(start(*words), lambda: lines(journal) >= 3)
    done = {line.split('"')[3] for line in journal.read_text().splitlines()[: lines(journal)]}
    crop_times = {
        path: path.stat().st_mtime_ns for name in done for path in (tmp_path / "faces/crops" / name).iterdir()
    }
    assert not (tmp_path / "faces" / "video_status.csv").exists()
    with journal.open("a") as file:
        file.write('{"video_id":"dfdc/torn')  # what a kill in the middle of a write leaves
    run(*words)
    assert not journal.exists()
    assert {path: path.stat().st_mtime_ns for path in crop_times} == crop_times, "finished videos were done again"
    pd.testing.assert_frame_equal(
        FACES.read(tmp_path / "faces" / "faces.parquet"), FACES.read(pipeline.faces / "faces.parquet")
    )
    assert (tmp_path / "faces/video_status.csv").read_bytes() == (pipeline.faces / "video_status.csv").read_bytes()
    crop = FACES.read(pipeline.faces / "faces.parquet")["crop"].iloc[-1]
    assert (tmp_path / "faces" / crop).read_bytes() == (pipeline.faces / crop).read_bytes()


def test_killed_training_continues_to_the_same_run(pipeline: Pipeline, tmp_path):
    def words(runs: Path) -> list[object]:
        inputs = ["--faces", pipeline.faces, "--folds", pipeline.folds, "--runs", runs]
        return ["train", "demo", "--tiny", "--epochs", 4, "--data.frames-per-video", 4, *inputs]

    killed, undisturbed = tmp_path / "killed" / "demo_tiny/fold0", tmp_path / "undisturbed" / "demo_tiny/fold0"
    kill_when(start(*words(tmp_path / "killed")), lambda: (killed / "resume.pt").is_file())
    assert lines(killed / "epochs.csv") - 1 < 4
    run(*words(tmp_path / "killed"))
    run(*words(tmp_path / "undisturbed"))
    history = [pd.read_csv(folder / "epochs.csv").drop(columns=TIMES) for folder in (killed, undisturbed)]
    assert len(history[0]) == 4
    pd.testing.assert_frame_equal(*history)
    pd.testing.assert_frame_equal(
        FRAME_PREDICTIONS.read(killed / "oof.parquet"), FRAME_PREDICTIONS.read(undisturbed / "oof.parquet")
    )
    for name in ("best.safetensors", "last.safetensors"):
        weights = [safetensors.torch.load_file(folder / name) for folder in (killed, undisturbed)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    states = [torch.load(folder / "resume.pt", weights_only=True)["step"] for folder in (killed, undisturbed)]
    assert {"auxiliary.centers", "auxiliary.center_rate"} <= set(states[1])
    assert set(states[0]) == set(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
