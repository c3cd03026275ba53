"""Tuning a part of a backbone: LoRA in timm's transformers, merged states, and checkpoints of the tuned part alone."""

import dataclasses
import json
import sys

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import nn

from multiattn.config import Experiment, ModelConfig, to_json
from multiattn.model.checkpoints import load_weights, save_weights
from multiattn.model.network import NETWORKS, make_network
from multiattn.model.tuning import (
    BASE_DIGEST,
    TRAINED_LAYERS,
    merged_state,
    prepare_tuning,
    set_gradients,
    set_modes,
    tuned_state,
    whole_state,
)
from multiattn.runtime.tensor_files import read_state
from small_vit import SmallVit

LORA = ModelConfig(backbone="test_vit", tune="lora", lora_rank=2)
CNN = ModelConfig(network="baseline", backbone="test_efficientnet", pretrained=False)
EVA = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def vit() -> nn.Module:
    return timm.create_model("test_vit", img_size=32, num_classes=0, global_pool="")


TRANSFORMERS = {
    "ViT": (vit, 4),  # qkv, proj, fc1, fc2
    "EVA with one qkv layer and a bias beside it": (lambda: Eva(**EVA, global_pool=""), 4),
    "EVA-02: q, k, v apart and SwiGLU": (
        lambda: Eva(**EVA, global_pool="", qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
        7,
    ),
    "Swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, num_classes=0, depths=(1, 1)), 4),
}


@pytest.mark.parametrize(("make", "layers"), TRANSFORMERS.values(), ids=TRANSFORMERS.keys())
def test_lora_reaches_attention_and_mlps_and_merged_weights_compute_the_same(make, layers):
    pytest.importorskip("peft")
    net = make().eval()
    images, names = torch.randn(2, 3, *net.patch_embed.img_size), list(net.state_dict())
    plain, blocks = net(images), [path for path, _ in net.named_modules() if path.split(".")[-2:-1] == ["blocks"]]
    prepare_tuning(net, LORA)
    net.eval()
    torch.testing.assert_close(net(images), plain, atol=1e-5, rtol=1e-5)  # B is 0
    factors = [layer for path, layer in net.named_modules() if path.endswith("lora_B.default")]
    assert len(factors) == layers * len(blocks)
    for factor in factors:
        nn.init.normal_(factor.weight, std=0.5)
    set_gradients(net, "lora")
    found = net(images)
    found.square().sum().backward()
    trained = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert trained == {name for name in net.state_dict() if ".lora_" in name}
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters() if parameter.requires_grad)
    merged = merged_state(net.state_dict())
    assert list(merged) == names
    again = make().eval()
    again.load_state_dict(merged)
    assert (found - plain).abs().max() > 1e-2
    torch.testing.assert_close(again(images), found, atol=1e-5, rtol=1e-5)


def test_a_merged_weight_is_that_of_hand_arithmetic():
    state = {
        "a.base_layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "a.base_layer.bias": torch.tensor([5.0, 6.0]),
        "a.lora_A.default.weight": torch.tensor([[1.0, -1.0]]),
        "a.lora_B.default.weight": torch.tensor([[0.5], [2.0]]),
        "b.weight": torch.tensor([7.0]),
    }
    merged = merged_state(state)
    assert {name: tensor.tolist() for name, tensor in merged.items()} == {
        "a.weight": [[2.0, 1.0], [7.0, 0.0]],  # + 2 B A
        "a.bias": [5.0, 6.0],
        "b.weight": [7.0],
    }
    assert merged_state(merged) == merged and merged_state({}) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(dataclasses.replace(CNN, tune="lora"), "test_efficientnet: tune lora needs", id="LoRA of a CNN"),
        pytest.param(
            dataclasses.replace(CNN, backbone="vgg11", tune="norms"), "vgg11: tune norms needs", id="no norms"
        ),
    ],
)
def test_a_network_without_such_layers_is_refused_by_name(config, message):
    with torch.device("meta"):
        net = timm.create_model(config.backbone, num_classes=0, global_pool="")
    with pytest.raises(ValueError, match=message):
        prepare_tuning(net, config)


def test_a_missing_peft_is_said_in_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"tune lora: expected the package peft, found none .*`pip install peft`"):
        prepare_tuning(vit(), LORA)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        pytest.param(vit, 2 * 6 + 1, id="layer norms of 6 blocks and the last"),
        pytest.param(lambda: make_network(CNN).backbone.net, 13, id="batch norms"),
    ],
)
def test_normalisation_layers_are_found_whatever_they_normalise_over(make, count):
    net = make()
    found = TRAINED_LAYERS["norms"](net)
    assert len(found) == count
    assert all(isinstance(layer, nn.LayerNorm | nn.BatchNorm2d) for layer in found.values())
    set_modes(net.train(), "norms")
    in_training = {path for path, layer in net.named_modules() if layer.training and path in with_weights(net)}
    assert in_training == set(found)


def with_weights(net: nn.Module) -> set[str]:
    """Paths of the layers that have parameters of their own."""
    return {name.rpartition(".")[0] for name, _ in net.named_parameters()} - {""}


def kept(tmp_path, network: nn.Module, config: ModelConfig):
    """The checkpoint of the tuned part, with experiment.json beside it."""
    state, digest = tuned_state(network, config.tune)
    save_weights(state, tmp_path / "best.safetensors", {BASE_DIGEST: digest})
    experiment = Experiment(name="x", model=config, save="tuned")
    (tmp_path / "experiment.json").write_text(json.dumps(to_json(experiment)))
    return tmp_path / "best.safetensors"


@pytest.mark.parametrize("tune", ["norms", "head", "lora"])
def test_the_tuned_part_is_completed_by_the_weights_it_was_tuned_from_and_by_no_others(tune, tmp_path, monkeypatch):
    if tune == "lora":
        pytest.importorskip("peft")
        monkeypatch.setitem(NETWORKS, "baseline", SmallVit)
    config = dataclasses.replace(CNN, weights=str(tmp_path / "base.safetensors"), tune=tune)
    save_weights(make_network(CNN).backbone.net, config.weights, {})
    network = make_network(config)
    prepare_tuning(network.backbone.net, config)
    set_gradients(network.backbone.net, tune)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for parameter in network.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    path = kept(tmp_path, network, config)
    expected, found = merged_state(network.state_dict()), whole_state(path)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert any(not torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    largest = max(expected, key=lambda name: expected[name].numel())
    assert largest not in read_state(path)
    again = make_network(config, load_weights=False)
    load_weights(again, path)
    assert torch.equal(again.state_dict()[largest], expected[largest])
    save_weights(make_network(CNN).backbone.net, config.weights, {})
    with pytest.raises(ValueError, match=r"was tuned from are in .*base\.safetensors; found others there"):
        whole_state(path)
    (tmp_path / "base.safetensors").unlink()
    with pytest.raises(ValueError, match=r"experiment\.json says .* in .*base\.safetensors: .*no such"):
        whole_state(path)


def test_a_checkpoint_that_is_whole_needs_nothing_beside_it(tmp_path):
    save_weights(vit(), tmp_path / "x.safetensors", {})
    assert whole_state(tmp_path / "x.safetensors").keys() == vit().state_dict().keys()
