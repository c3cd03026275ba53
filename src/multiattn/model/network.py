"""The multi-attention network, images -> logits, attention maps and part vectors; and its plain twin."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from multiattn.config import ModelConfig
from multiattn.config.settings import registry
from multiattn.model.attention import ATTENTION_MODULES, global_vector, normalized_average_pool, standardize
from multiattn.model.texture import TEXTURE_BLOCKS, TextureStem

if TYPE_CHECKING:
    from multiattn.model.backbone import Backbone

NUM_CLASSES = 2  # 0 = real, 1 = fake


class NetworkOutput(NamedTuple):
    """Outputs of one forward pass."""

    logits: Tensor
    """(B, 2) float32, column 0 real, column 1 fake."""
    attention: Tensor | None
    """A (B, M, h, w), non-negative; None from the baseline."""
    parts: Tensor | None
    """V (B, M, N) float32, unit rows, for the auxiliary loss; None from the baseline."""
    features: Tensor | None = None
    """(B, C_last) float32, the last map's mean over space (of a plain vision transformer its pooled output), for
    `model.distance` and the loss on features."""


# `torch.export.save` writes the type of the output under this name, and needs to know it.
_register_namedtuple(NetworkOutput, serialized_type_name="multiattn.model.network.NetworkOutput")


def fake_logit(logits: Tensor) -> Tensor:
    """(B, 2) class logits -> (B,) logit of P(fake): its sigmoid is the softmax's second column."""
    return logits[:, 1] - logits[:, 0]


def average_pool(last: Tensor) -> Tensor:
    """(B, C, H, W) -> its mean over space, (B, C), in float32 under autocast too."""
    with torch.autocast(device_type=last.device.type, enabled=False):
        return last.float().mean(dim=(-2, -1))


