"""The pass over videos: extraction, classifier and plan together until all are done, time is over or a signal comes.

Nothing is read from or written to the disk but the videos.
"""

import builtins
import contextlib
import functools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from multiattn.inference.replicas import Replicas
from multiattn.inference.runs import TrainedModel
from multiattn.inference.submit.classifier import Classified, Classifier, Replica, load_replicas, num_threads
from multiattn.inference.submit.cluster import Cluster, ClusterWorkers
from multiattn.inference.submit.extraction import TIME_LIMIT_SECONDS, Extraction, Work
from multiattn.inference.submit.plan import Costs, Level, Plan
from multiattn.inference.submit.results import OF_MODEL, VideoResult, file_fingerprint, overall
from multiattn.runtime.frame_folders import clip_facts
from multiattn.runtime.processor import share_one_heap, tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.signals import Interruption
from multiattn.video.extraction.engine import put_until
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.isolation import end_processes

logger = logging.getLogger(__name__)

FIRST_VIDEOS = 20
"""When all of so many videos fail and none before them was searched, it is not the videos."""
POLL_SECONDS = 0.2
MOST_EVENTS = 2000
"""Results that wait while the submission is written, which takes half a minute of a million videos: some 10 MB."""
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

    paths: dict[str, str]
    """video_id -> file, of the videos that are there; a `Path` takes three times the memory."""
    absent: dict[str, tuple[str, str]]
    """video_id -> status and message, of those about which there is something to say."""
    models: tuple[TrainedModel, ...]
    """In the order of `by_importance`."""
    recipe_of: tuple[int, ...]
    """The number of each model's recipe."""
    fingerprints: dict[str, str]
    settings: tuple[ExtractionSettings, ...]
    """By the number of the recipe."""
    devices: tuple[torch.device, ...]
    precision: str
    workers: int
    """Processes that extract, at most."""
    cores: int
    cluster: Cluster | None = None
    """Where all that is done, in place of this machine."""
    _settings: dict[tuple[int, int], ExtractionSettings] = field(default_factory=dict)
    """By recipe and number of frames; each digests the detector's weights once."""

    @property
    def threads(self) -> int:
        return num_threads(self.devices, self.cores)

    @functools.cached_property
    def replicas(self) -> Replicas[Replica]:
        """The networks on their devices; loaded once, so that a second pass asks no device that failed in the first."""
        return load_replicas(list(self.models), self.devices, self.precision)

    @property
    def everything(self) -> Level:
        """Frames and models of a video when there is time; of several recipes the most frames."""
        return Level(max(one.recipe.num_frames for one in self.settings), len(self.models))

    def everything_of(self, recipe: int) -> Level:
        """The same of one recipe."""
        return Level(self.settings[recipe].recipe.num_frames, self.recipe_of.count(recipe))

    def lacking(self, results: Mapping[int, VideoResult]) -> list[int]:
        """The recipes by which a video, with these results, has none, one to be tried again, or one that is not of all
        frames and models."""
        return [
            recipe
            for recipe in range(len(self.settings))
            if (found := results.get(recipe)) is None or found.again or found.is_reduced(self.everything_of(recipe))
        ]

    def works(self, video: str, level: Level, known: Mapping[int, VideoResult]) -> list[Work]:
        """The work that a video lacks, by recipe: at most so many frames, of the first so many models."""
        lacking = self.lacking(known)
        wanted = [number for number, recipe in enumerate(self.recipe_of) if recipe in lacking]
        first = [number for number in wanted if number < level.models] or wanted[:1]
        return [
            self.work(video, recipe, level.frames, models, known.get(recipe))
            for recipe in lacking
            if (models := tuple(number for number in first if self.recipe_of[number] == recipe))
        ]

    def work(
        self, video: str, recipe: int, frames: int, models: tuple[int, ...] = (), known: VideoResult | None = None
    ) -> Work:
        whole = self.settings[recipe]
        frames = min(frames, whole.recipe.num_frames)
        if (recipe, frames) not in self._settings:
            fewer = replace(whole.recipe, num_frames=frames)
            self._settings[recipe, frames] = whole if fewer == whole.recipe else replace(whole, recipe=fewer)
        task = VideoTask(video_id=video, path=Path(self.paths[video]))
        return Work(task, self._settings[recipe, frames], models, known, recipe)


