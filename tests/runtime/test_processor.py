"""Since when the time counts, and what memory is free."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from multiattn.runtime import processor
from multiattn.runtime.processor import free_memory, process_seconds


def test_the_time_counts_from_the_start_of_the_process_and_not_of_this_module():
    code = (
        "import time; time.sleep(1); from multiattn.runtime import processor;"
        "print(processor.process_seconds(), time.monotonic() - processor._IMPORTED)"
    )
    started = time.monotonic()
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    since_start, since_import = map(float, words)
    assert since_import + 1 < since_start <= time.monotonic() - started + 0.1


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        pytest.param(lambda now: now - 100, 100, id="as it is"),
        pytest.param(lambda now: now + 40_000, 7, id="a start by another clock, in the future"),
        pytest.param(lambda now: 0, 7, id="a start that is not known"),
        pytest.param(None, 7, id="no process table"),
    ],
)
def test_a_process_table_that_does_not_know_gives_way_to_the_time_of_the_import(start, expected, monkeypatch):
    now = time.clock_gettime(time.CLOCK_BOOTTIME)

    def read_text(path: Path, **_) -> str:
        if start is None:
            raise FileNotFoundError(path)
        fields = ["S", *["0"] * 18, str(int(max(0, start(now)) * os.sysconf("SC_CLK_TCK"))), *["0"] * 30]
        return f"1 (a (strange) name) {' '.join(fields)}\n"

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(processor, "_IMPORTED", time.monotonic() - 7)
    assert process_seconds() == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param("5000", 5000 - 3000 + 1000, id="a limit, less what is used but for the file cache"),
        pytest.param("1000", 0, id="more is used than allowed"),
        pytest.param("max", None, id="no limit"),
        pytest.param(None, None, id="no control groups"),
    ],
)
def test_free_memory_is_what_the_system_and_the_control_group_leave(limit, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "CONTROL_GROUPS", tmp_path)
    for folder, names in (  # of both versions: this machine has one or the other
        (tmp_path / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
        (tmp_path, ("memory.max", "memory.current", "inactive_file")),
    ):
        folder.mkdir(exist_ok=True)
        if limit is not None:
            (folder / names[0]).write_text(f"{limit}\n")
            (folder / names[1]).write_text("3000\n")
            (folder / "memory.stat").write_text(f"anon 2000\n{names[2]} 1000\n")
    found = free_memory()
    if expected is None:
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
        assert found == pytest.approx(1024 * int(line.split()[1]), rel=0.2)
    else:
        assert found == expected
