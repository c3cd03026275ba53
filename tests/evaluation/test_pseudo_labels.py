"""Pseudo-labels: only what each fold's own model is sure of, of videos that nothing is validated or tested on."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.datasets.folds import check_folds, count_pseudo_labels, read_folds
from multiattn.evaluation.pseudo_labels import choose_labels, find_candidates
from multiattn.evaluation.selection import require_unseen
from multiattn.inference.runs import find_models, trained_on
from multiattn.tables import FACES, FOLDS, FRAME_PREDICTIONS, UNKNOWN, VIDEO_STATUS, VIDEOS
from pipeline import Pipeline, run


def videos_table(*rows: dict) -> pd.DataFrame:
    """Rows of a `videos` table: unlabelled videos of the data set `new`, but for what is given."""
    blank = dict.fromkeys(VIDEOS.columns, "") | {"dataset": "new", "label": UNKNOWN}
    full = [blank | {"path": f"{row['video_id']}.mp4", **row} for row in rows]
    return VIDEOS.validate(pd.DataFrame(full), "made here")


def folds_table(*rows: tuple) -> pd.DataFrame:
    columns = ["video_id", "label", "group", "fold", "label_source"]
    return FOLDS.validate(pd.DataFrame([(*row, "")[:5] for row in rows], columns=columns), "made here")


@pytest.mark.parametrize(
    ("answers", "balance", "expected"),
    [
        pytest.param([], True, {}, id="empty"),
        pytest.param([[0.95, 0.99], [0.05, 0.01]], True, {"v0": 1, "v1": 0}, id="sure to the last"),
        pytest.param([[0.99, 0.94], [0.05, 0.0501]], False, {}, id="one fold is not sure"),
        pytest.param([[0.99, 0.01], [0.98, np.nan], [np.nan, np.nan]], False, {}, id="of two minds, or no face"),
        pytest.param([[0.97], [0.99], [0.98], [0.02]], True, {"v1": 1, "v3": 0}, id="the surest of either"),
        pytest.param([[0.97], [0.99]], True, {}, id="one label only"),
        pytest.param([[0.97], [0.99]], False, {"v0": 1, "v1": 1}, id="one label only, as asked"),
    ],
)
def test_a_label_is_what_the_models_of_each_fold_are_sure_of(answers, balance, expected):
    values = np.array(answers, dtype=float).reshape(len(answers), -1 if answers else 2)
    names = [f"v{number}" for number in range(len(values))]
    rows = choose_labels(pd.DataFrame({"video_id": names, "group": names}), values, 0.95, balance=balance)
    assert dict(zip(rows["video_id"], rows["label"], strict=True)) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({}, "", id="a new video"),
        pytest.param({"split": "val"}, "", id="of a validation split"),
        pytest.param({"original": "d/train"}, "", id="made from one that is trained on only"),
        pytest.param({"split": "test"}, "1 video of a test split", id="of a test split"),
        pytest.param({"original": "d/held"}, "in a group with", id="made from a validated video"),
        pytest.param({"original": "d/test"}, "in a group with", id="made from a test video"),
        pytest.param({"dataset": "d", "target_id": "p"}, "in a group with", id="of a person who is validated on"),
        pytest.param({"video_id": "new/abcdefghij"}, "of the name of a video", id="a copy of a fold's video"),
        pytest.param({"label": 1}, "", id="labelled"),
    ],
)
def test_what_could_leak_is_no_candidate(row, reason):
    known = [
        {"video_id": "d/held", "dataset": "d", "label": 1, "target_id": "p"},
        {"video_id": "d/train", "dataset": "d", "label": 0},
        {"video_id": "dfdc/abcdefghij", "dataset": "dfdc", "label": 0},
        {"video_id": "d/test", "dataset": "d", "label": 1, "split": "test"},
    ]
    folds = folds_table(("d/held", 1, "d/held", 0), ("d/train", 0, "d/train", -1), ("dfdc/abcdefghij", 0, "a", 1))
    found, left_out = find_candidates(videos_table(*known, {"video_id": "new/a", **row}), folds, "original")
    is_open = not reason and "label" not in row
    assert found["video_id"].tolist() == (["new/a"] if is_open else [])
    assert reason in left_out and bool(left_out) == bool(reason)


def test_pseudo_labels_are_never_validated_on_and_stay_with_the_folds_whose_models_gave_them():
    rows = [("a/0", 0, "a/0", 0), ("a/1", 1, "a/1", 0), ("a/2", 0, "a/2", 1), ("a/3", 1, "a/3", 1)]
    folds = folds_table(*rows, ("new/a", 1, "new/a", -1, "pseudo 0"))
    check_folds(folds, source="here")
    assert [count_pseudo_labels(folds_table(*rows), fold, "here") for fold in (0, 1)] == [0, 0]
    assert count_pseudo_labels(folds, 0, "here") == 1
    with pytest.raises(ValueError, match=r"1 pseudo-label for fold 1 by models that have seen its labels; .*new/a"):
        count_pseudo_labels(folds, 1, "here")
    with pytest.raises(ValueError, match=r"leak: 1 pseudo-labelled video is validated on; the first: new/a"):
        check_folds(folds.assign(fold=folds["fold"].clip(lower=0)), source="here")
    videos = videos_table({"video_id": "new/a"}, {"video_id": "a/0", "dataset": "a", "label": 0})
    check_folds(folds, source="here", videos=videos)
    with pytest.raises(ValueError, match=r"1 label differs from the videos table; new/a"):
        check_folds(folds, source="here", videos=videos.assign(label=0))  # known by now, and another
    with pytest.raises(ValueError, match=r"1 label differs"):
        check_folds(folds.assign(label_source=""), source="here", videos=videos)
    with pytest.raises(ValueError, match="pseudo 0 1 2"):
        folds_table(*rows, ("new/a", 1, "new/a", -1, "guessed"))


@pytest.fixture
def faces(pipeline: Pipeline, tmp_path: Path) -> Path:
    """The miniature's faces, with copies of four videos that have no label; one of them is of a test split."""
    folder = shutil.copytree(pipeline.faces, tmp_path / "faces")
    ids = VIDEOS.read(folder / "videos.csv")["video_id"].head(4)
    names = {video: f"new/{number}" for number, video in enumerate(ids)}
    for table, file in ((VIDEOS, "videos.csv"), (VIDEO_STATUS, "video_status.csv"), (FACES, "faces.parquet")):
        rows = table.read(folder / file)
        more = rows[rows["video_id"].isin(names)].assign(video_id=lambda of: of["video_id"].map(names))
        if table is VIDEOS:
            blank = dict.fromkeys(("method", "part", "original", "target_id", "source_id"), "")
            more = more.assign(**blank, dataset="new", label=UNKNOWN, path=more["video_id"] + ".mp4")
            more["split"] = np.where(more["video_id"] == "new/3", "test", "")
        table.write(pd.concat([rows, more]).sort_values(list(table.key)), folder / file)
    return folder


