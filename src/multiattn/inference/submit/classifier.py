"""Crops -> logits: the networks of all runs, batches filled across videos, no error that costs more than its own video.

On a CPU each thread computes a batch of its own by itself, with networks they share: beside the workers that extract,
threads that wait for each other at every layer would wait for whoever lost its core. So whichever of extraction and
classification is slower gets the cores. On each GPU two threads, so that one decodes crops while the other's batch is
computed; whichever GPU is free takes the next batch, and the threads of one that fails go on with another.
"""

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn

from multiattn.inference.replicas import Replicas
from multiattn.inference.runs import TrainedModel
from multiattn.inference.runtimes import load_network
from multiattn.inference.submit.extraction import Extracted
from multiattn.model.distance import DistanceMeter
from multiattn.model.precision import TRIAL_CROPS, resolve_precision, try_prediction
from multiattn.model.predict import forward_views, normalize_crops
from multiattn.runtime.devices import autocast
from multiattn.runtime.processor import TORCH_THREAD
from multiattn.scoring.ensembling import experiment_of
from multiattn.scoring.rule import ScoringRule
from multiattn.video.crops.images import decode_crop
from multiattn.video.extraction.engine import describe_error, is_device_failure, is_out_of_memory

logger = logging.getLogger(__name__)

GPU_BATCH_CROPS = 64
CPU_BATCH_PIXELS = 4 * 380**2
"""More cost memory only: a batch of 4 crops of 380 pixels takes 0.3 GB in EfficientNet-B4."""
MOST_CPU_BATCH_CROPS = 16
"""For small crops: measured with crops of 112 pixels and a small network, 0.87 of the time of batches of 4."""
MOST_CPU_THREADS = 8
GPU_THREADS = 2
BATCHES_TO_GROW = 50
"""Without a shortage of memory, before a batch that was made smaller grows again."""


def by_importance(models: list[TrainedModel], rule: ScoringRule) -> list[TrainedModel]:
    """Models in the order in which they are kept: the first fold of each experiment, heaviest experiment first, then
    the second folds, and so on, last all folds of experiments whose weight is 0."""
    turns: Counter[str] = Counter()
    keys = []
    for place, model in enumerate(models):
        experiment = experiment_of(model.name)
        turns[experiment] += 1
        weight = abs(rule.ensemble.weights.get(experiment, 1.0))
        keys.append((weight == 0, turns[experiment], -weight, place))
    return [models[place] for *_, place in sorted(keys)]


class LoadedModels:
    """Networks on a device, each with the size of crops it takes.

    Args:
        models: in the order of `by_importance`.
        precision: `bf16`, `fp16` or `fp32`; `auto` on a CPU tries each model on the first crops it gets.

    Attributes:
        chosen: number of a model -> the precision that its trial chose.
    """

    def __init__(self, models: list[TrainedModel], device: torch.device, precision: str) -> None:
        self.models, self.device, self.precision = models, device, precision
        self.sizes = [model.experiment.data.image_size for model in models]
        self.distances = [model.distance() for model in models]
        self._networks = [load_network(model, device, threads=1) for model in models]  # as many as each caller has
        self._on_cpu: dict[int, nn.Module] = {}
        self.chosen: dict[int, str] = {}
        self._lock = threading.Lock()

    @torch.inference_mode()
    def logits(
        self,
        number: int,
        crops: torch.Tensor,
        *,
        on_cpu: bool = False,
        exact: bool = False,
        meter: DistanceMeter | None = None,
    ) -> np.ndarray:
        """The logit of P(fake) of each crop, the mean over the model's views: (B,) float64, not checked.

        Args:
            number: of the model.
            crops: (B, H, W, 3) uint8 RGB on the CPU, of the model's size.
            on_cpu: not on the GPU, whose memory ran out.
            exact: in float32.
        """
        moved = on_cpu and self.device.type != "cpu"
        device = torch.device("cpu") if moved else self.device
        network = self._cpu_network(number) if moved else self._networks[number]
        precision = "fp32" if exact or moved else self.precision
        if precision == "auto":
            precision = self._choose_precision(number, crops)
        crops = crops.to(device)
        with autocast(precision, device):
            of_crops, output = forward_views(network, normalize_crops(crops), self.models[number].tta)
        if meter is not None:
            meter.watch(crops, output)
        return of_crops.cpu().double().numpy()

    def _choose_precision(self, number: int, crops: torch.Tensor) -> str:
        """The precision a model predicts in; other threads wait for the trial, so that it has the processor."""
        with self._lock:
            if number not in self.chosen:
                trial = partial(try_prediction, self._networks[number], crops[:TRIAL_CROPS])
                found = resolve_precision(self.precision, self.device, trial)
                logger.info("%s: predicts in %s: %s", self.models[number].name, found.name, found.reason)
                self.chosen[number] = found.name
            return self.chosen[number]

    def _cpu_network(self, number: int) -> nn.Module:
        with self._lock:
            if number not in self._on_cpu:
                logger.warning("%s also runs on the CPU now", self.models[number].name)
                self._on_cpu[number] = load_network(self.models[number], torch.device("cpu"))
            return self._on_cpu[number]


