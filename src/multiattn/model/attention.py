"""Attention maps of one stage, and bilinear attention pooling (BAP): features summed under each map, as unit rows."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiattn.config import ModelConfig
from multiattn.config.settings import registry

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
        """f (B, C, h, w) of the attention stage -> A (B, M, h, w), non-negative; a map may be all zero."""
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
        """f (B, C, h, w) of the attention stage -> A (B, M, h, w), positive inside, zero on the border."""
        extracted = F.relu(self.extract_norm(self.extract(features)))
        maps = F.elu(self.norm(self.conv(extracted))) + 1.0
        return maps * F.interpolate(self.mask.to(maps.dtype), size=maps.shape[-2:], mode="nearest")


ATTENTION_MODULES = registry(ModelConfig, "attention", {"relu": AttentionModule, "masked-elu": MaskedAttentionModule})


ZERO_NORM = 1e-6
"""Length below which a row counts as zero: its direction would be rounding noise, its gradient up to 1 / norm."""
MEAN_FLOOR = 1e-8
"""Added where the release divides by a sum of attention or by a standard deviation."""


def resize_maps(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """(B, M, h, w) resized bilinearly to (B, M, *size); the same tensor when it has that size already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def attention_sums(features: Tensor, attention: Tensor, *, align_corners: bool = False) -> Tensor:
    """(B, M, C) sum over positions of F (x) A_k for every map k, the sum inside Eq. (2).

    A batched matrix product, so the (B, M, C, H, W) tensor of the paper's F_k never exists. In float32 under autocast
    too; float64 stays float64.

    Args:
        features: (B, C, H, W), shared by all maps, or (B, M, C, H, W), one for each.
        attention: (B, M, h, w), resized bilinearly to (H, W).
    """
    with torch.autocast(device_type=features.device.type, enabled=False):
        dtype = torch.promote_types(features.dtype, torch.float32)
        weights = resize_maps(attention.to(dtype), features.shape[-2:], align_corners=align_corners).flatten(2)
        flat = features.to(dtype).flatten(-2)  # (B, C, H*W) or (B, M, C, H*W)
        if flat.ndim == 3:
            return weights @ flat.transpose(1, 2)  # (B, M, H*W) x (B, H*W, C)
        return (flat @ weights.unsqueeze(-1)).squeeze(-1)  # (B, M, C, H*W) x (B, M, H*W, 1)


def unit_rows(sums: Tensor) -> Tensor:
    """Each row divided by its L2 norm; 0, with zero gradient, where it is shorter than `ZERO_NORM`."""
    norms = torch.linalg.vector_norm(sums, dim=-1, keepdim=True)
    alive = norms > ZERO_NORM
    # Divide by 1 where the row is dead: 0 / eps would send a gradient of 1 / eps, infinite in float16, to the maps.
    return torch.where(alive, sums / torch.where(alive, norms, 1.0), 0.0)


def normalized_average_pool(features: Tensor, attention: Tensor, *, align_corners: bool = False) -> Tensor:
    """(B, M, C), one unit vector an attention map: bilinear attention pooling, Eq. (2) of arXiv:2103.02406.

    Arguments as `attention_sums`; rows are 0, with zero gradient, where the attention is all zero. Departures: none.
    """
    return unit_rows(attention_sums(features, attention, align_corners=align_corners))


def weighted_mean(features: Tensor, attention: Tensor, *, align_corners: bool = False) -> Tensor:
    """Mean (B, M, C) float32 of the features (B, C, H, W) under each map A (B, M, h, w): the release's pooling for G.

    Where a map is all zero, every position counts alike.
    """
    resized = resize_maps(attention.float(), features.shape[-2:], align_corners=align_corners) + MEAN_FLOOR
    return attention_sums(features, resized / resized.sum(dim=(-2, -1), keepdim=True))


def standardize(maps: Tensor) -> Tensor:
    """Each channel of (B, N, h, w) with mean 0 and (unbiased) standard deviation 1 over space, in float32."""
    with torch.autocast(device_type=maps.device.type, enabled=False):
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        mean, std = maps.mean(dim=(-2, -1), keepdim=True), maps.std(dim=(-2, -1), keepdim=True)
        return (maps - mean) / (std + MEAN_FLOOR)


GLOBAL_POOLS = registry(ModelConfig, "global_pool", {"unit": normalized_average_pool, "mean": weighted_mean})


def global_vector(last: Tensor, attention: Tensor, kind: str = "unit", *, align_corners: bool = False) -> Tensor:
    """G (B, C_last) float32, section 3.2: BAP of the last map (B, C_last, H, W) with A_sum, the sum of A (B, M, h, w).

    Departures: none with the kind `unit`, Eq. (2); `mean` is the release's weighted mean.
    """
    total = attention.float().sum(dim=1, keepdim=True)  # A_sum (B, 1, h, w)
    return GLOBAL_POOLS[kind](last, total, align_corners=align_corners).squeeze(1)
