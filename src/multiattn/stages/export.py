"""A run -> one file that runs without this package: ONNX, or a program of torch.export; uint8 crops in, P(fake) out.

    multiattn export --run runs/dfdc_b4/fold0
    multiattn export --run runs/dfdc_b4 --ensemble --format torch-export
    multiattn export --run runs/dfdc_b4/fold0 --precision int8 --faces data/faces/dfdc

It is compared with torch before it is delivered, and refused where a logit or P(fake) differs by more than 1e-4; int8
and float16, on held-out crops, where log loss is more than 0.01 worse. It holds the networks with their preprocessing,
and notes on what they are made of: not the scoring rule, which makes a video's answer of its crops and calibrates it.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import parse, require_apart, results
from multiattn.config.choices import ExportFormat, ExportPrecision
from multiattn.config.settings import require
from multiattn.runtime.devices import require_exporter
from multiattn.runtime.layout import (
    BEST_WEIGHTS,
    SCORING_FILE,
    experiment_folder,
    experiment_name,
    fold_folders,
    is_run_folder,
    named_run,
)

ENDINGS: dict[ExportFormat, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
"""Format -> the ending of its files, by which other programs know them."""


@dataclass(frozen=True, kw_only=True)
class Options:
    run: Path
    """runs/<experiment>/fold<k>; with --ensemble runs/<experiment>; or a packaged run by its name."""
    format: ExportFormat = "onnx"
    out: Path | None = None
    """The file to write (default: the run's name, here, with the ending .onnx or .pt2)."""
    ensemble: bool = False
    """All folds of the experiment in one file, whose P(fake) is the mean of theirs."""
    precision: ExportPrecision = "float32"
    """float16 (for GPUs) or int8 (for processors), in ONNX alone; with --faces."""
    faces: Path | None = None
    """The faces folder that the run was trained on: its held-out crops check the file, and calibrate int8 (default:
    drawn pictures check it)."""

    def __post_init__(self) -> None:
        is_lower = self.precision != "float32"
        require(not is_lower or self.format == "onnx", self, "precision", "float32 beside --format torch-export")
        require(not is_lower or self.faces is not None, self, "faces", f"a folder beside --precision {self.precision}")
        ending = ENDINGS[self.format]
        require(self.out is None or self.out.suffix == ending, self, "out", f"a name that ends in {ending}")


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="export", doc=__doc__)
    run = named_run(options.run)
    folders = fold_folders(run)
    if len(folders) > 1 and not options.ensemble:
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"--run {run}: expected one fold, or --ensemble for all in one file; found {names}.")
    name = "_".join([experiment_name(run), *([folders[0].name] if is_run_folder(run) else [])])
    lower = f"_{options.precision}" if options.precision != "float32" else ""
    out = options.out or Path(f"{name}{lower}{ENDINGS[options.format]}")
    require_apart({"--out": out}, [folder / BEST_WEIGHTS for folder in folders])
    if options.format == "onnx":
        require_exporter("onnxruntime")
    from multiattn.inference.export import describe_file, export_run

    found = export_run(run, out, form=options.format, precision=options.precision, faces=options.faces)
    lines = list(describe_file(found))
    if (scoring := experiment_folder(run) / SCORING_FILE).is_file():
        lines.append(f"not in it: {scoring}, which makes a video's answer of its crops, calibrated and clipped")
    results(*lines)
