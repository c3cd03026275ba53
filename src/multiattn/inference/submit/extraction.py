"""Videos -> crops in memory: threads that hand videos to isolated processes, and a bounded queue to the classifier.

Decoder and detector of a video live in one process (`video/isolation.py`) and not in threads of this one: a damaged
file may end its process or never come back, and here that costs one video. A thread waits when the queue is full, so
extraction never runs ahead of the classifier by more than the queue's length and one video a thread.
"""

import logging
import pickle
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.in_memory import EncodedCrops
from multiattn.video.extraction.isolation import call_isolated

logger = logging.getLogger(__name__)

TARGET = "multiattn.video.extraction.in_memory:encode_pickled"
ATTEMPTS = 3
"""For a video whose process dies; after the first all others are through, and it is alone."""
POLL_SECONDS = 0.1
QUEUE_VIDEOS_A_WORKER = 2


@dataclass(frozen=True)
class Work:
    """One video that is to be judged."""

    task: VideoTask
    settings: ExtractionSettings
    models: int
    """The first so many judge it."""


@dataclass(frozen=True)
class Extracted:
    """What became of a video."""

    work: Work
    crops: EncodedCrops | None
    """None where it failed."""
    message: str = ""
    status: str = "failed"
    """Where it failed: `unreadable` for what the file is to blame for."""


class Extraction:
    """Threads that extract until there are no more videos.

    Args:
        next_work: gives the next video, None when no more are wanted; called by one thread at a time.
        workers: processes, and threads here that wait for them.
        time_limit: seconds a video may take.
        lost: told of each video whose process died, as it happens, with how; it is tried again later.
        target: what the processes run.

    Attributes:
        results: what became of each video; None comes last.
    """

    def __init__(
        self,
        next_work: Callable[[], Work | None],
        *,
        workers: int,
        time_limit: float,
        lost: Callable[[Work, str], None],
        target: str = TARGET,
    ) -> None:
        self.results: queue.Queue[Extracted | None] = queue.Queue(QUEUE_VIDEOS_A_WORKER * workers)
        self._next_work, self._time_limit, self._lost, self._target = next_work, time_limit, lost, target
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._deaths: list[Work] = []
        self._alive = workers
        self._threads = [threading.Thread(target=self._run, daemon=True, name="extraction") for _ in range(workers)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin no more, and hand over nothing more. Whoever stops early also ends the processes."""
        self._stopping.set()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._lock:
                    work = self._next_work()
                if work is None:
                    break
                self._guarded(self._extract, work)
        finally:  # a thread that ended without this word would leave the kernel waiting for ever
            with self._lock:
                self._alive -= 1
                is_last = self._alive == 0
            if is_last:
                while self._deaths and not self._stopping.is_set():
                    self._guarded(self._extract_alone, self._deaths.pop(0))
                self._put(None)

    def _guarded(self, extract: Callable[[Work], None], work: Work) -> None:
        """What nobody foresaw costs this video only."""
        try:
            extract(work)
        except Exception as error:
            logger.exception("%s: an error nobody foresaw", work.task.video_id)
            self._put(Extracted(work, None, describe_error(error)))

    def _extract(self, work: Work) -> None:
        outcome, value = self._call(work)
        if outcome == "raised" and work.settings.device != "cpu" and is_out_of_memory(value):
            work = replace(work, settings=replace(work.settings, device="cpu"))
            outcome, value = self._call(work)
        if outcome == "lost" or (outcome == "raised" and is_out_of_memory(value)):
            how = value if outcome == "lost" else describe_error(value)
            with self._lock:
                self._deaths.append(work)
            self._lost(work, how)
        else:
            self._put(self._result(work, outcome, value))

    def _extract_alone(self, work: Work) -> None:
        for _ in range(ATTEMPTS - 1):
            outcome, value = self._call(work)
            if outcome != "lost" or self._stopping.is_set():
                break
        if outcome == "lost":
            message = f"its worker process died in each of {ATTEMPTS} attempts, the last by {value}"
            self._put(Extracted(work, None, message, "unreadable"))
        else:
            self._put(self._result(work, outcome, value))

    def _call(self, work: Work) -> tuple[str, Any]:
        try:
            arguments = pickle.dumps((work.task, work.settings))
            _, outcome, value = call_isolated(work.task.video_id, self._target, arguments, self._time_limit)
            return (outcome, pickle.loads(value)) if outcome in ("done", "raised") else (outcome, value)
        except (RuntimeError, OSError, MemoryError) as error:  # no process could be started: out of memory, or of files
            return "raised", error

    def _result(self, work: Work, outcome: str, value: Any) -> Extracted:
        if outcome == "done":
            return Extracted(work, value)
        if outcome == "late":
            return Extracted(work, None, f"took longer than {self._time_limit:g} s", "unreadable")
        return Extracted(work, None, describe_error(value))

    def _put(self, result: Extracted | None) -> None:
        while not self._stopping.is_set():
            try:
                self.results.put(result, timeout=POLL_SECONDS)
                return
            except queue.Full:
                continue


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or here; torch's CPU allocator says so in words only."""
    words = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ in ("OutOfMemoryError", "CudaOutOfMemoryError")
        or (isinstance(error, RuntimeError) and ("can't allocate memory" in words or "out of memory" in words))
    )


def describe_error(error: BaseException) -> str:
    """Its kind and its first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
