"""The inference notebook, executed headless with networking blocked."""

from pathlib import Path

import nbformat
import pytest

from multiattn.inference.kernel import find_inputs
from multiattn.inference.notebook import NOTEBOOK, execute_notebook
from multiattn.tables import SUBMISSION
from walk import Pipeline

BLOCK_NETWORK = """
import socket
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"networking is blocked: {address}")
    return _connect(self, address)
def getaddrinfo(host, *arguments, **named):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        raise OSError(f"networking is blocked: {host}")
    return _getaddrinfo(host, *arguments, **named)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


def environment(pipeline: Pipeline, folder: Path) -> dict[str, str]:
    (folder / "blocked").mkdir()
    (folder / "blocked" / "sitecustomize.py").write_text(BLOCK_NETWORK)
    return {
        "PYTHONPATH": str(folder / "blocked"),
        "MULTIATTN_RUNS": str(pipeline.experiment),
        "MULTIATTN_VIDEOS_DIR": str(pipeline.dataset / "test_videos"),
        "MULTIATTN_SAMPLE_SUBMISSION": str(pipeline.dataset / "sample_submission.csv"),
        "MULTIATTN_OUT": str(folder / "out"),
        "MULTIATTN_FACES": str(folder / "faces"),
    }


def test_the_notebook_makes_a_valid_submission_offline(pipeline, tmp_path):
    execute_notebook(tmp_path / "executed.ipynb", environment(pipeline, tmp_path))
    submission = SUBMISSION.read(tmp_path / "out" / "submission.csv")
    sample = SUBMISSION.read(pipeline.dataset / "sample_submission.csv")
    assert submission["filename"].tolist() == sample["filename"].tolist()
    assert submission["label"].between(0.01, 0.99).all()
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    shown = [kind for cell in executed.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert "image/png" in shown, "the histogram is missing"
    assert "text/html" in shown, "the head of the submission is missing"
    text = "".join(out.get("text", "") for cell in executed.cells for out in cell.get("outputs", []))
    assert "predict" in text and "100%" in text, "no progress bar was shown"


def test_blocking_the_network_really_blocks_it(tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK_NETWORK)
    probe = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("import urllib.request\nurllib.request.urlopen('http://192.0.2.1', timeout=5)")
        ]
    )
    nbformat.write(probe, tmp_path / "probe.ipynb")
    with pytest.raises(ValueError, match="networking is blocked"):
        execute_notebook(
            tmp_path / "out.ipynb", {"PYTHONPATH": str(tmp_path / "blocked")}, notebook=tmp_path / "probe.ipynb"
        )
    assert (tmp_path / "out.ipynb").is_file(), "the executed copy is kept when a cell fails"


def test_the_notebook_is_thin_and_clean():
    document = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in document.cells if cell.cell_type == "code"]
    assert sum(len(cell.source.splitlines()) for cell in code) < 40
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_inputs_are_found_in_the_repository(pipeline, tmp_path, monkeypatch):
    for name in ("RUNS", "VIDEOS_DIR", "SAMPLE_SUBMISSION", "OUT", "FACES"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set").symlink_to(pipeline.dataset)
    (tmp_path / "runs").symlink_to(pipeline.runs)
    inputs = find_inputs(tmp_path)
    assert inputs.runs == (tmp_path / "runs" / "demo_tiny",)
    assert inputs.videos_dir == tmp_path / "data" / "set" / "test_videos"
    assert inputs.sample_submission == tmp_path / "data" / "set" / "sample_submission.csv"
    assert inputs.out == tmp_path / "submissions" / "demo_tiny"


@pytest.mark.parametrize(
    ("folders", "missing"),
    [
        pytest.param([], "trained runs", id="empty"),
        pytest.param(["runs/x/fold0"], "test_videos", id="runs only"),
        pytest.param(["runs/x/fold0", "data/set/test_videos"], "sample_submission.csv", id="no sample"),
    ],
)
def test_what_is_not_found_is_named(tmp_path, folders, missing):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    if folders:
        (tmp_path / "runs/x/fold0/best.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=missing):
        find_inputs(tmp_path)
