"""A submission of priors before anything is imported that takes seconds."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from multiattn.inference.submit.inputs import write_first_answer
from multiattn.tables import SUBMISSION


def test_it_is_a_complete_submission_in_the_samples_order(tmp_path):
    sample = tmp_path / "sample.csv"
    sample.write_text('filename,label\nb.mp4,0\n"a, b.mp4",1\nc.mp4,0.2\n')
    write_first_answer(sample, tmp_path / "out")
    table = SUBMISSION.read(tmp_path / "out" / "submission.csv")
    assert table["filename"].tolist() == SUBMISSION.read(sample)["filename"].tolist() == ["b.mp4", "a, b.mp4", "c.mp4"]
    assert table["label"].tolist() == [0.5] * 3


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="no file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"filename,label\n", id="no rows"),
        pytest.param(b"name,label\na.mp4,0\n", id="other columns"),
        pytest.param(b"filename,label\na.mp4,0\na.mp4,0\n", id="a name twice"),
        pytest.param(b"filename,label\n,0\n", id="a row without a name"),
        pytest.param(b"\xff\xfe\x00", id="not text"),
    ],
)
def test_what_is_no_sample_is_left_to_the_run(content, tmp_path):
    if content is not None:
        (tmp_path / "sample.csv").write_bytes(content)
    write_first_answer(tmp_path / "sample.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_submission_that_is_there_stays(tmp_path):
    (tmp_path / "sample.csv").write_text("filename,label\na.mp4,0\n")
    (tmp_path / "submission.csv").write_text("filename,label\na.mp4,0.9\n")
    write_first_answer(tmp_path / "sample.csv", tmp_path)
    assert (tmp_path / "submission.csv").read_text().endswith("a.mp4,0.9\n")


def test_submit_writes_it_before_it_imports_torch(tmp_path):
    (tmp_path / "sample.csv").write_text("filename,label\na.mp4,0\n")
    code = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name in ("torch", "pandas"):
            raise ImportError(f"{name} takes seconds")

sys.meta_path.insert(0, Refuse())
from multiattn.stages.submit import main
main("--runs x --videos-dir x --sample-submission sample.csv --out out".split())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode and "takes seconds" in ended.stderr
    assert Path(tmp_path / "out" / "submission.csv").read_text() == "filename,label\na.mp4,0.5\n"


def test_a_notebook_older_than_the_code_says_how_to_make_it_anew():
    with pytest.raises(ImportError, match="make the bundle anew with `multiattn bundle`"):
        importlib.import_module("multiattn.inference.kernel")
