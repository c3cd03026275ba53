"""Time and memory of a training step, an eval forward, crops, faces or submit, beside a plain version; of one answer.

    multiattn bench train dfdc_b4 --batch-size 4 --precision bf16
    multiattn bench train dfdc_b4 --device cuda --batch-size 64 --fed-from data/faces --data.num-workers 14
    multiattn bench infer dfdc_b4 --batch-size 4 --repeats 10 --beside nchw onnxruntime onnxruntime-int8
    multiattn bench data --experiment dfdc_b4 --faces data/faces
    multiattn bench data --faces data/faces --packed 6000
    multiattn bench faces --videos-dir /data/dfdc/dfdc_train_part_0
    multiattn bench submit --videos-dir /data/dfdc/dfdc_train_part_0 --runs runs/dfdc_b4
    multiattn bench score --clip clip.mp4 --runtimes torch onnxruntime
    multiattn bench gpu --out data/gpu

A plain network means (B, C, H, W) tensors in float32, attention pooling that forms every product, one backward for both
passes, unfused Adam, and a process as Python starts it. Random crops, the same random weights and seed on both sides;
each side in a process of its own, in turns, after one warm-up. --beside adds our side with one setting changed, and the
plain twin. Plain extraction is a loop: OpenCV decodes every frame, the detector sees one at a time at up to 1080p.
`score` times the command by itself and its stages. `gpu` runs the tests marked gpu and these benchmarks on one GPU
(`make gpu`), and without one says what it would run.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiattn.bench.options import Beside, DataBench, FacesBench, GpuBench, ScoreBench, SubmitBench
from multiattn.command_line import Device, ExperimentName, Inline, Positional, parse, parse_experiment, results
from multiattn.config import Experiment
from multiattn.experiments import DEFAULT_EXPERIMENT
from multiattn.runtime.devices import pick_device

BENCHES = {
    "data": DataBench,
    "faces": FacesBench,
    "submit": SubmitBench,
    "score": ScoreBench,
    "gpu": GpuBench,
    "kernel": SubmitBench,
}
"""Those with options of their own; `kernel` is the earlier name of `submit`."""
WHAT = {"train": "training step (clean pass, AGDA pass, backward, optimiser)", "infer": "eval forward"}


@dataclass(frozen=True, kw_only=True)
class Options:
    work: Positional[Literal["train", "infer"]]
    """A training step or an eval forward."""
    experiment: ExperimentName = DEFAULT_EXPERIMENT
    batch_size: int = 4
    """Crops in a batch, at least 2."""
    repeats: int = 5
    """Timed repeats of each side, after one warm-up."""
    device: Device = "cpu"
    beside: tuple[Beside, ...] = ()
    """Further sides: ours through torch.compile, with (B, C, H, W) tensors, or with cuDNN's trials of its algorithms;
    the plain twin as we run it; with `infer` on a CPU ours exported to onnxruntime, in float32 and in int8."""
    fed_from: Path | None = None
    """A faces folder: also train on its crops, read as `train` reads them, and print the rate beside that of a
    ready batch."""
    tiny: bool = False
    """The experiment's tiny variant."""
    settings: Inline[Experiment]


def main(argv: list[str]) -> None:
    name = argv[0] if argv else ""
    if name in BENCHES:
        lines, is_sound = _measure(parse(BENCHES[name], argv[1:], stage=f"bench {name}", doc=__doc__))
        results(*lines)
        if not is_sound:
            raise SystemExit(1)
    else:
        _bench_network(argv)


def _measure(options: DataBench | FacesBench | GpuBench | ScoreBench | SubmitBench) -> tuple[list[str], bool]:
    """Lines to print, and False where a test or a part has failed."""
    if isinstance(options, GpuBench):
        from multiattn.bench import gpu

        return gpu.measure(options)
    if isinstance(options, DataBench):
        from multiattn.bench.data import measure
    elif isinstance(options, FacesBench):
        from multiattn.bench.faces import measure
    elif isinstance(options, ScoreBench):
        from multiattn.bench.score import measure
    else:
        from multiattn.bench.submit import measure
    return measure(options), True


def _bench_network(argv: list[str]) -> None:
    options = parse_experiment(Options, argv, stage="bench", doc=__doc__, place=1)
    if options.fed_from is not None and options.work == "infer":
        raise ValueError("--fed-from: only a training step is fed; multiattn bench train ...")
    from multiattn.bench.train import compare, comparison_lines

    # In batches of the size that is timed, whoever makes them.
    data = dataclasses.replace(options.settings.data, batch_size=options.batch_size)
    experiment, device = dataclasses.replace(options.settings, data=data), pick_device(options.device)
    how = {"repeats": options.repeats, "device": device, "beside": options.beside, "faces": options.fed_from}
    comparison = compare(experiment, options.work, **how)
    results(
        f"{experiment.name}, {WHAT[options.work]}",
        f"batch {options.batch_size} at {experiment.data.image_size} px, {options.repeats} repeats",
        comparison.machine,
        "",
        *comparison_lines(comparison, options.batch_size),
        f"{'the loss' if options.work == 'train' else 'logits'} of the first run: "
        f"ours and plain differ by at most {comparison.difference:.1e}",
    )
