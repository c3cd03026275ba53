"""Batch normalisation over the batches of all ranks: timm's on GPUs, one of ours on CPUs, where torch has none."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_norms(step: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch normalisation take its statistics from all ranks; in one process, nothing changes.

    On a GPU the layers become torch's `SyncBatchNorm` by timm's conversion, which keeps the activations that timm's
    layers hold (torch's drops them). On a CPU they change their classes to those below, in place. Parameters, buffers,
    state dict, and what eval mode and `momentum` mean stay as they are either way.

    Takes all that is trained, before DistributedDataParallel, an average of the weights or a compilation; returns the
    module to go on with.

    Raises:
        ValueError: a batch normalisation of a class that cannot be synchronised on a CPU.
    """
    if _world_size() == 1:
        return step
    if device.type == "cuda":
        return convert_sync_batchnorm(step)  # parameters and buffers stay the same objects
    for path, layer in step.named_modules():
        if isinstance(layer, _BatchNorm) and not isinstance(layer, _Synchronised):
            if type(layer) not in SYNCHRONISED:
                known = ", ".join(kind.__name__ for kind in SYNCHRONISED)
                raise ValueError(
                    f"{path}: expected a batch normalisation of the classes {known} to synchronise on a CPU, found "
                    f"{type(layer).__name__}. Train this backbone in one process, or on GPUs."
                )
            layer.__class__ = SYNCHRONISED[type(layer)]
    return step


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GlobalBatchNorm(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, with mean and variance of all ranks' values of a channel.

    Forward takes one all-gather: of each rank's count, mean and sum of squared deviations in float64, joined as by
    Chan, Golub and LeVeque (1979), so that nothing cancels, and to the same bits on every rank. Backward takes one
    all-reduce, of the sums of the output's gradient g and of its product with the normalised input x_hat, which every
    rank's input gradient needs whole:

        dL/dx = weight / sigma * (g - sum(g) / N - x_hat * sum(g x_hat) / N)

    The gradients of weight and bias stay this rank's sums: DistributedDataParallel reduces them like all others.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        count, mean, variance = _global_moments(x)
        dtype = _working_dtype(x)
        ctx.save_for_backward(x, weight, mean.to(dtype), variance.to(dtype))
        ctx.count, ctx.eps = count, eps
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mean, variance)
        if x.numel() == 0:  # ATen divides by the number of values, and the process ends with SIGFPE
            return x.clone(), mean, variance, count
        out = F.batch_norm(x, mean.to(dtype), variance.to(dtype), weight, bias, training=False, eps=eps)
        return out, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor | None, *_):
        x, weight, mean, variance = ctx.saved_tensors
        gradient = torch.zeros_like(x) if gradient is None else gradient
        values, slopes = x.to(mean.dtype), gradient.to(mean.dtype)
        grad_x, grad_weight, grad_bias = values.clone(), torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():
            # As in eval mode, where mean and variance are constants: g weight / sigma, sum(g x_hat), sum(g).
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                slopes, values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        if ctx.needs_input_grad[0]:
            sums = torch.stack([grad_weight, grad_bias]).double()
            dist.all_reduce(sums)
            products, total = sums / ctx.count
            inverse_std = (variance.double() + ctx.eps).rsqrt()
            scale = inverse_std if weight is None else inverse_std * weight
            shape = (1, -1, *[1] * (x.ndim - 2))
            factor, shift = ((scale * part).to(mean.dtype).view(shape) for part in (inverse_std * products, total))
            grad_x -= (values - mean.view(shape)).mul_(factor).add_(shift)
        if weight is None:
            grad_weight = grad_bias = None
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def _global_moments(x: Tensor) -> tuple[float, Tensor, Tensor]:
    """Values a channel, and mean and biased variance (C,) float64, of all ranks together."""
    channels = x.shape[1]
    mine = torch.zeros(2 * channels + 1, dtype=torch.float64)
    if x.numel():
        count = x.numel() // channels
        # What `nn.BatchNorm2d` computes; `torch.var_mean` took 50 times as long over channels-last maps.
        mean, variance = torch.batch_norm_update_stats(x.to(_working_dtype(x)), None, None, 0.0)
        mine = torch.cat([mine.new_tensor([count]), mean.double(), variance.double() * count])
    ranks = [torch.empty_like(mine) for _ in range(_world_size())]
    dist.all_gather(ranks, mine)
    counts, means, squares = torch.stack(ranks).split([1, channels, channels], dim=1)
    total = counts.sum().item()
    if total < 2:
        raise ValueError(f"expected more than 1 value a channel over all ranks when training, found {tuple(x.shape)}.")
    mean = (counts * means).sum(0) / total
    return total, mean, (squares + counts * (means - mean).square()).sum(0) / total


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class _Synchronised(_BatchNorm):
    """Normalises by the statistics of all ranks' batches while training; otherwise as the class beside it."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        out, mean, variance, count = _GlobalBatchNorm.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None:
            self._follow(mean, variance, count)
        return self.act(self.drop(out)) if isinstance(self, BatchNormAct2d) else out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does: the variance it keeps is the unbiased one."""
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean.to(self.running_mean.dtype), alpha=rate)
        unbiased = (variance * (count / (count - 1))).to(self.running_var.dtype)
        self.running_var.mul_(1 - rate).add_(unbiased, alpha=rate)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all ranks, on a CPU."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all ranks, on a CPU."""


class SynchronisedBatchNormAct2d(_Synchronised, BatchNormAct2d):
    """timm's `BatchNormAct2d` over the batches of all ranks, on a CPU."""


SYNCHRONISED: dict[type[nn.Module], type[_Synchronised]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    BatchNormAct2d: SynchronisedBatchNormAct2d,
}
"""Class -> the one that takes its place on a CPU."""
