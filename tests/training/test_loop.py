"""When training validates, what it keeps, when it ends, and what it says of settings that changed."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.torch
from sklearn import metrics

from multiattn.config import AverageConfig, Experiment, ValidationConfig
from multiattn.experiments import get_experiment
from multiattn.inference.runs import find_models
from multiattn.model.predict import predict_logits
from multiattn.scoring.aggregators import DEFAULT_CLIP
from multiattn.tables import FOLDS, FRAME_PREDICTIONS
from multiattn.training.data.crops import split_crops, validation_loader
from multiattn.training.engine import loop
from multiattn.training.engine.run_folder import load_state
from multiattn.training.folds import read_training_data
from walk import Pipeline, killed_when, train_fold_zero

TINY = get_experiment("demo", tiny=True)
STILL = dataclasses.replace(TINY, optim=dataclasses.replace(TINY.optim, lr=1e-12))
"""Learns next to nothing: after the first validation none is better."""


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "epochs.csv")


def best_notes(folder: Path) -> dict[str, str]:
    with safetensors.safe_open(folder / "best.safetensors", framework="pt") as file:
        return file.metadata()


def test_a_record_has_the_figures_of_videos_and_frames_as_scikit_learn_computes_them(pipeline, tmp_path):
    folder = train_fold_zero(pipeline, tmp_path, dataclasses.replace(TINY, epochs=1))
    record, oof = history(folder).iloc[-1], FRAME_PREDICTIONS.read(folder / "oof.parquet")
    folds = FOLDS.read(folder / "folds.csv").set_index("video_id")["label"]
    labels = oof["video_id"].map(folds).to_numpy()
    clipped = np.clip(oof["probability"], DEFAULT_CLIP, 1 - DEFAULT_CLIP)
    balance = np.where(labels == 1, 1 / (labels == 1).sum(), 1 / (labels == 0).sum())
    expected = {
        "frame_log_loss": metrics.log_loss(labels, clipped),
        "frame_balanced_log_loss": metrics.log_loss(labels, clipped, sample_weight=balance),
        "frame_auc": metrics.roc_auc_score(labels, oof["probability"]),
        "frame_accuracy": metrics.accuracy_score(labels, oof["probability"] > 0.5),
    }
    for name, value in expected.items():
        assert record[f"validation_{name}"] == pytest.approx(value, abs=1e-9), name
    videos = oof.groupby("video_id")["probability"].mean()  # one track a clip here
    assert record["validation_auc"] == pytest.approx(metrics.roc_auc_score(folds[videos.index], videos), abs=1e-9)
    assert 0 <= record["data_wait"] <= 1


@pytest.mark.parametrize(
    ("every", "epochs_done"),
    [
        pytest.param(None, [1.0, 2.0], id="at the end of each epoch"),
        pytest.param(2, [0.5, 1.0, 1.5, 2.0], id="twice an epoch"),
        pytest.param(3, [0.75, 1.0, 1.75, 2.0], id="at three quarters, and at the end all the same"),
        pytest.param(100, [1.0, 2.0], id="seldom"),
    ],
)
def test_validations_come_when_they_are_asked_for(pipeline, tmp_path, every, epochs_done):
    experiment = dataclasses.replace(STILL, epochs=2, validation=ValidationConfig(every_steps=every))
    # 2 x 4 visits of 2 frames in batches of 4: 4 updates an epoch.
    assert history(train_fold_zero(pipeline, tmp_path, experiment))["epochs_done"].tolist() == epochs_done


def test_patience_ends_a_run_that_gets_no_better_and_it_stays_ended(pipeline, tmp_path, caplog):
    caplog.set_level("INFO")
    # Running statistics move even where weights do not: AUC, which only looks at the order, has ties then.
    settings = ValidationConfig(patience=2, metric="accuracy")
    experiment = dataclasses.replace(STILL, epochs=9, validation=settings)
    folder = train_fold_zero(pipeline, tmp_path, experiment)
    table = history(folder)
    best = table["validation_accuracy"].idxmax()
    assert len(table) == best + 1 + 2 < 9
    assert "after 2 validations that were no better" in caplog.text
    train_fold_zero(pipeline, tmp_path, experiment)
    assert "finished already" in caplog.text
    assert len(history(folder)) == len(table)


@pytest.mark.parametrize("metric", ["log_loss", "auc", "frame_accuracy", "frame_balanced_log_loss"])
def test_the_best_checkpoint_is_the_one_of_the_metric_that_was_named(pipeline, tmp_path, metric):
    settings = ValidationConfig(metric=metric)
    experiment = dataclasses.replace(TINY, epochs=4, validation=settings)
    folder = train_fold_zero(pipeline, tmp_path, experiment)
    values = history(folder)[f"validation_{metric}"]
    best = values.idxmax() if settings.higher_is_better else values.idxmin()  # the first of equals
    assert int(best_notes(folder)["epoch"]) == best


def test_averages_are_candidates_and_the_kept_weights_are_those_of_the_best(pipeline, tmp_path):
    experiment = dataclasses.replace(TINY, epochs=5, average=AverageConfig(ema_decay=0.8, best=3))
    folder = train_fold_zero(pipeline, tmp_path, experiment)
    table, notes = history(folder), best_notes(folder)
    columns = ["validation_log_loss", "ema_log_loss", "average_log_loss"]
    assert table["ema_log_loss"].notna().all() and table["average_log_loss"].notna().any()
    best_row = table[columns].min(axis=1).idxmin()
    names = dict(zip(columns, ["last", "ema", "average"], strict=True))
    assert (int(notes["epoch"]), notes["candidate"]) == (best_row, names[table.loc[best_row, columns].idxmin()])
    # What lies in best.safetensors and oof.parquet is that candidate: its predictions come out of its weights.
    data = read_training_data(pipeline.faces, pipeline.folds)
    crops = split_crops(data.faces, data.folds, 0, data.folder)
    loader = validation_loader(crops, experiment.data, rank=0, world_size=1)
    model = find_models(folder)[0]
    logits = predict_logits(
        model.load("cpu"), loader, device=next(model.load("cpu").parameters()).device, precision="fp32"
    )
    np.testing.assert_allclose(FRAME_PREDICTIONS.read(folder / "oof.parquet")["logit"], logits, atol=1e-4)


def begun(pipeline: Pipeline, runs: Path) -> Path:
    return train_fold_zero(pipeline, runs, dataclasses.replace(STILL, epochs=1))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"data": dataclasses.replace(STILL.data, num_workers=1)}, id="workers"),
        pytest.param({"data": dataclasses.replace(STILL.data, cache="memory", cache_gb=0.01)}, id="a cache"),
        pytest.param({"save_minutes": 3.0}, id="when it saves"),
    ],
)
def test_what_a_run_does_not_learn_from_may_change(pipeline, tmp_path, changes):
    folder = begun(pipeline, tmp_path)
    train_fold_zero(pipeline, tmp_path, dataclasses.replace(STILL, epochs=1, **changes))
    assert not (folder / "changes.json").exists()


def test_other_settings_are_refused_unless_told_and_then_noted(pipeline, tmp_path):
    folder = begun(pipeline, tmp_path)
    longer = dataclasses.replace(STILL, epochs=2, loss=dataclasses.replace(STILL.loss, label_smoothing=0.1))
    with pytest.raises(
        ValueError, match=r"loss.label_smoothing: 0.0 there, 0.1 asked; epochs: 1 there, 2 asked.*--allow"
    ):
        train_fold_zero(pipeline, tmp_path, longer)
    assert history(folder)["epoch"].tolist() == [0]
    train_fold_zero(pipeline, tmp_path, longer, allow_changes=True)
    assert history(folder)["epoch"].tolist() == [0, 1]
    (noted,) = json.loads((folder / "changes.json").read_text())
    assert noted["changes"] == ["loss.label_smoothing: 0.0 there, 0.1 asked", "epochs: 1 there, 2 asked"]
    train_fold_zero(pipeline, tmp_path, longer)  # these are its settings now


def test_an_average_and_gradient_scaling_may_begin_on_the_way(pipeline, tmp_path):
    folder = begun(pipeline, tmp_path)
    changed = dataclasses.replace(STILL, epochs=2, average=AverageConfig(ema_decay=0.5), precision="fp16")
    train_fold_zero(pipeline, tmp_path, changed, allow_changes=True)
    table = history(folder)
    assert table["ema_log_loss"].notna().tolist() == [False, True]
    assert load_state(folder)["scaler"]["scale"] > 0


def test_other_folds_are_never_allowed(pipeline, tmp_path):
    begun(pipeline, tmp_path)
    folds = FOLDS.read(pipeline.folds)
    FOLDS.write(folds.assign(fold=1 - folds["fold"]), tmp_path / "folds.csv")
    other = dataclasses.replace(pipeline, folds=tmp_path / "folds.csv")
    with pytest.raises(ValueError, match="folds: not the folds this run was begun with") as refused:
        train_fold_zero(other, tmp_path, dataclasses.replace(STILL, epochs=1), allow_changes=True)
    assert "--allow-changes" not in str(refused.value)


def test_a_run_that_goes_on_with_another_batch_goes_on_at_the_same_place_of_the_epoch(pipeline, tmp_path, monkeypatch):
    slow: Experiment = dataclasses.replace(STILL, epochs=1, save_minutes=1e-9)
    with killed_when(lambda folder, state: state["progress"]["batch"] == 3):
        train_fold_zero(pipeline, tmp_path, slow)
    half = dataclasses.replace(slow, data=dataclasses.replace(slow.data, batch_size=2))
    seen = []
    monkeypatch.setattr(loop, "save_state", lambda folder, state: seen.append(state["progress"]["batch"]))
    train_fold_zero(pipeline, tmp_path, half, allow_changes=True)
    assert seen[0] == 7, "3 batches of 4 are 6 of 2"


def test_the_state_of_a_finished_run_can_be_read(pipeline, tmp_path):
    state = load_state(begun(pipeline, tmp_path))
    assert (state["progress"]["epoch"], state["progress"]["batch"]) == (1, 0)
