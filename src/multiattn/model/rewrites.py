"""Rewrites of a network that is built: static padding, activation checkpointing, folded batch normalisation."""

import contextlib
import copy
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import Conv2dSame, ConvNormAct
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, EdgeResidual, InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from multiattn.model.attention import AttentionModule, MaskedAttentionModule
from multiattn.model.texture import TextureStem

NOMINAL_SIZES = {
    f"tf_efficientnet_b{number}": size for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))
}
"""n of each EfficientNet (`efficientnet_params` of its authors' release); the kin use timm's default image size."""


class StaticSameConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow's SAME would pad an image of the nominal size.

    n = nominal size, k = kernel, s = stride: total = max((ceil(n / s) - 1) * s + k - n, 0) rows and columns of zeros,
    total // 2 of them at the top and left, the rest at the bottom and right. Every layer uses the image's n, not its
    own input's; this is what shrinks the grids.

    Source: efficientnet_pytorch 0.5.1, whose maps these equal to 1e-6 (B0, B1 and B4, even and odd sizes); its 0.7.1
    computes n layer by layer instead. B4 at 380 px has grids of 190, 95, 47, 23, 23, 11 and 11 cells, with dynamic
    padding 190, 95, 48, 24, 24, 12 and 12.
    """

    def __init__(self, conv: nn.Conv2d, nominal_size: int) -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups)
        # On `meta`: no memory and no random numbers for weights that are replaced at once.
        super().__init__(*sizes, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        height, width = (
            same_padding(nominal_size, (kernel - 1) * dilation + 1, stride)
            for kernel, stride, dilation in zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
        )
        self.zeros_around = (*width, *height)

    def forward(self, features: Tensor) -> Tensor:
        padded = functional.pad(features, self.zeros_around)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis of `size` cells under TensorFlow's SAME rule."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def use_static_padding(net: nn.Module, name: str) -> None:
    """Replace every run-time SAME convolution of a timm network, in place, by one padded for its nominal size.

    Parameters and their names stay. Convolutions of stride 1 need no replacement: both rules pad them by (k - 1) / 2 on
    each side.

    Raises:
        ValueError: a network without SAME padding.
    """
    found = [path for path, module in net.named_modules() if isinstance(module, Conv2dSame)]
    if not found:
        raise ValueError(
            f"{name}: padding 'static' is for networks with TensorFlow's SAME padding (tf_efficientnet_b0 to b7 and "
            "kin); this one pads its convolutions by fixed amounts of its own. Use padding 'dynamic'."
        )
    nominal_size = NOMINAL_SIZES.get(name.split(".")[0]) or net.pretrained_cfg["input_size"][-1]
    for path in found:
        parent, _, child = path.rpartition(".")
        setattr(net.get_submodule(parent), child, StaticSameConv2d(net.get_submodule(path), nominal_size))


def checkpoint_blocks(net: nn.Module, name: str) -> None:
    """Make every block of a timm network keep its inputs alone while training, and run again in backward.

    In place, through the blocks' `forward` attributes: classes, parameters, state dict and hooks stay as they are, and
    the layers inside may change their classes later. Eval mode and forward passes without gradients are untouched. A
    block then refers to itself: a network that is dropped is freed by Python's garbage collector, not at once.

    Outputs, gradients, running statistics and random numbers are those without it, to the bit where the device
    computes the same bits twice: the second run draws what the first drew (stochastic depth), and normalises by the
    batch again without counting it again.

    Blocks are the innermost modules that timm's patterns (`group_matcher`) name: those of EfficientNet, Xception,
    ResNet and ConvNeXt, one each. Stem and last convolution keep their activations.

    Raises:
        ValueError: a network without such blocks.
    """
    blocks = find_blocks(net)
    if not blocks:
        raise ValueError(
            f"{name}: checkpoint_activations needs a network whose blocks timm can tell apart (EfficientNet, Xception, "
            f"ResNet, ConvNeXt, RegNet, ...); {type(net).__name__} is none. Leave it off, or take a smaller batch with "
            "`--optim.accumulate`."
        )
    for path in blocks:
        block = net.get_submodule(path)
        block.forward = functools.partial(_forward, block)


def find_blocks(net: nn.Module) -> list[str]:
    """Paths of the blocks, in the order of the network; empty where timm's patterns name none."""
    matcher = net.group_matcher(coarse=False) if hasattr(net, "group_matcher") else None
    if not isinstance(matcher, dict):
        return []
    # In timm's order; some patterns come in lists, each with what to sort it by.
    specs = [[(spec, None)] if isinstance(spec, str) else spec for spec in matcher.values() if spec is not None]
    patterns = [re.compile(pattern) for spec in specs for pattern, _ in spec]
    modules = dict(net.named_modules())
    found: dict[str, None] = {}
    for name, _ in net.named_parameters():
        match = next(filter(None, (pattern.match(name) for pattern in patterns)), None)
        # A pattern with numbers in it is of something that repeats; the others are of single layers.
        if match is not None and match.groups() and _is_block(modules.get(match.group())):
            found[match.group()] = None
    return [path for path in found if not any(other.startswith(f"{path}.") for other in found)]


