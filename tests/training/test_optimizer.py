"""Parameter groups and their rates, which optimisers there are, and every schedule against an outside source."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import lr_scheduler

from multiattn.config import Experiment, ModelConfig, OptimConfig, Phase
from multiattn.training.engine.optimizer import SCHEDULES, make_optimizer, make_schedule, rate_scales
from multiattn.training.engine.step import TrainingStep, set_trainable

STEPS_PER_EPOCH, EPOCHS = 10, 4
TOTAL = STEPS_PER_EPOCH * EPOCHS


@pytest.fixture(scope="module")
def step() -> TrainingStep:
    model = ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3")
    return TrainingStep(Experiment(name="tiny", model=model))


def rates_of(step: TrainingStep, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Name of a parameter -> its rate."""
    names = {parameter: name for name, parameter in step.named_parameters()}
    return {names[one]: group["lr"] for group in optimizer.param_groups for one in group["params"]}


def schedule_rates(
    config: OptimConfig, updates: list[int], *, steps_per_epoch: int = STEPS_PER_EPOCH, epochs: int = EPOCHS
) -> list[float]:
    """Our rate after so many updates."""
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch=steps_per_epoch, epochs=epochs)
    found = []
    for update in updates:
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def torch_rates(make, updates: int) -> list[float]:
    """The rates of torch's scheduler for the same number of updates."""
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_groups_by_default_are_timms_with_one_rate(step):
    config = OptimConfig(weight_decay=0.1)
    groups = make_optimizer(step, config).param_groups
    expected = param_groups_weight_decay(step, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1]
    for group, other in zip(groups, expected, strict=True):
        assert [id(one) for one in group["params"]] == [id(one) for one in other["params"]]
        assert group["lr"] == config.lr and group["lr_scale"] == 1.0


def test_updates_by_default_are_those_of_timms_optimiser_to_the_bit(step):
    ours, theirs = copy.deepcopy(step), copy.deepcopy(step)
    config = OptimConfig(weight_decay=0.01, schedule="cosine", warmup_epochs=1)
    first = make_optimizer(ours, config)
    second = create_optimizer_v2(param_groups_weight_decay(theirs, 0.01), opt="adam", lr=config.lr, fused=True)
    schedule = make_schedule(first, config, steps_per_epoch=2, epochs=2)
    for update in range(3):
        schedule.step_update(update)
        for group in second.param_groups:
            group["lr"] = first.param_groups[0]["lr"]
        for module, optimizer in ((ours, first), (theirs, second)):
            generator = torch.Generator().manual_seed(update)
            for parameter in module.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_backbone_has_a_rate_of_its_own(step):
    rates = rates_of(step, make_optimizer(step, OptimConfig(lr=1e-3, backbone_lr_factor=0.1)))
    assert len(rates) == len(list(step.parameters()))
    for name, rate in rates.items():
        assert rate == pytest.approx(1e-4 if name.startswith("network.backbone.") else 1e-3), name


def test_rates_fall_layer_by_layer_towards_the_input(step):
    config = OptimConfig(lr=1.0, backbone_lr_factor=0.5, layer_decay=0.8)
    rates = rates_of(step, make_optimizer(step, config))
    prefix = "network.backbone.net."
    # stem, five blocks, of which the last takes the last convolution with it: depths 6, 5, 4, 3, 2, 1
    layers = ["conv_stem", "blocks.0.0", "blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.4.0"]
    for depth, layer in zip(range(6, 0, -1), layers, strict=True):
        found = [rate for name, rate in rates.items() if name.startswith(f"{prefix}{layer}.")]
        assert found == pytest.approx([0.5 * 0.8**depth] * len(found)) and found, layer
    assert rates[f"{prefix}bn1.weight"] == rates[f"{prefix}conv_stem.weight"]
    assert rates[f"{prefix}conv_head.weight"] == pytest.approx(0.5 * 0.8)
    assert rates["network.classifier.joint.0.weight"] == rates["network.attention.conv.weight"] == 1.0


