"""Where calls run: on this machine, or on a Dask or Ray cluster, through joblib.

A place only carries calls out and results back; the work itself happens in isolated processes that whoever receives a
call starts beside himself (`isolation.py`). So joblib uses threads on this machine, and a cluster's own workers there.

Many videos through `extract_video`, each in an isolated process: whatever one of them does, the others go on.

A video whose process dies (the decoder crashed, memory ran out, somebody killed it) waits until all others are through
and is then tried again, alone, so that a shortage that others caused is not held against it. One that ends its process
each time is `unreadable`, and so is one that takes longer than the time limit, which is not tried again.
"""

import contextlib
import importlib.util
import itertools
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import joblib

from multiattn.runtime.layout import CROPS_FOLDER
from multiattn.video.extraction.extract import ExtractionSettings, VideoFaces, VideoTask, extract_video
from multiattn.video.extraction.isolation import call_isolated

Backend = Literal["local", "dask", "ray"]
Run = Callable[[Iterable[tuple]], Iterator[Any]]
"""Takes (function, *arguments) tuples lazily, gives what they return as it comes, in any order."""
CONNECT_SECONDS = 30
RAY_CALLS_AT_ONCE = 16
"""A worker. Ray's joblib backend hands out results only when all of a list are there."""


@contextlib.contextmanager
def open_backend(name: Backend, *, jobs: int, scheduler: str | None) -> Iterator[Run]:
    """A way to run calls, connected while the block lasts.

    Args:
        jobs: calls at one time on this machine; a cluster runs as many as its workers have threads (Dask) or CPUs
            (Ray).
        scheduler: `tcp://HOST:8786` of Dask; the address of a Ray cluster, None for the one this machine belongs to.

    Raises:
        ValueError: the package is not installed, the scheduler is missing where it is needed, does not answer, or has
            no workers.
    """
    if name == "local":
        if scheduler is not None:
            raise ValueError(f"--scheduler {scheduler}: --backend local has none. Add --backend dask or ray.")
        yield lambda calls: _run(calls, n_jobs=jobs, backend="threading")
    elif name == "dask":
        with _dask_client(scheduler) as client:
            yield lambda calls: _run(calls, n_jobs=-1, backend="dask", client=client)
    elif name == "ray":
        with _ray_connection(scheduler) as workers:
            yield lambda calls: _run_in_lists(calls, RAY_CALLS_AT_ONCE * workers)
    else:
        raise ValueError(f"--backend: expected local, dask or ray, found {name!r}.")


def _run(calls: Iterable[tuple], *, n_jobs: int, **backend: Any) -> Iterator[Any]:
    with joblib.parallel_config(**backend, n_jobs=n_jobs):
        # One call a batch: each takes seconds.
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1)
    yield from parallel(joblib.delayed(function)(*arguments) for function, *arguments in calls)


def _run_in_lists(calls: Iterable[tuple], at_once: int) -> Iterator[Any]:
    calls = iter(calls)
    while some := list(itertools.islice(calls, at_once)):
        with joblib.parallel_config(backend="ray", n_jobs=-1):
            parallel = joblib.Parallel(batch_size=1)
        yield from parallel(joblib.delayed(function)(*arguments) for function, *arguments in some)


@contextlib.contextmanager
def _dask_client(scheduler: str | None) -> Iterator[Any]:
    _require("distributed", "dask", 'pip install ".[dask]"')
    if scheduler is None:
        raise ValueError("--backend dask: expected --scheduler tcp://HOST:8786, found none. Start one: dask scheduler.")
    from distributed import Client

    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--scheduler {scheduler}: no Dask scheduler answers there ({error}).") from error
    with client:
        if not client.ncores():
            raise ValueError(f"--scheduler {scheduler}: it has no workers. Start some: dask worker {scheduler}.")
        yield client


