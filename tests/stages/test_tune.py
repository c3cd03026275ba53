"""`multiattn tune` on trained runs: from oof.parquet to a scoring.json that the other commands take."""

import json
import re
import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import log_loss

from multiattn.__main__ import main
from multiattn.inference.predictor import out_of_fold_figures, predict_faces, read_out_of_fold, score_out_of_fold
from multiattn.inference.runs import find_models, with_tta
from multiattn.inference.scoring_file import choose_scoring, read_scoring_file
from multiattn.runtime.files import file_digest
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FACES, FOLDS, FRAME_PREDICTIONS, OUT_OF_FOLD
from pipeline import run


@pytest.fixture
def runs(pipeline, tmp_path):
    """Two experiments: the miniature's, and a copy of it under another name, as a renamed folder is."""
    for name in ("demo_tiny", "renamed"):
        shutil.copytree(pipeline.experiment, tmp_path / name)
    return [tmp_path / "demo_tiny", tmp_path / "renamed"]


def test_tune_writes_a_rule_for_these_runs_and_shows_what_it_compared(runs, capsys):
    run("tune", "--runs", *runs)
    printed = capsys.readouterr().out
    assert "| equal mean, untuned" in printed
    assert "| tuned, nested" in printed
    path = runs[0] / "scoring.json"
    assert f"{path} written" in printed
    rule = read_scoring_file(path).rule
    assert rule.experiments == ("demo_tiny", "renamed")
    assert choose_scoring(runs, None) == rule
    assert rule.held_out.lacks and rule.held_out.describe() in printed
    report = json.loads(path.read_text())["report"]
    assert report["videos"]["number"] == len(read_out_of_fold(*runs).videos)
    figures = {row["name"]: row["log_loss"] for row in report["figures"]}
    # A copy of an experiment adds nothing to it.
    assert figures["only renamed"] == figures["only demo_tiny"]
    assert figures["equal mean, untuned"] == pytest.approx(figures["only demo_tiny"], abs=1e-12)
    assert rule.out_of_fold["log_loss"] <= figures["equal mean, untuned"] + 1e-12


def test_figures_of_the_last_epoch_stand_beside_those_of_the_chosen_one(runs, capsys):
    folds = [runs[0] / "fold0", runs[0] / "fold1"]
    for folder in folds:
        table = FRAME_PREDICTIONS.read(folder / "oof.parquet")
        last = table.assign(probability=1 - table["probability"], logit=-table["logit"])  # the worst of last epochs
        FRAME_PREDICTIONS.write(last, folder / "oof_last.parquet")
    run("tune", "--runs", runs[0])
    text, rule = capsys.readouterr().out, read_scoring_file(runs[0] / "scoring.json").rule
    assert "| equal mean, untuned, last epoch" in text and "| tuned, nested, last epoch" in text
    figures = out_of_fold_figures(find_models(runs[0]), [runs[0]], rule)
    chosen = out_of_fold_figures(find_models(runs[0]), [runs[0]], ScoringRule())
    assert figures == rule.out_of_fold and figures.keys() >= chosen.keys()
    assert chosen["last_epoch_log_loss"] != pytest.approx(chosen["log_loss"])
    report = json.loads((runs[0] / "scoring.json").read_text())["report"]
    untuned = next(row for row in report["figures"] if row["name"] == "equal mean, untuned, last epoch")
    assert untuned["log_loss"] == pytest.approx(chosen["last_epoch_log_loss"])

    for folder in folds:  # as of a version that did not keep them: epochs.csv knows the log loss of each fold
        (folder / "oof_last.parquet").unlink()
    found = score_out_of_fold(runs[0])
    noted = [pd.read_csv(folder / "epochs.csv")["validation_log_loss"].iloc[-1] for folder in folds]
    plain, balanced = found.last_epoch
    assert plain == pytest.approx(np.average(noted, weights=found.folds["num_videos"]))
    words = f"{plain:.4f} (balanced {balanced:.4f})"
    assert f"nobody chose on these videos, {words}" in found.describe()
    assert score_out_of_fold(runs[0], rule=rule).last_epoch is None or rule == ScoringRule()
    run("tune", "--runs", runs[0])
    assert f"predictions were not kept: {words}, untuned" in capsys.readouterr().out


