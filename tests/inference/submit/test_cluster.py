"""Videos of a submission as tasks of a cluster: the answers of one machine, whoever dies."""

import contextlib
import dataclasses
import gc
import os
import pickle
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from multiattn.__main__ import main
from multiattn.inference.runs import find_models
from multiattn.inference.submit import cluster as cluster_module
from multiattn.inference.submit.classifier import Classified
from multiattn.inference.submit.cluster import SentWork, predict_video, sent
from multiattn.inference.submit.delivery import Delivery
from multiattn.inference.submit.extraction import Extracted, Work
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.results import ResultStore, VideoResult
from multiattn.inference.submit.run import run_submit
from multiattn.runtime.journal import Journal
from multiattn.runtime.layout import SUBMISSION_JOURNAL
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_PREDICTIONS
from multiattn.video.extraction.engine import Run
from multiattn.video.extraction.extract import EncodedCrops, ExtractionSettings, VideoTask
from pipeline import run

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
        how = pickle.dumps(models), "cpu", "fp32"
        (found,) = pickle.loads(pickle.dumps(predict_video(work.task, sent([work]), *how)))
        crops = found.extracted.crops
        statuses[crops.status] = found.file == expected.file and found.error == ""
        assert crops.crops.tolist() == expected.crops.tolist() and crops.crops.shape[1] == 2
        np.testing.assert_allclose(found.logits, np.array(expected.logits).reshape(found.logits.shape), atol=1e-5)
        if expected.status == "ok":
            assert found.precisions == dict.fromkeys(range(len(models)), "fp32")
            known = dataclasses.replace(work, known=expected)
            (again,) = predict_video(work.task, sent([known]), *how)
            assert again.models == (), "what is known is not made"
    assert statuses == dict.fromkeys(("ok", "no_face", "unreadable"), True)


def test_results_come_in_the_order_of_the_recipes_whichever_is_done_first(monkeypatch):
    def classify(replicas, source, done, crashed):
        for extracted in reversed(list(iter(source.get, None))):
            done(Classified(extracted, (extracted.work.recipe,)))

    def encode(task, *settings):
        return [EncodedCrops(task.video_id, status, "", 1, [], 0.1, 0.1) for status in settings]

    models = SimpleNamespace(chosen={}, precision="fp32")
    loaded = SimpleNamespace(working=lambda place: SimpleNamespace(models=models)), "cpu"
    replaced = {"_load": lambda *_: loaded, "Classifier": classify, "encode_crops": encode}
    for name, value in (replaced | {"on_device": lambda settings, device: settings}).items():
        monkeypatch.setattr(cluster_module, name, value)
    task = VideoTask(video_id="folder/a", path=Path("a.mp4"))
    works = [Work(task, status, (recipe,), recipe=recipe) for recipe, status in enumerate(("ok", "no_face"))]
    found = predict_video(task, sent(works), b"", "cpu", "fp32")
    assert [(it.extracted.crops.status, it.models) for it in found] == [("ok", (0,)), ("no_face", (1,))]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"scheduler": "tcp://a:1"}, "scheduler: expected none beside --backend local", id="no cluster"),
        pytest.param({"backend": "dask"}, "scheduler: expected tcp://HOST:8786 .* dask scheduler", id="no scheduler"),
        pytest.param(
            {"backend": "ray", "budget_hours": 1.0}, "budget_hours: expected none beside --backend ray", id="a budget"
        ),
        pytest.param(
            {"backend": "ray", "runtime": "onnxruntime"}, "device: expected cpu beside --runtime onnx", id="a GPU"
        ),
    ],
)
def test_options_that_a_cluster_does_not_go_with_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        SubmitInputs(runs=(Path("run"),), **NOWHERE, **options)


@contextlib.contextmanager
def answering_at_once(*_: object, crops: int = 100, **__: object) -> Iterator[Run]:
    """A cluster whose workers have an answer to each video, of a hundred crops; of none, that it shows no face."""
    places = np.stack([np.arange(crops), np.zeros(crops, np.int64)], axis=1)

    def answer(task: VideoTask, part: SentWork) -> Classified:
        found = EncodedCrops(task.video_id, "ok" if crops else "no_face", "", 100, places, 0.1, 0.1)
        numbers = np.random.default_rng(len(task.video_id)).normal(size=(2, len(part.models), len(places)))
        reasons = np.full(numbers.shape[1:], "", dtype=object)
        facts = {"file": "0" * 64, "precisions": dict.fromkeys(part.models, "fp32")}
        return Classified(Extracted(None, found), part.models, 0, *numbers, reasons, **facts)

    def run(calls: Iterable[tuple]) -> Iterator[tuple]:
        for _, key, _, call, _ in calls:
            task, parts, *_ = pickle.loads(call)
            yield key, "done", pickle.dumps([answer(task, part) for part in parts])

    yield run


