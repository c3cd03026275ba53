"""A miniature of the demo, and how a test runs a stage: here, ended on the way, or in a process of its own."""

import contextlib
import itertools
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from multiattn.__main__ import main
from multiattn.config import Experiment
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import find_models
from multiattn.runtime.layout import DISTANCE_FILE, HELD_OUT_FILE, LAST_HELD_OUT_FILE
from multiattn.runtime.progress import WorkBar
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.engine import loop
from multiattn.training.engine.ranks import Ranks
from multiattn.training.engine.run_folder import save_state
from multiattn.training.folds import read_training_data, train_folds
from multiattn.video.crops.recipe import read_recipe, write_recipe

TIMES = ["seconds", "samples_per_second", "data_wait", "validation_seconds"]
"""Columns of epochs.csv that no two runs share."""
FACES_OPTIONS = ("--num-frames", "4", "--size", "64", "--splits", "train", "--reuse-original")


@dataclass(frozen=True)
class Pipeline:
    """A miniature of the demo, taken from clips to trained folds by the stages themselves."""

    dataset: Path
    videos: Path
    faces: Path
    folds: Path
    runs: Path

    @property
    def experiment(self) -> Path:
        """The trained runs."""
        return self.runs / "demo_tiny"

    def training(self, runs: Path, *more: object, folds: Path | None = None) -> list[str]:
        """The words of a command that trains the tiny experiment into `runs`; `more` options come last."""
        inputs = ("--faces", self.faces, "--folds", folds or self.folds, "--runs", runs)
        return [str(word) for word in ("train", "demo", "--tiny", *inputs, *more)]

    def submit(self, out: Path, *, clips: Path | None = None, sample: Path | None = None) -> None:
        """Answer the miniature's test clips, or others, into `out`."""
        clips, sample = clips or self.dataset / "test_videos", sample or self.dataset / "sample_submission.csv"
        inputs = ("--runs", self.experiment, "--videos-dir", clips, "--sample-submission", sample)
        run("submit", *inputs, "--out", out, "--jobs", 1)


def run(*words: object) -> None:
    """Run a stage as a user would, in this process; it must succeed."""
    assert main([str(word) for word in words]) == 0, f"multiattn {' '.join(map(str, words))} failed"


BOX_FACES = ("--num-frames", "3", "--size", "96", "--alignment", "box", "--margin", "1.5", "--splits", "train")


def make_box_run(pipeline: Pipeline, folder: Path) -> None:
    """Make `folder/demo_box` of the tiny runs, as the fixture `box_run` says."""
    runs = shutil.copytree(pipeline.experiment, folder / "demo_box")
    run("faces", "--videos", pipeline.videos, "--out", folder / "faces", *BOX_FACES, "--jobs", 1)
    for fold in (runs / "fold0", runs / "fold1"):
        write_recipe(read_recipe(folder / "faces"), fold)
        settings = fold / "experiment.json"
        settings.write_text(settings.read_text().replace('"image_size": 64', '"image_size": 96'))
        for name in (LAST_HELD_OUT_FILE, DISTANCE_FILE):  # of the other crops
            (fold / name).unlink(missing_ok=True)
    for model in find_models(runs):
        how = {"device": torch.device("cpu"), "precision": "fp32", "video_ids": model.held_out_videos()}
        FRAME_PREDICTIONS.write(predict_faces([model], folder / "faces", **how), model.path / HELD_OUT_FILE)


def train_fold_zero(pipeline: Pipeline, runs: Path, experiment: Experiment, **options: object) -> Path:
    """Train fold 0 into `runs` in this process, as the stage does but with any settings; returns its folder.

    Options are those of `train_folds`.
    """
    data = read_training_data(pipeline.faces, pipeline.folds)
    place = {"device": torch.device("cpu"), "ranks": Ranks(), "bar": WorkBar(experiment.name, 1)}
    train_folds(experiment, data, [0], runs, **place, **options)
    return runs / experiment.name / "fold0"


class Killed(BaseException):
    """Stands for the end of the process."""


@contextlib.contextmanager
def killed_when(ready: Callable[[Path, dict], bool]) -> Iterator[None]:
    """Training inside the block ends, as by a kill, right after it has saved a state for which `ready` holds.

    Args:
        ready: asked after every saved state, with the run's folder and the state.
    """

    def save_then_die(folder: Path, state: dict) -> None:
        save_state(folder, state)
        if ready(folder, state):
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "save_state", save_then_die)
        yield


def after(saves: int) -> Callable[[Path, dict], bool]:
    """For `killed_when`: after so many saved states."""
    count = itertools.count(1)
    return lambda folder, state: next(count) == saves


def forked() -> BaseContext:
    """A context of multiprocessing whose processes are forked off one that has imported torch and all else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["multiattn.inference.submit.run", "multiattn.training.folds", "pipeline"])
    with pytest.MonkeyPatch.context() as patch:  # preloading knows no other path
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.forkserver.ensure_running()
    return context


def start(function: Callable, *arguments: object, log: Path = Path(os.devnull)) -> BaseProcess:
    """Call a function in a process and a session of its own; what it and its children show goes to the end of `log`.

    It begins at once, so that a kill meets the work and not the imports.
    """
    process = forked().Process(target=_call_alone, args=(function, arguments, log))
    process.start()
    return process


def start_stage(*words: object, log: Path = Path(os.devnull)) -> BaseProcess:
    """Run a stage in a process of its own, as `start` does."""
    return start(exit_with, [str(word) for word in words], log=log)


def exit_with(words: list[str]) -> None:
    """Run a stage and end this process as the command does."""
    os.nice(10)  # who kills it is the quicker
    sys.exit(main(words))


def _call_alone(function: Callable, arguments: tuple, log: Path) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # the system's own, as in a process started by hand
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*arguments)


def wait_until(ready: Callable[[], bool], process: BaseProcess, *, seconds: float = 120) -> None:
    """Wait for something that the process does before it ends."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.is_alive(), "the process ended before it could be killed"
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


def end(process: BaseProcess, number: int = signal.SIGKILL, *, seconds: float = 60) -> int:
    """Send a signal to the process and all its children; returns its exit code (0, or minus the signal)."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    return finish(process, seconds=seconds)


def finish(process: BaseProcess, *, seconds: float = 120) -> int:
    """Wait for its end; returns its exit code."""
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still at work after {seconds:g} s")
    return process.exitcode
