"""The engine that runs work on videos: each task in an isolated process, here or on a cluster, results as they come.

A backend only carries calls out and results back; the work itself happens in a process that the receiver of a call
starts beside itself (`isolation.py`): a waiting thread here, or a worker of a Dask or Ray cluster.

A task whose process dies (the decoder crashed, memory ran out, it was killed) waits until all others are through
and is then tried again, alone, so that a shortage that others caused is not held against it. One that takes longer than
the time limit is not tried again.
"""

import contextlib
import functools
import itertools
import logging
import pickle
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from multiattn.runtime.environment import require_packages
from multiattn.video.extraction.isolation import call_isolated

logger = logging.getLogger(__name__)

Backend = Literal["local", "dask", "ray"]
Run = Callable[[Iterable[tuple]], Iterator[tuple]]
"""Takes (function, key, *arguments) lazily and gives (key, kind, value) as it comes, in any order."""
ATTEMPTS = 3
"""Attempts at a task whose process dies."""
POLL_SECONDS = 0.1
CONNECT_SECONDS = 30
RAY_CALLS_AHEAD = 2
"""Calls a CPU that Ray has at a time: each finds the next one there."""


@dataclass(frozen=True)
class Outcome:
    """End of an attempt at a task."""

    task: Any
    kind: Literal["done", "raised", "late", "lost", "again"]
    """`lost`: its process died in each attempt. `again`: it died, or memory ran out, and it is tried again later."""
    value: Any
    """The function's result, or the exception it raised; otherwise the reason as text."""


class Engine:
    """Runs one function on many tasks.

    Args:
        run: from `open_backend`, or `in_threads`.
        target: the function, `module:function`.
        time_limit: seconds a task may take.
        most_deaths: after so many deaths one after the other it is the machine and not the tasks.
    """

    def __init__(
        self, run: Run, target: str, *, time_limit: float | None = None, most_deaths: int | None = None
    ) -> None:
        self._run, self._target, self._time_limit, self._most_deaths = run, target, time_limit, most_deaths
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Begin no further task. A caller that stops early also ends the processes (`end_processes`)."""
        self._stopping.set()

    def outcomes(self, calls: Iterable[tuple[Any, tuple]]) -> Iterator[Outcome]:
        """The outcome of every task as they finish; before the last attempts at those that died, one of kind `again`.

        Calls, a task and the function's arguments each, are taken as they are needed.

        Raises:
            RuntimeError: one process after the other died; where memory ran out, that error.
        """
        died: list[tuple[Any, tuple]] = []
        deaths_in_a_row = 0
        for call, kind, value in self._attempt(calls):
            if kind != "lost" and not (kind == "raised" and is_out_of_memory(value)):
                deaths_in_a_row = 0
                yield Outcome(call[0], kind, value)
                continue
            died.append(call)
            deaths_in_a_row += 1
            how = value if kind == "lost" else describe_error(value)
            if deaths_in_a_row == self._most_deaths:
                if kind == "raised":
                    raise value
                raise RuntimeError(
                    f"{deaths_in_a_row} worker processes died one after the other, the last by {how}: expected that "
                    "of a few videos at most. Find what ends them (dmesg says when memory ran out), pass fewer --jobs, "
                    "and run the same command again."
                )
            yield Outcome(call[0], "again", how)
        for call in died:
            yield from self._alone(call)

    def _alone(self, call: tuple[Any, tuple]) -> Iterator[Outcome]:
        for attempt in range(2, ATTEMPTS + 1):
            for _, kind, value in self._attempt([call]):
                if kind != "lost":
                    yield Outcome(call[0], kind, value)
                    return
                if attempt == ATTEMPTS:
                    message = f"its worker process died in each of {ATTEMPTS} attempts, the last by {value}"
                    yield Outcome(call[0], "lost", message)

    def _attempt(self, calls: Iterable[tuple[Any, tuple]]) -> Iterator[tuple[tuple[Any, tuple], str, Any]]:
        in_flight: dict[int, tuple[Any, tuple]] = {}

        def outgoing() -> Iterator[tuple]:
            for key, call in enumerate(calls):
                if self._stopping.is_set():
                    return
                in_flight[key] = call
                try:  # as bytes, so that a cluster's workers need not import torch to pass it on
                    sent = call_isolated, key, self._target, pickle.dumps(call[1]), self._time_limit
                except Exception as error:
                    sent = _raised, key, error
                yield sent

        with contextlib.closing(self._run(outgoing())) as results:
            for key, kind, value in results:
                try:
                    value = pickle.loads(value) if isinstance(value, bytes) else value
                except Exception as error:
                    kind, value = "raised", error
                yield in_flight.pop(key), kind, value


def is_out_of_memory(error: BaseException) -> bool:
    """True where memory ran out, on a GPU or here; torch's CPU allocator raises a plain RuntimeError."""
    message = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("OutOfMemoryError", "CudaOutOfMemoryError")
        or (isinstance(error, RuntimeError) and ("can't allocate memory" in message or "out of memory" in message))
    )


