"""`multiattn export`: files that are checked before they are delivered, and nothing where one is refused."""

import json
import re
import shutil

import numpy as np
import pytest

from multiattn.__main__ import main
from multiattn.inference import export
from multiattn.inference.export import HeldOutCrops, export_run
from multiattn.inference.kit.half_weights import drawn_crops
from multiattn.inference.runs import find_models, load_run
from multiattn.model.exported import OPSET, open_session, run_classifier, write_classifier
from multiattn.runtime.files import file_digest
from multiattn.video.extraction.faces_folder import read_faces_folder
from pipeline import Pipeline


@pytest.mark.slow
def test_a_fold_is_one_file_with_the_answers_of_its_run_and_notes_of_what_it_is(
    pipeline: Pipeline, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--run", str(pipeline.experiment / "fold1"), "--faces", str(pipeline.faces)]) == 0
    path = tmp_path / "demo_tiny_fold1.onnx"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    out = capsys.readouterr().out
    assert "crops (B, 64, 64, 3) uint8 RGB -> probability (B,), logits (B, 1)" in out
    assert "P(fake) differs by at most" in out and "logits by at most" in out
    crops = drawn_crops(9, 64)
    found, logits = run_classifier(path, crops, batch_size=7, threads=1)
    expected = load_run(pipeline.experiment / "fold1").predict(crops)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0])), expected, atol=1e-4)
    notes = open_session(path, 1).get_modelmeta().custom_metadata_map
    assert notes["experiment"] == "demo_tiny" and json.loads(notes["models"]) == ["demo_tiny/fold1"]
    assert json.loads(notes["weights_sha256"]) == [file_digest(pipeline.experiment / "fold1" / "best.safetensors")]
    assert json.loads(notes["labels"]) == {"real": 0, "fake": 1} and notes["image_size"] == "64"
    assert notes["opset"] == str(OPSET) and json.loads(notes["crop_recipe"])["size"] == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("--precision int8", "faces: expected a folder beside --precision int8", id="int8 without crops"),
        pytest.param("--precision int8 --faces f --format torch-export", "expected float32 beside", id="int8 in torch"),
        pytest.param("--out net.pt2", r"expected a name that ends in \.onnx", id="another ending"),
        pytest.param("", r"expected one fold, or --ensemble .* found fold0, fold1", id="two folds"),
    ],
)
def test_what_cannot_be_one_file_is_refused(words, message, pipeline: Pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["export", "--run", str(pipeline.experiment), *words.split()])
    except SystemExit as ended:
        code = ended.code
    said = " ".join("".join(capsys.readouterr()).replace("│", " ").split())
    assert code == 2 and re.search(message, said), said
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_answers_otherwise_is_not_delivered(pipeline: Pipeline, tmp_path, monkeypatch):
    def wrong(classifier, size, path, notes):
        path.touch()

    monkeypatch.setattr(export, "write_classifier", wrong)
    monkeypatch.setattr(
        export, "run_classifier", lambda path, crops, **_: (np.full(len(crops), 0.5), np.full((len(crops), 1), 9))
    )
    with pytest.raises(
        ValueError, match=r"net.onnx: expected an export whose logits and P\(fake\) are torch's to 0.0001"
    ):
        export_run(pipeline.experiment / "fold0", tmp_path / "net.onnx", form="onnx")
    assert list(tmp_path.iterdir()) == []


def test_crops_to_calibrate_and_to_judge_by_are_of_other_videos_that_were_held_out(pipeline: Pipeline, monkeypatch):
    model = find_models(pipeline.experiment / "fold0")[0]
    monkeypatch.setattr(export, "LEAST_CROPS", 1)
    read: list[str] = []
    monkeypatch.setattr(
        export, "read_crop", lambda path, size: read.append(str(path)) or np.zeros((size, size, 3), np.uint8)
    )
    held_out = HeldOutCrops.of(model, pipeline.faces)
    faces = read_faces_folder(pipeline.faces)[0]
    video_of = {str(pipeline.faces / crop): video for crop, video in zip(faces["crop"], faces["video_id"], strict=True)}
    count = len(held_out.calibration)
    calibration, judged = ({video_of[path] for path in part} for part in (read[:count], read[count:]))
    assert calibration and judged and not calibration & judged
    assert calibration | judged <= model.held_out_videos()
    labels = model.folds().set_index("video_id")["label"]
    assert held_out.labels.tolist() == [labels[video_of[path]] for path in read[count:]]
    monkeypatch.setattr(export, "LEAST_CROPS", 10**6)
    with pytest.raises(ValueError, match="expected at least 1000000 crops of each half of the videos that demo_t"):
        HeldOutCrops.of(model, pipeline.faces)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_all_folds_in_one_file_answer_as_their_mean(form, pipeline: Pipeline, tmp_path):
    path = tmp_path / f"net{'.onnx' if form == 'onnx' else '.pt2'}"
    found = export_run(pipeline.experiment, path, form=form)
    assert found.models == ("demo_tiny/fold0", "demo_tiny/fold1") and max(found.differences) < 1e-4
    crops = drawn_crops(9, 64)
    folds = [load_run(pipeline.experiment / f"fold{number}").predict(crops) for number in (0, 1)]
    probability, logits = run_classifier(path, crops, batch_size=7, threads=1)
    np.testing.assert_allclose(probability, np.mean(folds, axis=0), atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), np.stack(folds, axis=1), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "least"), [("int8", 1e-4), ("float16", 1e-7)])
def test_a_lower_precision_is_judged_on_held_out_crops_and_refused_where_it_costs(
    precision, least, pipeline: Pipeline, tmp_path, monkeypatch
):
    exact_file = tmp_path / "float32"

    def write_and_keep(*given) -> None:
        write_classifier(*given)
        shutil.copy(given[2], exact_file)

    monkeypatch.setattr(export, "LEAST_CROPS", 4)
    monkeypatch.setattr(export, "write_classifier", write_and_keep)
    how = {"form": "onnx", "precision": precision, "faces": pipeline.faces}
    found = export_run(pipeline.experiment / "fold0", tmp_path / "net.onnx", **how)
    exact, lower, count = found.losses
    assert lower == pytest.approx(exact, abs=0.01) and count >= 4
    crops = drawn_crops(9, 64)
    changed = run_classifier(tmp_path / "net.onnx", crops, batch_size=9, threads=1)[0]
    notes = open_session(tmp_path / "net.onnx", 1).get_modelmeta().custom_metadata_map
    assert notes["precision"] == precision
    difference = np.abs(changed - load_run(pipeline.experiment / "fold0").predict(crops)).max()
    assert least < difference < 0.1, "it computes with other numbers, and not with wild ones"
    (tmp_path / "net.onnx").unlink()
    monkeypatch.setattr(export, "LARGEST_LOSS", -1.0)
    monkeypatch.setattr(export, "write_classifier", lambda classifier, size, path, notes: shutil.copy(exact_file, path))
    with pytest.raises(ValueError, match=f"log loss at most -1.0 above float32's .* in {precision}, found"):
        export_run(pipeline.experiment / "fold0", tmp_path / "net.onnx", **how)
    assert list(tmp_path.iterdir()) == [exact_file]
