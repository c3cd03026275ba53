"""The inference notebook, executed headless with networking blocked: from the repository, and out of a bundle."""

import hashlib
import importlib.util
import json
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from bare_machine import EXECUTE, kaggle_command, make_bare_environment, packages_to_bundle
from submit_case import BLOCK_NETWORK

from multiattn.__main__ import main
from multiattn.inference.kit.notebook import NOTEBOOK, execute_notebook
from multiattn.inference.submit.inputs import find_inputs
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION
from pipeline import Pipeline, run

FLOAT16_CHANGES = 1e-4
"""At most, of a probability: a bundle promises 1e-3, and here the answers are 2e-3 from the prior."""


def environment(pipeline: Pipeline, folder: Path) -> dict[str, str]:
    (folder / "blocked").mkdir()
    (folder / "blocked" / "sitecustomize.py").write_text(BLOCK_NETWORK)
    return {
        "PYTHONPATH": str(folder / "blocked"),
        "MULTIATTN_RUNS": str(pipeline.experiment),
        "MULTIATTN_VIDEOS_DIR": str(pipeline.dataset / "test_videos"),
        "MULTIATTN_SAMPLE_SUBMISSION": str(pipeline.dataset / "sample_submission.csv"),
        "MULTIATTN_OUT": str(folder / "out"),
    }


def bundle_words(pipeline: Pipeline, out: Path, *more: object) -> list[str]:
    options = ("--check-faces", pipeline.faces, "--check-crops", 8, *more)
    return [str(word) for word in ("bundle", "--runs", pipeline.experiment, "--out", out, *options)]


@pytest.fixture
def submitted(submission):
    """The answers of `multiattn submit` with the runs as they were trained."""
    return SUBMISSION.read(submission / "submission.csv")


def require_same(found: Path, expected) -> None:
    submission = SUBMISSION.read(found)
    assert submission["filename"].tolist() == expected["filename"].tolist()
    np.testing.assert_allclose(submission["label"], expected["label"], rtol=0, atol=FLOAT16_CHANGES)


@pytest.mark.slow
def test_the_notebook_of_a_bundle_makes_a_valid_submission_offline_by_its_own_code_and_runs_of_two_recipes(
    pipeline, box_run, tmp_path
):
    kit, both = tmp_path / "kit", (pipeline.experiment, box_run)
    inputs = ("--videos-dir", pipeline.dataset / "test_videos", "--sample-submission")
    inputs += (pipeline.dataset / "sample_submission.csv", "--jobs", 1)
    run("submit", "--runs", *both, *inputs, "--out", tmp_path / "submitted")
    faces = ("--check-faces", pipeline.faces, box_run.parent / "faces", "--check-crops", 8)
    run("bundle", "--runs", *both, "--out", kit, *faces)
    variables = environment(pipeline, tmp_path)
    del variables["MULTIATTN_RUNS"]
    execute_notebook(tmp_path / "executed.ipynb", variables, notebook=kit / "inference.ipynb")
    require_same(tmp_path / "out" / "submission.csv", SUBMISSION.read(tmp_path / "submitted" / "submission.csv"))
    frames = FRAME_PREDICTIONS.read(tmp_path / "out" / "frame_predictions.parquet")
    counts = {"demo_box/fold0": 3, "demo_box/fold1": 3, "demo_tiny/fold0": 4, "demo_tiny/fold1": 4}
    assert frames.groupby(["video_id", "model"]).size().unstack().to_dict("records") == [counts] * 2, "each its frames"
    assert not list(kit.rglob("__pycache__")), "what is left would be refused the next time"
    executed = nbformat.read(tmp_path / "executed.ipynb", as_version=4)
    outputs = [out for cell in executed.cells for out in cell.get("outputs", [])]
    text = "".join(out.get("text", "") + out.get("data", {}).get("text/plain", "") for out in outputs)
    assert str(kit / "src" / "multiattn") in text
    assert all(str(kit / "runs" / name) in text for name in ("demo_tiny", "demo_box"))
    shown = [kind for out in outputs for kind in out.get("data", {})]
    assert shown.count("image/png") == 2, "the histogram, and the least certain videos"
    assert shown.count("text/html") == 2, "the table of statuses, and the head of the submission"
    assert "100%" in "".join(out.get("text", "") for out in outputs), "no progress bar was shown"
    assert not [out for out in outputs if "Warning" in out.get("text", "")], "warnings are no part of the result"