@contextlib.contextmanager
def _ray_connection(address: str | None) -> Iterator[int]:
    _require("ray", "ray", 'pip install ".[ray]"')
    import ray
    from ray.util.joblib import register_ray

    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address or "auto", log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise ValueError(
                f"--backend ray: no Ray cluster at {address or 'this machine'} ({error}). Start one: ray start --head."
            ) from error
    register_ray()
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if mine:
            ray.shutdown()


def _require(module: str, backend: str, command: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"--backend {backend}: expected the package {module}, which is not installed. Run: {command}")


ATTEMPTS = 3
"""For a video whose process dies."""
MAX_DEATHS_IN_A_ROW = 20
"""Then it is the machine and not the videos."""

Call = tuple[VideoTask, list[list[Any]] | None]
"""A task and the rows of its original, if they are wanted and there are any."""


@dataclass(frozen=True)
class Engine:
    """Runs tasks of one faces folder."""

    run: Run
    folder: Path
    settings: ExtractionSettings
    time_limit: float | None
    """Seconds a video may take; None is no limit."""
    target: str = f"{__name__}:extract_anew"
    """What the isolated processes run."""

    def extract(self, calls: Iterable[Call]) -> Iterator[VideoFaces]:
        """The result of every video, as they finish. The calls are taken as they are needed.

        Raises:
            RuntimeError: one process after the other died, so something is wrong with the machine.
        """
        in_flight: dict[str, Call] = {}
        lost: list[Call] = []
        deaths_in_a_row = 0
        for video_id, outcome, value in self.run(self._outgoing(calls, in_flight)):
            call = in_flight.pop(video_id)
            if outcome != "lost":
                deaths_in_a_row = 0
                yield self._result(call, outcome, value)
                continue
            lost.append(call)
            deaths_in_a_row += 1
            if deaths_in_a_row >= MAX_DEATHS_IN_A_ROW:
                raise RuntimeError(
                    f"{deaths_in_a_row} worker processes died one after the other, the last by {value}: expected that "
                    "of a few videos at most. Look for what ends them (dmesg says when memory ran out), pass fewer "
                    "--jobs, and run the same command again."
                )
        for call in lost:
            yield self._try_alone(call)

    def _outgoing(self, calls: Iterable[Call], in_flight: dict[str, Call]) -> Iterator[tuple]:
        for task, original_rows in calls:
            in_flight[task.video_id] = (task, original_rows)
            # As bytes, so that a cluster's workers need not import torch to pass it on.
            arguments = pickle.dumps((task, self.folder, self.settings, original_rows))
            yield call_isolated, task.video_id, self.target, arguments, self.time_limit

    def _try_alone(self, call: Call) -> VideoFaces:
        for _ in range(ATTEMPTS - 1):
            ((_, outcome, value),) = self.run(self._outgoing([call], {}))
            if outcome != "lost":
                return self._result(call, outcome, value)
        return self._given_up(call[0], f"its worker process died in each of {ATTEMPTS} attempts, the last by {value}")

    def _result(self, call: Call, outcome: str, value: bytes | str) -> VideoFaces:
        if outcome == "late":
            return self._given_up(call[0], f"took longer than --time-limit {self.time_limit:g} s")
        result = pickle.loads(value)
        if outcome == "raised":
            raise result
        return result

    def _given_up(self, task: VideoTask, message: str) -> VideoFaces:
        shutil.rmtree(_crops_folder(self.folder, task), ignore_errors=True)
        return VideoFaces(task.video_id, "unreadable", 0, message, [])


def extract_anew(arguments: bytes) -> bytes:
    """`extract_video` in the isolated process, after what an attempt that was killed left there."""
    task, folder, settings, original_rows = pickle.loads(arguments)
    crops = _crops_folder(folder, task)
    if crops.is_dir():
        for leftover in crops.glob(".*"):
            with contextlib.suppress(FileNotFoundError):
                leftover.unlink()
    return pickle.dumps(extract_video(task, folder, settings, original_rows))


def _crops_folder(folder: Path, task: VideoTask) -> Path:
    return folder / CROPS_FOLDER / task.video_id
