"""The networks of all runs, loaded once, in the order in which they are given up last to first.

Crops -> logits: batches filled across videos, a few threads, and no error that costs more than its own video.

On a CPU each thread computes a batch of its own by itself, with a network they share: beside the workers that extract,
threads that wait for each other at every layer would wait for whoever lost its core. Whatever is slower, extraction or
classification, so gets the cores. On a GPU two threads, so that one decodes crops while the other's batch is computed.
"""

import base64
import ctypes
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from multiattn.inference.runs import TrainedModel
from multiattn.inference.submit.extraction import Extracted, describe_error, is_out_of_memory
from multiattn.model.network import fake_logit
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import fold_batch_norms
from multiattn.runtime.devices import autocast
from multiattn.runtime.processor import TORCH_THREAD
from multiattn.scoring.ensembling import experiment_of
from multiattn.scoring.rule import ScoringRule
from multiattn.video.crops.images import decode_crop
from multiattn.video.extraction.in_memory import EncodedCrops

logger = logging.getLogger(__name__)


def by_importance(models: list[TrainedModel], rule: ScoringRule) -> list[TrainedModel]:
    """Models in the order in which they are kept: the first fold of each experiment, heaviest experiment first, then
    the second folds, and so on. So an experiment loses folds before another is lost.

    Experiments whose weight is 0 come last, all their folds.
    """
    weights = {name: abs(weight) for name, weight in rule.ensemble.weights.items()}
    turn: dict[str, int] = {}
    keys = []
    for place, model in enumerate(models):
        experiment = experiment_of(model.name)
        turn[experiment] = turn.get(experiment, 0) + 1
        weight = weights.get(experiment, 1.0)
        keys.append((weight == 0, turn[experiment], -weight, place))
    return [models[place] for *_, place in sorted(keys)]


class LoadedModels:
    """Networks on a device, each with the size of crops it takes.

    Batch normalisations are folded into convolutions (the same logits to rounding, in about 0.6 of the time on a CPU);
    on a GPU, where autocast would round the folded weights instead, they are left alone.

    Args:
        models: in the order of `by_importance`.
        precision: `bf16`, `fp16` or `fp32`.
    """

    def __init__(self, models: list[TrainedModel], device: torch.device, precision: str) -> None:
        self.models, self.device, self.precision = models, device, precision
        self.sizes = [model.experiment.data.image_size for model in models]
        self._networks = [self._load(model, device) for model in models]
        self._on_cpu: dict[int, nn.Module] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """`<experiment>/fold<k>` of each."""
        return [model.name for model in self.models]

    @torch.inference_mode()
    def logits(self, number: int, crops: torch.Tensor, *, on_cpu: bool = False, exact: bool = False) -> np.ndarray:
        """The logit of P(fake) of each crop, float64, not checked.

        Args:
            number: of the model.
            crops: (B, H, W, 3) uint8 RGB on the CPU, of the model's size.
            on_cpu: not on the GPU, whose memory ran out.
            exact: in float32.
        """
        device = torch.device("cpu") if on_cpu else self.device
        network = self._cpu_network(number) if on_cpu and self.device.type != "cpu" else self._networks[number]
        precision = "fp32" if exact or (on_cpu and self.device.type != "cpu") else self.precision
        with autocast(precision, device):
            output = network(normalize_crops(crops.to(device)))
        return fake_logit(output.logits.float()).cpu().double().numpy()

    def _load(self, model: TrainedModel, device: torch.device) -> nn.Module:
        network = model.load(device).requires_grad_(False)
        return fold_batch_norms(network) if device.type == "cpu" else network

    def _cpu_network(self, number: int) -> nn.Module:
        with self._lock:
            if number not in self._on_cpu:
                logger.warning("%s also runs on the CPU now", self.models[number].name)
                self._on_cpu[number] = self._load(self.models[number], torch.device("cpu"))
            return self._on_cpu[number]


GPU_BATCH_CROPS = 64
CPU_BATCH_PIXELS = 4 * 380**2
"""More cost memory only: a batch of 4 crops of 380 pixels takes 0.3 GB in EfficientNet-B4."""
MOST_CPU_BATCH_CROPS = 16
"""For small crops: measured with crops of 112 pixels and a small network, 0.87 of the time of batches of 4."""
MOST_CPU_THREADS = 8
GPU_THREADS = 2
CALM_BATCHES = 50
"""Without a shortage of memory, before a batch that was made smaller grows again."""
THUMBNAIL_PIXELS = 96
MALLOC_ARENA_MAX = -8
"""Parameter of glibc's `mallopt`, from its malloc.h."""


