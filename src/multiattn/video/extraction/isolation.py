"""Calls in processes of their own, which may crash, hang or run out of memory without harm to the caller.

FFmpeg and the networks are C code: on a damaged file it may end its process or never come back. So each video goes to a
process that does nothing else, and it is known which video killed it; of joblib's own processes all go down with one.

    python -m multiattn.video.extraction.isolation MODULE:FUNCTION SECONDS

is the other end: it serves calls until its input closes, or none comes for so long.

Nothing heavy is imported here, since both ends of a cluster's connection need this module.
"""

import contextlib
import faulthandler
import importlib
import itertools
import os
import pickle
import queue
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from multiattn.runtime.processor import collect_seldom

START_SECONDS = 300.0
"""Time to import torch from a cold network disk."""
IDLE_SECONDS = 60.0
"""An unused process gives its memory back after so long."""
GRACE_SECONDS = 60.0
"""A process whose caller is gone ends by itself so long after its time limit."""
CALLS_PER_PROCESS = 500
"""Whatever leaks in a library ends with its process; starting another takes seconds."""
ENVIRONMENT = {
    # The parallelism is over videos.
    "OMP_NUM_THREADS": "1",
    # MTCNN meets a new batch size with nearly every video, and oneDNN's cache of compiled sizes would grow by hundreds
    # of megabytes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16",
}
NUMBER = "MULTIATTN_WORKER"
"""Variable with a process's number in its pool."""
_LENGTH = struct.Struct(">Q")


class ProcessLostError(Exception):
    """A process ended before it could take a call; the message says how."""


