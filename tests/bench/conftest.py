"""Crops that the benchmarks read, and their sides without processes."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drawn_faces import write_faces_folder
from multiattn.bench import data as bench_data
from multiattn.bench import harness
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
    """`SideProcess` without a process: the start of one takes seconds, and test_harness.py pays it."""

    def __init__(self, name: str, make: Callable, *arguments: Any) -> None:
        make, arguments = pickle.loads(pickle.dumps((make, arguments)))
        self.name, self.side = name, make(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self.side, method)(*arguments)


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """Run the sides of `bench train` and `infer` here."""
    monkeypatch.setattr(bench_train, "SideProcess", InThisProcess)


@pytest.fixture
def forked_sides(monkeypatch) -> None:
    """Sides in processes that need not import torch."""
    context = forked()
    monkeypatch.setattr(harness, "multiprocessing", SimpleNamespace(get_context=lambda _: context))
