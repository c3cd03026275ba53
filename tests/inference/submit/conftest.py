"""The case that the tests of submission runs begin with."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from submit_case import PRIOR, SAME, Case

from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.run import run_submit
from multiattn.tables import SUBMISSION, VIDEO_PREDICTIONS


@pytest.fixture(scope="session")
def undisturbed(pipeline, submission, build_once) -> Case:
    """Ten videos: eight with faces, one without, one that is none; answered by an undisturbed run."""
    videos = VIDEO_PREDICTIONS.read(submission / "video_predictions.csv")
    ids = videos["video_id"].str.removeprefix("folder/") + ".mp4"
    status_of = dict(zip(ids, videos["status"], strict=True))
    copies = {f"{'abcd'[n]}{name}": name for name in status_of for n in range(4 if status_of[name] == "ok" else 1)}
    assert len(copies) == 10 and sorted(set(status_of.values())) == ["no_face", "ok", "unreadable"]

    def inputs(folder: Path) -> SubmitInputs:
        paths = {"videos_dir": folder / "videos", "sample_submission": folder / "sample.csv", "out": folder / "out"}
        return SubmitInputs(runs=(pipeline.experiment,), **paths, jobs=1, write_seconds=0.3)

    def make(folder: Path) -> None:
        (folder / "videos").mkdir(parents=True)
        for copy, name in copies.items():
            shutil.copy(pipeline.dataset / "test_videos" / name, folder / "videos" / copy)
        SUBMISSION.write(pd.DataFrame({"filename": sorted(copies), "label": 0.0}), folder / "sample.csv")
        run_submit(inputs(folder))

    folder = build_once("undisturbed_submission", make)
    made = Case(folder, inputs(folder), SUBMISSION.read(folder / "sample.csv"))
    made.answers = made.read()
    assert sum(label != PRIOR for label in made.answers.values()) == 8
    assert len({round(label / SAME / 3) for label in made.answers.values()}) == 3, "two videos are told apart"
    before = SUBMISSION.read(submission / "submission.csv").set_index("filename")["label"]
    for name, label in made.answers.items():
        assert abs(label - before[name[1:]]) < SAME, "copies of a video are answered alike"
    return made


@pytest.fixture
def case(undisturbed, tmp_path) -> Case:
    """The same with files of its own, which a test may break, and no results yet."""
    return undisturbed.copy(tmp_path)
