"""Crops that the benchmarks read, and their sides without processes."""

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drawn_faces import write_faces_folder
from multiattn.bench import data as bench_data
from multiattn.bench import faces as bench_faces
from multiattn.bench import submit as bench_submit
from multiattn.bench import train as bench_train
from multiattn.bench.harness import Measured
from multiattn.video.crops.recipe import CropRecipe


@pytest.fixture
def faces(tmp_path, monkeypatch) -> Path:
    """A finished faces folder of four real and four fake videos, three crops each."""
    monkeypatch.setattr(bench_data, "DRAWN_FRAMES", 3)
    (tmp_path / "faces").mkdir()
    made = bench_data._drawn_faces(tmp_path / "faces")
    labels = dict(zip(made.training["video_id"], made.training["label"], strict=True))
    return write_faces_folder(made.folder, made.faces, labels, CropRecipe(num_frames=3))


class InThisProcess:
    """`SideProcess` without a process, with random numbers of its own: the start of one takes seconds, and
    test_harness.py pays it."""

    def __init__(self, name: str, make: Callable, *arguments: Any) -> None:
        make, arguments = pickle.loads(pickle.dumps((make, arguments)))
        self.name, self.side, self.random = name, make(*arguments), torch.get_rng_state()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def ask(self, method: str, *arguments: Any) -> Any:
        torch.set_rng_state(self.random)
        answer = getattr(self.side, method)(*arguments)
        self.random = torch.get_rng_state()
        return answer


def run_here(name: str, work: Callable, *arguments: Any) -> Measured:
    """`run_alone` without a process."""
    work, arguments = pickle.loads(pickle.dumps((work, arguments)))
    started = time.perf_counter()
    result = work(*arguments)
    seconds = time.perf_counter() - started
    return Measured(result, seconds, seconds, 1)


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Run every side of a benchmark here."""
    monkeypatch.setattr(bench_train, "SideProcess", InThisProcess)
    for module in (bench_faces, bench_submit):
        monkeypatch.setattr(module, "run_alone", run_here)
