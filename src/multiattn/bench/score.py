"""From one clip to its answer: the whole command, cold, and the stages of a detector that answers twice."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from multiattn.bench.harness import SideProcess, take_turns
from multiattn.bench.options import ScoreBench
from multiattn.config.choices import Runtime
from multiattn.runtime.devices import pick_device
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.files import file_digest
from multiattn.runtime.layout import named_run, packaged_run
from multiattn.runtime.text_tables import terminal_table


def measure(options: ScoreBench) -> list[str]:
    """Lines for a terminal: median seconds over the repeats, of the command and of the stages.

    Raises:
        ValueError: a clip without an answer.
        FileNotFoundError: no such clip or run.
    """
    runs = tuple(map(named_run, options.runs)) or (packaged_run(),)
    file_digest(options.clip)  # reads it, so that every repeat finds it in the system's memory
    for runtime in options.runtimes:
        if runtime != "torch":
            _command(options, runs, runtime)  # which exports the networks where they are not yet
    sides = [partial(measured, options, runs, it) for it in options.runtimes for measured in (_command, _in_process)]
    turns = take_turns(sides, options.repeats)
    rows = []
    for runtime, cold, warm in zip(options.runtimes, turns[::2], turns[1::2], strict=True):
        name = f"{runtime}: " if len(options.runtimes) > 1 else ""
        stages = {stage: [each[stage] for each in warm] for stage in warm[0]}
        rows += [(f"{name}multiattn score, a process of its own", cold)]
        rows += [(name + stage, seconds) for stage, seconds in stages.items()]
    return [
        f"{options.clip}, by {', '.join(map(str, options.runs)) or packaged_run().name}, medians of {options.repeats}",
        describe_machine(pick_device(options.device)),
        "",
        terminal_table(
            [
                ("", "seconds", "least"),
                *((name, f"{statistics.median(each):.2f}", f"{min(each):.2f}") for name, each in rows),
            ],
            right=(1, 2),
        ),
    ]


def _command(options: ScoreBench, runs: tuple[Path, ...], runtime: Runtime) -> float:
    words = [sys.executable, "-m", "multiattn", "score", str(options.clip), "--device", options.device]
    words += ["--runtime", runtime]
    words += [] if options.weights is None else ["--weights", str(options.weights)]
    started = time.perf_counter()
    ran = subprocess.run([*words, "--runs", *map(str, runs)], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if ran.returncode:
        raise ValueError(f"{options.clip}: `multiattn score` ended with code {ran.returncode}: {ran.stderr[-500:]}")
    return seconds


def _in_process(options: ScoreBench, runs: tuple[Path, ...], runtime: Runtime) -> dict[str, float]:
    how = {"device": options.device, "weights": options.weights, "runtime": runtime}
    with SideProcess("score", _Stages, options.clip, runs, how) as side:
        return side.ask("seconds")


class _Stages:
    """One clip's way to its answer in this process."""

    def __init__(self, clip: Path, runs: tuple[Path, ...], how: dict[str, Any]) -> None:
        self.clip, self.runs, self.how = clip, runs, how

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds, in order."""
        from multiattn.runtime.processor import set_wait_policy

        set_wait_policy()
        seconds: dict[str, float] = {}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            result = call()
            seconds[name] = time.perf_counter() - started
            return result

        made_by = timed("imports", _import_detector)
        detector = timed("reading the runs", partial(made_by.load, *self.runs, **self.how))
        predict = partial(detector.predict, self.clip)
        answer = timed("first answer: faces while networks load, prediction", predict)
        if answer.probability is None:
            raise ValueError(f"{self.clip}: expected a clip with a face, found {answer.status} {answer.reason}")
        timed("again: all", predict)
        timed("again: decoding, detection, crops", partial(self._faces, detector))
        again = seconds["again: all"] - seconds["again: decoding, detection, crops"]
        return seconds | {"again: networks and scoring rule": again}

    def _faces(self, detector: Any) -> None:
        from multiattn.video.extraction.extract import ExtractionSettings, VideoTask, encode_crops

        recipe = detector.models[0].recipe.for_prediction()
        how = {"device": str(detector.device), "weights": self.how["weights"], "read_ahead": True}
        settings = ExtractionSettings(recipe=recipe, **how)
        encode_crops(VideoTask(video_id="bench/clip", path=self.clip.absolute()), settings)


def _import_detector() -> Any:
    """The class `DeepfakeDetector`, with torch."""
    from multiattn.inference.detector import DeepfakeDetector

    return DeepfakeDetector
