"""From crops as they lie on disk to the network's input."""

import torch
from torch import Tensor


def normalize_crops(crops: Tensor) -> Tensor:
    """Network input of RGB crops: mean 0.5 and standard deviation 0.5 per channel (section 4 of arXiv:2103.02406).

    Args:
        crops: (B, H, W, 3) uint8, RGB, on any device.

    Returns:
        (B, 3, H, W) float32 in [-1, 1], 0 -> -1 and 255 -> 1, on the same device. Its memory stays channels-last
        (a permuted view's result), the layout that convolutions on tensor cores and oneDNN prefer.

    Raises:
        ValueError: another dtype or shape.

    Departures: none.
    """
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[-1] != 3:
        raise ValueError(f"crops: expected uint8 (B, H, W, 3), found {crops.dtype} {tuple(crops.shape)}.")
    return crops.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)  # (B, 3, H, W), range [-1, 1]
