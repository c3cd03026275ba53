"""The work itself: extraction, classifier and plan together, until all videos are done, time is over or a signal came.

Each video is the business of this module from the moment it is begun until its result is handed on. Nothing here
touches the disk but the videos.
"""

import builtins
import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from multiattn.inference.runs import TrainedModel
from multiattn.inference.submit.classifier import (
    Classifier,
    Judged,
    LoadedModels,
    as_text,
    num_threads,
    one_memory_for_all_threads,
)
from multiattn.inference.submit.extraction import Extraction, Work
from multiattn.inference.submit.interruption import Interruption
from multiattn.inference.submit.plan import Costs, Level, Plan
from multiattn.inference.submit.store import VideoResult
from multiattn.runtime.processor import tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.isolation import end_processes

logger = logging.getLogger(__name__)

FIRST_VIDEOS = 20
"""When all of so many videos fail and none before them was judged, it is not the videos."""
TIME_LIMIT_SECONDS = 600.0
"""A video, in its worker. A 10 s clip takes seconds; a decoder that hangs must not cost a notebook its nine hours."""
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
"""For batches that are at work when the time is over; at most half of what the plan keeps for the delivery."""
STAGES = ("decode", "search", "classify", "wall")
FAILURES = ("unreadable", "failed")
OS_ERRORS = tuple(name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, OSError))
"""How the reason of an unreadable file begins when it is the disk's: the file may be well."""


class SystematicFailureError(RuntimeError):
    """No answer is of use: the first videos all failed, or not one was judged in the end."""


@dataclass(frozen=True, kw_only=True)
class Videos:
    """What is to be judged, with what."""

    tasks: tuple[VideoTask, ...]
    stamps: dict[str, dict[str, int]]
    """video_id -> `file_bytes` and `file_modified` of its result."""
    models: tuple[TrainedModel, ...]
    """In the order in which they are kept."""
    settings: ExtractionSettings
    device: torch.device
    precision: str
    workers: int
    cores: int
    some_judged: bool
    """Whether an earlier run has judged videos, so that the machine is known to work."""

    @property
    def threads(self) -> int:
        """Of the classifier."""
        return num_threads(self.device, self.cores)

    @property
    def everything(self) -> Level:
        """What a video gets when there is time."""
        return Level(self.settings.recipe.num_frames, len(self.models))


