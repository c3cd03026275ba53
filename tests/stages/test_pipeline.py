"""The stages one after the other on a miniature of the embedded data, and what they do with bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss

from multiattn.__main__ import main
from multiattn.inference.runs import find_models
from multiattn.tables import FACES, FOLDS, FRAME_PREDICTIONS, SUBMISSION, VIDEO_STATUS, VIDEOS
from pipeline import FACES_OPTIONS, run


def fails(capsys: pytest.CaptureFixture, *words: object) -> str:
    """Run a stage that must end with one clear message; returns it."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    message = capsys.readouterr().err
    assert message.count("error: ") == 1 and "Traceback" not in message
    return message


def test_every_stage_hands_over_a_table_that_keeps_its_contract(pipeline, submission):
    videos, faces = VIDEOS.read(pipeline.videos), FACES.read(pipeline.faces / "faces.parquet")
    statuses, folds = VIDEO_STATUS.read(pipeline.faces / "video_status.csv"), FOLDS.read(pipeline.folds)
    training = set(videos.loc[videos["split"] == "train", "video_id"])
    assert set(faces["video_id"]) == set(statuses["video_id"]) == set(folds["video_id"]) == training
    assert statuses["num_crops"].sum() == len(faces)
    assert all((pipeline.faces / crop).is_file() for crop in faces["crop"])
    predictions = FRAME_PREDICTIONS.read(submission / "frame_predictions.parquet")
    assert set(predictions["model"]) == {"demo_tiny/fold0", "demo_tiny/fold1"}
    assert SUBMISSION.read(submission / "submission.csv")["filename"].tolist() == (
        SUBMISSION.read(pipeline.dataset / "sample_submission.csv")["filename"].tolist()
    )


def test_out_of_fold_predictions_cover_each_training_crop_once(pipeline):
    oof = [FRAME_PREDICTIONS.read(folder / "oof.parquet") for folder in sorted(pipeline.experiment.glob("fold*"))]
    together = pd.concat(oof)
    faces = FACES.read(pipeline.faces / "faces.parquet")
    key = ["video_id", "frame_index", "track"]
    assert sorted(together[key].itertuples(index=False)) == sorted(faces[key].itertuples(index=False))
    fold_of = FOLDS.read(pipeline.folds).set_index("video_id")["fold"]
    assert (together["video_id"].map(fold_of) == together["fold"]).all()


def test_the_runs_best_checkpoint_repeats_its_out_of_fold_predictions(pipeline, tmp_path):
    run("predict", "--runs", pipeline.experiment / "fold0", "--faces", pipeline.faces, "--out", tmp_path / "p.parquet")
    key = ["video_id", "frame_index", "track"]
    oof = FRAME_PREDICTIONS.read(pipeline.experiment / "fold0" / "oof.parquet")
    joined = oof.merge(FRAME_PREDICTIONS.read(tmp_path / "p.parquet"), on=key, suffixes=("", "_again"))
    assert len(joined) == len(oof)
    assert (joined["logit"] - joined["logit_again"]).abs().max() < 1e-4


def test_packed_crops_are_trained_on_predicted_and_drawn_as_files_are(pipeline, tmp_path, capsys):
    packed = shutil.copytree(pipeline.faces, tmp_path / "faces")
    message = fails(capsys, "faces", "--out", packed)
    assert "--videos: expected the videos.csv" in message and "--pack" in message
    run("faces", "--out", packed, "--pack")
    total = len(FACES.read(packed / "faces.parquet"))
    assert f"{total} crops packed; {packed} has 1 shard." in capsys.readouterr().out
    assert not list(packed.rglob("*.jpg"))
    on_packed = dataclasses.replace(pipeline, faces=packed)
    run(*on_packed.training(tmp_path / "runs", "--fold", "0"))
    for name in ("best.safetensors", "last.safetensors", "oof.parquet"):
        again = tmp_path / "runs/demo_tiny/fold0" / name
        assert again.read_bytes() == (pipeline.experiment / "fold0" / name).read_bytes(), name
    begun = shutil.copytree(pipeline.runs, tmp_path / "begun")
    run(*on_packed.training(begun, "--fold", "0"))  # where it began on files, it may go on
    for faces in (pipeline.faces, packed):
        outs = "--out", tmp_path / f"{faces.parent.name}.parquet"
        run("predict", "--runs", pipeline.experiment / "fold0", "--faces", faces, *outs)
        run("figures", "faces", "--faces", faces, "--out", tmp_path / f"{faces.parent.name}.html")
    found = [tmp_path / f"{faces.parent.name}.parquet" for faces in (pipeline.faces, packed)]
    pd.testing.assert_frame_equal(*map(FRAME_PREDICTIONS.read, found))
    drawn = [path.with_suffix(".html").read_text() for path in found]
    assert drawn[0].count("data:image") == drawn[1].count("data:image") > 0 and "no crop" not in drawn[1]


