"""The largest batch that a device's memory takes, with the crops of an update as many as the experiment has."""

import gc
import hashlib
import json
import logging
import math
import os
from dataclasses import replace
from pathlib import Path

import torch

from multiattn.config import Experiment, OptimConfig, to_json
from multiattn.model.losses import apart_from_other_ranks
from multiattn.model.precision import resolve_precision
from multiattn.runtime.devices import autocast
from multiattn.runtime.environment import device_name
from multiattn.runtime.files import exclusive_folder, read_json, write_json
from multiattn.runtime.layout import BATCH_SIZES_FILE, ENVIRONMENT_FILE, EXPERIMENT_FILE, fold_number, folds_below
from multiattn.runtime.processor import free_memory
from multiattn.training.engine.loop import update
from multiattn.training.engine.memory import step_memory
from multiattn.training.engine.optimizer import make_optimizer
from multiattn.training.engine.ranks import Ranks, gather_objects
from multiattn.training.engine.run_folder import RunFolder, read_experiment
from multiattn.training.engine.step import TrainingStep, backward_passes, set_train_mode, set_trainable
from multiattn.video.extraction.engine import is_out_of_memory

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.9
"""Share of a GPU's memory, or of what is free on a CPU, that a step may take."""
CPU_FACTOR = 1.6
"""A process was measured to grow by 1.2 to 1.6 times what is counted for a step (training/README.md)."""


def settle_batch(experiment: Experiment, runs: Path, *, device: torch.device, ranks: Ranks) -> Experiment:
    """The experiment in the largest batches that fit, as many accumulated as make the updates it has.

    The batch is that of the experiment's folds in `runs`, where one was begun. A collective call of all ranks.

    Raises:
        ValueError: no batch fits, or that of the folds does not.
    """
    sizes, is_known, kept = possible_batches(experiment), False, None
    for folder in folds_below(runs / experiment.name, EXPERIMENT_FILE):
        begun = read_experiment(folder)
        if RunFolder(folder, fold_number(folder)).has_begun and _update_crops(begun) == _update_crops(experiment):
            is_known = read_json(folder / ENVIRONMENT_FILE)["device"] == device_name(device)
            sizes = [kept := begun.data.batch_size]
            break
    for size in sizes:
        found = with_batch(experiment, size)
        if all(gather_objects(is_known or _fits(found, device, runs / BATCH_SIZES_FILE), ranks)):
            if ranks.is_main:
                accumulate = found.schedule[-1].optim.accumulate
                reason = f"the largest to fit {MEMORY_SHARE:.0%} of the memory" if kept is None else "as it was begun"
                logger.info("%s: batches of %d crops, %d an update, %s", experiment.name, size, accumulate, reason)
            return found
    where = f"{MEMORY_SHARE:.0%} of the memory of {device_name(device)}"
    if kept is not None:
        raise ValueError(
            f"{runs / experiment.name}: was begun in batches of {kept} crops, which do not fit {where}. Continue it on "
            "a device with more; or give smaller ones, --data.batch-size and --optim.accumulate, and --allow-changes."
        )
    crops = math.gcd(*_update_crops(experiment))
    raise ValueError(
        f"--data.batch-size auto: expected a batch that makes updates of {crops} crops and fits {where}, found none of "
        f"{', '.join(map(str, sizes)) or 'at least 2'}. Take smaller crops (--data.image-size), a smaller network or "
        "--model.checkpoint-activations."
    )


def possible_batches(experiment: Experiment) -> list[int]:
    """Batches of which whole numbers make the updates of every phase, the largest first; at least 2, for batch
    normalisation, and even where crops come in pairs."""
    crops, step = math.gcd(*_update_crops(experiment)), 2 if experiment.data.sampling == "paired" else 1
    return [size for size in range(crops, 1, -1) if crops % size == 0 and size % step == 0]


