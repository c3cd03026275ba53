"""Foreign names of backbone weights: every tensor finds its place, and what has none is named."""

import json
from pathlib import Path

import pytest
import timm
import torch
from reference_backbones import efficientnet_state, xception_state

from multiattn.model.backbone import create_network
from multiattn.model.backbone_weights import rename_to_timm

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"


def planned(name, **options):
    with torch.device("meta"):
        return create_network(name, **options)


def fillable(net):
    return {name for name in net.state_dict() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("checkpoint", "name", "naming", "classifier"),
    [
        ("efficientnet-b4", "tf_efficientnet_b4", "efficientnet_pytorch", "_fc"),
        ("xception", "legacy_xception", "cadene_xception", "last_linear"),
    ],
)
def test_the_backbone_of_a_released_checkpoint_fills_timms_network(checkpoint, name, naming, classifier):
    path = PARITY / f"official_state_dict_{checkpoint}.json"
    if not path.is_file():
        pytest.skip(f"no list of the released tensors at {path}")
    shapes = json.loads(path.read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items() if key.startswith("net.")}
    net = planned(name)
    renamed = rename_to_timm(state, net)
    assert renamed.problems == ()
    assert renamed.naming == naming
    assert set(renamed.state) >= fillable(net)
    assert set(renamed.unused) == {f"net.{classifier}.weight", f"net.{classifier}.bias"}
    assert {*renamed.targets, *renamed.unused} == set(state)
    assert sorted(renamed.targets.values()) == sorted(renamed.state)  # one source each
    # The whole checkpoint is more than a backbone: refused, and the rest named.
    whole = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert any("unexpected" in problem for problem in rename_to_timm(whole, net).problems)


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "backbone.net.", "module.net."])
@pytest.mark.parametrize(
    ("name", "write", "naming"),
    [
        ("tf_efficientnet_b0", lambda: efficientnet_state("b0"), "efficientnet_pytorch"),
        ("tf_efficientnet_b1", lambda: efficientnet_state("b1"), "efficientnet_pytorch"),
        ("legacy_xception", xception_state, "cadene_xception"),
        ("resnet18", lambda: planned("resnet18", num_classes=7, global_pool="avg").state_dict(), "timm"),
        ("convnext_atto", lambda: planned("convnext_atto", num_classes=7, global_pool="avg").state_dict(), "timm"),
    ],
    ids=["b0", "b1", "xception", "resnet", "convnext"],
)
def test_every_naming_fills_the_network_and_leaves_the_classifier_out(prefix, name, write, naming):
    state, net = {f"{prefix}{key}": tensor for key, tensor in write().items()}, planned(name)
    renamed = rename_to_timm(state, net)
    assert renamed.problems == ()
    assert renamed.naming == naming
    assert set(renamed.state) == set(net.state_dict())
    assert len(renamed.unused) == 2
    assert {*renamed.targets, *renamed.unused} == set(state)
    assert all(renamed.state[target].shape == state[source].shape for source, target in renamed.targets.items())


def test_names_of_the_first_and_a_later_block_by_hand():
    targets = rename_to_timm(efficientnet_state("b0"), planned("tf_efficientnet_b0")).targets
    assert targets["_blocks.0._project_conv.weight"] == "blocks.0.0.conv_pw.weight"
    assert targets["_blocks.0._bn2.running_var"] == "blocks.0.0.bn2.running_var"
    assert targets["_blocks.2._expand_conv.weight"] == "blocks.1.1.conv_pw.weight"
    assert targets["_blocks.2._bn2.bias"] == "blocks.1.1.bn3.bias"
    assert targets["_blocks.15._se_expand.bias"] == "blocks.6.0.se.conv_expand.bias"
    assert targets["_bn1.weight"] == "bn2.weight"


def test_a_network_with_a_classifier_gets_it():
    net = timm.create_model("tf_efficientnet_b0", num_classes=2)
    renamed = rename_to_timm(efficientnet_state("b0", num_classes=2), net)
    assert renamed.problems == renamed.unused == ()
    assert renamed.targets["_fc.bias"] == "classifier.bias"


def test_the_state_and_the_network_stay_as_they_were():
    state, net = xception_state(flat_pointwise=True), planned("legacy_xception")
    shapes = {name: tensor.shape for name, tensor in state.items()}
    renamed = rename_to_timm(state, net)
    assert {name: tensor.shape for name, tensor in state.items()} == shapes
    assert renamed.state["conv4.pointwise.weight"].shape == (2048, 1536, 1, 1)
    assert all(tensor.is_meta for tensor in net.state_dict().values())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("_blocks.3._bn1.weight"), "1 missing (blocks.2.0.bn2.weight)"),
        (
            lambda state: state.update({"_blocks.99._bn1.weight": torch.ones(1)}),
            "1 unexpected (_blocks.99._bn1.weight)",
        ),
        (lambda state: state.update({"_swish.weight": torch.ones(1)}), "1 unexpected (_swish.weight)"),
        (lambda state: state.update({"_blocks.0._bn0.weight": torch.ones(1)}), "1 unexpected (_blocks.0._bn0.weight)"),
        (
            lambda state: state.update({"_conv_head.weight": torch.ones(2, 2)}),
            "1 of another shape (conv_head.weight (2, 2) instead of (1280, 320, 1, 1))",
        ),
    ],
    ids=["missing", "too many blocks", "unknown layer", "an expansion where there is none", "another shape"],
)
def test_what_does_not_fit_is_named(change, problem):
    state = efficientnet_state("b0")
    change(state)
    assert rename_to_timm(state, planned("tf_efficientnet_b0")).problems == (problem,)


def test_counters_of_batches_may_be_missing_and_nothing_else():
    state = {k: v for k, v in efficientnet_state("b0").items() if not k.endswith("num_batches_tracked")}
    assert rename_to_timm(state, planned("tf_efficientnet_b0")).problems == ()


def test_an_empty_state_is_all_missing():
    net = planned("resnet18")
    renamed = rename_to_timm({}, net)
    assert renamed.targets == renamed.state == {}
    assert renamed.problems[0].startswith(f"{len(fillable(net))} missing (conv1.weight, ")
