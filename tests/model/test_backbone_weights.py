"""Backbone weights from a local file: three namings, strict, with a report; the maps equal an independent network's."""

import pytest
import safetensors.torch
import timm
import torch
from reference_networks import efficientnet_maps, efficientnet_state, xception_maps, xception_state

from multiattn.config.model import HALF
from multiattn.model.backbone import Backbone, create_network
from multiattn.model.backbone_weights import load_backbone_file, rename_to_timm


def assert_maps_equal(backbone, images, expected):
    with torch.no_grad():
        maps, last = backbone.eval()(images)
    assert {*maps, "last"} == set(expected)
    for stage, features in {**maps, "last": last}.items():
        assert 0.05 < features.std() < 20, f"{stage}: 1e-4 would mean nothing"
        torch.testing.assert_close(
            features, expected[stage], atol=1e-4, rtol=0, msg=lambda text, s=stage: f"{s}: {text}"
        )


@pytest.mark.parametrize("padding", ["dynamic", "static"])
@pytest.mark.parametrize(("variant", "size"), [("b0", (96, 96)), ("b0", (101, 70)), ("b4", (64, 64))])
def test_an_efficientnet_in_the_authors_naming_gives_the_maps_of_the_reference(
    tmp_path, caplog, variant, size, padding
):
    state = efficientnet_state(variant)
    torch.save(
        {"logs": {"epoch": 3}, "state_dict": {f"module.net.{k}": v for k, v in state.items()}}, tmp_path / "w.pth"
    )
    stages = tuple(f"L{number}" for number in range(1, 8))
    with caplog.at_level("INFO", logger="multiattn"):
        name, options = f"tf_efficientnet_{variant}", {"padding": padding, "input_mean": HALF, "input_std": HALF}
        backbone = Backbone(name, stages=stages, weights=tmp_path / "w.pth", **options)
    images = torch.randn(1, 3, *size)
    assert_maps_equal(backbone, images, efficientnet_maps(state, images, variant, static=padding == "static"))
    assert (
        f"efficientnet_pytorch naming, {len(state) - 2} tensors matched, left out: module.net._fc.weight, "
        "module.net._fc.bias (classifier)"
    ) in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("flat", [False, True], ids=["4-D pointwise", "2-D pointwise of the first files"])
def test_an_xception_in_cadenes_naming_gives_the_maps_of_the_reference(tmp_path, caplog, flat):
    state = xception_state(flat_pointwise=flat)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    stages = tuple(f"L{number}" for number in range(1, 13))
    with caplog.at_level("INFO", logger="multiattn"):
        backbone = Backbone("legacy_xception", stages=stages, weights=tmp_path / "w.safetensors")
    images = torch.randn(1, 3, 96, 96)
    assert_maps_equal(backbone, images, xception_maps(state, images))
    assert "cadene_xception naming, 274 tensors matched, left out: last_linear." in caplog.text


@pytest.mark.parametrize(
    "form", ["safetensors", "pth", "pth in a state_dict entry", "old pth", "without classifier", "half precision"]
)
def test_a_local_file_fills_the_backbone(tmp_path, imagenet_state, caplog, form):
    state = dict(imagenet_state)
    if form == "without classifier":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    if form == "old pth":
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if form == "half precision":
        state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state} if form.endswith("entry") else state, path)
    with caplog.at_level("INFO", logger="multiattn"):
        backbone = Backbone("tinynet_e", stages=("L2",), pretrained=True, weights=path)
    for name, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, state.get(name, imagenet_state[name]).to(imagenet_state[name].dtype)), name
        assert tensor.dtype == imagenet_state[name].dtype, name
    assert ("classifier.weight" in caplog.text) == (form != "without classifier")


def test_a_local_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, imagenet_state):
    net = Backbone("tinynet_e", stages=()).net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    faults = {
        r"1 missing \(bn2\.bias\)": {k: v for k, v in imagenet_state.items() if k != "bn2.bias"},
        r"1 unexpected \(attention\.weight\)": {**imagenet_state, "attention.weight": torch.ones(1)},
        r"1 of another shape \(conv_stem\.weight \(3,\) instead of": {
            **imagenet_state,
            "conv_stem.weight": torch.zeros(3),
        },
        r"missing \(conv_stem\.weight.* unexpected \(encoder\.conv_stem": {
            f"encoder.{name}": tensor for name, tensor in imagenet_state.items()
        },
        "missing .conv_stem": {},
        r"1 no floating-point numbers \(bn2\.bias torch\.int64\)": {
            **imagenet_state,
            "bn2.bias": imagenet_state["bn2.bias"].long(),
        },
        r"1 not finite \(bn2\.bias\)": {**imagenet_state, "bn2.bias": imagenet_state["bn2.bias"] * torch.nan},
        # A few bytes that claim a shape of terabytes.
        r"1 of another shape \(bn2\.bias \(1000000000000,\)": {
            **imagenet_state,
            "bn2.bias": torch.zeros(1, dtype=torch.float16).expand(10**12),
        },
    }
    for message, state in faults.items():
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=r"w\.pth: .*" + message):
            load_backbone_file(net, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet18", "the network is a ResNet"), ("efficientnet_b0", r"epsilon of 0\.001, the network has 1e-05")],
)
def test_authors_weights_in_a_network_that_would_compute_something_else_are_refused(tmp_path, name, message):
    torch.save(efficientnet_state("b0"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: the weights are .*efficientnet_pytorch naming.*{message}"):
        Backbone(name, stages=(), weights=tmp_path / "w.pth")


NO_STATES = [
    *(b"", b"PK", b"weights", b"<html>"),
    *([torch.ones(1)], torch.ones(1), {"epoch": 3}, {1: torch.ones(1)}, {"a": torch.ones(2).to_sparse()}),
]


@pytest.mark.parametrize("content", NO_STATES, ids=lambda content: type(content).__name__)
def test_a_local_file_that_is_no_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    expected = "not a PyTorch file" if isinstance(content, bytes) else "expected a state dict"
    with pytest.raises(ValueError, match=rf"w\.pth: {expected}"):
        Backbone("tinynet_e", stages=(), weights=path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_missing_local_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        Backbone("tinynet_e", stages=(), weights=tmp_path / name)


def planned(name, **options):
    with torch.device("meta"):
        return create_network(name, **options)


@pytest.mark.parametrize(
    ("prefix", "name", "write", "naming"),
    [
        ("", "tf_efficientnet_b0", lambda: efficientnet_state("b0"), "efficientnet_pytorch"),
        ("module.net.", "tf_efficientnet_b1", lambda: efficientnet_state("b1"), "efficientnet_pytorch"),
        ("net.", "legacy_xception", xception_state, "cadene_xception"),
        ("module.", "resnet18", lambda: planned("resnet18", num_classes=7, global_pool="avg").state_dict(), "timm"),
        ("backbone.net.", "convnext_atto", lambda: planned("convnext_atto", num_classes=7).state_dict(), "timm"),
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


def test_a_vision_transformer_of_a_class_from_outside_reads_timms_names():
    class Mine(type(timm.create_model("test_vit"))):
        pass

    net = timm.create_model("test_vit", num_classes=0)
    net.__class__ = Mine
    renamed = rename_to_timm(timm.create_model("test_vit").state_dict(), net)
    assert renamed.state.keys() >= net.state_dict().keys()
