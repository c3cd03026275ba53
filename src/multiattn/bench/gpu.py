"""Everything that needs a GPU in one run on one GPU: the tests marked `gpu` and the benchmarks, as one table.

A part that fails, or that time does not suffice for, has a row that says so and does not take the others with it;
skipped is not passed. JSON and table are written anew after each part: a run that is ended leaves what it has found.
"""

import ast
import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple, get_args
from xml.etree import ElementTree

import torch

from multiattn.bench.data import compare_loaders
from multiattn.bench.options import Beside, DataBench, GpuBench, SubmitBench
from multiattn.bench.submit import compare_sides
from multiattn.bench.train import Comparison, Work, compare
from multiattn.datasets.embedded import build_demo_dataset
from multiattn.experiments import get_experiment
from multiattn.runtime.devices import pick_device
from multiattn.runtime.environment import describe_environment
from multiattn.runtime.files import write_json, write_text
from multiattn.runtime.processor import usable_cores
from multiattn.runtime.text_tables import counted, markdown_table

Outcome = Literal["passed", "failed", "skipped", "measured", "not run"]
HEADER = ("part", "what", "outcome", "")
REPEATS = 5
CLIPS, CLIP_FRAMES = 16, 8
GRACE_SECONDS = 10.0
"""For tests that are interrupted to end."""
LONGEST_NOTE = 400
"""Characters of a note that the table shows; gpu.json has all."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A test, or one side of a benchmark."""

    part: str
    name: str
    outcome: Outcome
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Part(NamedTuple):
    """One of the parts of a run."""

    name: str
    content: str
    seconds: float
    """It is ended after so many."""
    run: Callable[[GpuBench], list[Row]]


class OutOfTimeError(Exception):
    """A part took longer than it may."""


def measure(options: GpuBench) -> tuple[list[str], bool]:
    """Lines for a terminal, and True unless something failed; without a GPU the lines say what would have been run.

    Raises:
        ValueError: no such experiment or device.
    """
    get_experiment(options.experiment)
    if options.device == "cuda" and not torch.cuda.is_available():
        return _plan(options), True
    environment, cudnn = describe_environment(pick_device(options.device)), torch.backends.cudnn
    environment |= {"tf32": cudnn.allow_tf32, "cudnn_benchmark": cudnn.benchmark, "cudnn": cudnn.version()}
    rows = run_parts(PARTS, options, lambda rows: _write(options.out, environment, rows))
    is_sound = all(row.outcome != "failed" for row in rows)
    return [*_report(environment, rows), "", f"in {options.out}: gpu.json, gpu.md"], is_sound


