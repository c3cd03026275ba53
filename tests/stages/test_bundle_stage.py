"""`multiattn bundle` as a user runs it: what it prints, what it refuses."""

import json
import shutil

import pytest

from multiattn.__main__ import main
from multiattn.inference.scoring_file import read_scoring_file
from pipeline import run


def test_the_stage_says_how_weights_are_stored_and_how_large_each_part_is(pipeline, tmp_path, capsys):
    out = tmp_path / "kit"
    run("bundle", "--runs", pipeline.experiment, "--out", out, "--check-faces", pipeline.faces, "--check-crops", 4)
    printed = capsys.readouterr().out
    for fold in (0, 1):
        assert f"demo_tiny/fold{fold}: float16; float16 changes P(fake) by at most " in printed
    assert "on 4 crops" in printed and "no wheels: add --download-wheels" in printed
    for part in ("weights", "tables", "code"):
        assert f"\n{part} " in printed
    assert f"MB of 1 GB in {out}" in printed
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["runs"] == ["demo_tiny"] and manifest["compared_on"] == pipeline.faces.name
    assert [one["stored"] for one in manifest["weights"]] == ["float16", "float16"]
    assert str(tmp_path) not in (out / "bundle.json").read_text(), "no path of the machine it was made on"


def test_the_rule_comes_along_with_its_digests_and_a_stale_one_is_told(pipeline, tmp_path, capsys):
    shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny")
    words = ("bundle", "--runs", tmp_path / "demo_tiny", "--out", tmp_path / "kit", "--precision", "float32")
    run("tune", "--runs", tmp_path / "demo_tiny")
    run(*words)
    assert "not those it was tuned on" not in capsys.readouterr().err
    tuned, kept = (
        read_scoring_file(folder / "demo_tiny" / "scoring.json") for folder in (tmp_path, tmp_path / "kit" / "runs")
    )
    assert kept == tuned and set(kept.tuned_on["demo_tiny"]) == {"fold0", "fold1"}
    shutil.copy(tmp_path / "demo_tiny" / "fold0" / "oof.parquet", tmp_path / "demo_tiny" / "fold1" / "oof.parquet")
    run(*words)
    assert "predictions of demo_tiny are not those it was tuned on (fold1 replaced)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--wheels", ".", "--download-wheels"], "found both", id="two sources of wheels"),
        pytest.param(["--packages", "av"], "found neither", id="packages without a source"),
        pytest.param(["--wheels", "none"], "expected a folder of wheels", id="no folder of wheels"),
        pytest.param(["--check-crops", "0"], "at least 1", id="nothing to compare on"),
        pytest.param(["--max-gb", "0.0001", "--precision", "float32"], "more than --max-gb 0.0001", id="too large"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(pipeline, tmp_path, capsys, words, message):
    assert main(["bundle", "--runs", str(pipeline.experiment), "--out", str(tmp_path / "kit"), *words]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
