"""Attention-guided data augmentation (AGDA): a part the network relied on is degraded, so that it looks elsewhere."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from multiattn.config import AgdaConfig
from multiattn.model.attention import resize_maps

KERNEL_SIGMAS = 3.0
"""The Gaussian is cut at this many standard deviations; 0.3 % of its mass lies beyond."""


class DegradedCopies(NamedTuple):
    """What AGDA hands out.

    Attributes:
        images: (B, 3, H, W) of the images' dtype.
        dropped: (B,) int64, the map that was degraded in each.
    """

    images: Tensor
    dropped: Tensor


class AttentionGuidedAugmentation(nn.Module):
    """Section 3.4 of arXiv:2103.02406, for a whole batch at once on the images' device, without gradient.

    Departures: none with the defaults (the paper says neither how the map is normalised: here by its maximum, so that
    0 stays 0; nor in which value space the hard mask is multiplied: here in the network's input, where 0 is mid-grey).
    The gate, the noise and the choice of maps by mass are the release's.
    """

    def __init__(self, config: AgdaConfig) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, images: Tensor, attention: Tensor, generator: Generator | None = None) -> DegradedCopies:
        """A copy of the images in which one attention map each, drawn at random, is degraded (soft) or erased (hard).

        Args:
            images: (B, 3, H, W) float, the network's input.
            attention: (B, M, h, w), non-negative.
            generator: source of the draws, on the images' device; torch's default one without it.

        Returns:
            The copies and the maps drawn; an image whose map is all zero comes back as it was (but for its noise).

        Raises:
            ValueError: mode `none`.
        """
        config = self.config
        if config.mode == "none":
            raise ValueError("AGDA: expected mode soft or hard, found none; leave the AGDA pass out instead.")
        index = draw_maps(attention, config.map_choice, generator)
        maps = attention[torch.arange(len(index), device=index.device), index].unsqueeze(1)
        aligned = config.resample == "align-corners"
        a_star = unit_maps(maps, images.shape[-2:], align_corners=aligned)
        if config.gate:
            a_star = gate_maps(a_star, *(self._draw(bounds, maps, generator) for bounds in self._gate_bounds()))
        if config.mode == "hard":
            return DegradedCopies(mask_hard(images, a_star, config.threshold), index)
        degraded = degrade(
            images, config.resize_factor, config.sigma, kernel_size=config.kernel_size, align_corners=aligned
        )
        if config.noise > 0:
            noise = torch.randn(degraded.shape, generator=generator, device=degraded.device)
            degraded = degraded + config.noise * noise
        return DegradedCopies(mix_soft(images, degraded, a_star), index)

    def _gate_bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return self.config.gate_threshold, self.config.gate_slope

    @staticmethod
    def _draw(bounds: tuple[float, float], maps: Tensor, generator: Generator | None) -> Tensor:
        first, last = bounds
        return first + (last - first) * torch.rand((len(maps), 1, 1, 1), generator=generator, device=maps.device)


def draw_maps(attention: Tensor, choice: str = "uniform", generator: Generator | None = None) -> Tensor:
    """One of its M maps for each sample.

    Args:
        attention: (B, M, h, w), non-negative.
        choice: `uniform`, each with probability 1 / M (the paper), or `mass`, in proportion to sqrt(sum A_k + 1)
            (the release).
        generator: on the same device; None for the default one.

    Returns:
        (B,) int64 index of the map.
    """
    batch, num_maps = attention.shape[:2]
    if choice == "uniform":
        return torch.randint(num_maps, (batch,), generator=generator, device=attention.device)
    weights = (attention.float().sum(dim=(-2, -1)) + 1.0).sqrt()
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


def gate_maps(a_star: Tensor, threshold: Tensor | float, slope: Tensor | float) -> Tensor:
    """A* through a sigmoid, shifted so that 0 stays 0 and divided by the range that is left: a part of the release.

    (s(A*) - s(0)) / (1 - s(0)), with s(a) = sigmoid(slope (a - threshold)).

    Args:
        a_star: (B, 1, H, W) in [0, 1].
        threshold: a scalar, or one a sample as (B, 1, 1, 1).
        slope: likewise, positive.

    Returns:
        (B, 1, H, W) in [0, 1), 0 where A* = 0.
    """
    threshold, slope = (
        torch.as_tensor(value, dtype=a_star.dtype, device=a_star.device) for value in (threshold, slope)
    )
    zero = torch.sigmoid(-slope * threshold)
    return (torch.sigmoid(slope * (a_star - threshold)) - zero) / (1.0 - zero)


def unit_maps(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """A*: maps resized bilinearly to the image, then divided by their own maximum.

    Args:
        maps: (B, 1, h, w), non-negative.
        size: (H, W) of the images.

    Returns:
        (B, 1, H, W) float32 in [0, 1], maximum 1; all zero where the map is all zero.
    """
    resized = resize_maps(maps.float(), size, align_corners=align_corners)
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


def degrade(
    images: Tensor, resize_factor: float, sigma: float, *, kernel_size: int | None = None, align_corners: bool = False
) -> Tensor:
    """I_d: scaled down, blurred and scaled back to size, section 3.4 of arXiv:2103.02406.

    Args:
        images: (B, 3, H, W) float.
        resize_factor: in (0, 1].
        sigma: of the Gaussian, in pixels of the scaled-down copy.
        kernel_size: side of the Gaussian's kernel; None for three sigmas to each side.
        align_corners: scale with aligned corners and without antialiasing, as the release does.

    Returns:
        (B, 3, H, W) float32.

    Departures: none (both resizes are bilinear, the one down antialiased unless corners are aligned).
    """
    height, width = images.shape[-2:]
    small = (max(1, round(height * resize_factor)), max(1, round(width * resize_factor)))
    with torch.autocast(device_type=images.device.type, enabled=False):
        copy = F.interpolate(
            images.float(), size=small, mode="bilinear", align_corners=align_corners, antialias=not align_corners
        )
        return resize_maps(gaussian_blur(copy, sigma, kernel_size), (height, width), align_corners=align_corners)


def gaussian_blur(images: Tensor, sigma: float, kernel_size: int | None = None) -> Tensor:
    """Separable Gaussian blur with reflected borders.

    Args:
        images: (B, C, H, W) float32, of any size: the kernel shrinks to what reflection allows (size - 1).
        sigma: standard deviation in pixels.
        kernel_size: odd side of the kernel; None for `KERNEL_SIGMAS` to each side.

    Returns:
        (B, C, H, W), same mean level (the kernel sums to 1).
    """
    planes = images.reshape(-1, 1, *images.shape[-2:])  # (B*C, 1, H, W)
    wanted = math.ceil(KERNEL_SIGMAS * sigma) if kernel_size is None else kernel_size // 2
    for axis in (-2, -1):
        radius = min(wanted, planes.shape[axis] - 1)
        offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = kernel / kernel.sum()
        padding = (0, 0, radius, radius) if axis == -2 else (radius, radius, 0, 0)
        shape = (1, 1, -1, 1) if axis == -2 else (1, 1, 1, -1)
        planes = F.conv2d(F.pad(planes, padding, mode="reflect"), kernel.view(shape))
    return planes.reshape(images.shape)
