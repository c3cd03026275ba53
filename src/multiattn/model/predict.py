"""Batches of crops -> logits, for validation and for submission alike."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from multiattn.model.network import NetworkOutput, fake_logit
from multiattn.model.preprocess import normalize_crops
from multiattn.runtime.devices import autocast


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    device: torch.device,
    precision: str,
    forward: Callable[[Tensor], NetworkOutput] | None = None,
    watch: Callable[[NetworkOutput], None] | None = None,
) -> np.ndarray:
    """The logit of P(fake) of each crop.

    Args:
        network: put into eval mode here, and back into its former mode afterwards.
        batches: (B, H, W, 3) uint8 RGB.
        precision: `bf16`, `fp16` or `fp32`; the sigmoid is left to the caller, in float64.
        forward: called instead of the network itself.
        watch: sees every batch's output.

    Returns:
        (N,) float64.

    Raises:
        ValueError: a logit that is not finite: the weights are damaged or overflow in this precision.
    """
    was_training = network.training
    network.eval()
    logits = []
    for crops in batches:
        with autocast(precision, device):
            output = (forward or network)(normalize_crops(crops.to(device, non_blocking=True)))
        if watch is not None:
            watch(output)
        logits.append(fake_logit(output.logits.float()).cpu())
    network.train(was_training)
    result = torch.cat(logits).double().numpy() if logits else np.zeros(0)
    if not np.isfinite(result).all():
        bad = int((~np.isfinite(result)).sum())
        raise ValueError(f"{bad} of {len(result)} logits are not finite in {precision}. Try --precision fp32.")
    return result
