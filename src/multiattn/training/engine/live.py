"""Progress of a training on the screen: one live line, TensorBoard's scalars and pictures, and a tracker's."""

import threading
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from multiattn.model.predict import normalize_crops
from multiattn.runtime.devices import autocast
from multiattn.runtime.layout import TENSORBOARD_FOLDER
from multiattn.runtime.processor import memory_in_use
from multiattn.runtime.progress import WorkBar
from multiattn.training.engine.fold_training import FoldTraining
from multiattn.training.engine.tracking import Tracker

PICTURED = 8
"""Crops of the first batch of an epoch that are kept for its picture."""
TERM_NAMES = {"cross_entropy": "ce", "auxiliary": "aux", "cross_entropy_agda": "ce_agda", "match": "match"}
"""Short names of the loss terms on the line."""


class Live:
    """The live line, TensorBoard and, where it `is_tracked`, the tracker of one fold; only rank 0 shows anything."""

    def __init__(self, training: FoldTraining, bar: WorkBar, *, is_tracked: bool = False) -> None:
        self.is_main, self.bar = training.ranks.is_main, bar
        samples_per_epoch = len(training.loader) * training.global_batch
        done = training.progress.epoch * samples_per_epoch + training.progress.batch * training.global_batch
        self.fold, self.done = training.run.model_name, done
        self.samples = training.experiment.num_epochs * samples_per_epoch
        self._report()
        folder = training.run.path / TENSORBOARD_FOLDER
        self.writer = SummaryWriter(folder, purge_step=training.updates) if self.is_main else None
        self.tracker = Tracker(training.run) if self.is_main and is_tracked else None
        self._excepthook, threading.excepthook = threading.excepthook, _leave_to_writer
        self.crops: Tensor | None = None

    def advance(self, samples: int, crops: Tensor) -> None:
        """Count so many crops more as done; keep the first batch of an epoch for its picture."""
        self.done += samples
        self._report()
        if self.is_main and self.crops is None:
            self.crops = crops[:PICTURED].clone()

    def show(self, training: FoldTraining, means: dict[str, float]) -> None:
        """Show the epoch's mean terms so far, the rates and the memory in use."""
        if not self.is_main:
            return
        figures = {
            **means,
            "learning_rate": training.learning_rate,
            "samples_per_second": training.samples_per_second,
            "data_wait": training.data_wait,
            "memory_gb": memory_in_use(training.device) / 1e9,
        }
        self._scalars("train", figures, training.updates)
        terms = " ".join(f"{short} {means[name]:.3f}" for name, short in TERM_NAMES.items() if name in means)
        text = (
            f"epoch {training.progress.epoch}, "
            f"step {training.updates_of_epoch}/{training.updates_in_epoch(training.span)}, "
            f"loss {means['loss']:.4f} ({terms}), lr {figures['learning_rate']:.1e}, "
            f"data wait {figures['data_wait']:.0%}, {figures['memory_gb']:.1f} GB"
        )
        self._report(text)

    def validated(self, record: dict[str, Any]) -> None:
        figures = {name: value for name, value in record.items() if isinstance(value, float) and name != "epochs_done"}
        self._scalars("validation", figures, record["step"])

    def picture(self, training: FoldTraining) -> None:
        """Write the epoch's first crops as the network sees them, with its attention maps."""
        crops, self.crops = self.crops, None
        if crops is None or training.trains_backbone_alone:
            return
        network = training.step.network
        was_training = network.training
        network.eval()
        with torch.inference_mode(), autocast(training.precision, training.device):
            attention = network(normalize_crops(crops.to(training.device))).attention
        network.train(was_training)
        maps = attention.float().cpu().numpy() if attention is not None else None
        grid = attention_grid(crops.numpy(), maps)
        self.writer.add_image("crops and attention maps", grid, training.updates, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.tracker is not None:
            self.tracker.close()
        threading.excepthook = self._excepthook

    def _report(self, text: str = "") -> None:
        if self.is_main:
            self.bar.report(self.fold, self.done, self.samples, text)

    def _scalars(self, group: str, figures: dict[str, float], step: int) -> None:
        named = {f"{group}/{name}": value for name, value in figures.items()}
        for name, value in named.items():
            if self.writer is not None:
                self.writer.add_scalar(name, value, step)
        if self.tracker is not None:
            self.tracker.log(named, step)


def _leave_to_writer(failure: threading.ExceptHookArgs) -> None:
    """Say nothing of a full disk: the next line that TensorBoard's thread is given raises its error again."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def attention_grid(crops: np.ndarray, attention: np.ndarray | None) -> np.ndarray:
    """((1 + M) H, B W, 3) uint8 RGB: crops (B, H, W, 3) in the first row, then a row for each map (B, M, h, w), its
    values, scaled to its own maximum, as colours over the darkened crops."""
    rows = [np.concatenate(list(crops), axis=1)]
    height, width = crops.shape[1:3]
    inferno = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_INFERNO)
    colours = inferno.reshape(256, 3)[:, ::-1].astype(np.float32)  # RGB
    for maps in np.moveaxis(attention, 1, 0) if attention is not None else ():
        top = np.maximum(maps.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
        large = torch.nn.functional.interpolate(
            torch.from_numpy(np.ascontiguousarray(maps / top))[:, None].float(), (height, width), mode="bilinear"
        )
        indices = (large[:, 0].numpy() * 255).round().astype(np.uint8)
        over = (0.45 * crops + 0.55 * colours[indices]).round().astype(np.uint8)
        rows.append(np.concatenate(list(over), axis=1))
    return np.concatenate(rows, axis=0)
