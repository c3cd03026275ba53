"""Runs of different crops in one submission: each predicts as alone, a video is decoded once, work is done once."""

import dataclasses
import pickle

import pandas as pd
import pytest
from submit_case import PRIOR

from multiattn.inference.submit import classifier
from multiattn.inference.submit import run as run_module
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.predict import SystematicFailureError
from multiattn.inference.submit.run import run_submit
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION
from multiattn.video.extraction import engine
from pipeline import run


@pytest.fixture
def extracted(monkeypatch) -> list[tuple[str, int]]:
    """The video and the number of its recipes of each call of a worker; a batch is one crop, for the same bits."""
    call, calls = engine.call_isolated, []

    def noted(key, target, arguments, *words):
        task, *settings = pickle.loads(arguments)
        calls.append((task.video_id, len(settings)))
        return call(key, target, arguments, *words)

    monkeypatch.setattr(engine, "call_isolated", noted)
    monkeypatch.setattr(classifier, "crops_a_batch", lambda device, sizes: 1)
    return calls


def table_of(inputs: SubmitInputs, experiment: str) -> pd.DataFrame:
    """The frame predictions of an experiment, but for its distances."""
    table = FRAME_PREDICTIONS.read(inputs.out / "frame_predictions.parquet")
    return table[table["model"].str.startswith(f"{experiment}/")].iloc[:, :7].reset_index(drop=True)


@pytest.mark.slow
def test_two_recipes_go_from_tuning_to_a_submission_and_each_run_predicts_as_alone(
    pipeline, box_run, case, extracted, tmp_path
):
    inputs, both = case.asking_for(*case.with_faces[::4], *case.faceless), (pipeline.experiment, box_run)
    run("tune", "--runs", *both, "--out", tmp_path / "scoring.json", "--test-prior", 0.5)
    first, second = (dataclasses.replace(inputs, runs=(one,), scoring="none", out=tmp_path / one.name) for one in both)
    mixed = dataclasses.replace(inputs, runs=both, scoring=str(tmp_path / "scoring.json"), out=tmp_path / "mixed")
    assert mixed.rule.experiments == ("demo_box", "demo_tiny")
    run_submit(first)
    run_submit(second)
    extracted.clear()
    result = run_submit(mixed)
    run("verify", mixed.out, "--sample-submission", mixed.sample_submission)
    assert [number for _, number in extracted] == [2] * 4, "each video is decoded once, for both recipes"
    surest = [result.surest_crop(video) for video in result.videos["video_id"]]
    assert result.coverage["ok"] == len(list(filter(None, surest))) == 2 and result.reduced == 0
    for alone in (first, second):  # to the bit
        name = alone.runs[0].name
        pd.testing.assert_frame_equal(table_of(mixed, name), table_of(alone, name), check_exact=True)
    by_rule = mixed.rule.score(FRAME_PREDICTIONS.read(mixed.out / "frame_predictions.parquet"))
    found = result.videos.set_index("video_id")["probability"]
    assert found[by_rule["video_id"]].tolist() == pytest.approx(by_rule["probability"].tolist(), abs=1e-12)

    extracted.clear()
    run_submit(dataclasses.replace(mixed, out=first.out))
    assert [number for _, number in extracted] == [1] * 4, "a run added to others costs its own crops only"
    added, whole = (SUBMISSION.read(one.out / "submission.csv") for one in (first, mixed))
    pd.testing.assert_frame_equal(added, whole, check_exact=True)
    extracted.clear()
    run_submit(dataclasses.replace(second, out=first.out))
    assert extracted == [], "each recipe finds its own results again"


@pytest.mark.slow
def test_killed_with_two_recipes_it_goes_on_where_it_was(pipeline, box_run, case, extracted):
    both, case = (pipeline.experiment, box_run), case.of(*case.with_faces[:5])
    with case.process(delay=0.5, runs=both) as process:
        case.wait_for(2)
        process.kill()
        process.join()
    done = case.kept()
    assert 2 <= done < 5 and set(case.read().values()) >= {PRIOR}
    result = run_submit(dataclasses.replace(case.inputs, runs=both))
    assert 5 - done <= len(extracted) <= 6 - done, "but for one that the kill caught between its two recipes"
    assert result.coverage["ok"] == 5 and result.reduced == 0
    assert len(FRAME_PREDICTIONS.read(case.inputs.out / "frame_predictions.parquet")) == 5 * 2 * (4 + 3)


def test_a_budget_may_leave_a_recipe_out_and_the_next_run_makes_up_for_it(box_run, case, monkeypatch, pipeline):
    inputs = dataclasses.replace(case.asking_for(case.with_faces[0]), runs=(pipeline.experiment, box_run))
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Plan, "_adapt", lambda self: setattr(self, "_index", len(self.levels) - 1))
        patch.setattr(run_module.Plan, "has_time", False)
        result = run_submit(dataclasses.replace(inputs, budget_hours=1))
    assert result.reduced == 1
    assert result.videos["message"].tolist() == [
        "4 frames x 1 model instead of 4 frames x 2 models; crops of 1 of 2 recipes"
    ]
    assert run_submit(inputs).reduced == 0
    table = FRAME_PREDICTIONS.read(inputs.out / "frame_predictions.parquet")
    assert table.groupby("model").size().to_dict() == {
        "demo_box/fold0": 3, "demo_box/fold1": 3, "demo_tiny/fold0": 4, "demo_tiny/fold1": 4,
    }  # fmt: skip


def test_without_a_face_by_any_recipe_it_stops_loudly(box_run, case, pipeline):
    inputs = case.asking_for(*case.faceless)
    with pytest.raises(SystematicFailureError, match=r"not one video was answered \(1 no_face, 1 unreadable\)"):
        run_submit(dataclasses.replace(inputs, runs=(pipeline.experiment, box_run)))
