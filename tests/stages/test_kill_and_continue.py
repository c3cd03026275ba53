"""SIGKILL at an arbitrary moment, then the same command again: the same tables as without the kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from multiattn.runtime.layout import FINGERPRINTS_FILE
from multiattn.tables import FRAME_PREDICTIONS
from pipeline import FACES_OPTIONS, TIMES, Pipeline, run

pytestmark = pytest.mark.slow  # processes of their own, killed and started again


def start(*words: object) -> subprocess.Popen:
    command = ["nice", "-n", "19", sys.executable, "-m", "multiattn", *map(str, words)]  # who kills it is the quicker
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(ready: Callable[[], bool], process: subprocess.Popen, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


def kill_when(process: subprocess.Popen, ready: Callable[[], bool], *, seconds: float = 120) -> None:
    """SIGKILL the process and all its children as soon as `ready`; it must not have ended by itself."""
    wait_until(ready, process, seconds=seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that a running `multiattn faces` started to extract in."""
    found = []
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(pid) for pid in children.read_text().split()]
    return found


def contents(folder: Path) -> dict[str, object]:
    """Everything in a faces folder but its lock; of the fingerprints those of the content, in any order."""
    rows = map(json.loads, (folder / FINGERPRINTS_FILE).read_text().splitlines())
    fingerprints = {row["video_id"]: row["fingerprint"] for row in rows}
    return {"fingerprints": fingerprints} | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", FINGERPRINTS_FILE)
    }


def test_killed_faces_continue_to_the_same_tables(pipeline: Pipeline, tmp_path):
    """In one folder a worker alone is killed and then the parent alone, in another all together: at moments nobody
    chose."""

    def words(folder: Path) -> list[object]:
        return ["faces", "--videos", pipeline.videos, "--out", folder, *FACES_OPTIONS, "--jobs", 1]

    def kill_one_by_one(folder: Path) -> None:
        parent, journal = start(*words(folder)), folder / "journal.jsonl"
        wait_until(lambda: lines(journal) >= 2, parent)
        for pid in workers_of(parent):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: lines(journal) >= 4, parent)
        parent.kill()
        parent.wait()
        with journal.open("a") as file:
            file.write('{"video_id":"dfdc/torn')  # what a kill in the middle of a write leaves

    one_by_one, together = tmp_path / "one by one", tmp_path / "together"
    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_one_by_one, one_by_one)
        kill_when(start(*words(together)), lambda: lines(together / "journal.jsonl") >= 1)
        killed.result()
    for folder in (one_by_one, together):
        journal = folder / "journal.jsonl"
        done = [json.loads(line)["video_id"] for line in journal.read_bytes().splitlines()[: lines(journal)]]
        crops = {path: path.stat().st_mtime_ns for name in done for path in (folder / "crops" / name).iterdir()}
        assert not (folder / "video_status.csv").exists()
        run(*words(folder))
        assert not journal.exists()
        assert {path: path.stat().st_mtime_ns for path in crops} == crops, "finished videos were done again"
        assert contents(folder) == contents(pipeline.faces)


def test_killed_training_continues_to_the_same_run(pipeline: Pipeline, tmp_path):
    def words(runs: Path) -> list[object]:
        return pipeline.training(runs, "--epochs", 4, "--data.frames-per-video", 4)

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