@dataclass
class PredictionPass:
    setup: Setup
    videos: Sequence[str]
    plan: Plan
    """The plan of these videos on this machine; its workers are started."""
    machine_works: bool
    """True where videos were predicted before, so that failures of the first ones prove nothing."""
    label: str
    keep: Callable[[str, dict[int, VideoResult]], None]
    """Called with each video_id and its results by recipe, by the thread that calls `run`."""
    tick: Callable[[], None]
    """Called every few tenths of a second by the same thread."""
    interruption: Interruption
    known: Callable[[str], Mapping[int, VideoResult]]
    """Gives a video's results so far, by recipe, which are extended."""
    begun: set[str] = field(default_factory=set)
    """video_ids that workers are at."""
    done: int = 0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    """Seconds of `decode`, `search` and `classify`, summed over workers and threads, and of the `wall`."""

    def __post_init__(self) -> None:
        self._precisions: dict[int, str] = {}
        self._contents: dict[str, dict[str, Any]] = {}
        self._parts: dict[str, dict[int, Classified | None]] = {}
        self._events: queue.Queue[Any] = queue.Queue(MOST_EVENTS)
        self._leaving = threading.Event()
        self._next_videos = iter(self.videos)
        self._failures: dict[str, str] | None = None if self.machine_works else {}
        self._reported_changes = 0

    def run(self) -> None:
        """Predict the videos; `keep` gets each result.

        Raises:
            SystematicFailureError: nothing but failures.
        """
        if self.setup.cluster is not None:
            self._run_on_cluster(self.setup.cluster)
            return
        setup, plan = self.setup, self.plan
        on_cpu = setup.devices[0].type == "cpu"
        if on_cpu:
            tune_cpu()
            share_one_heap()
        threads_before = torch.get_num_threads()
        started = time.monotonic()
        extraction = Extraction(
            self._next_work,
            workers=plan.workers,
            time_limit=TIME_LIMIT_SECONDS,
            lost=lambda task, how: self._put((task.video_id, how)),
            crashed=self._put,
        )
        classifier: Classifier | None = None
        try:  # the extraction's processes import for seconds; meanwhile the networks are loaded
            replicas = setup.replicas
            self._precisions = replicas.working(0).models.chosen
            if on_cpu:
                torch.set_num_threads(1)
            classifier = Classifier(replicas, extraction.results, self._put, self._put, threads=plan.classifiers)
            with progress_bar(len(self.videos), self.label, "videos") as bar:
                self._loop(classifier, bar)
            if len(setup.devices) > 1:
                shares = (f"{each.models.device} {each.crops}" for each in replicas)
                logger.info("crops predicted: %s", ", ".join(shares))
        finally:
            self._leaving.set()
            extraction.stop()
            if classifier is None or not classifier.finished:
                end_processes()  # at work on what nobody waits for; idle ones serve a second pass, or end by themselves
            if classifier is not None:
                classifier.stop(min(PATIENCE_SECONDS, plan.reserve / 2))
            torch.set_num_threads(threads_before)
            self.stages["wall"] = time.monotonic() - started

    def _run_on_cluster(self, cluster: Cluster) -> None:
        started = time.monotonic()
        workers = ClusterWorkers(cluster, self._next_work, self._put)
        try:
            with progress_bar(len(self.videos), self.label, "videos") as bar:
                self._loop(workers, bar)
        finally:
            self._leaving.set()
            workers.stop()
            self.stages["wall"] = time.monotonic() - started

    def _put(self, event: Any) -> None:
        """Hand an event to `run`, which may be busy with as many; one that nobody takes any more is let go."""
        put_until(self._leaving, self._events, event)

    def _next_work(self) -> list[Work] | None:
        """Begin a video; called by the extraction's threads, one at a time."""
        video = next(self._next_videos, None)
        level = None if video is None else self.plan.start()
        if level is None:
            return None
        self.begun.add(video)
        if self.setup.cluster is None:  # its workers read the files
            path = Path(self.setup.paths[video])
            self._contents[video] = {"seen": clip_facts(path), "file": file_fingerprint(path)}
        works = self.setup.works(video, level, self.known(video))
        self._parts[video] = {work.recipe: None for work in works}
        return works

    def _loop(self, classifier: Classifier | ClusterWorkers, bar: tqdm) -> None:
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
        with contextlib.suppress(queue.Empty):  # what is there already is kept; more may come meanwhile
            for _ in range(MOST_EVENTS):
                self._handle(self._events.get_nowait(), bar)

    def _handle(self, event: Any, bar: tqdm) -> None:
        if isinstance(event, BaseException):
            raise event
        if isinstance(event, tuple):
            video, how = event
            logger.warning("%s: its worker process died (%s); it is tried again at the end", video, how)
            self._notice_failure(video, "failed", f"worker process died: {how}")
            return
        video = event.extracted.work.task.video_id
        self._parts[video][event.extracted.work.recipe] = event
        if None in self._parts[video].values():  # by other recipes it is still at work
            return
        parts = self._parts.pop(video)
        self.begun.discard(video)
        results, costs = {recipe: self._result(part) for recipe, part in parts.items()}, _costs(parts.values())
        self._contents.pop(video, None)
        self.plan.finish(costs)
        self.done += 1
        if costs is not None:
            for stage in ("decode", "search", "classify"):
                self.stages[stage] += getattr(costs, f"{stage}_seconds")
        self.keep(video, results)
        projected = self.plan.projected_seconds() if self.setup.cluster is None else None
        end = "" if projected is None else f", done in {projected / 60:.1f} min"
        bar.set_postfix_str(f"{self.plan.level}{end}", refresh=False)
        bar.update()
        self._notice_failure(video, *overall(results.values()))

    def _result(self, classified: Classified) -> VideoResult:
        work, crops = classified.extracted.work, classified.extracted.crops
        level = Level(work.settings.recipe.num_frames, len(work.models))
        everything = self.setup.everything_of(work.recipe)
        video = work.task.video_id
        facts = self._contents.get(video) or {"seen": classified.seen, "file": classified.file}
        common = {"video_id": video, "frames": level.frames, **facts}
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
            crops=[(crop.frame_index, crop.track) for crop in crops.crops],
            models=models,
            fingerprints=[self.setup.fingerprints[name] for name in models],
            **{field: [known[name][place] for name in models] for place, field in enumerate(OF_MODEL)},
        )

    def _of_model(self, classified: Classified, row: int, number: int) -> tuple[Any, ...]:
        """The values of `OF_MODEL` of one model, the `row`-th of those that predicted a video."""
        distances = classified.distances[row]
        is_measured = not np.isnan(distances).any()
        return (
            classified.logits[row],
            classified.precisions.get(number) or self._precisions.get(number, self.setup.precision),
            distances.round(4) if is_measured else (),
            reasons if is_measured and any(reasons := classified.reasons[row].tolist()) else [],
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


def _costs(parts: Collection[Classified]) -> Costs | None:
    """The costs of a video with all recipes; its crops are the mean over the models."""
    works, extracted = zip(*((part.extracted.work, part.extracted.crops) for part in parts), strict=True)
    if any(crops is None for crops in extracted) or any(part.error for part in parts):
        return None
    models = sum(len(work.models) for work in works)  # also those whose logits were known: it projects alike
    crop_models = sum(len(crops.crops) * len(work.models) for work, crops in zip(works, extracted, strict=True))
    return Costs(
        frames=max(work.settings.recipe.num_frames for work in works),
        crops=crop_models / models,
        decode_seconds=sum(crops.decode_seconds for crops in extracted),
        search_seconds=sum(crops.search_seconds for crops in extracted),
        crop_models=crop_models,
        classify_seconds=sum(part.seconds for part in parts),
    )