@pytest.mark.slow
def test_a_convolutional_and_a_token_run_on_the_same_faces_make_one_submission(pipeline, capsys, tmp_path):
    faces = ("--faces", pipeline.faces, "--folds", pipeline.folds)
    said = fails(capsys, "train", "dfdc_dinov2_norms", "--tiny", "--data.image-size", "56", *faces)
    assert (
        "--data.image-size 56: test_vit takes multiples of its patch of 16 px. Give --data.image-size 48 or 64" in said
    )
    run("train", "dfdc_dinov2_norms", "--tiny", *faces, "--runs", tmp_path, "--fold", "all")
    runs = (pipeline.experiment, tmp_path / "dfdc_dinov2_norms_tiny")
    (token, _) = find_models(runs[1])
    assert (token.experiment.model.backbone, token.experiment.model.input_mean) == ("test_vit", (0.5, 0.5, 0.5))
    run("tune", "--runs", *runs, "--out", tmp_path / "scoring.json")
    where = ("--videos-dir", pipeline.dataset / "test_videos", "--sample-submission")
    where += (pipeline.dataset / "sample_submission.csv", "--out", tmp_path / "submission", "--jobs", 1)
    run("submit", "--runs", *runs, "--scoring", tmp_path / "scoring.json", *where)
    predictions = FRAME_PREDICTIONS.read(tmp_path / "submission" / "frame_predictions.parquet")
    assert set(predictions["model"]) == {f"{path.name}/fold{number}" for path in runs for number in (0, 1)}
    card = json.loads((tmp_path / "submission" / "card.json").read_text())
    assert card["coverage"] == {"ok": 2, "no_face": 1, "unreadable": 1, "missing": 0}


def test_a_faceless_and_an_unreadable_video_get_the_prior_and_are_counted(submission):
    card = json.loads((submission / "card.json").read_text())
    assert card["coverage"] == {"ok": 2, "no_face": 1, "unreadable": 1, "missing": 0}
    assert card["seen_in_training"] == 0
    videos = pd.read_csv(submission / "video_predictions.csv")
    assert (videos.loc[videos["status"] != "ok", "probability"] == 0.5).all()
    assert videos["probability"].between(0.01, 0.99).all()


def test_a_video_that_is_not_there_costs_its_own_row_only(pipeline, submission, tmp_path):
    """One that only the sample knows, and one that was deleted after its faces were found."""
    clips, sample = tmp_path / "test_videos", SUBMISSION.read(pipeline.dataset / "sample_submission.csv")
    SUBMISSION.write(pd.concat([sample, pd.DataFrame({"filename": ["z.mp4"], "label": [0.5]})]), tmp_path / "more.csv")
    shutil.copytree(pipeline.dataset / "test_videos", clips)
    videos = pd.read_csv(submission / "video_predictions.csv")
    deleted = videos.loc[videos["status"] == "ok", "video_id"].iloc[0].split("/")[1] + ".mp4"
    (clips / deleted).unlink()
    pipeline.submit(tmp_path / "after", clips=clips, sample=tmp_path / "more.csv")
    assert json.loads((tmp_path / "after" / "card.json").read_text())["coverage"]["missing"] == 2
    before, answers = (
        SUBMISSION.read(folder / "submission.csv").set_index("filename")["label"].to_dict()
        for folder in (submission, tmp_path / "after")
    )
    assert answers == pytest.approx(before | {deleted: 0.5, "z.mp4": 0.5}, abs=1e-6)


def test_the_leaderboard_scores_the_submission_as_scikit_learn_does(pipeline, submission):
    run("leaderboard", "--submissions", submission.parent, "--labels", pipeline.dataset / "labels.csv")
    board = pd.read_csv(submission.parent / "leaderboard.csv").set_index("name")
    joined = pd.read_csv(pipeline.dataset / "labels.csv").merge(
        pd.read_csv(submission / "submission.csv"), on="filename", suffixes=("", "_answer")
    )
    assert board.loc["tiny", "log_loss"] == pytest.approx(sklearn_log_loss(joined["label"], joined["label_answer"]))
    assert "not comparable" in (submission.parent / "leaderboard.md").read_text()