def _is_block(module: nn.Module | None) -> bool:
    """True where it is a module with layers in it that is called as one, unlike a `ModuleList`."""
    return module is not None and type(module).forward is not nn.Module.forward and any(True for _ in module.children())


def _forward(block: nn.Module, *args: Any, **options: Any) -> Any:
    """Output of the block's own forward, checkpointed where there is something to save."""
    forward = functools.partial(type(block).forward, block)
    is_trained = any(module.training for module in block.modules())  # in part where a part of it is tuned
    if not (is_trained and torch.is_grad_enabled()):
        return forward(*args, **options)
    # Some networks hand over lists of maps that they extend or overwrite afterwards: the second run gets the maps.
    leaves, layout = tree_flatten((args, options))

    def run(*leaves: Any) -> Any:
        args, options = tree_unflatten(leaves, layout)
        return forward(*args, **options)

    if torch.compiler.is_compiling():
        # It takes no contexts and needs none: its graph moves the statistics once, however often it computes a value.
        return checkpoint(run, *leaves, use_reentrant=False)

    contexts = contextlib.nullcontext(), frozen_statistics(block, counters=True)  # of the first run and of the second
    return checkpoint(run, *leaves, use_reentrant=False, context_fn=lambda: contexts)


@contextlib.contextmanager
def frozen_statistics(network: nn.Module, *, counters: bool = False) -> Iterator[None]:
    """Let batch normalisation go on normalising by the batch, but keep its running statistics as they are.

    With `counters` it does not count the batch either. The layers still get their statistics, with momentum 0: without
    them autograd would save fewer tensors than in a run that moves them, which checkpointing refuses.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        if counters and layer.num_batches_tracked is not None:
            layer.num_batches_tracked = torch.empty_like(layer.num_batches_tracked)  # counts into nowhere
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, kept, strict=True):
            layer.momentum = momentum
            if counters:
                layer.num_batches_tracked = batches


PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    EfficientNet: (("conv_stem", "bn1"), ("conv_head", "bn2")),
    InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    ConvBnAct: (("conv", "bn1"),),
    ConvNormAct: (("conv", "bn"),),
    AttentionModule: (("conv", "norm"),),
    MaskedAttentionModule: (("extract", "extract_norm"), ("conv", "norm")),
    TextureStem: (("first", "first_norm"), ("second", "second_norm"), ("project", "project_norm")),
}
"""Block -> (convolution, normalisation): attributes of which it calls the second on the output of the first alone."""


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy for inference with the same eval output to rounding, without the memory passes that normalising takes.

    y = gamma (W x - mu) / sigma + beta is a convolution with weight gamma W / sigma and bias beta - gamma mu / sigma.
    timm's normalisation holds the activation, which stays in its place. Blocks outside timm's EfficientNet family are
    copied as they are. The copy is in eval mode, and its running statistics are gone.
    """
    folded = copy.deepcopy(network).eval()
    for block in folded.modules():
        for conv_name, norm_name in PAIRS.get(type(block), ()):
            conv, norm = getattr(block, conv_name), getattr(block, norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                setattr(block, norm_name, getattr(norm, "act", nn.Identity()))
    return folded.requires_grad_(False)
