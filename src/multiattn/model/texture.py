"""Textural feature enhancement: what local averaging removes from an early stage, made stronger."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def texture_residual(features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """T and D of Eq. (1) of arXiv:2103.02406: T = f - upsample(D), D = local average of f on the attention grid.

    The way back up is bilinear: a linear ramp then leaves no residue (away from the border), so that T holds high
    frequencies only. Nearest upsampling turns the same ramp into a sawtooth with the period of the pooling grid.

    Args:
        features: (B, N, H, W) of the texture stage.
        grid: (h, w) of the attention maps, h <= H and w <= W.

    Returns:
        T (B, N, H, W) and D (B, N, h, w).

    Departures: none (the paper does not name the interpolation).
    """
    pooled = F.adaptive_avg_pool2d(features, grid)  # D (B, N, h, w)
    smooth = F.interpolate(pooled, size=features.shape[-2:], mode="bilinear", align_corners=False)
    return features - smooth, pooled


class DenseLayer(nn.Module):
    """BN-ReLU-Conv3x3, the composite layer of DenseNet (Huang et al. 2017, arXiv:1608.06993)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.conv(F.relu(self.norm(features)))


class TextureEnhancement(nn.Module):
    """The texture residual T turned into the textural feature map F by a densely connected block of 3 layers.

    Layer i sees the concatenation of T and of everything made before it, so its input has i * N channels; every layer
    makes N. F is the output of the last layer, hence C_F = N: the paper writes the pooled v_k as vectors in R^N
    (section 3.2).

    Attributes:
        out_channels: C_F = N.

    Departures: none (the paper does not give the block's widths).
    """

    num_layers = 3

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer((i + 1) * in_channels, in_channels) for i in range(self.num_layers))
        self.out_channels = in_channels

    def forward(self, features: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """F and D of a stage's features.

        Args:
            features: (B, N, H, W) of the texture stage.
            grid: (h, w) of the attention maps.

        Returns:
            F (B, C_F, H, W) and D (B, N, h, w).
        """
        residual, pooled = texture_residual(features, grid)
        made = [residual]
        for layer in self.layers:
            made.append(layer(torch.cat(made, dim=1)))
        return made[-1], pooled