NOTEBOOKS = [pytest.param(NOTEBOOK.with_name(f"{name}.ipynb"), id=name) for name in ("inference", "training")]


@pytest.fixture(params=NOTEBOOKS)
def first_cell(request, tmp_path, monkeypatch) -> Callable[[Path], dict]:
    """Execute a notebook's first cell in a folder, with `tmp_path/input` as /kaggle/input and `tmp_path/content` as
    /content; returns its names."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    cells = nbformat.read(request.param, as_version=4).cells
    source = next(cell.source for cell in cells if cell.cell_type == "code")

    def execute(here: Path) -> dict:
        monkeypatch.chdir(here)
        names: dict = {}
        exec(source.replace("/kaggle/input", f"{tmp_path}/input").replace('"/content"', f'"{tmp_path}/content"'), names)
        return names

    return execute


@pytest.mark.parametrize("first_cell", NOTEBOOKS[:1], indirect=True)
def test_the_notebook_finds_the_repositorys_code(first_cell):
    found, repository = first_cell(NOTEBOOK.parent), NOTEBOOK.parents[1]
    assert (found["root"], found["code"]) == (repository, repository / "src" / "multiattn")


def make_kit(folder: Path) -> Path:
    """A bundle as the first cell sees one."""
    files = {"src/multiattn/__init__.py": b"", "wheels/requirements.txt": b"av\n", "wheels/av.whl": b"wheel"}
    for name, content in {**files, "experiment.json": b"{}"}.items():  # the latter of one to train from
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    (folder / "bundle.json").write_text(json.dumps({"kind": "multiattn bundle", "sha256": digests}))
    return folder


def test_on_kaggle_only_a_bundles_code_is_taken_whatever_else_lies_there(first_cell, tmp_path):
    kit = make_kit(tmp_path / "input" / "datasets" / "me" / "my-bundle")
    other = tmp_path / "input" / "aaa"
    (other / "src" / "multiattn").mkdir(parents=True)
    for content in ("{}", "[1]", '{"kind": "other"}', "\0"):
        (other / "bundle.json").write_text(content)
        assert first_cell(tmp_path)["code"] == kit / "src" / "multiattn"
    assert sys.dont_write_bytecode and os.environ["PYTHONDONTWRITEBYTECODE"], "a second run finds the same files"


@pytest.mark.parametrize("place", ["drive/MyDrive/deepfakes/bundle", "drive/Shareddrives/us/bundle", "bundle", "."])
def test_on_colab_the_bundle_is_found_in_a_mounted_drive_or_beside_it(place, first_cell, tmp_path):
    """Where the working directory is /content, and kagglehub may have put data sets below /kaggle/input."""
    (tmp_path / "content" / "sample_data").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"expected one bundle.*found none"):
        first_cell(tmp_path / "content")
    kit = make_kit(tmp_path / "content" / place)
    (tmp_path / "input" / "dfdc").mkdir(parents=True)
    found = first_cell(tmp_path / "content")
    assert (found["root"], found["code"]) == (kit, kit / "src" / "multiattn")


def test_a_bundle_that_another_account_shares_is_one_by_any_of_its_names_and_one_in_the_bin_is_none(
    first_cell, tmp_path
):
    drive = tmp_path / "content" / "drive"
    shared = make_kit(drive / ".shortcut-targets-by-id" / "1aB" / "bundle")
    make_kit(drive / "MyDrive" / ".Trash" / "bundle")
    make_kit(drive / ".Trash-0" / "bundle")
    (drive / "MyDrive" / "bundle").symlink_to(shared)
    (drive / "My Drive").symlink_to(drive / "MyDrive")
    (shared / "up").symlink_to(drive / "MyDrive")
    for here in (tmp_path / "content", drive / "MyDrive" / "bundle"):  # the latter as the system calls it: `shared`
        root = first_cell(here)["root"]
        assert root.parent.samefile(drive / "MyDrive"), "what is left beside it stays in the Drive of whoever runs it"
        assert root.parts[-3:-1] in (("drive", "MyDrive"), ("drive", "My Drive")), "its shortest name"
    make_kit(drive / "MyDrive" / "other")
    assert first_cell(drive / "MyDrive" / "bundle")["root"].samefile(shared), "of several the one that it is in"


def test_of_several_bundles_in_a_drive_the_working_directory_is_the_one_that_is_taken(first_cell, tmp_path):
    kits = [make_kit(tmp_path / "content" / "drive" / "MyDrive" / name) for name in ("a", "b")]
    with pytest.raises(FileNotFoundError, match=r"expected one bundle.*found .*MyDrive/[ab].*MyDrive/[ab]"):
        first_cell(tmp_path / "content")
    for kit in kits:
        assert first_cell(kit)["root"] == kit


@pytest.mark.parametrize("first_cell", NOTEBOOKS[:1], indirect=True)
def test_on_colab_a_clone_of_the_repository_goes_by_its_own_code_and_on_kaggle_it_does_not(first_cell, tmp_path):
    for place in ("content", "working"):
        for name in ("src/multiattn", "notebooks"):
            (tmp_path / place / "clone" / name).mkdir(parents=True)
    code = tmp_path / "content" / "clone" / "src" / "multiattn"
    assert first_cell(tmp_path / "content" / "clone" / "notebooks")["code"] == code
    (tmp_path / "input" / "by_kagglehub").mkdir(parents=True)
    assert first_cell(tmp_path / "content" / "clone" / "notebooks")["code"] == code
    with pytest.raises(FileNotFoundError, match=r"expected one bundle.*found none"):
        first_cell(tmp_path / "working" / "clone" / "notebooks")


def without_digests(kit: Path) -> None:
    (kit / "bundle.json").write_text('{"kind": "multiattn bundle"}')


def plant_bytecode(kit: Path) -> Path:
    """Make a file that Python runs in place of the bundle's code; returns what it leaves then."""
    ran, source = kit.parent / "ran", kit.parent / "planted.py"
    source.write_text(f"open({str(ran)!r}, 'w')")
    place = importlib.util.cache_from_source(str(kit / "src/multiattn/__init__.py"))
    py_compile.compile(str(source), place, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return ran


def test_bytecode_that_python_would_run_in_place_of_the_code_is_refused_and_does_not_run(first_cell, tmp_path):
    kit = make_kit(tmp_path / "input" / "a")
    ran = plant_bytecode(kit)
    subprocess.run([sys.executable, "-c", "import multiattn"], check=True, env={"PYTHONPATH": str(kit / "src")})
    assert ran.exists(), "the plant works"
    ran.unlink()
    with pytest.raises(ValueError, match="__pycache__"):
        first_cell(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda kit: (kit / "bundle.json").unlink(), "expected one bundle.*found none", id="none"),
        pytest.param(lambda kit: make_kit(kit.parent / "b"), "expected one bundle", id="two"),
        pytest.param(lambda kit: (kit / "src/multiattn/__init__.py").write_text("1"), "__init__.py", id="other code"),
        pytest.param(lambda kit: (kit / "src/multiattn/more.py").touch(), "more.py", id="more code"),
        pytest.param(lambda kit: (kit / "src/torch").symlink_to(kit / "wheels"), "src/torch", id="a link to a folder"),
        pytest.param(lambda kit: (kit / "src/torch.py").symlink_to("gone"), "torch.py", id="a link to nothing"),
        pytest.param(lambda kit: os.mkfifo(kit / "src/torch.py"), "torch.py", id="a FIFO"),
        pytest.param(lambda kit: (kit / "wheels/av.whl").write_bytes(b"other"), "av.whl", id="another wheel"),
        pytest.param(lambda kit: (kit / "wheels/av.whl").unlink(), "av.whl", id="a wheel less"),
        pytest.param(without_digests, "attach it anew", id="of an older version"),
    ],
)
def test_what_is_not_one_whole_bundle_is_refused_before_anything_is_imported(change, message, first_cell, tmp_path):
    change(make_kit(tmp_path / "input" / "a"))
    before = sys.path[:]
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        first_cell(tmp_path)
    assert sys.path == before


