"""The pass over videos: extraction, classifier and plan together until all are done, time is over or a signal comes.

Nothing is read from or written to the disk but the videos.
"""

import builtins
import logging
import queue
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from multiattn.inference.runs import TrainedModel
from multiattn.inference.submit.classifier import Classified, Classifier, LoadedModels, num_threads
from multiattn.inference.submit.extraction import TIME_LIMIT_SECONDS, Extraction, Work
from multiattn.inference.submit.plan import Costs, Level, Plan
from multiattn.inference.submit.results import OF_MODEL, VideoResult, file_fingerprint
from multiattn.runtime.processor import share_one_heap, tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.signals import Interruption
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.isolation import end_processes

logger = logging.getLogger(__name__)

FIRST_VIDEOS = 20
"""When all of so many videos fail and none before them was searched, it is not the videos."""
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 10.0
"""For batches that are at work when the time is over; at most half of what the plan keeps for the delivery."""
STAGES = ("decode", "search", "classify", "wall")
FAILURES = ("unreadable", "failed")
OS_ERRORS = tuple(name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, OSError))
"""Beginnings of the reason of an unreadable file that are the disk's fault: the file may be well."""


class SystematicFailureError(RuntimeError):
    """No prediction is of use: the first videos all failed, or not one shows a face in the end."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Videos, models and machine of a submission run."""

    paths: dict[str, Path]
    """video_id -> file, of the videos that are there."""
    absent: dict[str, tuple[str, str]]
    """video_id -> status and message, of those about which there is something to say."""
    models: tuple[TrainedModel, ...]
    """In the order of `by_importance`."""
    fingerprints: dict[str, str]
    settings: ExtractionSettings
    device: torch.device
    precision: str
    workers: int
    """Processes that extract, at most."""
    cores: int
    _settings: dict[int, ExtractionSettings] = field(default_factory=dict)
    """By number of frames; each digests the detector's weights once."""

    @property
    def threads(self) -> int:
        return num_threads(self.device, self.cores)

    @property
    def everything(self) -> Level:
        """Frames and models of a video when there is time."""
        return Level(self.settings.recipe.num_frames, len(self.models))

    def work(self, video: str, level: Level, known: VideoResult | None = None) -> Work:
        if level.frames not in self._settings:
            recipe = replace(self.settings.recipe, num_frames=level.frames)
            is_all = level.frames == self.settings.recipe.num_frames
            self._settings[level.frames] = self.settings if is_all else replace(self.settings, recipe=recipe)
        task = VideoTask(video_id=video, path=self.paths[video])
        return Work(task, self._settings[level.frames], level.models, known)


