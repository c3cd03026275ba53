"""Settings of training: data, optimiser, validation, phases, and the experiment that holds them all."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from multiattn.config.choices import DEGRADING_PRESETS, Preset
from multiattn.config.model import HALF, AgdaConfig, LossConfig, ModelConfig
from multiattn.config.settings import MOST, from_json, require, require_at_least, require_fields

Precision = Literal["auto", "bf16", "fp16", "fp32"]
MAX_NAME_BYTES = 200
"""Longest name of an experiment; what is made of it (`<name>_seed3`) is a folder's name too."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Crops that reach the network: their size, augmentation, sampling and batches."""

    image_size: int = 380
    """Side of the square crops in pixels; larger ones of the faces folder (`--size`) are averaged down."""
    augmentation: Preset = "standard"
    """Preset of `training/data/augment`; `multiattn figures augment` draws what each does."""
    strength: float = 1.0
    """Factor on the degradations that `wild` draws, 0 (moves and flip alone) to 1; other presets have none to set."""
    strength_epochs: float = 0.0
    """Epochs over which that factor rises from 0, linearly with each batch."""
    sbi: Annotated[float, tyro.conf.arg(aliases=("--sbi",))] = 0.0
    """Probability that a visit of a real crop shows it blended with itself instead (self-blended image), as a fake.
    An epoch stays as long and, up to 0.5, as balanced: so many fewer forged videos are visited, none at 0.5."""
    sampling: Annotated[Literal["balanced", "paired", "weighted"], tyro.conf.arg(aliases=("--sampling",))] = "balanced"
    """`balanced`: as many visits of real videos as of fake ones. `paired`: a real crop and the same frame and face of
    one of its fakes side by side, with one geometric augmentation. `weighted`: every video once, and a cross entropy
    that weighs the classes by what they lack."""
    frames_per_video: int = 8
    """Crops drawn from a video each time an epoch visits it; the next visit continues where this one stopped."""
    videos_per_class: int | None = None
    """Videos of each class in one epoch; None takes the larger class whole and repeats the smaller one. With `paired`
    sampling: visits of real videos. `weighted` does not use it."""
    validation_frames: int | None = None
    """Evenly spaced frames of each held-out video that are validated on, and stand in oof.parquet; None takes all."""
    batch_size: int | Literal["auto"] = 12
    """Crops in a step of one process. `auto`, in `train`: the largest batch that fits 90 % of the device's memory, at
    most the experiment's; gradients are accumulated to the updates that it has."""
    num_workers: int = 4
    """Processes that read and augment crops, at most one a core; 0 does it in the training process."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Keep decoded crops: in memory, shared by all workers, or in a memory-mapped file beside the crops."""
    cache_gb: float = 8.0
    """Size of the cache in GB (1e9 bytes); crops beyond it are read from their files every time."""

    def __post_init__(self) -> None:
        require_fields(self)
        require(32 <= self.image_size <= 4096, self, "image_size", "32 to 4096 pixels")
        require_at_least(self, 1, "frames_per_video", "videos_per_class", "validation_frames")
        is_open = self.batch_size == "auto"
        require(
            is_open or 2 <= self.batch_size <= MOST, self, "batch_size", f"2 to {MOST} (batch normalisation needs two)"
        )
        require(0 <= self.num_workers <= 1024, self, "num_workers", "0 to 1024 processes")
        require(0 <= self.strength <= 1, self, "strength", "a factor of 0 to 1")
        require_at_least(self, 0, "strength_epochs")
        for name, only in (("strength", 1), ("strength_epochs", 0)):
            fits = self.augmentation in DEGRADING_PRESETS or getattr(self, name) == only
            without = f"{self.augmentation}, which has no strength to set ({', '.join(DEGRADING_PRESETS)} has)"
            require(fits, self, name, f"{only} with --data.augmentation {without}")
        require(0 <= self.sbi < 1, self, "sbi", "a probability below 1")
        require(
            self.sbi == 0 or self.sampling != "paired", self, "sbi", "0 with paired sampling, whose pairs are given"
        )
        require(self.cache_gb > 0, self, "cache_gb", "a positive size")

    def strength_after(self, epochs: float) -> float:
        """The factor on degradations after so many epochs of the run."""
        return self.strength * min(1.0, epochs / self.strength_epochs) if self.strength_epochs else self.strength


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser (a name of timm's factory) and schedule (timm's, stepped per update)."""

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-6
    backbone_lr_factor: float = 1.0
    """Factor on `lr` for the backbone's parameters."""
    layer_decay: float | None = None
    """Factor on `lr`, once more for each layer of the backbone nearer to the input."""
    schedule: Literal["constant", "cosine", "step", "poly", "one-cycle"] = "constant"
    """`one-cycle` rises to `lr` over the first 30 % and falls to nearly nothing, both along a cosine."""
    lr_min: float = 0.0
    """Where `cosine` and `poly` end."""
    poly_power: float = 0.9
    """Exponent of the schedule `poly`."""
    step_epochs: int = 5
    """Epochs between two drops of the schedule `step`."""
    step_factor: float = 0.5
    """Factor on `lr` at each drop."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate rises linearly from a hundredth of `lr`."""
    clip_grad_norm: float | None = None
    accumulate: int = 1
    """Batches whose gradients are averaged for one update."""

    def __post_init__(self) -> None:
        require_fields(self)
        require(self.lr > 0, self, "lr", "a positive learning rate")
        require_at_least(self, 0, "weight_decay", "warmup_epochs")
        require_at_least(self, 1, "step_epochs", "accumulate")
        require(0 < self.step_factor <= 1, self, "step_factor", "a value in (0, 1]")
        require(self.clip_grad_norm is None or self.clip_grad_norm > 0, self, "clip_grad_norm", "None or positive")
        require(0 < self.backbone_lr_factor <= 10, self, "backbone_lr_factor", "a value in (0, 10]")
        require(self.layer_decay is None or 0 < self.layer_decay <= 1, self, "layer_decay", "None or a value in (0, 1]")
        require(0 <= self.lr_min <= self.lr, self, "lr_min", "a rate from 0 to lr")
        require(self.poly_power > 0, self, "poly_power", "a positive exponent")
        cycle = self.schedule == "one-cycle"
        require(not cycle or self.warmup_epochs == 0, self, "warmup_epochs", "0 with one-cycle, which has its own")


