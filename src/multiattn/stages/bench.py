"""Time and memory of a training step or an eval forward, beside the same network written plainly.

    multiattn bench train dfdc_b4 --batch-size 4
    multiattn bench infer dfdc_b4 --batch-size 4 --repeats 10

Plainly means (B, C, H, W) tensors in float32, attention pooling that forms every product, one backward for both
passes, and a process as Python starts it. Random crops, the same random weights and seed on both sides; each side in a
process of its own, in turns, the median after one warm-up.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from multiattn.command_line import Inline, Positional, parse, results
from multiattn.config import Experiment
from multiattn.experiments import get_experiment
from multiattn.runtime import pick_device
from multiattn.training.bench import Comparison, compare

DEFAULT = "dfdc_b4"
WHAT = {"train": "training step (clean pass, AGDA pass, backward, optimiser)", "infer": "eval forward"}


def _options_class(default: Experiment) -> type:
    """The options, with the settings of the experiment that was named as defaults."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `multiattn bench`."""

        work: Positional[Literal["train", "infer"]]
        """A training step or an eval forward."""
        experiment: Positional[str] = DEFAULT
        """A function of experiments.py."""
        batch_size: int = 4
        """Crops in a batch, at least 2."""
        repeats: int = 5
        """Timed repeats of each side, after one warm-up."""
        device: str = "cpu"
        """cpu, cuda or auto."""
        tiny: bool = False
        """The experiment's tiny variant."""
        settings: Inline[Experiment] = dataclasses.field(default_factory=lambda: default)

    return Options


def main(argv: list[str]) -> None:
    """Run the stage."""
    named = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else DEFAULT
    default = get_experiment(named, tiny="--tiny" in argv)
    options = parse(_options_class(default), argv, stage="bench", doc=__doc__)
    if options.experiment != named:
        raise ValueError(f"the experiment comes second: multiattn bench {options.work} {options.experiment} ...")
    experiment, device = options.settings, pick_device(options.device)
    comparison = compare(
        experiment, options.work, batch_size=options.batch_size, repeats=options.repeats, device=device
    )
    results(
        f"{experiment.name}, {WHAT[options.work]}",
        f"batch {options.batch_size} at {experiment.data.image_size} px, {comparison.precision} (plain: fp32), "
        f"{options.repeats} repeats",
        comparison.machine,
        "",
        *_table(comparison, options.batch_size),
        "",
        f"{'the loss' if options.work == 'train' else 'logits'} of the first run: "
        f"the sides differ by at most {comparison.difference:.1e}",
    )


def _table(comparison: Comparison, batch_size: int) -> list[str]:
    lines = [f"{'':<8}{'median, s':>12}{'fastest':>10}{'slowest':>10}{'crops/s':>10}{'peak memory, MiB':>20}"]
    for name in ("ours", "plain"):
        side = getattr(comparison, name)
        lines.append(
            f"{name:<8}{side.median:>12.3f}{min(side.seconds):>10.3f}{max(side.seconds):>10.3f}"
            f"{batch_size / side.median:>10.2f}{side.peak_bytes / 2**20:>20,.0f}"
        )
    lines.append(f"{'ratio':<8}{comparison.time_ratio:>12.3f}{'':>30}{comparison.memory_ratio:>20.3f}")
    return lines
