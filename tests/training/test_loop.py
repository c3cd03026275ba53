"""One fold from first to last: validations, best weights, settings that change, phases, continuing to the same bits."""

import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors
import safetensors.torch
import torch
from sklearn import metrics

from multiattn.config import AverageConfig, Experiment, Phase, ValidationConfig
from multiattn.experiments import get_experiment
from multiattn.inference.runs import find_models
from multiattn.model import precision
from multiattn.model.precision import Trial
from multiattn.model.predict import predict_logits
from multiattn.runtime.signals import EXIT_CODE
from multiattn.scoring.aggregators import DEFAULT_CLIP
from multiattn.tables import FOLDS, FRAME_PREDICTIONS
from multiattn.training.data.crops import split_crops, validation_loader
from multiattn.training.engine import budget, loop
from multiattn.training.engine.budget import Budget
from multiattn.training.engine.fold_training import phase_spans, span_at
from multiattn.training.engine.run_folder import load_state
from multiattn.training.folds import read_training_data
from pipeline import TIMES, Pipeline, after, end, finish, killed_when, start_stage, train_fold_zero, wait_until

TINY = get_experiment("demo", tiny=True)
STILL = dataclasses.replace(TINY, optim=dataclasses.replace(TINY.optim, lr=1e-12))
"""Learns next to nothing: after the first validation none is better."""


def history(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "epochs.csv")


def best_notes(folder: Path) -> dict[str, str]:
    with safetensors.safe_open(folder / "best.safetensors", framework="pt") as file:
        return file.metadata()


def assert_same_weights(name: str, found: Path, expected: Path) -> None:
    one, other = (safetensors.torch.load_file(path / name) for path in (found, expected))
    assert one.keys() == other.keys()
    assert [key for key in other if not torch.equal(one[key], other[key])] == []


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
    # Running statistics move even where weights do not: AUC, which knows the order alone, has ties then.
    settings = ValidationConfig(patience=2, metric="accuracy")
    experiment = dataclasses.replace(STILL, epochs=9, validation=settings)
    folder = train_fold_zero(pipeline, tmp_path, experiment)
    table = history(folder)
    best = table["validation_accuracy"].idxmax()
    assert len(table) == best + 1 + 2 < 9
    assert "after 2 validations that were no better" in caplog.text
    lines = [message for message in caplog.messages if ", validation log loss " in message]
    assert [line.split(":")[0] for line in lines] == [f"{STILL.name}/fold0 epoch {epoch}" for epoch in table["epoch"]]
    train_fold_zero(pipeline, tmp_path, experiment)
    assert "finished already" in caplog.text
    assert len(history(folder)) == len(table)


@pytest.mark.parametrize("metric", ["auc", "frame_balanced_log_loss"])
def test_the_best_checkpoint_is_the_one_of_the_metric_that_was_named(pipeline, tmp_path, metric):
    settings = ValidationConfig(metric=metric)
    experiment = dataclasses.replace(TINY, epochs=3, validation=settings)
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
    logits = predict_logits(find_models(folder)[0].load("cpu"), loader, device=torch.device("cpu"), precision="fp32")
    np.testing.assert_allclose(FRAME_PREDICTIONS.read(folder / "oof.parquet")["logit"], logits, atol=1e-4)


@pytest.fixture(scope="module")
def trained_once(pipeline: Pipeline, tmp_path_factory) -> Path:
    """Runs with an epoch of fold 0."""
    runs = tmp_path_factory.mktemp("begun")
    train_fold_zero(pipeline, runs, dataclasses.replace(STILL, epochs=1))
    return runs


@pytest.fixture
def begun(trained_once: Path, tmp_path: Path) -> Path:
    """Folder of fold 0 below `tmp_path`, its one epoch trained."""
    return shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True) / STILL.name / "fold0"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"data": dataclasses.replace(STILL.data, num_workers=1)}, id="workers"),
        pytest.param({"data": dataclasses.replace(STILL.data, cache="memory", cache_gb=0.01)}, id="a cache"),
        pytest.param({"save_minutes": 3.0}, id="when it saves"),
    ],
)
def test_what_a_run_does_not_learn_from_may_change(pipeline, begun, tmp_path, changes):
    train_fold_zero(pipeline, tmp_path, dataclasses.replace(STILL, epochs=1, **changes))
    assert not (begun / "changes.json").exists()