def test_finished_work_is_not_done_again(pipeline, capsys):
    before = {path: path.stat().st_mtime_ns for path in pipeline.experiment.rglob("*.safetensors")}
    before |= {path: path.stat().st_mtime_ns for path in pipeline.faces.rglob("*.jpg")}
    run("faces", "--videos", pipeline.videos, "--out", pipeline.faces, *FACES_OPTIONS)
    run(*pipeline.training(pipeline.runs, "--fold", "all"))
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["index", "dfdc", "--root", "{nowhere}"], ["no such folder", "--root"], id="index: no folder"),
        pytest.param(["index", "dfdc", "--root", "{empty}"], ["found no clip"], id="index: empty folder"),
        pytest.param(["faces", "--videos", "{nowhere}"], ["multiattn index"], id="faces: no table"),
        pytest.param(["faces", "--videos", "{wrong}"], ["video_id", "found columns a, b"], id="faces: wrong columns"),
        pytest.param(["faces", "--videos", "{no_rows}"], ["no rows", "multiattn index"], id="faces: empty table"),
        pytest.param(["faces", "--videos", "{videos}", "--size", "8"], ["--size", "found 8"], id="faces: tiny crops"),
        pytest.param(["folds", "--videos", "{videos}", "--num-folds", "9"], ["found 2"], id="folds: too few groups"),
        pytest.param(["folds", "--videos", "{fakes}", "--num-folds", "2"], ["found 0 and 2"], id="folds: one class"),
        pytest.param(["predict", "--runs", "{empty}", "--faces", "{faces}"], ["multiattn train"], id="no runs"),
        pytest.param(["predict", "--runs", "{runs}"], ["--faces", "--videos-dir"], id="nothing to predict"),
        pytest.param(["predict", "--runs", "{runs}", "--faces", "{empty}"], ["multiattn faces"], id="no faces"),
        pytest.param(["predict", "--runs", "{runs}", "--scheduler", "tcp://a:1"], ["--backend dask"], id="no cluster"),
        pytest.param(
            ["predict", "--runs", "{runs}", "--faces", "{faces}", "--backend", "ray"], ["--faces"], id="crops there"
        ),
        pytest.param(["predict", "--runs", "{runs}", "--backend", "ray"], ["--videos-dir", "--out"], id="no clips"),
        pytest.param(
            ["predict", "--runs", "{runs}", "--faces", "{faces}", "--splits", "val"], ["of split val"], id="no split"
        ),
        pytest.param(["predict", "--runs", "{runs}", "--videos-dir", "{empty}"], ["expected videos"], id="no videos"),
        pytest.param(["leaderboard", "--submissions", "{empty}"], ["multiattn submit"], id="no submission"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_clear_message_and_leaves_the_output_alone(pipeline, capsys, tmp_path, words, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
    videos = VIDEOS.read(pipeline.videos)
    VIDEOS.write(videos.iloc[:0], tmp_path / "no_rows.csv")
    VIDEOS.write(videos[videos["label"] == 1], tmp_path / "fakes.csv")
    names = {
        "nowhere": tmp_path / "nowhere", "empty": tmp_path / "empty", "wrong": tmp_path / "wrong.csv",
        "no_rows": tmp_path / "no_rows.csv", "fakes": tmp_path / "fakes.csv", "videos": pipeline.videos,
        "faces": pipeline.faces, "runs": pipeline.experiment,
    }  # fmt: skip
    out = tmp_path / "out.csv"
    out.write_text("earlier output")
    message = fails(capsys, *[word.format(**names) for word in words], "--out", out)
    assert all(part in message for part in expected), message
    assert out.read_text() == "earlier output"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["--fold", "7"], ["--fold 7", "0, 1"], id="no such fold"),
        pytest.param(["--fold", "first"], ["--fold", "first"], id="not a number"),
        pytest.param(["--data.batch-size", "8"], ["data.batch_size", "global_batch: 4 there, 8"], id="another batch"),
        pytest.param(["--optim.lr", "0.5"], ["other settings", "optim.lr"], id="run of other settings"),
        pytest.param(["--name", "big", "--data.image-size", "128"], ["128 pixels or more"], id="crops too small"),
        pytest.param(["--name", "x", "--optim.name", "adamm"], ["adamm"], id="no such optimiser"),
        pytest.param(["--name", "x", "--model.backbone", "tinynet_q"], ["Did you mean"], id="no such backbone"),
    ],
)  # fmt: skip
def test_training_refuses_what_does_not_fit(pipeline, capsys, tmp_path, words, expected):
    runs = tmp_path / "runs"
    shutil.copytree(pipeline.runs, runs)
    before = {path: path.read_bytes() for path in runs.rglob("*.safetensors")}
    message = fails(capsys, *pipeline.training(runs, *words))
    assert all(part in message for part in expected), message
    assert {path: path.read_bytes() for path in before} == before


