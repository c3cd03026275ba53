"""The model card of a run: its figures are those of its predictions, and it tells of no folder outside it."""

import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from multiattn.__main__ import main
from multiattn.datasets.sources import EMBEDDED, SOURCES, find_source
from multiattn.evaluation.card import model_card
from multiattn.inference.predictor import read_out_of_fold
from multiattn.scoring.metrics import balanced_interval, bootstrap_log_loss, log_losses
from multiattn.tables import VIDEOS
from pipeline import run


@pytest.fixture
def experiment(pipeline, tmp_path):
    """The miniature's runs, with absolute paths in their command and settings."""
    folder = shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny")
    for fold in folder.glob("fold*"):
        known = json.loads((fold / "environment.json").read_text())
        known["command"] = ["/home/me/bin/multiattn", "train", "demo", "--tiny", "--faces=/home/me/faces", "/home/me/x"]
        (fold / "environment.json").write_text(json.dumps(known | {"commit": "unknown"}))
        settings = json.loads((fold / "experiment.json").read_text())
        settings["model"]["weights"], settings["optim"]["lr"] = "/home/me/start.pth", 0.0123
        (fold / "experiment.json").write_text(json.dumps(settings))
    return folder


def cells(text: str, first: str) -> list[str]:
    """The cells of the table's row with that first cell."""
    (line,) = re.findall(rf"^\| {re.escape(first)} +\|.*$", text, re.MULTILINE)
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_every_figure_is_that_of_the_predictions_and_no_path_is_told(experiment, capsys):
    run("tune", "--runs", experiment)
    run("card", "--runs", experiment)
    text = (experiment / "card.md").read_text()
    assert text in capsys.readouterr().out
    assert "/home" not in text and str(experiment.parent) not in text
    assert "`multiattn train demo --tiny --faces=faces x`" in text and "start.pth" in text
    assert cells(text, "optim.lr")[1:] == ["0.0123", "0.002"] and "`demo` with `--tiny`" in text
    held_out = read_out_of_fold(experiment)
    answers = held_out.predictions.groupby("video_id")["probability"].mean().clip(0.01, 0.99)
    labels = held_out.videos.set_index("video_id")["label"]
    found = cells(text, "untuned")
    assert float(found[1].split()[0]) == pytest.approx(roc_auc_score(labels, answers[labels.index]), abs=6e-5)
    expected = balanced_accuracy_score(labels, answers[labels.index] > 0.5)
    assert float(found[4].split()[0]) == pytest.approx(expected, abs=6e-5)
    assert len(cells(text, "by the rule, held out of its tuning")) == 6
    alone = model_card(experiment / "fold0")
    assert "tuned on more folds than this card is of" in alone and "by the rule" not in alone
    for fold in experiment.glob("fold*"):
        assert hashlib.sha256((fold / "best.safetensors").read_bytes()).hexdigest() in cells(text, fold.name)[-1]
        assert hashlib.sha256((fold / "folds.csv").read_bytes()).hexdigest() in text
    assert EMBEDDED.title in text and "Real faces: this run is to try the program out" in text
    assert re.search(r"code \| multiattn \d+\.\d+", text)


def test_a_card_knows_splits_sources_and_other_data_but_not_those_of_other_weights(experiment, pipeline, tmp_path):
    table = VIDEOS.read(pipeline.videos)
    text = model_card(experiment, videos=pipeline.videos, sources={"dfdc": "ffpp"})
    assert SOURCES["ffpp"].terms in text and "Fakes made since 2020" in text
    unused = table[(table["split"] != "train") & (table["label"] >= 0)]
    assert text.count("not used") == unused.groupby(["split", "part"]).ngroups
    folder = tmp_path / "evaluation"
    folder.mkdir()
    row = {"dataset": "celebdf-v2", "by": "brightness", "value": "dark", "level": "video", "num_real": 3, "num_fake": 4}
    figures = pd.DataFrame([{**row, "metric": "auc", "figure": 0.8125, "low": 0.7, "high": 0.9}])
    figures.to_csv(folder / "metrics.csv", index=False)
    digests = {fold.name: hashlib.sha256((fold / "best.safetensors").read_bytes()).hexdigest()
               for fold in experiment.glob("fold*")}  # fmt: skip
    (folder / "frame_predictions.json").write_text(json.dumps({"checkpoints": digests}))
    found = cells(model_card(experiment, evaluations=[folder]), "celebdf-v2")
    assert found[:5] == ["celebdf-v2", "brightness dark", "3", "4", "0.8125 (0.7000 to 0.9000)"]
    (folder / "frame_predictions.json").write_text(json.dumps({"checkpoints": digests | {"fold0": "0"}}))
    with pytest.raises(ValueError, match="of other weights"):
        model_card(experiment, evaluations=[folder])


