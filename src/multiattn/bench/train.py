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
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from multiattn.bench.train_sides import (
    PIECES,
    SIDES,
    Evaluation,
    Task,
    Training,
    Work,
    measured_ceiling,
    network_flops,
    wait_for,
    write_weights,
)
from multiattn.config import Experiment
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.processor import WAIT_POLICY

SPLITS = 3
"""Extra repeats in which the pieces of a step are timed one by one."""
RATE_REPEATS = 5
FED_UPDATES = 20


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One side's figures.

    Attributes:
        name: ours, compiled or plain.
        precision: bf16, fp16 or fp32.
        seconds: of each repeat.
        peak_bytes: the most memory the process had at once: resident on a CPU, allocated on a GPU.
        first: what the warm-up computed: the loss, or the logits.
        ceiling: FLOP/s of a large matrix product on this device in this precision.
        pieces: seconds of each of `PIECES`, medians; empty where they were not timed.
    """

    name: str
    precision: str
    seconds: tuple[float, ...]
    peak_bytes: int
    first: tuple[float, ...]
    ceiling: float
    pieces: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the repeats in seconds."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """The fastest repeat in seconds: what a machine that others use as well shows now and then."""
        return min(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All sides, ours first and plain last, and where they ran.

    Attributes:
        flops: counted in one repeat, see `network_flops`.
        fed: crops a second of our side, fed from crops on the disk and with a ready batch; None if not asked for.
    """

    sides: tuple[Timing, ...]
    flops: int
    machine: str
    fed: tuple[float, float] | None = None

    @property
    def ours(self) -> Timing:
        """Our side, not compiled."""
        return self.sides[0]

    @property
    def plain(self) -> Timing:
        """The plain side."""
        return self.sides[-1]

    @property
    def difference(self) -> float:
        """The largest difference of what the warm-ups of our side and the plain one computed."""
        return max(abs(a - b) for a, b in zip(self.ours.first, self.plain.first, strict=True))


def compare(
    experiment: Experiment,
    work: Work,
    *,
    batch_size: int,
    repeats: int,
    device: torch.device,
    faces: Path | None = None,
) -> Comparison:
    """Time both sides; with `experiment.compile`, also ours through torch.compile.

    Args:
        work: `train` for a step (clean pass, AGDA pass, backward, optimiser), `infer` for an eval forward.
        repeats: timed ones, after one warm-up.
        faces: a faces folder to feed our training from as well.

    Raises:
        ValueError: fewer than one repeat, a batch that cannot be trained on, a precision that is not torch's, or a side
            that ended early.
    """
    if repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, found {repeats}.")
    names = ["ours", *(["compiled"] if experiment.compile else []), "plain"]
    with _prepared(experiment, work, batch_size, device, faces) as task, contextlib.ExitStack() as stack:
        sides = [stack.enter_context(_process(name, task)) for name in names]
        firsts = [side.ask("run")[1] for side in sides]
        rounds = [[side.ask("run")[0] for side in sides] for _ in range(repeats)]
        splits = [
            [side.ask("split") if work == "train" and side.name != "compiled" else {} for side in sides]
            for _ in range(SPLITS)
        ]
        peaks = [side.ask("peak") for side in sides]
        ceilings = [side.ask("ceiling") for side in sides]
        fed = sides[0].ask("feed") if faces is not None else None
    timings = tuple(
        Timing(
            name=name,
            precision="fp32" if name == "plain" else task.precision,
            seconds=seconds,
            peak_bytes=peak,
            first=first,
            ceiling=ceiling,
            pieces={piece: statistics.median(one[piece] for one in pieces) for piece in pieces[0]},
        )
        for name, seconds, peak, first, ceiling, pieces in zip(
            names, zip(*rounds, strict=True), peaks, firsts, ceilings, zip(*splits, strict=True), strict=True
        )
    )
    return Comparison(
        sides=timings, flops=network_flops(experiment, work, batch_size), machine=describe_machine(device), fed=fed
    )


def training_rate(experiment: Experiment, *, batch_size: int, device: torch.device) -> float:
    """Crops a second that our training step takes, in a process of its own: the median of a few repeats.

    Raises:
        ValueError: as `compare`.
    """
    with _prepared(experiment, "train", batch_size, device, None) as task, _process("ours", task) as side:
        side.ask("run")
        return batch_size / statistics.median(side.ask("run")[0] for _ in range(RATE_REPEATS))


@contextlib.contextmanager
def _prepared(
    experiment: Experiment, work: Work, batch_size: int, device: torch.device, faces: Path | None
) -> Iterator[Task]:
    if batch_size < 2:
        raise ValueError(f"--batch-size: expected at least 2 (batch normalisation needs two), found {batch_size}.")
    if experiment.precision == "apex-O1":
        raise ValueError("--precision apex-O1: the benchmark has torch's precisions only: bf16, fp16, fp32 or auto.")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "step.pt"
        task = Task(
            experiment=experiment, work=work, batch_size=batch_size, device=device, weights=weights, faces=faces
        )
        write_weights(task)
        yield task


# --- processes ----------------------------------------------------------------------------------------------------


