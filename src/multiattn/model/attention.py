"""Attention maps: where the network looks."""

import torch.nn.functional as F
from torch import Tensor, nn


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