def test_a_share_far_from_a_half_is_warned_of_in_the_last_line_and_a_stated_one_has_both_figures(runs, capsys):
    for words, said in (
        ([], r"warning: .*--test-prior 0\.5"),
        (["--test-prior", 0.5], "shifted .*unshifted .*delivered"),
    ):
        run("tune", "--runs", runs[0], *words)
        assert re.search(said, capsys.readouterr().out.splitlines()[-1])


def test_the_rule_is_found_whatever_the_order_of_the_runs_and_tied_to_their_predictions(runs, capsys):
    run("tune", "--runs", *runs)
    rule = read_scoring_file(runs[0] / "scoring.json").rule
    assert json.loads((runs[0] / "scoring.json").read_text())["tuned_on"] == {
        path.name: {fold: file_digest(path / fold / "oof.parquet") for fold in ("fold0", "fold1")} for path in runs
    }
    capsys.readouterr()
    assert choose_scoring(runs[::-1], None) == rule
    assert capsys.readouterr().err == f"scoring rule of {runs[0] / 'scoring.json'}\n"
    oof = runs[1] / "fold1" / "oof.parquet"
    FRAME_PREDICTIONS.write(FRAME_PREDICTIONS.read(oof).iloc[1:], oof)  # another training
    assert choose_scoring(runs[::-1], None) == rule
    said = capsys.readouterr().err
    assert "predictions of renamed are not those it was tuned on (fold1 replaced)" in said
    run(*shlex.split(re.search("Run `multiattn (.*)` again", said)[1]))
    capsys.readouterr()
    choose_scoring(runs[::-1], None)
    assert capsys.readouterr().err == f"scoring rule of {runs[0] / 'scoring.json'}\n"


def test_a_run_leaves_its_answers_for_others_by_the_default_rule(pipeline):
    found = OUT_OF_FOLD.read(pipeline.experiment / "oof.csv").set_index("video_id")
    folds = FOLDS.read(pipeline.folds).set_index("video_id")
    assert found[["fold", "label"]].to_dict() == folds[["fold", "label"]].loc[found.index].to_dict()
    assert set(found.index) == set(folds.index[folds["fold"] >= 0])
    frames = pd.concat(pd.read_parquet(path) for path in pipeline.experiment.glob("fold*/oof.parquet"))
    means = frames.groupby("video_id")["probability"].mean().clip(0.01, 0.99)
    assert found["probability"].to_dict() == pytest.approx(means.reindex(found.index).fillna(0.5).to_dict())


