"""Blocks of a backbone that compute their activations again in backward instead of keeping them."""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(net: nn.Module, name: str) -> int:
    """Let every block of a timm network keep its inputs alone while training, and run again in backward.

    In place, through the blocks' `forward` attributes: classes, parameters, state dict and hooks stay as they are, and
    the layers inside may change their classes later. Eval mode and forward passes without gradients are untouched. A
    block then refers to itself: a network that is dropped is freed by Python's garbage collector, not at once.

    Outputs, gradients, running statistics and random numbers are those without it, to the bit where the kernels give
    the same bits twice: the second run draws what the first drew (stochastic depth), and normalises by the batch again
    without counting it again.

    Args:
        net: a network that timm tells the layers of (`group_matcher`). Its blocks are the innermost modules that the
            patterns name: one each of EfficientNet's, Xception's, ResNet's and ConvNeXt's blocks. Stem and last
            convolution keep their activations.
        name: for the message.

    Returns:
        The number of blocks.

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
    return len(blocks)


def find_blocks(net: nn.Module) -> list[str]:
    """Paths of the blocks, in the order of the network; empty where timm's patterns name none."""
    matcher = net.group_matcher(coarse=False) if hasattr(net, "group_matcher") else None
    if not isinstance(matcher, dict):
        return []
    patterns = [re.compile(pattern) for pattern in _patterns(matcher)]
    modules = dict(net.named_modules())
    found: dict[str, None] = {}
    for name, _ in net.named_parameters():
        match = next(filter(None, (pattern.match(name) for pattern in patterns)), None)
        # A pattern with numbers in it is of something that repeats; the others are of single layers.
        if match is not None and match.groups() and _is_block(modules.get(match.group())):
            found[match.group()] = None
    return [path for path in found if not any(other.startswith(f"{path}.") for other in found)]


def _patterns(matcher: dict[str, Any]) -> Iterator[str]:
    """The regular expressions of a `group_matcher`, in timm's order; some come with what to sort them by."""
    for spec in matcher.values():
        if isinstance(spec, str):
            yield spec
        elif spec is not None:
            yield from (pattern for pattern, _ in spec)


def _is_block(module: nn.Module | None) -> bool:
    """Whether it is a module with layers in it that is called as one, unlike a `ModuleList`."""
    if module is None or type(module).forward is nn.Module.forward:
        return False
    return next(module.children(), None) is not None


def _forward(block: nn.Module, *args: Any, **options: Any) -> Any:
    """The block's own forward, checkpointed where there is something to save."""
    forward = functools.partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **options)
    # Some networks hand over lists of maps that they extend or overwrite afterwards: the second run gets the maps.
    leaves, layout = tree_flatten((args, options))

    def run(*leaves: Any) -> Any:
        args, options = tree_unflatten(leaves, layout)
        return forward(*args, **options)

    if torch.compiler.is_compiling():
        # It takes no contexts and needs none: its graph moves the statistics once, however often it computes a value.
        return checkpoint(run, *leaves, use_reentrant=False)
    return checkpoint(run, *leaves, use_reentrant=False, context_fn=lambda: _contexts(block))


def _contexts(block: nn.Module) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    """For the first run and for the second."""
    return contextlib.nullcontext(), untouched_statistics(block)


@contextlib.contextmanager
def untouched_statistics(block: nn.Module) -> Iterator[None]:
    """Batch normalisation in training mode neither moves its running statistics nor counts the batch.

    The statistics are still handed to the kernel, with momentum 0: without them autograd would save fewer tensors than
    in the first run, which checkpointing refuses. What `momentum` was in the first run does not matter to its output.
    """
    layers = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept: list[tuple[float | None, Tensor | None]] = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked = torch.empty_like(layer.num_batches_tracked)  # counts into nowhere
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, kept, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches
