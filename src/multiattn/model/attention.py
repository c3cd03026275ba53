"""Attention maps: where the network looks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BORDER_MASK_SIZE, BORDER_CELLS = 24, 2


class AttentionModule(nn.Module):
    """A = ReLU(BN(Conv1x1(f))), section 3.2 "Multiple Attention Maps Generation" of arXiv:2103.02406.

    Departures: none (the convolution has no bias, which the normalisation would cancel).
    """

    def __init__(self, in_channels: int, num_maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, num_maps, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(num_maps)

    def forward(self, features: Tensor) -> Tensor:
        """Attention maps of a stage's features.

        Args:
            features: (B, C, h, w) of the attention stage.

        Returns:
            (B, M, h, w), non-negative; a map may be all zero.
        """
        return F.relu(self.norm(self.conv(features)))


class MaskedAttentionModule(nn.Module):
    """A = mask * (ELU(BN(Conv1x1(ReLU(BN(Conv3x3(f)))))) + 1), the released checkpoints' module.

    The mask is 24x24 with a border of two cells of zeros, resized to the grid by its nearest cells. On a 23x23 grid it
    silences rows 0, 1 and 22: one cell fewer at the end than at the beginning.

    Departures from section 3.2: all of it; this is the release's form.
    """

    mask: Tensor

    def __init__(self, in_channels: int, num_maps: int) -> None:
        super().__init__()
        mask = torch.zeros(1, 1, BORDER_MASK_SIZE, BORDER_MASK_SIZE)
        inside = slice(BORDER_CELLS, -BORDER_CELLS)
        mask[:, :, inside, inside] = 1.0
        self.register_buffer("mask", mask)
        self.extract = nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1)
        self.extract_norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, num_maps, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(num_maps)

    def forward(self, features: Tensor) -> Tensor:
        """Attention maps of a stage's features.

        Args:
            features: (B, C, h, w) of the attention stage.

        Returns:
            (B, M, h, w), positive inside, zero on the border.
        """
        extracted = F.relu(self.extract_norm(self.extract(features)))
        maps = F.elu(self.norm(self.conv(extracted))) + 1.0
        return maps * F.interpolate(self.mask.to(maps.dtype), size=maps.shape[-2:], mode="nearest")


ATTENTION_MODULES = {"relu": AttentionModule, "masked-elu": MaskedAttentionModule}
"""By the names of `ModelConfig.attention`."""
