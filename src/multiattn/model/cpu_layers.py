"""A timm EfficientNet's depthwise convolutions, normalisations and gates for training on a CPU, by other kernels.

Measured with EfficientNet-B4 at 380 px, these layers take more than half of a training step in ATen's kernels, on 2
AVX2 cores as on 2 AVX-512 ones; the point-wise convolutions, which stay, are near the cores' peak.
"""

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same_arg
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import Tensor, nn

from multiattn.model.cpu_functions import (
    DepthwiseConvolution,
    Excite,
    Gating,
    NormAdd,
    NormExcite,
    NormSiLU,
    NormSqueeze,
    Squeeze,
)
from multiattn.model.cpu_kernels import MAX_CHANNELS

KERNEL_SIZES = (3, 5)
STORED = (torch.float32, torch.bfloat16)


def speed_up_cpu_training(module: nn.Module) -> nn.Module:
    """Train a timm EfficientNet's layers with the kernels of `cpu_kernels.py` where the input allows it.

    In place, by changing the layers' classes to subclasses that differ in `forward` alone: parameters, buffers,
    state dict, hooks and what training and eval mode mean stay as they were. The kernels serve float32 on a CPU with
    gradients on, and bfloat16 under autocast: then they read and write bfloat16, while arithmetic, statistics, sums
    and weights stay float32. Everything else (another device or dtype, no gradients, torch.compile, export, tracing)
    takes timm's own path, so the module may be moved, copied and pickled freely.

    Gradients agree with ATen's to rounding (about 1e-6 of the largest in float32); second derivatives are an error.
    The kernels give the same bits for the same inputs, whatever the number of threads.

    Args:
        module: a network, or anything that holds layers of timm's EfficientNet family.

    Returns:
        The same module.
    """
    for layer in module.modules():
        if type(layer) in (nn.Conv2d, Conv2dSame) and _is_plain_depthwise(layer):
            layer.__class__ = CpuConv2dSame if type(layer) is Conv2dSame else CpuConv2d
        elif type(layer) is BatchNormAct2d and isinstance(layer.act, nn.SiLU) and layer.affine:
            layer.__class__ = CpuBatchNormSiLU
        elif type(layer) is SqueezeExcite and isinstance(layer.gate, nn.Sigmoid):
            layer.__class__ = CpuSqueezeExcite
        elif type(layer) in BLOCKS and getattr(layer, "conv_s2d", None) is None:
            layer.__class__ = BLOCKS[type(layer)]
    return module


def _is_plain_depthwise(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == layer.in_channels == layer.out_channels
        and layer.kernel_size in [(size, size) for size in KERNEL_SIZES]
        and layer.stride in ((1, 1), (2, 2))
        and layer.dilation == (1, 1)
        and layer.bias is None
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and max(layer.padding) < layer.kernel_size[0]
    )


