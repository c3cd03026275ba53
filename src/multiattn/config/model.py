"""Settings of the network, of the losses and of the attention-guided augmentation."""

import re
from dataclasses import dataclass
from typing import Literal

from multiattn.config.settings import require, require_at_least, require_fields

STAGE_NAME = re.compile(r"L([1-9]\d?)")
"""L1, L2, ...: how many there are depends on the backbone, which checks that."""
MAX_MAPS, MAX_HIDDEN_SIZE, MAX_RANK = 8, 16_384, 1024
MAX_MARGIN = 4
"""Unit vectors are at most 4 apart when squared; beyond that a margin says nothing."""
MAX_BLUR = 512
"""Largest standard deviation of a blur, in pixels."""
Padding = Literal["dynamic", "static"]
Channels = tuple[float, float, float]
"""A number for each of red, green and blue."""
HALF = (0.5, 0.5, 0.5)
"""The paper's mean and deviation (section 4), and those of every run before there was a choice."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, sections 3.1 and 3.2 of arXiv:2103.02406; the defaults are the paper's.

    Where the authors' released code does something else, the part has a second form, chosen by name here. The
    profiles of `experiments.py` set these together.
    """

    network: Literal["multi-attention", "baseline"] = "multi-attention"
    """`baseline` is the twin of every claim: the same backbone, global average pooling (a vision transformer's own
    pooling), one linear layer."""
    backbone: str = "tf_efficientnet_b4.ap_in1k"
    """Any timm model with feature stages, a vision transformer of timm's, or one registered by
    `timm.models.register_model` (model/README.md). `ap_in1k` weights were trained with the mean and std 0.5 the paper
    uses."""
    padding: Padding = "dynamic"
    """Padding of an EfficientNet's strided convolutions: `static` for the nominal image size, as the released
    checkpoints were trained (attention grid 23x23 in B4 at 380 px, against 24x24)."""
    pretrained: bool = True
    """Start from pretrained weights: from `weights` when given, else from timm's hub."""
    weights: str | None = None
    """A local file (safetensors or .pth; timm, efficientnet_pytorch or Cadene Xception naming) to start the backbone
    from, for machines without a hub."""
    input_mean: Channels | None = None
    """Mean of the pixels that the backbone's weights were trained on, of red, green and blue in [0, 1]; it sees
    (pixel - mean) / std. None takes timm's for these weights when training begins, and the run keeps the numbers. A
    run that starts from another has that one's."""
    input_std: Channels | None = None
    """Standard deviation of these pixels, given with `input_mean` or not at all."""
    tune: Literal["all", "norms", "lora", "head"] = "all"
    """The backbone's weights that are trained: all, those of its normalisation layers (GenD, arXiv:2508.06248), LoRA
    beside the linear layers of its attention and MLPs (by the package peft), or none. What is behind it always is."""
    lora_rank: int = 8
    """r of LoRA, arXiv:2106.09685; alpha is 2 r, and its dropout 0.05."""
    num_maps: int = 4
    """M, the number of attention maps. One map uses neither an auxiliary loss nor AGDA (Table 5)."""
    texture_stage: str = "L2"
    """SL_t, the stage whose features are enhanced; of a vision transformer an early block."""
    attention_stage: str = "L5"
    """SL_a, the stage the attention maps come from; of a vision transformer a late block."""
    attention: Literal["relu", "masked-elu"] = "relu"
    """`relu` is the paper's module; `masked-elu` the released one, which is zero on the border."""
    texture: Literal["dense", "grouped"] = "dense"
    """`dense` enhances one texture for all maps (the paper); `grouped` one for each map (the release)."""
    global_pool: Literal["unit", "mean"] = "unit"
    """G as a unit vector (Eq. 2), or as the mean weighted by the attention (the release)."""
    standardize_parts: bool = False
    """Standardise D over space before it becomes the part vectors V, as the release does."""
    align_corners: bool = False
    """Align corners where attention maps are resized, as the release does."""
    hidden_size: int = 256
    """Width of the classifier's layers."""
    part_dropout: float = 0.0
    """Probability of leaving a whole attention map out of P and A_sum; the paper names none, the release has 0.25."""
    global_dropout: float = 0.0
    """Dropout on the global feature G; the paper names none, the release has 0.5. In the baseline: before its layer."""
    drop_path_rate: float = 0.2
    """Stochastic depth of the backbone; none where `tune` leaves parts of it as they are."""
    norm_momentum: float | None = None
    """Weight of a batch in the running statistics of the backbone's batch normalisation: 0.01 in the release; None
    leaves timm's own, 0.1 in EfficientNet and Xception."""
    checkpoint_activations: bool = False
    """Compute the backbone's activations again in backward instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        require_fields(self)
        require(1 <= self.num_maps <= MAX_MAPS, self, "num_maps", f"1 to {MAX_MAPS}")
        require(1 <= self.hidden_size <= MAX_HIDDEN_SIZE, self, "hidden_size", f"1 to {MAX_HIDDEN_SIZE}")
        require(1 <= self.lora_rank <= MAX_RANK, self, "lora_rank", f"1 to {MAX_RANK}")
        momentum = self.norm_momentum
        require(momentum is None or 0 < momentum <= 1, self, "norm_momentum", "None or a value in (0, 1]")
        both = (self.input_mean is None) == (self.input_std is None)
        require(both, self, "input_std", "values where input_mean has them, else None")
        require(min(self.input_std or HALF) > 0, self, "input_std", "None or positive numbers")
        for name in ("part_dropout", "global_dropout", "drop_path_rate"):
            require(0 <= getattr(self, name) < 1, self, name, "a value in [0, 1)")
        for name in ("texture_stage", "attention_stage"):
            require(STAGE_NAME.fullmatch(getattr(self, name)) is not None, self, name, "a stage L1, L2, ...")
        require(
            int(self.texture_stage[1:]) <= int(self.attention_stage[1:]),
            self,
            "texture_stage",
            f"a stage not later than attention_stage {self.attention_stage}",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = cross entropy + auxiliary loss (Eq. 5), + cross entropy on the AGDA copy, + match loss (the release)."""

    cross_entropy_weight: float = 1.0
    label_smoothing: float = 0.0
    """Share of the target that is spread over both classes."""
    auxiliary: Literal["ril", "ams", "align-uniform", "none"] = "ril"
    """Regional independence loss, additive margin softmax over the parts (Table 6), alignment and uniformity of the
    pooled features on the unit sphere (for the baseline too), or none."""
    auxiliary_weight: float = 1.0
    """lambda_2 of Eq. (5)."""
    alignment_weight: float = 0.1
    """Weight of the alignment in `align-uniform`; GenD's."""
    uniformity_weight: float = 0.5
    """Weight of the uniformity in `align-uniform`; GenD's."""
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
        require_fields(self)
        weights = ("cross_entropy_weight", "auxiliary_weight", "agda_weight", "match_weight")
        require_at_least(self, 0, *weights, "alignment_weight", "uniformity_weight", "inter_margin", "ams_margin")
        require(0 <= self.label_smoothing < 1, self, "label_smoothing", "a value in [0, 1)")
        require(self.ams_scale > 0, self, "ams_scale", "a positive scale")
        for name in ("intra_margin_real", "intra_margin_fake"):
            within = abs(getattr(self, name)) <= MAX_MARGIN
            require(within, self, name, f"a value in [-{MAX_MARGIN}, {MAX_MARGIN}]")
        for name in ("center_rate", "center_decay"):
            require(0 < getattr(self, name) <= 1, self, name, "a value in (0, 1]")


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
    """Scaling of images and maps: antialiased, or with aligned corners and without antialiasing (the release)."""
    sigma: float = 7.0
    """Standard deviation of the blur, in pixels of the scaled-down copy."""
    kernel_size: int | None = None
    """Side of the blur's kernel, odd; None takes three sigmas to each side."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise on the blurred copy before it is scaled up again, in the network's input
    range [-1, 1]."""
    gate: bool = False
    """Pass A* through a sigmoid of random threshold and slope, as the release does."""
    gate_threshold: tuple[float, float] = (0.4, 0.6)
    gate_slope: tuple[float, float] = (3.0, 5.0)
    threshold: float = 0.5
    """theta_d of the hard variant: what the map exceeds is erased."""

    def __post_init__(self) -> None:
        require_fields(self)
        require_at_least(self, 0, "first_epoch", "noise")
        require(0 < self.resize_factor <= 1, self, "resize_factor", "a value in (0, 1]")
        require(0 < self.sigma <= MAX_BLUR, self, "sigma", f"a number of pixels up to {MAX_BLUR}")
        is_odd = self.kernel_size is None or (0 < self.kernel_size <= 6 * MAX_BLUR and self.kernel_size % 2 == 1)
        require(is_odd, self, "kernel_size", f"None or an odd number of pixels up to {6 * MAX_BLUR}")
        for name, low in (("gate_threshold", 0), ("gate_slope", 1e-3)):
            first, last = getattr(self, name)
            require(low <= first <= last, self, name, f"an interval from {low} up")
        require(0 <= self.threshold <= 1, self, "threshold", "a value in [0, 1]")
