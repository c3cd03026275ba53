"""The case that the tests of submission runs begin with."""

import shutil

import pandas as pd
import pytest
from submit_case import PRIOR, SAME, Case

from multiattn.inference.submit.inputs import SubmitInputs
from multiattn.inference.submit.run import run_submit
from multiattn.tables import SUBMISSION


@pytest.fixture(scope="session")
def undisturbed(pipeline, tmp_path_factory) -> Case:
    """Ten videos: eight with faces, one without, one that is none; answered by an undisturbed run."""
    folder = tmp_path_factory.mktemp("submit")
    (folder / "videos").mkdir()
    first = run_submit(
        SubmitInputs(
            runs=(pipeline.experiment,), videos_dir=pipeline.dataset / "test_videos",
            sample_submission=pipeline.dataset / "sample_submission.csv", out=folder / "first", jobs=1,
        )
    )  # fmt: skip
    status_of = dict(zip(first.submission["filename"], first.videos["status"], strict=True))
    names = []
    for name, status in sorted(status_of.items()):
        for copy in range(4 if status == "ok" else 1):
            names.append(f"{'abcd'[copy]}{name}")
            shutil.copy(pipeline.dataset / "test_videos" / name, folder / "videos" / names[-1])
    assert len(names) == 10 and sorted(set(status_of.values())) == ["no_face", "ok", "unreadable"]
    SUBMISSION.write(pd.DataFrame({"filename": sorted(names), "label": 0.0}), folder / "sample.csv")
    inputs = SubmitInputs(
        runs=(pipeline.experiment,), videos_dir=folder / "videos", sample_submission=folder / "sample.csv",
        out=folder / "out", jobs=1, write_seconds=0.3,
    )  # fmt: skip
    made = Case(folder, inputs, SUBMISSION.read(folder / "sample.csv"))
    run_submit(inputs)
    made.answers = made.read()
    assert sum(label != PRIOR for label in made.answers.values()) == 8
    assert len({round(label / SAME / 3) for label in made.answers.values()}) == 3, "two videos are told apart"
    before = dict(zip(first.submission["filename"], first.submission["label"], strict=True))
    for name, label in made.answers.items():
        assert abs(label - before[name[1:]]) < SAME, "copies of a video are answered alike"
    return made


@pytest.fixture
def case(undisturbed, tmp_path) -> Case:
    """The same with files of its own, which a test may break, and no results yet."""
    return undisturbed.copy(tmp_path)
