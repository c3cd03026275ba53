"""The two sides of `multiattn bench`: the network as we run it, and as it is written plainly.

What `multiattn train` and `predict` do to a network before they run it stands here too, and nothing else does. Of a
training step, what is done beside it (moving average, meter of the losses, schedule) is left out on both sides.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multiattn.config import Experiment
from multiattn.model.cpu_layers import speed_up_cpu_training
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import fold_batch_norms
from multiattn.runtime.devices import autocast, resolve_precision, seed_everything
from multiattn.runtime.processor import tune_cpu
from multiattn.training.data.crops import FACE_COLUMNS, FoldCrops, training_loader
from multiattn.training.device_ceiling import wait_for
from multiattn.training.engine.loop import update
from multiattn.training.engine.optimizer import make_optimizer
from multiattn.training.engine.step import TrainingStep, backward_passes, set_train_mode, set_trainable
from multiattn.training.plain_network import joint_backward, make_plain
from multiattn.video.extraction.faces_folder import read_faces_folder

Work = Literal["train", "infer"]
Passes = Callable[..., dict[str, Tensor]]
PIECES = ("data", "forward", "AGDA", "backward", "optimiser")
"""Of a step. `data` is a ready batch on its way to the device, and its normalisation (for each pass); `forward` both
passes and their losses; `AGDA` the making of the degraded copies."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all sides do.

    Attributes:
        experiment: its last phase is the one that is timed.
        weights: a state dict of its `TrainingStep`, written by `write_weights`.
        faces: a faces folder whose crops our side is also fed from; None for none.
    """

    experiment: Experiment
    work: Work
    batch_size: int
    device: torch.device
    weights: Path
    faces: Path | None = None

    @property
    def precision(self) -> str:
        """Of our side: bf16, fp16 or fp32."""
        return resolve_precision(self.experiment.precision, self.device)

    def load(self) -> TrainingStep:
        """The step with its weights, on the device."""
        step = TrainingStep(self.experiment, load_weights=False)
        step.load_state_dict(torch.load(self.weights, weights_only=True))
        return step.to(self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random crops (B, H, W, 3) uint8, the same on all sides, and labels (B,), real and fake in turn.

        In the host's memory, from which a GPU can fetch them while it computes.
        """
        generator = torch.Generator().manual_seed(self.experiment.seed)
        size = self.experiment.data.image_size
        crops = torch.randint(0, 256, (self.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
        labels = torch.arange(self.batch_size) % 2
        return (crops.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (crops, labels)


class Evaluation:
    """An eval forward of one batch."""

    def __init__(
        self, network: nn.Module, task: Task, context: Callable[[], contextlib.AbstractContextManager]
    ) -> None:
        self.network, self.device, self.context = network.eval(), task.device, context
        self.crops, _ = task.batch()

    def run(self) -> Tensor:
        """The logits."""
        with torch.inference_mode(), self.context():
            return self.network(normalize_crops(self.crops.to(self.device, non_blocking=True))).logits


class Training:
    """Updates of the experiment's last phase, as `training.epoch` does them."""

    def __init__(
        self, step: TrainingStep, task: Task, passes: Passes, scaler: torch.amp.GradScaler, *, fused: bool = True
    ) -> None:
        self.step, self.task, self.passes, self.scaler = step, task, passes, scaler
        self.phase = task.experiment.schedule[-1]
        set_trainable(step, self.phase)
        set_train_mode(step, step, self.phase)
        self.optimizer = make_optimizer(step, self.phase.optim, fused=fused)
        self.batch = task.batch()
        seed_everything(task.experiment.seed)  # all sides drop the same paths and draw the same maps

    def run(self) -> Tensor:
        """One update with the random batch; returns the loss."""
        return self.update(*self.batch, watch=_Stopwatch(None))

    def update(self, crops: Tensor, labels: Tensor, *, watch: "_Stopwatch") -> Tensor:
        """One update with a batch from the host's memory; returns the loss, which may not be computed yet."""
        device = self.task.device
        watch.turn_to("data")
        crops, labels = crops.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        watch.turn_to("optimiser")
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.passes(crops, labels, degrade=self.phase.agda)
        watch.turn_to("optimiser")
        update(self.step, self.optimizer, self.scaler, self.phase.optim.clip_grad_norm)
        watch.turn_to(None)
        return terms["loss"]

    def split(self) -> dict[str, float]:
        """Seconds of each of `PIECES` in one update, with a wait for the device between them."""
        watch, step = _Stopwatch(self.task.device), self.step
        hooks = [
            step.register_forward_pre_hook(lambda *_: watch.turn_to("data")),
            step.network.register_forward_pre_hook(lambda *_: watch.turn_to("forward")),
            step.register_forward_hook(lambda *_: watch.turn_to("backward")),
        ]
        if step.augmentation is not None:
            hooks.append(step.augmentation.register_forward_pre_hook(lambda *_: watch.turn_to("AGDA")))
        try:
            self.update(*self.batch, watch=watch)
        finally:
            for hook in hooks:
                hook.remove()
        return watch.seconds

    def feed(self, updates: int) -> tuple[float, float]:
        """Crops a second when fed from the crops of the faces folder, and with the random batch, before and after."""
        config = self.task.experiment.data
        ahead = config.num_workers * 2  # batches that lie ready when nobody asks for them
        fed = _endless(_loader(self.task))
        before = self._rate(self._again(), updates)
        self._rate(fed, ahead + 1)
        found = self._rate(fed, updates)
        return found, max(before, self._rate(self._again(), updates))

    def _again(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.batch

    def _rate(self, batches: Iterator[tuple[Tensor, Tensor]], updates: int) -> float:
        wait_for(self.task.device)
        started, number = time.perf_counter(), 0
        for _ in range(updates):
            crops, labels = next(batches)
            self.update(crops, labels, watch=_Stopwatch(None))
            number += len(labels)
        wait_for(self.task.device)
        return number / (time.perf_counter() - started)


class _Stopwatch:
    """Seconds of each piece of a step; without a device it does nothing."""

    def __init__(self, device: torch.device | None) -> None:
        self.device, self.piece, self.since = device, None, 0.0
        self.seconds = dict.fromkeys(PIECES, 0.0)

    def turn_to(self, piece: str | None) -> None:
        """From here on it is that piece's time."""
        if self.device is None:
            return
        wait_for(self.device)
        now = time.perf_counter()
        if self.piece is not None:
            self.seconds[self.piece] += now - self.since
        self.piece, self.since = piece, now


def _loader(task: Task) -> DataLoader:
    """Our training's batches of the faces folder's crops, of all folds."""
    faces, _, videos = read_faces_folder(task.faces, columns=FACE_COLUMNS)
    place = pd.Index(videos["video_id"]).get_indexer(faces["video_id"])
    table = faces[["video_id", "frame_index", "track", "crop"]].assign(
        label=np.where(place >= 0, videos["label"].to_numpy()[place], -1), face=np.arange(len(faces))
    )
    table = table[table["label"] >= 0].reset_index(drop=True)
    crops = FoldCrops(task.faces, table, table.iloc[:0], videos.iloc[:0], faces, videos)
    return training_loader(crops, task.experiment.data, seed=task.experiment.seed, rank=0, world_size=1)


def _endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        loader.batch_sampler.epoch = epoch
        yield from loader
        epoch += 1


def _ours(task: Task, *, compiled: bool = False) -> Training | Evaluation:
    """As `multiattn train` and `predict` run it on this device."""
    on_cpu = task.device.type == "cpu"
    if on_cpu:
        tune_cpu()  # before the first parallel work: threads that exist already would keep their denormals
    step = task.load()
    context = partial(autocast, task.precision, task.device)
    if task.work == "infer":
        network = fold_batch_norms(step.network) if on_cpu else step.network
        if compiled:
            network.compile()
        return Evaluation(network, task, context)
    if on_cpu:
        step = speed_up_cpu_training(step)
    if compiled:
        step.network.compile()
    scaler = torch.amp.GradScaler(task.device.type, enabled=task.precision == "fp16")
    passes = partial(backward_passes, step, step, scaler=scaler, context=context)
    return Training(step, task, passes, scaler)


def _plain(task: Task) -> Training | Evaluation:
    """Float32, NCHW, materialised pooling, one backward, plain Adam; nothing done to the process."""
    step = make_plain(task.load())
    if task.work == "infer":
        return Evaluation(step.network, task, contextlib.nullcontext)
    scaler = torch.amp.GradScaler(task.device.type, enabled=False)
    return Training(step, task, partial(joint_backward, step), scaler, fused=False)


SIDES: dict[str, Callable[[Task], Training | Evaluation]] = {
    "ours": _ours,
    "compiled": partial(_ours, compiled=True),
    "plain": _plain,
}


def write_weights(task: Task) -> None:
    """Draw the weights both sides start from; running statistics are those of the task's own crops.

    Untrained statistics (mean 0, variance 1) would normalise nothing in eval mode: activations would shrink from layer
    to layer, and the plain side would be timed on denormal numbers that no trained network has.
    """
    seed_everything(task.experiment.seed)
    step = TrainingStep(task.experiment, load_weights=task.experiment.model.weights is not None)
    settle_statistics(step.network, normalize_crops(task.batch()[0]))
    torch.save(step.state_dict(), task.weights)


@torch.no_grad()
def settle_statistics(network: nn.Module, images: Tensor) -> None:
    """Give an untrained network running statistics of some images (B, 3, H, W), and put it into eval mode."""
    network.eval()
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = 1.0
    network(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.eval()
        layer.momentum = momentum
