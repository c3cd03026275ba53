"""Where calls run: on this machine, or on a Dask or Ray cluster, through joblib.

A place only carries calls out and results back; the work itself happens in isolated processes that whoever receives a
call starts beside himself (`isolation.py`). So joblib uses threads on this machine, and a cluster's own workers there.
"""

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import joblib

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