def test_other_settings_are_refused_unless_allowed_and_then_noted(pipeline, begun, tmp_path):
    longer = dataclasses.replace(STILL, epochs=2, loss=dataclasses.replace(STILL.loss, label_smoothing=0.1))
    changes = ["loss.label_smoothing: 0.0 there, 0.1 asked", "epochs: 1 there, 2 asked"]
    with pytest.raises(ValueError, match=f"{'; '.join(changes)}.*--allow"):
        train_fold_zero(pipeline, tmp_path, longer)
    assert history(begun)["epoch"].tolist() == [0]
    train_fold_zero(pipeline, tmp_path, longer, allow_changes=True)
    assert history(begun)["epoch"].tolist() == [0, 1]
    (noted,) = json.loads((begun / "changes.json").read_text())
    assert noted["changes"] == changes
    train_fold_zero(pipeline, tmp_path, longer)  # these are its settings now


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        pytest.param({"weight_decay": 0.125}, [(0.0, 1.0), (0.125, 1.0)], id="weight decay"),
        pytest.param(
            {"backbone_lr_factor": 0.5},
            [(0.0, 0.5), (0.0, 1.0), (1e-6, 0.5), (1e-6, 1.0)],
            id="a rate for the backbone",
        ),
        pytest.param({"name": "sgd"}, [(0.0, 1.0), (1e-6, 1.0)], id="another optimiser"),
    ],
)
def test_changed_settings_of_the_optimiser_are_used_and_not_only_recorded(pipeline, begun, tmp_path, optim, expected):
    before = load_state(begun)
    changed = dataclasses.replace(STILL, epochs=2, optim=dataclasses.replace(STILL.optim, **optim))
    changed = dataclasses.replace(changed, loss=dataclasses.replace(STILL.loss, center_rate=0.02))
    with killed_when(after(1)):
        train_fold_zero(pipeline, tmp_path, changed, allow_changes=True)
    state = load_state(begun)
    groups = state["optimizer"]["param_groups"]
    assert sorted((group["weight_decay"], group["lr_scale"]) for group in groups) == sorted(expected)
    assert state["step"]["auxiliary.center_rate"].item() == pytest.approx(0.02 * 0.9)
    if "name" not in optim:  # each parameter goes on with its own moments
        moments = [
            dict(
                zip(
                    one["parameters"],
                    (one["optimizer"]["state"][k] for k in sorted(one["optimizer"]["state"])),
                    strict=True,
                )
            )
            for one in (before, state)
        ]
        for name, entry in moments[1].items():
            assert entry["step"] == moments[0][name]["step"] + 4, "an epoch of 4 updates"
            assert entry["exp_avg"].shape == moments[0][name]["exp_avg"].shape


def test_a_change_that_makes_another_network_is_refused_before_it_is_recorded(pipeline, begun, tmp_path):
    recorded = (begun / "experiment.json").read_bytes()
    other = dataclasses.replace(STILL, model=dataclasses.replace(STILL.model, num_maps=3))
    with pytest.raises(ValueError, match=r"model.num_maps: .*another network than the saved one"):
        train_fold_zero(pipeline, tmp_path, dataclasses.replace(other, epochs=2), allow_changes=True)
    assert (begun / "experiment.json").read_bytes() == recorded and not (begun / "changes.json").exists()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        pytest.param("start_from", {"start_from": "runs/other"}, id="another run"),
        pytest.param("model.weights", {"model": dataclasses.replace(STILL.model, weights="b4.pth")}, id="a file"),
        pytest.param("model.pretrained", {"model": dataclasses.replace(STILL.model, pretrained=True)}, id="the hub's"),
    ],
)
def test_other_first_weights_are_refused_once_a_run_has_begun(pipeline, begun, tmp_path, name, changed):
    """They were recorded, and never used."""
    recorded, refused = (begun / "experiment.json").read_bytes(), f"{name}: .*begins with, and this one has begun"
    with pytest.raises(ValueError, match=refused):
        train_fold_zero(pipeline, tmp_path, dataclasses.replace(STILL, epochs=2, **changed), allow_changes=True)
    assert (begun / "experiment.json").read_bytes() == recorded and not (begun / "changes.json").exists()


