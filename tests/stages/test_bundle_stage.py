"""`multiattn bundle` as a user runs it: what it prints, what it refuses."""

import json

import pytest

from multiattn.__main__ import main
from walk import run


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
