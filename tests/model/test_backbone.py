"""The backbone: stages, padding, and errors that say what to do."""

import http.server
import importlib.util
import re
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from multiattn.config import Experiment, ModelConfig
from multiattn.config.model import HALF
from multiattn.model.backbone import Backbone, read_stages
from multiattn.model.rewrites import NOMINAL_SIZES, same_padding
from multiattn.stages.describe import main as describe
from multiattn.training.engine.step import TrainingStep, backward_passes

ALL = ("L1", "L2", "L3", "L4", "L5", "L6", "L7")


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub nobody answers for, and an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["tinynet_e", "mnasnet_small", "mobilenetv2_035"])
@pytest.mark.parametrize("size", [(64, 64), (97, 70)], ids=["multiple of 32", "odd"])
def test_every_stage_has_the_channels_and_stride_that_are_promised(name, size):
    backbone = Backbone(name, stages=ALL).eval()
    with torch.no_grad():
        maps, last = backbone(torch.zeros(1, 3, *size))
    assert tuple(maps) == ALL
    for stage, features in maps.items():
        stride = backbone.strides[stage]
        grid = tuple(-(-side // stride) for side in size)
        assert features.shape == (1, backbone.channels[stage], *grid), stage
    assert last.shape[:2] == (1, backbone.num_features)


FAMILIES = {
    # backbone: (modules whose outputs are the stages, channels, strides)
    "test_efficientnet": ([f"blocks.{i}" for i in range(5)], (16, 24, 32, 48, 64), (2, 4, 8, 16, 32)),
    "tf_efficientnetv2_b0": ([f"blocks.{i}" for i in range(6)], (16, 32, 48, 96, 112, 192), (2, 4, 8, 16, 16, 32)),
    "resnet18": (["act1", "layer1", "layer2", "layer3", "layer4"], (64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
    "convnext_atto": ([f"stages.{i}" for i in range(4)], (40, 80, 160, 320), (4, 8, 16, 32)),
    "legacy_xception": ([f"block{i}" for i in range(1, 13)], (128, 256, *[728] * 9, 1024), (4, 8, *[16] * 9, 32)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stages_of_a_family_are_what_its_modules_put_out_and_the_last_map_is_the_whole_network(name):
    modules, channels, strides = FAMILIES[name]
    stages = tuple(f"L{number}" for number, _ in enumerate(modules, start=1))
    backbone = Backbone(name, stages=stages, input_mean=HALF, input_std=HALF).eval()
    assert backbone.names == stages
    assert tuple(backbone.channels.values()) == channels
    assert tuple(backbone.strides.values()) == strides
    # Copies taken as each module returns: an in-place layer that runs later cannot have touched them.
    copies = {}
    for stage, path in zip(stages, modules, strict=True):
        keep = lambda module, images, output, stage=stage: copies.update({stage: output.clone()})  # noqa: E731
        backbone.net.get_submodule(path).register_forward_hook(keep)
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps, last = backbone(images)
        whole = backbone.net(images)
    assert list(maps) == list(stages)
    for stage, features in maps.items():
        assert torch.equal(features, copies[stage]), stage
        assert features.shape[1] == backbone.channels[stage], stage
    assert last.shape[:2] == (2, backbone.num_features)
    assert torch.equal(last, whole)


class InPlaceOpening(nn.Sequential):
    """A stage that opens with an in-place activation, as those of pre-activation networks may."""

    def __init__(self, stage):
        super().__init__(nn.ReLU(inplace=True), stage)


def test_an_in_place_activation_that_opens_the_next_stage_leaves_the_map_alone(monkeypatch):
    create = timm.create_model

    def hazardous(name, **options):
        net = create(name, **options)
        net.layer3 = InPlaceOpening(net.layer3)
        net.layer2[-1].act2 = nn.Identity()  # else the map has no negative value to lose
        return net

    monkeypatch.setattr(timm, "create_model", hazardous)
    backbone = Backbone("test_resnet", stages=("L3",)).eval()
    with torch.no_grad():
        maps, _ = backbone(torch.randn(1, 3, 64, 64))
    assert (maps["L3"] < 0).any()


@pytest.mark.parametrize("name", ["tinynet_e", "test_resnet", "test_convnext"])
def test_every_parameter_has_a_gradient_from_the_last_map_alone(name):
    # DistributedDataParallel stops at a parameter that no loss reaches.
    backbone = Backbone(name, stages=())
    maps, last = backbone(torch.randn(2, 3, 64, 64))
    assert maps == {}
    last.square().sum().backward()
    assert [path for path, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_stages_come_finest_first_whatever_the_order_asked_for():
    for name in ("tinynet_e", "test_resnet"):
        maps, _ = Backbone(name, stages=("L4", "L2", "L4"))(torch.zeros(2, 3, 64, 64))
        assert list(maps) == ["L2", "L4"]


def test_the_eval_network_of_another_family_is_exported_and_compiled_whole():
    backbone = Backbone("test_resnet", stages=("L2", "L4")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, last = backbone(images)
        exported = torch.export.export(backbone, (images,)).module()
        for run in (exported, torch.compile(backbone, backend="eager", fullgraph=True)):
            found, found_last = run(images)
            assert torch.allclose(found_last, last, atol=1e-5)
            assert all(torch.allclose(found[stage], maps[stage], atol=1e-5) for stage in ("L2", "L4"))


def grids(name, size, padding):
    backbone = Backbone(name, stages=ALL, padding=padding).to("meta").eval()
    maps, last = backbone(torch.zeros(1, 3, size, size, device="meta"))
    return [features.shape[-1] for features in (*maps.values(), last)]


@pytest.mark.parametrize(
    ("name", "size", "padding", "expected"),
    [
        ("tf_efficientnet_b4", 380, "static", [190, 95, 47, 23, 23, 11, 11, 11]),
        ("tf_efficientnet_b4", 380, "dynamic", [190, 95, 48, 24, 24, 12, 12, 12]),
        ("tf_efficientnet_b0", 224, "static", [112, 56, 28, 14, 14, 7, 7, 7]),
        ("tf_efficientnet_b0", 224, "dynamic", [112, 56, 28, 14, 14, 7, 7, 7]),
        ("tf_efficientnet_b0", 101, "static", [50, 25, 12, 6, 6, 3, 3, 3]),
        ("tf_efficientnet_b0", 101, "dynamic", [51, 26, 13, 7, 7, 4, 4, 4]),
    ],
)
def test_padding_decides_the_grids(name, size, padding, expected):
    assert grids(name, size, padding) == expected


def test_static_padding_is_two_short_of_the_kernel_at_every_nominal_size():
    assert list(NOMINAL_SIZES.values()) == [224, 240, 260, 300, 380, 456, 528, 600]
    for size in NOMINAL_SIZES.values():
        assert same_padding(size, 3, 2) == (0, 1)
        assert same_padding(size, 5, 2) == (1, 2)
    assert same_padding(7, 3, 2) == (1, 1)
    assert same_padding(9, 1, 4) == (0, 0)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "legacy_xception", "convnext_atto"])
def test_static_padding_of_a_network_without_same_padding_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: padding 'static' is for networks with TensorFlow's SAME padding"):
        Backbone(name, stages=(), padding="static")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_tiny_patch4_window7_224", "L1 96ch /4, L2 192ch /8, L3 384ch /16, L4 768ch /32"),
        ("tf_efficientnet_b4.ap_in1k", "L1 24ch /2, L2 32ch /4, L3 56ch /8, L4 112ch /16, L5 160ch /16, L6 272ch /32"),
        ("mobilenetv3_small_050", "L1 16ch /2, L2 8ch /4, L3 16ch /8, L4 24ch /16, L5 288ch /32"),
    ],
    ids=["channels-last windows", "the paper's", "a head that widens after pooling"],
)
def test_the_stages_are_read_without_building_the_network(name, expected):
    assert str(read_stages(name)).startswith(expected)


def test_a_family_without_stochastic_depth_says_so(caplog):
    with caplog.at_level("WARNING", logger="multiattn"):
        Backbone("legacy_xception", stages=(), drop_path_rate=0.2)
    assert "legacy_xception has no stochastic depth; drop_path_rate 0.2 is not used" in caplog.text


def test_stochastic_depth_is_passed_on():
    rates = [getattr(m, "drop_prob", 0.0) for m in Backbone("tinynet_e", stages=(), drop_path_rate=0.3).modules()]
    assert 0.2 < max(rates) <= 0.3
    assert max(getattr(m, "drop_prob", 0.0) for m in Backbone("tinynet_e", stages=()).modules()) == 0


@pytest.mark.parametrize(
    ("name", "stages", "message"),
    [
        ("tinynett_e", (), r"'tinynett_e': timm .* no such model\. Did you mean 'tinynet_e'"),
        ("three_cnovs", (), r"'three_cnovs': timm .* no such model\. Did you mean 'three_convs'\?"),
        ("tf_efficientnet_b4.apple", (), r"Invalid pretrained tag .* tf_efficientnet_b4\.ap_in1k"),
        (
            "cait_xxs24_224",
            (),
            r"'cait_xxs24_224' cannot serve as a backbone: .*\(1, 197, 192\), tokens instead of one map",
        ),
        ("crossvit_9_240", (), "cannot serve as a backbone: .* timm cannot build it without pooling"),
        ("mixnet_s", ("L7",), r"no stage 'L7'; expected one of L1 16ch /2, L2 24ch /4, .*, L6 200ch /32\."),
        ("resnet18", ("L2", "L6"), r"no stage 'L6'; expected one of L1 64ch /2, L2 64ch /4, .*, L5 512ch /32\."),
        ("legacy_xception", ("b2",), r"no stage 'b2'; expected one of .*L2 256ch /8, .*L12 1024ch /32\."),
        ("tinynet_e", ("L0",), "no stage 'L0'; expected one of L1 8ch /2"),
    ],
    ids=["misspelt", "registered", "unknown tag", "tokens", "no maps", "too late", "of two", "xception", "zeroth"],
)
def test_a_backbone_that_cannot_serve_is_refused(name, stages, message):
    with pytest.raises(ValueError, match=message):
        Backbone(name, stages=stages, pretrained=True)


def test_an_unreachable_hub_fails_quickly_and_says_what_to_do(no_hub):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"--model\.weights FILE.*--model\.no-pretrained"):
        Backbone("tinynet_e", stages=(), pretrained=True)
    assert time.monotonic() - start < 5


def test_weights_in_the_hub_cache_need_no_network(no_hub, imagenet_state, caplog):
    snapshot = no_hub / "models--timm--tinynet_e.in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(imagenet_state, snapshot / "model.safetensors")
    with caplog.at_level("INFO", logger="multiattn"):
        backbone = Backbone("tinynet_e", stages=(), pretrained=True)
    for name, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, imagenet_state[name]), name
    matched = len(imagenet_state) - 2
    assert f"timm's tinynet_e: {matched} tensors matched, 2 left out (classifier)" in caplog.text
    # A hub file that lacks a tensor is refused, classifier or not.
    safetensors.torch.save_file(
        {name: tensor for name, tensor in imagenet_state.items() if name != "bn2.bias"}, snapshot / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"cannot load pretrained weights .*--model\.weights FILE"):
        Backbone("tinynet_e", stages=(), pretrained=True)


def test_a_hub_that_answers_but_fails_gives_the_same_advice(no_hub, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)  # 501 to all
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    create = timm.create_model

    def broken(name, **options):
        if options.get("pretrained"):
            raise OSError("the connection broke")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(ValueError, match=r"the connection broke.*--model\.weights FILE"):
        Backbone("tinynet_e", stages=(), pretrained=True)
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["mnasnet_050", "three_convs"])
def test_a_model_without_imagenet_weights_says_so(name):
    with pytest.raises(ValueError, match=rf"{name}: timm knows no pretrained weights.*--model\.no-pretrained"):
        Backbone(name, stages=(), pretrained=True)


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    """The example of the package's README.md, as a module from outside the package."""
    readme = Path(sys.modules[Backbone.__module__].__file__).with_name("README.md").read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("outside") / "my_backbones.py"
    file.write_text(
        next(code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "ThreeConvs" in code)
    )
    spec = importlib.util.spec_from_file_location("my_backbones", file)
    sys.modules["my_backbones"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["my_backbones"])


TOY = ["--model.backbone", "three_convs", "--model.texture-stage", "L1", "--model.attention-stage", "L3"]


def test_a_registered_backbone_has_its_stages_and_is_described(capsys):
    table = read_stages("three_convs")
    assert str(table) == "L1 8ch /2, L2 12ch /4, L3 16ch /8"
    assert (table.input_mean, table.input_std) == ((0.5,) * 3,) * 2, "timm knows no weights of it"
    describe(["demo", "--tiny", *TOY])
    lines = capsys.readouterr().out.splitlines()
    assert "multi-attention on three_convs" in lines[0]
    assert next(line for line in lines if line.startswith("f_3 = SL_a")).endswith("8")


def test_a_registered_backbone_is_trained():
    torch.manual_seed(0)
    model = ModelConfig(backbone="three_convs", texture_stage="L1", attention_stage="L3", pretrained=False)
    step = TrainingStep(Experiment(name="toy", model=model))
    crops = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8)
    terms = backward_passes(step, step, crops, torch.arange(4) % 2, scaler=torch.amp.GradScaler("cpu", enabled=False))
    assert torch.isfinite(terms["loss"])
    assert all(parameter.grad.abs().sum() > 0 for parameter in step.network.backbone.parameters())
