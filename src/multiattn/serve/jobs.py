"""Files that wait, are examined in turn and keep their answers for a while; safe for threads."""

import contextlib
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from multiattn.runtime.layout import FACES_FILE
from multiattn.serve.limits import Limits
from multiattn.serve.workers import FACES_FOLDER, REPORT_FILE, Clip, ExaminationError, Worker
from multiattn.video.extraction.isolation import ProcessLostError

logger = logging.getLogger(__name__)

State = Literal["waiting", "working", "done", "failed"]
WAITING, WORKING, DONE, FAILED = get_args(State)
STEPS = ("waiting", "reading and finding faces", "predicting", "writing the report", "done")
PROGRESS = (0.0, 0.1, 0.7, 0.9, 1.0)
"""Shares of a file's time, about, before each of `STEPS`."""
TICK_SECONDS = 5.0
"""Results are looked through for old ones so often."""


class QueueFullError(Exception):
    """As many files wait as may."""


@dataclass(eq=False)
class Job:
    """One file and its answer, in a folder of its own."""

    id: str
    clip: Clip
    is_upload: bool
    """True for a file that lies in the job's folder and goes when it has been examined."""
    state: State = WAITING
    error: str = ""
    started: float = 0.0
    ended: float = 0.0
    """`time.monotonic()`; 0 until then."""
    cancelled: bool = False
    worker: Worker | None = field(default=None, repr=False)

    @property
    def step(self) -> int:
        """Its place in `STEPS`, by what lies in its folder."""
        if self.state != WORKING:
            return len(STEPS) - 1 if self.ended else 0
        if (self.clip.folder / REPORT_FILE).exists():
            return 3
        return 2 if (self.clip.folder / FACES_FOLDER / FACES_FILE).exists() else 1

    @property
    def seconds(self) -> float:
        """Time that it was examined, so far or in all."""
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0


class Jobs:
    """A queue, and as many threads as `limits.jobs`, each with a worker.

    Args:
        folder: an empty one for the jobs' own.
        first: a worker that is ready; `make_worker` makes further ones, and others in place of those that died.
    """

    def __init__(self, folder: Path, limits: Limits, first: Worker, make_worker: Callable[[], Worker]) -> None:
        self.folder, self.limits, self._make_worker = folder.resolve(), limits, make_worker
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}  # in order of arrival
        self._uploads, self._closed, self._idle = 0, False, [first]
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(limits.jobs)]
        for thread in self._threads:
            thread.start()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue for a file that is being uploaded.

        Raises:
            QueueFullError: there is none.
        """
        with self._changed:
            waiting = self._uploads + sum(job.state == WAITING for job in self._jobs.values())
            if waiting >= self.limits.queue:
                raise QueueFullError
            self._uploads += 1
        try:
            yield
        finally:
            with self._changed:
                self._uploads -= 1

    def new_folder(self) -> Path:
        """An empty folder for a job, whose name nobody guesses and which is the job's id."""
        folder = self.folder / secrets.token_urlsafe(16)
        folder.mkdir()
        return folder

    def add(self, path: Path, name: str, folder: Path, *, is_upload: bool) -> Job:
        """Put a file, and the job's `new_folder`, at the end of the queue."""
        clip = Clip(path=path, name=name, folder=folder, max_seconds=60 * self.limits.max_minutes)
        job = Job(folder.name, clip, is_upload)
        with self._changed:
            self._jobs[job.id] = job
            self._changed.notify()
        return job

    def find(self, name: str) -> Job | None:
        """The job of that id; None where there is none, or no more."""
        self.expire()
        with self._changed:
            return self._jobs.get(name)

    def position(self, job: Job) -> int:
        """Its place among those that wait, from 1; 0 where it does not wait."""
        with self._changed:
            waiting = [other for other in self._jobs.values() if other.state == WAITING]
            return waiting.index(job) + 1 if job in waiting else 0

    def cancel(self, job: Job) -> None:
        """Forget a job and its answer; one at work is ended with its worker."""
        with self._changed:
            self._jobs.pop(job.id, None)
            job.cancelled = True
            if job.state == WORKING:  # whose thread removes the folder
                if job.worker is not None:
                    job.worker.kill()
                return
        self.remove(job.clip.folder)

    def expire(self) -> None:
        """Remove answers that are too old, or too many."""
        with self._changed:
            ended = sorted((job for job in self._jobs.values() if job.ended), key=lambda job: job.ended)
            oldest = time.monotonic() - 60 * self.limits.keep_minutes
            surplus = len(ended) - self.limits.keep_results
            gone = [job for place, job in enumerate(ended) if place < surplus or job.ended < oldest]
            for job in gone:
                del self._jobs[job.id]
        for job in gone:
            self.remove(job.clip.folder)

    def close(self) -> None:
        """End all workers and remove all folders."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs.values())
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)
        for thread in self._threads:
            thread.join()
        for worker in self._idle:
            worker.kill()

    def remove(self, folder: Path) -> None:
        """Remove the folder of a job that nobody works at."""
        if folder.resolve().parent == self.folder:
            shutil.rmtree(folder, ignore_errors=True)

    def _work(self) -> None:
        while (job := self._take()) is not None:
            error = self._examine(job)
            if job.is_upload:
                job.clip.path.unlink(missing_ok=True)
            with self._changed:
                job.worker, job.ended, job.error = None, time.monotonic(), error
                job.state = FAILED if error else DONE
            if job.cancelled:
                self.remove(job.clip.folder)

    def _take(self) -> Job | None:
        """The next job, now at work; None at the end."""
        while True:
            with self._changed:
                if self._closed:
                    return None
                for job in self._jobs.values():
                    if job.state == WAITING:
                        job.state, job.started = WORKING, time.monotonic()
                        return job
                self._changed.wait(TICK_SECONDS)
            self.expire()

    def _examine(self, job: Job) -> str:
        """Words for what went wrong; empty where nothing did."""
        worker = None
        try:
            worker = self._free_worker()
            with self._changed:
                if job.cancelled:
                    return "cancelled"
                job.worker = worker
            worker.examine(job.clip, self.limits.job_seconds)
        except ExaminationError as error:
            return str(error)
        except (ProcessLostError, RuntimeError, OSError, ValueError) as error:
            return f"no process to examine it could be started: {error}"
        except Exception as error:  # the thread goes on: without it no file would ever be examined again
            logger.exception("an examination failed")
            return f"the examination failed ({type(error).__name__}); the server's log says where."
        finally:
            shutil.rmtree(job.clip.folder / FACES_FOLDER, ignore_errors=True)
            with self._changed:
                job.worker = None
                self._idle += [worker] if worker is not None else []
        return ""

    def _free_worker(self) -> Worker:
        with self._changed:
            self._idle = [worker for worker in self._idle if worker.alive]
            worker = self._idle.pop() if self._idle else None
        return worker or self._make_worker()
