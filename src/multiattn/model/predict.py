"""uint8 crops -> the network's input -> logits, for validation, prediction and submission alike."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from multiattn.model.network import NetworkOutput, fake_logit
from multiattn.runtime.devices import autocast


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


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    precision: str,
    forward: Callable[[Tensor], NetworkOutput] | None = None,
    watch: Callable[[Tensor, NetworkOutput], None] | None = None,
) -> np.ndarray:
    """The logit of P(fake) of each crop, (N,) float64.

    Args:
        network: in eval mode during the call, then in its former mode again.
        batches: (B, H, W, 3) uint8 RGB.
        forward: called instead of the network itself.
        watch: called with every batch and its output, both on the device.

    Raises:
        ValueError: a logit that is not finite: the weights are damaged or overflow in this precision.
    """
    was_training = network.training
    network.eval()
    logits = []
    for crops in batches:
        pixels = crops.to(device, non_blocking=True)
        with autocast(precision, device):
            output = (forward or network)(normalize_crops(pixels))
        if watch is not None:
            watch(pixels, output)
        logits.append(fake_logit(output.logits.float()).cpu())
    network.train(was_training)
    result = torch.cat(logits).double().numpy() if logits else np.zeros(0)
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result)).sum())
        way = "" if precision == "fp32" else " Try fp32 (train, predict, submit and evaluate have --precision)."
        raise ValueError(f"{bad} of {len(result)} logits are not finite in {precision}.{way}")
    return result
