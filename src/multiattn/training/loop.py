"""Epochs of one fold: train, validate on the held-out videos, save; continues where a killed run was."""

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from multiattn.config import Experiment
from multiattn.model.cpu_layers import speed_up_cpu_training
from multiattn.model.diagnostics import AttentionStatistics, center_distance, collapse_warning
from multiattn.model.independence import RegionalIndependenceLoss
from multiattn.model.network import NetworkOutput
from multiattn.model.predict import predict_logits
from multiattn.runtime import (
    autocast,
    progress_bar,
    resolve_precision,
    seed_everything,
    tune_cpu,
    waiting_threads_sleep,
)
from multiattn.scoring.aggregation import Aggregator, aggregate_frames, complete_videos, frame_predictions
from multiattn.scoring.metrics import video_metrics
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.crops import FoldCrops, training_loader, validation_loader
from multiattn.training.distributed import Ranks, gather_strided, mean_over_ranks, wait_for_all
from multiattn.training.optimizer import make_optimizer, make_schedule
from multiattn.training.phases import PhaseSpan, phase_spans, set_train_mode, set_trainable, span_at
from multiattn.training.run_folder import RunFolder, start_from
from multiattn.training.step import TrainingStep, backward_passes

logger = logging.getLogger(__name__)

STEPS_BETWEEN_LOOKS = 20
"""Reading the loss waits for the device, so it is looked at now and then only."""


@dataclass
class _Training:
    """What one fold's training consists of."""

    experiment: Experiment
    crops: FoldCrops
    run: RunFolder
    ranks: Ranks
    device: torch.device
    precision: str
    step: TrainingStep
    loader: DataLoader
    validation: DataLoader
    scaler: torch.amp.GradScaler
    span: PhaseSpan
    module: nn.Module
    optimizer: Optimizer
    schedule: Scheduler
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def best_log_loss(self) -> float:
        """Of the network: epochs that trained the backbone alone do not count."""
        alone = {span.phase.name for span in phase_spans(self.experiment) if span.phase.objective == "backbone"}
        losses = [record["validation_log_loss"] for record in self.history if record["phase"] not in alone]
        return min(losses, default=math.inf)

    @property
    def trains_backbone_alone(self) -> bool:
        return self.span.phase.objective == "backbone"


def train_fold(experiment: Experiment, crops: FoldCrops, run: RunFolder, *, device: torch.device, ranks: Ranks) -> None:
    """Train one fold to its last epoch; does nothing when it is there already.

    The best epoch is the one with the lowest log loss over the held-out videos, by the aggregator that also makes
    submissions; a held-out video without a face counts with the prior.

    Raises:
        ValueError: settings that do not fit the data, or a loss that is not finite.
    """
    state = run.load_resume()
    first = len(state["history"]) if state is not None else 0
    if first >= experiment.num_epochs:
        logger.info("%s: finished already", run.model_name)
        return
    training = _prepare(experiment, crops, run, device, ranks, state)
    samples = len(training.loader) * experiment.data.batch_size * ranks.world_size
    writer = SummaryWriter(run.path / "tensorboard", purge_step=first) if ranks.is_main else None
    total = experiment.num_epochs * samples
    with progress_bar(total, run.model_name, "samples", initial=first * samples, disable=not ranks.is_main) as bar:
        for epoch in range(first, experiment.num_epochs):
            if epoch == training.span.end:
                _begin_phase(training, span_at(experiment, epoch))
            started = time.monotonic()
            means = _train_epoch(training, epoch, bar)
            seconds = time.monotonic() - started
            record = {
                "epoch": epoch,
                "phase": training.span.phase.name,
                **means,
                "learning_rate": training.optimizer.param_groups[0]["lr"],
                "seconds": round(seconds, 3),
                "samples_per_second": round(samples / seconds, 1),
            }
            _end_epoch(training, record, writer)
    if writer is not None:
        writer.close()


def _prepare(
    experiment: Experiment,
    crops: FoldCrops,
    run: RunFolder,
    device: torch.device,
    ranks: Ranks,
    state: dict[str, Any] | None,
) -> _Training:
    if device.type == "cpu":
        tune_cpu()
    seed_everything(experiment.seed)
    step = TrainingStep(experiment, load_weights=state is None and experiment.start_from is None).to(device)
    if state is None and experiment.start_from is not None:
        start_from(step.network, experiment.start_from, run.fold)
    if device.type == "cpu" and waiting_threads_sleep():
        step = speed_up_cpu_training(step)
    if ranks.world_size > 1 and device.type == "cuda":
        # timm's, not torch's: torch's drops the activation that timm's normalisation layers carry.
        step = convert_sync_batchnorm(step)
    loader = training_loader(crops, experiment.data, seed=experiment.seed, rank=ranks.rank, world_size=ranks.world_size)
    precision = resolve_precision(experiment.precision, device)
    span = span_at(experiment, len(state["history"]) if state is not None else 0)
    set_trainable(step, span.phase)
    optimizer = make_optimizer(step, span.phase.optim)
    training = _Training(
        experiment=experiment,
        crops=crops,
        run=run,
        ranks=ranks,
        device=device,
        precision=precision,
        step=step,
        loader=loader,
        validation=validation_loader(crops, experiment.data, rank=ranks.rank, world_size=ranks.world_size),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        span=span,
        module=_wrap(step, device, ranks),
        optimizer=optimizer,
        schedule=_schedule(optimizer, span, loader),
    )
    if state is not None:
        _resume(training, state)
    return training


def _begin_phase(training: _Training, span: PhaseSpan) -> None:
    """What a phase has of its own: trainable weights, optimiser and schedule."""
    training.span = span
    set_trainable(training.step, span.phase)
    training.optimizer = make_optimizer(training.step, span.phase.optim)
    training.schedule = _schedule(training.optimizer, span, training.loader)
    training.module = _wrap(training.step, training.device, training.ranks)
    logger.info("%s: phase %s begins, %d epochs", training.run.model_name, span.phase.name, span.phase.epochs)


def _schedule(optimizer: Optimizer, span: PhaseSpan, loader: DataLoader) -> Scheduler:
    return make_schedule(optimizer, span.phase.optim, steps_per_epoch=len(loader), epochs=span.phase.epochs)


