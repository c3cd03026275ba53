"""A network for inference, with each batch normalisation folded into the convolution before it."""

import copy

from timm.layers import ConvNormAct
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from multiattn.model.attention import AttentionModule, MaskedAttentionModule

PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    EfficientNet: (("conv_stem", "bn1"), ("conv_head", "bn2")),
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    ConvBnAct: (("conv", "bn1"),),
    ConvNormAct: (("conv", "bn"),),
    AttentionModule: (("conv", "norm"),),
    MaskedAttentionModule: (("extract", "extract_norm"), ("conv", "norm")),
}
"""Block -> (convolution, normalisation): attributes of which it calls the second on the output of the first alone."""


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy whose eval output is the same to rounding, without the passes over memory that normalising takes.

    y = gamma (W x - mu) / sigma + beta is a convolution with weight gamma W / sigma and bias beta - gamma mu / sigma.
    timm's normalisation holds the activation, which stays in its place.

    Args:
        network: holds blocks of timm's EfficientNet family; others are copied as they are.

    Returns:
        A new network in eval mode, for inference alone: its running statistics are gone.
    """
    folded = copy.deepcopy(network).eval()
    for block in folded.modules():
        # By the classes it descends from: `speed_up_cpu_training` puts subclasses in their place.
        for conv_name, norm_name in next((PAIRS[kind] for kind in type(block).__mro__ if kind in PAIRS), ()):
            conv, norm = getattr(block, conv_name), getattr(block, norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(block, norm_name, getattr(norm, "act", nn.Identity()))
    return folded.requires_grad_(False)
