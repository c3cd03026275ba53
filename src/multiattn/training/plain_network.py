"""A training step and its network written plainly: what `multiattn bench` measures ours against.

Plainly is what one writes first from the paper: tensors as (B, C, H, W) lie in memory, bilinear attention pooling that
forms the products F_k = F (x) A_k and sums them, one backward for the losses of both passes. Layers, weights, losses,
AGDA and optimiser are the very same objects, and so are the numbers, to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiattn.model.attention import MEAN_FLOOR, standardize, unit_rows
from multiattn.model.network import MultiAttentionNet, NetworkOutput
from multiattn.training.engine.step import TrainingStep


def make_plain(step: TrainingStep) -> TrainingStep:
    """Turn a training step into the plain one, in place: weights and images NCHW, pooling materialised."""
    for value in (*step.parameters(), *step.buffers()):
        # A copy into new memory: `contiguous()` keeps the channels-last strides of a 1x1 kernel, and they decide which
        # layout a convolution works in.
        value.data = torch.empty(value.shape, dtype=value.dtype, device=value.device).copy_(value)
    step.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    if isinstance(step.network, MultiAttentionNet):
        step.network.__class__ = PlainMultiAttentionNet
    return step


def joint_backward(
    step: TrainingStep, crops: Tensor, labels: Tensor, *, objective: str = "network", degrade: bool = True
) -> dict[str, Tensor]:
    """Forward and backward of one step: both passes, then one backward of their sum.

    Arguments and result as `training.step.backward_passes`; the activations of both passes are kept until the end.
    """
    clean = step(crops, labels, objective=objective)
    terms = dict(clean.terms)
    if degrade and objective == "network" and step.augmentation is not None:
        degraded = step(crops, labels, before=clean)
        terms |= {**degraded.terms, "loss": clean.terms["loss"] + degraded.terms["loss"]}
    terms["loss"].backward()
    return {name: value.detach() for name, value in terms.items()}


class PlainMultiAttentionNet(MultiAttentionNet):
    """The same layers, with every F_k formed in memory."""

    def forward(self, images: Tensor) -> NetworkOutput:
        """As `MultiAttentionNet.forward`."""
        config, align = self.config, self.config.align_corners
        stages, last = self.backbone(images)
        attention = self.attention(stages[config.attention_stage])
        textural, pooled = self.texture(stages[config.texture_stage], attention)
        matrix = unit_rows(summed_products(textural, attention, align_corners=align))  # P (B, M, C_F)
        kept = self.part_dropout(attention.new_ones(*attention.shape[:2], 1))
        total = (attention * kept[..., None]).sum(dim=1, keepdim=True)  # A_sum (B, 1, h, w)
        if config.global_pool == "unit":
            vector = unit_rows(summed_products(last, total, align_corners=align)).squeeze(1)  # G (B, C_last)
        else:
            total = resize(total, last.shape[-2:], align_corners=align) + MEAN_FLOOR
            vector = summed_products(last, total / total.sum(dim=(-2, -1), keepdim=True)).squeeze(1)
        parts = unit_rows(summed_products(standardize(pooled) if config.standardize_parts else pooled, attention))
        return NetworkOutput(self.classifier(matrix * kept, vector), attention, parts)


def summed_products(features: Tensor, attention: Tensor, *, align_corners: bool = False) -> Tensor:
    """Sum over positions of F_k = F (x) A_k, with the (B, M, C, H, W) tensor of all F_k in memory.

    Args:
        features: (B, C, H, W), or (B, M, C, H, W) with one for each map.
        attention: (B, M, h, w).

    Returns:
        (B, M, C).
    """
    weights = resize(attention, features.shape[-2:], align_corners=align_corners)
    shared = features[:, None] if features.ndim == 4 else features
    return (shared * weights[:, :, None]).sum(dim=(-2, -1))


def resize(maps: Tensor, size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """(B, M, h, w) -> (B, M, *size), bilinear."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


def is_plain(module: nn.Module) -> bool:
    """Whether every parameter and buffer lies in memory in the order of its axes."""
    values = (*module.parameters(), *module.buffers())
    return all(value.stride() == torch.empty(value.shape, device="meta").stride() for value in values)