@dataclass(eq=False)
class Job:
    """A video on its way through the models."""

    extracted: Extracted
    crops: EncodedCrops
    models: int
    logits: np.ndarray
    """(models, crops) float64."""
    left: int
    """Crops that are not judged yet."""
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Judged:
    """What became of a video."""

    extracted: Extracted
    logits: np.ndarray
    """(models, crops) float64, finite; no crops where there are none or it failed."""
    error: str = ""
    """Why it could not be judged."""
    seconds: float = 0.0
    """Of a thread here."""
    thumbnail: bytes = b""


Entry = tuple[Job, int]
"""A video and the number of one of its crops."""


def num_threads(device: torch.device, cores: int) -> int:
    """Threads that classify."""
    return GPU_THREADS if device.type != "cpu" else max(1, min(cores, MOST_CPU_THREADS))


def crops_a_batch(device: torch.device, sizes: Iterable[int]) -> int:
    """As many as it holds at most, while memory does not run out.

    Args:
        sizes: pixels along a side, of each model's crops.
    """
    if device.type != "cpu":
        return GPU_BATCH_CROPS
    return min(MOST_CPU_BATCH_CROPS, max(1, CPU_BATCH_PIXELS // max(sizes) ** 2))


def one_memory_for_all_threads() -> None:
    """Let all threads take memory from one place. By default glibc gives each a heap of its own, of which activations
    above 64 MB do not become part, so that their pages are mapped anew for every layer (`runtime.tune_cpu` says what
    that costs). Before the first thread is started; elsewhere than on glibc nothing happens."""
    try:
        ctypes.CDLL("libc.so.6").mallopt(MALLOC_ARENA_MAX, 1)
    except (OSError, AttributeError):
        return


@dataclass(eq=False)
class Classifier:
    """Threads that judge what the extraction hands over.

    Args:
        source: videos; None comes last.
        done: called with each video when it is judged, also those without crops; by any thread.
        crashed: called with an error that is no video's fault.
    """

    models: LoadedModels
    source: "queue.Queue[Extracted | None]"
    done: Callable[[Judged], None]
    crashed: Callable[[BaseException], None]
    threads: int = 1
    batch_crops: int | None = None
    _pending: "list[Entry]" = field(default_factory=list)

    def __post_init__(self) -> None:
        self._full = self.batch_crops or crops_a_batch(self.models.device, self.models.sizes)
        self._batch = self._full
        self._calm = 0
        self._ended = False
        self._filling, self._counting = threading.Lock(), threading.Lock()
        self._alive = self.threads
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, daemon=True, name=TORCH_THREAD) for _ in range(self.threads)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float) -> None:
        """Begin no more batches, and wait a while for those at work."""
        self._stopping.set()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def finished(self) -> bool:
        """Whether all that came has been judged."""
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        try:
            if self.models.device.type == "cpu":
                torch.set_num_threads(1)
            while not self._stopping.is_set():
                entries = self._take()
                if entries is None:
                    return
                self._judge(entries)
        except BaseException as error:  # a thread that ends in silence would leave the kernel waiting for ever
            self.crashed(error)

    def _take(self) -> list[Entry] | None:
        """Crops of one or several videos; fewer than a batch only where no more are there. None: there are none."""
        with self._filling:
            while len(self._pending) < self._batch and not self._ended and not self._stopping.is_set():
                try:
                    extracted = self.source.get(block=not self._pending, timeout=0.1)
                except queue.Empty:
                    if self._pending:
                        break
                    continue
                if extracted is None:
                    self._ended = True
                else:
                    self._admit(extracted)
            taken, self._pending = self._pending[: self._batch], self._pending[self._batch :]
            return taken or None

    def _admit(self, extracted: Extracted) -> None:
        crops = extracted.crops
        if crops is None or not crops.crops:
            self.done(Judged(extracted, np.zeros((0, 0))))
            return
        models = min(extracted.work.models, len(self.models.models))
        job = Job(extracted, crops, models, np.full((models, len(crops.crops)), np.nan), len(crops.crops))
        self._pending += [(job, number) for number in range(len(crops.crops))]

    def _judge(self, entries: list[Entry]) -> None:
        """Write the logits of some crops into their videos; whatever happens is the matter of these videos."""
        entries = [entry for entry in entries if not entry[0].error]
        if not entries:
            return
        started = time.perf_counter()
        try:
            logits = self._logits(entries)
        except Exception as error:  # of any kind: a video must not cost the others
            self._mishap(entries, error)
            return
        seconds = (time.perf_counter() - started) / sum(job.models for job, _ in entries)
        self._grow()
        for (job, number), column in zip(entries, logits, strict=True):
            self._keep(job, number, column, seconds)

    def _mishap(self, entries: list[Entry], error: Exception) -> None:
        if not is_out_of_memory(error):
            groups = [list(group) for _, group in itertools.groupby(entries, key=lambda entry: entry[0])]
            if len(groups) == 1:
                self._fail(entries[0][0], describe_error(error))
                return
            for group in groups:
                self._judge(group)
            return
        self._free()
        if len(entries) > 1:
            half = (len(entries) + 1) // 2
            self._shrink(half, error)
            self._judge(entries[:half])
            self._judge(entries[half:])
            return
        ((job, number),) = entries
        try:
            logits = self._logits(entries, on_cpu=True)
        except Exception as last:  # as above
            self._free()
            self._fail(job, f"one crop at a time, on the CPU too: {describe_error(last)}")
            return
        self._keep(job, number, logits[0], 0.0)

    def _logits(self, entries: list[Entry], *, on_cpu: bool = False) -> list[list[float]]:
        """For each crop a list of the logits of its video's models."""
        of_size = {}
        for size in sorted({self.models.sizes[number] for job, _ in entries for number in range(job.models)}):
            sources = [f"{job.crops.video_id}, frame {job.crops.crops[i].frame_index}" for job, i in entries]
            contents = [job.crops.crops[i].jpeg for job, i in entries]
            crops = [decode_crop(content, size, name) for content, name in zip(contents, sources, strict=True)]
            of_size[size] = torch.from_numpy(np.stack(crops))
        result: list[list[float]] = [[] for _ in entries]
        for number in range(max(job.models for job, _ in entries)):
            rows = [row for row, (job, _) in enumerate(entries) if number < job.models]
            crops = of_size[self.models.sizes[number]]
            crops = crops if len(rows) == len(entries) else crops[rows]
            for row, logit in zip(rows, self._finite(number, crops, on_cpu), strict=True):
                result[row].append(float(logit))
        return result

    def _finite(self, number: int, crops: torch.Tensor, on_cpu: bool) -> np.ndarray:
        logits = self.models.logits(number, crops, on_cpu=on_cpu)
        if not np.isfinite(logits).all() and self.models.precision != "fp32":
            logits = self.models.logits(number, crops, on_cpu=on_cpu, exact=True)
        if not np.isfinite(logits).all():
            raise ValueError(f"logits of {self.models.names[number]} are not finite")
        return logits

    def _keep(self, job: Job, number: int, logits: list[float], seconds: float) -> None:
        with self._counting:
            job.logits[:, number] = logits
            job.left -= 1
            job.seconds += seconds * job.models
            is_last = job.left == 0 and not job.error
        if is_last:
            self.done(Judged(job.extracted, job.logits, "", job.seconds, thumbnail(job)))

    def _fail(self, job: Job, error: str) -> None:
        with self._counting:
            is_first, job.error = not job.error, job.error or error
        if is_first:
            self.done(Judged(job.extracted, np.zeros((0, 0)), error, job.seconds))

    def _shrink(self, crops: int, error: Exception) -> None:
        with self._counting:
            self._calm = 0
            if crops < self._batch:
                self._batch = crops
                logger.warning("memory ran out (%s): batches of %d crops now", describe_error(error), crops)

    def _grow(self) -> None:
        with self._counting:
            self._calm += 1
            if self._batch < self._full and self._calm >= CALM_BATCHES:
                self._batch, self._calm = min(self._full, 2 * self._batch), 0

    def _free(self) -> None:
        if self.models.device.type == "cuda":
            torch.cuda.empty_cache()


def thumbnail(job: Job) -> bytes:
    """The crop that the models are surest of, at most 96 pixels, as JPEG; empty where it cannot be made."""
    crop = job.crops.crops[int(np.abs(job.logits.mean(axis=0)).argmax())]
    try:
        image = cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_COLOR)
        if image.shape[0] > THUMBNAIL_PIXELS:
            image = cv2.resize(image, (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), interpolation=cv2.INTER_AREA)
        made, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])
    except (cv2.error, AttributeError):  # it was judged, and a picture of it is not worth an error
        return b""
    return jpeg.tobytes() if made else b""


def as_text(picture: bytes) -> str:
    """Base64, for a line of JSON."""
    return base64.b64encode(picture).decode()


def as_picture(text: Any) -> bytes:
    """The inverse of `as_text`."""
    return base64.b64decode(text)
