"""Hours and quota of a notebook's training before it begins: its samples by the rate of a step, measured on the spot.

A crop that is validated counts as that part of a training sample which its forward is (`network_flops`). Of several
GPUs one is measured, with its share of the cores to read crops, and the rate multiplied. What they exchange after each
step, starting and saving come on top.
"""

import itertools
import math
from dataclasses import replace

import torch

from multiattn.bench.train import network_flops, training_rate
from multiattn.config import Experiment
from multiattn.runtime.devices import pick_device
from multiattn.runtime.kaggle import WEEKLY_GPU_HOURS
from multiattn.runtime.layout import EPOCHS_FILE, fold_folder
from multiattn.runtime.processor import usable_cores
from multiattn.runtime.table_files import read_history
from multiattn.runtime.text_tables import counted, terminal_table
from multiattn.training.data.crops import SAMPLINGS, FoldCrops, split_crops
from multiattn.training.folds import read_training_data
from multiattn.training.notebook import BUDGET_HOURS, NotebookTraining


def describe_plan(training: NotebookTraining) -> str:
    """Samples and hours of each fold that is to be trained, by a rate that is measured first, and what they are of a
    session and of Kaggle's weekly quota; for a terminal. Where a step cannot be measured (a batch that does not fit,
    which `--data.batch-size auto` would mend), that is said instead: it must not keep the training from its try.

    Raises:
        ValueError: no such fold, or an experiment on larger crops than are stored.
    """
    experiment, data = training.experiment, read_training_data(training.faces, training.folds)
    data.require_crops_for(experiment)
    samples, processes = {}, max(1, training.num_gpus)
    for number in data.fold_numbers(training.fold):
        frames = {"validation_frames": experiment.data.validation_frames, "videos": data.videos}
        crops = split_crops(data.faces, data.folds, number, data.folder, **frames)
        path = fold_folder(training.folder, number) / EPOCHS_FILE
        done = read_history(path, ("epoch",))["epochs_done"].max() if path.is_file() else 0.0
        samples[number] = (experiment.num_epochs - done) * samples_an_epoch(experiment, crops, processes)
    device = pick_device("auto")
    try:
        rate = processes * training_rate(_as_measured(experiment, processes), device=device, faces=training.faces)
    except ValueError as error:
        return f"No plan: a training step could not be measured. {error}"
    return "\n".join(plan_lines(samples, rate, training.hours_left(), _name(device, processes)))


def samples_an_epoch(experiment: Experiment, crops: FoldCrops, processes: int) -> float:
    """Crops that an epoch trains on, and for those that it validates as many samples as cost as much."""
    config, average = experiment.data, experiment.average
    trained = SAMPLINGS[config.sampling](crops, config, experiment.seed).samples_per_epoch
    every = experiment.validation.every_steps
    updates = math.ceil(trained / config.batch_size / processes / experiment.schedule[-1].optim.accumulate)
    validations = 1 + ((updates - 1) // every if every else 0)
    candidates = 1 + (average.ema_decay > 0) + (average.best > 0)
    share = network_flops(experiment, "infer") / network_flops(experiment, "train")
    return trained + share * validations * candidates * len(crops.validation)


def plan_lines(samples: dict[int, float], rate: float, hours_left: float, machine: str) -> list[str]:
    """The plan in words: fold -> samples to come, at so many a second, with so many hours left of this session."""
    hours = {fold: count / rate / 3600 for fold, count in samples.items()}
    rows = [("fold", "samples to come", "hours")]
    rows += [(fold, f"{samples[fold]:,.0f}", f"{hours[fold]:.2f}") for fold in samples]
    total = sum(hours.values())
    sums = itertools.accumulate(hours.values())
    fitting = [str(fold) for fold, end in zip(hours, sums, strict=True) if end <= hours_left]
    left = [str(fold) for fold in hours if str(fold) not in fitting]
    session = f"Of this session {hours_left:.2f} h are left: "
    session += f"enough for fold {', '.join(fitting)}" if fitting else "not enough for a whole fold"
    if left:
        session += f"; fold {', '.join(left)} goes on in another version, with this one's output as an input"
    return [
        *terminal_table(rows, right=(0, 1, 2)).splitlines(),
        f"{total:.2f} h at {rate:.1f} samples/s, measured on {machine}: "
        f"{counted(max(1, math.ceil(total / BUDGET_HOURS)), 'session')} of {BUDGET_HOURS:g} h, "
        f"{total / WEEKLY_GPU_HOURS:.0%} of the {WEEKLY_GPU_HOURS:g} GPU hours that Kaggle gives a week.",
        f"{session}.",
    ]


def _as_measured(experiment: Experiment, processes: int) -> Experiment:
    """The experiment with drawn weights, no cache, and a process's share of the cores."""
    workers = min(experiment.data.num_workers, max(1, usable_cores() // processes))
    return replace(
        experiment,
        model=replace(experiment.model, weights=None),
        data=replace(experiment.data, num_workers=workers, cache="none"),
    )


def _name(device: torch.device, processes: int) -> str:
    if device.type != "cuda":
        return "this machine's processor, which has no GPU"
    return f"{processes} x {torch.cuda.get_device_name(device)}"