class IsolatedProcess:
    """One process that serves calls of one function, one at a time.

    Args:
        target: `module:function`. The module is imported before the first call, so that a call's time is its own.
        number: what `worker_number` is there.
        idle_seconds: it ends by itself where no call comes for so long.
        environment: variables it has beside those of this process.

    Raises:
        RuntimeError: it could not start, which is no call's fault.
        ProcessLostError: it was killed while it started.
    """

    def __init__(
        self,
        target: str,
        number: int = 0,
        *,
        idle_seconds: float = IDLE_SECONDS,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        self.idle_seconds = idle_seconds
        self.calls, self.at_work, self.last_used, self.number = 0, False, time.monotonic(), number
        self.process = subprocess.Popen(
            # -P: nothing that happens to lie in the working folder is imported.
            [sys.executable, "-P", "-m", "multiattn.video.extraction.isolation", target, str(idle_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment, NUMBER: str(number), "PYTHONPATH": _import_path()},
        )
        try:
            self._receive(START_SECONDS)
        except (EOFError, TimeoutError) as error:
            killed = (self.process.poll() or 0) < 0
            self.kill()
            if killed:
                raise ProcessLostError(str(error)) from None
            raise RuntimeError(f"a worker process could not start: {error}. Its own message stands above.") from error

    def call(self, argument: bytes, seconds: float | None) -> tuple[str, bytes | str]:
        """Call the function there; as `call_isolated`, without the key."""
        self.calls, self.at_work = self.calls + 1, True
        try:
            _write(self.process.stdin, pickle.dumps((seconds, argument)))
            returned, value = pickle.loads(self._receive(seconds))
        except BrokenPipeError:
            return "lost", self._how_it_ended()
        except EOFError as error:
            return "lost", str(error)
        except TimeoutError as error:
            self.kill()
            return "late", str(error)
        self.at_work, self.last_used = False, time.monotonic()
        return "done" if returned else "raised", value

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    @property
    def fresh(self) -> bool:
        """True where it may take another call."""
        if self.at_work or self.process.poll() is not None:
            return False
        return time.monotonic() - self.last_used < self.idle_seconds / 2 and self.calls < CALLS_PER_PROCESS

    def _receive(self, seconds: float | None) -> bytes:
        deadline = None if seconds is None else time.monotonic() + seconds
        handle, received, length = self.process.stdout.fileno(), bytearray(), None
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while length is None or len(received) < length:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    raise TimeoutError(f"took longer than the time limit of {seconds:g} s")
                some = os.read(handle, (_LENGTH.size if length is None else length) - len(received))
                if not some:
                    raise EOFError(self._how_it_ended())
                received += some
                if length is None and len(received) == _LENGTH.size:
                    length, received = _LENGTH.unpack(received)[0], bytearray()
        return bytes(received)

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # it closed its end, but goes on
            self.process.kill()
            code = self.process.wait()
        if code >= 0:
            return f"exit code {code}"
        try:
            return signal.Signals(-code).name
        except ValueError:  # real-time signals have no name
            return f"signal {-code}"


class ProcessPool:
    """Isolated processes of one function, kept for the next call; as many as there are calls at one time.

    Safe for threads.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._idle: list[IsolatedProcess] = []
        self._all: set[IsolatedProcess] = set()
        self._numbers: set[int] = set()
        self._closed = False

    def call(self, argument: bytes, seconds: float | None) -> tuple[str, bytes | str]:
        """As `IsolatedProcess.call`, in a process that is free, or a new one."""
        try:
            process = self._take()
        except ProcessLostError as error:
            return "lost", str(error)
        try:
            return process.call(argument, seconds)
        finally:
            with self._lock:
                keep = process.fresh and not self._closed
                self._idle += [process] if keep else []
            if not keep:
                self._end(process)

    def close(self) -> None:
        """End all processes, those that are at work too; their calls are lost, and so are later ones."""
        with self._lock:
            self._closed = True
            processes, idle, self._idle = list(self._all), self._idle, []
        for process in processes:
            process.process.kill()  # the thread that waits for it cleans up
        for process in idle:
            self._end(process)

    def _take(self) -> IsolatedProcess:
        with self._lock:
            fresh = [process for process in self._idle if process.fresh]
            stale = [process for process in self._idle if process not in fresh]
            free = fresh.pop() if fresh else None
            self._idle = fresh
        for process in stale:
            self._end(process)
        free = free or self._start()
        with self._lock:
            self._all.add(free)
            closed = self._closed
        if closed:
            self._end(free)
            raise ProcessLostError("the pool was closed")
        return free

    def _start(self) -> IsolatedProcess:
        """A new process, with the lowest number that none has."""
        with self._lock:
            number = next(number for number in itertools.count() if number not in self._numbers)
            self._numbers.add(number)
        try:
            return IsolatedProcess(self.target, number)
        except BaseException:
            self._numbers.discard(number)
            raise

    def _end(self, process: IsolatedProcess) -> None:
        process.kill()
        with self._lock:
            self._all.discard(process)
            self._numbers.discard(process.number)


_pools: dict[str, ProcessPool] = {}
_pools_lock = threading.Lock()


def call_isolated(key: Any, target: str, argument: bytes, seconds: float | None) -> tuple[Any, str, bytes | str]:
    """Call `target` in a process of this machine, kept for later calls.

    Args:
        argument: the arguments, pickled; as bytes, so that this end need not import what they are.
        seconds: kill the process when it has not returned by then.

    Returns:
        The key, the kind of outcome and its value: `done` and what the function returned, pickled; `raised` and its
        pickled exception; `lost` and how the process ended; `late` and the time limit, both in words.

    Raises:
        RuntimeError: no process could be started.
    """
    with _pools_lock:
        pool = _pools.setdefault(target, ProcessPool(target))
    return key, *pool.call(argument, seconds)


def worker_number() -> int:
    """The number of this process among those of its pool, from 0; one that replaces another has its number."""
    return int(os.environ.get(NUMBER, "0"))


def end_processes() -> None:
    """End the processes of `call_isolated` on this machine, those at work too, at once instead of with this process."""
    with _pools_lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close()


def serve(target: str, idle_seconds: float) -> None:
    """Serve calls of a function until the input closes or none comes for so long: the loop of the other end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the caller ends us
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the results
    collect_seldom()
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    calls: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_calls, args=(calls,), daemon=True).start()
    _write(results, b"ready")
    with Path(os.devnull).open("w") as nowhere:
        while True:
            try:
                seconds, argument = pickle.loads(calls.get(timeout=idle_seconds))
            except queue.Empty:
                os._exit(0)  # Python's own end would find the other thread at the input, and die of it with a report
            if seconds is not None:  # a thread in C, so it works while C code holds the interpreter
                faulthandler.dump_traceback_later(seconds + GRACE_SECONDS, exit=True, file=nowhere)
            _write(results, pickle.dumps(_call(function, argument)))
            faulthandler.cancel_dump_traceback_later()


def _call(function: Callable, argument: bytes) -> tuple[bool, bytes]:
    try:
        return True, pickle.dumps(function(*pickle.loads(argument)))
    except Exception as error:  # whatever it is, the caller raises it
        error.add_note("In the worker process:\n" + "".join(traceback.format_exception(error)))
        try:
            content = pickle.dumps(error)
            pickle.loads(content)
        except Exception:  # an exception whose constructor wants more than its message
            content = pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
        return False, content


def _read_calls(calls: "queue.SimpleQueue[bytes]") -> None:
    while header := sys.stdin.buffer.read(_LENGTH.size):
        calls.put(sys.stdin.buffer.read(*_LENGTH.unpack(header)))
    os._exit(0)  # the caller is gone; what is at work is of no use to anyone


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(_LENGTH.pack(len(content)) + content)
    file.flush()


def _import_path() -> str:
    """A PYTHONPATH with which the other process can import what this one can: a notebook may have extended its path."""
    here = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(dict.fromkeys([here, *(entry or str(Path.cwd()) for entry in sys.path)]))


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