def test_the_best_so_far_is_measured_anew_by_a_changed_metric(pipeline, begun, tmp_path):
    changed = dataclasses.replace(STILL, epochs=2, validation=ValidationConfig(metric="auc"))
    train_fold_zero(pipeline, tmp_path, changed, allow_changes=True)
    best = load_state(begun)["progress"]["best"]
    row = history(begun).set_index("step").loc[best["step"]]
    assert best["value"] == pytest.approx(row["validation_auc"])


def test_a_run_that_failed_before_its_first_state_takes_other_settings(pipeline, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"best\.safetensors"):
        train_fold_zero(pipeline, tmp_path, dataclasses.replace(STILL, epochs=1, start_from=str(tmp_path / "nowhere")))
    folder = train_fold_zero(pipeline, tmp_path, dataclasses.replace(STILL, epochs=1))
    assert json.loads((folder / "experiment.json").read_text())["start_from"] is None
    assert not (folder / "changes.json").exists()


def test_the_latest_predictions_stand_beside_the_best_ones(pipeline, begun):
    latest, best = (FRAME_PREDICTIONS.read(begun / name) for name in ("oof_last.parquet", "oof.parquet"))
    pd.testing.assert_frame_equal(latest, best)  # of one validation


def test_an_average_and_gradient_scaling_may_begin_on_the_way(pipeline, begun, tmp_path):
    changed = dataclasses.replace(STILL, epochs=2, average=AverageConfig(ema_decay=0.5), precision="fp16")
    train_fold_zero(pipeline, tmp_path, changed, allow_changes=True)
    table = history(begun)
    assert table["ema_log_loss"].notna().tolist() == [False, True]
    assert load_state(begun)["scaler"]["scale"] > 0