def with_batch(experiment: Experiment, size: int) -> Experiment:
    """The experiment in batches of `size`, accumulated to the updates it has."""

    def accumulated(optim: OptimConfig) -> OptimConfig:
        return replace(optim, accumulate=experiment.data.batch_size * optim.accumulate // size)

    phases = tuple(replace(phase, optim=accumulated(phase.optim)) for phase in experiment.phases)
    optim = experiment.optim if phases else accumulated(experiment.optim)
    return replace(experiment, data=replace(experiment.data, batch_size=size), phases=phases, optim=optim)


def _update_crops(experiment: Experiment) -> list[int]:
    """Crops of one process in an update of each phase."""
    return [experiment.data.batch_size * phase.optim.accumulate for phase in experiment.schedule]


def _fits(experiment: Experiment, device: torch.device, cache: Path) -> bool:
    """True where a step of the experiment stays within its share of the memory."""
    if device.type != "cpu":
        return fits_by_trial(experiment, device, cache)
    # Counted: a trial that took too much would be ended by the system, or other programs instead of it.
    with torch.device("meta"):
        step = TrainingStep(experiment, load_weights=False)
    needed, batch = CPU_FACTOR * step_memory(step, experiment).total, experiment.data.batch_size
    free = MEMORY_SHARE * free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    logger.info("a batch of %d takes about %.2g GB, as counted, of %.2g", batch, needed / 1e9, free / 1e9)
    return needed <= free


def fits_by_trial(experiment: Experiment, device: torch.device, cache: Path) -> bool:
    """True where steps of the experiment run in their share of the device's memory: tried, or known by the cache.

    The cache has, by network, size, precision and device, the largest batch that fitted and the smallest that did not.
    """
    batch, key = experiment.data.batch_size, _cache_key(experiment, device)
    known = _read_cache(cache).get(key, {})
    if batch <= known.get("fits", 0) or batch >= known.get("fails", math.inf):
        return batch <= known.get("fits", 0)
    free, total = torch.cuda.mem_get_info(device) if device.type == "cuda" else (1, 1)
    fits = _try_steps(experiment, device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if free < MEMORY_SHARE * total:
        logger.warning("Other programs use %s: what fits beside them is not kept.", device_name(device))
        return fits
    with exclusive_folder(cache.parent):
        entries = _read_cache(cache)
        entry, name, better = entries.setdefault(key, {}), *(("fits", max) if fits else ("fails", min))
        entry[name] = better(entry.get(name, batch), batch)
        write_json(cache, entries)
    return fits


def _cache_key(experiment: Experiment, device: torch.device) -> str:
    """Network, size, precision and device; the digest is of all else that a step's memory depends on."""
    settings, model = to_json(experiment), experiment.model
    phases = [[phase.objective, phase.freeze_backbone, phase.agda, phase.optim.name] for phase in experiment.schedule]
    facts = [*(settings[name] for name in ("model", "loss", "agda", "average", "compile")), phases, torch.__version__]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    precision = resolve_precision(experiment.precision, device).name
    place = f"{experiment.data.image_size} px, {precision}, {device_name(device)}"
    return f"{model.network} on {model.backbone}, {place}, {digest}"


def _read_cache(cache: Path) -> dict[str, dict[str, int]]:
    return read_json(cache) if cache.is_file() else {}


def _try_steps(experiment: Experiment, device: torch.device) -> bool:
    """True where memory does not run out in `_run_steps`."""
    try:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE, device)
        with apart_from_other_ranks():  # memory may run out, or the cache know the batch, on one rank alone
            _run_steps(experiment, device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    return True


def _run_steps(experiment: Experiment, device: torch.device) -> None:
    """Two updates of two batches in each phase: the second beside the optimiser's state, its second batch beside
    gradients."""
    data, precision = experiment.data, resolve_precision(experiment.precision, device).name
    step = TrainingStep(experiment, load_weights=False).to(device)
    averaged = [tensor.clone() for tensor in step.network.state_dict().values()] if experiment.average.ema_decay else []
    if experiment.compile:
        step.network.compile()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    crops = torch.zeros(data.batch_size, data.image_size, data.image_size, 3, dtype=torch.uint8, device=device)
    labels = torch.arange(data.batch_size, device=device) % 2
    for phase in experiment.schedule:
        set_trainable(step, phase)
        set_train_mode(step, step, phase)
        optimizer = make_optimizer(step, phase.optim)
        how = {"objective": phase.objective, "degrade": phase.agda, "share": 0.5, "scaler": scaler}
        how["context"] = lambda: autocast(precision, device)
        for is_first in (True, False, True, False):
            if is_first:
                optimizer.zero_grad()
            backward_passes(step, step, crops, labels, is_first=is_first, is_update=not is_first, **how)
            if not is_first:
                update(step, optimizer, scaler, phase.optim.clip_grad_norm)
    del averaged