def test_folds_that_leak_are_refused_when_they_are_read(pipeline, capsys, tmp_path):
    folds = FOLDS.read(pipeline.folds)
    folds.loc[0, ["fold", "group"]] = [1 - folds.loc[0, "fold"], "made up"]
    FOLDS.write(folds, tmp_path / "folds.csv")
    message = fails(capsys, *pipeline.training(tmp_path / "runs", folds=tmp_path / "folds.csv"))
    assert "leak" in message and not (tmp_path / "runs").exists()


def test_the_checkpoint_of_another_experiment_is_refused(pipeline, tmp_path):
    experiment = json.loads((pipeline.experiment / "fold0" / "experiment.json").read_text())
    experiment["model"]["num_maps"] = 2
    shutil.copytree(pipeline.experiment, tmp_path / "runs")
    (tmp_path / "runs" / "fold0" / "experiment.json").write_text(json.dumps(experiment))
    with pytest.raises(ValueError, match="another experiment"):
        find_models(tmp_path / "runs")[0].load("cpu")


def test_a_full_disk_and_a_read_only_folder_leave_the_earlier_output(pipeline, capsys, tmp_path):
    out = tmp_path / "videos.csv"
    shutil.copy(pipeline.videos, out)
    shutil.copy(pipeline.videos.with_suffix(".json"), out.with_suffix(".json"))
    before = out.read_bytes()
    code = (
        "import resource, sys; from multiattn.__main__ import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "index", "dfdc", "--root", str(pipeline.dataset), "--out", str(out)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "Earlier output is untouched" in finished.stderr and "Traceback" not in finished.stderr
    assert out.read_bytes() == before and sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "videos.csv",
        "videos.json",
    ]
    # /proc refuses new files whoever asks, the superuser of a container included
    fails(capsys, "index", "dfdc", "--root", pipeline.dataset, "--out", "/proc/multiattn/videos.csv")


def test_a_part_that_spans_folds_is_refused_by_the_grouping_of_the_recipe(pipeline, capsys, tmp_path):
    videos, folds = VIDEOS.read(pipeline.videos), FOLDS.read(pipeline.folds)
    by_original = folds.merge(videos[["video_id", "original"]], on="video_id")
    by_original["group"] = by_original["original"].where(by_original["original"] != "", by_original["video_id"])
    by_original["fold"] = by_original.groupby("group").ngroup() % 2
    shutil.copy(pipeline.folds.with_suffix(".json"), tmp_path / "folds.json")
    FOLDS.write(by_original[list(FOLDS.columns)], tmp_path / "folds.csv")
    message = fails(capsys, *pipeline.training(tmp_path / "runs", folds=tmp_path / "folds.csv"))
    assert "a part" in message and "leak" in message


def test_labels_indexed_anew_reach_a_faces_folder_that_is_done(pipeline, tmp_path):
    faces = tmp_path / "faces"
    shutil.copytree(pipeline.faces, faces)
    videos = VIDEOS.read(pipeline.videos)
    videos.loc[videos["split"] == "train", "method"] = "relabelled"
    VIDEOS.write(videos, tmp_path / "videos.csv")
    shutil.copy(pipeline.videos.with_suffix(".json"), tmp_path / "videos.json")
    (faces / "journal.jsonl").touch()  # what a kill before the first finished video leaves
    run("faces", "--videos", tmp_path / "videos.csv", "--out", faces, *FACES_OPTIONS)
    assert set(VIDEOS.read(faces / "videos.csv")["method"]) == {"relabelled"}
    assert not (faces / "journal.jsonl").exists()


def other_network(state: dict) -> None:
    state["step"].popitem()
    state["progress"] |= {"epoch": 0, "batch": 0}


def earlier_version(state: dict) -> None:
    state["history"] = state.pop("progress")["history"]


@pytest.mark.parametrize("change", [other_network, earlier_version], ids=lambda change: change.__name__)
def test_a_resume_file_of_another_run_is_refused(pipeline, capsys, tmp_path, change):
    runs = tmp_path / "runs"
    shutil.copytree(pipeline.runs, runs)
    state = torch.load(runs / "demo_tiny/fold0/resume.pt", weights_only=True)
    change(state)
    torch.save(state, runs / "demo_tiny/fold0/resume.pt")
    assert "resume.pt: not the state of this experiment" in fails(capsys, *pipeline.training(runs))
