"""One training step: which terms it has, what it may not touch, and that it learns."""

import dataclasses
import gc

import pytest
import torch
from timm.layers import convert_sync_batchnorm

from multiattn.config import AgdaConfig, DataConfig, Experiment, LossConfig, ModelConfig, OptimConfig, Phase
from multiattn.model.predict import normalize_crops
from multiattn.runtime.devices import autocast
from multiattn.training.engine.loop import update
from multiattn.training.engine.optimizer import make_optimizer
from multiattn.training.engine.step import TrainingStep, backward_passes, set_train_mode, set_trainable

TINY = Experiment(
    name="tiny",
    model=ModelConfig(backbone="tinynet_e", pretrained=False, drop_path_rate=0.0),
    data=DataConfig(image_size=64, batch_size=4),
)
UNSCALED = torch.amp.GradScaler("cpu", enabled=False)
ALL_TERMS = {"loss", "cross_entropy", "auxiliary", "cross_entropy_agda"}


def batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    crops = torch.randint(0, 256, (size, 64, 64, 3), dtype=torch.uint8, generator=generator)
    return crops, torch.arange(size) % 2


def passes(step: TrainingStep, *, degrade: bool = True, objective: str = "network") -> dict[str, torch.Tensor]:
    """The terms of one step; the gradients lie in its parameters."""
    return backward_passes(step, step, *batch(), scaler=UNSCALED, degrade=degrade, objective=objective)


@pytest.mark.parametrize(
    ("settings", "degrade", "missing"),
    [
        pytest.param({}, True, set(), id="everything"),
        pytest.param({}, False, {"cross_entropy_agda"}, id="before AGDA's first epoch"),
        pytest.param({"agda": AgdaConfig(mode="none")}, True, {"cross_entropy_agda"}, id="no AGDA"),
        pytest.param({"loss": LossConfig(auxiliary="none")}, True, {"auxiliary"}, id="no RIL"),
        pytest.param(
            {"model": dataclasses.replace(TINY.model, num_maps=1)},
            True,
            {"auxiliary", "cross_entropy_agda"},
            id="one map uses neither",
        ),
    ],
)
def test_the_loss_is_the_sum_of_its_weighted_terms(settings, degrade, missing):
    found = passes(TrainingStep(dataclasses.replace(TINY, **settings)), degrade=degrade)
    assert set(found) == ALL_TERMS - missing
    assert found["loss"].item() == pytest.approx(sum(found[name].item() for name in set(found) - {"loss"}), rel=1e-5)


