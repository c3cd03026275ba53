"""Videos of a submission as tasks of a cluster: the answers of one machine, whoever dies."""

import dataclasses
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest

from multiattn.inference.runs import find_models
from multiattn.inference.submit.cluster import predict_video
from multiattn.inference.submit.extraction import Work
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.results import ResultStore, VideoResult
from multiattn.inference.submit.run import run_submit
from multiattn.runtime.journal import Journal
from multiattn.runtime.layout import SUBMISSION_JOURNAL
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask

NOWHERE = {name: Path("nowhere") for name in ("videos_dir", "sample_submission", "out")}


def test_a_task_gives_the_numbers_of_a_run_on_one_machine_and_no_pixels(undisturbed, pipeline):
    models = find_models(pipeline.experiment)
    settings = ExtractionSettings(recipe=models[0].recipe.for_prediction())
    kept = {it.video_id: it for it in Journal(undisturbed.inputs.out / SUBMISSION_JOURNAL, VideoResult).records()}
    statuses = {}
    for path in sorted(undisturbed.inputs.videos_dir.iterdir()):
        expected = kept[f"folder/{path.stem}"]
        if expected.status in statuses:
            continue
        work = Work(VideoTask(video_id=expected.video_id, path=path), settings, tuple(range(len(models))))
        (found,) = pickle.loads(pickle.dumps(predict_video([work], pickle.dumps(models), "cpu", "fp32")))
        crops = found.extracted.crops
        statuses[crops.status] = found.file == expected.file and found.error == ""
        assert [[crop.frame_index, crop.track] for crop in crops.crops] == expected.crops
        assert not any(crop.jpeg for crop in crops.crops)
        np.testing.assert_allclose(found.logits, np.array(expected.logits).reshape(found.logits.shape), atol=1e-5)
        if expected.status == "ok":
            assert found.precisions == dict.fromkeys(range(len(models)), "fp32")
            known = dataclasses.replace(work, known=expected)
            (again,) = predict_video([known], pickle.dumps(models), "cpu", "fp32")
            assert again.models == (), "what is known is not made"
    assert statuses == dict.fromkeys(("ok", "no_face", "unreadable"), True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"scheduler": "tcp://a:1"}, "scheduler: expected none beside --backend local", id="no cluster"),
        pytest.param({"backend": "dask"}, "scheduler: expected tcp://HOST:8786 .* dask scheduler", id="no scheduler"),
        pytest.param(
            {"backend": "ray", "budget_hours": 1.0}, "budget_hours: expected none beside --backend ray", id="a budget"
        ),
    ],
)
def test_options_that_a_cluster_does_not_go_with_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        SubmitInputs(runs=(Path("run"),), **NOWHERE, **options)


@pytest.mark.slow
def test_two_workers_of_dask_of_which_one_is_killed_answer_as_one_machine(case, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    import dask

    add, kept = ResultStore.add, []

    def killing(self, result: VideoResult) -> None:
        add(self, result)
        kept.append(result.video_id)
        if len(kept) == 2:
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    monkeypatch.setattr(ResultStore, "add", killing)
    quiet = {"distributed.admin.log-length": 0, "distributed.worker.daemon": True}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        where = {"backend": "dask", "scheduler": cluster.scheduler_address, "device": "cpu"}
        result = run_submit(dataclasses.replace(case.inputs, **where))
    assert case.require_no_wrong_row() == 8 and sorted(kept) == sorted(set(kept)) and len(kept) == 10
    assert case.card()["kernel"]["device"] == "cpu of dask" and case.card()["kernel"]["precision"] == "fp32"
    assert result.coverage == {"ok": 8, "no_face": 1, "unreadable": 1, "missing": 0}
    assert case.kept() == 10, "the driver's journal has each video once"
    monkeypatch.setattr(ResultStore, "add", lambda *_: pytest.fail("all were there"))
    run_submit(dataclasses.replace(case.inputs))