def is_device_failure(error: BaseException) -> bool:
    """True where a GPU failed: CUDA then gives no more answers there in this process. Short memory is no failure."""
    words = r"CUDA (driver )?error|cuDNN error|(CUBLAS|CUDNN)_STATUS"
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and bool(re.search(words, str(error)))


def describe_error(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def in_threads(calls: Iterable[tuple], *, jobs: int, name: str = "extraction") -> Iterator[tuple]:
    """Run calls in threads of this process, of a name; few results wait, so the work never runs far ahead."""
    calls, taking, leaving = iter(calls), threading.Lock(), threading.Event()
    results: queue.Queue[Any] = queue.Queue(jobs)

    def take() -> tuple | None:
        with taking:
            return next(calls, None)

    def work() -> None:
        try:
            while not leaving.is_set() and (call := take()) is not None:
                put_until(leaving, results, _guarded(*call))
        except BaseException as error:  # of the iterable of calls; raised where the results are taken
            put_until(leaving, results, error)
        put_until(leaving, results, None)  # without it the results would be waited for for ever

    for _ in range(jobs):
        threading.Thread(target=work, daemon=True, name=name).start()
    try:
        left = jobs
        while left:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                left -= 1
            else:
                yield result
    finally:
        leaving.set()


def put_until(leaving: threading.Event, results: queue.Queue, result: Any) -> None:
    """Put a result into a bounded queue, unless its other end is leaving."""
    while not leaving.is_set():
        try:
            results.put(result, timeout=POLL_SECONDS)
        except queue.Full:
            continue
        break


def _guarded(function: Callable[..., tuple], key: Any, *arguments: Any) -> tuple:
    """Make a call whose own failure, a process that cannot start for example, is an outcome like others."""
    try:
        return function(key, *arguments)
    except Exception as error:
        logger.debug("a call failed before it reached its process", exc_info=True)
        return key, "raised", error


def _raised(key: Any, error: Exception) -> tuple:
    return key, "raised", error


@contextlib.contextmanager
def open_backend(name: Backend, *, jobs: int, scheduler: str | None) -> Iterator[Run]:
    """Connect to what runs calls, while the block lasts.

    Args:
        jobs: calls at one time on this machine; a cluster runs as many as its workers have threads (Dask) or CPUs
            (Ray).
        scheduler: `tcp://HOST:8786` of Dask; the address of a Ray cluster, None for the one this machine belongs to.

    Raises:
        ValueError: the package is not installed, the scheduler is missing where it is needed, does not answer, or has
            no workers.
    """
    if name == "local" and scheduler is not None:
        raise ValueError(f"--scheduler {scheduler}: --backend local has none. Add --backend dask or ray.")
    if name == "local":
        yield functools.partial(in_threads, jobs=jobs)
    elif name == "dask":
        with _dask_client(scheduler) as client:
            yield functools.partial(_dask_calls, client=client)
    elif name == "ray":
        with _ray_connection(scheduler) as workers:
            yield functools.partial(_ray_calls, at_once=RAY_CALLS_AHEAD * workers)
    else:
        raise ValueError(f"--backend: expected local, dask or ray, found {name!r}.")


def _dask_calls(calls: Iterable[tuple], *, client: Any) -> Iterator[tuple]:
    import joblib

    with joblib.parallel_config(backend="dask", client=client, n_jobs=-1):
        parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1)  # one call a batch: it takes seconds
    yield from parallel(joblib.delayed(function)(*arguments) for function, *arguments in calls)


def _ray_calls(calls: Iterable[tuple], *, at_once: int) -> Iterator[tuple]:
    """As Ray's tasks, which it gives to another worker when theirs dies; its joblib backend would give up all."""
    import ray

    call, calls, keys = ray.remote(_guarded), iter(calls), {}
    while True:
        for function, key, *arguments in itertools.islice(calls, at_once - len(keys)):
            keys[call.remote(function, key, *arguments)] = key
        if not keys:
            return
        (done, *_), _ = ray.wait(list(keys))
        key = keys.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            result = key, "lost", describe_error(error)
        yield result


@contextlib.contextmanager
def _dask_client(scheduler: str | None) -> Iterator[Any]:
    require_packages("--backend dask", "dask", "distributed")
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
    require_packages("--backend ray", "ray", "ray")
    import ray

    mine = not ray.is_initialized()
    if mine:
        try:
            ray.init(address=address or "auto", log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise ValueError(
                f"--backend ray: no Ray cluster at {address or 'this machine'} ({error}). Start one: ray start --head."
            ) from error
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if mine:
            ray.shutdown()