@pytest.mark.slow
def test_a_bundle_is_all_that_a_bare_machine_without_network_needs(pipeline, submitted, tmp_path, capsys):
    """The large packages that Kaggle has and the notebook's runner are there; all else comes from the bundle's wheels,
    the inputs are mounted read-only below /kaggle/input."""
    kit, working = tmp_path / "kit", tmp_path / "working"
    working.mkdir()
    if main([*bundle_words(pipeline, kit, "--download-wheels", "--packages", *packages_to_bundle())]) != 0:
        pytest.skip(f"no wheels to be had: {capsys.readouterr().err.strip()[-300:]}")
    python = make_bare_environment(tmp_path / "bare")
    alone = subprocess.run([python, "-c", "import torch, pandas; import timm"], capture_output=True, text=True)
    assert "No module named 'timm'" in alone.stderr
    before = digests(kit)
    variables = environment(pipeline, tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "MULTIATTN_"))}
    inputs = {"multiattn-demo": kit, "deepfake-detection-challenge": pipeline.dataset}
    with kaggle_command(inputs, working) as command:
        if command is not None:
            variables = {"PYTHONPATH": variables["PYTHONPATH"]}
        else:
            variables |= {"MULTIATTN_RUNS": "", "MULTIATTN_OUT": str(working), "PYTHONDONTWRITEBYTECODE": "1"}
        execute = [*(command or []), python, "-c", EXECUTE, kit / "inference.ipynb", tmp_path / "executed.ipynb"]
        here = working if command else kit
        done = subprocess.run(execute, env=kept | variables, cwd=here, capture_output=True, text=True, check=False)
    shutil.rmtree(tmp_path / "bare")  # nearly a gigabyte, which pytest would keep for three runs
    assert done.returncode == 0, done.stderr[-3000:]
    require_same(working / "submission.csv", submitted)
    assert digests(kit) == before, "the inputs are only read"
    shutil.rmtree(kit)
    assert "submission.csv" in {path.name for path in working.iterdir()}


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_blocking_the_network_really_blocks_it(tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK_NETWORK)
    cell = nbformat.v4.new_code_cell("import urllib.request\nurllib.request.urlopen('http://192.0.2.1', timeout=5)")
    probe, blocked = tmp_path / "probe.ipynb", {"PYTHONPATH": str(tmp_path / "blocked")}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), probe)
    with pytest.raises(ValueError, match="networking is blocked"):
        execute_notebook(tmp_path / "out.ipynb", blocked, notebook=probe)
    assert (tmp_path / "out.ipynb").is_file(), "the executed copy is kept when a cell fails"


