"""The folds of one experiment: trained in turn, or each in a process on a GPU of its own, within a budget of hours; a
summary of their ends."""

import contextlib
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from multiattn.config import Experiment
from multiattn.datasets.folds import count_pseudo_labels, read_folds
from multiattn.model.backbone import require_image_size
from multiattn.runtime.files import exclusive_folder
from multiattn.runtime.layout import EPOCHS_FILE, FOLDS_FILE, TRAIN_LOG, fold_folder, fold_name, fold_number
from multiattn.runtime.processor import process_seconds
from multiattn.runtime.progress import WorkBar
from multiattn.runtime.signals import Interruption, listening
from multiattn.runtime.table_files import read_history
from multiattn.runtime.text_tables import counted, terminal_table
from multiattn.tables import FOLDS
from multiattn.training.data.crops import FACE_COLUMNS, split_crops
from multiattn.training.engine.batch_size import settle_batch
from multiattn.training.engine.budget import Budget, name_folds
from multiattn.training.engine.loop import VALIDATION_SECONDS, train_fold
from multiattn.training.engine.ranks import Ranks, gather_objects, wait_for_all
from multiattn.training.engine.run_folder import RunFolder
from multiattn.training.engine.validation import PREFIXES
from multiattn.video.crops.recipe import CropRecipe, read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """A faces folder and the folds over its videos, read and checked once."""

    folder: Path
    recipe: CropRecipe
    faces: pd.DataFrame
    videos: pd.DataFrame
    folds: pd.DataFrame

    def fold_numbers(self, text: str) -> list[int]:
        """The folds that `--fold` names: a number, or `all`.

        Raises:
            ValueError: neither, or no such fold.
        """
        present = sorted(int(number) for number in set(self.folds["fold"]) - {-1})
        if text == "all":
            return present
        if not text.isdecimal():
            raise ValueError(f"--fold: expected a number or `all`, found {text!r}.")
        if int(text) not in present:
            raise ValueError(
                f"--fold {text}: no such fold; folds present: {', '.join(map(str, present)) or 'none'}, or all."
            )
        return [int(text)]

    def require_crops_for(self, experiment: Experiment) -> None:
        """Refuse an experiment on larger crops than are stored, or of a size that its backbone does not take."""
        require_image_size(experiment.model.backbone, experiment.data.image_size)
        size, stored = experiment.data.image_size, self.recipe.size
        if size > stored:
            raise ValueError(
                f"{self.folder}: expected crops of {size} pixels or more, which {experiment.name} trains on, found "
                f"crops of {stored}. Cut them anew with `multiattn faces --size {size}`, or train with "
                f"--data.image-size {stored}."
            )


def read_training_data(faces: Path, folds: Path) -> TrainingData:
    """Read a faces folder and a folds CSV; refuses folds that leak."""
    recipe = read_recipe(faces)
    crops, _, videos = read_faces_folder(faces, columns=FACE_COLUMNS)
    return TrainingData(faces, recipe, crops, videos, read_folds(folds, videos=videos))


@dataclass(frozen=True)
class FoldOutcome:
    """End of one fold's training; `error` and `stopped` are empty where it ended well."""

    fold: int
    error: str = ""
    stopped: str = ""
    """How far it came where the budget stopped it."""


def plan_folds(budget: Budget, experiment: Experiment, folder: Path, numbers: list[int]) -> None:
    """Tell the budget what the folds of `runs/<experiment>` have left, and log what fits by the epochs so far."""
    if budget.hours is None:
        return
    budget.num_epochs, measured = experiment.num_epochs, []
    for number in numbers:
        left, seconds_an_epoch = what_is_left(fold_folder(folder, number), experiment)
        if left:
            budget.epochs_left[number] = left
        measured += [seconds_an_epoch] if seconds_an_epoch else []
    if measured:
        budget.forecast(max(measured))
    else:
        logger.info("plan: no epoch was measured yet; what fits into %g hours is told once the rate is.", budget.hours)


def what_is_left(folder: Path, experiment: Experiment) -> tuple[float, float]:
    """Epochs that a fold has left, by its latest validation, and the mean seconds of one so far; 0 where none is."""
    path, settings = folder / EPOCHS_FILE, experiment.validation
    if not path.is_file():
        return experiment.num_epochs, 0.0
    history = read_history(path, ("epoch", "phase", "candidate", "seconds", f"{PREFIXES['last']}{settings.metric}"))
    seconds, done = history.groupby("epoch")["seconds"].last().sum(), history["epochs_done"].max()
    seconds += history[VALIDATION_SECONDS].sum() if VALIDATION_SECONDS in history else 0.0
    since_best = history.index[-1] - _best(history, experiment)[0].name
    is_over = settings.patience is not None and since_best >= settings.patience
    return 0.0 if is_over else max(0.0, experiment.num_epochs - done), seconds / done


