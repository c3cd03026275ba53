"""`multiattn faces` and SIGKILL at an arbitrary moment, then the same command: the same tables as without the kill."""

import contextlib
import json
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from multiattn.runtime.layout import FINGERPRINTS_FILE
from pipeline import FACES_OPTIONS, Pipeline, end, finish, run, start_stage, wait_until

pytestmark = pytest.mark.slow  # processes of their own, killed and started again


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def workers_of(process: BaseProcess) -> list[int]:
    """The processes that a running `multiattn faces` started to extract in."""
    found = []
    for children in Path(f"/proc/{process.pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(pid) for pid in children.read_text().split()]
    return found


def contents(folder: Path) -> dict[str, object]:
    """Everything in a faces folder but its lock; of the fingerprints those of the content, in any order."""
    rows = map(json.loads, (folder / FINGERPRINTS_FILE).read_text().splitlines())
    fingerprints = {row["video_id"]: row["fingerprint"] for row in rows}
    return {"fingerprints": fingerprints} | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", FINGERPRINTS_FILE)
    }


def test_killed_faces_continue_to_the_same_tables(pipeline: Pipeline, tmp_path):
    """In one folder a worker alone is killed and then the parent alone, in another all together: at moments nobody
    chose."""

    def words(folder: Path) -> list[object]:
        return ["faces", "--videos", pipeline.videos, "--out", folder, *FACES_OPTIONS, "--jobs", 1]

    one_by_one, together = tmp_path / "one by one", tmp_path / "together"
    parent, journal = start_stage(*words(one_by_one)), one_by_one / "journal.jsonl"
    wait_until(lambda: lines(journal) >= 2, parent)
    for pid in workers_of(parent):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lines(journal) >= 4, parent)
    parent.kill()
    finish(parent)
    with journal.open("a") as file:
        file.write('{"video_id":"dfdc/torn')  # what a kill in the middle of a write leaves
    other = start_stage(*words(together))
    wait_until(lambda: lines(together / "journal.jsonl") >= 1, other)
    assert end(other) == -signal.SIGKILL
    for folder in (one_by_one, together):
        journal = folder / "journal.jsonl"
        done = [json.loads(line)["video_id"] for line in journal.read_bytes().splitlines()[: lines(journal)]]
        crops = {path: path.stat().st_mtime_ns for name in done for path in (folder / "crops" / name).iterdir()}
        assert not (folder / "video_status.csv").exists()
        run(*words(folder))
        assert not journal.exists()
        assert {path: path.stat().st_mtime_ns for path in crops} == crops, "finished videos were done again"
        assert contents(folder) == contents(pipeline.faces)