def _takes_kernels(x: Tensor, weight: Tensor) -> bool:
    """Whether this call can go through NumPy: gradients wanted, stored numbers on a CPU, and nobody tracing."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor
        and x.device.type == weight.device.type == "cpu"
        and x.dtype in STORED
        and weight.dtype == torch.float32
        and x.ndim == 4
        and x.numel() > 0
        and x.shape[1] <= MAX_CHANNELS
    )


# --- depthwise convolution ----------------------------------------------------------------------------------------


def _convolution_input(x: Tensor, layer: nn.Conv2d) -> Tensor | None:
    """x in the dtype a convolution works in here, bfloat16 under autocast; None where the kernels do not serve it."""
    if layer.bias is not None or not _takes_kernels(x, layer.weight):  # folding gives it a bias
        return None
    wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    if wanted not in STORED or (wanted == torch.float32 and x.dtype != wanted):
        return None  # without autocast, ATen refuses an input that is not of the weight's dtype
    return x.to(wanted)


class CpuConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        (top, left), stride, size = self.padding, self.stride[0], self.kernel_size[0]
        height, width = x.shape[-2] + 2 * top - size, x.shape[-1] + 2 * left - size
        found = _convolution_input(x, self)
        if found is None or min(height, width) < 0:  # timm's says what is wrong
            return super().forward(x)
        out_size = (height // stride + 1, width // stride + 1)
        return DepthwiseConvolution.apply(found, self.weight, stride, top, left, out_size)


class CpuConv2dSame(Conv2dSame):
    """A depthwise `Conv2dSame` (TensorFlow's padding, more of it after than before) that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        found = _convolution_input(x, self)
        if found is None:
            return super().forward(x)
        left, _, top, _ = pad_same_arg(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
        stride = self.stride[0]
        out_size = (-(-x.shape[-2] // stride), -(-x.shape[-1] // stride))
        return DepthwiseConvolution.apply(found, self.weight, stride, top, left, out_size)


# --- batch normalisation ------------------------------------------------------------------------------------------


def _normalises_by_kernels(norm: nn.Module, x: Tensor, activation: type[nn.Module]) -> bool:
    """Whether this is timm's normalisation with that activation, training on what the kernels serve."""
    return (
        type(norm) in (BatchNormAct2d, CpuBatchNormSiLU)
        and norm.training
        and norm.affine
        and type(norm.act) is activation
        and isinstance(norm.drop, nn.Identity)
        and _takes_kernels(x, norm.weight)
        and x.numel() > x.shape[1]
    )


@torch.no_grad()
def _follow(norm: BatchNormAct2d, mean: Tensor, variance: Tensor, x: Tensor) -> None:
    """Move the running statistics as `nn.BatchNorm2d` does: the variance it keeps is the unbiased one."""
    if not norm.track_running_stats or norm.running_mean is None:
        return
    norm.num_batches_tracked.add_(1)
    rate = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    if rate:
        count = x.numel() // x.shape[1]
        norm.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
        norm.running_var.mul_(1 - rate).add_(variance, alpha=rate * count / (count - 1))


class CpuBatchNormSiLU(BatchNormAct2d):
    """timm's `BatchNormAct2d` with SiLU that trains faster on a CPU; eval mode is timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not _normalises_by_kernels(self, x, nn.SiLU):
            return super().forward(x)
        out, mean, variance = NormSiLU.apply(x, self.weight, self.bias, self.eps)
        _follow(self, mean, variance, x)
        return out


# --- squeeze and excitation, and the blocks around it -------------------------------------------------------------


class CpuSqueezeExcite(SqueezeExcite):
    """timm's `SqueezeExcite` that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not _takes_kernels(x, self.conv_reduce.weight) or _is_watched(*self.children()):
            return super().forward(x)
        gating = Gating()
        mean, x = Squeeze.apply(x, gating)
        return Excite.apply(x, self.gate_of(mean), gating)

    def gate_of(self, mean: Tensor) -> Tensor:
        """(B, C) float32 -> (B, C) in [0, 1]."""
        # As matrices: a convolution of 4 single pixels took oneDNN up to 4 ms backward.
        with torch.autocast("cpu", enabled=False):  # too small to gain from bfloat16
            hidden = self.act1(_as_linear(self.conv_reduce, mean))
            return self.gate(_as_linear(self.conv_expand, hidden))


def _as_linear(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def normalise_and_gate(x: Tensor, norm: nn.Module, between: nn.Module, gate: nn.Module) -> Tensor:
    """gate(between(norm(x))), in one go where `norm` is followed by SiLU, nothing, and squeeze and excitation."""
    whole = (
        isinstance(gate, CpuSqueezeExcite)
        and isinstance(between, nn.Identity)
        and not _is_watched(*gate.modules(), norm)
    )
    if not whole or not _normalises_by_kernels(norm, x, nn.SiLU):
        return gate(between(norm(x)))
    gating = Gating()
    squeezed, x, mean, variance = NormSqueeze.apply(x, norm.weight, norm.bias, norm.eps, gating)
    _follow(norm, mean, variance, x)
    return NormExcite.apply(x, gate.gate_of(squeezed), gating)


def normalise_and_add(x: Tensor, norm: nn.Module, drop_path: nn.Module, shortcut: Tensor | None) -> Tensor:
    """drop_path(norm(x)) + shortcut, or norm(x) without one, in one go where `norm` has no activation."""
    fits = shortcut is None or (shortcut.dtype == x.dtype and shortcut.shape == x.shape)
    if not fits or _is_watched(norm, drop_path) or not _normalises_by_kernels(norm, x, nn.Identity):
        return norm(x) if shortcut is None else drop_path(norm(x)) + shortcut
    factor = None if shortcut is None else drop_path(x.new_ones(x.shape[0], 1, 1, 1))  # drawn as for the whole of x
    out, mean, variance = NormAdd.apply(x, norm.weight, norm.bias, norm.eps, factor, shortcut)
    _follow(norm, mean, variance, x)
    return out


def _is_watched(*modules: nn.Module) -> bool:
    """Whether somebody hooked one of these: then it has to be called."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in modules)


class CpuInvertedResidual(InvertedResidual):
    """timm's `InvertedResidual` that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, h, w)."""
        shortcut = x if self.has_skip else None
        x = self.conv_dw(self.bn1(self.conv_pw(x)))
        x = self.conv_pwl(normalise_and_gate(x, self.bn2, self.aa, self.se))
        return normalise_and_add(x, self.bn3, self.drop_path, shortcut)


class CpuDepthwiseSeparableConv(DepthwiseSeparableConv):
    """timm's `DepthwiseSeparableConv` that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, h, w)."""
        shortcut = x if self.has_skip else None
        x = self.conv_pw(normalise_and_gate(self.conv_dw(x), self.bn1, self.aa, self.se))
        return normalise_and_add(x, self.bn2, self.drop_path, shortcut)


BLOCKS = {InvertedResidual: CpuInvertedResidual, DepthwiseSeparableConv: CpuDepthwiseSeparableConv}
"""By timm's classes."""
