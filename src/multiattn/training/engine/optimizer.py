"""Optimiser and learning rate: timm's, with parameter groups for the backbone and its layers."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from timm.models._manipulate import group_with_matcher
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from multiattn.config import OptimConfig
from multiattn.config.settings import did_you_mean, registry
from multiattn.training.engine.apex import FUSED_PREFIX, require_fused

FUSED = ("adam", "adamw")
"""Torch's own that update a tensor in one pass: a sixth of the time for EfficientNet-B4 on a CPU."""
CYCLE_RISE, CYCLE_START, CYCLE_END = 0.3, 1 / 25, 1 / 25e4
"""One-cycle: the share of the updates in which the rate rises, and where it starts and ends, as parts of `lr`."""


def make_optimizer(module: nn.Module, config: OptimConfig, *, fused: bool = True) -> Optimizer:
    """timm's optimiser of that name over the parameters that are to be trained.

    Biases and normalisations are not decayed; frozen parameters are left out. Each group has an `lr_scale`, which
    timm's schedules multiply the rate by: 1 outside the backbone, `rate_scales` inside it.

    The module is a `TrainingStep`; anything else will do where the backbone has no rates of its own. Without `fused`,
    those of `FUSED` take torch's plain form, with the same values to rounding.

    Raises:
        ValueError: timm or this machine has no such optimiser, it cannot be used here, or nothing is to be trained.
    """
    name = config.name.lower()
    kind = name.rpartition("_")[2]  # `lookahead_adam` is timm's Lookahead around adam
    parameters = list(module.parameters())
    if kind.startswith(FUSED_PREFIX):
        require_fused(config.name, parameters[0].device)
    if kind not in list_optimizers():
        hint = did_you_mean(kind, list_optimizers(), count=3)
        raise ValueError(f"--optim.name {config.name}: timm knows no such optimiser.{hint}")
    if get_optimizer_info(kind).second_order:
        raise ValueError(f"--optim.name {config.name}: needs second derivatives, which a training step has not.")
    extra = {"fused": True} if fused and name in FUSED else {}
    groups = parameter_groups(module, config)
    try:
        optimizer = create_optimizer_v2(groups, opt=name, lr=config.lr, weight_decay=config.weight_decay, **extra)
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"--optim.name {config.name}: timm cannot make this optimiser: {error}") from error
    for group in optimizer.param_groups:
        # A schedule starts from `initial_lr` and scales it; before the first update the scale must count as well.
        group["initial_lr"], group["lr"] = config.lr, config.lr * group["lr_scale"]
    return optimizer


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[dict]:
    """timm's groups without and with weight decay, each divided by the rate's scale; the order of timm's is kept."""
    scales = rate_scales(module, config)
    groups = []
    for group in param_groups_weight_decay(module, config.weight_decay):  # leaves out what is frozen
        divided: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            divided.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        groups += [{**group, "params": parameters, "lr_scale": scale} for scale, parameters in divided.items()]
    return groups


def rate_scales(module: nn.Module, config: OptimConfig) -> dict[nn.Parameter, float]:
    """Factor on the rate of each of the backbone's parameters; empty where it is 1 for all.

    scale = backbone_lr_factor * layer_decay ** depth. Layers are those of timm's `group_matcher` (a block of an
    EfficientNet or an Xception is one, the stem another, the last convolution belongs to the last block). What stands
    behind the backbone has depth 0, the backbone's last layer 1, the one before it 2, and so on, as in BEiT
    (arXiv:2106.08254) and timm.

    Raises:
        ValueError: layer-wise rates for a network whose layers timm cannot tell apart.
    """
    if config.backbone_lr_factor == 1 and config.layer_decay in (None, 1):
        return {}
    net = module.network.backbone.net
    depths = dict.fromkeys((name for name, _ in net.named_parameters()), 0)
    if config.layer_decay is not None:
        if not hasattr(net, "group_matcher"):
            raise ValueError(
                f"--optim.layer-decay: timm cannot tell the layers of a {type(net).__name__} apart. Use "
                "--optim.backbone-lr-factor, which treats the backbone as one."
            )
        # What no pattern matches forms the last group, timm's head; a name of nothing makes sure that there is one.
        names = itertools.chain(net.named_parameters(), [(" behind", None)])
        layers = group_with_matcher(names, net.group_matcher(coarse=False), reverse=True)
        depths = {name: layers[" behind"] - layers[name] for name in depths}
    decay = config.layer_decay or 1.0
    return {parameter: config.backbone_lr_factor * decay ** depths[name] for name, parameter in net.named_parameters()}


