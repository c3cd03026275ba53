"""Many videos through `extract_video`, each in an isolated process: whatever one of them does, the others go on.

A video whose process dies (the decoder crashed, memory ran out, somebody killed it) waits until all others are through
and is then tried again, alone, so that a shortage that others caused is not held against it. One that ends its process
each time is `unreadable`, and so is one that takes longer than the time limit, which is not tried again.
"""

import contextlib
import pickle
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.video.backends import Run
from multiattn.video.extract import ExtractionSettings, VideoFaces, VideoTask, extract_video
from multiattn.video.isolation import call_isolated

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
    return folder / "crops" / task.video_id