def _wrap(step: TrainingStep, device: torch.device, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return step
    return DistributedDataParallel(
        step,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=step.backbone_head is not None,  # each phase leaves one of the heads out
    )


def _resume(training: _Training, state: dict[str, Any]) -> None:
    try:
        training.step.load_state_dict(state["step"])
        if len(state["history"]) > training.span.first:  # a phase that begins has a new optimiser
            training.optimizer.load_state_dict(state["optimizer"])
        training.scaler.load_state_dict(state["scaler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{training.run.path / 'resume.pt'}: not the state of this experiment: {error}. "
            "Is the file of another run? Delete it to train this fold from its beginning."
        ) from error
    training.history = state["history"]
    logger.info("%s: continues after epoch %d", training.run.model_name, training.epochs_done - 1)


def _train_epoch(training: _Training, epoch: int, bar: tqdm) -> dict[str, float]:
    """One pass; returns the mean of each loss term over the epoch and the ranks."""
    ranks, loader = training.ranks, training.loader
    # Seeded anew each epoch, so a run that continues draws what an undisturbed one would have drawn.
    seed_everything(hash((training.experiment.seed, epoch, ranks.rank)))
    loader.batch_sampler.epoch = epoch
    phase = training.span.phase
    set_train_mode(training.module, training.step, phase)
    degrade = phase.agda and epoch >= training.experiment.agda.first_epoch
    sums: dict[str, torch.Tensor] = {}
    for number, (crops, labels) in enumerate(loader):
        done = (epoch - training.span.first) * len(loader) + number
        terms = _update(training, crops, labels, updates=done, degrade=degrade)
        for name, value in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        bar.update(len(labels) * ranks.world_size)
        if number % STEPS_BETWEEN_LOOKS == 0 or number + 1 == len(loader):
            # The mean over the ranks: when one of them diverges, all of them stop, and none waits for the others.
            loss = mean_over_ranks({"loss": float(terms["loss"])}, training.device, ranks)["loss"]
            if not math.isfinite(loss):
                raise ValueError(
                    f"{training.run.model_name}: epoch {epoch}, step {number}: the loss is {loss} "
                    f"({', '.join(f'{name} {float(value):.4g}' for name, value in terms.items())}) at learning rate "
                    f"{training.optimizer.param_groups[0]['lr']:.3g} in {training.precision}. The last epoch's files "
                    "are intact. Try a lower --optim.lr, or --precision fp32."
                )
            bar.set_postfix(epoch=epoch, loss=f"{loss:.4f}", refresh=False)
    training.step.end_epoch()
    means = {name: float(value) / len(loader) for name, value in sums.items()}
    return mean_over_ranks(means, training.device, ranks)


def _update(
    training: _Training, crops: torch.Tensor, labels: torch.Tensor, *, updates: int, degrade: bool
) -> dict[str, torch.Tensor]:
    """One optimiser step; `updates` of this phase were done before it."""
    training.schedule.step_update(updates)
    crops = crops.to(training.device, non_blocking=True)
    labels = labels.to(training.device, non_blocking=True)
    training.optimizer.zero_grad(set_to_none=True)
    terms = backward_passes(
        training.module,
        training.step,
        crops,
        labels,
        scaler=training.scaler,
        context=lambda: autocast(training.precision, training.device),
        objective=training.span.phase.objective,
        degrade=degrade,
    )
    clip = training.span.phase.optim.clip_grad_norm
    if clip is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.module.parameters(), clip)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    return terms


def _end_epoch(training: _Training, record: dict[str, Any], writer: SummaryWriter | None) -> None:
    """Validate, then save: best first, `resume.pt` last."""
    statistics = AttentionStatistics()
    predictions = validate(training, statistics)
    if training.ranks.is_main:
        aggregator = Aggregator()
        held_out = training.crops.held_out
        videos = complete_videos(held_out["video_id"], aggregate_frames(predictions, aggregator), aggregator)
        metrics = video_metrics(held_out["label"].to_numpy(), videos["probability"].to_numpy(), clip=aggregator.clip)
        record |= {
            "validation_log_loss": metrics.log_loss,
            "validation_auc": metrics.auc,
            "validation_accuracy": metrics.accuracy,
        }
        record |= _attention_figures(training, statistics)
        if not training.trains_backbone_alone and metrics.log_loss < training.best_log_loss:
            training.run.save_best(training.step.network, predictions, record)
        training.history.append(record)
        state = {
            "step": training.step.state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scaler": training.scaler.state_dict(),
            "history": training.history,
        }
        for name, value in record.items():
            if writer is not None and name not in ("epoch", "phase") and value is not None:
                writer.add_scalar(name, value, record["epoch"])
        if writer is not None:
            writer.flush()
        training.run.save_epoch(training.step.network, state)
        logger.info(
            "%s epoch %d: loss %.4f, validation log loss %.4f, AUC %.4f, accuracy %.3f, %.0f samples/s",
            training.run.model_name,
            record["epoch"],
            record["loss"],
            metrics.log_loss,
            metrics.auc,
            metrics.accuracy,
            record["samples_per_second"],
        )
    wait_for_all(training.ranks)


def _attention_figures(training: _Training, statistics: AttentionStatistics) -> dict[str, float]:
    """How different the maps are, for the record; a warning when they have collapsed."""
    figures = statistics.compute()
    if training.experiment.model.num_maps > 1 and (warning := collapse_warning(figures)):
        logger.warning("%s: %s", training.run.model_name, warning)
    if isinstance(training.step.auxiliary, RegionalIndependenceLoss):
        figures["center_distance"] = center_distance(training.step.auxiliary.centers)
    return figures


def validate(training: _Training, statistics: AttentionStatistics) -> pd.DataFrame:
    """Frame predictions of the held-out fold, on every rank; `statistics` takes in this rank's attention maps."""
    if training.ranks.world_size > 1:
        # Without SyncBN (gloo) each rank has running statistics of its own; those of rank 0 are the ones saved.
        for buffer in training.step.buffers():
            dist.broadcast(buffer, 0)

    def watch(output: NetworkOutput) -> None:
        if output.attention is not None:
            statistics.update(output.attention)

    logits = predict_logits(
        training.step.network,
        training.validation,
        device=training.device,
        precision=training.precision,
        forward=training.step.backbone_logits if training.trains_backbone_alone else None,
        watch=watch,
    )
    rows = training.crops.validation
    logits = gather_strided(logits, len(rows), training.ranks)
    predictions = frame_predictions(rows, logits, model=training.run.model_name, fold=training.run.fold)
    return FRAME_PREDICTIONS.validate(predictions, training.run.path / "oof.parquet")