def test_labels_of_a_run_are_trained_on_shown_and_never_tested_on(pipeline, faces, tmp_path, capsys):
    out, runs = tmp_path / "pseudo.csv", tmp_path / "runs"
    teacher = shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny")
    shutil.copy(teacher / "fold0" / "best.safetensors", teacher / "fold1")  # so that the folds are of one opinion
    words = ["--runs", teacher, "--faces", faces, "--folds", pipeline.folds, "--out", out]
    run("predict", "--runs", teacher, "--faces", faces, "--out", tmp_path / "all.parquet")
    frames = FRAME_PREDICTIONS.read(tmp_path / "all.parquet")
    means = frames.groupby(["video_id", "fold"])["probability"].mean().unstack()
    means = means[means.index.str.startswith("new/")].drop(index="new/3", errors="ignore")
    sure = np.maximum(means.min(axis=1), 1 - means.max(axis=1))
    assert main(["pseudo-label", *map(str, words), "--confidence", "0.995"]) == 2
    assert "at most 0.99, where the scoring rule clips" in capsys.readouterr().err
    run("pseudo-label", *words, "--confidence", sure.max() - 1e-6, "--no-balance")
    assert "left out: 1 video of a test split" in capsys.readouterr().out
    table = read_folds(out, videos=VIDEOS.read(faces / "videos.csv"))
    rows = table[table["label_source"] != ""]
    assert rows["video_id"].tolist() == [sure.idxmax()] and set(rows["label_source"]) == {"pseudo 0 1"}
    assert rows["label"].tolist() == [int(means.loc[sure.idxmax()].min() > 0.5)] and rows["fold"].tolist() == [-1]
    pd.testing.assert_frame_equal(table[table["label_source"] == ""].reset_index(drop=True), FOLDS.read(pipeline.folds))

    run(*pipeline.training(runs, "--faces", faces, folds=out))
    assert "1 of " in (said := capsys.readouterr().err) and "training videos have pseudo-labels" in said
    folder = runs / "demo_tiny" / "fold0"
    assert sure.idxmax() not in set(FRAME_PREDICTIONS.read(folder / "oof.parquet")["video_id"])
    assert Path(sure.idxmax()).name in trained_on(runs / "demo_tiny"), "a submission's card counts it as seen"
    videos = VIDEOS.read(faces / "videos.csv")
    with pytest.raises(ValueError, match=r"leak: 1 of 1 video to be tested on .*; the first: new/"):
        require_unseen(find_models(runs / "demo_tiny"), videos[videos["video_id"] == sure.idxmax()], videos)
    assert main(["pseudo-label", *map(str, words[:-3]), str(out), "--out", str(tmp_path / "b.csv")]) == 2
    assert "expected the folds that demo_tiny/fold0 was trained with" in capsys.readouterr().err
