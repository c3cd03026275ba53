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
import pandas as pd
import pytest
import torch
from PIL import Image
from submit_case import PRIOR, SAME, Case, in_this_process

from multiattn.inference.scoring_file import write_scoring
from multiattn.inference.submit import classifier as classifier_module
from multiattn.inference.submit import predict as predict_module
from multiattn.inference.submit import run as run_module
from multiattn.inference.submit.classifier import LoadedModels
from multiattn.inference.submit.delivery import cut_thumbnails
from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.plan import Plan
from multiattn.inference.submit.predict import PredictionPass, Setup
from multiattn.inference.submit.run import run_submit
from multiattn.runtime.layout import SUBMISSION_JOURNAL
from multiattn.runtime.processor import TORCH_THREAD
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, OUT_OF_FOLD, SUBMISSION
from multiattn.video.crops.images import decode_crop
from multiattn.video.decoding.frames import FrameReader
from multiattn.video.extraction import engine
from multiattn.video.extraction.extract import encode_crops
from multiattn.video.extraction.isolation import end_processes
from pipeline import Killed, Pipeline, finish


@contextlib.contextmanager
def always_valid(case: Case) -> Iterator[list[int]]:
    """Read each submission that is put there: as soon as there is one, there is a complete valid one ever after."""
    seen, problems, ending, path = [0], [], threading.Event(), case.inputs.out / "submission.csv"

    def read_often() -> None:
        last = None
        while not ending.is_set():
            if seen[0] or path.is_file():
                try:
                    found = path.stat()
                    if (now := (found.st_ino, found.st_mtime_ns)) != last:
                        case.read()
                        last = now
                        seen[0] += 1
                except Exception as error:
                    problems.append(error)
            time.sleep(0.005)

    thread = threading.Thread(target=read_often)
    thread.start()
    try:
        yield seen
    finally:
        ending.set()
        thread.join()
    assert not problems, problems[0]
    assert seen[0], "it was never there"


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_delivers(case):
    """Two files break under it on the way; then it may end."""
    rng, kills = np.random.default_rng(1), 2
    names = case.sample["filename"].tolist()
    broken = tuple(rng.choice(case.with_faces, 2, replace=False))
    with always_valid(case):
        for number in range(kills):
            kept = case.kept()
            with case.process(delay=0.1):
                if kept < len(names) - 1:
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
            assert finish(process) == 0, (case.folder / "log.txt").read_text()
    assert case.require_no_wrong_row(broken=broken) == 6, "every unbroken video is answered in the end"
    assert case.card()["kernel"]["complete"] is True


def test_asked_to_end_it_writes_what_it_knows_first(case):
    with case.process(delay=1, write_seconds=1000) as process:
        case.wait_for(3)
        os.kill(process.pid, signal.SIGTERM)
        assert finish(process) == 128 + signal.SIGTERM
    assert 1 <= case.require_no_wrong_row() < 8
    assert case.card()["kernel"]["complete"] is False
    assert "not answered yet" in str(case.card()["kernel"]["not_judged"])


@pytest.mark.slow
def test_a_machine_too_slow_for_its_budget_delivers_in_time_and_says_what_it_gave_up(case, monkeypatch):
    """The budget counts from the start of the process, which was 1000 seconds before."""
    started = time.monotonic()
    result = in_this_process(case, monkeypatch, delay=0.8, budget_hours=1006 / 3600, age=1000)
    assert time.monotonic() - started < 6 + 20, "a batch at work is waited for, on a busy machine too"
    assert result.seconds < 1006 + 20
    late = result.videos[result.videos["status"] == "late"]
    assert late["message"].str.contains("when the time was over").all() and (late["probability"] == PRIOR).all()
    assert case.card()["kernel"]["budget_hours"] == 1006 / 3600
    assert case.card()["kernel"]["complete"] is True
    assert case.card()["coverage"]["late"] == result.coverage["late"] == len(late) > 0
    assert set(case.read()) == set(case.answers)
    in_this_process(case, monkeypatch)
    assert case.require_no_wrong_row() == 8, "the next run answers what was given up"


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