def test_a_run_records_its_precision_and_keeps_it(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "processor_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(precision, "try_training", lambda _: Trial(seconds_fp32=0.2, seconds_bf16=0.1))
    once = dataclasses.replace(STILL, epochs=1)
    folder = train_fold_zero(pipeline, tmp_path, once)
    assert json.loads((folder / "inputs.json").read_text())["precision"] == "bf16"
    recorded = json.loads((folder / "environment.json").read_text())["precision"]
    assert recorded == {"name": "bf16", "reason": "amx_bf16: 100 ms a batch in bf16, 200 ms in float32"}
    monkeypatch.setattr(precision, "try_training", lambda _: Trial(seconds_fp32=0.1, seconds_bf16=0.2))
    train_fold_zero(pipeline, tmp_path, once)
    assert not (folder / "changes.json").exists()
    monkeypatch.setattr(precision, "processor_flags", frozenset)
    with pytest.raises(ValueError, match="precision: 'bf16' there, 'fp32' asked"):
        train_fold_zero(pipeline, tmp_path, once)


def test_other_folds_are_never_allowed(pipeline, begun, tmp_path):
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


STAGED = dataclasses.replace(
    get_experiment("ffpp_b4_official", tiny=True),
    phases=(
        Phase(name="backbone", epochs=2, objective="backbone"),
        Phase(name="frozen", epochs=1, freeze_backbone=True, agda=False),
        Phase(name="full", epochs=1),
    ),
)


@pytest.fixture(scope="module")
def staged(pipeline: Pipeline, tmp_path_factory) -> Path:
    return train_fold_zero(pipeline, tmp_path_factory.mktemp("staged"), STAGED)


def test_every_epoch_belongs_to_one_phase():
    spans = [("backbone", 0, 2), ("frozen", 2, 3), ("full", 3, 4)]
    assert [(span.phase.name, span.first, span.end) for span in phase_spans(STAGED)] == spans
    assert [span_at(STAGED, epoch).phase.name for epoch in range(4)] == ["backbone", "backbone", "frozen", "full"]
    with pytest.raises(ValueError, match="epoch 4: expected 0 to 3"):
        span_at(STAGED, 4)


def test_the_record_tells_the_phases_and_what_each_computed_and_the_best_epoch_trained_the_network(staged):
    table = history(staged)
    assert table["phase"].tolist() == ["backbone", "backbone", "frozen", "full"]
    assert table["auxiliary"].notna().tolist() == [False, False, True, True]
    assert table["cross_entropy_agda"].notna().tolist() == [False, False, False, True]
    assert table["match"].notna().tolist() == [False, False, False, True]
    assert table["map_cosine"].notna().tolist() == [False, False, True, True]
    assert table["validation_log_loss"].notna().all()
    best = table[table["phase"] != "backbone"].sort_values("validation_log_loss").iloc[0]
    assert int(best_notes(staged)["epoch"]) == best["epoch"]


def test_a_run_killed_inside_a_phase_and_between_two_continues_to_the_same_weights(pipeline, staged, tmp_path):
    for epoch in (1, 2, 3):
        with killed_when(lambda _, state, epoch=epoch: state["progress"]["epoch"] == epoch):
            train_fold_zero(pipeline, tmp_path, STAGED)
    folder = train_fold_zero(pipeline, tmp_path, STAGED)
    assert_same_weights("last.safetensors", folder, staged)
    pd.testing.assert_frame_equal(*(history(path).drop(columns=TIMES) for path in (folder, staged)))


@pytest.mark.slow
def test_what_a_phase_freezes_counts_in_no_norm_that_gradients_are_clipped_to(pipeline, tmp_path):
    """A continued run has no gradients of the phase before, and comes to the same weights."""
    phases = tuple(
        dataclasses.replace(phase, epochs=1, optim=dataclasses.replace(phase.optim, name="sgd", clip_grad_norm=0.01))
        for phase in STAGED.phases
    )
    experiment, folders = dataclasses.replace(STAGED, phases=phases), []
    for number in range(2):
        for epoch in range(1, 3 * number):
            with killed_when(lambda _, state, epoch=epoch: state["progress"]["epoch"] == epoch):
                train_fold_zero(pipeline, tmp_path / str(number), experiment)
        folders.append(train_fold_zero(pipeline, tmp_path / str(number), experiment))
    assert_same_weights("last.safetensors", *folders)


def test_a_run_starts_from_the_same_fold_of_another(pipeline, staged, tmp_path):
    # A learning rate of next to nothing: what comes out is what went in.
    optim = dataclasses.replace(STAGED.optim, lr=1e-12, weight_decay=0.0)
    changes = {"name": "c40", "phases": (), "optim": optim, "epochs": 1, "start_from": str(staged.parent)}
    folder = train_fold_zero(pipeline, tmp_path, dataclasses.replace(STAGED, **changes))
    before = safetensors.torch.load_file(staged / "best.safetensors")
    after = safetensors.torch.load_file(folder / "last.safetensors")
    name = "classifier.joint.0.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-8, rtol=0)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [("nowhere", FileNotFoundError, "best.safetensors"), ("last.txt", ValueError, "safetensors")],
    ids=["no run", "no weights file"],
)
def test_a_start_from_nothing_is_refused(pipeline, tmp_path, source, error, message):
    (tmp_path / "last.txt").write_text("no weights")
    experiment = dataclasses.replace(STAGED, start_from=str(tmp_path / source))
    with pytest.raises(error, match=message):
        train_fold_zero(pipeline, tmp_path / "runs", experiment)


EVERYTHING = dataclasses.replace(
    TINY,
    epochs=2,
    data=dataclasses.replace(TINY.data, frames_per_video=4, augmentation="wild", strength_epochs=1.5),
    model=dataclasses.replace(TINY.model, drop_path_rate=0.2),
    optim=dataclasses.replace(TINY.optim, accumulate=2),
    validation=ValidationConfig(every_steps=2, metric="auc"),
    average=AverageConfig(ema_decay=0.9, best=2),
    save_minutes=1e-9,
)
"""Random draws of every kind, a rising strength, groups of batches, averages, validations inside an epoch, and a state
saved every update."""


@pytest.fixture(scope="module")
def undisturbed(pipeline: Pipeline, tmp_path_factory) -> Path:
    return train_fold_zero(pipeline, tmp_path_factory.mktemp("undisturbed"), EVERYTHING)


