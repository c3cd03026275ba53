"""One training step, or one eval forward, as we run it and written plainly, side by side.

Each side has a process of its own, started fresh, so that settings of the allocator stay apart and the peak memory is
its own. They take turns (ours, plain, ours, plain, ...), so that a machine that gets busier slows down both.
"""

import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from multiattn.config import Experiment
from multiattn.model.cpu_layers import speed_up_cpu_training
from multiattn.model.folding import fold_batch_norms
from multiattn.model.network import NetworkOutput
from multiattn.model.preprocess import normalize_crops
from multiattn.runtime import (
    WAIT_POLICY,
    autocast,
    describe_machine,
    resolve_precision,
    seed_everything,
    tune_cpu,
)
from multiattn.training.optimizer import make_optimizer
from multiattn.training.phases import set_train_mode, set_trainable
from multiattn.training.plain_network import joint_backward, make_plain
from multiattn.training.step import TrainingStep, backward_passes

Work = Literal["train", "infer"]
Run = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What both sides do.

    Attributes:
        experiment: its last phase is the one that is timed.
        weights: a state dict of its `TrainingStep`, written by `write_weights`.
    """

    experiment: Experiment
    work: Work
    batch_size: int
    device: torch.device
    weights: Path

    def load(self) -> TrainingStep:
        """The step with its weights, on the device."""
        step = TrainingStep(self.experiment, load_weights=False)
        step.load_state_dict(torch.load(self.weights, weights_only=True))
        return step.to(self.device)

    def batch(self) -> tuple[Tensor, Tensor]:
        """Random crops (B, H, W, 3) uint8, the same on both sides, and labels (B,), real and fake in turn."""
        generator = torch.Generator().manual_seed(self.experiment.seed)
        size = self.experiment.data.image_size
        crops = torch.randint(0, 256, (self.batch_size, size, size, 3), dtype=torch.uint8, generator=generator)
        return crops.to(self.device), (torch.arange(self.batch_size) % 2).to(self.device)


@dataclass(frozen=True)
class Timing:
    """One side's figures.

    Attributes:
        seconds: of each repeat.
        peak_bytes: the most memory the process had at once: resident on a CPU, allocated on a GPU.
        first: what the warm-up computed: the loss, or the logits.
    """

    seconds: tuple[float, ...]
    peak_bytes: int
    first: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the repeats in seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """Both sides, and where they ran."""

    ours: Timing
    plain: Timing
    precision: str
    machine: str

    @property
    def time_ratio(self) -> float:
        """Our median over the plain one's."""
        return self.ours.median / self.plain.median

    @property
    def memory_ratio(self) -> float:
        """Our peak over the plain one's."""
        return self.ours.peak_bytes / self.plain.peak_bytes

    @property
    def difference(self) -> float:
        """The largest difference of what the two warm-ups computed."""
        return max(abs(a - b) for a, b in zip(self.ours.first, self.plain.first, strict=True))


def compare(experiment: Experiment, work: Work, *, batch_size: int, repeats: int, device: torch.device) -> Comparison:
    """Time both sides.

    Args:
        work: `train` for a step (clean pass, AGDA pass, backward, optimiser), `infer` for an eval forward.
        repeats: timed ones, after one warm-up.

    Raises:
        ValueError: fewer than one repeat, a batch that cannot be trained on, or a side that ended early.
    """
    if repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, found {repeats}.")
    if batch_size < 2:
        raise ValueError(f"--batch-size: expected at least 2 (batch normalisation needs two), found {batch_size}.")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        task = Task(
            experiment=experiment,
            work=work,
            batch_size=batch_size,
            device=device,
            weights=Path(folder) / "step.pt",
        )
        write_weights(task)
        sides = [stack.enter_context(_process(name, task)) for name in SIDES]
        firsts = [side.ask() for side in sides]
        rounds = [[side.ask()[0] for side in sides] for _ in range(repeats)]
        peaks = [side.ask(ends=True) for side in sides]
    ours, plain = (
        Timing(seconds, peak, first[1])
        for seconds, peak, first in zip(zip(*rounds, strict=True), peaks, firsts, strict=True)
    )
    return Comparison(ours, plain, resolve_precision(experiment.precision, device), describe_machine(device))


