"""Autograd functions over the loops of `cpu_kernels.py` and `cpu_depthwise.py`; `cpu_layers.py` decides who calls them.

Images are (B, C, H, W) tensors of float32 or bfloat16, channels last in memory (others are copied); weights and
statistics are float32. Second derivatives are an error.

With the batch's mean mu and standard deviation sigma of a channel over its n values, and dz the gradient of the
normalised z = weight (x - mu) / sigma + bias, that of x is

    dx = weight / sigma * (dz - mean(dz) - (x - mu) / sigma^2 * mean(dz (x - mu))).
"""

from typing import NamedTuple

import numba
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from multiattn.model import cpu_kernels as kernels
from multiattn.model.cpu_depthwise import depthwise_forward, depthwise_input_gradient, depthwise_weight_gradient


def use_torch_threads() -> None:
    """Let numba use as many threads as torch does."""
    # Asked first: numba starts its threads with the first call, and tells OpenMP, which torch takes its number from
    # unless it was set, to use all cores. OMP_NUM_THREADS would be forgotten.
    threads = torch.get_num_threads()
    # numba keeps its own number, one for each calling thread; backward may run in another than forward.
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def channels_last(x: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H, W, C) array, a view where the memory already lies so; bfloat16 as its bits in uint16."""
    return _array(x.detach().permute(0, 2, 3, 1).contiguous())


def _images(x: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (B, H * W * C) array, channels last."""
    return channels_last(x).reshape(x.shape[0], -1)


def _batch(x: Tensor) -> np.ndarray:
    """(B, C, H, W) -> (1, B * H * W * C) array, channels last."""
    return channels_last(x).reshape(1, -1)


def _empty(like: Tensor, size: tuple[int, int] | None = None) -> tuple[np.ndarray, Tensor]:
    """Memory for a result: as a (B, H, W, C) array, and as the (B, C, H, W) tensor in channels-last order."""
    height, width = size or like.shape[2:]
    out = torch.empty((like.shape[0], height, width, like.shape[1]), dtype=like.dtype)
    return _array(out), out.permute(0, 3, 1, 2)


