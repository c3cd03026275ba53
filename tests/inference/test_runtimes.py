"""Runs that predict by onnxruntime: the answers and doubts of torch, from a file that is made once."""

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from multiattn import DeepfakeDetector
from multiattn.__main__ import main
from multiattn.inference import distances, runtimes
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import TrainedModel, find_models
from multiattn.inference.runtimes import exported_network, load_network, with_runtime
from multiattn.inference.submit.classifier import LoadedModels
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.runtime import layout
from multiattn.runtime.files import write_digests
from multiattn.tables import SUBMISSION
from pipeline import Pipeline, run

CPU = torch.device("cpu")
SAME = 1e-4


@pytest.fixture(scope="module")
def first(pipeline: Pipeline, tmp_path_factory) -> TrainedModel:
    """The first fold, exported, in a folder of its own and with a measure of distances."""
    folder = tmp_path_factory.mktemp("runs") / "demo_tiny" / "fold0"
    models = find_models(shutil.copytree(pipeline.experiment / "fold0", folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "LEAST_CROPS", 2)
        distances.keep_distances(models, pipeline.faces, device=CPU)
    return with_runtime(models, "onnxruntime", CPU)[0]


def test_faces_have_the_logits_distances_and_reasons_of_torch(first, pipeline: Pipeline):
    how = {"device": CPU, "precision": "fp32", "batch_size": 7}
    found, expected = (
        predict_faces([replace(first, runtime=name, tta="scales")], pipeline.faces, **how)
        for name in ("onnxruntime", "torch")
    )
    np.testing.assert_allclose(found["logit"], expected["logit"], atol=SAME)
    np.testing.assert_allclose(found["distance"], expected["distance"], atol=SAME)
    assert found["distance"].notna().any() and found["distance_reason"].equals(expected["distance_reason"])


def test_a_submissions_threads_share_a_network_that_computes_in_each(first):
    loaded = LoadedModels([first], CPU, "fp32")
    crops = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    expected = LoadedModels([replace(first, runtime="torch")], CPU, "fp32").logits(0, crops)
    np.testing.assert_allclose(loaded.logits(0, crops), expected, atol=SAME)
    assert load_network(first, CPU, threads=1).session.get_session_options().intra_op_num_threads == 1


def test_a_clip_gets_the_answer_and_the_doubts_of_torch(first, pipeline: Pipeline):
    clip = min((pipeline.dataset / "test_videos").glob("*.mp4"))
    found, expected = (
        DeepfakeDetector.load(first.path, device="cpu", runtime=name).predict(clip) for name in ("onnxruntime", "torch")
    )
    assert found.probability == pytest.approx(expected.probability, abs=SAME)
    assert (found.doubts, found.in_words, found.coverage) == (expected.doubts, expected.in_words, expected.coverage)
    for one, other in zip(found.faces[0].frames, expected.faces[0].frames, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=SAME)
        assert one.distance == pytest.approx(other.distance, abs=SAME) and one.distance_reason == other.distance_reason


def test_a_network_is_exported_once_for_its_weights_and_a_damaged_file_is_named(first, tmp_path, monkeypatch):
    folder = shutil.copytree(first.path, tmp_path / "demo_tiny" / "fold0")
    model = replace(first, path=folder)
    path = exported_network(model)
    assert path.parent == folder / layout.EXPORTED_FOLDER and first.fingerprint() in path.name
    monkeypatch.setattr(runtimes, "write_network", lambda *_: pytest.fail("exported again"))
    assert exported_network(replace(model, tta="flip")) == path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{path}: expected an ONNX file, found a damaged one"):
        load_network(model, CPU)
    monkeypatch.setattr(runtimes, "package_version", lambda: "9.9")
    monkeypatch.setattr(runtimes, "write_network", lambda network, size, path: path.write_bytes(b"anything"))
    with pytest.raises(ValueError, match="found a damaged one"):
        exported_network(model)
    assert [file.name for file in path.parent.iterdir() if file.name != ".lock"] == [path.name], "nothing is left"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"logits": 2e-4}, "whose logits .* found a difference of 2.0e-04", id="logits"),
        pytest.param({"features": 1.0}, "whose features .* found ", id="features"),
        pytest.param({"features": float("nan")}, "whose features .* found nan", id="no features"),
    ],
)
def test_an_export_that_answers_otherwise_is_refused_and_the_other_files_stay(
    wrong, message, first, tmp_path, monkeypatch
):
    model = replace(first, path=shutil.copytree(first.path, tmp_path / "demo_tiny" / "fold0"))
    exact = exported_network(model)
    network = load_network(model, CPU)

    class Wrong(torch.nn.Module):
        def forward(self, images: torch.Tensor):
            output = network(images)
            shift = {"logits": torch.tensor([0.0, 1.0]), "features": torch.ones(1)}
            return output._replace(**{name: getattr(output, name) + by * shift[name] for name, by in wrong.items()})

    monkeypatch.setattr(runtimes, "package_version", lambda: "9.9")
    monkeypatch.setattr(runtimes, "write_network", lambda network, size, path: shutil.copyfile(exact, path))
    monkeypatch.setattr(runtimes, "OnnxNetwork", lambda path, threads: Wrong())
    with pytest.raises(ValueError, match=f"demo_tiny/fold0: expected an export {message}"):
        exported_network(model)
    assert [file.name for file in exact.parent.iterdir() if file.name != ".lock"] == [exact.name]


