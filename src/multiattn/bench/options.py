"""Options of the benchmarks, read before anything heavy is imported."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from multiattn.command_line import DetectorWeights, NameOf, RuleTta, require_at_least
from multiattn.config import Precision
from multiattn.config.choices import Preset, Runtime
from multiattn.runtime.devices import runtime_precision
from multiattn.video.detectors.registry import DEFAULT_DETECTOR, detector_names

Beside = Literal["compiled", "nchw", "cudnn-benchmark", "twin", "onnxruntime", "onnxruntime-int8"]
"""Sides of `bench train` and `infer` between ours and the plain one: ours through torch.compile, with (B, C, H, W)
tensors, and with cuDNN's own trials of its algorithms; the plain twin run as ours; and with `infer` on a CPU our
network exported to onnxruntime, in float32 and in int8."""


@dataclass(frozen=True, kw_only=True)
class DataBench:
    experiment: str = "dfdc_b4"
    """A function of experiments.py: whose batches, and whose training step must be fed."""
    faces: Path | None = None
    """A faces folder, of which some hundred crops are read; without it, drawn faces of 380 pixels."""
    presets: tuple[Preset, ...] = get_args(Preset)
    """Presets of `training/data/augment`."""
    num_workers: int = os.cpu_count() or 1
    """Processes that read on either side; 0 reads in the main process."""
    image_size: int | None = None
    """Side of the crops in pixels; None is the experiment's."""
    batch_size: int | None = None
    """Crops in a batch; None is the experiment's."""
    seconds: float = 1.5
    """Length of each turn; every side has three."""
    training_rate: float | None = None
    """Crops a second that the training takes; None measures a training step of the experiment."""
    device: str = "auto"
    """Device that this step is measured on: cpu, cuda or auto."""
    packed: int | None = None
    """Instead of all this: read so many crops of --faces, or the drawn ones, from loose files and from shards of the
    same crops, both in TMPDIR, whose file system is thus measured."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "num_workers")
        require_at_least(self, 2, "packed")
        require_at_least(self, 1, "image_size", "batch_size")
        if not self.seconds > 0:
            raise ValueError(f"--seconds: expected more than 0, found {self.seconds}.")
        if self.training_rate is not None and not self.training_rate > 0:
            raise ValueError(f"--training-rate: expected more than 0 crops a second, found {self.training_rate}.")


@dataclass(frozen=True, kw_only=True)
class FacesBench:
    videos_dir: Path
    """A folder of videos, those of its subfolders too."""
    num_frames: int = 32
    size: int = 380
    detector: Annotated[str, NameOf(detector_names)] = DEFAULT_DETECTOR
    weights: Path | None = None
    """The detector's weights file, where it needs one."""
    jobs: int | None = None
    """Our processes (default: one a core); the loop is one process with all its libraries' threads."""
    device: str = "cpu"
    """cpu, cuda or auto."""


@dataclass(frozen=True, kw_only=True)
class GpuBench:
    experiment: str = "dfdc_b4"
    """A function of experiments.py: whose network is timed."""
    batch_size: int = 12
    """Crops in a batch. Five networks lie on the GPU at once: with 16 GB take 2."""
    out: Path = Path("data/gpu")
    """The folder that gpu.json and gpu.md are written to."""
    tests: Path = Path("tests")
    """The folder of the tests."""
    videos_dir: Path | None = None
    """A folder of videos for submit; without it, clips of the demo."""
    minutes: float = 7.0
    """The run is over after so many: what has not been run by then says so."""
    device: str = "cuda"
    """cuda, or cpu for a rehearsal."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "batch_size")
        if not self.minutes > 0:
            raise ValueError(f"--minutes: expected more than 0, found {self.minutes}.")


@dataclass(frozen=True, kw_only=True)
class SubmitBench:
    videos_dir: Path
    """A folder of videos, those of its subfolders too."""
    runs: tuple[Path, ...] = ()
    """As `multiattn submit`."""
    untrained: str | None = None
    """Instead of --runs: an experiment whose network is made with random weights."""
    untrained_folds: int = 1
    num_frames: int | None = None
    """Frames of each video (default: as the runs were trained)."""
    videos: int | None = None
    """Number of videos: the first ones, or all of them again and again (default: all once)."""
    turns: int = 2
    """Runs of each side, in turns. The first, in which one side reads from the disk what the other then finds in
    memory, is not counted."""
    tta: RuleTta = None
    device: str = "cpu"
    precision: Precision = "fp32"
    """Precision of our side; the loop is float32."""
    jobs: int | None = None
    weights: Path | None = None
    """The weights file of the detector, where it needs one."""

    def __post_init__(self) -> None:
        if bool(self.runs) == (self.untrained is not None):
            raise ValueError("expected one of --runs and --untrained.")
        require_at_least(self, 1, "untrained_folds", "videos")
        if self.turns < 2:
            raise ValueError(
                f"--turns: expected at least 2, found {self.turns}: in the first turn the side that comes first reads "
                "from the disk and the other from memory, so that it is not counted."
            )


@dataclass(frozen=True, kw_only=True)
class ScoreBench:
    clip: Path
    """A video with a face in it."""
    runs: tuple[Path, ...] = ()
    """As `multiattn score` (default: the packaged dfdc_lite)."""
    repeats: int = 3
    """Times that the command and the stages are run, in turns."""
    device: str = "cpu"
    runtimes: tuple[Runtime, ...] = ("torch",)
    """As `multiattn score --runtime`; each is timed, in turns."""
    weights: DetectorWeights = None

    def __post_init__(self) -> None:
        require_at_least(self, 1, "repeats")
        for runtime in self.runtimes:
            runtime_precision(runtime, "auto")
