"""`multiattn evaluate` and `robustness` from the command line to the report, and their refusals."""

import json
import math
import shutil
import threading
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from multiattn.__main__ import main
from multiattn.evaluation import robustness
from multiattn.evaluation import run as kept_predictions
from multiattn.evaluation.card import model_card
from multiattn.evaluation.distortions import VIDEO_DISTORTIONS
from multiattn.evaluation.robustness_table import BESIDE_COLUMNS, COLUMNS, MOST_LOST, read_robustness
from multiattn.inference import predictor
from multiattn.inference.predictor import score_out_of_fold
from multiattn.model.predict import predict_logits
from multiattn.tables import FACES, FAKE, FRAME_PREDICTIONS, VIDEO_PREDICTIONS, VIDEOS
from multiattn.video.extraction.faces_folder import extract_faces
from page_reader import Reader
from pipeline import FACES_OPTIONS, Pipeline, end, run, start, wait_until


@pytest.fixture(scope="module")
def test_faces(pipeline: Pipeline, build_once) -> Path:
    """Faces of the miniature's test clips."""

    def make(folder: Path) -> None:
        run("faces", "--videos", pipeline.videos, "--out", folder, *FACES_OPTIONS, "--splits", "test", "--jobs", 1)

    return build_once("test_faces_for_evaluate", make)