def train_folds(
    experiment: Experiment,
    data: TrainingData,
    numbers: list[int],
    runs: Path,
    *,
    device: torch.device,
    ranks: Ranks,
    bar: WorkBar,
    budget: Budget | None = None,
    allow_changes: bool = False,
    keep_going: bool = False,
    fit_batch: bool = False,
    is_tracked: bool = False,
    finish: Callable[[Path], object] | None = None,
) -> list[FoldOutcome]:
    """Train folds one after the other; a finished one is skipped, a killed one continued.

    Args:
        bar: of the work that these folds are a part of.
        budget: ends the training in time, with its state saved; no further fold is begun then.
        fit_batch: train in the largest batches that fit the device (`settle_batch`).
        is_tracked: record the curves with Weights & Biases too.
        finish: called by the main rank with the folder of each fold whose training has ended, also a finished one's.
        keep_going: a fold that fails does not take the others with it. For one process: among several ranks, the others
            would wait for the one that failed.

    Raises:
        ValueError: a folder holds a run with other settings, or settings do not fit the data.
    """
    data.require_crops_for(experiment)
    if fit_batch:
        experiment = settle_batch(experiment, runs, device=device, ranks=ranks)
    frames, outcomes, budget = experiment.data.validation_frames, [], budget or Budget()
    pseudo = {number: count_pseudo_labels(data.folds, number, "--folds") for number in numbers}  # before any is trained
    if ranks.is_main:
        plan_folds(budget, experiment, runs / experiment.name, numbers)
    for number in numbers:
        folder = fold_folder(runs / experiment.name, number)
        run = RunFolder(folder, number)
        if budget.hours is not None and gather_objects(budget.is_over, ranks)[0]:
            outcomes.append(FoldOutcome(number, stopped=budget.how_far(number)))
            continue
        try:
            if pseudo[number]:
                logger.info(
                    "%s: %d of %d training videos have pseudo-labels, by models that have not seen this fold's labels",
                    run.model_name, pseudo[number], (data.folds["fold"] != number).sum(),
                )  # fmt: skip
            held_out = {"validation_frames": frames, "videos": data.videos}
            settled = run.settle(experiment)
            crops = split_crops(data.faces, data.folds, number, data.folder, **held_out)
            with exclusive_folder(folder) if ranks.is_main else contextlib.nullcontext():
                if ranks.is_main:
                    place = {"device": device, "world_size": ranks.world_size}
                    run.begin(settled, data.recipe, crops, data.folds, **place, allow_changes=allow_changes)
                wait_for_all(ranks)
                more = {"bar": bar, "budget": budget, "is_tracked": is_tracked}
                is_over = train_fold(settled, crops, run, device=device, ranks=ranks, **more)
            budget.has_stopped = not is_over
            if is_over and finish is not None and ranks.is_main:
                finish(folder)
            outcomes.append(FoldOutcome(number, stopped="" if is_over else budget.how_far(number)))
        except (OSError, RuntimeError, ValueError) as error:
            if not keep_going:
                raise
            # A mistake that a user can correct needs no traceback.
            logger.error("%s failed: %s", run.model_name, error, exc_info=isinstance(error, RuntimeError))
            outcomes.append(FoldOutcome(number, str(error)))
        finally:
            budget.epochs_left.pop(number, None)
            bar.end(run.model_name)
    return outcomes


def require_same_folds(start: Path, numbers: list[int], folds: pd.DataFrame) -> None:
    """Refuse to start from runs (below an experiment's folder) that were trained on the videos held out by these folds,
    at another compression."""
    mine = _at_any_compression(folds)
    for number in numbers:
        path = fold_folder(start, number) / FOLDS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such run. The models of strongly compressed videos (c40) start from those of c23: run "
                "the same ablation on the c23 faces first, with the same --runs."
            )
        joined = mine.merge(_at_any_compression(FOLDS.read(path)), on="video", suffixes=("", "_there"))
        moved = joined[joined["fold"] != joined["fold_there"]]
        if len(moved):
            raise ValueError(
                f"{path}: leak: {counted(len(moved), 'video lies', 'videos lie')} "
                f"in another fold there, {moved['video'].iloc[0]} the first. "
                "Make the folds of both compressions alike (one table for both, or the same groups and seed)."
            )


