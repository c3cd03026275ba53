"""`multiattn score` from the command line: the table, the page, the exit code, nothing left behind."""

import tempfile
from pathlib import Path

import pytest

from multiattn.__main__ import main
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


def test_a_clip_gives_a_row_and_a_page(pipeline: Pipeline, tmp_path, temporary, capsys):
    clip = min((pipeline.dataset / "test_videos").glob("*.mp4"))
    report = tmp_path / "pages" / "report.html"
    assert score(pipeline, clip, "--report", report) == 0
    head, row, written = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "P(fake)", "faces", "frames", "crops", "status", "reason"]
    name, probability, *_ = row.split()
    assert name == str(clip)
    assert 0 <= float(probability) <= 1
    assert written == f"written: {report}"
    read = Reader(report.read_text())
    assert read.loaded == []
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
    assert "none of 1 files could be read" in said.err
    assert score(pipeline, tmp_path / "absent.mp4") == 2
    assert "absent.mp4: no such file or folder" in capsys.readouterr().err
    assert list(temporary.iterdir()) == []