def test_weights_of_the_terms_count():
    loss = LossConfig(cross_entropy_weight=0.5, auxiliary_weight=3.0, agda_weight=0.25, match_weight=2.0)
    found = passes(TrainingStep(dataclasses.replace(TINY, loss=loss)))
    expected = 0.5 * found["cross_entropy"] + 3 * found["auxiliary"]
    expected = expected + 0.25 * found["cross_entropy_agda"] + 2 * found["match"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_running_statistics_follow_the_clean_crops_only():
    def statistics(degrade: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        step = TrainingStep(TINY)
        passes(step, degrade=degrade)
        return [value for name, value in step.state_dict().items() if "running_" in name]

    clean, both = statistics(False), statistics(True)
    assert len(clean) > 20
    assert all(torch.equal(*pair) for pair in zip(clean, both, strict=True))


def test_two_backward_passes_give_the_gradients_of_one():
    gradients = []
    for separable in (True, False):
        torch.manual_seed(0)
        step = TrainingStep(TINY)
        torch.manual_seed(1)  # the draw of the maps
        if separable:
            assert step.separable
            passes(step)
        else:
            clean = step(*batch())
            (clean.terms["loss"] + step(*batch(), before=clean).terms["loss"]).backward()
        gradients.append({name: p.grad for name, p in step.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_the_released_step_moves_its_centres_on_both_passes():
    def centers(follow: bool) -> torch.Tensor:
        torch.manual_seed(0)
        step = TrainingStep(dataclasses.replace(TINY, loss=LossConfig(centers_follow_agda=follow)))
        passes(step)
        return step.auxiliary.centers

    assert (centers(True) - centers(False)).norm() > 1e-3


@pytest.mark.parametrize("model", [{"num_maps": 1}, {"network": "baseline"}], ids=["one map", "baseline"])
def test_what_has_no_parts_to_tell_apart_says_that_losses_are_off(model, caplog):
    caplog.set_level("INFO")
    step = TrainingStep(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, **model)))
    assert step.auxiliary is None and step.augmentation is None
    assert "auxiliary loss and AGDA are off" in caplog.text


def test_the_backbone_phase_trains_the_backbone_alone():
    phases = (Phase(name="backbone", epochs=1, objective="backbone"), Phase(name="full", epochs=1))
    step = TrainingStep(dataclasses.replace(TINY, phases=phases))
    assert set(passes(step, objective="backbone")) == {"loss", "cross_entropy"}
    trained = {".".join(name.split(".")[:2]) for name, p in step.named_parameters() if p.grad is not None}
    assert trained == {"network.backbone", "backbone_head.linear"}


def test_a_frozen_backbone_moves_neither_weights_nor_statistics():
    phase = Phase(name="frozen", epochs=1, freeze_backbone=True)
    step = TrainingStep(dataclasses.replace(TINY, phases=(phase,)))
    set_trainable(step, phase)
    set_train_mode(step, step, phase)
    before = {name: value.clone() for name, value in step.state_dict().items()}
    optimizer = make_optimizer(step, OptimConfig(lr=0.1))
    passes(step)
    optimizer.step()
    moved = {name for name, value in step.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in moved if name.startswith("network.backbone")]
    assert {"network.attention.conv.weight", "network.attention.norm.running_mean"} <= moved
    set_trainable(step, Phase(name="full", epochs=1))
    assert all(p.requires_grad for p in step.parameters())


@pytest.mark.slow
def test_sixteen_crops_can_be_learnt_by_heart():
    torch.manual_seed(0)
    model = ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3", drop_path_rate=0.0)
    step = TrainingStep(dataclasses.replace(TINY, model=model))
    crops, labels = batch(16)
    optimizer = make_optimizer(step, OptimConfig(lr=3e-3))
    for _ in range(60):
        optimizer.zero_grad()
        terms = backward_passes(step, step, crops, labels, scaler=UNSCALED)
        optimizer.step()
    assert terms["cross_entropy"] < 0.05


def test_after_a_step_momentum_is_back_centres_have_moved_and_alpha_decays_once_an_epoch():
    step = TrainingStep(TINY)
    passes(step)
    momenta = {module.momentum for module in step.modules() if isinstance(module, torch.nn.BatchNorm2d)}
    assert momenta == {0.1}
    assert step.auxiliary.centers.norm() > 0
    step.set_epoch(1)
    assert step.auxiliary.center_rate.item() == pytest.approx(0.05 * 0.9)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_terms_stay_in_float32_under_autocast(precision):
    with torch.autocast("cpu", dtype=precision):
        found = passes(TrainingStep(TINY))
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.isfinite(value) for value in found.values())


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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_updates_in_half_precision_are_those_of_float32_nearly(device, precision):
    """In float16 with scaled gradients, which are clipped and applied by their true size."""
    losses, device = {}, torch.device(device)
    for name in ("fp32", precision):
        torch.manual_seed(0)
        step = TrainingStep(dataclasses.replace(TINY, agda=AgdaConfig(mode="none"))).to(device)
        crops, labels = (tensor.to(device) for tensor in batch())
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10, enabled=name == "fp16")
        optimizer = make_optimizer(step, OptimConfig(lr=1e-3))
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            how = {"scaler": scaler, "context": lambda name=name: autocast(name, device)}
            found.append(backward_passes(step, step, crops, labels, **how)["loss"])
            update(step, optimizer, scaler, 5.0)
        losses[name] = torch.stack(found).cpu()
    torch.testing.assert_close(losses[precision], losses["fp32"], rtol=0.05, atol=0)
    assert losses["fp32"][2] < losses["fp32"][0] and all(p.isfinite().all() for p in step.parameters())


