"""Several folds at once, one on each GPU: a process for each fold, started as soon as a GPU is free."""

import logging
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from multiattn.training.fold_runs import FoldOutcome
from multiattn.training.interruption import Interruption, listening

logger = logging.getLogger(__name__)

LOG_FILE = "train.log"
SECONDS_BETWEEN_REPORTS = 60.0
POLL_SECONDS = 0.2


def parse_slots(text: str) -> list[str]:
    """The places that `--gpus` names: `0,1,2,3`, or `cpu` once for each process on a CPU.

    Raises:
        ValueError: something else, or a GPU twice.
    """
    slots = [part.strip() for part in text.split(",")]
    gpus = [slot for slot in slots if slot != "cpu"]
    if not all(slot.isdigit() for slot in gpus) or len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus: expected numbers of GPUs, each once, as 0,1,2,3 (or cpu), found {text!r}.")
    return slots


def train_in_processes(argv: list[str], numbers: list[int], slots: list[str], experiment: Path) -> list[FoldOutcome]:
    """Train every fold with a `multiattn train` of its own; one that fails does not take the others with it.

    Their output goes to <experiment>/fold<k>/train.log. SIGTERM is handed on: every fold saves its state, and the
    folds that have not begun are left for the next time.

    Args:
        argv: the arguments of `multiattn train` without --fold, --gpus and --device.
        numbers: the folds.
        slots: as from `parse_slots`.
        experiment: the folder `runs/<experiment>`.
    """
    free: queue.Queue[str] = queue.Queue()
    for slot in slots:
        free.put(slot)
    with listening() as interruption, ThreadPoolExecutor(len(slots)) as pool:
        # This thread hears the signals; the pool's threads look at what it heard.
        jobs = [pool.submit(_train_one, argv, number, free, len(slots), experiment, interruption) for number in numbers]
        outcomes = [job.result() for job in jobs]
        interruption.exit_if_asked()
    return outcomes


def _train_one(
    argv: list[str], number: int, free: "queue.Queue[str]", places: int, experiment: Path, interruption: Interruption
) -> FoldOutcome:
    slot = free.get()
    try:
        if interruption.asked:
            return FoldOutcome(number, "not begun")
        log = experiment / f"fold{number}" / LOG_FILE
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        logger.info("fold %d: begins on %s; its output goes to %s", number, _name(slot), log)
        code = _run(_command(argv, number, slot), _environment(slot, places), log, number, interruption)
        minutes = (time.monotonic() - started) / 60
        if code == 0:
            logger.info("fold %d: done after %.1f minutes", number, minutes)
            return FoldOutcome(number)
        reason = _last_line(log)
        logger.error("fold %d: ended with exit code %d after %.1f minutes: %s", number, code, minutes, reason)
        return FoldOutcome(number, f"exit code {code}: {reason}")
    finally:
        free.put(slot)


def _run(command: list[str], environment: dict[str, str], log: Path, number: int, interruption: Interruption) -> int:
    """The exit code of a child; reports its last line now and then."""
    with log.open("a") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    reported, told = time.monotonic(), False
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if interruption.asked and not told:
            process.send_signal(signal.SIGTERM)
            told = True
        if time.monotonic() - reported > SECONDS_BETWEEN_REPORTS:
            logger.info("fold %d: %s", number, _last_line(log))
            reported = time.monotonic()
    return process.returncode


def _command(argv: list[str], number: int, slot: str) -> list[str]:
    device = "cpu" if slot == "cpu" else "cuda"
    return [sys.executable, "-m", "multiattn", "train", *argv, "--fold", str(number), "--device", device]


def _environment(slot: str, places: int) -> dict[str, str]:
    """A GPU's process sees that one alone; processes on a CPU share its cores."""
    if slot != "cpu":
        return {**os.environ, "CUDA_VISIBLE_DEVICES": _visible(slot)}
    threads = max(1, (os.cpu_count() or 1) // places)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def _visible(slot: str) -> str:
    """The GPU of that number among those this process may use."""
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return allowed[int(slot)] if int(slot) < len(allowed) else slot


def _name(slot: str) -> str:
    return "the CPU" if slot == "cpu" else f"GPU {slot}"


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("(MULTIATTN_DEBUG")]
    return lines[-1] if lines else "no output"


def without_options(argv: list[str], names: tuple[str, ...]) -> Iterator[str]:
    """The arguments but for these options and their values (`--fold 0` or `--fold=0`)."""
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in names:
            skip = True
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            yield word
