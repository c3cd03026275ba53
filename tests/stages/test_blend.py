"""`multiattn blend`: submissions of ours and of others -> one, whose answers are those of hand arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from multiattn.__main__ import main
from multiattn.evaluation.leaderboard import score_submissions
from multiattn.inference.scoring_file import write_scoring
from multiattn.inference.submit import delivery
from multiattn.runtime.files import write_json
from multiattn.scoring.aggregators import Aggregator, frame_predictions
from multiattn.scoring.calibration import Calibration
from multiattn.scoring.ensembling import Ensemble
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, OUT_OF_FOLD, SUBMISSION, VIDEO_PREDICTIONS
from pipeline import run

CLIPS, VIDEOS, PARTS = 12, 600, 30
NAMES = [f"clip{number:02d}.mp4" for number in range(CLIPS)]


class Team:
    """`ours` is a folder as `submit` leaves it, `theirs` a CSV with its rows in another order; each with out-of-fold
    answers, over-confident ones: `ours` knows more than `theirs`, and both together more than `ours`."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(3)
        self.folder, self.ours, self.theirs = folder, folder / "ours", folder / "theirs.csv"
        self.sample, self.folds, self.their_oof = folder / "sample.csv", folder / "folds.csv", folder / "oof_theirs.csv"
        SUBMISSION.write(pd.DataFrame({"filename": NAMES, "label": 0.5}), self.sample)
        self.test = {name: rng.random(CLIPS) * 0.9 + 0.05 for name in ("ours", "theirs")}
        table = pd.DataFrame({"filename": NAMES, "label": self.test["ours"]})
        SUBMISSION.write(table, self.ours / "submission.csv")
        SUBMISSION.write(table.assign(label=self.test["theirs"]).iloc[::-1], self.theirs)
        ids = [f"folder/{Path(name).stem}" for name in NAMES]
        statuses = ["no_face", *["ok"] * (CLIPS - 1)]
        videos = pd.DataFrame({"video_id": ids, "probability": self.test["ours"], "num_crops": 4, "status": statuses})
        VIDEO_PREDICTIONS.write(videos.assign(message=""), self.ours / "video_predictions.csv")
        places = pd.DataFrame({"video_id": ids[1:], "frame_index": 0, "track": 0})
        logits = [logit(self.test["ours"][1:]) + shift for shift in (-0.5, 0.5)]
        frames = [frame_predictions(places, of, model=f"m/fold{k}", fold=k) for k, of in enumerate(logits)]
        FRAME_PREDICTIONS.write(pd.concat(frames), self.ours / "frame_predictions.parquet")
        self.card({"runs": ["m/fold0", "m/fold1"], "seen_in_training": 0, "scoring": {"tta": "none"}})

        labels = np.arange(VIDEOS) // PARTS % 2
        part = np.arange(VIDEOS) % PARTS
        videos = pd.DataFrame({"video_id": [f"dfdc/{number:04d}" for number in range(VIDEOS)], "label": labels})
        videos = videos.assign(group=part.astype(str), fold=part % 2)
        videos.assign(label_source="").to_csv(self.folds, index=False)
        evidence = (2 * labels - 1)[:, None] * 1.2 + rng.standard_normal((VIDEOS, 2)) * [1.0, 2.0]
        self.labels, self.logits = labels, np.clip(3 * evidence, -13, 13)
        for path, column in ((self.ours / "oof.csv", 0), (self.their_oof, 1)):
            OUT_OF_FOLD.write(videos.assign(probability=expit(self.logits[:, column])), path)

    def card(self, values: dict) -> None:
        write_json(self.ours / "card.json", {"coverage": {"ok": CLIPS - 1, "no_face": 1}, **values})

    def blend(self, *words: object) -> tuple[np.ndarray, dict]:
        """Answers in the sample's order and the card of the blend of both, into `blend`."""
        out = self.folder / "blend"
        run("blend", self.ours, self.theirs, "--out", out, "--sample-submission", self.sample, *words)
        table = SUBMISSION.read(out / "submission.csv")
        assert table["filename"].tolist() == NAMES
        return table["label"].to_numpy(), json.loads((out / "card.json").read_text())


