"""Options of `multiattn bundle`, read before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Device, Scoring
from multiattn.config.choices import Runtime, StoredPrecision
from multiattn.runtime.devices import require_exporter
from multiattn.runtime.layout import named_run


@dataclass(frozen=True, kw_only=True)
class BundleOptions:
    """Sources, contents and limits of a bundle."""

    runs: tuple[Path, ...] = ()
    """runs/<experiment>, several, or single folds of them: runs/<experiment>/fold0."""
    out: Path
    """The folder to make; an older bundle there is replaced, anything else is left alone."""
    training: str | None = None
    """Make a bundle for training.ipynb instead, which trains this experiment: a name, or path.py:function."""
    faces: Path | None = None
    """With --training: the faces folder whose crops come along, those of the videos in --folds."""
    folds: Path | None = None
    """With --training: the folds CSV."""
    package: bool = False
    """Make `--out` a run that comes with the package, src/multiattn/pretrained/NAME, of the one run NAME: its folds in
    float16, rule, card and licence, with their digests, at most 10 MB."""
    scoring: Scoring = None
    max_gb: float | None = None
    """Refuse to make a larger one (10^9 bytes; default: 1, with --training 100)."""
    wheels: Path | None = None
    """A folder of wheels; those of --packages are copied."""
    download_wheels: bool = False
    """Fetch the wheels of --packages with pip instead."""
    packages: tuple[str, ...] = ()
    """Packages that the image lacks, with those they need and it lacks too (default: av, facenet-pytorch, tyro,
    pandera, and their small dependencies)."""
    python: str = "3.11"
    """With --download-wheels, the image's Python. The default packages' wheels for 3.11 run on later ones too."""
    weights: Path | None = None
    """The weights file of the detector the runs' faces were found with, where it needs one; with --training, the one
    that the backbone starts from."""
    precision: StoredPrecision = "auto"
    """`auto`: float16, or float32 for a fold whose predictions it changes too much; `float16`: or an error."""
    largest_change: float = 1e-3
    """Allowed change of P(fake) by float16."""
    check_faces: tuple[Path, ...] = ()
    """A faces folder, made as the runs' own, or one for each recipe of theirs, to compare both forms on (default: drawn
    pictures, which are no faces)."""
    check_crops: int = 128
    """Crops each fold is compared on."""
    runtime: Runtime = "torch"
    """onnxruntime: bring also each fold's exported network and the wheel of onnxruntime (of the Python that --python
    names), which the notebook predicts by where it finds no GPU: the same answers to 1e-4, sooner."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        of_training = {"--faces": self.faces, "--folds": self.folds}
        of_runs = {"--runs": self.runs, "--package": self.package, "--check-faces": self.check_faces}
        of_runs["--runtime"] = self.runtime != "torch"
        needed, foreign = ({"--runs": self.runs}, of_training) if self.training is None else (of_training, of_runs)
        if wrong := [name for name, value in needed.items() if not value]:
            raise ValueError(f"expected {' and '.join(wrong)}, or --training EXPERIMENT --faces FACES --folds FOLDS.")
        if wrong := [name for name, value in foreign.items() if value]:
            other = "beside --training, which packs no runs" if self.training else "without --training"
            raise ValueError(f"expected no {' and no '.join(wrong)} {other}.")
        if self.runtime != "torch":
            if self.package:
                raise ValueError("expected no --runtime beside --package: its networks are exported where it is used.")
            require_exporter(self.runtime)
        object.__setattr__(self, "runs", tuple(map(named_run, self.runs)))
        if self.max_gb is None:
            object.__setattr__(self, "max_gb", 1.0 if self.training is None else 100.0)
