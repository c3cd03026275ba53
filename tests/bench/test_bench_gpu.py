"""`bench gpu`: its rows of tests and benchmarks, parts that fail or come too late, both files, and no GPU."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from multiattn.bench import data as bench_data
from multiattn.bench import gpu
from multiattn.bench.gpu import Part, Row, marked_tests, measure, run_parts, run_tests, time_limit
from multiattn.bench.options import DataBench, GpuBench, SubmitBench
from multiattn.stages.bench import main

TESTS = Path(__file__).resolve().parents[1]
SUITE = """
import pytest

@pytest.mark.gpu
@pytest.mark.parametrize("number", [1, 2])
def test_passes(number):
    assert number < 2, "two is | too many"

@pytest.mark.gpu
def test_skips():
    pytest.skip("no CUDA device")

def test_unmarked():
    raise AssertionError
"""


@pytest.fixture
def suite(tmp_path) -> Path:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_some.py").write_text(SUITE)
    (tmp_path / "suite" / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    return tmp_path / "suite"


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Experiments in their tiny form."""
    monkeypatch.setattr(gpu, "get_experiment", lambda name: get_experiment(name, tiny=True))


get_experiment = gpu.get_experiment


def answer(*rows: Row):
    return lambda options: list(rows)


def fail(options: GpuBench) -> list[Row]:
    raise RuntimeError("CUDA error:\nan illegal access")


def hang(options: GpuBench) -> list[Row]:
    time.sleep(30)
    return []


def test_every_marked_test_has_a_row_and_a_skipped_one_has_not_passed(suite):
    rows = run_tests(GpuBench(tests=suite))
    assert [(row.name.split(": ")[-1], row.outcome) for row in rows] == [
        ("test_passes[1]", "passed"), ("test_passes[2]", "failed"), ("test_skips", "skipped"),
    ]  # fmt: skip
    assert "two is | too many" in rows[1].note and "no CUDA device" in rows[2].note


def test_tests_that_have_ended_before_the_time_did_are_told(suite):
    """The last test rings the alarm and hangs."""
    alarm = "import os, signal, time\n    os.kill(os.getppid(), signal.SIGALRM)\n    time.sleep(60)\n"
    (suite / "test_some.py").write_text(SUITE + f"\n@pytest.mark.gpu\ndef test_hangs():\n    {alarm}")
    with time_limit(600):
        rows = run_tests(GpuBench(tests=suite))
    assert [row.outcome for row in rows] == ["passed", "failed", "skipped", "failed"]
    assert (rows[-1].name, rows[-1].note) == ("those that had not ended", "not done after 600 s")


def test_a_suite_that_cannot_run_or_holds_no_test_has_not_passed(tmp_path):
    (tmp_path / "test_none.py").write_text("import no_such_package\n")
    assert {row.outcome for row in run_tests(GpuBench(tests=tmp_path))} == {"failed"}
    with pytest.raises(ValueError, match="pytest ran no test and ended with 4"):
        run_tests(GpuBench(tests=tmp_path / "nowhere"))


def test_a_part_that_fails_or_hangs_costs_no_other_and_what_is_left_is_written_as_not_run():
    written = []
    good = Row(part="c", name="x", outcome="measured")
    parts = (Part("a", "A", 9, fail), Part("b", "B", 0.2, hang), Part("c", "C", 9, answer(good)))
    rows = run_parts(parts, GpuBench(), lambda rows: written.append([row.outcome for row in rows]))
    assert [row.outcome for row in rows] == ["failed", "failed", "measured"]
    assert rows[0].note == "RuntimeError: CUDA error:\nan illegal access" and "not done after 0 s" in rows[1].note
    assert written[0] == ["failed", "not run", "not run"] and written[-1] == ["failed", "failed", "measured"]
    rows = run_parts(parts, GpuBench(minutes=0.01), lambda rows: None)
    assert [row.outcome for row in rows] == ["not run"] * 3, "no part begins without a second left"


@pytest.mark.parametrize(("rows", "code"), [([], None), (["passed", "skipped"], None), (["passed", "failed"], 1)])
def test_both_files_say_how_each_row_ended_and_the_exit_code_whether_one_failed(
    rows, code, tmp_path, monkeypatch, capsys
):
    found = [Row(part="tests", name=f"test | {outcome}", outcome=outcome, note="a\nnote") for outcome in rows]
    monkeypatch.setattr(gpu, "PARTS", (Part("tests", "the tests", 60, answer(*found)),))
    try:
        main(["gpu", "--device", "cpu", "--out", str(tmp_path / "out")])
        assert code is None
    except SystemExit as end:
        assert end.code == code
    table = (tmp_path / "out" / "gpu.md").read_text()
    for outcome in ("passed", "failed", "skipped"):
        assert f"{rows.count(outcome)} {outcome}" in table
    assert "skipped or not run has not passed" in table and table.count("a note") == len(rows)
    assert table.strip() in capsys.readouterr().out
    values = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [row["outcome"] for row in values["rows"]] == rows
    assert values["tf32"] in (True, False) and values["libraries"]["torch"] == torch.__version__.split("+")[0]


@pytest.mark.usefixtures("in_this_process", "tiny")
def test_a_network_is_timed_beside_its_other_forms(monkeypatch):
    monkeypatch.setattr(gpu, "REPEATS", 1)
    part = next(part for part in gpu.PARTS if part.name == "infer")
    rows = part.run(GpuBench(experiment="demo", device="cpu", batch_size=2))
    assert [row.name for row in rows] == ["ours", "nchw", "cudnn-benchmark", "twin", "plain"]
    for row in rows:
        assert row.outcome == "measured" and min(row.figures.values()) > 0
    assert rows[-1].figures["times_plain"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("forked_sides")
def test_loaders_and_submit_are_timed_beside_their_plain_forms(small_dataset, monkeypatch):
    for module, name, value in (
        (bench_data, "TURNS", 1), (bench_data, "DRAWN_FRAMES", 2), (bench_data, "training_rate", lambda *_, **__: 1.0),
        (gpu, "usable_cores", lambda: 0), (gpu, "CLIPS", 2), (gpu, "CLIP_FRAMES", 2),
        (gpu, "DataBench", lambda **how: DataBench(**how | {"seconds": 0.1})),
        (gpu, "SubmitBench", partial(SubmitBench, jobs=1)),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    options = GpuBench(experiment="demo", device="cpu", batch_size=4, videos_dir=small_dataset / "test_videos")
    for name, first in (("data", "none"), ("submit", "submit")):
        row, *_ = next(part for part in gpu.PARTS if part.name == name).run(options)
        assert row.name == first and min(row.figures.values()) > 0 and row.outcome == "measured"


def test_without_a_gpu_it_says_at_once_what_it_would_run_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "run_parts", None)
    lines, is_sound = measure(GpuBench(tests=TESTS, out=tmp_path / "out"))
    text = "\n".join(lines)
    assert is_sound and "nothing was run" in text and not (tmp_path / "out").exists()
    for wanted in (*(part.content for part in gpu.PARTS), "test_sync_norm.py: test_ranks_on_gpus", "a_gpu_answers"):
        assert wanted in text
    files = {line.split(":")[0] for line in marked_tests(TESTS)}
    with_mark = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py") if "mark.gpu" in path.read_text()}
    assert files == with_mark - {"bench/test_bench_gpu.py"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"minutes": 0.0}, "--minutes: expected more than 0", id="no time"),
        pytest.param({"batch_size": 1}, "--batch-size: expected at least 2", id="one crop"),
        pytest.param({"experiment": "none"}, "none", id="no experiment"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure(GpuBench(**options))
