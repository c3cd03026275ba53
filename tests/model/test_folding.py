"""Folding normalisations into convolutions changes speed, not answers."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from multiattn.config import ModelConfig
from multiattn.model.network import MultiAttentionNet
from multiattn.model.rewrites import PAIRS, fold_batch_norms


def network(backbone: str, **settings: object) -> nn.Module:
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
    net = network(backbone, **settings)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = net(images)
    actual = fold_batch_norms(net)(images)  # with gradients on: the folded layers must not lose their bias
    for found, wanted in zip(actual, expected, strict=True):
        assert (found - wanted).abs().max() <= 1e-4 * max(1.0, float(wanted.abs().max()))


def test_folding_leaves_the_network_as_it_was_and_only_the_pre_activations_normalised():
    net = network("tinynet_e")
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
