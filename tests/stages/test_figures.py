"""The figures of a trained run, drawn as a user would."""

import json
import shutil
from pathlib import Path

import cv2
import pytest

from multiattn.stages.figures import main
from multiattn.tables import FOLDS
from pipeline import Pipeline


def figures(*words: object) -> None:
    main([str(word) for word in words])


def test_attention_draws_a_row_of_each_type_and_tells_the_statistics(pipeline: Pipeline, tmp_path, capsys):
    words = ["attention", "--run", pipeline.experiment, "--faces", pipeline.faces, "--crops", 5]
    figures(*words, "--out", tmp_path / "a")
    out = capsys.readouterr().out
    assert "demo_tiny/fold0: mean cosine" in out and "attention.html" in out
    page = (tmp_path / "a/attention.html").read_text()
    assert page.count("<img ") == 2 * (1 + 4)
    assert "<b>real</b>" in page and "<b>fake</b>" in page and "Statistics over 5 crops" in page
    assert cv2.imread(str(tmp_path / "a/attention.png")).shape[1] > 1000
    figures(*words, "--out", tmp_path / "b")
    for name in ("attention.png", "attention.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), "the same every time"


def test_compare_shows_named_videos_through_several_runs(pipeline: Pipeline, tmp_path):
    videos = FOLDS.read(pipeline.folds)["video_id"].head(2).tolist()
    runs = ["--runs", pipeline.experiment / "fold0", pipeline.experiment / "fold1", "--faces", pipeline.faces]
    figures("compare", *runs, "--labels", "first", "RIL + AGDA", "--videos", *videos, "--out", tmp_path)
    page = (tmp_path / "compare.html").read_text()
    assert page.count("<img ") == 2 * (1 + 4 + 4)
    assert all(word in page for word in ("first", "RIL + AGDA", *videos))
    assert cv2.imread(str(tmp_path / "compare.png")).shape[1] > 2000
    with pytest.raises(ValueError, match="one for each of 2 runs, found 1"):
        figures("compare", *runs, "--labels", "first", "--out", tmp_path)


def test_curves_take_every_fold_that_has_an_epoch_of_every_run(pipeline: Pipeline, tmp_path):
    def curves(*runs: Path) -> bytes:
        figures("curves", "--runs", *runs, "--out", tmp_path)
        return (tmp_path / "curves.png").read_bytes()

    runs = tmp_path / "runs"
    shutil.copytree(pipeline.experiment, runs)
    drawn = [curves(runs), curves(runs, pipeline.experiment)]
    (runs / "fold1/epochs.csv").unlink()
    assert len({*drawn, curves(runs)}) == 3
    (runs / "fold0/epochs.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"fold0/epochs\.csv: no finished epoch"):
        curves(runs)


def test_augment_draws_a_sheet_of_each_preset_and_of_self_blending(pipeline: Pipeline, tmp_path, capsys):
    words = ["augment", "--faces", pipeline.faces, "--presets", "paper", "selim", "sbi", "--crops", 1, "--draws", 2]
    figures(*words, "--out", tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["paper.png", "sbi.png", "selim.png"]
    assert "sbi.png" in capsys.readouterr().out
    figures(*words, "--out", tmp_path / "b")
    figures(*words, "--out", tmp_path / "c", "--seed", 1)
    for name in ("paper.png", "selim.png", "sbi.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), "the same every time"
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes() or name == "paper.png"
    with pytest.raises(ValueError, match="--draws: expected at least 1, found 0"):
        figures(*words[:3], "--draws", 0, "--out", tmp_path / "d")


def test_a_baseline_is_refused_before_anything_is_written(pipeline: Pipeline, tmp_path):
    shutil.copytree(pipeline.experiment / "fold0", tmp_path / "twin/fold0")
    path = tmp_path / "twin/fold0/experiment.json"
    settings = json.loads(path.read_text())
    settings["model"]["network"] = "baseline"
    path.write_text(json.dumps(settings))
    for words in (["attention", "--run"], ["compare", "--runs", pipeline.experiment]):
        with pytest.raises(ValueError, match=r"twin/fold0: expected a run with attention maps, found a baseline"):
            figures(*words, tmp_path / "twin", "--faces", pipeline.faces, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--crops", "--per-type"])
def test_less_than_one_is_refused(option, pipeline: Pipeline, tmp_path):
    words = ["attention", "--run", pipeline.experiment, "--faces", pipeline.faces, "--out", tmp_path]
    with pytest.raises(ValueError, match=f"{option}: expected at least 1, found 0"):
        figures(*words, option, 0)


def test_a_strength_above_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--strength: expected 0 to 1, found 1\.5"):
        figures("augment", "--faces", tmp_path, "--out", tmp_path, "--strength", 1.5)
