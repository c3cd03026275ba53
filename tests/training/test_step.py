"""One training step: which terms it has, what it may not touch, and that it learns."""

import dataclasses

import pytest
import torch
from timm.layers import convert_sync_batchnorm

from multiattn.config import AgdaConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimConfig
from multiattn.model.preprocess import normalize_crops
from multiattn.training.optimizer import make_optimizer, make_schedule
from multiattn.training.step import TrainingStep

TINY = Experiment(
    name="tiny",
    model=ModelConfig(backbone="tinynet_e", pretrained=False, drop_path_rate=0.0),
    data=DataConfig(image_size=64, batch_size=4),
)
ALL_TERMS = {"loss", "cross_entropy", "independence", "cross_entropy_agda"}


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    crops = torch.randint(0, 256, (size, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return crops, torch.arange(size) % 2


@pytest.mark.parametrize(
    ("experiment", "degrade", "terms"),
    [
        pytest.param(TINY, True, ALL_TERMS, id="everything"),
        pytest.param(TINY, False, ALL_TERMS - {"cross_entropy_agda"}, id="before AGDA's first epoch"),
        pytest.param(
            dataclasses.replace(TINY, agda=AgdaConfig(mode="none")),
            True,
            ALL_TERMS - {"cross_entropy_agda"},
            id="no AGDA",
        ),
        pytest.param(
            dataclasses.replace(TINY, loss=LossConfig(independence_weight=0.0)),
            True,
            ALL_TERMS - {"independence"},
            id="no RIL",
        ),
        pytest.param(
            dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, num_maps=1)),
            True,
            {"loss", "cross_entropy"},
            id="one map uses neither",
        ),
    ],
)
def test_the_loss_is_the_sum_of_its_weighted_terms(experiment, degrade, terms):
    found = TrainingStep(experiment)(*batch(), degrade=degrade)
    assert set(found) == terms
    assert found["loss"].item() == pytest.approx(sum(found[name].item() for name in terms - {"loss"}), rel=1e-5)


def test_weights_of_the_terms_count():
    loss = LossConfig(cross_entropy_weight=0.5, independence_weight=3.0)
    found = TrainingStep(dataclasses.replace(TINY, loss=loss))(*batch())
    expected = 0.5 * found["cross_entropy"] + 3 * found["independence"] + found["cross_entropy_agda"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_running_statistics_follow_the_clean_crops_only():
    def statistics(degrade: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        step = TrainingStep(TINY)
        step(*batch(), degrade=degrade)
        return [value for name, value in step.state_dict().items() if "running_" in name]

    clean, both = statistics(False), statistics(True)
    assert len(clean) > 20
    assert all(torch.equal(*pair) for pair in zip(clean, both, strict=True))


def test_momentum_is_back_after_the_degraded_pass():
    step = TrainingStep(TINY)
    step(*batch())
    momenta = {module.momentum for module in step.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_centres_move_once_a_step_and_alpha_decays_once_an_epoch():
    step = TrainingStep(TINY)
    step(*batch())
    after_one = step.independence.centers.clone()
    assert after_one.norm() > 0
    step.end_epoch()
    assert step.independence.center_rate.item() == pytest.approx(0.05 * 0.9)


def test_a_few_steps_lower_the_loss_of_a_batch():
    torch.manual_seed(0)
    step = TrainingStep(dataclasses.replace(TINY, agda=AgdaConfig(mode="none")))
    optimizer = make_optimizer(step, OptimConfig(lr=2e-3))
    losses = []
    for _ in range(8):
        loss = step(*batch())["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_terms_stay_in_float32_under_autocast(precision):
    with torch.autocast("cpu", dtype=precision):
        found = TrainingStep(TINY)(*batch())
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(OptimConfig(lr=1.0), {0: 1.0, 50: 1.0, 99: 1.0}, id="constant"),
        pytest.param(OptimConfig(lr=1.0, schedule="cosine"), {0: 1.0, 50: 0.5, 100: 0.0}, id="cosine"),
        pytest.param(OptimConfig(lr=1.0, warmup_epochs=1), {0: 0.01, 5: 0.505, 10: 1.0, 60: 1.0}, id="warm-up"),
    ],
)
def test_the_learning_rate_is_a_function_of_the_update(config, expected):
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch=10, epochs=10)
    for update, rate in expected.items():
        schedule.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=2e-2 if config.schedule == "cosine" else 1e-9)


def test_converting_to_synchronised_normalisation_keeps_the_activations():
    # What several GPUs train must be the network that `predict` builds again from the run folder.
    torch.manual_seed(0)
    step = TrainingStep(TINY).eval()
    crops, _ = batch()
    before = step.network(normalize_crops(crops)).logits
    converted = convert_sync_batchnorm(step)
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in converted.modules()) > 20
    assert set(converted.state_dict()) == set(TrainingStep(TINY).state_dict())
    assert torch.equal(converted.network(normalize_crops(crops)).logits, before)
