"""A submission's videos on a Dask or Ray cluster: a task a video, from the file to its logits; the numbers come back.

Workers see the videos, runs and weights at the paths they have here. The driver decodes nothing and loads no network:
it hands out videos, keeps results and writes the submission.
"""

import functools
import pickle
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
import torch

from multiattn.inference.replicas import Replicas
from multiattn.inference.submit.classifier import Classified, Classifier, Replica, load_replicas
from multiattn.inference.submit.extraction import TIME_LIMIT_SECONDS, Extracted, Work, extracted_of
from multiattn.inference.submit.results import VideoResult, file_fingerprint
from multiattn.model.precision import known_precision
from multiattn.runtime.devices import pick_device, pick_devices
from multiattn.runtime.frame_folders import clip_facts
from multiattn.runtime.processor import tune_cpu
from multiattn.video.extraction.engine import Backend, Engine, open_backend
from multiattn.video.extraction.extract import EncodedCrops, VideoTask, encode_crops, on_device
from multiattn.video.extraction.isolation import worker_number

TARGET = "multiattn.inference.submit.cluster:predict_video"


class CropPlace(NamedTuple):
    """A crop as the driver knows it."""

    frame_index: int
    track: int


class SentWork(NamedTuple):
    """A `Work` but for its task on its way to a worker; the settings are pickled once, and not with each video."""

    settings: bytes
    models: tuple[int, ...]
    known: VideoResult | None
    recipe: int


@dataclass(frozen=True)
class Cluster:
    """A cluster, and what its workers compute with."""

    backend: Backend
    scheduler: str | None
    models: bytes
    """A list of `TrainedModel`, pickled, with absolute paths."""
    device: str
    """As of `pick_devices`, on the worker's machine."""
    precision: str

    def __str__(self) -> str:
        return f"{self.device} of {self.backend}"


class ClusterWorkers:
    """Predicts videos in the background until there are no more, in the place of `Extraction` and `Classifier`.

    Args:
        next_work: as of `Extraction`.
        put: called with each `Classified`, with a video whose process died and how, or with an error that ends it;
            while it waits, results do at the cluster.
    """

    def __init__(
        self, cluster: Cluster, next_work: Callable[[], Sequence[Work] | None], put: Callable[[Any], None]
    ) -> None:
        self._cluster, self._next_work, self._put = cluster, next_work, put
        self._engine: Engine | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="cluster")
        self._thread.start()

    def stop(self) -> None:
        """Begin no more; what workers are at is left to them."""
        self._stopping.set()
        if self._engine is not None:
            self._engine.stop()

    @property
    def finished(self) -> bool:
        """True when all videos that were begun are done."""
        return not self._thread.is_alive()

    def _run(self) -> None:
        cluster = self._cluster
        how = cluster.models, cluster.device, cluster.precision
        try:
            with open_backend(cluster.backend, jobs=1, scheduler=cluster.scheduler) as run:
                self._engine = Engine(run, TARGET, time_limit=TIME_LIMIT_SECONDS)
                calls = ((works, (works[0].task, sent(works), *how)) for works in iter(self._next, None))
                for outcome in self._engine.outcomes(calls):
                    if outcome.kind == "again":
                        self._put((outcome.task[0].task.video_id, outcome.value))
                        continue
                    if outcome.kind != "done":
                        outcome = replace(outcome, value=list(map(Classified, extracted_of(outcome))))
                    for work, classified in zip(outcome.task, outcome.value, strict=True):
                        crops = classified.extracted.crops
                        if crops is not None:
                            crops = replace(crops, crops=list(starmap(CropPlace, crops.crops.tolist())))
                        classified.extracted = replace(classified.extracted, work=work, crops=crops)
                        self._put(classified)
        except BaseException as error:  # whatever it is, the driver raises it
            self._put(error)

    def _next(self) -> Sequence[Work] | None:
        return None if self._stopping.is_set() else self._next_work()


def sent(works: Sequence[Work]) -> list[SentWork]:
    """The works of one video, without its task."""
    return [SentWork(_pickled(work.settings), work.models, work.known, work.recipe) for work in works]


def predict_video(
    task: VideoTask, parts: Sequence[SentWork], models: bytes, device: str, precision: str
) -> list[Classified]:
    """A video's logits by each recipe, in the order of `parts`, in place of its crops (N, 2) frames and tracks, and no
    `work`, which the driver has; what a worker's process calls."""
    replicas, name = _load(models, device, precision)
    works = [Work(task, _unpickled(part.settings), part.models, part.known, part.recipe) for part in parts]
    facts = {"seen": clip_facts(task.path), "file": file_fingerprint(task.path)}
    source: queue.SimpleQueue[Extracted | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[Classified | BaseException] = queue.SimpleQueue()
    for extracted in map(Extracted, works, encode_crops(task, *(on_device(work.settings, name) for work in works))):
        source.put(extracted)
    source.put(None)
    Classifier(replicas, source, done.put, done.put)
    loaded, finished = replicas.working(0).models, {}
    for _ in works:
        classified = done.get()
        if isinstance(classified, BaseException):
            raise classified
        work, crops = classified.extracted.work, classified.extracted.crops
        classified.precisions = {number: loaded.chosen.get(number, loaded.precision) for number in classified.models}
        finished[work.recipe] = replace(classified, extracted=Extracted(None, _places(crops)), **facts)
    return [finished[work.recipe] for work in works]  # one without crops is done before the others


def _places(crops: EncodedCrops) -> EncodedCrops:
    places = [(crop.frame_index, crop.track) for crop in crops.crops]
    return replace(crops, crops=np.array(places, dtype=np.int64).reshape(-1, 2))  # quick to unpickle


_pickled, _unpickled = functools.lru_cache(pickle.dumps), functools.lru_cache(pickle.loads)


@functools.lru_cache(maxsize=1)
def _load(models: bytes, device: str, precision: str) -> tuple[Replicas[Replica], str]:
    """The networks of this process on its device, and that device's name; the processes of a worker take turns."""
    devices = pick_devices(device)
    own = devices[worker_number() % len(devices)]
    pick_device(str(own))  # torch's current one
    if own.type == "cpu":
        tune_cpu()
        torch.set_num_threads(1)
    return load_replicas(pickle.loads(models), [own], known_precision(precision, own)), str(own)