def test_no_thread_waits_for_ever_with_a_result_that_nobody_takes(case, monkeypatch):
    before = set(threading.enumerate())

    def fail_late(self, *_: object) -> None:
        deadline = time.monotonic() + 60
        while not self._events.full() and time.monotonic() < deadline:
            time.sleep(0.01)
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(predict_module, "MOST_EVENTS", 1)
    monkeypatch.setattr(PredictionPass, "_handle", fail_late)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        in_this_process(case, monkeypatch)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == TORCH_THREAD]


@pytest.mark.parametrize(
    "failure", [None, RuntimeError("CUDA error: unspecified launch failure")], ids=["", "one fails"]
)
def test_two_devices_answer_as_one(case, monkeypatch, caplog, failure):
    calls, logits, together = {}, LoadedModels.logits, threading.Barrier(2)

    def observed(self, *arguments, **named):
        calls[self] = calls.get(self, 0) + 1
        if failure is not None and self is next(iter(calls)) and calls[self] > 2:
            raise failure
        if failure is None:
            together.wait(timeout=60)  # equally fast, whatever the machine's load
        return logits(self, *arguments, **named)

    monkeypatch.setattr(run_module, "pick_devices", lambda _: (torch.device("cpu"), torch.device("cpu")))
    monkeypatch.setattr(Setup, "threads", 2)
    monkeypatch.setattr(classifier_module, "MOST_CPU_BATCH_CROPS", 2)
    monkeypatch.setattr(LoadedModels, "logits", observed)
    with caplog.at_level("INFO", logger="multiattn"):
        result = run_submit(case.inputs)
    assert case.require_no_wrong_row() == 8
    assert case.card()["kernel"]["device"] == "cpu,cpu" and len(calls) == 2
    crops = [int(number) for number in re.search(r"crops predicted: cpu (\d+), cpu (\d+)", caplog.text).groups()]
    assert sum(crops) == result.videos["num_crops"].sum()
    assert ("left out from here on" in caplog.text) == (failure is not None)
    assert failure is not None or min(crops) >= 0.4 * sum(crops), crops


def test_fewer_frames_and_models_are_reported_of_each_video(case, monkeypatch):
    case = case.of(*case.with_faces[:3], *case.faceless)
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "_adapt", lambda self: setattr(self, "_index", len(self.levels) - 1))
        patch.setattr(Plan, "has_time", False)
        result = in_this_process(case, patch, budget_hours=1)
    answered = result.videos[result.videos["status"] == "ok"]
    assert (answered["message"] == "4 frames x 1 model instead of 4 frames x 2 models").all() and len(answered) == 3
    table = FRAME_PREDICTIONS.read(case.inputs.out / "frame_predictions.parquet")
    assert set(table["model"]) == {"demo_tiny/fold0"}
    first = case.read()
    assert first != {name: case.answers[name] for name in first}
    assert result.reduced == case.card()["kernel"]["reduced"] == 3

    with monkeypatch.context() as patch:
        patch.setattr(LoadedModels, "logits", lambda *_, **__: np.full(1, np.nan))
        assert run_submit(case.inputs).reduced == 3
    assert case.read() == first, "a second pass that fails takes no answer away"

    result = in_this_process(case, monkeypatch)  # now there is time, and nothing is reduced any more
    assert case.require_no_wrong_row() == 3 and result.reduced == case.card()["kernel"]["reduced"] == 0
    assert not result.videos["message"].str.contains("instead of").any()


def test_without_a_face_in_any_video_it_stops_loudly(case):
    """A detector that finds nothing would deliver four thousand priors."""
    inputs = case.asking_for(*case.faceless)
    words = r"not one video was answered \(1 no_face, 1 unreadable\).*do not hand it in"
    with pytest.raises(RuntimeError, match=words):
        run_submit(inputs)
    assert set(SUBMISSION.read(case.inputs.out / "submission.csv")["label"]) == {PRIOR}


