"""The whole network: shapes, gradients, determinism; exported, compiled, under autocast, saved and loaded."""

import dataclasses
import io

import pytest
import torch
from torch import Tensor

from multiattn.bench.train_sides import settle_statistics
from multiattn.config import Experiment, LossConfig, ModelConfig
from multiattn.experiments import get_experiment, official
from multiattn.model.attention import global_vector
from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.model.losses import ClassificationLoss, RegionalIndependenceLoss
from multiattn.model.network import BaselineNet, MultiAttentionNet, NetworkOutput, fake_logit, make_network


def small(**settings) -> MultiAttentionNet:
    return MultiAttentionNet(ModelConfig(backbone="tinynet_e", pretrained=False, **settings))


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


@pytest.mark.parametrize(("profile", "momentum"), [("dfdc_b4", 0.1), ("dfdc_b4_official", 0.01)])
def test_the_backbones_running_statistics_move_as_slowly_as_the_profile_has_it(profile, momentum):
    network = make_network(get_experiment(profile, tiny=True).model, load_weights=False)
    layers = {
        name: module.momentum for name, module in network.named_modules() if isinstance(module, torch.nn.BatchNorm2d)
    }
    assert {value for name, value in layers.items() if name.startswith("backbone.")} == {momentum}
    assert {value for name, value in layers.items() if not name.startswith("backbone.")} == {0.1}


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


PAPER = ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3")
OFFICIAL = dataclasses.replace(official(Experiment(name="x", model=PAPER)).model, padding="dynamic")
BASELINE = dataclasses.replace(PAPER, network="baseline")
PROFILES = pytest.mark.parametrize(
    "config",
    [pytest.param(PAPER, id="paper"), pytest.param(OFFICIAL, id="official"), pytest.param(BASELINE, id="baseline")],
)


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))


def settled(config: ModelConfig) -> torch.nn.Module:
    """A network whose activations have the scale of a trained one's."""
    network = make_network(config, load_weights=False)
    settle_statistics(network, images(16))
    return network


@PROFILES
def test_the_exported_network_gives_the_same_logits_also_from_a_file_and_for_other_batches(config):
    network = settled(config)
    program = torch.export.export(
        network, (images(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},), strict=False
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        for batch in (1, 2, 5):
            expected = network(images(batch))
            for module in (program.module(), loaded):
                found = module(images(batch))
                assert isinstance(found, NetworkOutput)
                torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
                torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=0)


@PROFILES
def test_the_last_map_s_mean_comes_with_the_logits(config):
    network, crops = settled(config), images(2)
    seen = []
    network.backbone.register_forward_hook(lambda *call: seen.append(call[-1][1]))
    with torch.no_grad():
        found = network(crops)
        expected = seen[0].double().mean(dim=(-2, -1)).float()
        torch.testing.assert_close(found.features, expected, atol=1e-6, rtol=1e-5)
        assert len(seen) == 1 and found.features.dtype == torch.float32


@PROFILES
def test_the_compiled_network_gives_the_same_logits_without_a_break_in_its_graph(config):
    network = settled(config)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        found, expected = compiled(images(2)), network(images(2))
    for name in ("logits", "features"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)


@PROFILES
def test_bf16_autocast_stays_within_two_hundredths_of_float32_and_keeps_unit_rows(config):
    network = settled(config)
    with torch.no_grad():
        exact = network(images(8))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(images(8))
    assert rounded.logits.dtype == torch.float32
    assert not torch.equal(exact.logits, rounded.logits)
    torch.testing.assert_close(rounded.logits, exact.logits, atol=2e-2, rtol=0)
    if rounded.parts is not None:
        assert rounded.parts.dtype == torch.float32
        torch.testing.assert_close(rounded.parts.norm(dim=-1), torch.ones(8, 4), atol=1e-5, rtol=0)


@PROFILES
def test_a_network_saved_and_loaded_gives_equal_logits(config, tmp_path):
    network = settled(config)
    save_weights(network, tmp_path / "best.safetensors", {})
    torch.manual_seed(1)
    other = make_network(config, load_weights=False).eval()
    with torch.no_grad():
        expected = network(images(3)).logits
        assert not torch.equal(other(images(3)).logits, expected)
        load_weights(other, tmp_path / "best.safetensors")
        assert torch.equal(other(images(3)).logits, expected)
