"""A folder of test videos for submission runs, here or in processes of their own."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd

from multiattn.inference.submit import run as run_module
from multiattn.inference.submit.classifier import LoadedModels
from multiattn.inference.submit.delivery import SubmitResult, check_submission
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.run import run_submit
from multiattn.runtime.layout import SUBMISSION_JOURNAL
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import SUBMISSION
from pipeline import start

PRIOR = 0.5
SAME = 1e-6
"""The miniature's models hardly tell its videos apart: their answers differ by 5e-6."""
BLOCK_NETWORK = """
import socket
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"networking is blocked: {address}")
    return _connect(self, address)
def getaddrinfo(host, *arguments, **named):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        raise OSError(f"networking is blocked: {host}")
    return _getaddrinfo(host, *arguments, **named)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""
"""A sitecustomize.py. Jupyter itself talks over localhost."""


@dataclass
class Case:
    """A folder of test videos, its sample, and what an undisturbed run answers."""

    folder: Path
    inputs: SubmitInputs
    sample: pd.DataFrame
    answers: dict[str, float] = field(default_factory=dict)

    def copy(self, folder: Path) -> "Case":
        """The same with files of its own and no results yet."""
        shutil.copytree(self.inputs.videos_dir, folder / "videos")
        inputs = dataclasses.replace(self.inputs, videos_dir=folder / "videos", out=folder / "out")
        return Case(folder, inputs, self.sample, self.answers)

    @property
    def with_faces(self) -> list[str]:
        """Names of the videos whose answer is not the prior."""
        return [name for name, label in self.answers.items() if label != PRIOR]

    @property
    def faceless(self) -> list[str]:
        """Names of the others: one shows no face, one is no video."""
        return [name for name, label in self.answers.items() if label == PRIOR]

    def asking_for(self, *names: str) -> SubmitInputs:
        """Its inputs with a sample of these rows."""
        SUBMISSION.write(pd.DataFrame({"filename": names, "label": 0.0}), self.folder / "sample.csv")
        return dataclasses.replace(self.inputs, sample_submission=self.folder / "sample.csv")

    def of(self, *names: str) -> "Case":
        """The same for these videos alone."""
        inputs = self.asking_for(*names)
        return dataclasses.replace(self, inputs=inputs, sample=SUBMISSION.read(inputs.sample_submission))

    def read(self) -> dict[str, float]:
        """The submission that lies there now; it must be a complete valid one."""
        path = self.inputs.out / "submission.csv"
        table = SUBMISSION.read(path)
        check_submission(table, self.sample, ScoringRule(), path)
        return dict(zip(table["filename"], table["label"], strict=True))

    def require_no_wrong_row(self, *, broken: tuple[str, ...] = ()) -> int:
        """Each row is the undisturbed run's or the prior; returns how many are not the prior."""
        found = self.read()
        for name, label in found.items():
            is_right = abs(label - self.answers[name]) < SAME or label == PRIOR
            assert is_right, f"{name}: {label}, undisturbed {self.answers[name]}"
        return sum(label != PRIOR for name, label in found.items() if name not in broken)

    def card(self) -> dict:
        return json.loads((self.inputs.out / "card.json").read_text())

    @contextlib.contextmanager
    def process(self, *, delay: float = 0.0, **changes: object) -> Iterator[BaseProcess]:
        """A submission run in a process of its own, without a network and each batch slowed down; killed at the end, if
        it still runs."""
        process = start(run_alone, dataclasses.replace(self.inputs, **changes), delay, log=self.folder / "log.txt")
        try:
            yield process
        finally:
            process.kill()
            process.join()

    def wait_for(self, count: int, seconds: float = 240) -> None:
        """Until so many videos are kept in the store."""
        deadline = time.monotonic() + seconds
        while self.kept() < count:
            assert time.monotonic() < deadline, (self.folder / "log.txt").read_text()
            time.sleep(0.02)

    def kept(self) -> int:
        path = self.inputs.out / SUBMISSION_JOURNAL
        return max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0


def slower(seconds: float) -> Callable:
    """`LoadedModels.logits` that takes so much longer."""
    logits = LoadedModels.logits

    def slow_logits(self, *arguments, **named):
        time.sleep(seconds)
        return logits(self, *arguments, **named)

    return slow_logits


def in_this_process(case: Case, monkeypatch, *, delay: float = 0.0, age: float = 0.0, **changes) -> SubmitResult:
    """Run it here, as in a process that began `age` seconds ago, each batch slowed down."""
    started = time.monotonic() - age
    monkeypatch.setattr(LoadedModels, "logits", slower(delay))
    monkeypatch.setattr(run_module, "process_seconds", lambda: time.monotonic() - started)
    return run_submit(dataclasses.replace(case.inputs, **changes))


def run_alone(inputs: SubmitInputs, delay: float) -> None:
    """The work of `Case.process`."""
    logging.basicConfig(level=logging.INFO)
    exec(BLOCK_NETWORK, {})
    LoadedModels.logits = slower(delay)
    result = run_submit(inputs)
    logging.info("delivered after %.1f s: %s", result.seconds, result.coverage)
    logging.shutdown()
    os._exit(0)  # as `multiattn submit` ends where threads are still in torch