def test_an_outside_model_is_blended_with_the_runs_and_needed_from_then_on(runs, tmp_path, capsys):
    theirs = tmp_path / "theirs.csv"
    table = OUT_OF_FOLD.read(runs[0] / "oof.csv")
    table = table.assign(probability=(0.8 * table["label"] + 0.1)).sample(frac=1, random_state=0)  # knows it all
    other_fold = table.iloc[:1].assign(video_id="somewhere/else", fold=9)
    OUT_OF_FOLD.write(pd.concat([table, other_fold]), theirs)
    run("tune", "--runs", runs[0], "--outside", f"theirs={theirs}", "--outside", f"same={runs[1] / 'oof.csv'}")
    assert "3 experiments: demo_tiny, same, theirs" in capsys.readouterr().out
    rule = read_scoring_file(runs[0] / "scoring.json").rule
    assert rule.experiments == ("demo_tiny",) and rule.outside == ("same", "theirs")
    answers = OUT_OF_FOLD.read(runs[0] / "scoring_oof.csv")
    assert log_loss(answers["label"], answers["probability"]) == pytest.approx(rule.out_of_fold["log_loss"])
    assert choose_scoring(runs[:1], None, outside=("same", "theirs")) == rule
    for given, message in (((), "expected the answers of same, theirs"), (("same", "theirs", "x"), "found those of x")):
        with pytest.raises(ValueError, match=message):
            choose_scoring(runs[:1], None, outside=given)
    assert choose_scoring(runs[:1], "none") == ScoringRule()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda table: table.iloc[1:], "expected an answer to each video", id="a video too few"),
        pytest.param(
            lambda table: pd.concat([table, table.iloc[:1].assign(video_id="x/y")]),
            "expected no other videos than those of the folds of .*the first: x/y",
            id="a video too many",
        ),
        pytest.param(lambda table: table.assign(fold=1 - table["fold"]), "for each video the fold", id="other folds"),
        pytest.param(lambda table: table.assign(label=1 - table["label"]), "for each video the label", id="labels"),
        pytest.param(lambda table: table.assign(probability=1.5), r"P\(fake\) in \[0, 1\]", id="no probability"),
        pytest.param(lambda table: table.drop(columns="fold"), "expected column 'fold'", id="a column too few"),
        pytest.param(lambda table: table.iloc[:0], "has no rows", id="no rows"),
        pytest.param(None, "expected a name of its own, found demo_tiny twice", id="a run's name"),
    ],
)
def test_an_outside_table_of_other_folds_is_refused(change, message, runs, tmp_path, capsys):
    table = OUT_OF_FOLD.read(runs[0] / "oof.csv")
    (table if change is None else change(table)).to_csv(tmp_path / "theirs.csv", index=False)
    name = "demo_tiny" if change is None else "theirs"
    assert main(["tune", "--runs", str(runs[0]), "--outside", f"{name}={tmp_path / 'theirs.csv'}"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and str(tmp_path / "theirs.csv") in said
    assert not (runs[0] / "scoring.json").exists()


def test_the_rule_scores_the_runs_predictions(runs, tmp_path):
    run("tune", "--runs", *runs, "--out", tmp_path / "own" / "scoring.json", "--test-prior", "0.5")
    rule = read_scoring_file(tmp_path / "own" / "scoring.json").rule
    assert rule.out_of_fold["test_prior"] == 0.5
    assert not (runs[0] / "scoring.json").exists()
    predictions = read_out_of_fold(*runs).predictions
    scored = rule.score(predictions)
    assert scored["probability"].between(rule.clip, 1 - rule.clip).all()
    assert set(scored["video_id"]) == set(predictions["video_id"])


def test_the_same_runs_give_the_same_bytes_over_the_old_file_and_in_another_order_the_same_rule(runs):
    path = runs[0] / "scoring.json"
    run("tune", "--runs", *runs)
    first = path.read_bytes()
    path.write_text("old")
    run("tune", "--runs", *runs)
    assert path.read_bytes() == first
    names = ["fold0", "fold1", "oof.csv", "scoring.json", "scoring_oof.csv"]
    assert sorted(file.name for file in runs[0].glob("[!.]*")) == names
    run("tune", "--runs", *runs[::-1])
    one, other = (json.loads((run / "scoring.json").read_text()) for run in runs)
    assert one["rule"] == other["rule"] and one["tuned_on"] == other["tuned_on"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["{0}/fold0"], "at least 2 groups, found 1", id="one fold of one group"),
        pytest.param(["{0}", "{0}"], "found demo_tiny more than once", id="one experiment twice"),
        pytest.param(["{0}/fold0", "{0}/fold1"], "found demo_tiny more than once", id="its folds one by one"),
        pytest.param(["{0}", "{1}/fold1"], "expected the folds of", id="other folds"),
        pytest.param(["{0}", "nowhere"], "nowhere", id="no runs"),
        pytest.param(["{0}", "--test-prior", "1.5"], "--test-prior: expected a share", id="a prior above 1"),
        pytest.param(["{2}"], "oof.parquet", id="untrained runs"),
        pytest.param(["{0}", "{3}"], "trained on other crops than", id="other crops"),
    ],
)
def test_what_can_not_be_tuned_is_refused_and_the_old_rule_stays(words, message, runs, capsys):
    path, untrained = runs[0] / "scoring.json", runs[0].with_name("untrained")
    path.write_text("old")
    shutil.copytree(runs[0], untrained, ignore=shutil.ignore_patterns("oof.parquet"))
    other = shutil.copytree(runs[0], runs[0].with_name("other"))
    recipe = json.loads((other / "fold1" / "faces.json").read_text())
    (other / "fold1" / "faces.json").write_text(json.dumps({**recipe, "size": 96}))
    assert main(["tune", "--runs", *(word.format(*runs, untrained, other) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert path.read_text() == "old"


def test_the_default_rule_is_what_a_run_without_tuning_gets(runs):
    assert choose_scoring(runs, None) == ScoringRule()


def test_views_are_predicted_for_the_held_out_folds_then_compared_and_followed(pipeline, runs, capsys):
    first, folds = runs[0], [runs[0] / "fold0", runs[0] / "fold1"]
    held_out = ["predict", "--runs", first, "--faces", pipeline.faces, "--held-out", "--tta", "flip"]
    run(*held_out)
    assert "2 folds with out-of-fold predictions of --tta flip; now `multiattn tune" in capsys.readouterr().out
    place = ["model", "fold", "video_id", "frame_index", "track"]
    for folder in folds:
        alone, flipped = (FRAME_PREDICTIONS.read(folder / name) for name in ("oof.parquet", "oof_flip.parquet"))
        pd.testing.assert_frame_equal(alone[place], flipped[place])
        assert np.abs(alone["logit"] - flipped["logit"]).max() > 1e-5
    model = with_tta(find_models(folds[1]), "flip")
    again = predict_faces(model, pipeline.faces, device=torch.device("cpu"), precision="fp32")
    both = flipped.merge(again, on=place)
    assert len(both) == len(flipped) and np.abs(both["logit_x"] - both["logit_y"]).max() < 1e-5

    kept = (folds[1] / "oof_flip.parquet").stat().st_mtime_ns
    (folds[0] / "oof_flip.parquet").unlink()
    run("tune", "--runs", first)
    printed = capsys.readouterr()
    assert f"--tta flip is not compared: {folds[0]} has no oof_flip.parquet" in printed.err
    assert "\ntta: " not in printed.out
    run(*held_out)
    assert (folds[1] / "oof_flip.parquet").stat().st_mtime_ns == kept, "a fold that has them is left as it is"
    run("tune", "--runs", first)
    assert "\ntta: " in capsys.readouterr().out

    run("tune", "--runs", first, "--tta", "flip")
    assert "rule: views flip; " in capsys.readouterr().out
    rule = read_scoring_file(first / "scoring.json").rule
    assert rule.tta == choose_scoring([first], None).tta == "flip"
    assert score_out_of_fold(first, rule=ScoringRule(tta="flip")).overall.log_loss == pytest.approx(
        json.loads((first / "scoring.json").read_text())["report"]["figures"][3]["log_loss"]
    )
    run("tune", "--runs", first, "--tta", "none")
    assert read_scoring_file(first / "scoring.json").rule.tta == "none"
    FRAME_PREDICTIONS.write(flipped.iloc[1:], folds[1] / "oof_flip.parquet")
    assert main(["tune", "--runs", str(first)]) == 2
    assert "expected in oof_flip.parquet the crops of oof.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--held-out", "--faces", "{faces}"], "--held-out: expected --tta", id="no views"),
        pytest.param(["--held-out", "--tta", "flip"], "--held-out: expected --faces", id="no faces"),
        pytest.param(["--held-out", "--tta", "flip", "--out", "x.parquet"], "found --out beside it", id="an output"),
        pytest.param(["--held-out", "--tta", "flip", "--faces", "{other}"], "found no crop of", id="other faces"),
    ],
)
def test_held_out_predictions_that_could_not_be_compared_are_refused(words, message, pipeline, runs, tmp_path, capsys):
    other = shutil.copytree(pipeline.faces, tmp_path / "other_faces")
    FACES.write(FACES.read(other / "faces.parquet").iloc[1:], other / "faces.parquet")
    given = [word.format(faces=pipeline.faces, other=other) for word in words]
    assert main(["predict", "--runs", str(runs[0]), *given]) == 2
    assert message in capsys.readouterr().err
    assert not list(runs[0].glob("fold*/oof_flip.parquet"))
