"""Settings of an experiment as frozen dataclasses that check themselves; JSON in and out.

An experiment is built by a function of `experiments.py`, changed from the command line (`--optim.lr 1e-4`), saved as
`experiment.json` in the run folder and read back from there. A value out of range or an unknown name never gets
past this file.
"""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")

STAGE_NAME = re.compile(r"L([1-9]\d?)")
"""L1, L2, ...: how many there are depends on the backbone, which checks that."""
MAX_MAPS = 8


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
    """The network, sections 3.1 and 3.2 of arXiv:2103.02406; the defaults are the paper's.

    Where the authors' released code does something else, the part has a second form, chosen by name here. The
    profiles of `experiments.py` set these together.
    """

    network: Literal["multi-attention", "baseline"] = "multi-attention"
    """`baseline` is the twin of every claim: the same backbone, global average pooling, one linear layer."""
    backbone: str = "tf_efficientnet_b4.ap_in1k"
    """Any timm model with feature stages; `ap_in1k` weights were trained with the mean and std 0.5 the paper uses."""
    padding: Literal["dynamic", "static"] = "dynamic"
    """How an EfficientNet pads its strided convolutions: `static` for the nominal image size, as the released
    checkpoints were trained (attention grid 23x23 in B4 at 380 px, against 24x24)."""
    pretrained: bool = True
    """Start from ImageNet weights: from `weights` when given, else from timm's hub."""
    weights: str | None = None
    """A local file (safetensors or .pth; timm, efficientnet_pytorch or Cadene Xception naming) to start the backbone
    from, for machines without a hub."""
    num_maps: int = 4
    """M, the number of attention maps. One map uses neither an auxiliary loss nor AGDA (Table 5)."""
    texture_stage: str = "L2"
    """SL_t, the stage whose features are enhanced."""
    attention_stage: str = "L5"
    """SL_a, the stage the attention maps come from."""
    attention: Literal["relu", "masked-elu"] = "relu"
    """`relu` is the paper's module; `masked-elu` the released one, which never looks at the border."""
    texture: Literal["dense", "grouped"] = "dense"
    """`dense` enhances one texture for all maps (the paper); `grouped` one for each map (the release)."""
    global_pool: Literal["unit", "mean"] = "unit"
    """G as a unit vector (Eq. 2), or as the mean weighted by the attention (the release)."""
    standardize_parts: bool = False
    """Standardise D over space before it becomes the part vectors V, as the release does."""
    align_corners: bool = False
    """How attention maps are resized; the release aligns corners."""
    hidden_size: int = 256
    """Width of the classifier's layers."""
    part_dropout: float = 0.0
    """Probability of leaving a whole attention map out of P and A_sum; the paper names none, the release has 0.25."""
    global_dropout: float = 0.0
    """Dropout on the global feature G; the paper names none, the release has 0.5. In the baseline: before its layer."""
    drop_path_rate: float = 0.2
    """Stochastic depth of the backbone."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(1 <= self.num_maps <= MAX_MAPS, self, "num_maps", f"1 to {MAX_MAPS}")
        _require(self.hidden_size >= 1, self, "hidden_size", "at least 1")
        for name in ("part_dropout", "global_dropout", "drop_path_rate"):
            _require(0 <= getattr(self, name) < 1, self, name, "a value in [0, 1)")
        for name in ("texture_stage", "attention_stage"):
            _require(STAGE_NAME.fullmatch(getattr(self, name)) is not None, self, name, "a stage L1, L2, ...")
        _require(
            int(self.texture_stage[1:]) <= int(self.attention_stage[1:]),
            self,
            "texture_stage",
            f"a stage not later than attention_stage {self.attention_stage}",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = cross entropy + auxiliary loss (Eq. 5), + cross entropy on the AGDA copy, + match loss (the release)."""

    cross_entropy_weight: float = 1.0
    auxiliary: Literal["ril", "ams", "none"] = "ril"
    """Regional independence loss, additive margin softmax over the parts (Table 6), or neither."""
    auxiliary_weight: float = 1.0
    """lambda_2 of Eq. (5)."""
    ril: Literal["per-part", "joint"] = "per-part"
    """`per-part` is Eq. (3); `joint` the released form: one un-squared norm over all parts, centres of real faces."""
    inter_margin: float = 0.2
    """m_out: distance below which two centres repel each other (squared in the form `per-part`)."""
    intra_margin_real: float = 0.05
    """m_in of real faces: distance to its centre that a part may keep."""
    intra_margin_fake: float = 0.1
    """m_in of fake faces; a negative one pushes them at least that far away instead."""
    center_rate: float = 0.05
    """alpha of Eq. (4), the step of the moving centres."""
    center_decay: float = 0.9
    """Factor on `center_rate` after every epoch."""
    centers_follow_agda: bool = False
    """Move the centres on the AGDA pass too, as the release does."""
    reduction: Literal["mean", "sum"] = "mean"
    """`mean` averages the intra term over the batch; `sum` is Eq. (3) to the letter."""
    ams_scale: float = 30.0
    """s of the additive margin softmax."""
    ams_margin: float = 0.35
    """m of the additive margin softmax, on the cosine."""
    agda_weight: float = 1.0
    """Weight of the cross entropy on the AGDA copy."""
    match_weight: float = 0.0
    """Weight of the distance between the part vectors of a face and of its AGDA copy; 0.1 in the release."""

    def __post_init__(self) -> None:
        _require_choices(self)
        weights = ("cross_entropy_weight", "auxiliary_weight", "agda_weight", "match_weight")
        for name in (*weights, "inter_margin", "ams_margin"):
            _require(getattr(self, name) >= 0, self, name, "at least 0")
        _require(self.ams_scale > 0, self, "ams_scale", "a positive scale")
        for name in ("intra_margin_real", "intra_margin_fake"):
            # Unit vectors are at most 4 apart when squared; beyond that a margin says nothing.
            _require(-4 <= getattr(self, name) <= 4, self, name, "a value in [-4, 4]")
        for name in ("center_rate", "center_decay"):
            _require(0 < getattr(self, name) <= 1, self, name, "a value in (0, 1]")