@pytest.fixture
def team(tmp_path) -> Team:
    return Team(tmp_path)


@pytest.mark.parametrize("weights", [(0.75, 0.25), (1, 1), (0, 2)], ids=["three to one", "alike", "one alone"])
def test_given_weights_are_those_of_a_mean_of_logits_that_is_clipped(weights, team):
    found, card = team.blend("--weights", *weights, "--clip", 0.1)
    share = weights[0] / sum(weights)
    expected = expit(share * logit(team.test["ours"]) + (1 - share) * logit(team.test["theirs"])).clip(0.1, 0.9)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert card["blend"] == ["ours", "theirs"] and card["runs"] == ["m/fold0", "m/fold1"]
    assert card["coverage"] == {} and card["seen_in_training"] is None, "of a bare CSV that is not known"
    assert card["out_of_fold"] is None


def test_what_was_fitted_is_applied_as_the_card_says_and_is_as_good_as_a_logistic_regression(team, capsys):
    found, card = team.blend("--out-of-fold", f"theirs={team.their_oof}", "--folds", team.folds)
    assert "| tuned, nested" in capsys.readouterr().out
    ensemble, calibration = card["scoring"]["ensemble"], card["scoring"]["calibration"]
    assert ensemble["weights"]["ours"] > 1.5 * ensemble["weights"]["theirs"] > 0
    rule = ScoringRule(
        aggregator=Aggregator(clip=1e-6),
        ensemble=Ensemble(**ensemble),
        calibration=Calibration(method=calibration["method"], parameters=tuple(calibration["parameters"])),
    )
    values = np.stack([team.test["ours"], team.test["theirs"]], axis=1)
    clip = card["scoring"]["aggregator"]["clip"]
    np.testing.assert_allclose(found, rule.answer(values, ("ours", "theirs")).clip(clip, 1 - clip), atol=1e-9)
    table = OUT_OF_FOLD.read(team.folder / "blend" / "oof.csv")
    nested = log_loss(team.labels, table["probability"])
    assert card["out_of_fold"]["log_loss"] == pytest.approx(nested, abs=1e-12)
    best = LogisticRegression(C=1e6).fit(team.logits, team.labels).predict_proba(team.logits)
    fitted = rule.answer(expit(team.logits), ("ours", "theirs")).clip(clip, 1 - clip)
    assert log_loss(team.labels, fitted) == pytest.approx(log_loss(team.labels, best), abs=0.01)
    assert nested < log_loss(team.labels, expit(team.logits).mean(axis=1)) - 0.05, "of the plain mean"


def test_a_blend_is_blended_again_scored_by_the_leaderboard_and_replaced(team, capsys):
    first, _ = team.blend("--weights", 1, 1)
    again, card = team.blend("--out-of-fold", f"theirs={team.their_oof}", "--weights", 3, 1)
    answers = expit(team.logits @ [0.75, 0.25]).clip(0.01, 0.99)
    assert card["out_of_fold"]["log_loss"] == pytest.approx(log_loss(team.labels, answers), abs=1e-12)
    assert np.abs(first - again).max() > 0.01
    run("blend", team.folder / "blend", team.ours, "--weights", 1, 1, "--out", team.folder / "third")
    third = logit(OUT_OF_FOLD.read(team.folder / "third" / "oof.csv")["probability"])
    np.testing.assert_allclose(third, ((logit(answers) + team.logits[:, 0]) / 2).clip(*logit([0.01, 0.99])), atol=1e-9)
    capsys.readouterr()
    run("verify", team.folder / "third", "--sample-submission", team.sample)
    labels = team.folder / "labels.csv"
    labels.write_text("filename,label\n" + "".join(f"{name},{row % 2}\n" for row, name in enumerate(NAMES)))
    board = score_submissions(team.folder, labels, resamples=100).ours.set_index("name")
    assert board.loc["blend", "log_loss"] == pytest.approx(log_loss(np.arange(CLIPS) % 2, again))
    assert board.loc["blend", "out_of_fold_log_loss"] == pytest.approx(card["out_of_fold"]["log_loss"])
    assert board.loc["ours", "no_face"] == 1 and pd.isna(board.loc["blend", "no_face"])


