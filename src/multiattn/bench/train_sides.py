"""The sides of `multiattn bench train` and `infer`: the network as we run it, with one setting changed, its plain twin
(timm's network with its pooling and one linear layer), and as it is written plainly.

What `multiattn train` and `predict` do to a network before they run it is done here too, and nothing else. Plainly is
what one writes first from the paper: float32 tensors as (B, C, H, W) lie in memory, bilinear attention pooling that
forms the products F_k = F (x) A_k and sums them, one backward for the losses of both passes. Layers, weights, losses,
AGDA and optimiser are the very same objects, and so are the numbers, to rounding. Of a training step, what is done
beside it (moving average, meter of the losses, schedule) is left out on both sides.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from multiattn.bench.options import Beside
from multiattn.config import Experiment
from multiattn.experiments import baseline
from multiattn.model.attention import MEAN_FLOOR, resize_maps, standardize, unit_rows
from multiattn.model.exported import OnnxNetwork, quantize, write_network
from multiattn.model.network import MultiAttentionNet, NetworkOutput
from multiattn.model.precision import training_precision
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import fold_batch_norms
from multiattn.runtime.devices import autocast, forbid_tf32, seed_everything
from multiattn.runtime.processor import peak_memory, tune_cpu
from multiattn.training.data.crops import FACE_COLUMNS, FoldCrops, training_loader
from multiattn.training.engine.loop import update
from multiattn.training.engine.optimizer import make_optimizer
from multiattn.training.engine.step import TrainingStep, backward_passes, set_train_mode, set_trainable
from multiattn.video.extraction.faces_folder import read_faces_folder

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices: large enough to count, small enough to take a moment."""
PRODUCTS = 5
COPIED_BYTES = {"cpu": 2**27, "cuda": 2**30}
"""Size of the tensor whose copies reach the ceiling of the memory: no cache holds it."""

Work = Literal["train", "infer"]
PIECES = ("data", "forward", "AGDA", "backward", "optimiser")
"""Pieces of a step. `data` is a ready batch on its way to the device, and its normalisation (for each pass); `forward`
both passes and their losses; `AGDA` the making of the degraded copies."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of all sides."""

    experiment: Experiment  # its last phase is the one that is timed
    work: Work
    device: torch.device
    weights: Path  # a state dict of its `TrainingStep`, written by `write_weights`
    faces: Path | None = None  # a faces folder whose crops our side is also fed from

    @functools.cached_property
    def precision(self) -> str:
        """Our side's: bf16, fp16 or fp32, as `multiattn train` would take it."""
        return training_precision(self.experiment, self.device).name

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
        count, size = self.experiment.data.batch_size, self.experiment.data.image_size
        crops = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        labels = torch.arange(count) % 2
        return (crops.pin_memory(), labels.pin_memory()) if self.device.type == "cuda" else (crops, labels)


class Side:
    """A network as one side runs it; its methods are called in the side's process."""

    run: Callable[[], Tensor]
    """One repeat, and what it computes, which may not be ready yet."""

    def __init__(self, task: Task, *, plain: bool) -> None:
        self.task, self.plain, self.batch = task, plain, task.batch()
        self.precision = "fp32" if plain else task.precision
        self.context = partial(autocast, self.precision, task.device)
        self.runs = 0

    def timed(self) -> tuple[float, tuple[float, ...]]:
        """Seconds of one repeat, and what it computed; an error where our side waits for the GPU in the middle."""
        # The first run may wait; a gradient scaler reads from the device whether the gradients were finite.
        is_checked = self.runs > 0 and not self.plain and self.precision != "fp16"
        started = time.perf_counter()
        with never_waiting(self.task.device) if is_checked else contextlib.nullcontext():
            value = self.run()
        wait_for(self.task.device)
        seconds = time.perf_counter() - started
        self.runs += 1
        return seconds, tuple(value.float().flatten().tolist())

    def facts(self) -> dict[str, Any]:
        """The fields of its `Timing` that it knows: precision, peak memory so far, and the ceilings."""
        peak_bytes, ceiling = peak_memory(self.task.device), measured_ceiling(self.task.device, self.precision)
        bandwidth = measured_bandwidth(self.task.device)
        return {"precision": self.precision, "peak_bytes": peak_bytes, "ceiling": ceiling, "bandwidth": bandwidth}


class Evaluation(Side):
    """An eval forward of one batch."""

    def __init__(self, network: nn.Module, task: Task, *, plain: bool) -> None:
        super().__init__(task, plain=plain)
        self.network = network.eval()

    def run(self) -> Tensor:
        """The logits."""
        with torch.inference_mode(), self.context():
            return self.network(normalize_crops(self.batch[0].to(self.task.device, non_blocking=True))).logits


