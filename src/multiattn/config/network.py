"""Settings of the network."""

import re
from dataclasses import dataclass
from typing import Literal

from multiattn.config.checks import require, require_choices

STAGE_NAME = re.compile(r"L([1-9]\d?)")
"""L1, L2, ...: how many there are depends on the backbone, which checks that."""
MAX_MAPS = 8


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
    checkpoint_activations: bool = False
    """Compute the backbone's activations again in backward instead of keeping them: less memory, more time."""

    def __post_init__(self) -> None:
        require_choices(self)
        require(1 <= self.num_maps <= MAX_MAPS, self, "num_maps", f"1 to {MAX_MAPS}")
        require(self.hidden_size >= 1, self, "hidden_size", "at least 1")
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
