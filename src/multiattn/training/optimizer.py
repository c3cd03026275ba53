"""Optimiser and learning rate, both timm's."""

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from multiattn.config import OptimConfig


def make_optimizer(module: nn.Module, config: OptimConfig) -> Optimizer:
    """timm's optimiser of that name; biases and normalisations are not decayed.

    Raises:
        ValueError: timm knows no such optimiser.
    """
    try:
        return create_optimizer_v2(module, opt=config.name, lr=config.lr, weight_decay=config.weight_decay)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(f"--optim.name {config.name}: timm cannot make this optimiser: {error}") from error


def make_schedule(optimizer: Optimizer, config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> CosineLRScheduler:
    """The learning rate as a function of the update: call `step_update(number of updates done)`.

    `constant` is the cosine whose lowest value is its highest.
    """
    return CosineLRScheduler(
        optimizer,
        t_initial=epochs * steps_per_epoch,
        lr_min=config.lr if config.schedule == "constant" else 0.0,
        warmup_t=round(config.warmup_epochs * steps_per_epoch),
        warmup_lr_init=config.lr / 100,
        t_in_epochs=False,
    )