def _at_any_compression(folds: pd.DataFrame) -> pd.DataFrame:
    videos = folds["video_id"].str.replace(r"/(c23|c40)/", "/*/", regex=True)
    return pd.DataFrame({"video": videos, "fold": folds["fold"]})


def describe_folds(experiment: Experiment, folder: Path, outcomes: list[FoldOutcome]) -> str:
    """A table of these folds of `runs/<experiment>` for a terminal, a line each: how it ended, its best validation, and
    the metric at its end, which no choice on the held-out fold has bettered."""
    metric = experiment.validation.metric
    rows = [["fold", "ended", "epochs", metric, "AUC", "epoch", "weights", "at the end", "minutes"]]
    for outcome in outcomes:
        path = fold_folder(folder, outcome.fold) / EPOCHS_FILE
        row = [outcome.fold, "failed" if outcome.error else "stopped" if outcome.stopped else "well"]
        if path.is_file():
            columns = ("epoch", "phase", "candidate", "seconds", f"{PREFIXES['last']}{metric}")
            history = read_history(path, columns)
            best, value, auc = _best(history, experiment)
            minutes = history.groupby("epoch")["seconds"].last().sum() / 60
            last = history[f"{PREFIXES['last']}{metric}"].iloc[-1]
            row += [f"{history['epochs_done'].max():g}", f"{value:.4f}", f"{auc:.4f}"]
            rows.append([*row, best["epoch"], best["candidate"], f"{last:.4f}", f"{minutes:.1f}"])
        else:
            rows.append([*row, 0, *[""] * 6])
    lines = [f"fold {outcome.fold} failed: {outcome.error}" for outcome in outcomes if outcome.error]
    ends = dict.fromkeys(outcome.stopped for outcome in outcomes if outcome.stopped)
    if stopped := [(end, [outcome.fold for outcome in outcomes if outcome.stopped == end]) for end in ends]:
        words = "; ".join(f"{name_folds(folds)} {end}" for end, folds in stopped)
        lines.append(
            f"Stopped by --budget-hours: {words}. All is saved; the same command goes on, in another session too where "
            "this runs folder lies there."
        )
    return "\n".join([terminal_table(rows, right=(0, 2, 3, 4, 5, 7, 8)), *lines])


def _best(history: pd.DataFrame, experiment: Experiment) -> tuple[pd.Series, float, float]:
    """The row of the best validation, and its candidate's metric and AUC."""
    settings = experiment.validation
    alone = {phase.name for phase in experiment.schedule if phase.objective == "backbone"}
    rows = history[~history["phase"].isin(alone)]
    rows = rows if len(rows) else history
    values = rows.apply(lambda row: row[f"{PREFIXES[row['candidate']]}{settings.metric}"], axis=1)
    best = rows.loc[values.idxmax() if settings.higher_is_better else values.idxmin()]
    prefix = PREFIXES[best["candidate"]]
    return best, float(best[f"{prefix}{settings.metric}"]), float(best[f"{prefix}auc"])


POLL_SECONDS, SECONDS_BETWEEN_READINGS = 0.2, 5.0
_SAMPLES = re.compile(rb": (\d+)/(\d+) samples, ")
"""The progress line of `WorkBar` without a terminal, as a fold's process writes it to its log."""
_EPOCH = re.compile(rb"plan: an epoch takes (\S+) s ")
"""The line of `Budget.forecast` there."""
_STOPPED = re.compile(r"Stopped by --budget-hours: fold \d+ (.+?)\. All")
"""The end of `describe_folds` there."""


def parse_slots(text: str) -> list[str]:
    """Parse `--gpus` into the places of processes: `0,1,2,3`, or `cpu` once for each process on a CPU.

    Raises:
        ValueError: something else, or a GPU twice.
    """
    slots = [part.strip() for part in text.split(",")]
    gpus = [slot for slot in slots if slot != "cpu"]
    if not all(slot.isdecimal() for slot in gpus) or len(set(gpus)) < len(gpus):
        raise ValueError(f"--gpus: expected numbers of GPUs, each once, as 0,1,2,3 (or cpu), found {text!r}.")
    return slots


