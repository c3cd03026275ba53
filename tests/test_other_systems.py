"""macOS and Windows as far as Linux can play them: without the files, modules, functions and signals they lack."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multiattn.tables import FRAME_PREDICTIONS, VIDEO_STATUS
from pipeline import FACES_OPTIONS, Pipeline

MACOS = """
import builtins, io, multiprocessing, os, signal, time

def hidden(function):
    def opened(path, *arguments, **options):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/dev/shm")):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
        return function(path, *arguments, **options)
    return opened

io.open = builtins.open = hidden(io.open)
os.open, os.stat = hidden(os.open), hidden(os.stat)
del signal.sigwaitinfo, signal.sigtimedwait, os.sched_getaffinity, time.CLOCK_BOOTTIME
multiprocessing.set_start_method("spawn", force=True)
"""
WINDOWS = """
import builtins, os, signal

imported = builtins.__import__

def import_for_us(name, globals=None, *more, **named):
    if name in ("fcntl", "resource", "pwd", "grp") and (globals or {}).get("__name__", "").startswith("multiattn"):
        raise ImportError(f"No module named {name}")
    return imported(name, globals, *more, **named)

builtins.__import__ = import_for_us
for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGHUP", "pthread_sigmask", "sigwaitinfo", "sigwait"):
    delattr(signal, name)
for name in ("sched_getaffinity", "pwrite", "fork", "killpg", "mkfifo", "getloadavg"):
    delattr(os, name)
"""
IMPORT_ALL = """
import importlib, pkgutil, sys, multiattn
for module in pkgutil.walk_packages(multiattn.__path__, "multiattn."):
    if module.name != "multiattn.inference.kernel":  # which tells an old notebook that it is old
        importlib.import_module(module.name)
"""


@pytest.fixture
def python(tmp_path):
    """Runs Python with a `sitecustomize` of this text, which its child processes get too."""

    def call(system: str, *words: object) -> None:
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(system)
        path = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    return call


@pytest.mark.slow
def test_on_windows_everything_is_imported_and_faces_are_predicted(pipeline: Pipeline, tmp_path: Path, python):
    out = tmp_path / "predictions.parquet"
    words = ("--runs", pipeline.experiment, "--faces", pipeline.faces, "--out", out, "--device", "cpu")
    call = f"from multiattn.__main__ import main\nsys.exit(main({['predict', *map(str, words)]}))"
    python(WINDOWS, "-c", f"{IMPORT_ALL}\n{call}")
    assert set(FRAME_PREDICTIONS.read(out)["model"]) == {"demo_tiny/fold0", "demo_tiny/fold1"}


@pytest.mark.slow
def test_on_macos_clips_are_indexed_their_faces_cut_and_trained_on_and_one_is_scored(
    pipeline: Pipeline, tmp_path: Path, python
):
    """Test clips, which are few, are indexed, cut and scored in one process; an epoch is trained in another, since
    imports take seconds."""
    videos, faces, runs = tmp_path / "videos.csv", tmp_path / "faces", tmp_path / "runs"
    clip = min((pipeline.dataset / "test_videos").glob("*.mp4"))
    first = (
        ("index", "dfdc", "--root", pipeline.dataset, "--out", videos),
        ("faces", "--videos", videos, "--out", faces, *FACES_OPTIONS, "--splits", "test", "--jobs", 1),
        ("score", clip, "--runs", pipeline.experiment, "--jobs", 1),
    )
    calls = [[str(word) for word in words] for words in first]
    python(MACOS, "-c", f"from multiattn.__main__ import main\nfor words in {calls}:\n    assert main(words) == 0")
    assert (VIDEO_STATUS.read(faces / "video_status.csv")["status"] == "ok").sum() == 2, "of 4 test clips"
    python(MACOS, "-m", "multiattn", *pipeline.training(runs, "--epochs", 1, "--data.num-workers", 1))
    assert (runs / "demo_tiny/fold0/best.safetensors").is_file()
