"""What the tests of the CPU kernels share: a layer and its fast copy, gradients, and float64 to compare with."""

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from multiattn.model.cpu_layers import speed_up_cpu_training

KERNEL_FUNCTIONS = ("DepthwiseConvolution", "NormSiLU", "NormAdd", "Squeeze", "Excite", "NormSqueeze", "NormExcite")


def pair(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layer, and its copy on the CPU kernels."""
    return layer, speed_up_cpu_training(copy.deepcopy(layer))


def random_input(*shape: int, contiguous: bool = False, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + shift
    return x if contiguous else x.contiguous(memory_format=torch.channels_last)


def gradients(
    module: nn.Module, x: Tensor, context: AbstractContextManager | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output, and the gradients of its weighted sum with respect to the input and every parameter.

    The weights are bfloat16's numbers, so that every dtype has the same.

    Args:
        context: around the forward pass, such as autocast.
    """
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(5)  # what stochastic depth draws
    with context or nullcontext():
        out = module(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(out.dtype)
    module.zero_grad()
    (out * weight).sum().backward()
    return out.detach(), {"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    """Within `tolerance` of the largest expected value: sums of thousands of float32 terms cancel."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


def assert_same_training(plain: nn.Module, fast: nn.Module, x: Tensor) -> None:
    # The reference is float64: float32 ATen is no closer to it than the kernels are.
    expected, expected_gradients = gradients(copy.deepcopy(plain).double(), x.double())
    actual, actual_gradients = gradients(fast, x)
    assert_close(actual, expected.float())
    assert actual_gradients.keys() == expected_gradients.keys()
    for name, gradient in actual_gradients.items():
        assert_close(gradient, expected_gradients[name].float())


def functions_of(out: Tensor) -> set[str]:
    """Names of the functions of `cpu_functions` that made this output."""
    names, nodes, seen = set(), [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(type(node).__name__.removesuffix("Backward"))
            nodes += [after for after, _ in node.next_functions]
    return names & set(KERNEL_FUNCTIONS)


def uses_kernels(out: Tensor) -> bool:
    return bool(functions_of(out))
