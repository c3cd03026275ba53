"""Attention-guided data augmentation (AGDA): a part the network relied on is degraded, so that it looks elsewhere."""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from multiattn.config import AgdaConfig
from multiattn.model.pooling import resize_maps

KERNEL_SIGMAS = 3.0
"""The Gaussian is cut at this many standard deviations; 0.3 % of its mass lies beyond."""


class AttentionGuidedAugmentation(nn.Module):
    """Section 3.4 of arXiv:2103.02406, for a whole batch at once on the images' device, without gradient.

    Departures: none (the paper says neither how the map is normalised: here by its maximum, so that 0 stays 0; nor
    in which value space the hard mask is multiplied: here in the network's input, where 0 is mid-grey).
    """

    def __init__(self, config: AgdaConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, images: Tensor, attention: Tensor, generator: Generator | None = None) -> Tensor:
        """A copy of the images in which one random attention map each is degraded (soft) or erased (hard).

        Args:
            images: (B, 3, H, W) float, the network's input.
            attention: (B, M, h, w), non-negative.
            generator: source of the draw, on the images' device; torch's default one without it.

        Returns:
            (B, 3, H, W) of the images' dtype; an image whose map is all zero comes back as it was. Mode `none`
            returns the very `images`.
        """
        if self.config.mode == "none":
            return images
        maps = draw_maps(attention, generator)
        a_star = unit_maps(maps, images.shape[-2:])
        if self.config.mode == "hard":
            return mask_hard(images, a_star, self.config.threshold)
        return mix_soft(images, degrade(images, self.config.resize_factor, self.config.sigma), a_star)


def draw_maps(attention: Tensor, generator: Generator | None = None) -> Tensor:
    """One of its M maps for each sample, each with probability 1 / M.

    Args:
        attention: (B, M, h, w).
        generator: on the same device; None for the default one.

    Returns:
        (B, 1, h, w).
    """
    batch, num_maps = attention.shape[:2]
    index = torch.randint(num_maps, (batch,), generator=generator, device=attention.device)
    return attention[torch.arange(batch, device=attention.device), index].unsqueeze(1)


def unit_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """A*: maps resized bilinearly to the image, then divided by their own maximum.

    Args:
        maps: (B, 1, h, w), non-negative.
        size: (H, W) of the images.

    Returns:
        (B, 1, H, W) float32 in [0, 1], maximum 1; all zero where the map is all zero.
    """
    resized = resize_maps(maps.float(), size)
    largest = resized.amax(dim=(-2, -1), keepdim=True)
    return resized / largest.clamp_min(torch.finfo(torch.float32).tiny)


def mix_soft(images: Tensor, degraded: Tensor, a_star: Tensor) -> Tensor:
    """I' = I (1 - A*) + I_d A*, Eq. (6) of arXiv:2103.02406.

    Args:
        images: I (B, 3, H, W).
        degraded: I_d (B, 3, H, W).
        a_star: A* (B, 1, H, W) in [0, 1].

    Returns:
        I' (B, 3, H, W) of the images' dtype: I where A* = 0, I_d where A* = 1.

    Departures: none.
    """
    mixed = images.float() * (1.0 - a_star) + degraded.float() * a_star
    return mixed.to(images.dtype)


def mask_hard(images: Tensor, a_star: Tensor, threshold: float) -> Tensor:
    """The image times a mask that is 0 where A* > threshold, else 1: Eq. (7) of arXiv:2103.02406.

    Args:
        images: (B, 3, H, W).
        a_star: (B, 1, H, W) in [0, 1].
        threshold: theta_d.

    Returns:
        (B, 3, H, W) of the images' dtype.

    Departures: none.
    """
    return images * (a_star <= threshold).to(images.dtype)


def degrade(images: Tensor, resize_factor: float, sigma: float) -> Tensor:
    """I_d: scaled down, blurred and scaled back to size, section 3.4 of arXiv:2103.02406.

    Args:
        images: (B, 3, H, W) float.
        resize_factor: in (0, 1].
        sigma: of the Gaussian, in pixels of the scaled-down copy.

    Returns:
        (B, 3, H, W) float32.

    Departures: none (both resizes are bilinear, the one down antialiased).
    """
    height, width = images.shape[-2:]
    small = (max(1, round(height * resize_factor)), max(1, round(width * resize_factor)))
    with torch.autocast(device_type=images.device.type, enabled=False):
        copy = F.interpolate(images.float(), size=small, mode="bilinear", align_corners=False, antialias=True)
        return resize_maps(gaussian_blur(copy, sigma), (height, width))


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur with reflected borders.

    Args:
        images: (B, C, H, W) float32, of any size: the kernel shrinks to what reflection allows (size - 1).
        sigma: standard deviation in pixels.

    Returns:
        (B, C, H, W), same mean level (the kernel sums to 1).
    """
    planes = images.reshape(-1, 1, *images.shape[-2:])  # (B*C, 1, H, W)
    for axis in (-2, -1):
        radius = min(math.ceil(KERNEL_SIGMAS * sigma), planes.shape[axis] - 1)
        offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        padding = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
        planes = F.conv2d(F.pad(planes, padding, mode="reflect"), kernel.view(shape))
    return planes.reshape(images.shape)
