"""The multi-attention network: images -> logits, attention maps and part vectors."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from multiattn.config import ModelConfig
from multiattn.model.attention import AttentionModule
from multiattn.model.backbone import Backbone
from multiattn.model.pooling import global_vector, normalized_average_pool, part_vectors
from multiattn.model.texture import TextureEnhancement

NUM_CLASSES = 2  # 0 = real, 1 = fake


class NetworkOutput(NamedTuple):
    """What one forward pass hands out.

    Attributes:
        logits: (B, 2) float32, column 0 real, column 1 fake.
        attention: A (B, M, h, w), non-negative.
        parts: V (B, M, N) float32, unit rows, for the regional independence loss.
    """

    logits: Tensor
    attention: Tensor
    parts: Tensor


def fake_logit(logits: Tensor) -> Tensor:
    """(B, 2) class logits -> (B,) logit of P(fake): its sigmoid is the softmax's second column."""
    return logits[:, 1] - logits[:, 0]


class Classifier(nn.Module):
    """Logits of the textural matrix P and the global vector G.

    The paper says only that both are "fed into the classifier"; the layers are those of `method.md`, section 1.5.

    Departures: none the paper could tell.
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


class MultiAttentionNetwork(nn.Module):
    """Section 3.2 and Figure 2 of arXiv:2103.02406.

    Attributes:
        num_maps: M.
        num_part_features: N, the width of the rows of V (what the regional independence loss must be built with).

    Departures: none.
    """

    def __init__(self, config: ModelConfig, *, load_weights: bool = True) -> None:
        """Build the network.

        Args:
            config: its settings.
            load_weights: False leaves the backbone random, for a checkpoint that is loaded next.

        Raises:
            ValueError: a backbone that cannot serve, its weights out of reach, or stages of equal stride.
        """
        super().__init__()
        self.texture_stage, self.attention_stage = config.texture_stage, config.attention_stage
        self.backbone = Backbone(
            config.backbone,
            stages=(config.texture_stage, config.attention_stage),
            drop_path_rate=config.drop_path_rate,
            pretrained=config.pretrained and load_weights,
            weights=config.weights if load_weights else None,
        )
        _require_residual(config, self.backbone.strides)
        channels = self.backbone.channels
        self.num_maps, self.num_part_features = config.num_maps, channels[config.texture_stage]
        self.attention = AttentionModule(channels[config.attention_stage], config.num_maps)
        self.texture = TextureEnhancement(channels[config.texture_stage])
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
        """Look at a batch.

        Args:
            images: (B, 3, H, W) float in [-1, 1], of any size.

        Returns:
            Logits, attention maps and part vectors.
        """
        stages, last = self.backbone(images)
        attention = self.attention(stages[self.attention_stage])  # A (B, M, h, w)
        textural, pooled = self.texture(stages[self.texture_stage], attention.shape[-2:])  # F (B, C_F, H_s, W_s), D
        matrix = normalized_average_pool(textural, attention)  # P (B, M, C_F)
        logits = self.classifier(matrix, global_vector(last, attention))
        return NetworkOutput(logits, attention, part_vectors(pooled, attention))


def _require_residual(config: ModelConfig, strides: dict[str, int]) -> None:
    texture, attention = strides[config.texture_stage], strides[config.attention_stage]
    if texture >= attention:
        raise ValueError(
            f"{config.backbone}: texture stage {config.texture_stage} has stride {texture}, attention stage "
            f"{config.attention_stage} stride {attention}; expected a finer texture stage, since local averaging onto "
            f"a grid as fine as its own leaves no residual (T of Eq. (1) would be 0). Strides: {strides}."
        )