def evaluate(pipeline: Pipeline, faces: Path, out: Path, *more: object) -> int:
    words = ["evaluate", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", faces, "--out", out]
    return main([str(word) for word in [*words, "--device", "cpu", *more]])


def test_a_test_split_gives_tables_and_a_page(pipeline: Pipeline, test_faces: Path, tmp_path, capsys):
    assert evaluate(pipeline, test_faces, tmp_path) == 0
    videos = VIDEOS.read(pipeline.videos).set_index("video_id")
    found = VIDEO_PREDICTIONS.read(tmp_path / "video_predictions.csv")
    assert set(found["video_id"]) == set(videos.index[videos["split"] == "test"])
    table = pd.read_csv(tmp_path / "metrics.csv")
    row = table[(table["by"] == "all videos") & (table["level"] == "video") & (table["metric"] == "log_loss")].iloc[0]
    labels = videos.loc[found["video_id"], "label"]
    expected = metrics.log_loss(labels, found["probability"], labels=[0, 1])
    assert row["figure"] == pytest.approx(expected, abs=1e-12)
    assert row["num_fake"] == (labels == FAKE).sum()
    text = (tmp_path / "evaluation.md").read_text()
    assert f"| all videos | {expected:.4f} |" in text and "No intervals: fewer than 5 groups" in text
    assert text in capsys.readouterr().out
    read = Reader((tmp_path / "report.html").read_text())
    assert read.loaded == []
    assert all(video in read.text for video in found["video_id"])
    # A second time nothing is predicted, and nothing changes.
    before = (tmp_path / "frame_predictions.parquet").stat().st_mtime_ns
    assert evaluate(pipeline, test_faces, tmp_path) == 0
    assert (tmp_path / "frame_predictions.parquet").stat().st_mtime_ns == before
    assert (tmp_path / "evaluation.md").read_text() == text


def test_two_devices_give_the_figures_of_one(pipeline: Pipeline, test_faces: Path, tmp_path, monkeypatch):
    named, networks, together = [], {}, threading.Barrier(2)

    def predict_together(network: torch.nn.Module, batches: list[torch.Tensor], **how: object) -> np.ndarray:
        if networks.setdefault(network, 0) == 0:
            together.wait(timeout=30)  # for the other device, which has a batch of its own then
        networks[network] += len(batches[0])
        return predict_logits(network, batches, **how)

    def stand_in(name: str) -> tuple[torch.device, ...]:
        named.append(name)
        return (torch.device("cpu"),) * len(name.split(","))

    monkeypatch.setattr(kept_predictions, "pick_devices", stand_in)
    monkeypatch.setattr(kept_predictions, "predict_faces", partial(kept_predictions.predict_faces, batch_size=3))
    assert evaluate(pipeline, test_faces, tmp_path / "one") == 0
    monkeypatch.setattr(predictor, "predict_logits", predict_together)
    assert evaluate(pipeline, test_faces, tmp_path / "two", "--device", "cuda:0,cuda:1") == 0
    assert named == ["cpu", "cuda:0,cuda:1"]
    one, two = (FRAME_PREDICTIONS.read(tmp_path / name / "frame_predictions.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    assert len(networks) == 2 * one["model"].nunique() and sum(networks.values()) == len(one)
    for name in ("metrics.csv", "evaluation.md", "video_predictions.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_training_videos_are_refused(pipeline: Pipeline, tmp_path, capsys):
    videos = tmp_path / "videos.csv"
    table = VIDEOS.read(pipeline.videos)
    VIDEOS.write(table.assign(split="test"), videos)
    assert evaluate(pipeline, pipeline.faces, tmp_path / "out", "--videos", videos) == 2
    assert "leak: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_choosing_is_for_validation_splits(pipeline: Pipeline, test_faces: Path, tmp_path, capsys):
    twin = tmp_path / "twin"
    twin.symlink_to(pipeline.experiment)
    both = ("--runs", pipeline.experiment, twin)
    assert evaluate(pipeline, test_faces, tmp_path / "out", *both, "--choose", "auc") == 2
    assert "a test split never selects" in capsys.readouterr().err
    videos = tmp_path / "videos.csv"
    table = VIDEOS.read(pipeline.videos)
    VIDEOS.write(table[table["split"] == "train"].assign(split="val"), videos)
    words = ("--videos", videos, "--split", "val", "--choose", "log_loss")
    assert evaluate(pipeline, pipeline.faces, tmp_path / "out", *both, *words) == 0
    out = capsys.readouterr().out
    assert "chosen by log_loss of videos: demo_tiny" in out  # its twin is as good, and comes later by name
    assert "They serve to choose among runs" in out
    choice = pd.read_csv(tmp_path / "out" / "choice.csv")
    assert choice["run"].tolist() == ["demo_tiny", "twin"]
    # Every video by the model that held it out: what `score_out_of_fold` says.
    overall = score_out_of_fold(pipeline.experiment).overall
    assert choice["log_loss"].tolist() == pytest.approx([overall.log_loss] * 2, abs=1e-4)


@pytest.mark.slow
def test_a_sweep_says_what_each_cell_costs_and_continues_where_it_was(pipeline, test_faces, tmp_path, monkeypatch):
    out, predicted = tmp_path / "robustness", []
    words = ("robustness", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", test_faces)
    original = kept_predictions.predict_faces

    def counting(models, *args, **how):
        predicted.append(how["change"] is not None)
        return original(models, *args, **how)

    monkeypatch.setattr(kept_predictions, "predict_faces", counting)
    wanted = ("--out", out, "--distortions", "flip", "gamma")
    run(*words, *wanted)
    cells = read_robustness(out)
    assert list(cells.columns) == list(COLUMNS)
    whole = cells[cells["part"] == ""]
    names = ["as they are", "gamma", "flip", "gamma", "gamma", "gamma"]
    assert whole["distortion"].tolist() == [*names, "mean of 4 cells of distorted crops"]
    assert whole["kind"].tolist() == ["clean", "identity", *["crops"] * 4, "mean"]
    clean, identity, *distorted, mean = whole.to_dict("records")
    assert all(identity[name] == clean[name] for name in ("log_loss", "auc", "frame_log_loss")), "to the last bit"
    assert identity["log_loss_change_low"] == identity["log_loss_change_high"] == 0 or math.isnan(identity["auc_low"])
    assert mean["log_loss"] == pytest.approx(sum(row["log_loss"] for row in distorted) / 4, abs=1e-12)
    parts = {name.split(" to ")[0].rsplit(" ", 1)[0] for name in cells["part"]} - {""}
    assert parts == {"brightness", "face size"}
    assert cells.loc[cells["part"] != "", "kind"].value_counts().nunique() == 1, "as they are, and the mean, of each"
    assert len(predicted) == 6, "all folds of a cell in one pass over the crops"
    said = (out / "robustness.md").read_text()
    assert said.rstrip().split("\n")[-1].startswith("Mean of 4 cells of distorted crops: log loss ")
    read = Reader((out / "report.html").read_text())
    assert read.loaded == [] and len(read.images) == 1 and "Mean of 4 cells" in read.text
    assert cv2.imread(str(out / "robustness.png")) is not None
    (out / "cells" / "flip_1.parquet").unlink()
    predicted.clear()
    before = (out / "robustness.csv").read_bytes()
    run(*words, *wanted)
    assert len(predicted) == 1 and (out / "robustness.csv").read_bytes() == before
    card = model_card(pipeline.experiment, robustness=out)
    lost = [row for row in distorted if row["auc_change"] < -MOST_LOST]
    assert ("is lost by: " in card) == bool(lost) and "| flip 1 " in card and "Mean of 4 cells" in card
    # Beside one of its folds: of what is kept nothing is predicted again.
    predicted.clear()
    run(*words, *wanted, "--beside", pipeline.experiment / "fold1")
    assert predicted == [] and "| log loss | beside | difference |" in (out / "robustness.md").read_text()
    both = read_robustness(out)
    assert list(both.columns) == [*COLUMNS, *BESIDE_COLUMNS]
    difference = both["log_loss"] - both["beside_log_loss"]
    assert both["log_loss_difference"].to_numpy() == pytest.approx(difference.to_numpy(), abs=1e-12)
    assert both["log_loss"].equals(cells["log_loss"])
    assert model_card(pipeline.experiment, robustness=out) == card, "a card is of the runs alone"
    # Without one of its folds, and with it again; runs without a rule take views of each crop.
    run(*words[:2], pipeline.experiment / "fold1", *words[3:], *wanted)
    run(*words, *wanted)
    assert predicted == []
    run(*words, *wanted[:-1], "--tta", "flip")
    assert len(predicted) == 2 and read_robustness(out)["log_loss"].iloc[0] != clean["log_loss"]
    run(*words, *wanted)
    with pytest.raises(ValueError, match="of other weights"):
        model_card(pipeline.experiment / "fold0", robustness=out)


def test_a_distortion_that_is_not_there_is_named(pipeline, test_faces, tmp_path, capsys):
    words = ["robustness", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", test_faces]
    assert main([*map(str, words), "--out", str(tmp_path / "x"), "--distortions", "fog"]) == 2
    said = capsys.readouterr().err
    assert "fog" in said and "messenger" in said and not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def plain_faces(pipeline: Pipeline, build_once) -> Path:
    """Faces of the miniature's test clips, none cut where its original's are."""
    options = ("--num-frames", 4, "--size", 64, "--splits", "test", "--jobs", 1)
    return build_once(
        "plain_test_faces", lambda folder: run("faces", "--videos", pipeline.videos, "--out", folder, *options)
    )


@pytest.mark.slow
def test_videos_are_distorted_before_their_faces_are_found(pipeline: Pipeline, plain_faces, tmp_path, monkeypatch):
    """The clips as they are first, then through the encoder, and none is left."""
    faces, out, tables = plain_faces, tmp_path / "out", ("--videos", pipeline.videos)
    encoding, _, unit = VIDEO_DISTORTIONS["video h264"]
    monkeypatch.setitem(VIDEO_DISTORTIONS, "video h264", (encoding, (45,), unit))
    words = ("robustness", "--runs", pipeline.experiment, *tables, "--faces", faces, "--out", out)
    run(*words, "--distortions", "video h264")
    cells = read_robustness(out)
    whole = cells[cells["part"] == ""].to_dict("records")
    assert [row["distortion"] for row in whole[:3]] == ["as they are", "video as it is", "video h264"]
    clean, identity, coded, _ = whole
    assert all(identity[name] == clean[name] for name in ("log_loss", "auc", "frame_log_loss", "frame_auc"))
    assert coded["log_loss"] != clean["log_loss"]
    of_cell = out / "faces" / "video_h264_45"
    boxes = [FACES.read(folder / "faces.parquet") for folder in (faces, of_cell)]
    assert boxes[0]["frame_index"].tolist() == boxes[1]["frame_index"].tolist()
    assert not boxes[0]["x1"].equals(boxes[1]["x1"]), "found anew, in what the encoder left"
    assert not list(of_cell.rglob("*.mp4"))
    before = {path: path.stat().st_mtime_ns for path in of_cell.rglob("*.jpg")}
    run(*words, "--distortions", "video h264")
    assert {path: path.stat().st_mtime_ns for path in of_cell.rglob("*.jpg")} == before
    assert read_robustness(out).equals(cells)


def sweep(*words: object) -> None:
    """Evaluate the videos as they are and at one size, by one worker."""
    encoding, _, unit = VIDEO_DISTORTIONS["video size"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VIDEO_DISTORTIONS, "video size", (encoding, (320,), unit))
        patch.setattr(robustness, "extract_faces", lambda *given, jobs: extract_faces(*given, jobs=1))
        run(*words, "--distortions", "video size")


@pytest.mark.slow
def test_a_sweep_killed_amid_a_video_cell_goes_on_with_the_clips_that_are_left(pipeline, plain_faces, tmp_path):
    words = ("robustness", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", plain_faces)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(sweep, *words, "--out", killed, log=tmp_path / "log")
    wait_until(lambda: any((killed / "faces" / "video_size_320").rglob("*.jpg")), process)
    end(process)
    kept = {path: path.stat().st_mtime_ns for path in (killed / "faces" / "video_as_it_is").rglob("*.jpg")}
    assert kept and not (killed / "robustness.csv").exists()
    for out in (killed, whole):
        sweep(*words, "--out", out)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert (killed / "robustness.csv").read_bytes() == (whole / "robustness.csv").read_bytes()
    assert not list(killed.rglob("*.mp4"))


def test_crops_of_another_program_have_no_videos_to_distort(pipeline, plain_faces, tmp_path, capsys):
    foreign = tmp_path / "faces"
    shutil.copytree(plain_faces, foreign)
    recipe = json.loads((foreign / "faces.json").read_text())
    (foreign / "faces.json").write_text(json.dumps({**recipe, "root": str(foreign)}))
    words = ("robustness", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", foreign)
    assert main([*map(str, words), "--out", str(tmp_path / "out"), "--on-videos"]) == 2
    assert "found crops that another program cut" in capsys.readouterr().err and not (tmp_path / "out").exists()