def run_parts(parts: Sequence[Part], options: GpuBench, write: Callable[[list[Row]], None]) -> list[Row]:
    """Rows of all parts, in their order; `write` gets them after each part, those to come as not run."""
    rows, deadline = [], time.monotonic() + 60 * options.minutes
    for number, part in enumerate(parts):
        left = deadline - time.monotonic()
        if left < 1:
            rows.append(Row(part=part.name, name=part.content, outcome="not run", note="no time was left"))
            continue
        try:
            with time_limit(min(part.seconds, left)):
                rows += part.run(options)
        except Exception as error:  # of any kind: a part must not cost the others
            note = f"{type(error).__name__}: {error}"
            rows.append(Row(part=part.name, name=part.content, outcome="failed", note=note))
        to_come = [Row(part=one.name, name=one.content, outcome="not run") for one in parts[number + 1 :]]
        write(rows + to_come)
    write(rows)
    return rows


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the main thread after so many seconds inside."""

    def stop(*_: object) -> None:
        raise OutOfTimeError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_tests(options: GpuBench) -> list[Row]:
    """A row for each test marked `gpu`, run by pytest in a process of its own; where the part's time ends before it,
    for those that had ended, and one that has failed for the others.

    Raises:
        ValueError: pytest has run none.
    """
    late = None
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "tests.xml", Path(folder) / "output.txt"
        command = [sys.executable, "-m", "pytest", str(options.tests), "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", f"--junitxml={file}"]
        with output.open("wb") as text, subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT) as process:
            try:
                process.wait()
            except OutOfTimeError as error:
                late = str(error)
                process.send_signal(signal.SIGINT)  # pytest writes its file then
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_SECONDS)
                process.kill()
        rows = junit_rows(file) if file.is_file() else []
        if not rows and late is None:
            said = output.read_text(encoding="utf-8", errors="replace")[-500:]
            raise ValueError(f"pytest ran no test and ended with {process.returncode}: {said}")
    return rows + ([Row(part="tests", name="those that had not ended", outcome="failed", note=late)] if late else [])


def junit_rows(file: Path) -> list[Row]:
    """A row for each test of a JUnit file but one that was interrupted, which has neither name nor verdict there."""
    rows = []
    for case in ElementTree.parse(file).iter("testcase"):
        if case.get("name") is None:
            continue
        verdicts = [(name, found) for name in ("error", "failure", "skipped") if (found := case.find(name)) is not None]
        outcome = "passed" if not verdicts else "skipped" if verdicts[0][0] == "skipped" else "failed"
        note = verdicts[0][1].get("message", "") if verdicts else f"{float(case.get('time', 0)):.1f} s"
        name = f"{case.get('classname', '').removeprefix('tests.').replace('.', '/')}: {case.get('name')}"
        rows.append(Row(part="tests", name=name.removeprefix(": "), outcome=outcome, note=note))
    return rows


def marked_tests(tests: Path) -> list[str]:
    """`file: test` of all tests that carry the mark `gpu`, as their files are written."""
    found = []
    for path in sorted(tests.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "mark.gpu" in text else ():
            marks = [ast.unparse(mark) for mark in getattr(node, "decorator_list", [])]
            if any("mark.gpu" in mark for mark in marks):
                found.append(f"{path.relative_to(tests)}: {node.name}")
    return found


def side_rows(part: str, comparison: Comparison, batch_size: int) -> list[Row]:
    """A row for each side of a comparison."""
    rows, plain = [], comparison.sides[-1]
    for side in comparison.sides:
        arithmetic, memory = side.shares
        figures = {
            "seconds": side.median,
            "crops_per_second": batch_size / side.median,
            "times_plain": plain.median / side.median,
            "peak_bytes": side.peak_bytes,
            "share_of_arithmetic": arithmetic,
            "share_of_bandwidth": memory,
        }
        note = (
            f"{batch_size} crops in {side.precision}: {1000 * side.median:.1f} ms, {batch_size / side.median:.1f} "
            f"crops/s, {plain.median / side.median:.2f}x plain, {side.peak_bytes / 2**20:,.0f} MiB, {arithmetic:.0%} "
            f"of the ceiling of arithmetic, {memory:.0%} of memory's"
        )
        rows.append(Row(part=part, name=side.name, outcome="measured", note=note, figures=figures))
    return rows


def _network(part: str, work: Work, *beside: Beside) -> Callable[[GpuBench], list[Row]]:
    def run(options: GpuBench) -> list[Row]:
        experiment = get_experiment(options.experiment)
        data = dataclasses.replace(experiment.data, batch_size=options.batch_size)
        experiment = dataclasses.replace(experiment, data=data, compile=False)
        device = pick_device(options.device)
        comparison = compare(experiment, work, repeats=REPEATS, device=device, beside=beside)
        return side_rows(part, comparison, options.batch_size)

    return run


def _data(options: GpuBench) -> list[Row]:
    presets = tuple(dict.fromkeys(("none", get_experiment(options.experiment).data.augmentation, "strong")))
    how = {"batch_size": options.batch_size, "num_workers": min(usable_cores(), 8), "device": options.device}
    rates, _ = compare_loaders(DataBench(experiment=options.experiment, presets=presets, seconds=0.5, **how))
    return [_measured("data", name, "crops", rate, rate / plain) for name, (rate, plain) in rates.items()]


def _submit(options: GpuBench) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        videos = options.videos_dir
        if videos is None:
            build_demo_dataset(Path(folder) / "dfdc", jobs=min(usable_cores(), 4), small=True)
            videos = Path(folder) / "dfdc" / "test_videos"
        how = {"videos": CLIPS, "num_frames": CLIP_FRAMES, "device": options.device, "precision": "auto"}
        (ours, loop), lines = compare_sides(SubmitBench(videos_dir=videos, untrained=options.experiment, **how))
    seconds = [median(side.seconds for side in sides) for sides in (ours, loop)]
    row = _measured("submit", "submit", "videos", CLIPS / seconds[0], seconds[1] / seconds[0])
    details = [line for line in lines if line.startswith(("probabilities", f"{ours[-1].workers} workers"))]
    return [dataclasses.replace(row, note="; ".join([row.note, *details]))]


def _measured(part: str, name: str, unit: str, rate: float, times_plain: float) -> Row:
    figures = {f"{unit}_per_second": rate, "times_plain": times_plain}
    return Row(
        part=part, name=name, outcome="measured", note=f"{rate:.4g} {unit}/s, {times_plain:.2f}x plain", figures=figures
    )


PARTS = (
    Part("tests", "the tests marked gpu", 150, run_tests),
    Part("train", "bench train beside nchw, cudnn-benchmark, twin, plain", 120,
         _network("train", "train", "nchw", "cudnn-benchmark", "twin")),
    Part("infer", "bench infer beside nchw, cudnn-benchmark, twin, plain", 90,
         _network("infer", "infer", "nchw", "cudnn-benchmark", "twin")),
    Part("data", "bench data: presets and caches beside a plain data set", 90, _data),
    Part("submit", "bench submit beside a plain loop", 90, _submit),
    Part("compiled", "bench train through torch.compile, both passes", 240, _network("compiled", "train", "compiled")),
)  # fmt: skip
"""In the order of what matters most: those at the end may find no time left."""


def _plan(options: GpuBench) -> list[str]:
    tests = marked_tests(options.tests)
    return [
        f"No CUDA device is visible to torch {torch.__version__}: nothing was run and no file was written.",
        f"On a GPU this would run, for {options.experiment} in at most {options.minutes:g} minutes:",
        *(f"  {part.name:<9} {part.content}" for part in PARTS),
        f"  with {counted(len(tests), 'test')}:",
        *(f"    {test}" for test in tests),
    ]


def _report(environment: dict, rows: list[Row]) -> list[str]:
    counts = Counter(row.outcome for row in rows)
    return [
        f"{environment['device']}, torch {environment['libraries']['torch']}, commit {environment['commit']}; "
        f"TF32 {environment['tf32']}, cudnn.benchmark {environment['cudnn_benchmark']} but where a row says otherwise",
        "",
        ", ".join(f"{counts[outcome]} {outcome}" for outcome in get_args(Outcome))
        + ". What was skipped or not run has not passed.",
        "",
        markdown_table(
            HEADER, [(row.part, row.name, row.outcome, " ".join(row.note.split())[:LONGEST_NOTE]) for row in rows]
        ),
    ]


def _write(folder: Path, environment: dict, rows: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "gpu.json", {**environment, "rows": [dataclasses.asdict(row) for row in rows]})
    write_text(folder / "gpu.md", "\n".join(_report(environment, rows)) + "\n")
