"""A guard: real faces of another folder on which a fine-tuned run may not call more fake than it did."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors

from multiattn import load_run
from multiattn.config import Experiment, ValidationConfig
from multiattn.experiments import get_experiment
from multiattn.training.engine import validation
from multiattn.training.engine.guard import START_RATE, guard_threshold, guarded_value
from multiattn.training.engine.run_folder import load_state
from multiattn.video.crops.images import read_crop
from multiattn.video.extraction.faces_folder import read_faces_folder
from pipeline import Pipeline, train_fold_zero

TINY = get_experiment("demo", tiny=True)


def tuned(pipeline: Pipeline, **changes) -> Experiment:
    """The tiny experiment from the miniature's run on, which is guarded by its own faces."""
    guarded = {"start_from": str(pipeline.experiment), "validation": ValidationConfig(guard=str(pipeline.faces))}
    return dataclasses.replace(TINY, **{"name": "tuned", **guarded, **changes})


def guard_answers(pipeline: Pipeline, run: Path) -> np.ndarray:
    """P(fake) of the first crop of each real video, by a run's best weights."""
    faces, _, videos = read_faces_folder(pipeline.faces)
    reals = faces[faces["video_id"].isin(videos.loc[videos["label"] == 0, "video_id"])]
    first = reals.sort_values(["video_id", "frame_index", "track"]).groupby("video_id")["crop"].first()
    loaded = load_run(run)
    return loaded.predict(np.stack([read_crop(pipeline.faces / crop, TINY.data.image_size) for crop in first]))


def test_every_validation_tells_the_false_alarms_above_the_threshold_of_the_start(pipeline, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = train_fold_zero(pipeline, tmp_path, tuned(pipeline, epochs=1))
    (record,) = pd.read_csv(folder / "epochs.csv").to_dict("records")
    before, after = guard_answers(pipeline, pipeline.experiment / "fold0"), guard_answers(pipeline, folder)
    threshold = load_state(folder)["progress"]["guard_threshold"]
    assert threshold == pytest.approx(np.sort(before)[-1 - int(START_RATE * len(before))], abs=1e-6)
    assert record["validation_false_alarms"] == np.mean(after > threshold)
    assert f", validation_false_alarms on the guard {record['validation_false_alarms']:.1%}" in caplog.text


def test_a_checkpoint_that_calls_too_many_real_faces_fake_is_not_kept(pipeline, tmp_path, monkeypatch):
    calm, alarmed = np.linspace(0, 0.5, 100), np.linspace(0.4, 0.9, 100)
    answers = iter([calm, alarmed, calm, alarmed])  # of the start, and of three epochs
    monkeypatch.setattr(validation, "_guard_probabilities", lambda *_: next(answers))
    folder = train_fold_zero(pipeline, tmp_path, tuned(pipeline, epochs=3))
    assert pd.read_csv(folder / "epochs.csv")["validation_false_alarms"].round(2).tolist() == [0.85, 0.05, 0.85]
    with safetensors.safe_open(folder / "best.safetensors", framework="pt") as file:
        assert file.metadata()["epoch"] == "1"


def test_within_the_allowed_rate_the_metric_decides_and_beyond_it_the_rate():
    assert guarded_value(-0.7, None) == guarded_value(-0.7, 0.0) == guarded_value(-0.7, 0.1) == -0.7
    assert guarded_value(-0.1, 0.102) < guarded_value(-9.0, 0.1)
    assert guarded_value(-0.1, 0.5) < guarded_value(-9.0, 0.498)


@pytest.mark.parametrize(("count", "above"), [(1, 0), (19, 0), (20, 1), (100, 5)])
def test_the_threshold_leaves_at_most_a_twentieth_above(count, above):
    probabilities = np.random.default_rng(0).permutation(count) / count
    assert np.sum(probabilities > guard_threshold(probabilities)) == above


def test_a_guard_without_a_start_or_of_other_crops_is_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match="start_from: expected a run to start from beside --guard"):
        tuned(pipeline, start_from=None)
    with pytest.raises(FileNotFoundError, match=r"faces\.json"):
        elsewhere = ValidationConfig(guard=str(tmp_path))
        train_fold_zero(pipeline, tmp_path, tuned(pipeline, validation=elsewhere))
