"""Attention-guided data augmentation (AGDA), section 3.4: copies of the images with an attended part degraded."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from multiattn.config import AgdaConfig
from multiattn.config.settings import registry
from multiattn.model.attention import resize_maps

KERNEL_SIGMAS = 3.0
"""The Gaussian is cut at this many standard deviations; 0.3 % of its mass lies beyond."""


class DegradedCopies(NamedTuple):
    """Images (B, 3, H, W) of the originals' dtype, and the map that was degraded in each, (B,) int64."""

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

        For the network's input (B, 3, H, W) and A (B, M, h, w), with draws from the generator on their device. An image
        whose map is all zero comes back as it was (but for its noise).
        """
        config = self.config
        index = MAP_CHOICES[config.map_choice](attention, generator)
        maps = attention[torch.arange(len(index), device=index.device), index].unsqueeze(1)  # (B, 1, h, w)
        aligned = config.resample == "align-corners"
        a_star = unit_maps(maps, images.shape[-2:], align_corners=aligned)
        if config.gate:  # one threshold and one slope for the whole batch
            draws = torch.rand(2, generator=generator, device=maps.device)
            bounds = (config.gate_threshold, config.gate_slope)
            gate = (low + (high - low) * draw for (low, high), draw in zip(bounds, draws, strict=True))
            a_star = gate_maps(a_star, *gate)
        if config.mode == "hard":
            return DegradedCopies(mask_hard(images, a_star, config.threshold), index)
        degraded = degrade(
            images,
            config.resize_factor,
            config.sigma,
            kernel_size=config.kernel_size,
            align_corners=aligned,
            noise=config.noise,
            generator=generator,
        )
        return DegradedCopies(mix_soft(images, degraded, a_star), index)


def draw_uniform(attention: Tensor, generator: Generator | None = None) -> Tensor:
    """(B,) int64, one of the M maps of each sample of A (B, M, h, w), with probability 1 / M: the paper's choice."""
    batch, num_maps = attention.shape[:2]
    return torch.randint(num_maps, (batch,), generator=generator, device=attention.device)


def draw_by_mass(attention: Tensor, generator: Generator | None = None) -> Tensor:
    """(B,) int64, one of the M maps of each sample, in proportion to sqrt(sum A_k + 1): the release's choice."""
    weights = (attention.float().sum(dim=(-2, -1)) + 1.0).sqrt()
    return torch.multinomial(weights, 1, generator=generator).squeeze(1)


MAP_CHOICES: dict[str, Callable[[Tensor, Generator | None], Tensor]] = registry(
    AgdaConfig, "map_choice", {"uniform": draw_uniform, "mass": draw_by_mass}
)


def unit_maps(maps: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """A* (B, 1, H, W) float32: maps (B, 1, h, w) >= 0 resized bilinearly to (H, W), then divided by their maximum.

    In [0, 1] with maximum 1; all zero where the map is all zero.
    """
    resized = resize_maps(maps.float(), size, align_corners=align_corners)
    largest = resized.amax(dim=(-2, -1), keepdim=True)
    return resized / largest.clamp_min(torch.finfo(torch.float32).tiny)


def gate_maps(a_star: Tensor, threshold: Tensor | float, slope: Tensor | float) -> Tensor:
    """A* through a sigmoid, shifted so that 0 stays 0 and divided by the range that is left: a part of the release.

    (s(A*) - s(0)) / (1 - s(0)), with s(a) = sigmoid(slope (a - threshold)), slope > 0: (B, 1, H, W) in [0, 1).
    """
    threshold, slope = (
        torch.as_tensor(value, dtype=a_star.dtype, device=a_star.device) for value in (threshold, slope)
    )
    zero = torch.sigmoid(-slope * threshold)
    return (torch.sigmoid(slope * (a_star - threshold)) - zero) / (1.0 - zero)


def mix_soft(images: Tensor, degraded: Tensor, a_star: Tensor) -> Tensor:
    """I' = I (1 - A*) + I_d A*, Eq. (6) of arXiv:2103.02406, for A* (B, 1, H, W) in [0, 1]. Departures: none."""
    mixed = images.float() * (1.0 - a_star) + degraded.float() * a_star  # Eq. (6)
    return mixed.to(images.dtype)


def mask_hard(images: Tensor, a_star: Tensor, threshold: float) -> Tensor:
    """I times a mask that is 0 where A* > theta_d (`threshold`), else 1: Eq. (7). Departures: none."""
    return images * (a_star <= threshold).to(images.dtype)  # Eq. (7)


def degrade(
    images: Tensor,
    resize_factor: float,
    sigma: float,
    *,
    kernel_size: int | None = None,
    align_corners: bool = False,
    noise: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """I_d (B, 3, H, W) float32: scaled down, blurred and scaled back to size, section 3.4 of arXiv:2103.02406.

    The settings are those of `AgdaConfig`; `align_corners` scales without antialiasing, as the release does.

    Departures: none (both resizes are bilinear, the one down antialiased unless corners are aligned).
    """
    height, width = images.shape[-2:]
    small = (max(1, round(height * resize_factor)), max(1, round(width * resize_factor)))
    with torch.autocast(device_type=images.device.type, enabled=False):
        copy = F.interpolate(
            images.float(), size=small, mode="bilinear", align_corners=align_corners, antialias=not align_corners
        )
        copy = gaussian_blur(copy, sigma, kernel_size)
        if noise > 0:
            copy = copy + noise * torch.randn(copy.shape, generator=generator, device=copy.device)
        return resize_maps(copy, (height, width), align_corners=align_corners)


def gaussian_blur(images: Tensor, sigma: float, kernel_size: int | None = None) -> Tensor:
    """Separable Gaussian blur of (B, C, H, W) float32 with reflected borders; the kernel sums to 1.

    A small image's kernel shrinks to the radius that reflection allows (size - 1).
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
