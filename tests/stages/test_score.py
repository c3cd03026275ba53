"""`multiattn score` from the command line: the table, the page, the exit code, nothing left behind."""

import shutil
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.tables import FOLDS
from page_reader import Reader
from pipeline import Pipeline


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Where the stage makes its temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def score(pipeline: Pipeline, *words: object) -> int:
    return main(["score", *map(str, words), "--runs", str(pipeline.experiment), "--device", "cpu"])


def test_a_clip_gives_a_row_and_a_page_with_what_the_run_is(pipeline: Pipeline, tmp_path, temporary, capsys):
    clip = min((pipeline.dataset / "test_videos").glob("*.mp4"))
    report = tmp_path / "pages" / "report.html"
    assert (
        main(["score", "--device", "cpu", "--report", str(report), "--runs", str(pipeline.experiment), str(clip)]) == 0
    )
    head, row, face, _, note, *said, written = capsys.readouterr().out.splitlines()
    tables = [pd.read_csv(path) for path in pipeline.experiment.glob("*/epochs.csv")]
    best = pd.DataFrame([table.loc[table["validation_log_loss"].idxmin()] for table in tables]).mean(numeric_only=True)
    assert note == (
        "demo_tiny: trained on 12 videos of dfdc to try the program out: it knows nothing about real faces; "
        f"out-of-fold log loss {best.validation_log_loss:.4f} (balanced {best.validation_balanced_log_loss:.4f}), "
        "constant 0.5: 0.6931."
    )
    assert head.split() == ["file", "P(fake)", "faces", "frames", "crops", "seconds", "status", "reason"]
    name, probability, *_ = row.split()
    assert name == str(clip) and face.split()[:3] == ["face", "0", probability]
    assert 0 <= float(probability) <= 1
    assert written == f"written: {report}" and said[-1] == "Sound was not examined."
    assert (
        said[-2].startswith(f"{clip}: cannot tell: ")
        and "multiattn tune" in said[-2]
        and said[-2] in Reader(report.read_text()).text
    )
    read = Reader(report.read_text())
    assert read.loaded == [] and note in read.text
    assert f"P(fake) {probability}" in read.text
    assert list(temporary.iterdir()) == []


def test_one_readable_file_is_enough_and_none_is_an_error(pipeline: Pipeline, tmp_path, temporary, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing a decoder knows")
    clip = min((pipeline.dataset / "test_videos").glob("*.mp4"))
    assert score(pipeline, broken, clip) == 0
    assert "unreadable" in capsys.readouterr().out
    assert score(pipeline, broken) == 2
    said = capsys.readouterr()
    assert "unreadable" in said.out
    assert "none of 1 file could be read" in said.err
    assert score(pipeline, tmp_path / "absent.mp4") == 2
    assert "absent.mp4: no such file or folder" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []


def test_a_clip_of_the_training_is_named(pipeline: Pipeline, tmp_path, capsys):
    folds = FOLDS.read(pipeline.folds)
    seen, held_out = (folds.loc[folds["fold"] == fold, "video_id"].iloc[0] for fold in (1, 0))
    clip = min((pipeline.dataset / "test_videos").glob("*.mp4"))
    files = [shutil.copy(clip, tmp_path / f"{Path(video).name}.mov") for video in (seen, held_out)]
    assert main(["score", *map(str, files), "--device", "cpu", "--runs", str(pipeline.experiment / "fold0")]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = f"demo_tiny has seen in its training, by the name: {Path(seen).name}.mov ({seen}). Its score"
    assert any(line.startswith(said) for line in lines)
    assert score(pipeline, *files) == 0
    assert f"{Path(held_out).name}.mov ({held_out})" in capsys.readouterr().out, "by the other fold"
