"""Bilinear attention pooling (BAP): features summed under each attention map, as unit vectors."""

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO_NORM = 1e-6
"""Rows shorter than this count as zero: their direction would be rounding noise, their gradient up to 1 / norm."""


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, M, h, w) resized bilinearly to (B, M, *size); the same tensor when it has that size already."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalized_average_pool(features: Tensor, attention: Tensor) -> Tensor:
    """One unit vector an attention map: bilinear attention pooling, Eq. (2) of arXiv:2103.02406.

    The sum over positions is a batched matrix product, so the (B, M, C, H, W) tensor of the paper's F_k never exists.

    Args:
        features: (B, C, H, W), any float dtype; computed in float32 (float64 stays float64), also under autocast.
        attention: (B, M, h, w), non-negative; resized bilinearly to (H, W).

    Returns:
        (B, M, C) float32, each row of L2 norm 1 (0, with zero gradient, where the attention is all zero).

    Departures: none.
    """
    with torch.autocast(device_type=features.device.type, enabled=False):
        dtype = torch.promote_types(features.dtype, torch.float32)
        weights = resize_maps(attention.to(dtype), features.shape[-2:]).flatten(2)  # (B, M, H*W)
        sums = weights @ features.to(dtype).flatten(2).transpose(1, 2)  # (B, M, C)
        norms = torch.linalg.vector_norm(sums, dim=-1, keepdim=True)  # (B, M, 1)
        alive = norms > ZERO_NORM
        # Divide by 1 where the row is dead: 0 / eps would send a gradient of 1 / eps, infinite in float16, to the maps.
        return torch.where(alive, sums / torch.where(alive, norms, 1.0), 0.0)


def part_vectors(pooled: Tensor, attention: Tensor) -> Tensor:
    """V, the "semantic feature vectors" of section 3.3: BAP of D with A.

    Args:
        pooled: D (B, N, h, w), the texture stage averaged down to the attention grid.
        attention: A (B, M, h, w).

    Returns:
        V (B, M, N) float32, unit rows.

    Departures: none.
    """
    return normalized_average_pool(pooled, attention)


def global_vector(last: Tensor, attention: Tensor) -> Tensor:
    """G, the global feature of section 3.2: BAP of the last map with A_sum, the sum of all attention maps.

    Args:
        last: (B, C_last, H, W), the backbone's last map.
        attention: A (B, M, h, w).

    Returns:
        G (B, C_last) float32 of norm 1.

    Departures: none.
    """
    total = attention.float().sum(dim=1, keepdim=True)  # A_sum (B, 1, h, w)
    return normalized_average_pool(last, total).squeeze(1)