@dataclass
class _Side:
    """The parent's end of a side's process."""

    name: str
    connection: Connection

    def ask(self, what: str) -> Any:
        """What a method of `_Server` returns there.

        Raises:
            ValueError: the process has ended; or what the method raised, a `ValueError` or `OSError`.
        """
        try:
            self.connection.send(what)
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise ValueError(
                f"bench: the process of the side `{self.name}` ended early, see its message above; "
                "without one, memory ran out: take a smaller --batch-size."
            ) from error
        if isinstance(answer, ValueError | OSError):
            raise answer
        return answer


@contextlib.contextmanager
def _process(name: str, task: Task) -> Iterator[_Side]:
    # Spawned, not forked: a fork would share its parent's threads, allocator settings and memory.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, name, task), daemon=False)
    with _waiting_threads(name):
        process.start()
    there.close()
    try:
        yield _Side(name, here)
    finally:
        here.close()
        process.join(timeout=10)
        if process.is_alive():
            process.terminate()
            process.join()


@contextlib.contextmanager
def _waiting_threads(name: str) -> Iterator[None]:
    """OMP_WAIT_POLICY of a side that is started inside: none for the plain one, for ours what this process has.

    Without a policy idle threads spin, the fastest on cores that nobody else wants (2.7 s a step of EfficientNet-B4
    against 5.5 s with sleeping ones, on 2 quiet cores).
    """
    before = os.environ.get(WAIT_POLICY)
    if name == "plain":
        os.environ.pop(WAIT_POLICY, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[WAIT_POLICY] = before


def _serve(connection: Connection, name: str, task: Task) -> None:
    """The life of a side's process."""
    server = _Server(SIDES[name](task), task, checked=name != "plain")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        while True:
            method = getattr(server, connection.recv())
            try:
                answer = method()
            except (ValueError, FileNotFoundError) as error:  # of a faces folder
                answer = error
            connection.send(answer)


class _Server:
    """What a side's process is asked for."""

    def __init__(self, side: Training | Evaluation, task: Task, *, checked: bool) -> None:
        self.side, self.task = side, task
        self.precision = task.precision if checked else "fp32"
        # The first run may wait; a gradient scaler reads from the device whether the gradients were finite.
        self.checked = checked and self.precision != "fp16"
        self.runs = 0

    def run(self) -> tuple[float, tuple[float, ...]]:
        """Seconds of one repeat, and what it computed. It is an error when ours waits for the GPU in the middle."""
        device = self.task.device
        started = time.perf_counter()
        with never_waiting(device) if self.checked and self.runs else contextlib.nullcontext():
            value = self.side.run()
        wait_for(device)
        seconds = time.perf_counter() - started
        self.runs += 1
        return seconds, tuple(value.float().flatten().tolist())

    def split(self) -> dict[str, float]:
        """Seconds of each of `PIECES`."""
        return self.side.split()

    def feed(self) -> tuple[float, float]:
        """Crops a second, fed from crops and with a ready batch."""
        return self.side.feed(FED_UPDATES)

    def peak(self) -> int:
        """Bytes of memory, at most so far."""
        return peak_memory(self.task.device)

    def ceiling(self) -> float:
        """FLOP/s of a large matrix product in this side's precision."""
        return measured_ceiling(self.task.device, self.precision)


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


def peak_memory(device: torch.device) -> int:
    """Bytes this process had at most: allocated on a GPU, else resident.

    From Linux's process table: `getrusage` would hand a child its parent's peak.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


# --- what is printed ----------------------------------------------------------------------------------------------


def comparison_lines(comparison: Comparison, batch_size: int) -> list[str]:
    """The table of all sides, the pieces of a step, what was counted, and the rate when fed."""
    ours, plain = comparison.ours, comparison.plain
    lines = [f"{'':<10}{'precision':>9}{'fastest, s':>12}{'median':>8}{'slowest':>9}{'crops/s':>9}{'peak, MiB':>11}"]
    lines[0] += f"{'of ceiling':>12}"
    for side in comparison.sides:
        lines.append(
            f"{side.name:<10}{side.precision:>9}{side.fastest:>12.3f}{side.median:>8.3f}{max(side.seconds):>9.3f}"
            f"{batch_size / side.median:>9.2f}{side.peak_bytes / 2**20:>11,.0f}"
            f"{comparison.flops / side.median / side.ceiling:>12.0%}"
        )
    for side in comparison.sides[:-1]:
        lines.append(
            f"{side.name + '/plain':<19}{side.fastest / plain.fastest:>12.3f}{side.median / plain.median:>8.3f}"
            f"{'':>9}{plain.median / side.median:>8.2f}x{side.peak_bytes / plain.peak_bytes:>11.3f}"
        )
    pieces = [side for side in comparison.sides if side.pieces]
    if pieces:
        lines += ["", f"{'a step, s':<19}" + "".join(f"{piece:>11}" for piece in PIECES)]
        lines += [f"{side.name:<19}" + "".join(f"{side.pieces[piece]:>11.4f}" for piece in PIECES) for side in pieces]
    ceilings = " and ".join(
        f"{one.ceiling / 1e9:,.0f} in {one.precision}" for one in {o.precision: o for o in (ours, plain)}.values()
    )
    lines += ["", f"{comparison.flops / 1e9:,.0f} GFLOP in convolutions and products; ceiling: {ceilings} GFLOP/s"]
    if comparison.fed is not None:
        fed, ready = comparison.fed
        lines.append(f"ours fed from crops: {fed:.2f} crops/s, {fed / ready:.1%} of the {ready:.2f} with a ready batch")
    return lines