METRICS = ("log_loss", "balanced_log_loss", "auc", "accuracy")
"""Figures of the held-out videos; `balanced_log_loss` is the mean of the two classes' log losses."""
FRAME_PREFIX = "frame_"
"""Before the name of a metric: of their frames."""
VideoMetric = Literal[(*METRICS, *(f"{FRAME_PREFIX}{name}" for name in METRICS))]


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Validation on the held-out videos: how often, and by which metric a checkpoint is the best."""

    every_steps: int | None = None
    """Updates between two validations inside an epoch; every epoch's end validates too."""
    metric: VideoMetric = "log_loss"
    """The best checkpoint has the best of this: the highest AUC or accuracy, the lowest of the others."""
    patience: int | None = None
    """Stop after so many validations in a row that brought no better checkpoint; None goes on to the end."""
    guard: Annotated[str | None, tyro.conf.arg(aliases=("--guard",))] = None
    """Another faces folder, for a run that starts from one: every validation tells how many of its real videos are
    called fake where the start calls 5 % so, and a checkpoint that calls more than 10 % so is kept for want of others
    alone."""

    def __post_init__(self) -> None:
        require_fields(self)
        require_at_least(self, 1, "every_steps", "patience")

    @property
    def higher_is_better(self) -> bool:
        """True where a larger value of `metric` is the better one."""
        return self.metric.endswith(("auc", "accuracy"))


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Averages of the weights: further candidates at every validation, the best of all is kept."""

    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights (timm's `ModelEmaV3`); 0 keeps none."""
    ema_warmup: bool = True
    """Let the decay rise to `ema_decay`, so that the first epochs do not linger."""
    best: int = 0
    """Average the weights of so many of the best validations; 0 does not."""

    def __post_init__(self) -> None:
        require(0 <= self.ema_decay < 1, self, "ema_decay", "a value in [0, 1)")
        require(self.best == 0 or 2 <= self.best <= 20, self, "best", "0, or 2 to 20 checkpoints")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of epochs with an objective, an optimiser and a schedule of its own."""

    name: str
    epochs: int
    objective: Literal["network", "backbone"] = "network"
    """`backbone` trains the backbone alone, by cross entropy through the twin's pooling and linear layer."""
    freeze_backbone: bool = False
    """Neither the backbone's weights nor its running statistics move; its normalisation runs in eval mode."""
    agda: bool = True
    """False leaves the AGDA pass out."""
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        require_fields(self)
        require_at_least(self, 1, "epochs")
        require(
            not (self.freeze_backbone and self.objective == "backbone"),
            self,
            "freeze_backbone",
            "False where the backbone is what is trained",
        )


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides what a run learns; saved beside its weights."""

    name: str
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    agda: AgdaConfig = field(default_factory=AgdaConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    epochs: int = 20
    """Epochs of an experiment without `phases`."""
    phases: tuple[Phase, ...] = ()
    """A staged schedule; it takes the place of `optim` and `epochs`."""
    start_from: str | None = None
    """Start the whole network from the best weights of another run: an experiment's folder (the same fold of it), a
    fold's folder, a safetensors file, or a packaged run by its name. A c40 experiment starts from its c23 run this
    way."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    precision: Literal[Precision, "apex-O1"] = "auto"
    """`auto`: bf16 on a GPU that has it, fp16 with gradient scaling on an older one; on a CPU fp32, or bf16 where the
    processor has it (AMX, AVX512-BF16) and a short trial is faster. A run keeps what it was begun with; its
    environment.json says which and why. `apex-O1` is for an old build of NVIDIA's apex that still has `apex.amp`."""
    compile: bool = False
    """Let torch.compile generate the network's code. Off: on a CPU it pays late. On 2 cores of an AMD EPYC with AVX-512
    a training step of B4 took 0.60 of the plain one's time with it; on Zen 3 the first step took more than 250 s to
    compile. Not measured on a GPU."""
    save: Literal["whole", "tuned"] = "whole"
    """Contents of best.safetensors and last.safetensors: the whole network, LoRA merged into its weights; or what
    `model.tune` trained alone, which needs the weights it was tuned from wherever it is loaded."""
    save_minutes: float = 10.0
    """Minutes between two saved states inside an epoch; a kill loses at most these."""
    seed: int = 7

    def __post_init__(self) -> None:
        require_fields(self)
        is_name = self.name not in ("", ".", "..") and "/" not in self.name and self.name.isprintable()
        require(is_name and len(self.name.encode()) <= MAX_NAME_BYTES, self, "name", "a folder name")
        require(0 <= self.seed < 2**32, self, "seed", "a whole number from 0 to 4294967295")
        require_at_least(self, 1, "epochs")
        require(self.save_minutes > 0, self, "save_minutes", "a positive number of minutes")
        model, is_whole = self.model, self.save == "whole"
        require(is_whole or model.tune != "all", self, "save", "whole where the whole backbone is trained")
        has_base = self.start_from is None and (model.pretrained or model.weights is not None)
        require(is_whole or has_base, self, "save", "whole but where model.weights or timm's hub has what was tuned")
        is_guarded = self.validation.guard is not None
        require(self.start_from or not is_guarded, self, "start_from", "a run to start from beside --guard")
        names = [phase.name for phase in self.phases]
        require(len(set(names)) == len(names), self, "phases", "phases of different names")
        require(
            not self.phases or self.phases[-1].objective == "network", self, "phases", "a last phase of the network"
        )

    @property
    def schedule(self) -> tuple[Phase, ...]:
        """The phases to go through; one made of `optim` and `epochs` where none are given."""
        return self.phases or (Phase(name="train", epochs=self.epochs, optim=self.optim),)

    @property
    def num_epochs(self) -> int:
        """Epochs of all phases together."""
        return sum(phase.epochs for phase in self.schedule)


def run_experiment(values: Any, *, source: str) -> Experiment:
    """The experiment of a run, from its experiment.json.

    One that was written before the network's input had a range of its own is of 0.5, as all were then.

    Raises:
        ValueError: as `from_json`.
    """
    model = values.get("model", {}) if isinstance(values, dict) else None
    if isinstance(model, dict) and not {"input_mean", "input_std"} & model.keys():
        values = {**values, "model": {**model, "input_mean": list(HALF), "input_std": list(HALF)}}
    return from_json(Experiment, values, source=source)