def train_in_processes(
    argv: list[str], numbers: list[int], slots: list[str], folder: Path, *, experiment: Experiment, budget: Budget
) -> list[FoldOutcome]:
    """Train every fold with a `multiattn train` of its own; one that fails does not take the others with it.

    Their output goes to fold<k>/train.log in the folder of the experiment. SIGTERM is handed on: every fold saves its
    state, and the folds that have not begun are left for the next time. `argv` has the arguments without --fold,
    --gpus, --device and --budget-hours.
    """
    free: queue.Queue[str] = queue.Queue()
    for slot in slots:
        free.put(slot)
    bar, budget.places = WorkBar(folder.name, len(numbers)), len(slots)
    plan_folds(budget, experiment, folder, numbers)
    with listening() as interruption, bar, ThreadPoolExecutor(len(slots)) as pool:
        # Signals reach this thread alone; the pool's threads read what it noted.

        def train(number: int) -> FoldOutcome:
            slot = free.get()
            try:
                return _train_process(argv, number, slot, fold_folder(folder, number), interruption, bar, budget)
            finally:
                budget.epochs_left.pop(number, None)
                bar.end(fold_name(fold_folder(folder, number)))
                free.put(slot)

        outcomes = list(pool.map(train, numbers))
        interruption.exit_if_asked()
    return outcomes


def _train_process(
    argv: list[str],
    number: int,
    slot: str,
    folder: Path,
    interruption: Interruption,
    bar: WorkBar,
    budget: Budget,
) -> FoldOutcome:
    """Train one fold in a process of its own."""
    if interruption.asked:
        return FoldOutcome(number, "not begun")
    if budget.is_over:
        return FoldOutcome(number, stopped=budget.how_far(number))
    log = folder / TRAIN_LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    started, written = time.monotonic(), log.stat().st_size if log.is_file() else 0
    device, place = ("cpu", "the CPU") if slot == "cpu" else ("cuda", f"GPU {slot}")
    logger.info("fold %d: begins on %s; its output goes to %s", number, place, log)
    command = [sys.executable, "-m", "multiattn", "train", *argv, "--fold", str(number), "--device", device]
    if budget.hours is not None:  # its process begins now
        command += ["--budget-hours", str(budget.hours - process_seconds() / 3600)]
    code = _run(command, _environment(slot, budget.places), log, interruption, bar, budget)
    minutes = (time.monotonic() - started) / 60
    if code == 0:
        stopped = _STOPPED.search(log.read_bytes()[written:].decode(errors="replace"))
        budget.has_stopped |= stopped is not None
        logger.info("fold %d: %s after %.1f minutes", number, "stopped" if stopped else "done", minutes)
        return FoldOutcome(number, stopped=stopped[1] if stopped else "")
    reason = _last_line(log)
    logger.error("fold %d: ended with exit code %d after %.1f minutes: %s", number, code, minutes, reason)
    return FoldOutcome(number, f"exit code {code}: {reason}")


def _run(
    command: list[str],
    environment: dict[str, str],
    log: Path,
    interruption: Interruption,
    bar: WorkBar,
    budget: Budget,
) -> int:
    """The exit code of a child; takes its progress to the bar and the budget, and hands SIGTERM on."""
    with log.open("ab") as file:
        begin = file.tell()
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    last_reading, stop_sent, forecasts = time.monotonic(), False, 0
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        if interruption.asked and not stop_sent:
            process.send_signal(signal.SIGTERM)
            stop_sent = True
        if time.monotonic() - last_reading > SECONDS_BETWEEN_READINGS:
            last_reading = time.monotonic()
            written = log.read_bytes()[begin:]
            if lines := _SAMPLES.findall(written):
                done, samples = map(int, lines[-1])
                bar.report(fold_name(log.parent), done, samples)
                budget.epochs_left[fold_number(log.parent)] = budget.num_epochs * (1 - done / samples)
            if len(lines := _EPOCH.findall(written)) > forecasts:
                forecasts = len(lines)
                budget.forecast(float(lines[-1]))
    return process.returncode


def _environment(slot: str, places: int) -> dict[str, str]:
    """Environment of a child: a GPU's process sees that one alone; all of them share the cores."""
    shared = {**os.environ, "LOCAL_WORLD_SIZE": str(places)}  # for `usable_cores`
    if slot == "cpu":
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // places)), **shared}
    # The number counts the GPUs that this process may use.
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {**shared, "CUDA_VISIBLE_DEVICES": allowed[int(slot)] if int(slot) < len(allowed) else slot}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith("(MULTIATTN_DEBUG")]
    return lines[-1] if lines else "no output"


def without_options(argv: list[str], names: tuple[str, ...]) -> Iterator[str]:
    """The arguments but for these options and their values (`--fold 0` or `--fold=0`)."""
    words = iter(argv)
    for word in words:
        if word in names:
            next(words, None)
        elif word.partition("=")[0] not in names:
            yield word
