"""Crops that the benchmarks read, and their sides without processes."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from drawn_faces import write_faces_folder
from multiattn.bench import data as bench_data
from multiattn.bench import harness, train_sides
from multiattn.bench import train as bench_train
from multiattn.video.crops.recipe import CropRecipe
from pipeline import forked


@pytest.fixture
def faces(tmp_path, monkeypatch) -> Path:
    """A finished faces folder of four real and four fake videos, three crops each."""
    monkeypatch.setattr(bench_data, "DRAWN_FRAMES", 3)
    (tmp_path / "faces").mkdir()
    made = bench_data._drawn_faces(tmp_path / "faces")
    labels = dict(zip(made.training["video_id"], made.training["label"], strict=True))
    return write_faces_folder(made.folder, made.faces, labels, CropRecipe(num_frames=3))


class InThisProcess:
    """`SideProcess` without a process: the start of one takes seconds, and test_harness.py pays it.

    Each has its own random numbers all the same.
    """

    def __init__(self, name: str, make: Callable, *arguments: Any) -> None:
        make, arguments = pickle.loads(pickle.dumps((make, arguments)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.name, self.side, self.random = name, make(*arguments), torch.get_rng_state()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def ask(self, method: str, *arguments: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random)
            result = getattr(self.side, method)(*arguments)
            self.random = torch.get_rng_state()
        return result


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Run the sides of `bench train` and `infer` here, with ceilings that take no time to measure."""
    monkeypatch.setattr(bench_train, "SideProcess", InThisProcess)
    monkeypatch.setitem(train_sides.MATRIX_SIDE, "cpu", 256)
    monkeypatch.setitem(train_sides.COPIED_BYTES, "cpu", 2**20)


@pytest.fixture
def forked_sides(monkeypatch) -> None:
    """Sides in processes that need not import torch."""
    context = forked()
    monkeypatch.setattr(harness, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
