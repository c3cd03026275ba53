"""Ranks of a `torchrun` job: joining, gathering, and deciding together. One process without torchrun is rank 0 of 1.

Numbers of the loop travel between the processors (gloo), never between the devices, so asking the other ranks makes no
rank wait for its GPU.

Batch normalisation over the batches of all ranks: timm's on GPUs, one of ours on CPUs, where torch has none.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others, while rank 0 writes a state or one of them is slow at validating. A rank that
has died does not cost this time: torchrun notices it and ends the others."""
CARRY_ON, SAVE, STOP = 0, 1, 2
"""What can be decided after a step, the more pressing the larger."""


@dataclass(frozen=True)
class Ranks:
    """Who this process is."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def distributed(device: torch.device) -> Iterator[Ranks]:
    """Join the process group torchrun describes (NCCL between GPUs, gloo between CPUs); leave it at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    # torchrun may offer the same store to the processes it starts again; without a name of their own they find there
    # the addresses of those that died (torch 2.14, --standalone: "Connection refused" at every restart).
    store, rank, world_size = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    # After an error the group is left as it is: waiting for the others could take until their time-out, and torchrun
    # ends them all.
    ranks = Ranks(rank, world_size)
    yield ranks
    wait_for_all(ranks)
    # gloo's threads must not outlive the tensors they hold, or the interpreter aborts at its end.
    gc.collect()
    dist.destroy_process_group()


def gather_strided(values: np.ndarray, total: int, ranks: Ranks) -> np.ndarray:
    """Undo `rows[rank::world_size]`: every rank's values -> (total,) in the order of the rows, on every rank."""
    if ranks.world_size == 1:
        return values
    result = np.empty(total, dtype=values.dtype)
    for rank, part in enumerate(gather_objects(values, ranks)):
        result[rank :: ranks.world_size] = part
    return result


def gather_objects(value: object, ranks: Ranks) -> list:
    """Every rank's value, on every rank."""
    if ranks.world_size == 1:
        return [value]
    found: list = [None] * ranks.world_size
    dist.all_gather_object(found, value)
    return found


def gather_rows(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(K,) on the CPU -> (R, K), a row of every rank, on every rank."""
    if ranks.world_size == 1:
        return values[None]
    rows = [torch.empty_like(values) for _ in range(ranks.world_size)]
    dist.all_gather(rows, values)
    return torch.stack(rows)


def wait_for_all(ranks: Ranks) -> None:
    """Every rank gets here before any goes on."""
    if ranks.world_size > 1:
        dist.all_reduce(torch.zeros(1))


class SharedDecision:
    """After which step all ranks save or stop, though only one of them may have been told to.

    What is asked after one step is answered after the next: the question travels meanwhile, so no step waits for it,
    and every rank gets the same answer after the same step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def after_step(self, wish: int) -> int:
        """The most pressing wish of any rank: of this step for one process, of the step before for several."""
        if self.ranks.world_size == 1:
            return wish
        answer = self.settle()
        question = torch.tensor([wish])
        self._asked = dist.all_reduce(question, op=dist.ReduceOp.MAX, async_op=True), question
        return answer

    def settle(self) -> int:
        """The answer that is still on its way; `CARRY_ON` when nothing was asked."""
        if self._asked is None:
            return CARRY_ON
        work, answer = self._asked
        self._asked = None
        work.wait()
        return int(answer)


def synchronise_norms(step: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch normalisation take its statistics from all ranks; in one process, nothing changes.

    On a GPU the layers become torch's `SyncBatchNorm` by timm's conversion, which keeps the activations that timm's
    layers hold (torch's drops them). On a CPU they change their classes to those below, in place. Parameters, buffers,
    state dict, and what eval mode and `momentum` mean stay as they are either way.

    Args:
        step: all that is trained; before DistributedDataParallel, an average of the weights or a compilation.
        device: where it is.

    Returns:
        The module to go on with.

    Raises:
        ValueError: a batch normalisation of a class that cannot be synchronised on a CPU.
    """
    if _world_size() == 1:
        return step
    if device.type == "cuda":
        # It leaves parameters and buffers the same objects.
        return convert_sync_batchnorm(step)
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
        if x.numel():
            # As in eval mode, where mean and variance are constants: g weight / sigma, sum(g x_hat), sum(g).
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                slopes, values, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        else:
            grad_x, grad_weight, grad_bias = values.clone(), torch.zeros_like(mean), torch.zeros_like(mean)
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
    """Values a channel, and mean and biased variance (C,) float64, of all ranks together.

    Raises:
        ValueError: fewer than two values a channel over all ranks; on every rank.
    """
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
        return self._activate(out)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics as `nn.BatchNorm2d` does: the variance it keeps is the unbiased one."""
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.mul_(1 - rate).add_(mean.to(self.running_mean.dtype), alpha=rate)
        unbiased = (variance * (count / (count - 1))).to(self.running_var.dtype)
        self.running_var.mul_(1 - rate).add_(unbiased, alpha=rate)

    def _activate(self, out: Tensor) -> Tensor:
        return out


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over the batches of all ranks, on a CPU."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all ranks, on a CPU."""


class SynchronisedBatchNormAct2d(_Synchronised, BatchNormAct2d):
    """timm's `BatchNormAct2d` over the batches of all ranks, on a CPU."""

    def _activate(self, out: Tensor) -> Tensor:
        return self.act(self.drop(out))


SYNCHRONISED: dict[type[nn.Module], type[_Synchronised]] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    BatchNormAct2d: SynchronisedBatchNormAct2d,
}
"""Class -> the one that takes its place on a CPU."""