class Training(Side):
    """Updates of the experiment's last phase, as `training.engine.loop` does them."""

    def __init__(self, step: TrainingStep, task: Task, *, plain: bool) -> None:
        super().__init__(task, plain=plain)
        self.step, self.phase = step, task.experiment.schedule[-1]
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=self.precision == "fp16")
        set_trainable(step, self.phase)
        set_train_mode(step, step, self.phase)
        self.optimizer = make_optimizer(step, self.phase.optim, fused=not plain)
        seed_everything(task.experiment.seed)  # all sides drop the same paths and draw the same maps

    def run(self) -> Tensor:
        """The loss of one update with the random batch."""
        return self.update(*self.batch, watch=_Stopwatch(None))

    def update(self, crops: Tensor, labels: Tensor, *, watch: "_Stopwatch") -> Tensor:
        """The loss of one update with a batch from the host's memory."""
        device = self.task.device
        watch.turn_to("data")
        crops, labels = crops.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        watch.turn_to("optimiser")
        self.optimizer.zero_grad(set_to_none=True)
        if self.plain:
            terms = joint_backward(self.step, crops, labels, degrade=self.phase.agda)
        else:
            how = {"scaler": self.scaler, "context": self.context, "degrade": self.phase.agda}
            terms = backward_passes(self.step, self.step, crops, labels, **how)
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
        fed = endless(_loader(self.task))
        before = self._rate(itertools.repeat(self.batch), updates)
        self._rate(fed, ahead + 1)
        found = self._rate(fed, updates)
        return found, max(before, self._rate(itertools.repeat(self.batch), updates))

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
    faces, labels, videos = labelled_faces(task.faces)
    table = faces[["video_id", "frame_index", "track", "crop"]].assign(label=labels, face=np.arange(len(faces)))
    table = table[labels >= 0].reset_index(drop=True)
    crops = FoldCrops(task.faces, table, table.iloc[:0], videos.iloc[:0], faces, videos)
    return training_loader(crops, task.experiment.data, seed=task.experiment.seed, rank=0, world_size=1)


def labelled_faces(folder: Path) -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """The `faces` table of a faces folder, the label (N,) of each row (-1: unknown), and the `videos` table."""
    faces, _, videos = read_faces_folder(folder, columns=FACE_COLUMNS)
    labels = faces["video_id"].map(videos.set_index("video_id")["label"]).fillna(-1).to_numpy(dtype=np.int64)
    return faces, labels, videos


