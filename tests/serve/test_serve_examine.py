"""The work in the processes of `multiattn serve`: the record tells the truth of the file and of the networks."""

import pickle
from pathlib import Path

import pytest

from multiattn.runtime.layout import packaged_run
from multiattn.serve import examine, workers
from multiattn.serve.workers import Clip, DetectorOptions, ExaminationError


class Changing:
    """A detector beside which somebody changes the file."""

    def __init__(self, change) -> None:
        self.change = change

    def score(self, files, faces):
        self.change(files[0])


@pytest.mark.parametrize(
    ("before", "during", "words"),
    [
        pytest.param(lambda path: None, lambda path: path.write_bytes(b"other"), "changed while", id="changed"),
        pytest.param(lambda path: None, lambda path: path.unlink(), "no longer there", id="removed"),
        pytest.param(lambda path: path.unlink(), lambda path: None, "no longer there", id="gone before"),
        pytest.param(
            lambda path: path.rename(path.with_name("b")) and path.symlink_to("b"),
            lambda path: None, "a link has taken its place", id="a link",
        ),
    ],
)  # fmt: skip
def test_a_file_that_changes_before_its_answer_has_none(before, during, words, tmp_path, monkeypatch):
    path = tmp_path.resolve() / "a.mp4"
    path.write_bytes(b"film")
    before(path)
    monkeypatch.setattr(examine, "_loaded", lambda _: (Changing(during), {}))
    clip = Clip(path=path, name="a.mp4", folder=tmp_path / "job", max_seconds=9)
    with pytest.raises(ExaminationError, match=words):
        examine.examine(DetectorOptions(), clip)
    assert not Path(clip.folder).exists()


def test_networks_are_in_memory_before_the_first_file_and_described_as_they_were_then():
    options = DetectorOptions(runs=(packaged_run(),), device="cpu", precision="fp32")
    model = examine.examine(options, None)
    detector, described = examine._loaded(options)
    assert set(detector._loaded) == {it.name for it in detector.models} and described is model


@pytest.mark.parametrize(("runtime", "least"), [("torch", 300), ("onnxruntime", 1800)])
def test_the_first_process_has_time_to_export_its_networks(runtime, least, monkeypatch):
    given = []

    class Process:
        def __init__(self, *_, **__) -> None:
            self.calls = 0

        def call(self, argument: bytes, seconds: float) -> tuple[str, bytes]:
            given.append((pickle.loads(argument)[0].runtime, seconds))
            return "done", pickle.dumps({})

    monkeypatch.setattr(workers, "IsolatedProcess", Process)
    workers.ExaminerProcess(DetectorOptions(runtime=runtime))
    ((asked, seconds),) = given
    assert asked == runtime and least <= seconds <= least + 300