def test_a_packaged_run_stays_as_it_is_and_has_its_file_in_the_users_cache(first, tmp_path, monkeypatch):
    folder = tmp_path / "demo_lite"
    shutil.copytree(first.path, folder / "fold0", ignore=shutil.ignore_patterns(layout.EXPORTED_FOLDER))
    write_digests(folder / layout.DIGESTS_FILE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtimes, "_export", lambda model, path: path.write_bytes(b"a file"))
    path = exported_network(replace(first, path=folder / "fold0"))
    assert path.parent == tmp_path / "cache" / "multiattn" / first.fingerprint() and path.is_file()
    assert layout.require_unchanged(folder) is None


def test_another_device_or_precision_or_a_missing_package_is_refused_before_any_work(
    first, monkeypatch, tmp_path, capsys
):
    with pytest.raises(ValueError, match="--runtime onnxruntime: expected a CPU to compute on, found cuda:0"):
        with_runtime([first], "onnxruntime", CPU, torch.device("cuda", 0))
    with pytest.raises(ValueError, match="runtime: expected torch or onnxruntime, found 'tensorrt'"):
        DeepfakeDetector.load(first.path, runtime="tensorrt")
    words = {"runs": (first.path,), "videos_dir": tmp_path, "sample_submission": tmp_path, "out": tmp_path}
    assert (
        SubmitInputs(**words, runtime="onnxruntime").precision == "fp32" and SubmitInputs(**words).precision == "auto"
    )
    with pytest.raises(
        ValueError, match="--runtime onnxruntime: expected --precision fp32 or auto beside it, found bf16"
    ):
        SubmitInputs(**words, runtime="onnxruntime", precision="bf16")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["score", "clip.mp4", "--runs", str(first.path), "--runtime", "onnxruntime"])
    said = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert "expected the package onnxruntime, found no onnxruntime. Run: pip install" in said
    assert SubmitInputs(**words).runtime == "torch", "which needs none of it"


@pytest.mark.slow
def test_a_submission_by_onnxruntime_has_the_answers_of_torch_and_its_card_says_so(
    pipeline: Pipeline, submission: Path, tmp_path
):
    inputs = ("--runs", pipeline.experiment, "--videos-dir", pipeline.dataset / "test_videos", "--jobs", 1)
    inputs += ("--sample-submission", pipeline.dataset / "sample_submission.csv")
    run("submit", *inputs, "--out", tmp_path / "onnxruntime", "--runtime", "onnxruntime", "--device", "cpu")
    answers = []
    for name, folder in (("onnxruntime", tmp_path / "onnxruntime"), ("torch", submission)):
        assert f'"runtime": "{name}"' in (folder / "card.json").read_text()
        answers.append(SUBMISSION.read(folder / "submission.csv")["label"])
    np.testing.assert_allclose(*answers, atol=SAME)
    faces = ("--faces", pipeline.faces, "--out", tmp_path / "frames.parquet")
    run("predict", "--runs", pipeline.experiment, *faces, "--runtime", "onnxruntime")
    assert [*(pipeline.experiment / "fold1" / layout.EXPORTED_FOLDER).glob("*.onnx")]