def empty_clips(folder: Path, number: int, **options: object) -> SubmitInputs:
    """A submission of so many files without content, on a cluster that a test plays."""
    folder.mkdir(exist_ok=True)
    names = [f"clip{clip:06d}.mp4" for clip in range(number)]
    for name in names:
        (folder / name).touch()
    SUBMISSION.write(pd.DataFrame({"filename": names, "label": 0.5}), folder / "sample.csv")
    paths = {"videos_dir": folder, "sample_submission": folder / "sample.csv", "out": folder / "out"}
    cluster = {"backend": "dask", "scheduler": "tcp://nowhere:1"}
    return SubmitInputs(runs=(Path("dfdc_lite"),), **paths, **cluster, **options)


def test_a_driver_tells_of_a_worker_that_fails_and_of_crops_by_their_places(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def one_fails(*_: object, **__: object) -> Iterator[Run]:
        with answering_at_once() as answering:

            def run(calls: Iterable[tuple]) -> Iterator[tuple]:
                for key, kind, value in answering(calls):
                    yield (key, "raised", pickle.dumps(OSError("gone"))) if key == 1 else (key, kind, value)

            yield run

    monkeypatch.setattr(cluster_module, "open_backend", one_fails)
    inputs = empty_clips(tmp_path, 3)
    result = run_submit(inputs)
    assert result.videos["status"].tolist() == ["ok", "failed", "ok"]
    assert "OSError: gone" in result.videos["message"].iloc[1]
    frames = FRAME_PREDICTIONS.read(tmp_path / "out" / "frame_predictions.parquet")
    assert frames.groupby(["video_id", "model"])["frame_index"].agg(list).map(lambda it: it == [*range(100)]).all()
    assert set(frames["video_id"]) == {"folder/clip000000", "folder/clip000002"} and (frames["track"] == 0).all()


def test_what_has_come_when_a_run_is_asked_to_end_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "open_backend", answering_at_once)
    inputs = empty_clips(tmp_path, 40, write_seconds=1e-9)
    write = Delivery.try_to_write

    def slowly(self, *answers: object) -> None:
        write(self, *answers)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)  # while the others come

    monkeypatch.setattr(Delivery, "try_to_write", slowly)
    with pytest.raises(KeyboardInterrupt):
        run_submit(inputs)
    assert len(list(Journal(tmp_path / "out" / SUBMISSION_JOURNAL, VideoResult).records())) == 40


