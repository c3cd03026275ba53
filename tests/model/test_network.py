"""The whole network: shapes, gradients, precision, determinism."""

import dataclasses

import pytest
import torch

from multiattn.config import LossConfig, ModelConfig
from multiattn.experiments import get_experiment
from multiattn.model.attention import global_vector, normalized_average_pool
from multiattn.model.losses import ClassificationLoss, RegionalIndependenceLoss
from multiattn.model.network import BaselineNet, MultiAttentionNet, fake_logit, make_network


def small(**settings) -> MultiAttentionNet:
    return MultiAttentionNet(ModelConfig(backbone="tinynet_e", pretrained=False, **settings))


def test_b4_at_380_has_the_shapes_of_the_paper():
    network = MultiAttentionNet(ModelConfig(), load_weights=False).eval()
    seen = {}
    network.texture.register_forward_hook(lambda module, inputs, output: seen.update(L2=inputs[0], F=output[0]))
    network.attention.register_forward_hook(lambda module, inputs, output: seen.update(L5=inputs[0]))
    network.backbone.register_forward_hook(lambda module, inputs, output: seen.update(last=output[1]))
    with torch.no_grad():
        output = network(torch.zeros(1, 3, 380, 380))
    shapes = {name: tuple(tensor.shape) for name, tensor in seen.items()}
    assert shapes == {"L2": (1, 32, 95, 95), "F": (1, 32, 95, 95), "L5": (1, 160, 24, 24), "last": (1, 1792, 12, 12)}
    assert output.logits.shape == (1, 2)
    assert output.attention.shape == (1, 4, 24, 24)
    assert output.parts.shape == (1, 4, 32)
    assert (network.num_maps, network.num_part_features) == (4, 32)


@pytest.mark.parametrize(("padding", "grid", "last"), [("static", 23, 11), ("dynamic", 24, 12)])
def test_the_release_has_one_texture_a_map_and_either_grid(padding, grid, last):
    config = dataclasses.replace(get_experiment("dfdc_b4_official").model, padding=padding, pretrained=False)
    network = MultiAttentionNet(config, load_weights=False).eval()
    seen = {}
    network.texture.register_forward_hook(lambda module, inputs, output: seen.update(F=output[0]))
    network.backbone.register_forward_hook(lambda module, inputs, output: seen.update(last=output[1]))
    with torch.no_grad():
        output = network(torch.zeros(1, 3, 380, 380))
    assert output.attention.shape == (1, 4, grid, grid)
    assert seen["F"].shape == (1, 4, 32, 95, 95)
    assert seen["last"].shape == (1, 1792, last, last)
    # 18.83 million with the running statistics, the backbone's classifier (2 x 1793) and the loss's buffers.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(18.83e6 - 0.13e6, abs=0.2e6)


def test_part_dropout_leaves_whole_maps_out_of_both_branches_and_of_nothing_else():
    torch.manual_seed(0)
    network = small(part_dropout=0.5, global_pool="mean").train()
    seen = {}
    network.classifier.register_forward_hook(lambda module, inputs, output: seen.update(P=inputs[0], G=inputs[1]))
    network.backbone.register_forward_hook(lambda module, inputs, output: seen.update(last=output[1]))
    output = network(torch.randn(4, 3, 96, 96))
    lengths = seen["P"].norm(dim=-1)  # (B, M): 0 where left out, 1 / (1 - p) elsewhere
    kept = lengths > 0
    assert kept.any() and not kept.all()
    torch.testing.assert_close(lengths[kept], torch.full_like(lengths[kept], 2.0))
    total = (output.attention * kept[..., None, None]).sum(dim=1, keepdim=True)
    expected = global_vector(seen["last"], total, "mean")
    torch.testing.assert_close(seen["G"], expected, atol=1e-5, rtol=1e-4)
    assert (output.parts.norm(dim=-1) > 0.99).all()


def test_permuting_the_maps_permutes_the_textural_matrix():
    features, attention = torch.randn(2, 5, 8, 8), torch.rand(2, 4, 4, 4)
    order = torch.tensor([2, 0, 3, 1])
    before, after = (normalized_average_pool(features, maps) for maps in (attention, attention[:, order]))
    torch.testing.assert_close(after, before[:, order])


