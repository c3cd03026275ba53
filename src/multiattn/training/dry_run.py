"""The work that `train` would do, without writing a file: folds, steps, time and memory."""

import time
from pathlib import Path

import torch

from multiattn.config import Experiment
from multiattn.datasets.folds import count_pseudo_labels
from multiattn.model.precision import resolve_precision
from multiattn.runtime.devices import device_names, num_ranks
from multiattn.runtime.layout import RESULT_FILES, fold_folder
from multiattn.runtime.processor import free_memory
from multiattn.runtime.text_tables import duration, terminal_table
from multiattn.training.data.crops import SAMPLINGS, split_crops
from multiattn.training.engine.memory import passes_of_a_batch, step_memory
from multiattn.training.engine.run_folder import RunFolder
from multiattn.training.engine.step import TrainingStep
from multiattn.training.folds import TrainingData, what_is_left

MEASURED_BATCHES = 2


def describe_plan(
    experiment: Experiment,
    data: TrainingData,
    numbers: list[int],
    folder: Path,
    *,
    device: torch.device,
    places: int = 1,
    allow_changes: bool = False,
) -> list[str]:
    """A table of the folds, then hours, memory and files.

    The hours are those of the epochs that folds of this experiment have had, else of two batches computed here.

    Args:
        folder: `runs/<experiment>`.
        places: folds that are trained at once.

    Raises:
        ValueError: a fold was begun with other settings, crops or folds, as of `RunFolder.begin`; or pseudo-labels by
            models that have seen its labels.
    """
    for number in numbers:
        count_pseudo_labels(data.folds, number, "--folds")
    rows = [["fold", "is", "training crops an epoch", "held-out crops", "batches an epoch", "epochs left"]]
    batch, batches, epochs, measured = experiment.data.batch_size, [], [], []
    for number in numbers:
        run = RunFolder(fold_folder(folder, number), number)
        frames = experiment.data.validation_frames
        crops = split_crops(data.faces, data.folds, number, data.folder, validation_frames=frames, videos=data.videos)
        how = {"device": device, "world_size": num_ranks(), "allow_changes": allow_changes}
        run.require_same(run.settle(experiment), data.recipe, crops, data.folds, **how)
        samples = SAMPLINGS[experiment.data.sampling](crops, experiment.data, experiment.seed).samples_per_epoch
        left, seconds_an_epoch = what_is_left(run.path, experiment)
        state = "finished" if not left else "begun" if run.has_begun else "new"
        batches.append(-(-samples // batch))
        epochs.append(left)
        measured += [seconds_an_epoch] if seconds_an_epoch else []
        rows.append([number, state, f"{samples:,}", f"{len(crops.validation):,}", f"{batches[-1]:,}", f"{left:g}"])
    with torch.device("meta"):  # layers without memory
        step = TrainingStep(experiment, load_weights=False)
    memory = step_memory(step, experiment).total
    lines = [terminal_table(rows, right=(0, 2, 3, 4, 5))]
    lines.append(f"memory: {memory / 1e9:.2f} GB at least for a step of {batch} crops, as counted on shapes")
    if any(epochs):
        lines.append(_hours(experiment, batches, epochs, max(measured, default=0.0), memory, device, places))
    files = (
        f"would write {folder}/fold<k> with {', '.join(RESULT_FILES[:-1])}, ..." if any(epochs) else "nothing is left."
    )
    return [*lines, f"{files} Nothing was written."]


def _hours(
    experiment: Experiment,
    batches: list[int],
    epochs: list[float],
    seconds_an_epoch: float,
    memory: int,
    device: torch.device,
    places: int,
) -> str:
    if seconds_an_epoch:
        seconds, how = sum(epochs) * seconds_an_epoch, "by the epochs of this experiment so far"
    elif device.type == "cpu" and memory > free_memory():
        return f"time: not measured, for a step does not fit the {free_memory() / 1e9:.1f} GB of free memory"
    else:
        a_batch = _seconds_a_batch(experiment, device)
        seconds = a_batch * sum(left * number for left, number in zip(epochs, batches, strict=True))
        how = (
            f"by {MEASURED_BATCHES} batches computed here ({a_batch:.2g} s each), without reading crops and validating"
        )
    at_once = f", {places} folds at once" if places > 1 else ""
    return f"time: {duration(seconds / places)} on {device_names(device)}{at_once}, {how}"


def _seconds_a_batch(experiment: Experiment, device: torch.device) -> float:
    """Mean seconds of the passes of a black batch in the last phase, after one that is not counted."""
    precision = resolve_precision(experiment.precision, device).name
    step = TrainingStep(experiment, load_weights=False).to(device)
    passes = passes_of_a_batch(step, experiment, device, precision)
    times = []
    for _ in range(1 + MEASURED_BATCHES):
        started = time.perf_counter()
        passes(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return sum(times[1:]) / MEASURED_BATCHES
