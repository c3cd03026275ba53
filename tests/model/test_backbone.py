"""The backbone: stages, weights, and errors that say what to do."""

import http.server
import threading
import time

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from multiattn.model.backbone import Backbone

ALL = ("L1", "L2", "L3", "L4", "L5", "L6", "L7")
STARTS_FROM = "tinynet_e"


@pytest.fixture
def imagenet_state():
    """A stand-in for ImageNet weights with timm's naming, classifier included."""
    torch.manual_seed(5)
    return timm.create_model(STARTS_FROM, pretrained=False).state_dict()


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """A hub nobody answers for, and an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["tinynet_e", "mnasnet_small", "mobilenetv2_035", "fbnetc_100", "efficientnet_lite0"])
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


def test_the_last_map_is_that_of_timm():
    backbone = Backbone("tinynet_e", stages=("L2",)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, last = backbone(images)
        assert list(maps) == ["L2"]
        assert torch.equal(last, backbone.net.forward_features(images))


def test_stochastic_depth_is_passed_on():
    rates = [getattr(m, "drop_prob", 0.0) for m in Backbone("tinynet_e", stages=(), drop_path_rate=0.3).modules()]
    assert 0.2 < max(rates) <= 0.3
    assert max(getattr(m, "drop_prob", 0.0) for m in Backbone("tinynet_e", stages=()).modules()) == 0


@pytest.mark.parametrize(
    ("name", "stages", "message"),
    [
        ("tinynett_e", (), r"'tinynett_e': timm .* no such model\. Did you mean tinynet_e"),
        ("xqzv", (), "no such model"),
        ("tf_efficientnet_b4.apple", (), r"Invalid pretrained tag .* tf_efficientnet_b4\.ap_in1k"),
        ("resnet18", (), "expected an EfficientNet-class model of timm, found ResNet"),
        ("mixnet_s", ("L7",), r"no stage 'L7'; expected one of L1, L2, L3, L4, L5, L6"),
        ("tinynet_e", ("L8",), "no stage 'L8'; expected one of L1, L2"),
    ],
    ids=["misspelt", "nothing like it", "unknown tag", "another family", "six stages", "wrong stage"],
)
def test_a_backbone_that_cannot_serve_is_refused(name, stages, message):
    with pytest.raises(ValueError, match=message):
        Backbone(name, stages=stages, pretrained=True)


@pytest.mark.parametrize("form", ["safetensors", "pth", "pth in a state_dict entry", "old pth", "without classifier"])
def test_a_local_file_fills_the_backbone(tmp_path, imagenet_state, caplog, form):
    state = dict(imagenet_state)
    if form == "without classifier":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    if form == "old pth":
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save({"state_dict": state} if form.endswith("entry") else state, path)
    with caplog.at_level("INFO", logger="multiattn"):
        backbone = Backbone(STARTS_FROM, stages=("L2",), pretrained=True, weights=path)
    for name, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, imagenet_state[name]), name
    assert ("classifier.weight" in caplog.text) == (form != "without classifier")


def test_a_local_file_that_does_not_fit_is_refused(tmp_path, imagenet_state):
    state = {f"net.{name}": tensor for name, tensor in imagenet_state.items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: .* missing \(conv_stem\.weight.* unexpected \(net\.conv_stem"):
        Backbone(STARTS_FROM, stages=(), weights=tmp_path / "w.pth")
    imagenet_state["conv_stem.weight"] = torch.zeros(3)
    torch.save(imagenet_state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"1 of another shape \(conv_stem\.weight \(3,\) instead of"):
        Backbone(STARTS_FROM, stages=(), weights=tmp_path / "w.pth")


@pytest.mark.parametrize("content", ["nothing", "text", "object", "list", "numbers"])
def test_a_local_file_that_is_no_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "nothing":
        path.write_bytes(b"")
    elif content == "text":
        path.write_text("weights")
    else:
        torch.save({"object": torch.nn.ReLU(), "list": [torch.ones(1)], "numbers": {"epoch": 3}}[content], path)
    with pytest.raises(ValueError, match=r"w\.pth: (not a PyTorch file|expected a state dict)"):
        Backbone(STARTS_FROM, stages=(), weights=path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_missing_local_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        Backbone(STARTS_FROM, stages=(), weights=tmp_path / name)


def test_an_unreachable_hub_fails_quickly_and_says_what_to_do(no_hub):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"--model\.weights FILE.*--model\.no-pretrained"):
        Backbone(STARTS_FROM, stages=(), pretrained=True)
    assert time.monotonic() - start < 5


def test_weights_in_the_hub_cache_need_no_network(no_hub, imagenet_state):
    snapshot = no_hub / "models--timm--tinynet_e.in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(imagenet_state, snapshot / "model.safetensors")
    backbone = Backbone(STARTS_FROM, stages=(), pretrained=True)
    for name, tensor in backbone.net.state_dict().items():
        assert torch.equal(tensor, imagenet_state[name]), name


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
        Backbone(STARTS_FROM, stages=(), pretrained=True)
    server.shutdown()
    server.server_close()


def test_a_model_without_imagenet_weights_says_so():
    with pytest.raises(ValueError, match=r"No pretrained weights exist.*--model\.no-pretrained"):
        Backbone("mnasnet_050", stages=(), pretrained=True)
