"""Runs + wheels -> a folder that Kaggle attaches as one data set: code, weights, scoring rule, wheels, notebook.

    multiattn bundle --runs runs/dfdc_b4 --out bundle/ --download-wheels --check-faces data/faces/dfdc

Weights are stored in float16 where that changes no prediction by more than 1e-3: the same crops go through both forms.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import DetectorWeights, Device, Scoring, parse, results
from multiattn.inference.kit.bundle import Bundle, BundleInputs, build_bundle
from multiattn.inference.kit.half_weights import Precision
from multiattn.inference.scoring_file import choose_scoring_file


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `multiattn bundle`."""

    runs: tuple[Path, ...]
    """runs/<experiment>, several, or single folds of them: runs/<experiment>/fold0."""
    out: Path
    """The folder to make; an older bundle there is replaced, anything else is left alone."""
    scoring: Scoring = None
    max_gb: float = 1.0
    """Refuse to make a larger one (10^9 bytes)."""
    wheels: Path | None = None
    """A folder of wheels; those of --packages are copied."""
    download_wheels: bool = False
    """Fetch the wheels of --packages with pip instead."""
    packages: tuple[str, ...] = ()
    """Packages that the image lacks, with their dependencies (default: what inference needs of requirements.txt and
    Kaggle's image does not have: av, facenet-pytorch, tyro, pandera, and their small dependencies)."""
    python: str = "3.11"
    """With --download-wheels, the image's Python. The default packages' wheels for 3.11 run on later ones too."""
    weights: DetectorWeights = None
    precision: Precision = "auto"
    """`auto`: float16, or float32 for a fold whose predictions it changes too much; `float16`: or an error."""
    largest_change: float = 1e-3
    """Of P(fake), by float16."""
    check_faces: Path | None = None
    """A faces folder, made as the runs' own, to compare both forms on (default: drawn pictures, which are no faces)."""
    check_crops: int = 128
    """Crops each fold is compared on."""
    device: Device = "auto"


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="bundle", doc=__doc__)
    _check(options)
    scoring = choose_scoring_file(options.runs, options.scoring)
    bundle = build_bundle(
        BundleInputs(
            runs=options.runs,
            rule=scoring.rule,
            tuned_on=scoring.tuned_on,
            max_gb=options.max_gb,
            wheels=options.wheels,
            download=options.download_wheels,
            packages=options.packages,
            python=options.python,
            detector_weights=options.weights,
            precision=options.precision,
            largest_change=options.largest_change,
            check_faces=options.check_faces,
            check_crops=options.check_crops,
            device=options.device,
        ),
        options.out,
    )
    results(*_lines(bundle, options))


def _check(options: Options) -> None:
    if options.wheels is not None and options.download_wheels:
        raise ValueError("expected --wheels DIR or --download-wheels, found both.")
    if options.packages and options.wheels is None and not options.download_wheels:
        raise ValueError("--packages: expected --wheels DIR or --download-wheels beside it, found neither.")
    if options.wheels is not None and not options.wheels.is_dir():
        raise FileNotFoundError(f"--wheels {options.wheels}: expected a folder of wheels, found none.")
    if options.check_crops < 1:
        raise ValueError(f"--check-crops: expected at least 1, found {options.check_crops}.")


def _lines(bundle: Bundle, options: Options) -> list[str]:
    lines = []
    for one in bundle.weights:
        if one.difference is None:
            lines.append(f"{one.model}: {one.stored}")
        else:
            what = "crops" if options.check_faces else "drawn pictures"
            lines.append(
                f"{one.model}: {one.stored}; float16 changes P(fake) by at most {one.difference:.1e} on {one.crops} "
                f"{what}"
            )
    lines += [f"{name:<18} {size / 1e6:10.2f} MB" for name, size in bundle.sizes.items()]
    total = sum(bundle.sizes.values())
    if "wheels" not in bundle.sizes:
        lines.append("no wheels: add --download-wheels, or --wheels DIR, for an image that lacks packages")
    return [*lines, f"{total / 1e6:.2f} MB of {options.max_gb:g} GB in {bundle.folder}; see its README.txt"]
