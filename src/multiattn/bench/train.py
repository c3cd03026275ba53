"""Time and memory of a training step, or of an eval forward: as we run it beside the same network written plainly."""

import contextlib
import functools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from multiattn.bench.harness import SideProcess, take_turns
from multiattn.bench.options import Beside
from multiattn.bench.train_sides import PIECES, SIDES, Task, Work, write_weights
from multiattn.config import Experiment
from multiattn.experiments import baseline
from multiattn.model.describe import describe_network
from multiattn.model.network import make_network
from multiattn.model.predict import normalize_crops
from multiattn.runtime.devices import autocast, require_exporter
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.text_tables import terminal_table
from multiattn.training.engine.memory import Moved, blank_batch, on_shapes, watch_passes
from multiattn.training.engine.step import TrainingStep

SPLITS = 3
"""Extra repeats in which the pieces of a step are timed one by one."""
RATE_REPEATS = 5
FED_UPDATES = 20
PASS_FORWARDS = 3
"""Cost of forward and backward of a product, in forwards: the gradients of both its factors are products too."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One side's figures."""

    name: str
    precision: str
    seconds: tuple[float, ...]  # of each repeat
    peak_bytes: int  # the most memory the process had at once: resident on a CPU, allocated on a GPU
    first: tuple[float, ...]  # result of the warm-up: the loss, or the logits
    ceiling: float  # FLOP/s of a large matrix product on this device in this precision
    bandwidth: float  # bytes a second that a copy in its memory reads and writes
    flops: int  # of a batch, by `network_flops`
    moved: int  # bytes that a batch reads and writes, by `network_traffic`
    pieces: dict[str, float] = field(default_factory=dict)  # median seconds of each of `PIECES`, where they were timed

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def shares(self) -> tuple[float, float]:
        """Achieved shares of the ceilings of arithmetic and of memory."""
        return self.flops / self.median / self.ceiling, self.moved / self.median / self.bandwidth


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All sides, ours first and plain last, and where they ran."""

    sides: tuple[Timing, ...]
    machine: str
    fed: tuple[float, float] | None = None  # crops a second of ours, from the disk and with a ready batch

    @property
    def difference(self) -> float:
        """The largest difference of what the warm-ups of our side and the plain one computed."""
        return max(abs(a - b) for a, b in zip(self.sides[0].first, self.sides[-1].first, strict=True))


def compare(
    experiment: Experiment,
    work: Work,
    *,
    repeats: int,
    device: torch.device,
    beside: Sequence[Beside] = (),
    faces: Path | None = None,
) -> Comparison:
    """Time all sides, after one warm-up each: ours, those `beside` it, and the plain one.

    With `experiment.compile`, `compiled` is one of them. With a faces folder our training is also fed from its crops.

    Raises:
        ValueError: fewer than one repeat, a precision that is not torch's, or a side that ended early.
    """
    if repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, found {repeats}.")
    if exported := [name for name in beside if name.startswith("onnxruntime")]:
        if work == "train" or device.type != "cpu":
            raise ValueError(f"--beside {exported[0]}: only `multiattn bench infer` has it, and on a CPU alone.")
        require_exporter("onnxruntime")
    names = list(dict.fromkeys(["ours", *(["compiled"] if experiment.compile else []), *beside, "plain"]))
    with _prepared(experiment, work, device, faces) as task, contextlib.ExitStack() as stack:
        sides = [stack.enter_context(SideProcess(name, SIDES[name], task)) for name in names]
        firsts = [side.ask("timed")[1] for side in sides]
        runs = take_turns([partial(side.ask, "timed") for side in sides], repeats)
        split = [side for side in sides if work == "train" and side.name in ("ours", "plain")]
        splits = dict(zip(split, take_turns([partial(side.ask, "split") for side in split], SPLITS), strict=True))
        facts = [side.ask("facts") for side in sides]
        timings = tuple(
            Timing(
                name=side.name,
                seconds=tuple(seconds for seconds, _ in of_side),
                first=first,
                pieces={
                    name: statistics.median(one[name] for one in splits[side]) for name in PIECES if side in splits
                },
                flops=network_flops(_of(side.name, experiment), work),
                moved=network_traffic(_of(side.name, experiment), work, known["precision"]),
                **known,
            )
            for side, first, of_side, known in zip(sides, firsts, runs, facts, strict=True)
        )
        fed = sides[0].ask("feed", FED_UPDATES) if faces is not None else None
    return Comparison(sides=timings, machine=describe_machine(device), fed=fed)


def _of(side: str, experiment: Experiment) -> Experiment:
    return baseline(experiment) if side == "twin" else experiment


def training_rate(experiment: Experiment, *, device: torch.device, faces: Path | None = None) -> float:
    """Crops a second that our training step takes, in a process of its own: the median of a few repeats; with a faces
    folder, when it is fed from its crops.

    Raises:
        ValueError: as `compare`.
    """
    with _prepared(experiment, "train", device, faces) as task, SideProcess("ours", SIDES["ours"], task) as side:
        if faces is not None:
            return side.ask("feed", FED_UPDATES)[0]
        side.ask("timed")
        return experiment.data.batch_size / statistics.median(side.ask("timed")[0] for _ in range(RATE_REPEATS))


@contextlib.contextmanager
def _prepared(experiment: Experiment, work: Work, device: torch.device, faces: Path | None) -> Iterator[Task]:
    if experiment.precision == "apex-O1":
        raise ValueError("--precision apex-O1: the benchmark has torch's precisions only: bf16, fp16, fp32 or auto.")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "step.pt"
        task = Task(experiment=experiment, work=work, device=device, weights=weights, faces=faces)
        write_weights(task)
        yield task


def network_flops(experiment: Experiment, work: str) -> int:
    """Floating point operations of a batch in convolutions and matrix products; a multiply-add counts as two.

    An eval forward counts them once. A training step does three times, and twice that with an AGDA pass: the forward
    and the two products of its backward, of the experiment's last phase. Losses, normalisations, activations, AGDA's
    blur and the optimiser are not counted. Nor does torch's own counter serve for a backward pass: it takes the
    gradient of a depthwise convolution for that of a dense one.
    """
    with torch.device("meta"):
        network = make_network(experiment.model, load_weights=False)
    forward = describe_network(network, experiment.data.image_size).total.flops * experiment.data.batch_size
    if work == "infer":
        return forward
    several = experiment.model.network == "multi-attention" and experiment.model.num_maps > 1
    twice = several and experiment.agda.mode != "none" and experiment.schedule[-1].agda
    return PASS_FORWARDS * forward * (2 if twice else 1)


@functools.cache
def network_traffic(experiment: Experiment, work: Work, precision: str) -> int:
    """Bytes that the operations of a batch read and write, in our form of the network and in that precision.

    Each operation reads its inputs from memory and writes its outputs to it, as without a compiler that joins some: so
    little that compiled code may seem to reach more than the memory does. The optimiser is not counted.
    """
    with torch.device("meta"):
        step = TrainingStep(experiment, load_weights=False)
    if work == "train":
        return watch_passes(step, experiment, Moved(), precision=precision).bytes

    def forward(network: nn.Module) -> None:
        with torch.no_grad(), autocast(precision, torch.device("cpu")):
            network(normalize_crops(blank_batch(experiment.data)[0]))

    return on_shapes(step.network.eval(), forward, Moved()).bytes


def comparison_lines(comparison: Comparison, batch_size: int) -> list[str]:
    """The table of all sides, the pieces of a step, what was counted, and the rate when fed."""
    ours, plain = comparison.sides[0], comparison.sides[-1]
    rows = [("", "precision", "fastest, s", "median", "slowest", "crops/s", "peak, MiB", "of ceiling", "of memory")]
    for side in comparison.sides:
        seconds = [f"{one:.3f}" for one in (min(side.seconds), side.median, max(side.seconds))]
        peak, shares = f"{side.peak_bytes / 2**20:,.0f}", (f"{share:.0%}" for share in side.shares)
        rows.append((side.name, side.precision, *seconds, f"{batch_size / side.median:.2f}", peak, *shares))
    for side in comparison.sides[:-1]:
        ratios = [f"{min(side.seconds) / min(plain.seconds):.3f}", f"{side.median / plain.median:.3f}", ""]
        rate, peak = f"{plain.median / side.median:.2f}x", f"{side.peak_bytes / plain.peak_bytes:.3f}"
        rows.append((f"{side.name}/plain", "", *ratios, rate, peak, "", ""))
    lines = terminal_table(rows, right=range(1, 9)).splitlines()
    split = (side for side in comparison.sides if side.pieces)
    if pieces := [(side.name, *(f"{side.pieces[piece]:.4f}" for piece in PIECES)) for side in split]:
        lines += ["", *terminal_table([("a step, s", *PIECES), *pieces], right=range(1, 6)).splitlines()]
    ceilings = " and ".join(
        f"{one.ceiling / 1e9:,.0f} in {one.precision}" for one in {o.precision: o for o in (ours, plain)}.values()
    )
    lines += ["", f"{ours.flops / 1e9:,.0f} GFLOP in convolutions and products; ceiling: {ceilings} GFLOP/s"]
    lines.append(f"{ours.moved / 1e9:,.1f} GB read and written by ours; memory: {ours.bandwidth / 1e9:,.0f} GB/s")
    if comparison.fed is not None:
        fed, ready = comparison.fed
        lines.append(f"ours fed from crops: {fed:.2f} crops/s, {fed / ready:.1%} of the {ready:.2f} with a ready batch")
    return lines