@dataclass(frozen=True, kw_only=True)
class AgdaConfig:
    """Attention-guided data augmentation, Eqs. (6) and (7)."""

    mode: Literal["soft", "hard", "none"] = "soft"
    first_epoch: int = 0
    """Epochs before this one see clean crops only."""
    map_choice: Literal["uniform", "mass"] = "uniform"
    """Each map with the same probability (the paper), or in proportion to sqrt(its sum + 1) (the release)."""
    resize_factor: float = 0.3
    """The degraded copy is scaled down by this factor before it is blurred."""
    resample: Literal["antialias", "align-corners"] = "antialias"
    """How images and maps are scaled: antialiased, or with aligned corners and without antialiasing (the release)."""
    sigma: float = 7.0
    """Standard deviation of the blur, in pixels of the scaled-down copy."""
    kernel_size: int | None = None
    """Side of the blur's kernel, odd; None takes three sigmas to each side."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the degraded copy, in the network's input range [-1, 1]."""
    gate: bool = False
    """Pass A* through a sigmoid of random threshold and slope, as the release does."""
    gate_threshold: tuple[float, float] = (0.4, 0.6)
    gate_slope: tuple[float, float] = (3.0, 5.0)
    threshold: float = 0.5
    """theta_d of the hard variant: what the map exceeds is erased."""

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.first_epoch >= 0, self, "first_epoch", "at least 0")
        _require(0 < self.resize_factor <= 1, self, "resize_factor", "a value in (0, 1]")
        _require(self.sigma > 0, self, "sigma", "a positive number of pixels")
        odd = self.kernel_size is None or (self.kernel_size >= 1 and self.kernel_size % 2 == 1)
        _require(odd, self, "kernel_size", "None or an odd number of pixels")
        _require(self.noise >= 0, self, "noise", "at least 0")
        for name, low in (("gate_threshold", 0), ("gate_slope", 1e-3)):
            first, last = getattr(self, name)
            _require(low <= first <= last, self, name, f"an interval from {low} up")
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
    schedule: Literal["constant", "cosine", "step"] = "constant"
    step_epochs: int = 5
    """Epochs between two drops of the schedule `step`."""
    step_factor: float = 0.5
    """What `lr` is multiplied by at each drop."""
    warmup_epochs: float = 0.0
    """Epochs over which the rate rises linearly from a hundredth of `lr`."""
    clip_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _require_choices(self)
        _require(self.lr > 0, self, "lr", "a positive learning rate")
        _require(self.weight_decay >= 0, self, "weight_decay", "at least 0")
        _require(self.step_epochs >= 1, self, "step_epochs", "at least 1")
        _require(0 < self.step_factor <= 1, self, "step_factor", "a value in (0, 1]")
        _require(self.warmup_epochs >= 0, self, "warmup_epochs", "at least 0")
        _require(self.clip_grad_norm is None or self.clip_grad_norm > 0, self, "clip_grad_norm", "None or positive")


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
        _require_choices(self)
        _require(self.epochs >= 1, self, "epochs", "at least 1")
        _require(
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
    fold's folder or a safetensors file. A c40 experiment starts from its c23 run this way."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: bf16 on a GPU that has it, fp16 with gradient scaling on an older one, fp32 on a CPU."""
    seed: int = 7

    def __post_init__(self) -> None:
        _require_choices(self)
        _require("/" not in self.name and self.name not in ("", ".", ".."), self, "name", "a folder name")
        _require(self.seed >= 0, self, "seed", "at least 0")
        _require(self.epochs >= 1, self, "epochs", "at least 1")
        names = [phase.name for phase in self.phases]
        _require(len(set(names)) == len(names), self, "phases", "phases of different names")
        _require(
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


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON types, nested as its dataclasses are."""
    values = dataclasses.asdict(config)
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


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
        elif typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            value = _tuple_from_json(hints[name], value, f"{source}: {config_class.__name__}.{name}")
        elif not _is_instance(value, hints[name]):
            raise ValueError(f"{source}: {config_class.__name__}.{name}: expected {hints[name]}, found {value!r}.")
        arguments[name] = value
    try:
        return config_class(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error


def _tuple_from_json(hint: Any, values: list, source: str) -> tuple:
    entry, *others = typing.get_args(hint)
    if dataclasses.is_dataclass(entry):
        return tuple(from_json(entry, value, source=source) for value in values)
    fixed = others != [Ellipsis]
    if (fixed and len(values) != 1 + len(others)) or not all(_is_instance(value, entry) for value in values):
        raise ValueError(f"{source}: expected {hint}, found {values!r}.")
    return tuple(values)


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