def _array(x: Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


def _float(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _plain(x: Tensor) -> np.ndarray:
    """Contiguous float32 array."""
    return x.detach().float().contiguous().numpy()


# --- depthwise convolution ----------------------------------------------------------------------------------------


class DepthwiseConvolution(torch.autograd.Function):
    """With stride 1, oneDNN's forward convolution serves both forward and as gradient of the input, several times
    faster than its own backward; strided ones and the gradient of the kernel are numba's."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int, top: int, left: int, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W), (C, 1, k, k) -> (B, C, *size), with `top` and `left` zeros before the first row and column."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.top, ctx.left = stride, top, left
        if stride == 1:
            return _convolve(x, weight, (top, left))
        use_torch_threads()
        out, result = _empty(x, size)
        depthwise_forward(channels_last(x), _taps(weight), stride, top, left, out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        slopes, grad_x, grad_weight = channels_last(gradient), None, None
        use_torch_threads()
        if ctx.needs_input_grad[0] and ctx.stride == 1:
            last = weight.shape[-1] - 1
            grad_x = _convolve(gradient, weight.flip(2, 3), (last - ctx.top, last - ctx.left))
        elif ctx.needs_input_grad[0]:
            out, grad_x = _empty(x)
            depthwise_input_gradient(slopes, _taps(weight), ctx.stride, ctx.top, ctx.left, out)
        if ctx.needs_input_grad[1]:
            taps = depthwise_weight_gradient(channels_last(x), slopes, weight.shape[-1], ctx.stride, ctx.top, ctx.left)
            grad_weight = _float(taps).permute(2, 0, 1).unsqueeze(1)  # (C, 1, k, k)
        return grad_x, grad_weight, None, None, None, None


def _convolve(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.conv2d(x, weight.to(x.dtype), None, 1, padding, 1, x.shape[1])


def _taps(weight: Tensor) -> np.ndarray:
    """(C, 1, k, k) -> (k, k, C)."""
    return np.ascontiguousarray(weight.detach()[:, 0].permute(1, 2, 0).numpy())


# --- batch normalisation ------------------------------------------------------------------------------------------


class _Norm(NamedTuple):
    """A normalisation by one batch: z = x * scale + shift. All (C,) float32, but for the variance in float64."""

    mean: np.ndarray
    variance: np.ndarray
    inverse_std: np.ndarray
    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> "_Norm":
        mean, variance = kernels.batch_moments(channels_last(x).reshape(-1), x.shape[1])
        inverse_std = 1.0 / np.sqrt(variance + eps)
        scale = weight.detach().numpy() * inverse_std
        shift = bias.detach().numpy() - mean * scale
        single = (values.astype(np.float32) for values in (inverse_std, scale, shift))
        return cls(mean.astype(np.float32), variance, *single)

    def moments(self, ctx) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) float32, for the running statistics; without gradient."""
        found = torch.from_numpy(self.mean), _float(self.variance)
        ctx.mark_non_differentiable(*found)
        return found

    def outer(self, total: np.ndarray, product: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(slope, offset) such that dx = scale * dz - (x * slope + offset).

        Args:
            total, product: (C,) sums of dz and of dz (x - mean).
            count: values a channel.
        """
        slope = self.scale * self.inverse_std.astype(np.float64) ** 2 * product / count
        offset = self.scale * total / count - slope * self.mean
        return slope.astype(np.float32), offset.astype(np.float32)


def _count(x: Tensor) -> int:
    return x.numel() // x.shape[1]


class NormSiLU(torch.autograd.Function):
    """SiLU(batch_norm(x)) with the batch's statistics; keeps x alone, where ATen keeps x and what SiLU was given."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """The result, and the batch's mean and biased variance (C,)."""
        use_torch_threads()
        norm = _Norm.of(x, weight, bias, eps)
        out, result = _empty(x)
        kernels.silu(_batch(x), norm.scale, norm.shift, np.ones((1, x.shape[1]), np.float32), out.reshape(1, -1))
        ctx.save_for_backward(x)
        ctx.norm = norm
        return result, *norm.moments(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        (x,), norm = ctx.saved_tensors, ctx.norm
        use_torch_threads()
        flat, slopes = _batch(x), _batch(gradient)
        sums = kernels.slope_sums(flat, slopes, norm.scale, norm.shift, norm.mean, False)[0]
        total, product = sums[0], sums[1]
        out, result = _empty(x)
        kernels.silu_gradient(
            flat, slopes, norm.scale, norm.shift, norm.scale[None], np.zeros_like(norm.scale)[None],
            *norm.outer(total, product, _count(x)), out.reshape(1, -1),
        )  # fmt: skip
        return result, _float(product * norm.inverse_std), _float(total), None


class NormAdd(torch.autograd.Function):
    """batch_norm(x) * factor + other with the batch's statistics."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, factor: Tensor | None, other: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The result, and the batch's mean and biased variance (C,).

        Args:
            factor: (B, 1, 1, 1), for each image, without gradient; None for 1.
            other: as x; None for 0.
        """
        use_torch_threads()
        norm = _Norm.of(x, weight, bias, eps)
        factors = np.ones((x.shape[0], 1), np.float32) if factor is None else _plain(factor.flatten(1))
        out, result = _empty(x)
        flat = _images(x)
        added = flat[:, :0] if other is None else _images(other)
        kernels.scale_and_add(flat, factors * norm.scale, factors * norm.shift, added, out.reshape(flat.shape))
        ctx.save_for_backward(x)
        ctx.norm, ctx.factors = norm, factors
        return result, *norm.moments(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, *_):
        (x,), norm, factors = ctx.saved_tensors, ctx.norm, ctx.factors
        use_torch_threads()
        flat, slopes = _images(x), _images(gradient)
        sums = (kernels.product_sums(flat, slopes, norm.mean) * factors[:, :, None]).sum(axis=0)
        total, product = sums[0], sums[1]
        out, result = _empty(x)
        slope, offset = norm.outer(total, product, _count(x))
        kernels.norm_gradient(flat, slopes, factors * norm.scale, slope, offset, out.reshape(flat.shape))
        grad_other = gradient if ctx.needs_input_grad[5] else None
        return result, _float(product * norm.inverse_std), _float(total), None, None, grad_other


# --- squeeze and excitation ---------------------------------------------------------------------------------------
#
# Both forms come in two halves, since layers of the module stand between them. The second half hands the gradient of
# the whole back to the first as it came, not multiplied by the gate, and the first writes all parts of the gradient of
# x in one pass. They share a `Gating` for it.


class Gating:
    """What the two halves of one call tell each other.

    Attributes:
        norm: the normalisation before the gate; None without one.
        gate: (B, C) float32, from the second half's forward.
        sums: (B, 5, C) of `kernels.slope_sums`, from the second half's backward; None without a normalisation.
    """

    norm: _Norm | None = None
    gate: np.ndarray
    sums: np.ndarray | None = None


class Squeeze(torch.autograd.Function):
    """x -> its mean over positions (B, C) float32, and x again for `Excite`."""

    @staticmethod
    def forward(ctx, x: Tensor, gating: Gating) -> tuple[Tensor, Tensor]:
        use_torch_threads()
        ctx.gating = gating
        flat = _images(x)
        sums = kernels.product_sums(flat, flat, np.zeros(x.shape[1], np.float32))[:, 0]
        return _float(sums / (x.shape[2] * x.shape[3])), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean: Tensor, gradient: Tensor):
        use_torch_threads()
        out, result = _empty(gradient)
        flat = _images(gradient)
        lift = _plain(grad_mean) / np.float32(gradient.shape[2] * gradient.shape[3])
        kernels.scale_and_add(flat, ctx.gating.gate, lift, flat[:, :0], out.reshape(flat.shape))
        return result, None


class Excite(torch.autograd.Function):
    """x * gate, for an x that comes from `Squeeze` with the same `Gating`."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, gating: Gating) -> Tensor:
        use_torch_threads()
        gating.gate = _plain(gate)
        ctx.save_for_backward(x)
        flat = _images(x)
        out, result = _empty(x)
        kernels.scale_and_add(flat, gating.gate, np.zeros_like(gating.gate), flat[:, :0], out.reshape(flat.shape))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        use_torch_threads()
        (x,) = ctx.saved_tensors
        sums = kernels.product_sums(_images(x), _images(gradient), np.zeros(x.shape[1], np.float32))[:, 1]
        return gradient, _float(sums), None


class NormSqueeze(torch.autograd.Function):
    """x -> the mean of SiLU(batch_norm(x)) over positions (B, C) float32, and x again for `NormExcite`."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float, gating: Gating) -> tuple[Tensor, ...]:
        """(mean, x, the batch's mean and biased variance (C,))."""
        use_torch_threads()
        gating.norm = norm = _Norm.of(x, weight, bias, eps)
        ctx.gating = gating
        ctx.save_for_backward(x)
        sums = kernels.silu_sums(_images(x), norm.scale, norm.shift)
        return _float(sums / (x.shape[2] * x.shape[3])), x.view_as(x), *norm.moments(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean: Tensor, gradient: Tensor, *_):
        use_torch_threads()
        (x,), gating = ctx.saved_tensors, ctx.gating
        norm, gate, sums = gating.norm, gating.gate, gating.sums
        lift = _plain(grad_mean) / np.float32(x.shape[2] * x.shape[3])
        # The gradient of SiLU's output is g * gate + lift.
        total = (gate * sums[:, 0] + lift * sums[:, 3]).sum(axis=0)
        product = (gate * sums[:, 1] + lift * sums[:, 4]).sum(axis=0)
        out, result = _empty(x)
        flat = _images(x)
        kernels.silu_gradient(
            flat, _images(gradient), norm.scale, norm.shift, gate * norm.scale, lift * norm.scale,
            *norm.outer(total, product, _count(x)), out.reshape(flat.shape),
        )  # fmt: skip
        return result, _float(product * norm.inverse_std), _float(total), None, None


class NormExcite(torch.autograd.Function):
    """SiLU(batch_norm(x)) * gate, for an x that comes from `NormSqueeze` with the same `Gating`."""

    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, gating: Gating) -> Tensor:
        use_torch_threads()
        gating.gate = _plain(gate)
        ctx.save_for_backward(x)
        ctx.gating, norm = gating, gating.norm
        flat = _images(x)
        out, result = _empty(x)
        kernels.silu(flat, norm.scale, norm.shift, gating.gate, out.reshape(flat.shape))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        use_torch_threads()
        (x,), gating = ctx.saved_tensors, ctx.gating
        norm = gating.norm
        gating.sums = kernels.slope_sums(_images(x), _images(gradient), norm.scale, norm.shift, norm.mean, True)
        return gradient, _float(gating.sums[:, 2]), None
