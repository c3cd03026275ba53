"""A timm EfficientNet's depthwise convolutions, normalisations and gates for training on a CPU, by other kernels.

Measured on 2 AVX2 cores with EfficientNet-B4 at 380 px, these layers take more than half of a training step in
ATen's kernels; the point-wise convolutions, which stay, are near the cores' peak.
"""

import numba
import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same_arg
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from multiattn.model import cpu_kernels as kernels
from multiattn.model.cpu_depthwise import depthwise_forward, depthwise_input_gradient, depthwise_weight_gradient

KERNEL_SIZES = (3, 5)


def speed_up_cpu_training(module: nn.Module) -> nn.Module:
    """Train a timm EfficientNet's layers with the kernels of `cpu_kernels.py` where the input allows it.

    In place, by changing the layers' classes to subclasses that differ in `forward` alone: parameters, buffers,
    state dict, hooks and what training and eval mode mean stay as they were. The kernels serve float32 on a CPU with
    gradients on. Everything else (another device or dtype, autocast, no gradients, torch.compile, export, tracing)
    takes timm's own path, so the module may be moved, copied and pickled freely.

    Gradients agree with ATen's to rounding (about 1e-6 of the largest); second derivatives are an error. The kernels
    give the same bits for the same inputs, whatever the number of threads.

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
    """Whether this call can go through NumPy: gradients wanted, plain float32 on a CPU, and nobody tracing."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim == 4
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _use_torch_threads() -> None:
    # numba keeps its own number, one for each calling thread; backward may run in another than forward.
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))