def test_odd_rows_of_a_sample_cost_nothing_but_themselves(case, monkeypatch):
    """Two that differ in their ending, one elsewhere, under another ending, under none, of pictures; and no file."""
    folder, (first, other, *rest) = case.inputs.videos_dir, case.with_faces
    stems = [Path(name).stem for name in rest]
    shutil.copy(folder / other, folder / f"{Path(first).stem}.mov")
    (folder / "below" / "it").mkdir(parents=True)
    (folder / rest[0]).rename(folder / "below" / "it" / rest[0])
    (folder / rest[1]).rename(folder / f"{stems[1]}.avi")
    (folder / "below" / "pictures").mkdir()
    for frame in FrameReader(folder / rest[3], 1000):
        Image.fromarray(frame.image).save(folder / f"below/pictures/{frame.index}.png")
    for copy in ("x", "y"):
        (folder / copy).mkdir()
        shutil.copy(folder / rest[3], folder / copy / "twice.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "pipe.mp4")
    absent = ["loop.mp4", "pipe.mp4", "twice.mp4", "n" * 300 + ".mp4", "../videos/" + first, "gone.mp4"]
    names = [first, f"{Path(first).stem}.mov", rest[0], rest[1], stems[2], "pictures.mp4", *absent]
    result = in_this_process(dataclasses.replace(case, inputs=case.asking_for(*names)), monkeypatch)
    answers = dict(zip(result.submission["filename"], result.submission["label"], strict=True))
    expected = [case.answers[name] for name in (first, other, *rest[:4])]
    assert [answers[name] for name in names] == pytest.approx([*expected, *[PRIOR] * len(absent)], abs=SAME)
    assert result.videos["status"].tolist() == ["ok"] * 6 + ["missing"] * len(absent)
    said = dict(zip(names, result.videos["message"], strict=True))
    assert "a link to nothing" in said["loop.mp4"] and "pipe" in said["pipe.mp4"]
    assert "x/twice.mp4 and y/twice.mp4" in said["twice.mp4"] and said["gone.mp4"] == "not in the folder of videos"


def test_without_a_sample_every_video_is_answered_wherever_it_lies(case, monkeypatch):
    folder, (first, other) = case.inputs.videos_dir, case.with_faces[:2]
    for name in {*case.answers} - {first, other}:
        (folder / name).unlink()
    (folder / "below").mkdir()
    (folder / other).rename(folder / "below" / first)
    result = in_this_process(case, monkeypatch, sample_submission=None)
    assert result.submission["filename"].tolist() == sorted([first, f"below/{first}"])
    answers = result.submission.set_index("filename")["label"]
    assert answers[first] == pytest.approx(case.answers[first], abs=SAME)
    assert answers[f"below/{first}"] == pytest.approx(case.answers[other], abs=SAME)


def test_a_folder_with_none_of_the_samples_videos_is_refused_with_what_both_hold(case):
    with pytest.raises(
        ValueError, match=f"none of the 2 videos .* first is a.mp4; the folder holds .*{case.with_faces[0]}"
    ):
        run_submit(case.asking_for("a.mp4", "b.mp4"))


def test_room_is_asked_for_before_the_work(case, monkeypatch, tmp_path):
    monkeypatch.setattr(run_module.PredictionPass, "run", lambda self: pytest.fail("begun without room"))
    monkeypatch.setattr(run_module, "KAGGLE_WORKING", tmp_path)
    (tmp_path / "big").write_bytes(b"." * 5000)
    monkeypatch.setattr(run_module, "KAGGLE_WORKING_BYTES", 9000)
    with pytest.raises(ValueError, match=r"out: expected room for 0 MB of results, found 0 MB \(9e-06 GB less"):
        run_submit(case.inputs)
    assert set(case.read().values()) == {PRIOR}
    monkeypatch.setattr(run_module, "KAGGLE_WORKING_BYTES", 10**9)
    run_module.require_room(tmp_path, 10**6)
    with pytest.raises(ValueError, match=r"room for 64,000,000 MB of results, found [\d,]+ MB\. Delete"):
        run_module.require_room(Path("/"), 10**12)


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


@pytest.mark.slow
def test_a_finished_submission_survives_another_setting_that_is_killed(undisturbed, case, monkeypatch):
    shutil.copytree(undisturbed.inputs.out, case.inputs.out)
    before = {path.name: path.read_bytes() for path in case.inputs.out.iterdir() if path.suffix != ".jsonl"}
    rule = ScoringRule(tta="flip", experiments=(case.inputs.runs[0].name,), out_of_fold={"log_loss": 0.5})
    write_scoring(rule, case.folder / "flip.json", {})
    keep, other = run_module._Run._keep, {"scoring": str(case.folder / "flip.json")}

    def killed_at_the_fourth(self, *result) -> None:
        keep(self, *result)
        self._write_on_the_way()
        if self.answered == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run_module._Run, "_keep", killed_at_the_fourth)
        run_submit(dataclasses.replace(case.inputs, **other))
    assert {name: (case.inputs.out / name).read_bytes() for name in before} == before
    in_this_process(case, monkeypatch, **other)
    assert case.card()["kernel"]["complete"] is True and case.card()["scoring"]["tta"] == "flip"
    monkeypatch.setattr(run_module.PredictionPass, "run", lambda self: pytest.fail("the first results are there still"))
    run_submit(case.inputs)
    assert case.require_no_wrong_row() == 8