def test_predict_on_a_cluster_gives_the_table_of_one_machine_and_goes_on(pipeline, submission, tmp_path, monkeypatch):
    videos = VIDEO_PREDICTIONS.read(submission / "video_predictions.csv").set_index("video_id")["status"]
    clips = tmp_path / "clips"
    clips.mkdir()
    for video in videos.index[videos != "unreadable"]:
        name = f"{video.removeprefix('folder/')}.mp4"
        (clips / name).symlink_to(pipeline.dataset / "test_videos" / name)
    predicted = []

    @contextlib.contextmanager
    def in_this_process(*_: object, **__: object) -> Iterator[Run]:
        def run(calls: Iterable[tuple]) -> Iterator[tuple]:
            for _, key, _, call, _ in calls:
                task, *how = pickle.loads(call)
                predicted.append(task.video_id)
                yield key, "done", pickle.dumps(predict_video(task, *how))

        yield run

    monkeypatch.setattr(cluster_module, "open_backend", in_this_process)
    words = "predict", "--runs", pipeline.experiment, "--videos-dir", clips, "--precision", "fp32", "--device", "cpu"
    run(*words, "--jobs", 1, "--out", tmp_path / "here.parquet")
    for name in ("there", "again"):
        out = tmp_path / "there.parquet"
        run(*words, "--backend", "ray", "--out", out)
        assert sorted(predicted) == sorted(f"folder/{path.stem}" for path in clips.iterdir()), name
    here, there = (FRAME_PREDICTIONS.read(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    pd.testing.assert_frame_equal(here, there, rtol=0, atol=1e-5)


def test_predict_on_a_cluster_needs_neither_how_runs_were_trained_nor_a_face(tmp_path, monkeypatch):
    """As on one machine: a packaged run lacks its folds, and no views have out-of-fold predictions."""
    clips, out = tmp_path / "clips", tmp_path / "there.parquet"
    empty_clips(clips, 3)
    words = "predict", "--runs", "dfdc_lite", "--videos-dir", clips, "--tta", "flip", "--backend", "ray", "--out", out
    monkeypatch.setattr(cluster_module, "open_backend", answering_at_once)
    run(*words)
    assert len(FRAME_PREDICTIONS.read(out)) == 300
    for clip in clips.glob("*.mp4"):
        clip.write_text("another")
    monkeypatch.setattr(cluster_module, "open_backend", partial(answering_at_once, crops=0))
    run(*words)
    assert pd.read_parquet(out).empty, "of these videos, not of the former ones"


@pytest.mark.parametrize("name", ["there.submission", "folder"])
def test_predict_on_a_cluster_refuses_a_table_that_it_could_not_write_before_it_begins(name, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    words = "predict", "--runs", "dfdc_lite", "--videos-dir", str(tmp_path), "--backend", "ray"
    assert main([*words, "--out", str(tmp_path / name)]) == 2
    assert f"--out {tmp_path / name}: expected a file to write" in capsys.readouterr().err


@pytest.mark.slow
def test_a_driver_keeps_little_of_a_video_however_many_its_crops(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "open_backend", answering_at_once)

    def kept(videos: int) -> int:
        """Bytes in use after a run."""
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        inputs = empty_clips(folder, videos, write_seconds=0.01)
        tracemalloc.start()
        result = run_submit(inputs)
        assert result.coverage["ok"] == videos and result.surest_crop("folder/clip000000") is not None
        gc.collect()
        in_use, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return in_use

    kept(20)  # imports, also those of a writing on the way
    # What else this process imports or caches meanwhile, in other threads too, counts in one of two.
    growth = min(kept(300), kept(300)) - min(kept(100), kept(100))
    assert growth / 200 < 1200, "the logits, frames and tracks of a hundred crops take 10 KB"


@pytest.mark.slow
def test_a_driver_and_its_restart_spend_little_time_on_a_video(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "open_backend", answering_at_once)
    videos, seconds = 2000, []
    inputs = empty_clips(tmp_path, videos)
    run_submit(empty_clips(tmp_path / "first", 20))  # imports
    for _ in range(2):  # all of it, and what is left of it where all is kept
        started = time.process_time()
        assert run_submit(inputs).coverage["ok"] == videos
        seconds.append((time.process_time() - started) / videos)
    assert max(seconds) < 3e-3, "beside other work on 2 cores of an AMD EPYC (Zen 4): 0.6 and 0.7 ms"


@contextlib.contextmanager
def dask_workers() -> Iterator[tuple[str | None, Callable[[], int]]]:
    """The address of a cluster of two workers, and what gives the process id of one of them."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    import dask

    quiet = {"distributed.admin.log-length": 0, "distributed.worker.daemon": True}
    with (
        dask.config.set(quiet),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        yield cluster.scheduler_address, lambda: next(iter(cluster.workers.values())).pid


@contextlib.contextmanager
def ray_workers() -> Iterator[tuple[str | None, Callable[[], int]]]:
    """The same of Ray, whose workers are processes of this machine."""
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield None, lambda: ray.get(ray.remote(lambda: os.getpid()).remote())
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("backend", "workers"),
    [pytest.param("dask", dask_workers, id="dask"), pytest.param("ray", ray_workers, id="ray", marks=pytest.mark.slow)],
)
def test_two_workers_of_which_one_is_killed_answer_as_one_machine(backend, workers, case, monkeypatch):
    case = case.of(*case.with_faces[:4], *case.faceless)
    add, kept = ResultStore.add, []

    def killing(self, result: VideoResult) -> None:
        add(self, result)
        kept.append(result.video_id)
        if len(kept) == 2:
            os.kill(process_of_one(), signal.SIGKILL)

    monkeypatch.setattr(ResultStore, "add", killing)
    with workers() as (scheduler, process_of_one):
        where = {"backend": backend, "scheduler": scheduler, "device": "cpu"}
        result = run_submit(dataclasses.replace(case.inputs, **where))
    assert case.require_no_wrong_row() == 4 and sorted(kept) == sorted(set(kept)) and len(kept) == 6
    assert case.card()["kernel"]["device"] == f"cpu of {backend}" and case.card()["kernel"]["precision"] == "fp32"
    assert result.coverage == {"ok": 4, "no_face": 1, "unreadable": 1, "missing": 0}
    assert case.kept() == 6, "the driver's journal has each video once"
    monkeypatch.setattr(ResultStore, "add", lambda *_: pytest.fail("all were there"))
    run_submit(dataclasses.replace(case.inputs))
