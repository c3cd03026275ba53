"""The eval network outside of eager float32: exported, compiled, under autocast, saved and loaded."""

import dataclasses
import io

import pytest
import torch
from torch import Tensor

from multiattn.bench.train_sides import settle_statistics
from multiattn.config import Experiment, ModelConfig
from multiattn.experiments import official
from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.model.network import NetworkOutput, make_network

PAPER = ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3")
OFFICIAL = dataclasses.replace(
    official(Experiment(name="x", model=ModelConfig(backbone="tinynet_e", pretrained=False))).model, padding="dynamic"
)
BASELINE = dataclasses.replace(PAPER, network="baseline")
PROFILES = pytest.mark.parametrize(
    "config",
    [
        pytest.param(PAPER, id="paper, test_efficientnet"),
        pytest.param(OFFICIAL, id="official, tinynet_e"),
        pytest.param(BASELINE, id="baseline"),
    ],
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


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PAPER, id="paper"),
        pytest.param(
            dataclasses.replace(OFFICIAL, backbone="test_efficientnet", attention_stage="L3"),
            id="official, fewer layers",
        ),
    ],
)
def test_the_compiled_network_gives_the_same_logits_without_a_break_in_its_graph(config):
    network = settled(config)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images(2)).logits, network(images(2)).logits, atol=1e-5, rtol=0)


@PROFILES
def test_bf16_autocast_stays_within_two_hundredths_of_float32(config):
    network = settled(config)
    with torch.no_grad():
        exact = network(images(8)).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(images(8)).logits
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=2e-2, rtol=0)


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
