"""Exported networks: the numbers of torch in processes that have onnxruntime, or torch, and nothing of ours."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from multiattn.bench.train_sides import settle_statistics
from multiattn.config import ModelConfig
from multiattn.inference.kit.half_weights import drawn_crops
from multiattn.model import exported
from multiattn.model.exported import (
    METADATA_FILE,
    CropClassifier,
    OnnxNetwork,
    open_session,
    run_classifier,
    write_classifier,
    write_network,
    write_program,
)
from multiattn.model.network import make_network
from multiattn.model.predict import normalize_crops
from multiattn.model.rewrites import fold_batch_norms

SAME = 1e-4
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""
RUN_ONNX = """
import json
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
crops = np.load(sys.argv[2])
batches = [crops[:1], *(crops[start : start + 7] for start in range(1, len(crops), 7))]
found = [session.run(["probability", "logits"], {"crops": batch}) for batch in batches]
np.savez(sys.argv[3], *map(np.concatenate, zip(*found)))
print(json.dumps(session.get_modelmeta().custom_metadata_map))
"""
RUN_PROGRAM = """
import numpy as np, torch
extra = {"metadata.json": ""}
module = torch.export.load(sys.argv[1], extra_files=extra).module()
crops = torch.from_numpy(np.load(sys.argv[2]))
found = [module(batch) for batch in (crops[:1], *crops[1:].split(7))]
assert all(type(batch) is tuple and {type(one) for one in batch} == {torch.Tensor} for batch in found)
np.savez(sys.argv[3], *(torch.cat(part).detach().numpy() for part in zip(*found)))
print(extra["metadata.json"])
"""
OURS = ("multiattn", "timm", "onnx", "onnxscript")


def network(backbone: str, size: int, **settings: object) -> torch.nn.Module:
    """With random weights, and the activations of a trained one, as it is exported."""
    torch.manual_seed(0)
    net = make_network(ModelConfig(backbone=backbone, pretrained=False, **settings), load_weights=False)
    settle_statistics(net, normalize_crops(torch.from_numpy(drawn_crops(8, size))))
    return fold_batch_norms(net)


def run_apart(script: str, blocked: tuple[str, ...], path: Path, crops: np.ndarray) -> tuple[np.ndarray, ...]:
    """P(fake), logits and notes by a process without these packages, in batches of 1 and then of 7."""
    np.save(path.with_name("crops.npy"), crops)
    words = [path, path.with_name("crops.npy"), path.with_name("found.npz")]
    command = [sys.executable, "-c", BLOCK.format(names=blocked) + script, *map(str, words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    with np.load(path.with_name("found.npz")) as found:
        return found["arr_0"], found["arr_1"], json.loads(ended.stdout)


def require_torchs(found: tuple[np.ndarray, ...], networks: list[torch.nn.Module], crops: np.ndarray) -> None:
    with torch.no_grad():
        outputs = [net(normalize_crops(torch.from_numpy(crops))).logits for net in networks]
    fakes = torch.stack([output.softmax(dim=1)[:, 1] for output in outputs]).mean(dim=0)
    np.testing.assert_allclose(found[0], fakes, atol=SAME)
    np.testing.assert_allclose(found[1], torch.stack([it[:, 1] - it[:, 0] for it in outputs], dim=1), atol=SAME)
    assert found[0].dtype == found[1].dtype == np.float32
    assert found[0].std() > 1e-6, "answers that are all alike would show nothing"


@pytest.mark.slow
def test_a_file_of_two_networks_answers_as_their_mean_with_onnxruntime_alone(tmp_path):
    """A multi-attention network, and a plain one on tokens."""
    nets, crops = [network("test_efficientnet", 64, attention_stage="L3")], drawn_crops(15, 64)
    nets.append(network("test_vit", 64, network="baseline"))
    path = tmp_path / "net.onnx"
    write_classifier(CropClassifier(*nets), 64, path, {"experiment": "both"})
    found = run_apart(RUN_ONNX, (*OURS, "torch"), path, crops)
    require_torchs(found, nets, crops)
    assert found[2]["experiment"] == "both"
    again = run_classifier(path, crops, batch_size=4, threads=1)
    np.testing.assert_allclose(again[0], found[0], atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops.npy", "found.npz", "net.onnx"]


@pytest.mark.slow
def test_a_network_in_onnxruntime_has_the_logits_and_features_of_its_own(tmp_path):
    net, crops = network("test_efficientnet", 64, network="baseline"), torch.from_numpy(drawn_crops(5, 64))
    write_network(net, 64, tmp_path / "net.onnx")
    run = OnnxNetwork(tmp_path / "net.onnx", threads=1)
    with torch.inference_mode():
        for batch in (crops[:1], crops):
            found, expected = run(normalize_crops(batch)), net(normalize_crops(batch))
            torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.features, expected.features, atol=1e-4, rtol=1e-4)
    assert found.attention is None and found.parts is None


def test_what_no_file_can_hold_or_is_none_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "MOST_BYTES", 7.0)
    with pytest.raises(ValueError, match=r"expected at most 7e-09 GB of weights .* Export single folds"):
        write_network(torch.nn.Linear(1, 1), 8, tmp_path / "net.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"bad.onnx: expected an ONNX file, found a damaged one"):
        open_session(tmp_path / "bad.onnx", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "settings"),
    [
        ("tf_efficientnet_b4", 64, {}),
        ("tf_efficientnet_lite0", 64, {"network": "baseline"}),
        ("legacy_xception", 96, {}),
        ("test_efficientnet", 64, {"attention_stage": "L3", "attention": "masked-elu", "texture": "grouped"}),
    ],
)
def test_backbones_answer_as_torch_does(backbone, size, settings, tmp_path):
    net, crops = network(backbone, size, **settings), drawn_crops(8, size)
    write_classifier(CropClassifier(net), size, tmp_path / "net.onnx", {})
    require_torchs(
        [part.astype(np.float32) for part in run_classifier(tmp_path / "net.onnx", crops, batch_size=7, threads=1)],
        [net], crops,
    )  # fmt: skip


@pytest.mark.slow
def test_a_program_of_torch_export_loads_without_this_package(tmp_path):
    nets = [network("test_efficientnet", 64, attention_stage="L3"), network("test_vit", 64)]
    path, crops = tmp_path / "net.pt2", drawn_crops(8, 64)
    write_program(CropClassifier(*nets), 64, path, {"experiment": "both"})
    found = run_apart(RUN_PROGRAM, ("multiattn", "timm"), path, crops)  # torch asks if onnx is there
    require_torchs(found, nets, crops)
    assert found[2] == {"experiment": "both"} and METADATA_FILE in RUN_PROGRAM


@pytest.mark.slow
@pytest.mark.shared
def test_200_real_crops_are_answered_alike_with_onnxruntime_alone(shared, tmp_path):
    crops = []
    with tarfile.open(shared / "dfdc_crops" / "val.tar") as tar:
        for member in tar:
            if member.isfile() and len(crops) < 200:
                data = np.frombuffer(tar.extractfile(member).read(), np.uint8)
                crops.append(cv2.resize(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), (96, 96)))
    net = network("tf_efficientnet_lite0", 96)
    write_classifier(CropClassifier(net), 96, tmp_path / "net.onnx", {})
    found = run_apart(RUN_ONNX, (*OURS, "torch"), tmp_path / "net.onnx", np.stack(crops))
    require_torchs(found, [net], np.stack(crops))