@pytest.mark.parametrize("name", ["test_efficientnet", "legacy_xception", "test_resnet", "test_convnext"])
def test_layers_are_timms_and_its_classifier_stands_where_our_head_does(name):
    net = timm.create_model(name, num_classes=2)
    module = SimpleNamespace(network=SimpleNamespace(backbone=SimpleNamespace(net=net)))
    scales = rate_scales(module, OptimConfig(layer_decay=0.7))
    for group in param_groups_layer_decay(net, layer_decay=0.7):
        for parameter in group["params"]:
            assert scales[parameter] == pytest.approx(group["lr_scale"])
    assert min(scales.values()) < 0.7 < max(scales.values()) == 1.0


def test_biases_and_normalisations_are_not_decayed_in_any_layer(step):
    groups = make_optimizer(step, OptimConfig(weight_decay=0.1, layer_decay=0.8)).param_groups
    assert len(groups) == 2 * 7
    for group in groups:
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["weight_decay"] > 0}


def test_what_is_frozen_is_left_out(step):
    frozen = copy.deepcopy(step)
    set_trainable(frozen, Phase(name="frozen", epochs=1, freeze_backbone=True))
    rates = rates_of(frozen, make_optimizer(frozen, OptimConfig(layer_decay=0.8)))
    assert rates and not [name for name in rates if name.startswith("network.backbone.")]


def test_without_layers_or_weights_to_train_there_is_no_optimiser():
    module = SimpleNamespace(network=SimpleNamespace(backbone=SimpleNamespace(net=nn.Linear(2, 2))))
    with pytest.raises(ValueError, match=r"layers of a Linear apart. Use --optim.backbone-lr-factor"):
        rate_scales(module, OptimConfig(layer_decay=0.9))
    with pytest.raises(ValueError, match="empty parameter list"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_a_group_keeps_its_part_of_the_rate_through_a_schedule(step):
    config = OptimConfig(lr=1.0, lr_min=0.2, schedule="cosine", warmup_epochs=1, backbone_lr_factor=0.1)
    optimizer = make_optimizer(step, config)
    schedule = make_schedule(optimizer, config, steps_per_epoch=10, epochs=2)
    for update, rate in {0: 0.01, 10: 0.6, 20: 0.2}.items():
        schedule.step_update(update)
        assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0, 0.1}
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(rate * group["lr_scale"])


@pytest.mark.parametrize("name", ["adam", "AdamW", "sgd", "momentum", "lamb", "lion", "nadamw", "radam", "rmsprop"])
def test_timms_optimisers_make_a_loss_smaller(name):
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 1), torch.randn(32, 4)
    optimizer = make_optimizer(module, OptimConfig(name=name, lr=0.01, weight_decay=0.0))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("adamm", "no such optimiser. Did you mean 'adam' or ", id="mistyped"),
        pytest.param("", "no such optimiser", id="empty"),
        pytest.param("adahessian", "second derivatives", id="second order"),
        pytest.param("fusedadam", "expected a run on a GPU", id="apex on a CPU"),
        pytest.param("bnbadam", "cannot make this optimiser: CUDA required", id="another library on a CPU"),
    ],
)
def test_an_optimiser_that_cannot_be_had_is_an_error(name, message):
    with pytest.raises(ValueError, match=f"--optim.name {name}: .*{message}"):
        make_optimizer(nn.Linear(2, 2), OptimConfig(name=name))


RATES = {
    "constant": ({}, {0: 1.0, 20: 1.0, 39: 1.0, 40: 1.0, 99: 1.0}),
    "cosine": ({"schedule": "cosine"}, {0: 1.0, 20: 0.5, 40: 0.0, 99: 0.0}),
    "cosine, floor": ({"schedule": "cosine", "lr_min": 0.2}, {0: 1.0, 20: 0.6, 40: 0.2}),
    "poly": ({"schedule": "poly", "poly_power": 2.0}, {0: 1.0, 20: 0.25, 40: 0.0}),
    "poly, floor": ({"schedule": "poly", "poly_power": 1.0, "lr_min": 0.2}, {0: 1.0, 20: 0.6, 40: 0.2}),
    "step": ({"schedule": "step", "step_epochs": 2}, {0: 1.0, 19: 1.0, 20: 0.5, 45: 0.25}),
    "one-cycle": ({"schedule": "one-cycle"}, {0: 1 / 25, 11: 1.0, 25: (1 + 4e-6) / 2, 39: 4e-6, 99: 4e-6}),
    "warm-up": ({"warmup_epochs": 1}, {0: 0.01, 5: 0.505, 10: 1.0, 39: 1.0}),
    "the cosine goes on underneath the warm-up": (
        {"schedule": "cosine", "warmup_epochs": 2}, {0: 0.01, 10: 0.505, 19: 0.9505, 20: 0.5, 40: 0.0}
    ),
    "steps count from the warm-up's end": (
        {"schedule": "step", "step_epochs": 1, "warmup_epochs": 1}, {0: 0.01, 10: 1.0, 19: 1.0, 20: 0.5}
    ),
}  # fmt: skip
"""Settings, and the rate after so many updates."""


