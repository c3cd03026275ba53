"""`describe_network` against the paper's shapes and arithmetic by hand."""

import dataclasses

import pytest
import torch

from multiattn.config import Experiment, ModelConfig
from multiattn.experiments import EXPERIMENTS, get_experiment
from multiattn.model.describe import NetworkDescription, departures, describe_network
from multiattn.model.network import make_network

SMALL = ModelConfig(backbone="test_efficientnet", pretrained=False, attention_stage="L3")


def planned(config: ModelConfig, size: int) -> NetworkDescription:
    with torch.device("meta"):
        network = make_network(config, load_weights=False)
    return describe_network(network, size)


B4_SHAPES = {
    "I": (3, 380, 380),
    "SL_t": (32, 95, 95),
    "SL_a": (160, 24, 24),
    "f_last": (1792, 12, 12),
    "A": (4, 24, 24),
    "D": (32, 24, 24),
    "T": (32, 95, 95),
    "F": (32, 95, 95),
    "P": (4, 32),
    "G": (1792,),
    "V": (4, 32),
    "logits": (2,),
}
"""Sections 3.1 to 3.3 of the paper, with an EfficientNet-B4 of 380 px."""


def test_b4_at_380_has_the_shapes_and_strides_of_the_paper():
    found = planned(ModelConfig(), 380)
    assert {symbol: found.shape(symbol) for symbol in B4_SHAPES} == B4_SHAPES
    stages = [layer for layer in found.layers if layer.symbols[0] in {f"f_{number}" for number in range(1, 8)}]
    assert [layer.shape[0] for layer in stages] == [24, 32, 56, 112, 160, 272, 448]
    assert [layer.stride for layer in stages] == [2, 4, 8, 16, 16, 32, 32]
    # Tan and Le 2019, Table 2: 19 M parameters with a classifier of 1792 * 1000 + 1000, 4.2 G multiply-adds.
    backbone = found.parts[0]
    assert backbone.parameters == pytest.approx(19.3e6 - 1_793_000, rel=0.01)
    assert backbone.flops / 2 == pytest.approx(4.2e9, rel=0.06)


@pytest.mark.parametrize(("padding", "grid", "last"), [("static", 23, 11), ("dynamic", 24, 12)])
def test_the_released_form_of_b4_has_a_texture_for_each_map_and_either_grid(padding, grid, last):
    config = get_experiment("dfdc_b4_official").model
    assert config.padding == "static"
    found = planned(dataclasses.replace(config, padding=padding), 380)
    assert found.shape("A") == (4, grid, grid)
    assert found.shape("f_last") == (1792, last, last)
    # 18.83 million with the running statistics, the backbone's classifier (2 x 1793) and the loss's buffers.
    assert found.total.parameters == pytest.approx(18.83e6 - 0.13e6, abs=0.2e6)
    assert found.shape("T") == (4 * 32, 95, 95)
    assert found.shape("F") == (4, 32, 95, 95)
    assert found.shape("P") == found.shape("V") == (4, 32)


@pytest.mark.parametrize(
    ("config", "size", "stages"),
    [
        pytest.param(dataclasses.replace(SMALL, network="baseline"), 64, 5, id="baseline"),
        pytest.param(dataclasses.replace(SMALL, num_maps=1), 64, 5, id="one map"),
        pytest.param(ModelConfig(backbone="resnet18", texture_stage="L2"), 64, 5, id="any timm network"),
    ],
)
def test_other_networks_are_described_too(config, size, stages):
    found = planned(config, size)
    names = [layer.symbols[0] for layer in found.layers]
    assert names[: stages + 2] == ["I", *(f"f_{number}" for number in range(1, stages + 1)), "f_last"]
    assert ("A" in names) == ("V" in names) == (config.network == "multi-attention")
    if "A" in names:
        assert found.shape("A")[0] == found.shape("P")[0] == config.num_maps


def test_flops_are_those_of_arithmetic_by_hand():
    found = planned(SMALL, 64)
    flops = {part.name: part.flops for part in found.parts}
    channels, height, width = found.shape("SL_t")
    maps, grid_height, grid_width = found.shape("A")
    cells, grid = height * width, grid_height * grid_width
    last_channels, *last_size = found.shape("f_last")
    assert flops["attention"] == 2 * found.shape("SL_a")[0] * maps * grid
    assert flops["texture"] == 2 * 9 * (1 + 2 + 3) * channels * channels * cells
    hidden = SMALL.hidden_size
    linears = [(maps * channels, hidden), (hidden, hidden), (last_channels, hidden), (2 * hidden, hidden), (hidden, 2)]
    assert flops["classifier"] == 2 * sum(wide * high for wide, high in linears)
    last_cells = last_size[0] * last_size[1]
    assert flops["pooling"] == 2 * (maps * channels * (cells + grid) + last_channels * last_cells)


@pytest.mark.parametrize("network", ["multi-attention", "baseline"])
def test_parts_add_up_to_the_network_that_is_trained(network):
    real = make_network(dataclasses.replace(SMALL, network=network), load_weights=False)
    found = describe_network(real, 64)
    assert found.total.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert found.total.weight_bytes == sum(value.nbytes for value in (*real.parameters(), *real.buffers()))
    for figure in ("parameters", "weight_bytes", "flops"):
        assert sum(getattr(part, figure) for part in found.parts) == getattr(found.total, figure)


def test_the_network_is_left_as_it_was():
    network = make_network(SMALL, load_weights=False).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    describe_network(network, 64)
    assert all(module.training for module in network.modules())
    assert network.backbone.stages == ("L2", "L3")
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        pytest.param(get_experiment("dfdc_b4"), {}, id="the paper's own settings"),
        pytest.param(
            get_experiment("dfdc_b4_baseline"),
            {"model.network": {"found": "baseline", "paper": "multi-attention"}},
            id="one",
        ),
        pytest.param(
            Experiment(name="x", model=ModelConfig(num_maps=1, texture_stage="L3")),
            {"model.num_maps": {"found": 1, "paper": 4}, "model.texture_stage": {"found": "L3", "paper": "L2"}},
            id="two",
        ),
    ],
)
def test_departures_are_the_settings_that_differ(experiment, expected):
    assert departures(experiment) == expected


def test_every_official_experiment_departs_in_network_losses_and_agda():
    for name in filter(lambda name: name.endswith("_official"), EXPERIMENTS):
        assert {setting.split(".")[0] for setting in departures(get_experiment(name))} == {"model", "loss", "agda"}
