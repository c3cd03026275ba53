"""Videos -> crops in memory for the classifier: the extraction's engine behind a bounded queue.

A worker waits when the queue is full, so extraction never runs ahead of the classifier by more than the queue's length
and two videos a worker.
"""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from multiattn.inference.submit.results import VideoResult
from multiattn.video.extraction.engine import Engine, Outcome, describe_error, in_threads, put_until
from multiattn.video.extraction.extract import EncodedCrops, ExtractionSettings, VideoTask
from multiattn.video.extraction.scan import FaceCrop

TARGET = "multiattn.video.extraction.extract:encode_crops"
TIME_LIMIT_SECONDS = 600.0
"""A video. A 10 s clip takes seconds; a decoder that hangs must not cost a notebook its nine hours."""


@dataclass(frozen=True)
class Work:
    """A video with one recipe of crops."""

    task: VideoTask
    settings: ExtractionSettings
    models: tuple[int, ...]
    """Numbers of the run's models that predict these crops."""
    known: VideoResult | None = None
    """Logits of an earlier run, which need not be computed again where the crops are the same."""
    recipe: int = 0
    """Number of the recipe among the run's."""

    def known_logits(self, crops: Sequence[FaceCrop]) -> dict[str, tuple[Any, ...]]:
        """Model -> what is known of these very crops, as `VideoResult.by_model` has it."""
        if self.known is None or not self.known.is_of_crops([(crop.frame_index, crop.track) for crop in crops]):
            return {}
        return self.known.by_model()


@dataclass(frozen=True)
class Extracted:
    """The crops of a video by one recipe, or why there are none."""

    work: Work | None
    """None on its way from a cluster's worker to the driver, which has it."""
    crops: EncodedCrops | None
    """None where it failed."""
    message: str = ""
    status: str = "failed"
    """`unreadable` where the file is to blame."""


class Extraction:
    """Extracts in the background until there are no more videos.

    Args:
        next_work: gives the next video, its work with each recipe, which is decoded once for all; None when no more are
            wanted. Called by one thread at a time.
        workers: processes, and threads here that wait for them.
        lost: called with each video whose process died, as it happens, and how; it is tried again later.
        crashed: called with an error of the extraction itself, which ends it.

    Attributes:
        results: the outcome of each work; None comes last.
    """

    def __init__(
        self,
        next_work: Callable[[], Sequence[Work] | None],
        *,
        workers: int,
        time_limit: float,
        lost: Callable[[VideoTask, str], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self.results: queue.Queue[Extracted | None] = queue.Queue(workers)
        self._next_work, self._lost, self._crashed = next_work, lost, crashed
        self._engine = Engine(functools.partial(in_threads, jobs=workers), TARGET, time_limit=time_limit)
        self._stopping = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="extraction").start()

    def stop(self) -> None:
        """Begin no more, and hand over nothing more. A caller that stops early also ends the processes."""
        self._stopping.set()
        self._engine.stop()

    def _run(self) -> None:
        calls: Iterator[Sequence[Work]] = iter(self._next_work, None)
        arguments = ((works, (works[0].task, *(work.settings for work in works))) for works in calls)
        try:
            for outcome in self._engine.outcomes(arguments):
                if outcome.kind == "again":
                    self._lost(outcome.task[0].task, outcome.value)
                    continue
                for extracted in extracted_of(outcome):
                    put_until(self._stopping, self.results, extracted)
        except BaseException as error:
            self._crashed(error)
        finally:  # without it the classifier would wait for ever
            put_until(self._stopping, self.results, None)


def extracted_of(outcome: Outcome) -> list[Extracted]:
    """The crops that a finished task gave by each recipe, or why there are none."""
    if outcome.kind == "done":
        return list(map(Extracted, outcome.task, outcome.value))
    if outcome.kind == "raised":
        return [Extracted(work, None, describe_error(outcome.value)) for work in outcome.task]
    return [Extracted(work, None, outcome.value, "unreadable") for work in outcome.task]
