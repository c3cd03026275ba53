"""Optimiser and learning rate, both timm's."""

from collections.abc import Iterable

from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from multiattn.config import OptimConfig

FUSED = ("adam", "adamw")
"""Torch's own, which update all values of a tensor in one pass where the other form takes one for each operation:
a sixth of the time for EfficientNet-B4 on a CPU."""


def make_optimizer(module: nn.Module, config: OptimConfig, *, fused: bool = True) -> Optimizer:
    """timm's optimiser of that name over what is to be trained; biases and normalisations are not decayed.

    Args:
        fused: False takes torch's plain form of `FUSED` ones; the same values to rounding.

    Raises:
        ValueError: timm knows no such optimiser.
    """
    groups: Iterable = param_groups_weight_decay(module, config.weight_decay)  # leaves out what is frozen
    extra = {"fused": True} if fused and config.name.lower() in FUSED else {}
    try:
        return create_optimizer_v2(groups, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, **extra)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"--optim.name {config.name}: timm cannot make this optimiser: {error}") from error


def make_schedule(optimizer: Optimizer, config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> Scheduler:
    """The learning rate as a function of the update: call `step_update(number of updates done)`.

    `constant` is the cosine whose lowest value is its highest.
    """
    warmup = {
        "warmup_t": round(config.warmup_epochs * steps_per_epoch),
        "warmup_lr_init": config.lr / 100,
        "t_in_epochs": False,
    }
    if config.schedule == "step":
        decay_t = config.step_epochs * steps_per_epoch
        return StepLRScheduler(optimizer, decay_t=decay_t, decay_rate=config.step_factor, **warmup)
    lr_min = config.lr if config.schedule == "constant" else 0.0
    return CosineLRScheduler(optimizer, t_initial=epochs * steps_per_epoch, lr_min=lr_min, **warmup)