def _channels_last(x: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C) array, contiguous; a view where the memory already lies so."""
    return np.ascontiguousarray(x.detach().permute(0, 2, 3, 1).numpy())


def _empty(shape: tuple[int, ...]) -> tuple[np.ndarray, Tensor]:
    """Memory for a result: as a (B, H, W, C) array, and as the (B, C, H, W) tensor in channels-last order."""
    out = torch.empty(shape, dtype=torch.float32)
    return out.numpy(), out.permute(0, 3, 1, 2)


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


# --- depthwise convolution ----------------------------------------------------------------------------------------


class _DepthwiseConvolution(torch.autograd.Function):
    """With stride 1, oneDNN's forward convolution serves both forward and as gradient of the input, several times
    faster than its own backward; strided ones and the gradient of the kernel are numba's."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, top: int, left: int, size: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.top, ctx.left = stride, top, left
        if stride == 1:
            return F.conv2d(x, weight, None, 1, (top, left), 1, x.shape[1])
        _use_torch_threads()
        out, result = _empty((x.shape[0], *size, x.shape[1]))
        depthwise_forward(_channels_last(x), _taps(weight), stride, top, left, out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        slopes, grad_x, grad_weight = _channels_last(gradient), None, None
        _use_torch_threads()
        if ctx.needs_input_grad[0] and ctx.stride == 1:
            last = weight.shape[-1] - 1
            padding = (last - ctx.top, last - ctx.left)
            grad_x = F.conv2d(gradient, weight.flip(2, 3), None, 1, padding, 1, x.shape[1])
        elif ctx.needs_input_grad[0]:
            out, grad_x = _empty((x.shape[0], *x.shape[2:], x.shape[1]))
            depthwise_input_gradient(slopes, _taps(weight), ctx.stride, ctx.top, ctx.left, out)
        if ctx.needs_input_grad[1]:
            taps = depthwise_weight_gradient(_channels_last(x), slopes, weight.shape[-1], ctx.stride, ctx.top, ctx.left)
            grad_weight = _float(taps).permute(2, 0, 1).unsqueeze(1)  # (C, 1, k, k)
        return grad_x, grad_weight, None, None, None, None


def _taps(weight: Tensor) -> np.ndarray:
    """(C, 1, k, k) -> (k, k, C)."""
    return np.ascontiguousarray(weight.detach()[:, 0].permute(1, 2, 0).numpy())


class CpuConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        if self.bias is not None or not _takes_kernels(x, self.weight):  # folding gives it a bias
            return super().forward(x)
        (top, left), stride, size = self.padding, self.stride[0], self.kernel_size[0]
        height, width = x.shape[-2] + 2 * top - size, x.shape[-1] + 2 * left - size
        if min(height, width) < 0:
            return super().forward(x)  # which says what is wrong
        out_size = (height // stride + 1, width // stride + 1)
        return _DepthwiseConvolution.apply(x, self.weight, stride, top, left, out_size)


class CpuConv2dSame(Conv2dSame):
    """A depthwise `Conv2dSame` (TensorFlow's padding, more of it after than before) that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        if self.bias is not None or not _takes_kernels(x, self.weight):
            return super().forward(x)
        left, _, top, _ = pad_same_arg(x.shape[-2:], self.kernel_size, self.stride, self.dilation)
        stride = self.stride[0]
        out_size = (-(-x.shape[-2] // stride), -(-x.shape[-1] // stride))
        return _DepthwiseConvolution.apply(x, self.weight, stride, top, left, out_size)


# --- batch normalisation and SiLU ---------------------------------------------------------------------------------


class _BatchNormSiLU(torch.autograd.Function):
    """SiLU(batch_norm(x)) with the batch's statistics; keeps x alone, where ATen keeps x and what SiLU was given."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        _use_torch_threads()
        flat = _channels_last(x)
        mean, variance = kernels.batch_moments(flat.reshape(-1), x.shape[1])
        inverse_std = 1.0 / np.sqrt(variance + eps)
        scale = weight.detach().numpy() * inverse_std
        shift = bias.detach().numpy() - mean * scale
        out, result = _empty(flat.shape)
        kernels.scale_silu(flat.reshape(-1), scale.astype(np.float32), shift.astype(np.float32), out.reshape(-1))
        ctx.save_for_backward(x, weight, bias)
        ctx.mean, ctx.inverse_std = mean.astype(np.float32), inverse_std.astype(np.float32)
        mean_tensor, variance_tensor = _float(mean), _float(variance)
        ctx.mark_non_differentiable(mean_tensor, variance_tensor)
        return result, mean_tensor, variance_tensor

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        x, weight, bias = ctx.saved_tensors
        _use_torch_threads()
        flat = _channels_last(x)
        out, result = _empty(flat.shape)
        grad_weight, grad_bias = kernels.batch_norm_silu_backward(
            flat.reshape(-1), _channels_last(gradient).reshape(-1), weight.detach().numpy(), bias.detach().numpy(),
            ctx.mean, ctx.inverse_std, out.reshape(-1),
        )  # fmt: skip
        return result, _float(grad_weight), _float(grad_bias), None


class CpuBatchNormSiLU(BatchNormAct2d):
    """timm's `BatchNormAct2d` with SiLU that trains faster on a CPU; eval mode is timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        fused = self.training and _takes_kernels(x, self.weight) and x.numel() > x.shape[1]
        if not fused or not isinstance(self.drop, nn.Identity):
            return super().forward(x)
        out, mean, variance = _BatchNormSiLU.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean, variance, x.numel() // x.shape[1])
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does: the variance it keeps is the unbiased one."""
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean, alpha=rate)
        self.running_var.mul_(1 - rate).add_(variance, alpha=rate * count / (count - 1))


# --- squeeze and excitation ---------------------------------------------------------------------------------------


class _Squeeze(torch.autograd.Function):
    """x -> its mean over positions, and x again for `_Excite`, which lends its gradient unscaled.

    So both parts of the gradient of x, gate * g and that of the mean, are written in one pass.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gates: list[Tensor]) -> tuple[Tensor, Tensor]:
        _use_torch_threads()
        flat = _images(x)
        ctx.gates = gates
        sums = kernels.image_sums(flat, flat[:, :0], x.shape[1])
        return _float(sums / (x.shape[2] * x.shape[3]))[:, :, None, None], x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean: Tensor, gradient: Tensor):
        _use_torch_threads()
        height, width = gradient.shape[-2:]
        gradient = _channels_last(gradient)
        out, result = _empty(gradient.shape)
        batch, channels = grad_mean.shape[:2]
        kernels.scale_images(
            gradient.reshape(batch, -1),
            ctx.gates[0].detach().numpy().reshape(batch, channels),
            grad_mean.numpy().reshape(batch, channels) / np.float32(height * width),
            out.reshape(batch, -1),
        )
        return result, None


class _Excite(torch.autograd.Function):
    """x * gate, for an x that comes from `_Squeeze` with the same list of gates."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, gates: list[Tensor]) -> Tensor:
        _use_torch_threads()
        gates.append(gate.detach())
        ctx.save_for_backward(x)
        flat = _channels_last(x)
        batch, channels = x.shape[:2]
        scale = gate.detach().numpy().reshape(batch, channels)
        out, result = _empty(flat.shape)
        kernels.scale_images(flat.reshape(batch, -1), scale, np.zeros_like(scale), out.reshape(batch, -1))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        _use_torch_threads()
        (x,) = ctx.saved_tensors
        sums = kernels.image_sums(_images(x), _images(gradient), x.shape[1])
        return gradient, _float(sums)[:, :, None, None], None


def _images(x: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H * W * C), channels last."""
    return _channels_last(x).reshape(x.shape[0], -1)


class CpuSqueezeExcite(SqueezeExcite):
    """timm's `SqueezeExcite` that trains faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not _takes_kernels(x, self.conv_reduce.weight):
            return super().forward(x)
        gates: list[Tensor] = []
        mean, x = _Squeeze.apply(x, gates)
        gate = self.gate(self.conv_expand(self.act1(self.conv_reduce(mean))))
        return _Excite.apply(x, gate, gates)
