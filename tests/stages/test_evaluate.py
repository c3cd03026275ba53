"""`multiattn evaluate` and `robustness` from the command line to the report, and their refusals."""

from pathlib import Path

import pandas as pd
import pytest
from sklearn import metrics

from multiattn.__main__ import main
from multiattn.evaluation import run as kept_predictions
from multiattn.evaluation.card import model_card
from multiattn.evaluation.robustness import COLUMNS, MOST_LOST
from multiattn.inference.predictor import score_out_of_fold
from multiattn.tables import FAKE, VIDEO_PREDICTIONS, VIDEOS
from page_reader import Reader
from pipeline import FACES_OPTIONS, Pipeline, run


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


def test_a_sweep_says_what_each_cell_costs_and_continues_where_it_was(pipeline, test_faces, tmp_path, monkeypatch):
    out, predicted = tmp_path / "robustness", []
    words = ("robustness", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", test_faces)
    original = kept_predictions.predict_faces

    def counting(models, *args, **how):
        predicted.append(how["change"] is not None)
        return original(models, *args, **how)

    monkeypatch.setattr(kept_predictions, "predict_faces", counting)
    run(*words, "--out", out, "--distortions", "flip", "messenger")
    cells = pd.read_csv(out / "robustness.csv", keep_default_na=False, na_values={"auc_change": ""})
    assert list(cells.columns) == list(COLUMNS)
    plain = cells["auc_change"].isna()
    assert cells.loc[~plain, "distortion"].tolist() == ["flip", "messenger", "messenger"]
    parts = {name.split(" to ")[0].rsplit(" ", 1)[0] for name in cells.loc[plain, "distortion"][1:]}
    assert cells["distortion"][0] == "as they are" and parts == {"brightness", "face size"}
    models = len(list(pipeline.experiment.glob("fold*")))
    assert predicted.count(True) == 3 * models and predicted.count(False) == models
    (out / "cells" / "flip_1.parquet").unlink()
    predicted.clear()
    before = (out / "robustness.csv").read_bytes()
    run(*words, "--out", out, "--distortions", "flip", "messenger")
    assert predicted == [True] * models and (out / "robustness.csv").read_bytes() == before
    card = model_card(pipeline.experiment, robustness=out)
    lost = cells[cells["auc_change"] < -MOST_LOST]
    assert ("is lost by: " in card) == bool(len(lost)) and "| flip 1 " in card
    with pytest.raises(ValueError, match="of other weights"):
        model_card(pipeline.experiment / "fold0", robustness=out)


def test_a_distortion_that_is_not_there_is_named(pipeline, test_faces, tmp_path, capsys):
    words = ["robustness", "--runs", pipeline.experiment, "--videos", pipeline.videos, "--faces", test_faces]
    assert main([*map(str, words), "--out", str(tmp_path / "x"), "--distortions", "fog"]) == 2
    said = capsys.readouterr().err
    assert "fog" in said and "messenger" in said and not (tmp_path / "x").exists()
