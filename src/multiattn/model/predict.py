"""uint8 crops -> the network's input -> logits, for validation, prediction and submission alike."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from multiattn.config.choices import Tta
from multiattn.model.network import NetworkOutput, fake_logit
from multiattn.runtime.devices import autocast

SCALES = (1.0, 0.9, 1.1)
"""Sides of the square that a view shows, in those of the crop. Boxes of one face by two detectors, or in two frames,
differ by about a tenth, and the presets that resize crops (selim, strong, box) show a network at least as much."""
VIEWS: dict[Tta, tuple[tuple[bool, float], ...]] = {
    "none": ((False, 1.0),),
    "flip": ((False, 1.0), (True, 1.0)),
    "scales": tuple(product((False,), SCALES)),
    "flip+scales": tuple(product((False, True), SCALES)),
}
"""Name -> views of a crop, (mirrored, scale) each; the first is the crop as it is."""
if set(VIEWS) != set(get_args(Tta)):
    raise TypeError(f"Tta lists {', '.join(get_args(Tta))}; its views are {', '.join(VIEWS)}.")


def normalize_crops(crops: Tensor) -> Tensor:
    """Network input of RGB crops: mean 0.5 and standard deviation 0.5 per channel (section 4 of arXiv:2103.02406).

    (B, H, W, 3) uint8 on any device -> (B, 3, H, W) float32 in [-1, 1] on the same, 0 -> -1 and 255 -> 1. Its memory
    stays channels-last (of a permuted view), the layout that convolutions on tensor cores and oneDNN prefer.

    Raises:
        ValueError: another dtype or shape.
    """
    if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[-1] != 3:
        raise ValueError(f"crops: expected uint8 (B, H, W, 3), found {crops.dtype} {tuple(crops.shape)}.")
    return crops.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0)  # (B, 3, H, W), range [-1, 1]


def forward_views(
    forward: Callable[[Tensor], NetworkOutput], inputs: Tensor, tta: Tta = "none"
) -> tuple[Tensor, NetworkOutput]:
    """The mean over its views of each crop's logit of P(fake), (B,) float32, and the output of the crops as they are.

    One forward pass a view. Source: mirror images as RobustForensics (4th of the DFDC), which averages logits; the 3rd
    mirrors half of the frames, the 5th averages probabilities. Departures: none.

    Args:
        inputs: (B, 3, H, W) float, as the network takes them.
    """
    logits, first = [], None
    for mirrored, scale in VIEWS[tta]:
        output = forward(_view(inputs, mirrored, scale))
        first = output if first is None else first
        logits.append(fake_logit(output.logits.float()))
    return torch.stack(logits).mean(dim=0), first


def _view(inputs: Tensor, mirrored: bool, scale: float) -> Tensor:
    """(B, 3, H, W): the square of so many sides around the centre, bilinear, what lies outside the crop mirrored in its
    edge; then mirrored left to right."""
    if scale != 1:
        with torch.autocast(inputs.device.type, enabled=False):  # places in half precision are pixels off
            transform = inputs.new_tensor([[scale, 0, 0], [0, scale, 0]]).expand(len(inputs), 2, 3)
            grid = functional.affine_grid(transform, list(inputs.shape), align_corners=False)
            inputs = functional.grid_sample(inputs, grid, padding_mode="reflection", align_corners=False)
    return inputs.flip(-1) if mirrored else inputs


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    precision: str,
    tta: Tta = "none",
    forward: Callable[[Tensor], NetworkOutput] | None = None,
    watch: Callable[[Tensor, NetworkOutput], None] | None = None,
) -> np.ndarray:
    """The logit of P(fake) of each crop, (N,) float64.

    Args:
        network: in eval mode during the call, then in its former mode again.
        batches: (B, H, W, 3) uint8 RGB.
        tta: a name in `VIEWS`: the logits of these views are averaged.
        forward: called instead of the network itself.
        watch: called with every batch, as it is without other views, and its output, both on the device.

    Raises:
        ValueError: a logit that is not finite: the weights are damaged or overflow in this precision.
    """
    was_training = network.training
    network.eval()
    logits = []  # they stay on the device until the last batch: reading one waits for all that is computed there
    for crops in batches:
        pixels = crops.to(device, non_blocking=True)
        with autocast(precision, device):
            of_batch, output = forward_views(forward or network, normalize_crops(pixels), tta)
        if watch is not None:
            watch(pixels, output)
        logits.append(of_batch)
    network.train(was_training)
    result = torch.cat(logits).cpu().double().numpy() if logits else np.zeros(0)
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result)).sum())
        way = "" if precision == "fp32" else " Try fp32 (train, predict, submit and evaluate have --precision)."
        raise ValueError(f"{bad} of {len(result)} logits are not finite in {precision}.{way}")
    return result
