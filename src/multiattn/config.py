"""Settings of an experiment as frozen dataclasses that check themselves; JSON in and out.

An experiment is built by a function of `experiments.py`, changed from the command line (`--optim.lr 1e-4`), saved as
`experiment.json` in the run folder and read back from there. A value out of range or an unknown name never gets
past this file.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")

STAGES = ("L1", "L2", "L3", "L4", "L5", "L6", "L7")


def _require_choices(owner: Any) -> None:
    """Refuse a value that a `Literal` field does not list; Python itself does not look."""
    for name, hint in typing.get_type_hints(type(owner)).items():
        if typing.get_origin(hint) is Literal:
            options = typing.get_args(hint)
            _require(getattr(owner, name) in options, owner, name, f"one of {', '.join(options)}")


def _require(condition: bool, owner: object, name: str, expected: str) -> None:
    if not condition:
        found = getattr(owner, name)
        raise ValueError(f"{type(owner).__name__}.{name}: expected {expected}, found {found!r}.")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The multi-attention network, sections 1 and 2 of arXiv:2103.02406."""

    backbone: str = "tf_efficientnet_b4.ap_in1k"
    """Any timm EfficientNet; `ap_in1k` weights were trained with the mean 0.5 and std 0.5 that the paper uses."""
    pretrained: bool = True
    """Start from ImageNet weights: from `weights` when given, else from timm's hub."""
    weights: str | None = None
    """A local file (safetensors or .pth, timm naming) to start the backbone from, for machines without a hub."""
    num_maps: int = 4
    """M, the number of attention maps. One map uses neither the regional independence loss nor AGDA (Table 5)."""
    texture_stage: str = "L2"
    """SL_t, the stage whose features are enhanced."""
    attention_stage: str = "L5"
    """SL_a, the stage the attention maps come from."""
    hidden_size: int = 256
    """Width of the classifier's layers."""
    global_dropout: float = 0.0
    """Dropout on the global feature G; the paper names none."""
    drop_path_rate: float = 0.2
    """Stochastic depth of the backbone."""

    def __post_init__(self) -> None:
        _require(self.num_maps >= 1, self, "num_maps", "at least 1")
        _require(self.hidden_size >= 1, self, "hidden_size", "at least 1")
        for name in ("global_dropout", "drop_path_rate"):
            _require(0 <= getattr(self, name) < 1, self, name, "a value in [0, 1)")
        for name in ("texture_stage", "attention_stage"):
            _require(getattr(self, name) in STAGES, self, name, f"one of {', '.join(STAGES)}")
        _require(
            STAGES.index(self.texture_stage) <= STAGES.index(self.attention_stage),
            self,
            "texture_stage",
            f"a stage not later than attention_stage {self.attention_stage}",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = cross_entropy_weight * CE + independence_weight * RIL, Eqs. (3) to (5)."""

    cross_entropy_weight: float = 1.0
    independence_weight: float = 1.0
    """Weight of the regional independence loss; 0 turns it off."""
    inter_margin: float = 0.2
    """m_out: squared distance below which two centres repel each other."""
    intra_margin_real: float = 0.05
    """m_in of real faces: squared distance to its centre that a part may keep."""
    intra_margin_fake: float = 0.1
    """m_in of fake faces."""
    center_rate: float = 0.05
    """alpha of Eq. (4), the step of the moving centres."""
    center_decay: float = 0.9
    """Factor on `center_rate` after every epoch."""
    reduction: Literal["mean", "sum"] = "mean"
    """`mean` averages the intra term over the batch; `sum` is Eq. (3) to the letter."""

    def __post_init__(self) -> None:
        _require_choices(self)
        weights = ("cross_entropy_weight", "independence_weight")
        for name in (*weights, "inter_margin", "intra_margin_real", "intra_margin_fake"):
            _require(getattr(self, name) >= 0, self, name, "at least 0")
        for name in ("center_rate", "center_decay"):
            _require(0 < getattr(self, name) <= 1, self, name, "a value in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class AgdaConfig:
    """Attention-guided data augmentation, Eqs. (6) and (7)."""

    mode: Literal["soft", "hard", "none"] = "soft"
    first_epoch: int = 0
    """Epochs before this one see clean crops only, as the first steps of the authors' schedule do."""
    resize_factor: float = 0.3
    """The degraded copy is scaled down by this factor before it is blurred."""
    sigma: float = 7.0
    """Standard deviation of the blur, in pixels of the scaled-down copy."""
    threshold: float = 0.5
    """theta_d of the hard variant: what the map exceeds is erased."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.first_epoch >= 0, self, "first_epoch", "at least 0")
        _require(0 < self.resize_factor <= 1, self, "resize_factor", "a value in (0, 1]")
        _require(self.sigma > 0, self, "sigma", "a positive number of pixels")
        _require(0 <= self.threshold <= 1, self, "threshold", "a value in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What reaches the network, and how often."""

    image_size: int = 380
    """Side of the square crops in pixels; the faces folder must have been made with the same `--size`."""
    augmentation: Literal["none", "paper", "light", "standard"] = "standard"
    """Preset of `training/augment.py`."""
    frames_per_video: int = 8
    """Crops drawn from a video each time an epoch visits it; the next visit continues where this one stopped."""
    videos_per_class: int | None = None
    """Videos of each class in one epoch; None takes the larger class whole and repeats the smaller one."""
    validation_frames: int | None = None
    """Evenly spaced frames of each held-out video that are validated on, and stand in oof.parquet; None takes all."""
    batch_size: int = 12
    """Crops in a step of one process."""
    num_workers: int = 4
    """Processes that read and augment crops; 0 does it in the training process."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.image_size >= 32, self, "image_size", "at least 32 pixels")
        _require(self.frames_per_video >= 1, self, "frames_per_video", "at least 1")
        _require(self.videos_per_class is None or self.videos_per_class >= 1, self, "videos_per_class", "None or >= 1")
        _require(
            self.validation_frames is None or self.validation_frames >= 1, self, "validation_frames", "None or >= 1"
        )
        _require(self.batch_size >= 2, self, "batch_size", "at least 2 (batch normalisation needs two samples)")
        _require(self.num_workers >= 0, self, "num_workers", "at least 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser (a name of timm's factory) and schedule (timm's, stepped per update)."""

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-6
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = 0.0
    """Epochs over which the rate rises linearly from a hundredth of `lr`."""
    clip_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.lr > 0, self, "lr", "a positive learning rate")
        _require(self.weight_decay >= 0, self, "weight_decay", "at least 0")
        _require(self.warmup_epochs >= 0, self, "warmup_epochs", "at least 0")
        _require(self.clip_grad_norm is None or self.clip_grad_norm > 0, self, "clip_grad_norm", "None or positive")


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
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 on a GPU that has it, fp16 with gradient scaling on an older one, fp32 on a CPU."""
    seed: int = 7

    def __post_init__(self) -> None:
        _require_choices(self)
        _require("/" not in self.name and self.name not in ("", ".", ".."), self, "name", "a folder name")
        _require(self.seed >= 0, self, "seed", "at least 0")
        _require(self.epochs >= 1, self, "epochs", "at least 1")


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON types, nested as its dataclasses are."""
    return dataclasses.asdict(config)


def from_json(config_class: type[Config], values: dict[str, Any], *, source: str = "config") -> Config:
    """Rebuild a config from `to_json`'s output.

    Args:
        source: where the values come from (a path), for the message of an error.

    Raises:
        ValueError: a key the class does not have (with its nearest neighbour), or a value it refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: expected an object for {config_class.__name__}, found {type(values).__name__}.")
    hints = typing.get_type_hints(config_class)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{source}: {config_class.__name__} has no setting {unknown[0]!r}.{hint} It has {sorted(hints)}."
        )
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_json(hints[name], value, source=source)
        elif not _is_instance(value, hints[name]):
            raise ValueError(f"{source}: {config_class.__name__}.{name}: expected {hints[name]}, found {value!r}.")
        arguments[name] = value
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _is_instance(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_instance(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