def assert_same_run(folder: Path, expected: Path) -> None:
    """Weights, averages, optimiser, records and predictions, bit for bit."""
    for name in ("last.safetensors", "best.safetensors"):
        assert_same_weights(name, folder, expected)
    states = [load_state(path) for path in (folder, expected)]
    for state in states:
        for record in state["progress"]["history"]:
            for name in TIMES:
                del record[name]
        del state["random"], state["meter"]
    assert flat(states[0]) == flat(states[1])
    histories = [history(path).drop(columns=TIMES) for path in (folder, expected)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    for name in ("oof.parquet", "oof_last.parquet"):
        tables = [FRAME_PREDICTIONS.read(path / name) for path in (folder, expected)]
        pd.testing.assert_frame_equal(*tables, check_exact=True)


def flat(value: object) -> object:
    """A state in which tensors can be compared as everything else."""
    if isinstance(value, dict):
        return {key: flat(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [flat(entry) for entry in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def test_the_undisturbed_run_has_what_is_compared(undisturbed):
    table = history(undisturbed)
    # 4 fake and as many visits of real videos, 4 frames each, in batches of 4, two of them an update.
    assert table["epochs_done"].tolist() == [0.5, 1.0, 1.5, 2.0]
    assert table["step"].tolist() == [2, 4, 6, 8]
    assert table["ema_log_loss"].notna().all()
    assert table["average_log_loss"].notna().any()
    state = load_state(undisturbed)
    assert state["average"] is not None and state["optimizer"]["state"]
    assert 1 <= len(state["progress"]["top"]) <= 2
    assert len(list((undisturbed / "candidates").iterdir())) >= len(state["progress"]["top"])


def test_a_run_that_ends_again_and_again_after_a_saved_state_comes_to_the_same_bits(pipeline, undisturbed, tmp_path):
    """After its second; what continues it after its fourth; and so on, through either epoch of two."""
    for saves in (2, 4, 3, 2):
        with killed_when(after(saves)):
            train_fold_zero(pipeline, tmp_path, EVERYTHING)
        torch.manual_seed(99)  # whatever the next process did before
    assert_same_run(train_fold_zero(pipeline, tmp_path, EVERYTHING), undisturbed)


def test_a_run_that_its_hours_stop_anywhere_goes_on_to_the_same_bits(pipeline, undisturbed, tmp_path, monkeypatch):
    """An update takes a minute, a validation five, and 540 s by the estimate before the first: a session stops before a
    validation inside an epoch and before the one at its end, with which the next begins, and inside an epoch."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def slower(real: Callable, seconds: float) -> Callable:
        def slow(*given) -> object:
            clock.now += seconds
            return real(*given)

        return slow

    for name, seconds in (("update", 60.0), ("validate", 300.0)):
        monkeypatch.setattr(loop, name, slower(getattr(loop, name), seconds))
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(budget, "process_seconds", clock.monotonic)
    stops, folder = [], tmp_path / EVERYTHING.name / "fold0"
    for seconds in (640, 540, 600, 470, 580):
        clock.now = 0.0
        train_fold_zero(pipeline, tmp_path, EVERYTHING, budget=Budget((seconds + 20) / 3600))
        assert clock.now <= seconds
        progress = load_state(folder)["progress"]
        stops.append((progress["epoch"], progress["batch"], progress["is_validated"]))
    assert stops == [(0, 4, False), (0, 8, False), (1, 4, False), (1, 6, False), (2, 0, True)]
    assert_same_run(folder, undisturbed)
    assert history(folder)["validation_seconds"].tolist() == [300.0] * 4


def test_a_damaged_state_falls_back_to_the_one_before_it_and_comes_to_the_same_bits(
    pipeline, undisturbed, tmp_path, caplog
):
    """So the run continues after its fourth saved state, in the middle of an epoch."""
    with killed_when(after(5)):
        train_fold_zero(pipeline, tmp_path, EVERYTHING)
    state = tmp_path / "demo_tiny" / "fold0" / "resume.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    folder = train_fold_zero(pipeline, tmp_path, EVERYTHING)
    assert "damaged" in caplog.text and "resume.previous.pt" in caplog.text
    assert_same_run(folder, undisturbed)


def test_a_loss_that_stops_being_a_number_ends_the_run_and_leaves_its_state(pipeline, tmp_path):
    optim = dataclasses.replace(EVERYTHING.optim, lr=1e30, clip_grad_norm=None)
    wild = dataclasses.replace(EVERYTHING, name="wild", optim=optim)
    with pytest.raises(ValueError, match=r"wild/fold0: epoch 0, step [1-9].*cross_entropy.*learning rate .*in fp32"):
        train_fold_zero(pipeline, tmp_path, wild)
    state = load_state(tmp_path / "wild" / "fold0")
    assert state is None or all(
        bool(torch.isfinite(value).all()) for value in state["step"].values() if value.is_floating_point()
    )


@pytest.mark.parametrize("batch", [3, 7], ids=["inside the epoch", "the epoch's last"])
def test_a_gradient_that_is_no_number_is_never_saved(pipeline, tmp_path, monkeypatch, batch):
    """The loss of its step is finite still, and so are the terms of the next validation where no crop is left."""
    real_update = loop.update

    def spoil(module, *rest) -> None:
        if training_batches.pop(0) == batch:
            next(module.parameters()).grad.fill_(float("nan"))
        real_update(module, *rest)

    training_batches = list(range(1, 99, 2))
    monkeypatch.setattr(loop, "update", spoil)
    with pytest.raises(
        ValueError, match=r"demo_tiny/fold0: epoch 0, a gradient was not finite, and step\..* is not since"
    ):
        train_fold_zero(pipeline, tmp_path, EVERYTHING)
    state = load_state(tmp_path / "demo_tiny/fold0")
    assert state["progress"]["batch"] == batch - 1
    assert all(value.isfinite().all() for value in state["step"].values() if value.is_floating_point())


def words_of(pipeline: Pipeline, runs: Path, experiment: Experiment) -> list[object]:
    """`EVERYTHING` as a command line, with two workers."""
    options = {
        "faces": pipeline.faces, "folds": pipeline.folds, "runs": runs, "device": "cpu", "epochs": experiment.epochs,
        "data.frames-per-video": experiment.data.frames_per_video, "data.augmentation": experiment.data.augmentation,
        "data.strength-epochs": experiment.data.strength_epochs,
        "data.num-workers": 2, "model.drop-path-rate": experiment.model.drop_path_rate,
        "optim.accumulate": experiment.optim.accumulate, "validation.every-steps": experiment.validation.every_steps,
        "validation.metric": experiment.validation.metric, "average.ema-decay": experiment.average.ema_decay,
        "average.best": experiment.average.best, "save-minutes": experiment.save_minutes,
    }  # fmt: skip
    return ["train", "demo", "--tiny", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.slow
def test_sigterm_saves_and_ends_and_the_run_goes_on(pipeline, undisturbed, tmp_path):
    """As a scheduler does it: the signal goes to the process and to its loader's workers alike."""
    log, folder = tmp_path / "log", tmp_path / "demo_tiny" / "fold0"
    rare = [*words_of(pipeline, tmp_path, EVERYTHING)[:-1], 1000]
    process = start_stage(*rare, log=log)  # nothing is saved by the clock: what is there afterwards came of the signal
    wait_until((folder / "tensorboard").is_dir, process)
    time.sleep(0.3)
    assert end(process, signal.SIGTERM, seconds=30) == EXIT_CODE, log.read_text()[-2000:]
    assert "the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (folder / "resume.pt").is_file()
    assert_same_run(train_fold_zero(pipeline, tmp_path, EVERYTHING), undisturbed)


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(pipeline, undisturbed, tmp_path):
    command, log = words_of(pipeline, tmp_path, EVERYTHING), tmp_path / "log"
    folder, generator = tmp_path / "demo_tiny" / "fold0", np.random.default_rng(20261124)
    kills = 0
    while kills < 3:
        before = load_state(folder) if (folder / "resume.pt").is_file() else None
        process = start_stage(*command, log=log)
        process.join(generator.uniform(0.5, 3.0))  # long enough to get to a state or two
        code = end(process)
        if code == 0:  # it came to its end: begin another
            assert_same_run(folder, undisturbed)
            shutil.rmtree(folder)
            continue
        assert code == -signal.SIGKILL, log.read_text()[-2000:]
        kills += 1
        after = load_state(folder) if (folder / "experiment.json").is_file() else None
        if before is not None:
            assert len(after["progress"]["history"]) >= len(before["progress"]["history"])
    assert finish(start_stage(*command, log=log)) == 0, log.read_text()[-2000:]
    assert_same_run(folder, undisturbed)
