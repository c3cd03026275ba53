"""The staged schedule: what each phase moves, that a run continues inside any of them, and a start from another run."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import safetensors.torch
import torch

from multiattn.config import Phase
from multiattn.experiments import get_experiment
from multiattn.training.engine.step import phase_spans, span_at
from walk import TIMES, Pipeline, killed_when, train_fold_zero

STAGED = dataclasses.replace(
    get_experiment("ffpp_b4_official", tiny=True),
    phases=(
        Phase(name="backbone", epochs=2, objective="backbone"),
        Phase(name="frozen", epochs=1, freeze_backbone=True, agda=False),
        Phase(name="full", epochs=1),
    ),
)


@pytest.fixture(scope="module")
def undisturbed(pipeline: Pipeline, tmp_path_factory) -> Path:
    return train_fold_zero(pipeline, tmp_path_factory.mktemp("staged"), STAGED)


def test_every_epoch_belongs_to_one_phase():
    assert [(span.phase.name, span.first, span.end) for span in phase_spans(STAGED)] == [
        ("backbone", 0, 2),
        ("frozen", 2, 3),
        ("full", 3, 4),
    ]
    assert [span_at(STAGED, epoch).phase.name for epoch in range(4)] == ["backbone", "backbone", "frozen", "full"]
    with pytest.raises(ValueError, match="epoch 4: expected 0 to 3"):
        span_at(STAGED, 4)


def test_the_record_tells_the_phases_and_what_each_computed(undisturbed):
    history = pd.read_csv(undisturbed / "epochs.csv")
    assert history["phase"].tolist() == ["backbone", "backbone", "frozen", "full"]
    assert history["auxiliary"].notna().tolist() == [False, False, True, True]
    assert history["cross_entropy_agda"].notna().tolist() == [False, False, False, True]
    assert history["match"].notna().tolist() == [False, False, False, True]
    assert history["map_cosine"].notna().tolist() == [False, False, True, True]
    assert history["validation_log_loss"].notna().all()


def test_the_best_epoch_is_one_that_trained_the_network(undisturbed):
    history = pd.read_csv(undisturbed / "epochs.csv")
    best = history[history["phase"] != "backbone"].sort_values("validation_log_loss").iloc[0]
    with safetensors.safe_open(undisturbed / "best.safetensors", framework="pt") as file:
        assert int(file.metadata()["epoch"]) == best["epoch"]


@pytest.mark.parametrize("epochs", [1, 2, 3], ids=["inside a phase", "between two phases", "before the last"])
def test_a_killed_run_continues_to_the_same_weights(pipeline, undisturbed, tmp_path, epochs):
    with killed_when(lambda folder, state: state["progress"]["epoch"] == epochs):
        train_fold_zero(pipeline, tmp_path, STAGED)
    folder = train_fold_zero(pipeline, tmp_path, STAGED)
    expected = safetensors.torch.load_file(undisturbed / "last.safetensors")
    found = safetensors.torch.load_file(folder / "last.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    pd.testing.assert_frame_equal(
        *(pd.read_csv(path / "epochs.csv").drop(columns=TIMES) for path in (folder, undisturbed))
    )


def test_a_run_starts_from_the_same_fold_of_another(pipeline, undisturbed, tmp_path):
    # A learning rate of next to nothing: what comes out is what went in.
    optim = dataclasses.replace(STAGED.optim, lr=1e-12, weight_decay=0.0)
    experiment = dataclasses.replace(
        STAGED, name="c40", phases=(), optim=optim, epochs=1, start_from=str(undisturbed.parent)
    )
    folder = train_fold_zero(pipeline, tmp_path, experiment)
    before = safetensors.torch.load_file(undisturbed / "best.safetensors")
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