@pytest.mark.parametrize(("notebook", "lines"), [("inference", 60), ("training", 40)])
def test_the_notebook_is_thin_and_clean(notebook, lines):
    document = nbformat.read(NOTEBOOK.with_name(f"{notebook}.ipynb"), as_version=4)
    code = [cell for cell in document.cells if cell.cell_type == "code"]
    assert sum(len(cell.source.splitlines()) for cell in code) < lines
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_inputs_are_found_in_the_repository(pipeline, tmp_path, monkeypatch):
    for name in ("RUNS", "VIDEOS_DIR", "SAMPLE_SUBMISSION", "OUT"):
        monkeypatch.delenv(f"MULTIATTN_{name}", raising=False)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "set").symlink_to(pipeline.dataset)
    (tmp_path / "runs").symlink_to(pipeline.runs)
    inputs = find_inputs(tmp_path)
    assert inputs.runs == (tmp_path / "runs" / "demo_tiny",)
    assert inputs.videos_dir == tmp_path / "data" / "set" / "test_videos"
    assert inputs.sample_submission == tmp_path / "data" / "set" / "sample_submission.csv"
    assert inputs.out == tmp_path / "submissions" / "demo_tiny"


def test_what_is_not_found_is_named(tmp_path):
    for missing, then in (
        ("trained runs", "runs/x/fold0/best.safetensors"),
        ("test_videos", "data/set/test_videos/a.mp4"),
        ("sample_submission.csv", "data/sample_submission.csv"),
    ):
        with pytest.raises(FileNotFoundError, match=missing):
            find_inputs(tmp_path)
        (tmp_path / then).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / then).touch()
    assert find_inputs(tmp_path).sample_submission == tmp_path / "data/sample_submission.csv"