def test_a_run_added_or_changed_costs_that_run_only(pipeline: Pipeline, case, monkeypatch, tmp_path):
    runs, case = shutil.copytree(pipeline.experiment, tmp_path / "demo_tiny"), case.of(*case.with_faces[:3])
    predicted: set[str] = set()
    logits = LoadedModels.logits

    def counted(self, number, *rest, **named):
        predicted.add(self.models[number].name)
        return logits(self, number, *rest, **named)

    monkeypatch.setattr(LoadedModels, "logits", counted)
    run_submit(dataclasses.replace(case.inputs, runs=(runs / "fold0",)))
    predicted.clear()
    run_submit(dataclasses.replace(case.inputs, runs=(runs,)))
    assert predicted == {"demo_tiny/fold1"} and case.require_no_wrong_row() == 3
    predicted.clear()
    settings, first = runs / "fold0" / "experiment.json", case.read()
    settings.write_text(settings.read_text().replace('"image_size": 64', '"image_size": 32'))
    run_submit(dataclasses.replace(case.inputs, runs=(runs,)))
    assert predicted == {"demo_tiny/fold0"} and case.read() != first


def test_the_rules_views_are_predicted_anew_and_those_without_are_kept_beside_them(undisturbed, case, caplog):
    shutil.copytree(undisturbed.inputs.out, case.inputs.out)
    (run,) = case.inputs.runs
    run = shutil.copytree(run, case.folder / run.name)
    write_scoring(
        ScoringRule(tta="flip", experiments=(run.name,), out_of_fold={"log_loss": 0.5}), run / "scoring.json", {}
    )
    inputs, names = dataclasses.replace(case.inputs, runs=(run,)), case.with_faces
    assert inputs.rule.tta == "flip"
    with caplog.at_level("INFO", "multiattn"):
        run_submit(inputs)
    assert "8 videos are predicted anew: what is kept is of other models, views," in caplog.text
    assert case.card()["scoring"]["tta"] == "flip"
    table = FRAME_PREDICTIONS.read(case.inputs.out / "frame_predictions.parquet")
    alone = FRAME_PREDICTIONS.read(undisturbed.inputs.out / "frame_predictions.parquet")
    pd.testing.assert_frame_equal(table.iloc[:, :5], alone.iloc[:, :5])
    assert np.abs(table["logit"] - alone["logit"]).max() > 1e-5
    np.testing.assert_allclose(table["distance"], alone["distance"], atol=1e-4)
    flipped = case.read()
    run_submit(dataclasses.replace(inputs, scoring="none", tta="none"))
    assert case.require_no_wrong_row() == len(names), "the answers without views, from what was kept of them"
    caplog.clear()
    with caplog.at_level("INFO", "multiattn"):
        run_submit(inputs)
    assert case.read() == flipped and "predicted anew" not in caplog.text


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
    video = result.videos.loc[result.videos["status"] == "ok", "video_id"].iloc[0]
    surest = result.surest_crop(video)
    predictions = FRAME_PREDICTIONS.read(undisturbed.inputs.out / "frame_predictions.parquet")
    means = predictions[predictions["video_id"] == video].groupby(["frame_index", "track"])["logit"].mean()
    shown = decode_crop(cut_thumbnails([surest], workers=1)[video], 64, video).astype(float)
    work = surest[0]
    crops = encode_crops(work.task, work.settings)[0].crops
    distance = {
        (crop.frame_index, crop.track): np.abs(decode_crop(crop.jpeg, 64, video) - shown).mean() for crop in crops
    }
    assert min(distance, key=distance.get) == means.abs().idxmax(), "the crop the models are surest of"


