"""`--dry-run` of train, faces and submit: counts and estimates, and not a file written, moved or touched."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.tables import FOLDS
from pipeline import FACES_OPTIONS, run


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    ("stage", "is_there", "words"),
    [
        pytest.param("train", True, ("finished",), id="train, finished"),
        pytest.param("train", False, ("new", "batches computed here", "GB at least for a step"), id="train, new"),
        pytest.param("faces", True, (" done; ",), id="faces, finished"),
        pytest.param("faces", False, (", 0 done; ", "one video extracted here", "disk: "), id="faces, new"),
        pytest.param("submit", True, (" of them answered before",), id="submit, begun"),
        pytest.param("submit", False, (", 0 of them answered", "predicted here", "memory: "), id="submit, new"),
    ],
)
def test_nothing_is_written_and_the_work_is_told(stage, is_there, words, pipeline, submission, tmp_path, capsys):
    new = tmp_path / "new"
    commands = {
        "train": pipeline.training(pipeline.runs if is_there else new),
        "faces": ["faces", "--videos", pipeline.videos, "--out", pipeline.faces if is_there else new, *FACES_OPTIONS],
        "submit": ["submit", "--runs", pipeline.experiment, "--videos-dir", pipeline.dataset / "test_videos"],
    }
    commands["faces"] += ["--jobs", 1]
    commands["submit"] += ["--out", submission if is_there else new, "--jobs", 1]
    roots = {path.parent for path in (pipeline.runs, pipeline.faces, submission)} | {tmp_path}
    before = {root: tree(root) for root in roots}
    capsys.readouterr()
    run(*commands[stage], "--dry-run")
    said = capsys.readouterr().out
    assert all(word in said for word in (*words, "Nothing was written.")), said
    assert {root: tree(root) for root in roots} == before and not new.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"seed": "77"}, "seed: ", id="another setting"),
        pytest.param({"precision": "bf16"}, "precision: ", id="another precision"),
        pytest.param({}, "folds: not the folds", id="other folds"),
    ],
)
def test_a_fold_that_train_would_refuse_is_refused(change, message, pipeline, tmp_path, capsys):
    words = list(map(str, pipeline.training(pipeline.runs)))
    if not change:
        place = words.index("--folds") + 1
        lines = Path(words[place]).read_text().splitlines()
        (tmp_path / "folds.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
        words[place] = str(tmp_path / "folds.csv")
    words += [word for name, value in change.items() for word in (f"--{name}", value)]
    before = tree(pipeline.runs)
    for dry in (["--dry-run"], []):
        assert main([*words, *dry]) == 2
        assert f"holds a run with other settings: {message}" in capsys.readouterr().err
    assert tree(pipeline.runs) == before


def test_a_fold_of_one_process_is_refused_where_torchrun_has_two(pipeline, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*map(str, pipeline.training(pipeline.runs)), "--dry-run"]) == 2
    assert "holds a run with other settings: global_batch: " in capsys.readouterr().err


def test_pseudo_labels_by_models_that_saw_the_held_out_ones_are_refused(pipeline, tmp_path, capsys):
    words = list(map(str, pipeline.training(tmp_path / "new")))
    place = words.index("--folds") + 1
    folds = FOLDS.read(Path(words[place]))
    label = {"video_id": "other/video", "label": 1, "group": "other/video", "fold": -1, "label_source": "pseudo 1"}
    folds = pd.concat([folds, pd.DataFrame([label])], ignore_index=True)
    FOLDS.write(folds, tmp_path / "folds.csv")
    words[place] = str(tmp_path / "folds.csv")
    assert main([*words, "--dry-run"]) == 2
    assert "for fold 0 by models that have seen its labels" in capsys.readouterr().err


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra onnx")
def test_a_submissions_networks_are_not_exported_for_it(pipeline, tmp_path, capsys):
    runs = tmp_path / pipeline.experiment.name
    shutil.copytree(pipeline.experiment, runs, ignore=shutil.ignore_patterns("exported"))
    before, words = tree(tmp_path), ["--device", "cpu", "--jobs", 1, "--runtime", "onnxruntime", "--dry-run"]
    capsys.readouterr()
    run("submit", "--runs", runs, "--videos-dir", pipeline.dataset / "test_videos", "--out", tmp_path / "new", *words)
    said = capsys.readouterr().out
    assert "by torch here" in said and "predicted here" in said, said
    assert tree(tmp_path) == before
