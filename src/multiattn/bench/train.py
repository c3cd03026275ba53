"""Time and memory of a training step, or of an eval forward: as we run it beside the same network written plainly."""

import contextlib
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from multiattn.bench.harness import SideProcess, take_turns
from multiattn.bench.train_sides import PIECES, SIDES, Task, Work, write_weights
from multiattn.config import Experiment
from multiattn.model.describe import describe_network
from multiattn.model.network import make_network
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.text_tables import terminal_table

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
    pieces: dict[str, float] = field(default_factory=dict)  # median seconds of each of `PIECES`, where they were timed

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All sides, ours first and plain last, and where they ran."""

    sides: tuple[Timing, ...]
    flops: int
    machine: str
    fed: tuple[float, float] | None = None  # crops a second of ours, from the disk and with a ready batch

    @property
    def difference(self) -> float:
        """The largest difference of what the warm-ups of our side and the plain one computed."""
        return max(abs(a - b) for a, b in zip(self.sides[0].first, self.sides[-1].first, strict=True))


def compare(
    experiment: Experiment, work: Work, *, repeats: int, device: torch.device, faces: Path | None = None
) -> Comparison:
    """Time both sides, after one warm-up each; with `experiment.compile`, also ours through torch.compile.

    With a faces folder our training is fed from its crops as well.

    Raises:
        ValueError: fewer than one repeat, a precision that is not torch's, or a side that ended early.
    """
    if repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, found {repeats}.")
    names = ["ours", *(["compiled"] if experiment.compile else []), "plain"]
    with _prepared(experiment, work, device, faces) as task, contextlib.ExitStack() as stack:
        sides = [stack.enter_context(SideProcess(name, SIDES[name], task)) for name in names]
        firsts = [side.ask("timed")[1] for side in sides]
        runs = take_turns([partial(side.ask, "timed") for side in sides], repeats)
        split = [side for side in sides if work == "train" and side.name != "compiled"]
        splits = dict(zip(split, take_turns([partial(side.ask, "split") for side in split], SPLITS), strict=True))
        timings = tuple(
            Timing(
                name=side.name,
                seconds=tuple(seconds for seconds, _ in of_side),
                first=first,
                pieces={
                    name: statistics.median(one[name] for one in splits[side]) for name in PIECES if side in splits
                },
                **side.ask("facts"),
            )
            for side, first, of_side in zip(sides, firsts, runs, strict=True)
        )
        fed = sides[0].ask("feed", FED_UPDATES) if faces is not None else None
    return Comparison(sides=timings, flops=network_flops(experiment, work), machine=describe_machine(device), fed=fed)


def training_rate(experiment: Experiment, *, device: torch.device) -> float:
    """Crops a second that our training step takes, in a process of its own: the median of a few repeats.

    Raises:
        ValueError: as `compare`.
    """
    with _prepared(experiment, "train", device, None) as task, SideProcess("ours", SIDES["ours"], task) as side:
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


def comparison_lines(comparison: Comparison, batch_size: int) -> list[str]:
    """The table of all sides, the pieces of a step, what was counted, and the rate when fed."""
    ours, plain = comparison.sides[0], comparison.sides[-1]
    rows = [("", "precision", "fastest, s", "median", "slowest", "crops/s", "peak, MiB", "of ceiling")]
    for side in comparison.sides:
        seconds = [f"{one:.3f}" for one in (min(side.seconds), side.median, max(side.seconds))]
        peak, share = f"{side.peak_bytes / 2**20:,.0f}", f"{comparison.flops / side.median / side.ceiling:.0%}"
        rows.append((side.name, side.precision, *seconds, f"{batch_size / side.median:.2f}", peak, share))
    for side in comparison.sides[:-1]:
        ratios = [f"{min(side.seconds) / min(plain.seconds):.3f}", f"{side.median / plain.median:.3f}", ""]
        rate, peak = f"{plain.median / side.median:.2f}x", f"{side.peak_bytes / plain.peak_bytes:.3f}"
        rows.append((f"{side.name}/plain", "", *ratios, rate, peak, ""))
    lines = terminal_table(rows, right=range(1, 8)).splitlines()
    split = (side for side in comparison.sides if side.pieces)
    if pieces := [(side.name, *(f"{side.pieces[piece]:.4f}" for piece in PIECES)) for side in split]:
        lines += ["", *terminal_table([("a step, s", *PIECES), *pieces], right=range(1, 6)).splitlines()]
    ceilings = " and ".join(
        f"{one.ceiling / 1e9:,.0f} in {one.precision}" for one in {o.precision: o for o in (ours, plain)}.values()
    )
    lines += ["", f"{comparison.flops / 1e9:,.0f} GFLOP in convolutions and products; ceiling: {ceilings} GFLOP/s"]
    if comparison.fed is not None:
        fed, ready = comparison.fed
        lines.append(f"ours fed from crops: {fed:.2f} crops/s, {fed / ready:.1%} of the {ready:.2f} with a ready batch")
    return lines
