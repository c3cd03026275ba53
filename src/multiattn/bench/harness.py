"""Sides of a benchmark in processes of their own, which take turns; their seconds and their memory.

A side is started fresh, so that threads, allocator settings and caches of one never help or hinder another. Sides take
turns (ours, plain, ours, plain, ...), so that a machine that gets busier slows down all of them.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Generic, TypeVar

from multiattn.datasets.manifest import video_files_below

Result = TypeVar("Result")
SAMPLE_SECONDS = 0.3
"""Between two readings of a process tree's memory."""


class SideProcess:
    """An object in a process of its own, whose methods are called from here.

    Args:
        name: of the side, for messages.
        make: called there with `arguments`; makes the object. All of them are pickled.
        watched: read the memory of the process and its children while it works, into `peak_bytes`: the most that they
            held at once, pages that several share counted once.
    """

    def __init__(self, name: str, make: Callable[..., Any], *arguments: Any, watched: bool = False) -> None:
        # Spawned, not forked: a fork would share its parent's threads, allocator settings and memory.
        context = multiprocessing.get_context("spawn")
        self.name, self.watched, self.peak_bytes = name, watched, 0
        self.connection, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make, *arguments), daemon=False)
        self.process.start()
        there.close()

    def __enter__(self) -> "SideProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Result of a method of the object, or the `ValueError` or `OSError` it raised; `ValueError` where the process
        has ended."""
        try:
            self.connection.send((method, arguments))
            while self.watched and not self.connection.poll(SAMPLE_SECONDS):
                self.peak_bytes = max(self.peak_bytes, _tree_bytes(self.process.pid))
            reply = self.connection.recv()
        except (EOFError, OSError) as error:
            raise ValueError(
                f"bench: the process of the side `{self.name}` ended early, see its message above; without one, memory "
                "most likely ran out: take less at once by the options of this benchmark (see its --help)."
            ) from error
        if isinstance(reply, ValueError | OSError):
            raise reply
        return reply


def _serve(connection: Connection, make: Callable[..., Any], *arguments: Any) -> None:
    """Make the object and reply to calls of its methods until the other end is closed; any other error than a
    `ValueError` or `OSError` ends the process with its traceback."""
    side = make(*arguments)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        while True:
            method, given = connection.recv()
            try:
                reply = getattr(side, method)(*given)
            except (ValueError, OSError) as error:
                reply = error
            connection.send(reply)


def take_turns(runs: Sequence[Callable[[], Result]], turns: int) -> list[tuple[Result, ...]]:
    """Results of each of `runs`, one a turn: in every turn each runs once, in their order."""
    rounds = [[run() for run in runs] for _ in range(turns)]
    return list(zip(*rounds, strict=True))


@dataclass(frozen=True)
class Measured(Generic[Result]):
    """One call in a process of its own."""

    result: Result
    seconds: float
    """From the start of the process to its end, its imports included."""
    cpu_seconds: float
    """Seconds of the process and of its children that have ended."""
    peak_bytes: int


def run_alone(name: str, work: Callable[..., Result], *arguments: Any) -> Measured[Result]:
    """Call `work(*arguments)` in a process of its own; raises as `SideProcess.ask`."""
    started, cpu = time.perf_counter(), _children_cpu_seconds()
    with SideProcess(name, partial, work, *arguments, watched=True) as side:
        result = side.ask("__call__")
    seconds, cpu = time.perf_counter() - started, _children_cpu_seconds() - cpu
    return Measured(result, seconds, cpu, side.peak_bytes)


def _children_cpu_seconds() -> float:
    """CPU time of the processes that have ended, and of theirs."""
    import resource  # which Windows lacks

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _tree_bytes(pid: int) -> int:
    """Resident memory of a process and its children now, shared pages divided among those that share them."""
    pids, total = [pid], 0
    for one in pids:
        with contextlib.suppress(OSError):  # it ended meanwhile
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
            for thread in Path(f"/proc/{one}/task").glob("*/children"):
                pids += [int(child) for child in thread.read_text().split()]
    return total


def find_videos(folder: Path) -> list[Path]:
    """Videos below a folder, by name; an error where there are none."""
    names = video_files_below(folder)
    if not names:
        found = "none" if folder.is_dir() else "no such folder"
        raise ValueError(f"--videos-dir {folder}: expected videos, found {found}.")
    return [folder / name for name in names]