def test_an_outside_model_joins_a_finished_submission_and_no_network_runs_again(undisturbed, case, monkeypatch):
    shutil.copytree(undisturbed.inputs.out, case.inputs.out)
    kept = OUT_OF_FOLD.read(case.inputs.out / "oof.csv")
    pd.testing.assert_frame_equal(kept, OUT_OF_FOLD.read(case.inputs.runs[0] / "oof.csv"))
    monkeypatch.setattr(run_module.PredictionPass, "run", lambda self: pytest.fail("it was all done"))
    rule = ScoringRule(experiments=(case.inputs.runs[0].name,), outside=("x",), out_of_fold={"log_loss": 0.5})
    write_scoring(rule, case.folder / "scoring.json", {})
    SUBMISSION.write(case.sample.assign(label=0.9).iloc[::-1], case.folder / "x.csv")
    words = {"scoring": str(case.folder / "scoring.json"), "outside": (f"x={case.folder / 'x.csv'}",)}
    run_submit(dataclasses.replace(case.inputs, **words))
    expected = {name: 0.9 if label == PRIOR else (label + 0.9) / 2 for name, label in case.answers.items()}
    assert case.read() == pytest.approx(expected, abs=SAME)


def test_a_rerun_with_nothing_to_do_names_the_precision_of_its_results(undisturbed, case):
    shutil.copytree(undisturbed.inputs.out, case.inputs.out)
    journal = case.inputs.out / SUBMISSION_JOURNAL
    journal.write_text(re.sub(r'"precisions":\[[^]]*]', '"precisions":["bf16","fp32"]', journal.read_text()))
    run_submit(case.inputs)
    assert case.card()["kernel"]["precision"] == "bf16, fp32"


@pytest.mark.slow
def test_the_processes_are_gone_when_it_is_over(case):
    run_submit(case.asking_for(case.with_faces[0]))
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
    name, case = case.with_faces[0], case.of(*case.with_faces[:2], *case.faceless)
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
    assert case.require_no_wrong_row() == 2


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("auto", 2e-2)])
def test_a_gpu_answers_as_the_cpu(pipeline: Pipeline, tmp_path, precision, tolerance):
    answers = []
    sources = {
        "videos_dir": pipeline.dataset / "test_videos",
        "sample_submission": pipeline.dataset / "sample_submission.csv",
    }
    for device, name in (("cuda", precision), ("cpu", "fp32")):
        inputs = SubmitInputs(
            runs=(pipeline.experiment,), **sources, out=tmp_path / device, device=device, precision=name
        )
        result = run_submit(inputs)
        assert min(result.stage_seconds[name] for name in ("decode", "search", "classify")) > 0
        answers.append(result.submission["label"].to_numpy())
    assert answers[0] == pytest.approx(answers[1], abs=tolerance)
