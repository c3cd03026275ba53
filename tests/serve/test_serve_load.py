"""`multiattn serve` as a process of its own, with the packaged network: fifty uploads at once, a worker killed on the
way, Ctrl-C. Each upload ends in an answer or a refusal, memory is bounded, and nothing is left behind."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from multiattn.__main__ import main
from multiattn.datasets.embedded.actors import load_portrait
from multiattn.serve import folders

MOST_BYTES = 4 * 10**9
PLACES = 20


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(*pids: int) -> int:
    """Bytes in memory, shared pages counted in each."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids if Path(f"/proc/{pid}").is_dir()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_fifty_uploads_and_a_killed_worker_end_in_answers_within_memory(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "multiattn", "serve", "--port", "0", "--device", "cpu", "--queue", str(PLACES)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}, start_new_session=True,
    )  # fmt: skip
    try:
        lines = iter(process.stdout.readline, "")
        assert next(lines) == "no --runs: by the packaged run dfdc_lite\n"
        address = next(found[0] for line in lines if (found := re.search(r"http://\S+/", line)))
        portrait = cv2.cvtColor(load_portrait().rgb[:256, 96:352], cv2.COLOR_RGB2BGR)
        face = cv2.imencode(".jpg", portrait)[1].tobytes()
        wall = cv2.imencode(".png", np.full((64, 64, 3), 99, np.uint8))[1].tobytes()
        files = [("face.jpg", face), ("wall.png", wall), ("broken.mp4", b"no film"), ("empty.mov", b"")] * 12
        files += [("face.jpg", face)] * 2

        def ask(file: tuple[str, bytes]) -> dict | None:
            taken = client.post("v1/predict", files={"file": file})
            if taken.status_code == 503:
                assert int(taken.headers["retry-after"]) > 0
                return None
            assert taken.status_code == 202
            job = taken.json()["id"]
            while (status := client.get(f"v1/jobs/{job}").json())["state"] in ("waiting", "working"):
                time.sleep(1)  # more often, and the questions take the time that the answers need
            return client.get(f"v1/jobs/{job}/result").json() if status["state"] == "done" else status

        with httpx.Client(base_url=address, timeout=60) as client, ThreadPoolExecutor(len(files)) as pool:
            asked = [pool.submit(ask, file) for file in files]
            while sum(it.done() and it.result() is not None for it in asked) < 6:
                time.sleep(0.2)
            (worker,) = children(process.pid)
            most = resident(process.pid, worker)
            os.kill(worker, signal.SIGKILL)
            answers = [it.result() for it in asked]
        lost = [it for it in answers if it is not None and it.get("state") == "failed"]
        assert len(lost) <= 1 and all("SIGKILL" in it["error"] for it in lost), "the file it was at, or none"
        assert sum(it is None for it in answers) <= len(files) - PLACES
        found = {it["files"][0]["file"]: it["files"][0]["in_words"] for it in answers if it and "files" in it}
        assert set(found) == {"face.jpg", "wall.png", "broken.mp4", "empty.mov"}
        assert all(it["answer"] in ("looks manipulated", "no sign found", "cannot tell") for it in found.values())
        assert found["broken.mp4"]["reasons"] == ["the file could not be read"]
        assert max(most, resident(process.pid, *children(process.pid))) < MOST_BYTES
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert list(folder.glob("multiattn_serve_*")) == []
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--port", "70000"], "from 0 to 65535", id="no port"),
        pytest.param(["--token", "short"], "--token: expected 12 letters", id="a token to guess"),
        pytest.param(["--token", "gesprächsfaden"], "expected printable ASCII without spaces", id="no header's"),
        pytest.param(["--root", "/no/such/folder"], "/no/such/folder: no such folder", id="no root"),
        pytest.param(["--runs", "no_such_run"], "no_such_run", id="no run"),
        pytest.param(["--host", "256.1.1.1"], "cannot be listened at", id="no address"),
    ],
)
def test_a_wrong_option_is_one_error_before_anything_is_loaded(words, said, capsys):
    try:
        code = main(["serve", *words])
    except SystemExit as ended:  # of the parser, which draws a box
        code = ended.code
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_taken_port_and_a_missing_package_are_one_error(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0 finds one that is free" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve"]) == 2
    assert "pip install 'multiattn[serve]'" in capsys.readouterr().err


def test_folders_of_killed_servers_are_removed_and_no_others(tmp_path, monkeypatch):
    place = tmp_path / "temporary"
    monkeypatch.setattr(folders.tempfile, "tempdir", str(place))
    elsewhere, left, other, link = (
        tmp_path / "x",
        *(place / f"{folders.FOLDER}{name}" for name in ("left", "other", "link")),
    )
    for folder in (elsewhere, left / "jobs" / "id", other):
        folder.mkdir(parents=True)
    for folder in (elsewhere, left):
        (folder / ".lock").touch()
    link.symlink_to(elsewhere)
    with folders.server_folder() as first:
        assert not left.exists() and list(first.iterdir()) == []
        with folders.server_folder() as second:
            assert first.is_dir() and second.is_dir() and first != second, "one that is held stays"
    assert sorted(place.iterdir()) == [link, other] and (elsewhere / ".lock").exists()
