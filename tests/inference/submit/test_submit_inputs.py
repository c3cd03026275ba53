"""A submission of priors before anything is imported that takes seconds."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from multiattn.inference.submit import inputs
from multiattn.inference.submit.inputs import KAGGLE_INPUT, SubmitInputs, find_inputs, write_first_answer
from multiattn.tables import SAMPLE, SUBMISSION


def answering(folder: Path, sample: Path | None) -> SubmitInputs:
    """Inputs that answer a sample's rows, or without one the videos of `folder/videos`, in `folder/out`."""
    return SubmitInputs(
        runs=(Path("runs/any"),), videos_dir=folder / "videos", sample_submission=sample, out=folder / "out"
    )


@pytest.mark.parametrize(
    "content",
    [
        pytest.param('filename,label\nb.mp4,0\n"a, b.mp4",1\nc.mp4,0.2\n', id="as the competition's"),
        pytest.param('\ufefffilename,label\r\nb.mp4,0\r\n"a, b.mp4",\r\nc.mp4,\r\n', id="saved by a spreadsheet"),
        pytest.param('filename\nb.mp4\n"a, b.mp4"\nc.mp4\n', id="without labels"),
        pytest.param('label,filename\nx,b.mp4\nx,"a, b.mp4"\nx,c.mp4\n', id="other labels"),
    ],
)
def test_it_is_a_complete_submission_in_the_samples_order(content, tmp_path):
    sample = tmp_path / "sample.csv"
    sample.write_text(content, newline="")
    write_first_answer(answering(tmp_path, sample))
    table = SUBMISSION.read(tmp_path / "out" / "submission.csv")
    assert table["filename"].tolist() == SAMPLE.read(sample)["filename"].tolist() == ["b.mp4", "a, b.mp4", "c.mp4"]
    assert table["label"].tolist() == [0.5] * 3


def test_a_sample_that_is_not_there_is_asked_for_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nope.csv: no sample submission .* Pass the competition's") as error:
        SAMPLE.read(tmp_path / "nope.csv")
    assert "Make it" not in str(error.value)


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
    write_first_answer(answering(tmp_path, tmp_path / "sample.csv"))
    assert not (tmp_path / "out").exists()


