"""Whatever happens to a submission run, a complete valid submission lies there, and no row in it is wrong."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from submit_case import PRIOR, SAME, Case, in_this_process

from multiattn.inference.submit import classifier as classifier_module
from multiattn.inference.submit import run as run_module
from multiattn.inference.submit.classifier import LoadedModels
from multiattn.inference.submit.delivery import cut_thumbnails
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.plan import Plan
from multiattn.inference.submit.predict import Setup
from multiattn.inference.submit.results import ResultStore
from multiattn.inference.submit.run import run_submit
from multiattn.runtime.layout import SUBMISSION_JOURNAL
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION
from multiattn.video.crops.images import decode_crop
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction import engine
from multiattn.video.extraction.extract import ExtractionSettings, encode_crops
from multiattn.video.extraction.isolation import end_processes
from pipeline import Pipeline


@contextlib.contextmanager
def always_valid(case: Case) -> Iterator[list[int]]:
    """Read the submission over and over: as soon as there is one, there is a complete valid one ever after."""
    seen, problems, ending = [0], [], threading.Event()

    def read_often() -> None:
        while not ending.is_set():
            if seen[0] or (case.inputs.out / "submission.csv").is_file():
                try:
                    case.read()
                    seen[0] += 1
                except Exception as error:
                    problems.append(error)
            time.sleep(0.01)

    thread = threading.Thread(target=read_often)
    thread.start()
    try:
        yield seen
    finally:
        ending.set()
        thread.join()
    assert not problems, problems[0]
    assert seen[0], "it was never there"


def walk_through_kills(case: Case, *, kills: int, seed: int) -> None:
    """Kill the run again and again, break two files under it, then let it end."""
    rng = np.random.default_rng(seed)
    names = case.sample["filename"].tolist()
    broken = tuple(rng.choice(case.with_faces, 2, replace=False))
    with always_valid(case):
        for number in range(kills):
            kept = case.kept()
            with case.process(delay=0.1):
                if rng.random() < 0.7 and kept < len(names) - 1:
                    case.wait_for(kept + 1)
                time.sleep(float(rng.uniform(0, 0.5)))
                if number == 0:
                    (case.inputs.videos_dir / broken[0]).write_bytes(b"not a video any more")
            if (case.inputs.out / "submission.csv").is_file():
                case.require_no_wrong_row(broken=broken)
            assert case.kept() >= kept, "what was kept stays kept"
            if number == 0:
                with (case.inputs.videos_dir / broken[1]).open("r+b") as file:
                    file.truncate(2000)
        with case.process() as process:
            assert process.wait(timeout=120) == 0, (case.folder / "log.txt").read_text()
    assert case.require_no_wrong_row(broken=broken) == 6, "every unbroken video is answered in the end"
    assert case.card()["kernel"]["complete"] is True


def test_a_run_that_is_killed_delivers(case):
    walk_through_kills(case, kills=1, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_run_that_is_killed_many_times_delivers(case, seed):
    walk_through_kills(case, kills=8, seed=seed)


def test_asked_to_end_it_writes_what_it_knows_first(case):
    with case.process(delay=1, write_seconds=1000) as process:
        case.wait_for(3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 128 + signal.SIGTERM
    assert 1 <= case.require_no_wrong_row() < 8
    assert case.card()["kernel"]["complete"] is False
    assert "not answered yet" in str(case.card()["kernel"]["not_judged"])


def test_a_machine_too_slow_for_its_budget_delivers_in_time_and_says_what_it_gave_up(case, monkeypatch):
    started = time.monotonic()
    result = in_this_process(case, monkeypatch, delay=0.8, budget_hours=6 / 3600)
    assert time.monotonic() - started < 6 + 20, "a batch at work is waited for, on a busy machine too"
    assert result.seconds < 6 + 20
    late = result.videos[result.videos["status"] == "late"]
    assert late["message"].str.contains("when the time was over").all() and (late["probability"] == PRIOR).all()
    assert case.card()["kernel"]["budget_hours"] == 6 / 3600
    assert case.card()["coverage"]["late"] == result.coverage["late"] == len(late) > 0
    assert set(case.read()) == set(case.answers)


@pytest.mark.slow
def test_what_was_given_up_for_want_of_time_is_answered_by_the_next_run(case, monkeypatch):
    assert in_this_process(case, monkeypatch, delay=1.0, budget_hours=8 / 3600).coverage["late"] > 0
    in_this_process(case, monkeypatch)
    assert case.require_no_wrong_row() == 8


@pytest.mark.slow
def test_the_budget_counts_from_the_start_of_the_process(case):
    """Counted from the run's own start it would be 33 seconds; the file's time counts, since a busy machine takes
    seconds to end a process."""
    started = time.time()
    with case.process(delay=4, idle=8, budget_hours=25 / 3600) as process:
        assert process.wait(timeout=120) == 0
    assert (case.inputs.out / "submission.csv").stat().st_mtime - started < 25 + 4
    assert set(case.read()) == set(case.answers) and case.card()["kernel"]["complete"] is True
    assert case.card()["coverage"]["late"] > 0


def test_a_slow_classifier_holds_the_extraction_back(case, monkeypatch):
    in_flight, start = [], Plan.start

    def watched(self):
        level = start(self)
        in_flight.append(self._in_flight)
        return level

    monkeypatch.setattr(Plan, "start", watched)
    monkeypatch.setattr(classifier_module, "MOST_CPU_BATCH_CROPS", 4)  # one video a batch
    in_this_process(case, monkeypatch, delay=0.15, write_seconds=1000)  # no disk that this thread waits for
    # One in the worker, two in the queue, what the threads have taken of it, and one not yet counted as finished.
    assert max(in_flight) <= min(9, 1 + 2 + 1 + os.cpu_count() + 1)
    assert case.require_no_wrong_row() == 8


def test_fewer_frames_and_models_are_reported_of_each_video(case, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "_adapt", lambda self: setattr(self, "_index", len(self.levels) - 1))
        patch.setattr(Plan, "has_time", False)
        result = in_this_process(case, patch, budget_hours=1)
    answered = result.videos[result.videos["status"] == "ok"]
    assert (answered["message"] == "4 frames x 1 model instead of 4 frames x 2 models").all() and len(answered) == 8
    table = FRAME_PREDICTIONS.read(case.inputs.out / "frame_predictions.parquet")
    assert set(table["model"]) == {"demo_tiny/fold0"}
    first = case.read()
    assert first != case.answers
    assert result.reduced == case.card()["kernel"]["reduced"] == 8

    with monkeypatch.context() as patch:
        patch.setattr(LoadedModels, "logits", lambda *_, **__: np.full(1, np.nan))
        assert run_submit(case.inputs).reduced == 8
    assert case.read() == first, "a second pass that fails takes no answer away"

    result = in_this_process(case, monkeypatch)  # now there is time, and nothing is reduced any more
    assert case.require_no_wrong_row() == 8 and result.reduced == case.card()["kernel"]["reduced"] == 0
    assert not result.videos["message"].str.contains("instead of").any()


def test_without_a_face_in_any_video_it_stops_loudly(case):
    """A detector that finds nothing would deliver four thousand priors."""
    inputs = case.asking_for(*sorted(case.answers.keys() - set(case.with_faces)))
    words = r"not one video was answered \(1 no_face, 1 unreadable\).*do not hand it in"
    with pytest.raises(RuntimeError, match=words):
        run_submit(inputs)
    assert set(SUBMISSION.read(case.inputs.out / "submission.csv")["label"]) == {PRIOR}


def test_two_videos_that_differ_in_their_ending_are_refused_by_their_names(case):
    name = case.sample["filename"][0]
    other = f"{Path(name).stem}.avi"
    shutil.copy(case.inputs.videos_dir / name, case.inputs.videos_dir / other)
    with pytest.raises(ValueError, match=f"found {name} and {other}. Rename one"):
        run_submit(case.asking_for(name, other))


def test_an_error_nobody_foresaw_in_a_thread_costs_one_video(case, monkeypatch):
    call, name = engine.call_isolated, case.with_faces[0]

    def faulty(key, target, arguments, *words):
        if Path(name).stem.encode() in arguments:
            raise ValueError("35 is not a valid Signals")
        return call(key, target, arguments, *words)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "call_isolated", faulty)
        result = in_this_process(case, patch)
    assert result.coverage["failed"] == 1 and case.require_no_wrong_row() == 7
    assert result.videos["message"].str.contains("35 is not a valid").sum() == 1


def test_an_error_of_the_extraction_itself_ends_the_run_with_it(case, monkeypatch):
    def fail(*_: object) -> None:
        raise PermissionError("the detector's weights are gone")

    monkeypatch.setattr(Setup, "work", fail)
    with pytest.raises(PermissionError, match="weights are gone"):
        run_submit(case.inputs)


@pytest.mark.parametrize(("asked", "kept"), [("auto", "fp32"), ("bf16", "bf16")])
def test_results_that_are_there_decide_an_open_precision(asked, kept, tmp_path):
    setup = Setup(
        paths={}, stamps={}, models=(), settings=ExtractionSettings(recipe=CropRecipe()),
        device=torch.device("cpu"), precision=asked, workers=1, cores=1,
    )  # fmt: skip
    assert run_module._keep_precision(setup, tmp_path).precision == asked
    ResultStore(tmp_path, {"precision": "fp32"}).close()
    assert run_module._keep_precision(setup, tmp_path).precision == kept


def test_videos_that_all_fail_stop_it_loudly_and_leave_priors(case, monkeypatch):
    for path in case.inputs.videos_dir.iterdir():
        path.write_bytes(b"nothing")
    words = r"first 10 videos failed.*10 x InvalidDataError.*do not hand it in"
    with pytest.raises(RuntimeError, match=words) as error:
        in_this_process(case, monkeypatch)
    assert str(case.inputs.out / "submission.csv") in str(error.value)
    assert set(case.read().values()) == {PRIOR}


@pytest.mark.slow
def test_networks_that_fail_on_everything_stop_it_loudly_too(case, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LoadedModels, "logits", lambda *_, **__: np.full(1, np.nan))
        with pytest.raises(RuntimeError, match="8 videos failed"):
            run_submit(case.asking_for(*case.with_faces))
    in_this_process(case, monkeypatch)
    assert case.require_no_wrong_row() == 8, "what the machine failed at is tried again"


def test_a_finished_run_does_nothing_again(undisturbed, monkeypatch):
    content = (undisturbed.inputs.out / "submission.csv").read_bytes()
    monkeypatch.setattr(run_module.PredictionPass, "run", lambda self: pytest.fail("it was all done"))
    result = run_submit(undisturbed.inputs)
    assert (undisturbed.inputs.out / "submission.csv").read_bytes() == content
    worst = result.least_certain(3)
    assert (worst["probability"] - 0.5).abs().is_monotonic_increasing and len(worst) == 3
    (video, surest), *_ = result.crops.items()
    predictions = FRAME_PREDICTIONS.read(undisturbed.inputs.out / "frame_predictions.parquet")
    means = predictions[predictions["video_id"] == video].groupby(["frame_index", "track"])["logit"].mean()
    shown = decode_crop(cut_thumbnails([surest], workers=1)[video], 64, video).astype(float)
    crops = encode_crops(surest.work.task, surest.work.settings).crops
    distance = {
        (crop.frame_index, crop.track): np.abs(decode_crop(crop.jpeg, 64, video) - shown).mean() for crop in crops
    }
    assert min(distance, key=distance.get) == means.abs().idxmax(), "the crop the models are surest of"


def test_a_rerun_with_nothing_to_do_names_the_precision_of_its_results(undisturbed, case):
    shutil.copytree(undisturbed.inputs.out, case.inputs.out)
    journal = case.inputs.out / SUBMISSION_JOURNAL
    journal.write_text(re.sub(r'"precisions":\[[^]]*]', '"precisions":["bf16","fp32"]', journal.read_text()))
    run_submit(case.inputs)
    assert case.card()["kernel"]["precision"] == "bf16, fp32"


@pytest.mark.slow
def test_results_of_other_runs_are_not_taken_over(case, monkeypatch):
    run_submit(dataclasses.replace(case.inputs, runs=(case.inputs.runs[0] / "fold0",)))
    of_one_fold = case.read()
    assert of_one_fold != case.answers
    run_submit(case.inputs)
    assert case.require_no_wrong_row() == 8
    assert (case.inputs.out / "kernel_results.1.jsonl").is_file()


@pytest.mark.slow
def test_the_processes_are_gone_when_it_is_over(case):
    run_submit(case.inputs)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    end_processes()
    names = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children.read_text().split()]
    assert not any(b"multiattn.video.extraction.isolation" in name for name in names)


def test_with_time_left_a_second_pass_completes_what_was_reduced(case, monkeypatch):
    adapt = Plan._adapt

    def hasty(self) -> None:
        adapt(self) if len(self.levels) == 1 else setattr(self, "_index", len(self.levels) - 1)

    monkeypatch.setattr(Plan, "_adapt", hasty)
    assert in_this_process(case, monkeypatch, budget_hours=1).reduced == 0
    assert case.read() == pytest.approx(case.answers, abs=SAME)


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(Path.unlink, id="missing"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:100]), id="cut off"),
    ],
)
def test_a_file_that_is_whole_again_is_answered_by_the_next_run(case, monkeypatch, how):
    """Missing for a while, as on a network's disk; or still being copied when the run came by."""
    name = case.with_faces[0]
    path, start = case.inputs.videos_dir / name, Plan.start
    content = path.read_bytes()

    def broken_first(self):
        if path.is_file() and path.read_bytes() == content:
            how(path)
        return start(self)

    with monkeypatch.context() as patch:
        patch.setattr(Plan, "start", broken_first)
        in_this_process(case, patch)
    assert case.card()["coverage"]["unreadable"] == 2 and case.read()[name] == PRIOR
    path.write_bytes(content)
    in_this_process(case, monkeypatch)
    assert case.card()["coverage"]["unreadable"] == 1
    assert case.require_no_wrong_row() == 8


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("auto", 2e-2)])
def test_a_gpu_answers_as_the_cpu(pipeline: Pipeline, tmp_path, precision, tolerance):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    answers = []
    sources = {
        "videos_dir": pipeline.dataset / "test_videos",
        "sample_submission": pipeline.dataset / "sample_submission.csv",
    }
    for device, name in (("cuda", precision), ("cpu", "fp32")):
        inputs = SubmitInputs(
            runs=(pipeline.experiment,), **sources, out=tmp_path / device, device=device, precision=name
        )
        answers.append(run_submit(inputs).submission["label"].to_numpy())
    assert answers[0] == pytest.approx(answers[1], abs=tolerance)