def test_a_blend_that_was_killed_before_its_card_is_written_by_the_same_command(team, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(pytest.fail.Exception):
        patch.setattr(delivery, "git_commit", lambda: pytest.fail("killed when all but the card is there"))
        team.blend("--weights", 1, 1)
    assert (team.folder / "blend" / "submission.csv").is_file() and not (team.folder / "blend" / "card.json").exists()
    _, card = team.blend("--weights", 1, 1)
    assert card["blend"] == ["ours", "theirs"]
    (team.folder / "blend" / "card.json").unlink()
    assert main(["blend", str(team.ours), "--weights", "1", "--out", str(team.folder / "blend")]) == 2, "no blend's now"


def test_of_our_own_folders_it_is_known_how_each_video_was_answered(team):
    other = team.folder / "other"
    for name in ("submission.csv", "card.json", "video_predictions.csv"):
        (other / name).parent.mkdir(exist_ok=True)
        (other / name).write_text((team.ours / name).read_text().replace(",no_face", ",ok"))
    run("blend", team.ours, other, "--weights", 1, 1, "--out", team.folder / "blend")
    card = json.loads((team.folder / "blend" / "card.json").read_text())
    assert card["coverage"] == {"ok": CLIPS, "no_face": 0, "unreadable": 0, "missing": 0}
    assert card["seen_in_training"] == 0
    table = VIDEO_PREDICTIONS.read(team.folder / "blend" / "video_predictions.csv")
    np.testing.assert_allclose(table["probability"], team.test["ours"], atol=1e-12)


def test_the_share_of_fakes_that_our_rule_was_tuned_for_holds_for_the_blend(team):
    team.card({"runs": [], "out_of_fold": {"log_loss": 0.3, "test_prior": 0.25}})
    _, card = team.blend("--out-of-fold", f"theirs={team.their_oof}")
    assert card["out_of_fold"]["test_prior"] == 0.25


RULE = ScoringRule(
    aggregator=Aggregator(clip=0.02),
    ensemble=Ensemble(method="weighted", space="logit", weights={"m": 0.6, "x": 0.4}),
    calibration=Calibration(method="platt", parameters=(0.5, 0.1)),
    experiments=("m",),
    outside=("x",),
)


def test_a_rule_of_tune_is_followed_with_the_answers_of_the_outside_model_it_names(team):
    write_scoring(RULE, team.folder / "scoring.json", {})
    words = ("--scoring", team.folder / "scoring.json", "--outside", f"x={team.theirs}")
    run("blend", team.ours, "--out", team.folder / "blend", *words)
    z = logit(team.test["ours"])
    mine = (expit(z - 0.5) + expit(z + 0.5)) / 2
    blended = 0.6 * logit(mine) + 0.4 * logit(team.test["theirs"])
    blended[0] = logit(team.test["theirs"][0])  # no face: the outside model answers alone
    table = SUBMISSION.read(team.folder / "blend" / "submission.csv")
    np.testing.assert_allclose(table["label"], expit(0.5 * blended + 0.1).clip(0.02, 0.98), atol=1e-9)
    card = json.loads((team.folder / "blend" / "card.json").read_text())
    assert card["blend"] == ["ours", "x"] and card["coverage"]["no_face"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param([], "theirs: expected out-of-fold answers to fit the blend on", id="nothing to fit on"),
        pytest.param(["--weights", "1"], "--weights: expected 2 numbers of at least 0", id="too few weights"),
        pytest.param(["--weights", "2", "-1"], "--weights: expected 2 numbers", id="a weight below 0"),
        pytest.param(["--weights", "0", "0"], "--weights: expected 2 numbers", id="no weight above 0"),
        pytest.param(["--clip", "0.1"], "and --weights beside it", id="a clip of what is fitted"),
        pytest.param(["--out-of-fold", "x={0}/ours/oof.csv"], "expected names of ours, theirs, found x", id="no such"),
        pytest.param(["--out-of-fold", "theirs={0}/none.csv"], "expected a CSV file, found none", id="no such file"),
        pytest.param(["--out-of-fold", "theirs"], "expected NAME=FILE, found 'theirs'", id="no file"),
        pytest.param(["--outside", "x={0}/theirs.csv"], "--outside: expected --scoring beside it", id="no rule"),
        pytest.param(["--scoring", "{0}/scoring.json"], "expected the answers of x", id="an outside model left out"),
        pytest.param(
            ["--scoring", "{0}/scoring.json", "--outside", "x={0}/theirs.csv", "--outside", "y={0}/theirs.csv"],
            "found those of y",
            id="an outside model too many",
        ),
        pytest.param(
            ["--scoring", "{0}/scoring.json", "--outside", "x={0}/theirs.csv"],
            "theirs: expected a folder of `multiattn submit`",
            id="a rule for frames and a bare CSV",
        ),
        pytest.param(["--weights", "1", "1", "--out", "{0}/ours"], "found another submission", id="over a submission"),
        pytest.param(["{0}/ours/submission.csv"], "found ours twice", id="one twice"),
        pytest.param(["nowhere"], "nowhere: expected a submission folder or a file", id="nothing there"),
        pytest.param(["short={0}/short.csv"], "short.csv: expected the sample's 12 rows", id="other rows"),
        pytest.param(["empty={0}/empty.csv"], "has no rows", id="no rows"),
    ],
)
def test_what_can_not_be_blended_is_refused_and_nothing_is_written(words, message, team, capsys):
    write_scoring(RULE, team.folder / "scoring.json", {})
    (team.folder / "short.csv").write_text("filename,label\nclip00.mp4,0.5\n")
    (team.folder / "empty.csv").write_text("filename,label\n")
    before = sorted(team.folder.rglob("*.*"))
    words = [str(word).format(team.folder) for word in words]
    positional = words if words and "--" not in words[0] else []
    out = [] if "--out" in words else ["--out", str(team.folder / "blend")]
    options = [] if positional else words
    assert main(["blend", str(team.ours), str(team.theirs), *positional, *out, *options]) == 2
    assert message in capsys.readouterr().err
    assert sorted(team.folder.rglob("*.*")) == before