class Judging:
    """One run over the videos.

    Args:
        label: before the progress bar.
        keep: called with each result, by the thread that calls `run`.
        tick: called every few tenths of a second by the same thread.

    Attributes:
        begun: video_ids handed to a worker so far.
        stages: seconds of `decode`, `search` and `classify`, summed over workers and threads, and of the `wall`.
    """

    def __init__(
        self,
        videos: Videos,
        plan: Plan,
        *,
        label: str = "submit",
        keep: Callable[[VideoResult], None],
        tick: Callable[[], None],
        interruption: Interruption,
    ) -> None:
        self.videos, self.plan, self.label = videos, plan, label
        self.begun: set[str] = set()
        self.done = 0
        self.stages = dict.fromkeys(STAGES, 0.0)
        self._keep, self._tick, self._interruption = keep, tick, interruption
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._tasks: Iterator[VideoTask] = iter(videos.tasks)
        self._failures: dict[str, str] | None = None if videos.some_judged else {}
        self._told = 0

    def run(self) -> None:
        """Judge what can be judged.

        Raises:
            SystematicFailureError: the first videos all failed; results of them were kept.
        """
        videos = self.videos
        if videos.device.type == "cpu":
            tune_cpu()
            one_memory_for_all_threads()
        threads_before = torch.get_num_threads()
        started = time.monotonic()
        extraction = Extraction(
            self._next_work, workers=videos.workers, time_limit=TIME_LIMIT_SECONDS, lost=self._put_lost
        )
        classifier: Classifier | None = None
        try:
            extraction.start()  # its processes import for seconds; meanwhile the networks are loaded
            loaded = LoadedModels(list(videos.models), videos.device, videos.precision)
            if videos.device.type == "cpu":
                torch.set_num_threads(1)
            classifier = Classifier(
                loaded, extraction.results, self._events.put, self._events.put, threads=videos.threads
            )
            classifier.start()
            with progress_bar(len(videos.tasks), self.label, "videos") as bar:
                self._loop(classifier, bar)
        finally:
            extraction.stop()
            end_processes()
            if classifier is not None:
                reserve = self.plan.reserve
                classifier.stop(PATIENCE_SECONDS if reserve is None else min(PATIENCE_SECONDS, reserve / 2))
            torch.set_num_threads(threads_before)
            self.stages["wall"] = time.monotonic() - started

    def _loop(self, classifier: Classifier, bar: tqdm) -> None:
        while not self.plan.out_of_time and self._interruption.signal is None:
            finished = classifier.finished  # before the events: what it said last is among them then
            try:
                event = self._events.get(timeout=0 if finished else POLL_SECONDS)
            except queue.Empty:
                if finished:
                    self._require_some_success(at_the_end=True)
                    return
                event = None
            if event is not None:
                self._handle(event, bar)
            self._say_changes()
            self._tick()

    def _next_work(self) -> Work | None:
        """By the extraction's threads, one at a time."""
        task = next(self._tasks, None)
        level = None if task is None else self.plan.start()
        if level is None:
            return None
        self.begun.add(task.video_id)
        settings = self.videos.settings
        if level.frames != settings.recipe.num_frames:
            settings = replace(settings, recipe=replace(settings.recipe, num_frames=level.frames))
        return Work(task, settings, level.models)

    def _put_lost(self, work: Work, how: str) -> None:
        self._events.put((work, how))

    def _handle(self, event: Any, bar: tqdm) -> None:
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, tuple):
            work, how = event
            logger.warning("%s: its worker process died (%s); it is tried again at the end", work.task.video_id, how)
            self._count(work.task.video_id, "failed", f"worker process died: {how}")
            return
        result, costs = self._result(event), self._costs(event)
        self.plan.finish(costs)
        self.done += 1
        if costs is not None:
            self.stages["decode"] += costs.decode_seconds
            self.stages["search"] += costs.search_seconds
            self.stages["classify"] += costs.classify_seconds
        self._keep(result)
        projected = self.plan.projected_seconds()
        bar.set_postfix_str(
            f"{self.plan.level}" + ("" if projected is None else f", done in {projected / 60:.1f} min"), refresh=False
        )
        bar.update()
        self._count(result.video_id, result.status, result.message)

    def _result(self, judged: Judged) -> VideoResult:
        """A result for the store."""
        work, crops = judged.extracted.work, judged.extracted.crops
        level = Level(work.settings.recipe.num_frames, work.models)
        common = {
            "video_id": work.task.video_id,
            **self.videos.stamps[work.task.video_id],
            "frames": level.frames,
        }
        if crops is None:  # it ended its process again and again, or took too long; short memory does the same
            return VideoResult(**common, status=judged.extracted.status, message=judged.extracted.message, again=True)
        if judged.error:
            return VideoResult(**common, status="failed", message=judged.error)
        few_frames = level.frames < self.videos.everything.frames and crops.status != "unreadable"
        is_less = few_frames or (bool(crops.crops) and level.models < self.videos.everything.models)
        less = f"{level} instead of {self.videos.everything}" if is_less else ""
        message = "; ".join(part for part in (crops.message, less) if part)
        if not crops.crops:
            again = crops.status == "unreadable" and message.startswith(OS_ERRORS)
            return VideoResult(**common, status=crops.status, message=message, again=again)
        return VideoResult(
            **common,
            status="ok",
            message=message,
            crops=[[crop.frame_index, crop.track] for crop in crops.crops],
            models=[model.name for model in self.videos.models[: len(judged.logits)]],
            logits=judged.logits.tolist(),
            thumbnail=as_text(judged.thumbnail),
        )

    def _costs(self, judged: Judged) -> Costs | None:
        crops = judged.extracted.crops
        if crops is None or judged.error:
            return None
        work = judged.extracted.work
        return Costs(
            frames=work.settings.recipe.num_frames,
            crops=len(crops.crops),
            decode_seconds=crops.decode_seconds,
            search_seconds=crops.search_seconds,
            crop_models=judged.logits.size,
            classify_seconds=judged.seconds,
        )

    def _count(self, video: str, status: str, message: str) -> None:
        """Notice when the first videos all fail. A video without a face is none of them: it was decoded and searched,
        so the machine works, and whether people are in the videos is the videos' business."""
        if self._failures is None:
            return
        if status not in FAILURES:
            self._failures = None
            return
        self._failures[video] = message or status
        self._require_some_success()

    def _require_some_success(self, *, at_the_end: bool = False) -> None:
        if not self._failures:
            return
        count = len(self._failures)
        if count < FIRST_VIDEOS and not at_the_end:
            return
        reasons = Counter(self._failures.values()).most_common(5)
        words = "; ".join(f"{number} x {message}" for message, number in reasons)
        raise SystematicFailureError(f"each of the first {count} videos failed, so it is not the videos: {words}.")

    def _say_changes(self) -> None:
        for change in self.plan.changes[self._told :]:
            logger.warning("plan %s", change)
            self._told += 1