class Classifier(nn.Module):
    """The layers from the textural matrix P and the global vector G to the logits.

    Departures: none (the paper says only that both are "fed into the classifier"; the layers are the release's).
    """

    def __init__(
        self, num_maps: int, part_size: int, global_size: int, hidden_size: int, *, global_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.parts = nn.Sequential(
            nn.Linear(num_maps * part_size, hidden_size),
            nn.Hardswish(),
            nn.Linear(hidden_size, hidden_size),
            nn.Hardswish(),
        )
        self.whole = nn.Sequential(nn.Dropout(global_dropout), nn.Linear(global_size, hidden_size), nn.Hardswish())
        self.joint = nn.Sequential(
            nn.Linear(2 * hidden_size, hidden_size), nn.Hardswish(), nn.Linear(hidden_size, NUM_CLASSES)
        )

    def forward(self, matrix: Tensor, vector: Tensor) -> Tensor:
        """P (B, M, C_F) and G (B, C_last) -> logits (B, 2) float32."""
        # In float32 under autocast too: the layers are small, and a bf16 logit has eight significant bits.
        with torch.autocast(device_type=matrix.device.type, enabled=False):
            hidden = [self.parts(matrix.float().flatten(1)), self.whole(vector.float())]
            return self.joint(torch.cat(hidden, dim=1))


class BaselineHead(nn.Module):
    """Dropout and one linear layer, behind a backbone without attention and its pooling."""

    def __init__(self, num_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(num_features, NUM_CLASSES)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, C_last) float32 -> logits (B, 2) float32."""
        with torch.autocast(device_type=pooled.device.type, enabled=False):
            return self.linear(self.dropout(pooled))


class BaselineNet(nn.Module):
    """The twin: the same backbone with global average pooling and one linear layer.

    A vision transformer pools as its weights were trained to: class token, mean of the patches or attention pooling.
    """

    def __init__(self, config: ModelConfig, *, load_weights: bool = True) -> None:
        super().__init__()
        self.backbone = make_backbone(config, (), load_weights=load_weights, own_pooling=True)
        self.head = BaselineHead(self.backbone.num_features, config.global_dropout)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> NetworkOutput:
        """(B, 3, H, W) float in [-1, 1] -> logits; no attention, no parts."""
        pooled = average_pool(self.backbone(images)[1])
        return NetworkOutput(self.head(pooled), None, None, pooled)


class MultiAttentionNet(nn.Module):
    """Section 3.2 and Figure 2 of arXiv:2103.02406, and the forms of its parts that the authors released.

    Where all stages of the backbone share one stride, `stem` makes the texture stage of the images and an early block.

    >>> import torch
    >>> from multiattn import ModelConfig, MultiAttentionNet
    >>> net = MultiAttentionNet(
    ...     ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3")
    ... ).eval()
    >>> output = net(torch.zeros(2, 3, 64, 64))
    >>> tuple(output.logits.shape), tuple(output.attention.shape)
    ((2, 2), (2, 4, 8, 8))

    Departures: none with the paper's forms (the defaults of `ModelConfig`).
    """

    def __init__(self, config: ModelConfig, *, load_weights: bool = True) -> None:
        """Build the network; without `load_weights` the backbone stays random, for a checkpoint that is loaded next.

        Raises:
            ValueError: a backbone that cannot serve, its weights out of reach, or stages of equal stride.
        """
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config, (config.texture_stage, config.attention_stage), load_weights=load_weights)
        channels, strides = self.backbone.channels, self.backbone.strides
        width, stride = channels[config.texture_stage], strides[config.texture_stage]
        self.stem = None
        if len(strides) > 1 and len(set(strides.values())) == 1:
            self.stem = TextureStem(width)
            width, stride = self.stem.out_channels, self.stem.stride
        _require_residual(config, stride, strides)
        self.num_maps, self.num_part_features = config.num_maps, width  # M and N of V
        self.attention = ATTENTION_MODULES[config.attention](channels[config.attention_stage], config.num_maps)
        self.texture = TEXTURE_BLOCKS[config.texture](width, config.num_maps)
        self.part_dropout = nn.Dropout1d(config.part_dropout)
        self.classifier = Classifier(
            config.num_maps,
            self.texture.out_channels,
            self.backbone.num_features,
            config.hidden_size,
            global_dropout=config.global_dropout,
        )
        # Measured with tinynet_e at 112 px on 2 CPU cores: 133 samples/s trained against 95 without.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> NetworkOutput:
        """Logits, attention maps and part vectors of images (B, 3, H, W), float in [-1, 1], of any size the backbone
        takes."""
        config = self.config
        stages, last = self.backbone(images)
        attention = self.attention(stages[config.attention_stage])  # A (B, M, h, w)
        # F (B, C_F, H_s, W_s), or (B, M, C_F, H_s, W_s) with a texture a map; D (B, N, h, w)
        textural, pooled = self.texture(self.texture_map(images, stages), attention)
        # Eq. (2): P (B, M, C_F)
        matrix = normalized_average_pool(textural, attention, align_corners=config.align_corners)
        kept = self.part_dropout(attention.new_ones(*attention.shape[:2], 1))  # (B, M, 1), whole maps left out
        seen = attention * kept[..., None]
        vector = global_vector(last, seen, config.global_pool, align_corners=config.align_corners)  # G (B, C_last)
        # Section 3.3: V (B, M, N), BAP of D with A
        parts = normalized_average_pool(standardize(pooled) if config.standardize_parts else pooled, attention)
        return NetworkOutput(self.classifier(matrix * kept, vector), attention, parts, average_pool(last))

    def texture_map(self, images: Tensor, stages: dict[str, Tensor]) -> Tensor:
        """f (B, N, H_s, W_s): the backbone's texture stage, or what the stem makes of it and the images."""
        early = stages[self.config.texture_stage]
        return early if self.stem is None else self.stem(images, early)


NETWORKS = registry(ModelConfig, "network", {"multi-attention": MultiAttentionNet, "baseline": BaselineNet})


def make_network(config: ModelConfig, *, load_weights: bool = True) -> MultiAttentionNet | BaselineNet:
    """The network that the settings name; as `MultiAttentionNet`."""
    return NETWORKS[config.network](config, load_weights=load_weights)


def make_backbone(
    config: ModelConfig, stages: tuple[str, ...], *, load_weights: bool, own_pooling: bool = False
) -> "Backbone":
    """The backbone that the settings name, with its weights unless `load_weights` is False."""
    from multiattn.model.backbone import Backbone  # timm, which takes seconds: `score` reads frames meanwhile

    return Backbone(
        config.backbone,
        stages=stages,
        drop_path_rate=config.drop_path_rate,
        pretrained=config.pretrained and load_weights,
        weights=config.weights if load_weights else None,
        padding=config.padding,
        norm_momentum=config.norm_momentum,
        checkpoint_activations=config.checkpoint_activations,
        input_mean=config.input_mean,
        input_std=config.input_std,
        own_pooling=own_pooling,
    )


def _require_residual(config: ModelConfig, texture: int, strides: dict[str, int]) -> None:
    attention = strides[config.attention_stage]
    if texture >= attention:
        raise ValueError(
            f"{config.backbone}: texture stage {config.texture_stage} has stride {texture}, attention stage "
            f"{config.attention_stage} stride {attention}; expected a finer texture stage, since local averaging onto "
            f"a grid as fine as its own leaves no residual (T of Eq. (1) would be 0). Strides: {strides}."
        )