@dataclass(eq=False)
class Classified:
    """A video on its way through the models, and at its end the logits, or the reason why there are none."""

    extracted: Extracted
    models: tuple[int, ...] = ()
    """Numbers of those that predict it, without those whose logits are known."""
    left: int = 0
    """Crops without logits yet."""
    logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(models, crops) float64, finite; (0, 0) without crops or after an error."""
    distances: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """The same of the crops' distances, NaN where a model does not measure them."""
    reasons: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=object))
    """The same of the words for crops that lie outside."""
    error: str = ""
    seconds: float = 0.0
    file: str = ""
    """Fingerprint of the video, from a cluster's worker."""
    seen: list[int] = field(default_factory=list)
    """`clip_facts` of the video, likewise."""
    precisions: dict[int, str] = field(default_factory=dict)
    """Number of a model -> the precision it predicted in, from a cluster's worker."""


Measured = tuple[float, float, str]
"""A model's logit of a crop, its distance and the reason for it."""
Entry = tuple[Classified, int]
"""A video by one recipe and the number of one of its crops."""


def num_threads(devices: Sequence[torch.device], cores: int) -> int:
    if devices[0].type != "cpu":
        return GPU_THREADS * len(devices)
    return max(len(devices), min(cores, MOST_CPU_THREADS))


