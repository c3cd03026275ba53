"""Rewrites of a built network: recomputed blocks are the same to the bit, folded normalisation the same to rounding."""

import copy
import dataclasses
import pickle

import pytest
import timm
import torch
from timm.models.densenet import _create_densenet
from torch import Tensor, nn

from multiattn.config import Experiment, LossConfig, ModelConfig
from multiattn.model.backbone import Backbone
from multiattn.model.network import MultiAttentionNet, make_network
from multiattn.model.rewrites import PAIRS, checkpoint_blocks, find_blocks, fold_batch_norms, frozen_statistics
from multiattn.training.engine.step import TrainingStep, backward_passes

FAMILIES = {
    "test_efficientnet": 5,
    "tinynet_e": 10,
    "legacy_xception": 12,
    "test_resnet": 4,
    "test_convnext": 12,
    "test_byobnet": 4,
    "checked_densenet": 11,  # hands over a list of maps and extends it afterwards
}
"""Network -> its blocks."""


@timm.models.register_model
def checked_densenet(**options) -> nn.Module:
    """As densenet121, with 8 layers in place of 58."""
    return _create_densenet("densenet121", growth_rate=8, block_config=(2, 2, 2, 2), **options)


def make_pair(name: str = "tinynet_e", **options) -> tuple[Backbone, Backbone]:
    """The same backbone plain and checkpointed, in training mode."""
    pair = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        backbone = Backbone(name, stages=("L2", "L3"), checkpoint_activations=checkpoints, **options)
        pair.append(backbone.train())
    return pair[0], pair[1]


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def loss_of(backbone: nn.Module, inputs: Tensor) -> Tensor:
    stages, last = backbone(inputs)
    return last.square().mean() + sum(features.square().mean() for features in stages.values())