def test_two_folders_with_the_predictions_of_one_model_are_refused_and_nothing_is_written(team, capsys):
    write_scoring(RULE, team.folder / "scoring.json", {})
    rule = ("--scoring", team.folder / "scoring.json", "--outside", f"x={team.theirs}")
    words = ["blend", team.ours, f"again={team.ours / 'submission.csv'}", "--out", team.folder / "blend", *rule]
    assert main([str(word) for word in words]) == 2
    assert "again: expected predictions of other models than in ours, found those of m/fold0" in capsys.readouterr().err
    assert not (team.folder / "blend").exists()


def test_no_submissions_are_refused(tmp_path, capsys):
    assert main(["blend", "--out", str(tmp_path / "blend")]) == 2
    assert "expected submission folders, or files filename,label, found none" in capsys.readouterr().err


def test_an_outside_model_that_is_left_out_is_refused_before_anything_is_imported_that_takes_seconds(team):
    write_scoring(RULE, team.folder / "m" / "scoring.json", {})
    (team.folder / "m" / "fold0").mkdir()
    (team.folder / "m" / "fold0" / "experiment.json").write_text("{}")
    videos = ("--videos-dir", ".", "--sample-submission", team.sample)
    for words in (
        ("submit", "--runs", team.folder / "m", *videos),
        ("submit", "--runs", team.folder / "m" / "fold0", "--scoring", team.folder / "m" / "scoring.json", *videos),
        ("blend", team.ours, "--scoring", team.folder / "m" / "scoring.json"),
    ):
        script = (
            "import sys; from multiattn.__main__ import main; code = main(sys.argv[1:]);"
            "print([m for m in ('torch', 'pandas', 'scipy') if m in sys.modules]); sys.exit(code)"
        )
        words = [*map(str, words), "--out", str(team.folder / "out")]
        ended = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == 2 and ended.stdout == "[]\n", ended.stderr
        assert "expected the answers of x for these videos, found none. Pass them to" in ended.stderr
        assert not (team.folder / "out").exists()