def test_a_submission_that_is_there_stays(tmp_path):
    (tmp_path / "sample.csv").write_text("filename,label\na.mp4,0\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "submission.csv").write_text("filename,label\na.mp4,0.9\n")
    write_first_answer(answering(tmp_path, tmp_path / "sample.csv"))
    assert (tmp_path / "out" / "submission.csv").read_text().endswith("a.mp4,0.9\n")


def test_without_a_sample_every_clip_of_the_folder_is_a_row_by_its_path(tmp_path):
    for name in ("b.mp4", "a/c.MOV", "a/b.mp4", ".hidden.mp4", "notes.txt", "frames/001.png", "frames/002.png"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    write_first_answer(answering(tmp_path, None))
    table = SUBMISSION.read(tmp_path / "out" / "submission.csv")
    assert table["filename"].tolist() == ["a/b.mp4", "a/c.MOV", "b.mp4", "frames"] and set(table["label"]) == {0.5}
    assert answering(tmp_path, None).sample["filename"].tolist() == table["filename"].tolist()


@pytest.mark.parametrize("is_there", [False, True])
def test_without_a_sample_a_folder_without_videos_is_refused_before_anything_is_written(is_there, tmp_path):
    if is_there:
        (tmp_path / "videos").mkdir()
    with pytest.raises(FileNotFoundError, match="videos: expected a folder of videos, found none"):
        write_first_answer(answering(tmp_path, None))
    assert not (tmp_path / "out").exists()


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


def test_on_kaggle_only_one_folder_of_videos_with_its_sample_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("MULTIATTN_RUNS", str(tmp_path / "kit" / "runs" / "a"))
    for name in ("VIDEOS_DIR", "SAMPLE_SUBMISSION"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    for name in ("aaa", "competition"):
        (tmp_path / "input" / name / "test_videos").mkdir(parents=True)
    (tmp_path / "input/competition/sample_submission.csv").touch()
    found = find_inputs(tmp_path / "kit")
    assert found.videos_dir == tmp_path / "input/competition/test_videos"
    assert found.sample_submission == tmp_path / "input/competition/sample_submission.csv"
    (tmp_path / "input/aaa/sample_submission.csv").touch()
    with pytest.raises(ValueError, match=r"expected one folder test_videos, found .*aaa.*MULTIATTN_VIDEOS_DIR"):
        find_inputs(tmp_path / "kit")


def test_on_kaggle_a_bundle_without_runs_takes_those_that_were_trained_there(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "KAGGLE_INPUT", tmp_path / "input")
    for name in ("RUNS", "VIDEOS_DIR", "SAMPLE_SUBMISSION", "OUT", "SCORING", "WEIGHTS"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    (tmp_path / "input/competition/test_videos").mkdir(parents=True)
    (tmp_path / "input/competition/sample_submission.csv").touch()
    bundle, run = tmp_path / "input/me/bundle", tmp_path / "input/notebooks/me/training/runs/dfdc_b4"
    for path in (bundle / "bundle.json", bundle / "weights" / "backbone.pth", run / "fold1" / "best.safetensors"):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    found = find_inputs(bundle)
    assert (found.runs, found.weights) == ((run,), None), "the bundle's weights are the backbone's"
    (tmp_path / "input/other/runs/b/fold0").mkdir(parents=True)
    (tmp_path / "input/other/runs/b/fold0/best.safetensors").touch()
    with pytest.raises(ValueError, match=r"expected one trained runs .*MULTIATTN_RUNS"):
        find_inputs(bundle)
    (bundle / "runs/c/fold0").mkdir(parents=True)
    (bundle / "runs/c/fold0/best.safetensors").touch()
    assert find_inputs(bundle).runs == (bundle / "runs" / "c",), "runs of its own come first"


def test_on_colab_runs_lie_beside_their_bundle_and_videos_anywhere(tmp_path, monkeypatch):
    for name in ("RUNS", "VIDEOS_DIR", "SAMPLE_SUBMISSION", "OUT", "SCORING", "WEIGHTS"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    content, data = tmp_path / "content", tmp_path / "content" / "dfdc"
    mine = content / "drive" / "MyDrive" / "deepfakes"
    monkeypatch.setattr(inputs, "COLAB_CONTENT", content)
    monkeypatch.setattr(inputs, "KAGGLE_INPUT", tmp_path / "input")
    (tmp_path / "input" / "by_kagglehub").mkdir(parents=True)
    for path in (mine / "bundle/bundle.json", mine / "runs/dfdc_b4/fold1/best.safetensors"):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    (data / "test_videos").mkdir(parents=True)
    (data / "sample_submission.csv").touch()
    found = find_inputs(mine / "bundle")
    assert (found.runs, found.out) == ((mine / "runs/dfdc_b4",), mine / "submissions/dfdc_b4"), "a Drive keeps them"
    assert (found.videos_dir, found.sample_submission) == (data / "test_videos", data / "sample_submission.csv")
    hidden = content / "drive" / ".Trash-0" / "dfdc"
    (hidden / "test_videos").mkdir(parents=True)
    (hidden / "sample_submission.csv").touch()
    (content / "drive" / "dfdc").symlink_to(data)
    assert find_inputs(mine / "bundle").videos_dir == data / "test_videos", "neither one in a bin nor a link"
    (mine / "runs/other/fold0").mkdir(parents=True)
    (mine / "runs/other/fold0/best.safetensors").touch()
    with pytest.raises(ValueError, match=r"expected one trained runs .*dfdc_b4, .*other\. .*MULTIATTN_RUNS"):
        find_inputs(mine / "bundle")


def test_a_clone_of_the_repository_on_colab_has_its_own_data(tmp_path, monkeypatch):
    for name in ("RUNS", "VIDEOS_DIR", "SAMPLE_SUBMISSION", "OUT", "SCORING", "WEIGHTS"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    clone = tmp_path / "content" / "clone"
    monkeypatch.setattr(inputs, "COLAB_CONTENT", clone.parent)
    monkeypatch.setattr(inputs, "KAGGLE_INPUT", tmp_path / "input")
    for place in (clone / "data", clone.parent / "dfdc"):
        (place / "test_videos").mkdir(parents=True)
        (place / "sample_submission.csv").touch()
    with pytest.raises(FileNotFoundError, match=r"runs: expected trained runs .* none\. Name yours by MULTIATTN_RUNS"):
        find_inputs(clone)
    (clone / "runs/dfdc_b4/fold0").mkdir(parents=True)
    (clone / "runs/dfdc_b4/fold0/best.safetensors").touch()
    found = find_inputs(clone)
    assert (found.videos_dir, found.out) == (clone / "data/test_videos", clone / "submissions/dfdc_b4")


def test_a_notebook_older_than_the_code_says_how_to_make_it_anew():
    with pytest.raises(ImportError, match="make the bundle anew with `multiattn bundle`"):
        importlib.import_module("multiattn.inference.kernel")
    with pytest.raises(ValueError, match=r"notebook is older than the code .* of the same bundle"):
        find_inputs(KAGGLE_INPUT)