@dataclass
class PredictionPass:
    setup: Setup
    videos: Sequence[str]
    plan: Plan
    """The plan of these videos on this machine; its workers are started."""
    machine_works: bool
    """True where videos were predicted before, so that failures of the first ones prove nothing."""
    label: str
    keep: Callable[[VideoResult], None]
    """Called with each result, by the thread that calls `run`."""
    tick: Callable[[], None]
    """Called every few tenths of a second by the same thread."""
    interruption: Interruption
    known: Mapping[str, VideoResult] = field(default_factory=dict)
    """Results so far of these videos, which are extended."""
    begun: set[str] = field(default_factory=set)
    """video_ids handed to a worker so far."""
    done: int = 0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Seconds of `decode`, `search` and `classify`, summed over workers and threads, and of the `wall`."""

    def __post_init__(self) -> None:
        self._precisions: dict[int, str] = {}
        self._contents: dict[str, str] = {}
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._next_videos = iter(self.videos)
        self._failures: dict[str, str] | None = None if self.machine_works else {}
        self._reported_changes = 0

    def run(self) -> None:
        setup, plan = self.setup, self.plan
        on_cpu = setup.device.type == "cpu"
        if on_cpu:
            tune_cpu()
            share_one_heap()
        threads_before = torch.get_num_threads()
        started = time.monotonic()
        extraction = Extraction(
            self._next_work,
            workers=plan.workers,
            time_limit=TIME_LIMIT_SECONDS,
            lost=lambda work, how: self._events.put((work, how)),
            crashed=self._events.put,
        )
        classifier: Classifier | None = None
        try:  # the extraction's processes import for seconds; meanwhile the networks are loaded
            loaded = LoadedModels(list(setup.models), setup.device, setup.precision)
            self._precisions = loaded.chosen
            if on_cpu:
                torch.set_num_threads(1)
            put = self._events.put
            classifier = Classifier(loaded, extraction.results, put, put, threads=plan.classifiers)
            with progress_bar(len(self.videos), self.label, "videos") as bar:
                self._loop(classifier, bar)
        finally:
            extraction.stop()
            if classifier is None or not classifier.finished:
                end_processes()  # at work on what nobody waits for; idle ones serve a second pass, or end by themselves
            if classifier is not None:
                classifier.stop(min(PATIENCE_SECONDS, plan.reserve / 2))
            torch.set_num_threads(threads_before)
            self.stages["wall"] = time.monotonic() - started

    def _next_work(self) -> Work | None:
        """Begin a video; called by the extraction's threads, one at a time."""
        video = next(self._next_videos, None)
        level = None if video is None else self.plan.start()
        if level is None:
            return None
        self.begun.add(video)
        self._contents[video] = file_fingerprint(self.setup.paths[video])
        return self.setup.work(video, level, self.known.get(video))

    def _loop(self, classifier: Classifier, bar: tqdm) -> None:
        while not self.plan.out_of_time and not self.interruption.asked:
            finished = classifier.finished  # before the events: its last ones are among them then
            try:
                event = self._events.get(timeout=0 if finished else POLL_SECONDS)
            except queue.Empty:
                if finished:
                    self._require_some_success(at_the_end=True)
                    return
            else:
                self._handle(event, bar)
            for change in self.plan.changes[self._reported_changes :]:
                logger.warning("plan %s", change)
                self._reported_changes += 1
            self.tick()

    def _handle(self, event: Any, bar: tqdm) -> None:
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, tuple):
            work, how = event
            logger.warning("%s: its worker process died (%s); it is tried again at the end", work.task.video_id, how)
            self._notice_failure(work.task.video_id, "failed", f"worker process died: {how}")
            return
        result, costs = self._result(event), _costs(event)
        self.plan.finish(costs)
        self.done += 1
        if costs is not None:
            for stage in ("decode", "search", "classify"):
                self.stages[stage] += getattr(costs, f"{stage}_seconds")
        self.keep(result)
        projected = self.plan.projected_seconds()
        end = "" if projected is None else f", done in {projected / 60:.1f} min"
        bar.set_postfix_str(f"{self.plan.level}{end}", refresh=False)
        bar.update()
        self._notice_failure(result.video_id, result.status, result.message)

    def _result(self, classified: Classified) -> VideoResult:
        work, crops = classified.extracted.work, classified.extracted.crops
        level, everything = Level(work.settings.recipe.num_frames, work.models), self.setup.everything
        video = work.task.video_id
        common = {"video_id": video, "file": self._contents[video], "frames": level.frames}
        if crops is None:  # it ended its process again and again, or took too long; short memory does the same
            failed = classified.extracted
            return VideoResult(**common, status=failed.status, message=failed.message, again=True)
        if classified.error:
            return VideoResult(**common, status="failed", message=classified.error)
        known = work.known_logits(crops.crops)
        for row, number in enumerate(classified.models):
            known[self.setup.models[number].name] = self._of_model(classified, row, number)
        models = [model.name for model in self.setup.models if model.name in known]
        used = Level(level.frames, len(models) if crops.crops else everything.models)
        is_less = used != everything and crops.status != "unreadable"
        message = "; ".join(filter(None, (crops.message, f"{used} instead of {everything}" if is_less else "")))
        if not crops.crops:
            again = crops.status == "unreadable" and message.startswith(OS_ERRORS)
            return VideoResult(**common, status=crops.status, message=message, again=again)
        return VideoResult(
            **common,
            status="ok",
            message=message,
            crops=[[crop.frame_index, crop.track] for crop in crops.crops],
            models=models,
            fingerprints=[self.setup.fingerprints[name] for name in models],
            **{field: [known[name][place] for name in models] for place, field in enumerate(OF_MODEL)},
        )

    def _of_model(self, classified: Classified, row: int, number: int) -> tuple[Any, ...]:
        """The values of `OF_MODEL` of one model, the `row`-th of those that predicted a video."""
        distances = classified.distances[row]
        is_measured = not np.isnan(distances).any()
        return (
            classified.logits[row].tolist(),
            self._precisions.get(number, self.setup.precision),
            distances.round(4).tolist() if is_measured else [],
            classified.reasons[row].tolist() if is_measured else [],
        )

    def _notice_failure(self, video: str, status: str, message: str) -> None:
        """Stop when the first videos all fail. A video without a face was decoded and searched: the machine works."""
        if status not in FAILURES:
            self._failures = None
        elif self._failures is not None:
            self._failures[video] = message or status
            self._require_some_success()

    def _require_some_success(self, *, at_the_end: bool = False) -> None:
        if not self._failures or (len(self._failures) < FIRST_VIDEOS and not at_the_end):
            return
        reasons = Counter(self._failures.values()).most_common(5)
        words = "; ".join(f"{number} x {message}" for message, number in reasons)
        raise SystematicFailureError(
            f"each of the first {len(self._failures)} videos failed, so it is not the videos: {words}."
        )


def _costs(classified: Classified) -> Costs | None:
    crops = classified.extracted.crops
    if crops is None or classified.error:
        return None
    work = classified.extracted.work
    return Costs(
        frames=work.settings.recipe.num_frames,
        crops=len(crops.crops),
        decode_seconds=crops.decode_seconds,
        search_seconds=crops.search_seconds,
        crop_models=len(crops.crops) * work.models,  # also those that were known: it projects alike
        classify_seconds=classified.seconds,
    )