def crops_a_batch(device: torch.device, sizes: Iterable[int]) -> int:
    """Crops of a full batch; `sizes` are pixels along a side of each model's crops."""
    if device.type != "cpu":
        return GPU_BATCH_CROPS
    return min(MOST_CPU_BATCH_CROPS, max(1, CPU_BATCH_PIXELS // max(sizes) ** 2))


@dataclass(eq=False)
class Replica:
    """The models on one device, and the batches it takes."""

    models: LoadedModels
    full: int
    """Crops of a full batch."""
    crops: int = 0
    """Computed so far."""
    on_cpu: bool = False
    """True where the device failed and no other is left."""

    def __post_init__(self) -> None:
        self.batch, self._since_shortage = self.full, 0
        self._lock = threading.Lock()

    def count(self, crops: int) -> None:
        """Note a computed batch; after enough of them one that was made smaller grows again."""
        with self._lock:
            self.crops += crops
            self._since_shortage += 1
            if self.batch < self.full and self._since_shortage >= BATCHES_TO_GROW:
                self.batch, self._since_shortage = min(self.full, 2 * self.batch), 0

    def shrink(self, crops: int, error: Exception) -> None:
        with self._lock:
            self._since_shortage = 0
            if crops < self.batch:
                self.batch = crops
                logger.warning("memory ran out (%s): batches of %d crops now", describe_error(error), crops)

    def free_memory(self) -> None:
        if self.models.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # of a GPU that failed
                torch.cuda.empty_cache()


def load_replicas(models: list[TrainedModel], devices: Sequence[torch.device], precision: str) -> Replicas[Replica]:
    """The models on each of the devices."""

    def load(device: torch.device) -> Replica:
        loaded = LoadedModels(models, device, precision)
        return Replica(loaded, crops_a_batch(device, loaded.sizes))

    return Replicas(devices, load)


class Classifier:
    """Threads that compute the logits of extracted videos.

    Args:
        replicas: the models on each device.
        source: videos; None comes last.
        done: called with each video, also those without crops; by any thread.
        crashed: called with an error that is no video's fault.
    """

    def __init__(
        self,
        replicas: Replicas[Replica],
        source: "queue.Queue[Extracted | None]",
        done: Callable[[Classified], None],
        crashed: Callable[[BaseException], None],
        *,
        threads: int = 1,
    ) -> None:
        self.replicas, self._source, self._done, self._crashed = replicas, source, done, crashed
        self._models = replicas.working(0).models.models
        self._pending: dict[int, list[Entry]] = {}  # by recipe: a batch is of one, whose models take crops of its sizes
        self._ended = False
        self._filling, self._counting = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True, name=TORCH_THREAD)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self, patience: float) -> None:
        """Begin no more batches, and wait at most `patience` seconds for those at work."""
        self._stopping.set()
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def finished(self) -> bool:
        """True when all videos that came are done."""
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, place: int) -> None:
        try:
            if self.replicas.working(place).models.device.type == "cpu":
                torch.set_num_threads(1)
            while not self._stopping.is_set():
                entries = self._take(self.replicas.working(place).batch)
                if entries is None:
                    return
                self._classify(entries, place)
        except BaseException as error:  # a thread that ends in silence would leave the run waiting for ever
            self._crashed(error)

    def _take(self, batch: int) -> list[Entry] | None:
        """Crops of one or several videos; fewer than a batch only where no more are there. None: there are none."""
        with self._filling:
            while not self._ended and not self._stopping.is_set():
                longest = max(map(len, self._pending.values()), default=0)
                if longest >= batch:
                    break
                try:
                    extracted = self._source.get(block=not longest, timeout=0.1)
                except queue.Empty:
                    if longest:
                        break
                    continue
                if extracted is None:
                    self._ended = True
                else:
                    self._admit(extracted)
            recipe = max(self._pending, key=lambda recipe: len(self._pending[recipe]), default=0)
            entries = self._pending.get(recipe, [])
            self._pending[recipe] = entries[batch:]
            return entries[:batch] or None

    def _admit(self, extracted: Extracted) -> None:
        crops = extracted.crops.crops if extracted.crops is not None else []
        known = extracted.work.known_logits(crops)
        wanted = extracted.work.models if crops else ()
        numbers = tuple(number for number in wanted if self._models[number].name not in known)
        if not numbers:
            self._done(Classified(extracted))
            return
        blank = np.full((len(numbers), len(crops)), np.nan)
        video = Classified(extracted, numbers, len(crops), blank, blank.copy(), np.full(blank.shape, "", dtype=object))
        pending = self._pending.setdefault(extracted.work.recipe, [])
        pending += [(video, number) for number in range(len(crops))]

    def _classify(self, entries: list[Entry], place: int) -> None:
        """Write the logits of some crops into their videos; any error costs these videos only."""
        replica = self.replicas.working(place)
        on_cpu = replica.on_cpu
        entries = [entry for entry in entries if not entry[0].error]
        if not entries:
            return
        started = time.perf_counter()
        try:
            logits = self._logits(entries, replica.models, on_cpu=on_cpu)
        except Exception as error:  # of any kind: a video must not cost the others
            if is_device_failure(error) and not on_cpu:
                if not self.replicas.set_aside(replica, error):
                    logger.warning("%s failed (%s): on with the CPU", replica.models.device, describe_error(error))
                    replica.on_cpu = True
                self._classify(entries, place)
            else:
                self._recover(entries, error, place, replica)
            return
        seconds = (time.perf_counter() - started) / sum(len(video.models) for video, _ in entries)
        replica.count(len(entries))
        for (video, number), column in zip(entries, logits, strict=True):
            self._keep(video, number, column, seconds)

    def _recover(self, entries: list[Entry], error: Exception, place: int, replica: Replica) -> None:
        """Try again in smaller parts: video by video, or, where memory ran out, halves down to a crop on another
        device, at last on the CPU."""
        if not is_out_of_memory(error):
            groups = [list(group) for _, group in itertools.groupby(entries, key=lambda entry: entry[0])]
            if len(groups) == 1:
                self._fail(entries[0][0], describe_error(error))
            else:
                for group in groups:
                    self._classify(group, place)
            return
        replica.free_memory()
        if len(entries) > 1:
            half = (len(entries) + 1) // 2
            replica.shrink(half, error)
            self._classify(entries[:half], place)
            self._classify(entries[half:], place)
            return
        if self.replicas.set_aside(replica, error):
            self._classify(entries, place)
            return
        ((video, number),) = entries
        try:
            logits = self._logits(entries, replica.models, on_cpu=True)
        except Exception as last:  # as above
            replica.free_memory()
            self._fail(video, f"one crop at a time, on the CPU too: {describe_error(last)}")
            return
        self._keep(video, number, logits[0], 0.0)

    def _logits(self, entries: list[Entry], loaded: LoadedModels, *, on_cpu: bool) -> list[list[Measured]]:
        """For each crop a list of what its video's models say."""
        models = sorted(set().union(*(video.models for video, _ in entries)))
        videos = [video.extracted.crops for video, _ in entries]
        chosen = [(crops.crops[number], crops.video_id) for crops, (_, number) in zip(videos, entries, strict=True)]
        of_size = {}
        for size in sorted({loaded.sizes[number] for number in models}):
            crops = [decode_crop(crop.jpeg, size, f"{name}, frame {crop.frame_index}") for crop, name in chosen]
            of_size[size] = torch.from_numpy(np.stack(crops))
        boxes = np.array([crops.crops[number].box_xyxy for crops, (_, number) in zip(videos, entries, strict=True)])
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        result: list[list[Measured]] = [[] for _ in entries]
        for number in models:
            rows = [row for row, (video, _) in enumerate(entries) if number in video.models]
            crops = of_size[loaded.sizes[number]]
            crops = crops if len(rows) == len(entries) else crops[rows]
            for row, measured in zip(rows, _finite(loaded, number, crops, sides[rows], on_cpu), strict=True):
                result[row].append(measured)
        return result

    def _keep(self, video: Classified, number: int, measured: list[Measured], seconds: float) -> None:
        with self._counting:
            if video.error:
                return
            for column, values in zip(
                (video.logits, video.distances, video.reasons), zip(*measured, strict=True), strict=True
            ):
                column[:, number] = values
            video.left -= 1
            video.seconds += seconds * len(video.models)
            is_last = video.left == 0
        if is_last:
            self._done(video)

    def _fail(self, video: Classified, error: str) -> None:
        with self._counting:
            if video.error:
                return
            video.error, video.logits = error, np.zeros((0, 0))
        self._done(video)


def _finite(loaded: LoadedModels, number: int, crops: torch.Tensor, sides: np.ndarray, on_cpu: bool) -> list[Measured]:
    for exact in (False, True) if loaded.precision != "fp32" else (False,):
        meter = DistanceMeter(loaded.distances[number])
        logits = loaded.logits(number, crops, on_cpu=on_cpu, exact=exact, meter=meter)
        if np.isfinite(logits).all():
            return list(zip(logits.tolist(), *meter.results(sides), strict=True))
    raise ValueError(f"logits of {loaded.models[number].name} are not finite")