def _ours(task: Task) -> Run:
    """Our side: the network as `multiattn train` and `predict` run it on this device.

    What those do to a network before they run it stands here too, and nothing else does.
    """
    if task.device.type == "cpu":
        tune_cpu()  # before the first parallel work: threads that exist already would keep their denormals
    step = task.load()
    precision = resolve_precision(task.experiment.precision, task.device)
    context = partial(autocast, precision, task.device)
    on_cpu = task.device.type == "cpu"
    if task.work == "infer":
        return _forward(fold_batch_norms(step.network) if on_cpu else step.network, task, context)
    if on_cpu:
        step = speed_up_cpu_training(step)
    scaler = torch.amp.GradScaler(task.device.type, enabled=precision == "fp16")
    passes = partial(backward_passes, step, step, scaler=scaler, context=context)
    return _training(step, task, passes, scaler)


def _plain(task: Task) -> Run:
    """The other side: float32, NCHW, materialised pooling, one backward, plain Adam; nothing done to the process."""
    step = make_plain(task.load())
    if task.work == "infer":
        return _forward(step.network, task, contextlib.nullcontext)
    scaler = torch.amp.GradScaler(task.device.type, enabled=False)
    return _training(step, task, partial(joint_backward, step), scaler, fused=False)


SIDES: dict[str, Callable[[Task], Run]] = {"ours": _ours, "plain": _plain}


def _forward(network: nn.Module, task: Task, context: Callable[[], contextlib.AbstractContextManager]) -> Run:
    network.eval()
    crops, _ = task.batch()

    def run() -> Tensor:
        with torch.inference_mode(), context():
            output: NetworkOutput = network(normalize_crops(crops))
        return output.logits

    return run


def _training(
    step: TrainingStep,
    task: Task,
    passes: Callable[..., dict[str, Tensor]],
    scaler: torch.amp.GradScaler,
    *,
    fused: bool = True,
) -> Run:
    """One update of the experiment's last phase, as `training.loop` does it."""
    phase = task.experiment.schedule[-1]
    set_trainable(step, phase)
    set_train_mode(step, step, phase)
    optimizer = make_optimizer(step, phase.optim, fused=fused)
    crops, labels = task.batch()
    seed_everything(task.experiment.seed)  # both sides drop the same paths and draw the same maps

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        terms = passes(crops, labels, degrade=phase.agda)
        if phase.optim.clip_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(step.parameters(), phase.optim.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        return terms["loss"]

    return run


def write_weights(task: Task) -> None:
    """Draw the weights both sides start from; running statistics are those of the task's own crops.

    Untrained statistics (mean 0, variance 1) would normalise nothing in eval mode: activations would shrink from layer
    to layer, and the plain side would be timed on denormal numbers that no trained network has.
    """
    seed_everything(task.experiment.seed)
    step = TrainingStep(task.experiment, load_weights=task.experiment.model.weights is not None)
    settle_statistics(step.network, normalize_crops(task.batch()[0].cpu()))
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


@dataclass
class _Side:
    """The parent's end of a side's process."""

    name: str
    connection: Connection

    def ask(self, *, ends: bool = False) -> tuple[float, tuple[float, ...]] | int:
        """Another repeat: seconds and what it computed; with `ends` the peak memory in bytes, and the process ends."""
        try:
            self.connection.send("end" if ends else "run")
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise ValueError(
                f"bench: the process of the side `{self.name}` ended early, see its message above; "
                "without one, memory ran out: take a smaller --batch-size."
            ) from error


@contextlib.contextmanager
def _process(name: str, task: Task) -> Iterator[_Side]:
    # Spawned, not forked: a fork would share its parent's threads, allocator settings and memory.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, task), daemon=True)
    before = os.environ.pop(WAIT_POLICY, None)
    if name == "ours":  # what turns the kernels for CPUs on; the plain side has the default
        os.environ[WAIT_POLICY] = "PASSIVE"
    process.start()
    os.environ.pop(WAIT_POLICY, None)
    if before is not None:
        os.environ[WAIT_POLICY] = before
    there.close()
    try:
        yield _Side(name, here)
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()
            process.join()


def _serve(connection: Connection, name: str, task: Task) -> None:
    """The life of a side's process."""
    run = SIDES[name](task)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        while connection.recv() == "run":
            connection.send(_timed(run, task.device))
        connection.send(peak_memory(task.device))


def _timed(run: Run, device: torch.device) -> tuple[float, tuple[float, ...]]:
    started = time.perf_counter()
    value = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, tuple(value.float().flatten().tolist())


def peak_memory(device: torch.device) -> int:
    """Bytes this process had at most: allocated on a GPU, else resident.

    From Linux's process table: `getrusage` would hand a child its parent's peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
