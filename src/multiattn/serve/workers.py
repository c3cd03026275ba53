"""Processes that examine one file at a time: each holds the networks, and may crash, hang or be killed alone.

Nothing heavy is imported here: torch is in those processes, and the server stays small.
"""

import logging
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from multiattn.config import Precision
from multiattn.config.choices import Runtime, Tta
from multiattn.runtime.devices import EXPORT_SECONDS
from multiattn.video.extraction.isolation import CALLS_PER_PROCESS, ENVIRONMENT, START_SECONDS, IsolatedProcess

logger = logging.getLogger(__name__)

TARGET = "multiattn.serve.examine:examine"
UNUSED_SECONDS = 10.0 * 365 * 86400
"""The networks stay loaded however long nobody comes."""
_ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_NUM_THREADS"}
"""One file at a time has all cores."""
FACES_FOLDER, RESULT_FILE, REPORT_FILE, PICTURES_FOLDER = "faces", "result.json", "report.html", "pictures"
"""In a job's folder: crops while it is examined, then the answer."""


class ExaminationError(Exception):
    """A file that could not be examined; the message says why, for whoever sent it."""


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """Arguments of `DeepfakeDetector.load`, as it describes them."""

    runs: tuple[Path, ...] = ()
    scoring: str | None = None
    tta: Tta | None = None
    weights: Path | None = None
    device: str = "auto"
    precision: Precision = "auto"
    runtime: Runtime = "torch"


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One file to examine."""

    path: Path
    name: str
    """As whoever sent it calls it: shown, compared with names of training videos, never opened."""
    folder: Path
    """For `FACES_FOLDER`, `RESULT_FILE`, `REPORT_FILE` and `PICTURES_FOLDER`."""
    max_seconds: float
    """Longest length, as the file states it."""


class Worker(Protocol):
    """Examines one file at a time."""

    alive: bool
    """True where it can take another file."""

    def examine(self, clip: Clip, seconds: float) -> None:
        """Write the answer into the clip's folder, within so many seconds.

        Raises:
            ExaminationError: it could not; the message says why.
        """

    def kill(self) -> None:
        """End it at once, from any thread; an examination under way raises."""


class ExaminerProcess:
    """A `Worker` in a process of its own.

    Attributes:
        model: `describe_model` of its detector.

    Raises:
        FileNotFoundError, ValueError: as `DeepfakeDetector.load`.
        RuntimeError: it could not start.
    """

    def __init__(self, options: DetectorOptions) -> None:
        self._options = options
        self._process = IsolatedProcess(TARGET, idle_seconds=UNUSED_SECONDS, environment=_ENVIRONMENT)
        seconds = START_SECONDS if options.runtime == "torch" else START_SECONDS + EXPORT_SECONDS
        kind, value = self._process.call(pickle.dumps((options, None)), seconds)
        if kind != "done":
            self._process.kill()
            raise (
                pickle.loads(value) if kind == "raised" else RuntimeError(f"the networks could not be loaded: {value}")
            )
        self.model: dict[str, Any] = pickle.loads(value)

    @property
    def alive(self) -> bool:
        """True where it runs and waits, and has not taken so many files that leaks of libraries would tell."""
        process = self._process
        return not process.at_work and process.calls < CALLS_PER_PROCESS and process.process.poll() is None

    def examine(self, clip: Clip, seconds: float) -> None:
        """As `Worker.examine`."""
        kind, value = self._process.call(pickle.dumps((self._options, clip)), seconds)
        if not self.alive:
            self._process.kill()  # and close what leads there, which no other thread may do
        if kind == "late":
            raise ExaminationError(f"it {value} and was ended.")
        if kind == "lost":
            raise ExaminationError(
                f"the process that examined it ended ({value}): the file may be damaged in a way that a decoder does "
                "not survive, or memory ran out."
            )
        if kind == "raised":
            raise _explained(pickle.loads(value))

    def kill(self) -> None:
        """As `Worker.kill`."""
        self._process.process.kill()
        self._process.process.wait()


def _explained(error: Exception) -> ExaminationError:
    """Words for an error of the other process; what is no fault of the file or the disk is logged."""
    if isinstance(error, ExaminationError):
        return error
    if isinstance(error, OSError) and error.strerror:  # without the name of our own folder
        return ExaminationError(f"{error.strerror}: this is the server's fault, not the file's.")
    logger.error("an examination failed: %r\n%s", error, "\n".join(getattr(error, "__notes__", ())))
    return ExaminationError(f"the examination failed ({type(error).__name__}); the server's log says where.")