def test_without_predictions_or_what_an_earlier_version_recorded_the_card_says_so(experiment, capsys):
    run("tune", "--runs", experiment)
    for fold in experiment.glob("fold*"):
        for name in ("oof.parquet", "environment.json", "inputs.json", "epochs.csv"):
            (fold / name).unlink()
    text = model_card(experiment)
    assert "The predictions are not here; as the rule was tuned: log_loss" in text
    assert cells(text, "command")[1] == "not recorded"
    (experiment / "scoring.json").unlink()
    assert "Not known: no out-of-fold predictions here" in model_card(experiment)
    assert main(["card", "--runs", str(experiment), "--source", "crops=dfdcs"]) == 2
    assert "Did you mean 'dfdc'?" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"--source crops: expected a data set of the run \(dfdc\)"):
        model_card(experiment, sources={"crops": "dfdc"})
    (experiment / "fold0" / "environment.json").write_text("[]")
    with pytest.raises(ValueError, match=r"environment.json: expected an object"):
        model_card(experiment)


@pytest.mark.parametrize("last", [True, False], ids=["with the last predictions", "without"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "something else: No columns to parse", id="empty"),
        pytest.param(b"\xff\xfe\x00", "something else", id="no text"),
        pytest.param(b"epochs\n1\n", "found no epoch, ", id="other columns"),
        pytest.param(b"epoch,seconds,validation_log_loss\n0,a,b\n", "found text in seconds, ", id="text"),
    ],
)
def test_a_history_that_is_none_is_refused_by_name(content, message, last, experiment, capsys):
    for fold in experiment.glob("fold*"):
        (fold / "epochs.csv").write_bytes(content)
        if not last:
            (fold / "oof_last.parquet").unlink()
    assert main(["card", "--runs", str(experiment)]) == 2
    assert "fold0/epochs.csv: expected" in (said := capsys.readouterr().err)
    assert message in said and "Put back what `multiattn train` wrote, or take it away." in said


@pytest.mark.parametrize(
    ("dataset", "names", "title"),
    [
        pytest.param("dfdc", ["dfdc/dfdc_train_part_0/aagfhgtpmv"], "Deepfake Detection Challenge", id="dfdc"),
        pytest.param("celebdf-v2", ["celebdf-v2/x"], "Celeb-DF (", id="a version"),
        pytest.param("celebdf-pp", ["celebdf-pp/x"], "Celeb-DF++", id="another set that begins alike"),
        pytest.param("crops", ["crops/x"], None, id="a name of one's own"),
    ],
)
def test_a_published_set_is_known_by_its_name(dataset, names, title):
    source = find_source(dataset, names)
    assert source is None if title is None else title in source.title


def test_a_balanced_interval_is_the_plain_one_where_classes_are_even_and_ignores_their_share_otherwise():
    rng = np.random.default_rng(0)
    labels, probabilities, groups = np.arange(400) % 2, rng.uniform(0.05, 0.95, 400), np.arange(400) // 20
    losses = log_losses(labels, probabilities, clip=1e-6)
    even, plain = (
        balanced_interval(labels, losses, groups),
        bootstrap_log_loss(labels, probabilities, groups, clip=1e-6),
    )
    assert (even.low, even.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
    twice = [np.concatenate([of, of[labels == 1]]) for of in (labels, losses, groups)]
    more = balanced_interval(*twice)
    assert (more.low, more.high) == pytest.approx((even.low, even.high), abs=5e-3)
    with pytest.raises(ValueError, match="one class"):
        balanced_interval(np.ones(3, int), losses[:3], groups[:3])