def run(backbone: Backbone, inputs: Tensor) -> dict[str, Tensor]:
    """All that a step leaves: loss, gradients, buffers, and where the random numbers are."""
    torch.manual_seed(2)
    loss = loss_of(backbone, inputs)
    loss.backward()
    gradients = {f"gradient of {name}": one.grad for name, one in backbone.named_parameters() if one.grad is not None}
    return {"loss": loss.detach(), "random": torch.get_rng_state(), **gradients, **dict(backbone.named_buffers())}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert list(first) == list(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def bytes_kept(backbone: Backbone, inputs: Tensor) -> int:
    """Bytes of memory that the forward pass keeps for backward, weights and buffers not counted."""
    own = {value.untyped_storage().data_ptr() for value in (*backbone.parameters(), *backbone.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss_of(backbone, inputs)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_leaves_the_same_to_the_bit_and_keeps_less(name):
    plain, checkpointed = make_pair(name, drop_path_rate=0.0 if name == "legacy_xception" else 0.2)
    assert len(find_blocks(plain.net)) == FAMILIES[name]
    expected = run(plain, images())
    assert_same(run(checkpointed, images()), expected)
    assert len([key for key in expected if key.startswith("gradient")]) > 10
    assert bytes_kept(checkpointed, images()) < 0.8 * bytes_kept(plain, images())


def test_statistics_move_once_a_step():
    _, checkpointed = make_pair()
    run(checkpointed, images())
    counts = {name: int(value) for name, value in checkpointed.named_buffers() if name.endswith("num_batches_tracked")}
    assert set(counts.values()) == {1}
    before = {name: value.clone() for name, value in checkpointed.named_buffers()}
    loss = loss_of(checkpointed, images())
    moved = {name: value.clone() for name, value in checkpointed.named_buffers()}
    loss.backward()
    assert_same(dict(checkpointed.named_buffers()), moved)
    assert not any(torch.equal(before[name], moved[name]) for name in before if "running_mean" in name)


def test_statistics_frozen_in_forward_stay_so_in_backward():
    pair = make_pair()
    before = {name: value.clone() for name, value in pair[1].named_buffers()}
    losses = []
    for backbone in pair:
        with frozen_statistics(backbone):
            losses.append(loss_of(backbone, images()))
        losses[-1].backward()  # the momenta are back by now
    assert_same(dict(pair[0].named_buffers()), dict(pair[1].named_buffers()))
    for name, value in pair[1].named_buffers():
        if "running_" in name:
            assert torch.equal(value, before[name]), name
    assert losses[0] == losses[1]
    assert {module.momentum for module in pair[1].modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


@pytest.mark.parametrize("match_weight", [0.0, 1.0], ids=["two backward passes", "one backward pass"])
def test_a_training_step_with_agda_is_the_same_to_the_bit(match_weight):
    found = []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        model = ModelConfig(backbone="tinynet_e", pretrained=False, checkpoint_activations=checkpoints)
        step = TrainingStep(Experiment(name="tiny", model=model, loss=LossConfig(match_weight=match_weight)))
        crops = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        terms = backward_passes(step, step, crops, torch.arange(4) % 2, scaler=scaler)
        gradients = {f"gradient of {name}": one.grad for name, one in step.named_parameters()}
        found.append({**terms, **gradients, **step.state_dict(), "random": torch.get_rng_state()})
    assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_the_same_in_the_second_run(dtype):
    plain, checkpointed = make_pair()
    found = []
    for backbone in (plain, checkpointed):
        with torch.autocast("cpu", dtype=dtype):
            loss = loss_of(backbone, images())
        loss.backward()
        found.append({name: one.grad for name, one in backbone.named_parameters()})
    assert_same(*found)


def test_nothing_is_computed_again_without_gradients_or_in_eval_mode():
    plain, checkpointed = make_pair()
    calls = []
    block = checkpointed.net.blocks[1][0]
    block.conv_pw.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        loss_of(checkpointed, images())
    plain.eval(), checkpointed.eval()
    plain.load_state_dict(checkpointed.state_dict())
    found, expected = loss_of(checkpointed, images()), loss_of(plain, images())
    found.backward()
    assert found == expected and len(calls) == 2
    loss_of(checkpointed.train(), images()).backward()
    assert len(calls) == 4


def test_a_frozen_backbone_is_trained_around():
    _, checkpointed = make_pair()
    checkpointed.requires_grad_(False)
    inputs = images().requires_grad_()
    loss_of(checkpointed, inputs).backward()
    assert inputs.grad.abs().max() > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_computes_with_its_own_weights(copied):
    _, checkpointed = make_pair()
    other = copied(checkpointed)
    for parameter in checkpointed.parameters():
        parameter.data.zero_()
    plain, _ = make_pair()
    assert_same(run(other, images()), run(plain, images()))


def test_names_and_the_networks_setting():
    config = ModelConfig(backbone="tinynet_e", pretrained=False)
    plain = make_network(config)
    checkpointed = make_network(ModelConfig(backbone="tinynet_e", pretrained=False, checkpoint_activations=True))
    assert list(checkpointed.state_dict()) == list(plain.state_dict())
    inputs = images()
    assert bytes_kept(checkpointed.backbone.train(), inputs) < bytes_kept(plain.backbone.train(), inputs) / 2


@pytest.mark.parametrize("name", ["vgg11", "inception_v3", "nothing"])
def test_a_network_without_blocks_is_an_error(name):
    with torch.device("meta"):
        net = nn.Sequential() if name == "nothing" else timm.create_model(name)
    assert find_blocks(net) == []
    with pytest.raises(ValueError, match=f"^{name}: checkpoint_activations needs a network"):
        checkpoint_blocks(net, name)


def test_frozen_statistics_are_back_after_an_error():
    layer = nn.BatchNorm2d(3, momentum=None)
    counted = layer.num_batches_tracked
    with pytest.raises(KeyError), frozen_statistics(layer, counters=True):
        layer(torch.randn(2, 3, 4, 4))
        raise KeyError
    assert layer.momentum is None and layer.num_batches_tracked is counted and counted == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


@pytest.mark.slow
def test_compiled_blocks_compute_again_too():
    """By the tracer alone: what makes kernels of its graph takes a minute."""
    plain, checkpointed = make_pair("test_efficientnet")
    expected = run(plain, images())
    checkpointed.compile(backend="aot_eager", fullgraph=True)
    found = run(checkpointed, images())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def settled(backbone: str, **settings: object) -> nn.Module:
    """With random weights, and statistics that are not those of a new layer."""
    torch.manual_seed(0)
    config = dataclasses.replace(ModelConfig(), backbone=backbone, pretrained=False, **settings)
    net = MultiAttentionNet(config)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def batch_norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        pytest.param("tinynet_e", {}, id="depthwise"),
        pytest.param("test_efficientnet", {"attention_stage": "L3"}, id="plain early stages"),
        pytest.param("tf_efficientnetv2_b0", {"attention_stage": "L4"}, id="edge residuals"),
        pytest.param("tinynet_e", {"attention": "masked-elu"}, id="released attention"),
    ],
)
def test_the_folded_network_gives_the_same_outputs(backbone, settings):
    net = settled(backbone, **settings)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = net(images)
    actual = fold_batch_norms(net)(images)  # with gradients on: the folded layers must not lose their bias
    for found, wanted in zip(actual, expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


def test_folding_leaves_the_network_as_it_was_and_only_the_pre_activations_normalised():
    net = settled("tinynet_e")
    before = copy.deepcopy(net.state_dict())
    folded = fold_batch_norms(net)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    # The texture block normalises before its three convolutions; nothing there can be folded.
    assert batch_norms(folded) == batch_norms(net.texture) == 3
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_a_module_without_such_blocks_is_copied():
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    folded = fold_batch_norms(layers)
    assert type(layers) not in PAIRS
    assert batch_norms(folded) == 1
    assert not folded.training
    assert torch.equal(folded(torch.ones(1, 3, 2, 2)), layers.eval()(torch.ones(1, 3, 2, 2)))
