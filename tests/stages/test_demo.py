"""`multiattn demo` itself, as a miniature: every stage as a user would call it, and a table at the end."""

import re
import shutil

import pytest

from multiattn.stages import demo
from multiattn.tables import SUBMISSION
from pipeline import run


@pytest.mark.parametrize("continued", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["continued", "anew"])
def test_the_demo_goes_from_clips_to_a_table_that_a_person_understands(
    continued, pipeline, tmp_path, capsys, monkeypatch
):
    """Its clips are there already, which take long to make; continued: its faces and runs too, as after a kill."""
    monkeypatch.setattr(demo, "NUM_FRAMES", 4)
    paths = {name: tmp_path / name for name in ("data", "runs", "submissions")}
    shutil.copytree(pipeline.dataset, paths["data"] / "dfdc")
    if continued:
        shutil.copytree(pipeline.faces, paths["data"] / "faces")
        shutil.copytree(pipeline.runs, paths["runs"])
    words = [word for name, path in paths.items() for word in (f"--{name}", path)]
    run("demo", "--tiny", *words, "--folds", tmp_path / "folds.csv", "--jobs", 1)
    shown = capsys.readouterr().out
    for stage in ("index dfdc", "faces", "folds", "train demo --tiny", "tune", "leaderboard"):
        assert f"\n$ multiattn {stage} --" in shown
    interval = "fewer than 5 groups" + 2 * r" +\d\.\d{4}"  # of 2 parts and 2 originals
    for name, videos in (
        ("out of fold: all folds, mean", 12),
        ("out of fold: all folds, tuned (nested)", 12),
        ("test, unseen actors: one fold", 4),
        ("test, unseen actors: all folds, mean", 4),
        ("test, unseen actors: all folds, tuned", 4),
    ):
        assert re.search(rf"{re.escape(name)} +\d\.\d{{4}}  {interval} +{videos}\n", shown), name
    assert re.search(r"constant 0\.5 +0\.6931 +0\.6931 +0\.5000\n", shown)
    assert "bootstrap" not in shown.partition("Done in")[2], "there are no intervals it could draw"
    groups = paths["data"] / "dfdc" / "groups.csv"
    assert f"--groups {groups}\n" in shown
    assert "without a face: 1; unreadable: 1." in shown
    assert "Next, with real data" in shown
    made = paths["submissions"] / "demo_tiny"
    sample = SUBMISSION.read(paths["data"] / "dfdc" / "sample_submission.csv")
    assert SUBMISSION.read(made / "submission.csv")["filename"].tolist() == sample["filename"].tolist()
    assert (made / "inference.ipynb").is_file() and (paths["submissions"] / "leaderboard.png").is_file()