def endless(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after the other."""
    for epoch in itertools.count():
        loader.batch_sampler.epoch = epoch
        yield from loader


def _ours(task: Task, *, compiled: bool = False, nchw: bool = False, benchmark: bool = False) -> Side:
    """As `multiattn train` and `predict` run it on this device, but for what is asked for."""
    on_cpu = task.device.type == "cpu"
    if on_cpu:
        tune_cpu()  # before the first parallel work: threads that exist already would keep their denormals
    forbid_tf32()
    torch.backends.cudnn.benchmark = benchmark
    step = task.load()
    if nchw:
        use_nchw(step)
    network = fold_batch_norms(step.network) if on_cpu and task.work == "infer" else step.network
    if compiled:
        network.compile()
    return Evaluation(network, task, plain=False) if task.work == "infer" else Training(step, task, plain=False)


def _twin(task: Task) -> Side:
    """The plain twin, run as ours."""
    task = dataclasses.replace(
        task, experiment=baseline(task.experiment), weights=task.weights.with_name(f"twin {task.weights.name}")
    )
    write_weights(task)
    return _ours(task)


def _exported(task: Task, *, precision: str = "fp32") -> Side:
    """Our network as `predict --runtime onnxruntime` runs it; in int8 calibrated on the batch, for its time alone."""
    tune_cpu()
    path = task.weights.with_suffix(f".{precision}.onnx")
    network = fold_batch_norms(task.load().network)
    write_network(network, task.experiment.data.image_size, path)
    if precision == "int8":
        exact, path = path, path.with_stem("quantized")
        quantize(exact, path, [normalize_crops(task.batch()[0]).contiguous().numpy()], name="images")
    side = Evaluation(OnnxNetwork(path, threads=torch.get_num_threads()), task, plain=False)
    side.precision = precision
    return side


def _plain(task: Task) -> Side:
    """Float32, NCHW, materialised pooling, one backward, plain Adam; nothing done to the process, whose convolutions
    thus take TF32 on a GPU."""
    step = make_plain(task.load())
    return Evaluation(step.network, task, plain=True) if task.work == "infer" else Training(step, task, plain=True)


SIDES: dict[str, Callable[[Task], Side]] = {
    "ours": _ours,
    "compiled": partial(_ours, compiled=True),
    "nchw": partial(_ours, nchw=True),
    "cudnn-benchmark": partial(_ours, benchmark=True),
    "twin": _twin,
    "onnxruntime": _exported,
    "onnxruntime-int8": partial(_exported, precision="int8"),
    "plain": _plain,
}
if set(SIDES) != {"ours", *get_args(Beside), "plain"}:
    raise TypeError(f"Beside lists {', '.join(get_args(Beside))}; the sides are {', '.join(SIDES)}.")


def use_nchw(step: TrainingStep) -> None:
    """Lay weights and images out in memory in the order of their axes."""
    for value in (*step.parameters(), *step.buffers()):
        # A copy into new memory: `contiguous()` keeps the channels-last strides of a 1x1 kernel, and they decide which
        # layout a convolution works in.
        value.data = torch.empty(value.shape, dtype=value.dtype, device=value.device).copy_(value)
    step.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))


def make_plain(step: TrainingStep) -> TrainingStep:
    """Turn a training step into the plain one, in place: weights and images NCHW, pooling materialised."""
    use_nchw(step)
    if isinstance(step.network, MultiAttentionNet):
        step.network.__class__ = PlainMultiAttentionNet
    return step


def joint_backward(step: TrainingStep, crops: Tensor, labels: Tensor, *, degrade: bool = True) -> dict[str, Tensor]:
    """As `training.engine.step.backward_passes`, but with one backward of the sum of both passes."""
    clean = step(crops, labels)
    terms = dict(clean.terms)
    if degrade and step.augmentation is not None:
        degraded = step(crops, labels, before=clean)
        terms |= {**degraded.terms, "loss": clean.terms["loss"] + degraded.terms["loss"]}
    terms["loss"].backward()
    return {name: value.detach() for name, value in terms.items()}


class PlainMultiAttentionNet(MultiAttentionNet):
    """The same layers, with every F_k formed in memory."""

    def forward(self, images: Tensor) -> NetworkOutput:
        config, align = self.config, self.config.align_corners
        stages, last = self.backbone(images)
        attention = self.attention(stages[config.attention_stage])
        textural, pooled = self.texture(self.texture_map(images, stages), attention)
        matrix = unit_rows(summed_products(textural, attention, align_corners=align))  # P (B, M, C_F)
        kept = self.part_dropout(attention.new_ones(*attention.shape[:2], 1))
        total = (attention * kept[..., None]).sum(dim=1, keepdim=True)  # A_sum (B, 1, h, w)
        if config.global_pool == "unit":
            vector = unit_rows(summed_products(last, total, align_corners=align)).squeeze(1)  # G (B, C_last)
        else:
            total = resize_maps(total, last.shape[-2:], align_corners=align) + MEAN_FLOOR
            vector = summed_products(last, total / total.sum(dim=(-2, -1), keepdim=True)).squeeze(1)
        parts = unit_rows(summed_products(standardize(pooled) if config.standardize_parts else pooled, attention))
        return NetworkOutput(self.classifier(matrix * kept, vector), attention, parts)


def summed_products(features: Tensor, attention: Tensor, *, align_corners: bool = False) -> Tensor:
    """As `attention_sums`, with the (B, M, C, H, W) tensor of all F_k in memory."""
    weights = resize_maps(attention, features.shape[-2:], align_corners=align_corners)
    shared = features[:, None] if features.ndim == 4 else features
    return (shared * weights[:, :, None]).sum(dim=(-2, -1))


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


@contextlib.contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """Make it an error that the host waits for this GPU, or copies from pageable memory, inside."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def measured_ceiling(device: torch.device, precision: str) -> float:
    """Floating point operations a second of a product of two large square matrices in bf16, fp16 or fp32.

    Of int8 it is float32's. The fastest of a few, as `torch.mm` and as a point-wise convolution: on a CPU they are two
    libraries' work, and on AMD's processors the first of them does without AVX-512 in float32.
    """
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(DTYPES.get(precision, torch.float32)) for _ in range(2))
    image = left.view(1, side // 32, 32, side).permute(0, 3, 1, 2)  # (1, C, H, W), channels last in memory
    kernel = right[:, :, None, None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = min(_fastest(lambda: left @ right, device), _fastest(lambda: F.conv2d(image, kernel), device))
    return 2 * side**3 / seconds


def measured_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy inside the device's memory reads and writes: the fastest of a few."""
    source = torch.zeros(COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device)


def _fastest(product: Callable[[], Tensor], device: torch.device) -> float:
    taken = []
    for _ in range(PRODUCTS + 1):
        started = time.perf_counter()
        product()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def wait_for(device: torch.device) -> None:
    """Until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