def test_the_twin_is_the_same_backbone_with_a_mean_and_one_layer():
    torch.manual_seed(0)
    config = ModelConfig(network="baseline", backbone="tinynet_e", pretrained=False)
    twin = make_network(config).eval()
    assert isinstance(twin, BaselineNet)
    assert set(twin.backbone.state_dict()) == set(small().backbone.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        output = twin(images)
        mean = twin.backbone(images)[1].mean(dim=(2, 3))
    expected = mean @ twin.head.linear.weight.T + twin.head.linear.bias
    torch.testing.assert_close(output.logits, expected)
    assert output.attention is None and output.parts is None


@pytest.mark.parametrize("num_maps", range(1, 9))
@pytest.mark.parametrize("profile", ["dfdc_b4", "dfdc_b4_official"])
def test_every_number_of_maps_trains_in_both_profiles(profile, num_maps):
    config = dataclasses.replace(get_experiment(profile, tiny=True).model, num_maps=num_maps)
    output = MultiAttentionNet(config).train()(torch.randn(2, 3, 64, 64))
    assert output.attention.shape[1] == output.parts.shape[1] == num_maps
    output.logits.sum().backward()


@pytest.mark.parametrize("num_maps", [1, 4])
@pytest.mark.parametrize(
    ("batch", "size"),
    [(2, (96, 96)), (1, (112, 112)), (2, (70, 101)), (1, (32, 32)), (0, (64, 64))],
    ids=["96", "one at 112", "no multiple of 32", "smallest", "empty"],
)
def test_shapes_at_any_size(num_maps, batch, size):
    network = small(num_maps=num_maps).eval()
    with torch.no_grad():
        output = network(torch.randn(batch, 3, *size))
    grid = tuple(-(-side // 16) for side in size)
    assert output.logits.shape == (batch, 2)
    assert output.attention.shape == (batch, num_maps, *grid)
    assert output.parts.shape == (batch, num_maps, network.num_part_features)


@pytest.mark.parametrize("num_maps", [1, 4])
def test_gradients_reach_every_parameter(num_maps):
    network = small(num_maps=num_maps, drop_path_rate=0.0).train()
    criterion = RegionalIndependenceLoss(num_maps, network.num_part_features, LossConfig())
    labels = torch.tensor([0, 1, 0, 1])
    output = network(torch.randn(4, 3, 96, 96))
    (ClassificationLoss()(output.logits, labels) + criterion(output.parts, labels)).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_autocast_keeps_unit_rows_and_gives_float32_logits():
    network = small().eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        exact = network(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(images)
    assert output.logits.dtype == output.parts.dtype == torch.float32
    torch.testing.assert_close(output.parts.norm(dim=-1), torch.ones(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits, exact.logits, atol=0.05, rtol=0)


def test_training_under_autocast_gives_finite_gradients():
    network = small().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(torch.randn(2, 3, 64, 64))
        loss = ClassificationLoss()(output.logits, torch.tensor([0, 1])) + output.parts.square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_evaluation_is_deterministic_and_a_sample_does_not_depend_on_its_batch():
    network = small().eval()
    images = torch.randn(3, 3, 96, 96)
    with torch.no_grad():
        first, again, alone = network(images), network(images), network(images[1:2])
    assert torch.equal(first.logits, again.logits)
    torch.testing.assert_close(alone.logits[0], first.logits[1], atol=1e-5, rtol=1e-4)


def test_the_seed_decides_the_initial_weights():
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(small())
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fake_logit_is_the_logit_of_the_second_softmax_column():
    logits = torch.tensor([[0.0, 0.0], [3.0, -1.0], [-2.0, 5.0]])
    torch.testing.assert_close(fake_logit(logits).sigmoid(), logits.softmax(dim=1)[:, 1])


def test_stages_of_equal_stride_are_refused():
    with pytest.raises(ValueError, match="texture stage L4 has stride 16, attention stage L5 stride 16"):
        small(texture_stage="L4")


def test_weights_are_not_looked_for_when_a_checkpoint_comes_next():
    config = ModelConfig(backbone="tinynet_e", pretrained=True, weights="/nowhere.safetensors")
    assert MultiAttentionNet(config, load_weights=False).num_maps == 4
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.safetensors"):
        MultiAttentionNet(config)