def make_schedule(optimizer: Optimizer, config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> Scheduler:
    """The learning rate as a function of the update: call `step_update(number of updates done)`, in any order.

    Nothing is kept from one call to the next, so a run that continues needs no state of it. Every rate of `SCHEDULES`
    is multiplied by its group's `lr_scale`, `lr_min` and the warm-up's start included.

    The warm-up is a line from lr / 100 to lr. As timm has it, `cosine` and `poly` go on underneath it: where it ends,
    the rate falls from lr to their curve, which has left lr by then. `step` counts from the warm-up's end.

    Steps are optimiser updates, not batches, where gradients are accumulated.
    """
    updates = round(config.warmup_epochs * steps_per_epoch)
    warmup = {"warmup_t": updates, "warmup_lr_init": config.lr / 100, "t_in_epochs": False}
    return SCHEDULES[config.schedule](optimizer, config, epochs * steps_per_epoch, steps_per_epoch, warmup)


class OneCycleScheduler(Scheduler):
    """One rise and one fall of the rate, each along half a cosine.

    From lr / 25 to lr in the first 30 % of the updates, then to lr / 250,000 at the last one: fast.ai's form of the
    1cycle policy (Smith and Topin, arXiv:1708.07120) and torch's `OneCycleLR` with its defaults, whose values these are
    to rounding. Updates beyond the whole cycle get the last one's rate.

    Departures: the momentum does not cycle; Smith's lines are cosines and his third phase is part of the fall, as in
    torch.
    """

    def __init__(self, optimizer: Optimizer, total: int) -> None:
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.total = total

    def _get_lr(self, t: int) -> list[float]:
        last = self.total - 1
        peak = CYCLE_RISE * self.total - 1  # before 0 with fewer than four updates, which are a fall alone
        t = min(t, last)
        if t <= peak:
            start, end, share = CYCLE_START, 1.0, t / peak
        else:
            start, end, share = 1.0, CYCLE_END, (t - peak) / (last - peak)
        factor = end + (start - end) * (1 + math.cos(math.pi * share)) / 2
        return [value * factor for value in self.base_values]


SCHEDULES: dict[str, Callable[[Optimizer, OptimConfig, int, int, dict[str, Any]], Scheduler]] = registry(
    OptimConfig,
    "schedule",
    {
        # The cosine whose lowest value is its highest.
        "constant": lambda opt, config, total, _, warmup: CosineLRScheduler(opt, total, lr_min=config.lr, **warmup),
        # arXiv:1608.03983: lr_min + (lr - lr_min) (1 + cos(pi t / T)) / 2.
        "cosine": lambda opt, config, total, _, warmup: CosineLRScheduler(opt, total, lr_min=config.lr_min, **warmup),
        # By steps: lr * step_factor ** floor(epochs done / step_epochs).
        "step": lambda opt, config, _, epoch, warmup: StepLRScheduler(
            opt, config.step_epochs * epoch, config.step_factor, **warmup
        ),
        # Polynomial: lr_min + (lr - lr_min) (1 - t / T) ** poly_power.
        "poly": lambda opt, config, total, _, warmup: PolyLRScheduler(
            opt, total, config.poly_power, lr_min=config.lr_min, **warmup
        ),
        "one-cycle": lambda opt, config, total, *_: OneCycleScheduler(opt, total),
    },
)
"""Name -> (optimiser, settings, T updates of the phase, updates an epoch, timm's options of the warm-up) -> schedule,
with t updates done. The names stand in `OptimConfig.schedule`."""