@pytest.mark.parametrize("device", [
    pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)
])  # fmt: skip
def test_both_passes_are_compiled_and_once_each(device):
    """The second pass freezes running statistics, the first does not: two graphs, none anew in later steps."""
    model = ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3", drop_path_rate=0.0)
    compiler, graphs, losses = torch._dynamo.lookup_backend("eager" if device == "cpu" else "inductor"), [], []
    torch._dynamo.reset()

    def compile_graph(graph, inputs):
        graphs.append(len(graph.graph.nodes))
        return compiler(graph, inputs)

    for compiled in (False, True):
        torch.manual_seed(0)
        step = TrainingStep(dataclasses.replace(TINY, model=model, agda=AgdaConfig(mode="hard"))).to(device)
        if compiled:
            step.network.compile(backend=compile_graph)
        crops, labels = (tensor.to(device) for tensor in batch())
        for number in range(3):
            torch.manual_seed(number)
            losses.append(float(backward_passes(step, step, crops, labels, scaler=UNSCALED)["loss"]))
    assert len(graphs) == 2
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-3)


@pytest.fixture
def group_of_one(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    gc.collect()  # every user of the group goes before it
    torch.distributed.destroy_process_group()


STAGED = (
    Phase(name="backbone", epochs=1, objective="backbone"),
    Phase(name="frozen", epochs=1, freeze_backbone=True, agda=False),
    Phase(name="full", epochs=1),
)
FORMS = {
    "paper": {},
    "margin loss": {"loss": LossConfig(auxiliary="ams")},
    "match loss": {"loss": LossConfig(match_weight=1.0)},
    "norms alone": {"model": dataclasses.replace(TINY.model, tune="norms")},
    "head alone": {"model": dataclasses.replace(TINY.model, tune="head"), "phases": STAGED[1:]},
    "twin": {"model": dataclasses.replace(TINY.model, network="baseline")},
}


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")
@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_in_every_phase_all_that_is_trained_gets_a_gradient_in_the_reduced_pass(group_of_one, changes):
    """DistributedDataParallel searches for no unused parameters then, and refuses a second step where there is one."""
    experiment = dataclasses.replace(TINY, **{"phases": STAGED, **changes})
    step = TrainingStep(experiment)
    for phase in experiment.phases:
        set_trainable(step, phase)
        set_train_mode(step, step, phase)
        module = torch.nn.parallel.DistributedDataParallel(step, broadcast_buffers=False)
        for _ in range(2):
            step.zero_grad()
            how = {"scaler": UNSCALED, "objective": phase.objective, "degrade": phase.agda}
            backward_passes(module, step, *batch(), **how)
        for name, parameter in step.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, f"{phase.name}: {name}"


def test_two_halves_of_an_update_give_the_gradients_of_one():
    """The same batch twice at half a share each: without AGDA's draws, the gradients are those of the batch once."""
    plain = dataclasses.replace(TINY, agda=AgdaConfig(mode="none"), loss=LossConfig(auxiliary="none"))
    gradients = []
    for shares in ((1.0,), (0.5, 0.5)):
        torch.manual_seed(0)
        step = TrainingStep(plain)
        for number, share in enumerate(shares, start=1):
            found = backward_passes(step, step, *batch(), scaler=UNSCALED, share=share, is_update=number == len(shares))
        gradients.append({name: p.grad for name, p in step.named_parameters()})
        assert found["loss"].item() == pytest.approx(found["cross_entropy"].item())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ril", ["per-part", "joint"])
def test_accumulated_batches_move_centres_and_weights_as_one_batch_does(ril):
    """The same batch n times at 1 / n: centres, and gradients of the loss that moves them, are those of it once."""
    loss, found = LossConfig(ril=ril, cross_entropy_weight=0.0, inter_margin=0.8), []
    for number in (1, 4):
        torch.manual_seed(0)
        step = TrainingStep(dataclasses.replace(TINY, loss=loss, agda=AgdaConfig(mode="none")))
        for _ in range(2):  # from zero, and from where that led
            step.zero_grad()
            for one in range(number):
                ends = {"is_first": one == 0, "is_update": one + 1 == number}
                backward_passes(step, step, *batch(), scaler=UNSCALED, share=1 / number, **ends)
            found.append((step.auxiliary.centers.clone(), step.network.attention.conv.weight.grad))
    for once, often in zip(found[:2], found[2:], strict=True):
        assert once[0].norm() > 1e-4 and once[1].norm() > 1e-6
        for one, other in zip(once, often, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-6 * float(one.abs().max() + 1))