@pytest.mark.parametrize(("settings", "expected"), RATES.values(), ids=list(RATES))
def test_the_learning_rate_starts_peaks_and_ends_where_it_should(settings, expected):
    found = schedule_rates(OptimConfig(lr=1.0, **settings), list(expected))
    assert found == pytest.approx(list(expected.values()), abs=1e-9)


TORCHS = {
    "one-cycle": (
        {"schedule": "one-cycle"},
        partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=TOTAL, cycle_momentum=False),
    ),
    "poly": ({"schedule": "poly"}, partial(lr_scheduler.PolynomialLR, total_iters=TOTAL, power=0.9)),
    "cosine": (
        {"schedule": "cosine", "lr_min": 0.1},
        partial(lr_scheduler.CosineAnnealingLR, T_max=TOTAL, eta_min=0.1),
    ),
    "step": (
        {"schedule": "step", "step_epochs": 1, "step_factor": 0.3},
        partial(lr_scheduler.StepLR, step_size=STEPS_PER_EPOCH, gamma=0.3),
    ),
    "warm-up": ({"warmup_epochs": 1.5}, partial(lr_scheduler.LinearLR, start_factor=0.01, total_iters=15)),
}
"""Settings, and torch's scheduler of the same rates."""


@pytest.mark.parametrize(("settings", "make"), TORCHS.values(), ids=list(TORCHS))
def test_the_learning_rate_is_that_of_torchs_scheduler(settings, make):
    found = schedule_rates(OptimConfig(lr=1.0, **settings), list(range(TOTAL - 1)))
    assert found == pytest.approx(torch_rates(make, TOTAL - 1), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_is_a_function_of_the_update_alone(schedule):
    config = OptimConfig(lr=0.1, schedule=schedule, step_epochs=1, warmup_epochs=0 if schedule == "one-cycle" else 1)
    order = torch.randperm(TOTAL, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = dict(zip(order, schedule_rates(config, order), strict=True))
    assert [shuffled[update] for update in range(TOTAL)] == schedule_rates(config, list(range(TOTAL)))


@pytest.mark.parametrize("schedule", ["cosine", "step", "poly", "one-cycle"])
def test_a_run_that_continues_goes_on_with_the_rate_it_would_have_had(step, schedule):
    config = OptimConfig(lr=0.1, schedule=schedule, step_epochs=1, layer_decay=0.9)
    rates = []
    for interrupted in (False, True):
        optimizer = make_optimizer(step, config)
        plan = make_schedule(optimizer, config, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS)
        plan.step_update(16)
        if interrupted:
            state = optimizer.state_dict()
            optimizer = make_optimizer(step, config)
            plan = make_schedule(optimizer, config, steps_per_epoch=STEPS_PER_EPOCH, epochs=EPOCHS)
            optimizer.load_state_dict(state)
        plan.step_update(17)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[0] == rates[1]


def test_accumulating_gradients_goes_through_the_same_rates_in_fewer_updates():
    config = OptimConfig(lr=1.0, schedule="cosine")
    fewer = schedule_rates(config, [0, 5, 10, 20], steps_per_epoch=STEPS_PER_EPOCH // 2)
    assert fewer == pytest.approx(schedule_rates(config, [0, 10, 20, 40]), abs=1e-12)


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_a_cycle_of_a_few_updates_ends_where_a_long_one_does(total):
    config = OptimConfig(lr=1.0, schedule="one-cycle")
    assert schedule_rates(config, [total - 1], steps_per_epoch=total, epochs=1) == pytest.approx([1 / 25e4])
