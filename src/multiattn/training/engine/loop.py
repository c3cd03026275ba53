"""One fold from its first epoch, or from where it was, to its last: train, validate, keep the best, save."""

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multiattn.config import Experiment
from multiattn.model.diagnostics import gentler_steps
from multiattn.runtime.devices import autocast, seed_everything
from multiattn.runtime.progress import WorkBar
from multiattn.runtime.signals import Interruption, listening
from multiattn.runtime.text_tables import counted
from multiattn.scoring.metrics import describe_losses
from multiattn.training.data.crops import FoldCrops
from multiattn.training.engine.apex import ApexScaler
from multiattn.training.engine.budget import Budget, OutOfTimeError
from multiattn.training.engine.fold_training import (
    FoldTraining,
    Progress,
    prepare,
    progress_of,
    set_random_state,
    span_at,
)
from multiattn.training.engine.live import Live
from multiattn.training.engine.ranks import (
    CONTINUE,
    PAUSE,
    SAVE,
    STOP,
    Ranks,
    SharedDecision,
    gather_objects,
    wait_for_all,
)
from multiattn.training.engine.run_folder import RunFolder, first_not_finite, load_state, save_state
from multiattn.training.engine.step import backward_passes, set_train_mode
from multiattn.training.engine.validation import (
    FALSE_ALARMS,
    PREFIXES,
    Candidate,
    is_best,
    rescore,
    set_guard,
    validate,
)

logger = logging.getLogger(__name__)

UPDATES_BETWEEN_REPORTS = 20
"""Reading the loss waits for the device, so it is read now and then only."""
VALIDATION_SECONDS = "validation_seconds"
"""Column of epochs.csv; tables of earlier versions lack it."""
VALIDATION_MARGIN = 1.2
"""Factor on the longest validation so far, for the time that the next one may take."""


def train_fold(
    experiment: Experiment,
    crops: FoldCrops,
    run: RunFolder,
    *,
    device: torch.device,
    ranks: Ranks,
    bar: WorkBar,
    budget: Budget,
    is_tracked: bool = False,
) -> bool:
    """True where the fold came to its end, from its last saved state or by an earlier command; False where the budget
    is over, and its state saved.

    Raises:
        ValueError: settings that do not fit the data, or a loss that is not finite.
        SystemExit: the process was asked to end; the state has been saved.
    """
    state = load_state(run.path)
    if state is not None and _is_over(progress_of(state, run), experiment):
        logger.info("%s: finished already", run.model_name)
        return True
    with listening() as interruption:
        training = prepare(experiment, crops, run, device=device, ranks=ranks, state=state)
        if state is not None:
            rescore(training)
            progress = training.progress
            logger.info("%s: continues in epoch %d, batch %d", run.model_name, progress.epoch, progress.batch)
        set_guard(training)
        training.budget, live = budget, Live(training, bar, is_tracked=is_tracked)
        try:
            _train(training, live, interruption)
        except OutOfTimeError:
            return False
        finally:
            budget.epochs_left[run.fold] = training.epochs_left
            live.close()
    return True


def _is_over(progress: Progress, experiment: Experiment) -> bool:
    """True where the last epoch is done, or patience worn out."""
    patience = experiment.validation.patience
    return progress.epoch >= experiment.num_epochs or (patience is not None and progress.since_best >= patience)


def _train(training: FoldTraining, live: Live, interruption: Interruption) -> None:
    experiment, progress, name = training.experiment, training.progress, training.run.model_name
    while not _is_over(progress, experiment):
        if progress.epoch == training.span.end:
            training.begin_phase(span_at(experiment, progress.epoch))
            phase = training.span.phase
            logger.info("%s: phase %s begins, %s", name, phase.name, counted(phase.epochs, "epoch"))
        if progress.batch < len(training.loader):
            _train_epoch(training, live, interruption)
            _save(training)
        latest = _validate(training, live, interruption)
        live.picture(training)
        training.end_epoch()
        _save(training, latest)
        interruption.exit_if_asked()
    if progress.epoch < experiment.num_epochs:
        validations = counted(progress.since_best, "validation that was", "validations that were")
        logger.info("%s: ends here, after %s no better", name, validations)


def _train_epoch(training: FoldTraining, live: Live, interruption: Interruption) -> None:
    """Train what is left of the epoch, save when it is time, validate where `validation.every_steps` says so."""
    progress, decision, saved = training.progress, SharedDecision(training.ranks), time.monotonic()
    batches = _begin(training)
    if _is_due(training):  # it was stopped before it had validated
        _validate_inside(training, live, interruption)
    for number in range(progress.batch, len(training.loader)):
        started = time.monotonic()
        crops, labels = next(batches)
        progress.waited += time.monotonic() - started
        is_update = _train_batch(training, number, crops, labels)
        live.advance(len(labels) * training.ranks.world_size, crops)
        progress.batch, progress.is_validated = number + 1, False
        progress.seconds += time.monotonic() - started
        if not is_update:
            continue
        training.budget.has_worked = True
        is_last = progress.batch == len(training.loader)
        agreed = decision.settle() if is_last else decision.agree(_request(training, interruption, saved))
        is_due = _is_due(training)
        if agreed != CONTINUE or is_last or is_due or training.updates_of_epoch % UPDATES_BETWEEN_REPORTS == 1:
            live.show(training, require_finite(training))
        if is_due or (agreed != CONTINUE and not is_last):
            _save(training)  # before a validation too: it may be asked to end, and then has nothing to save
            saved = time.monotonic()
        if agreed == STOP and not is_last:
            interruption.asked = True  # on every rank, whichever got the signal
            interruption.exit_if_asked()
        if agreed == PAUSE and not is_last:
            raise OutOfTimeError
        if training.updates_of_epoch == UPDATES_BETWEEN_REPORTS:
            _forecast(training)
        if is_due:
            _validate_inside(training, live, interruption)


def _begin(training: FoldTraining) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that are left of the epoch; draws go on as they would have without an interruption."""
    progress, loader = training.progress, training.loader
    # Seeded anew each epoch, so a run that continues draws what an undisturbed one would have drawn.
    key = (training.experiment.seed, progress.epoch, training.ranks.rank)
    seed_everything(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
    loader.batch_sampler.epoch, loader.batch_sampler.first_batch = progress.epoch, progress.batch
    training.step.set_epoch(progress.epoch - training.span.first)
    set_train_mode(training.module, training.step, training.span.phase)
    batches = iter(loader)
    if training.random_state is not None:  # inside an epoch
        set_random_state(training.random_state, training.device)
        training.random_state = None
    return batches


def _train_batch(training: FoldTraining, number: int, crops: Tensor, labels: Tensor) -> bool:
    """Forward and backward of one batch, and the update after the last of its group; True where there was one."""
    optim, device = training.span.phase.optim, training.device
    first = number // optim.accumulate * optim.accumulate
    group = min(optim.accumulate, len(training.loader) - first)
    is_update = number + 1 == first + group
    if number == first:
        training.schedule.step_update(training.updates_of_phase)
        training.optimizer.zero_grad()
    agda = training.experiment.agda
    terms = backward_passes(
        training.module,
        training.step,
        crops.to(device, non_blocking=True),
        labels.to(device, non_blocking=True),
        scaler=training.scaler,
        context=lambda: autocast(training.precision, device),
        objective=training.span.phase.objective,
        degrade=training.span.phase.agda and training.progress.epoch >= agda.first_epoch,
        share=1 / group,
        is_first=number == first,
        is_update=is_update,
    )
    training.meter.add(terms)
    if is_update:
        update(training.module, training.optimizer, training.scaler, optim.clip_grad_norm)
        if training.average is not None:
            training.average.update(training.step.network, step=training.updates + 1)
    return is_update


def update(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | ApexScaler,
    clip_grad_norm: float | None,
) -> None:
    """One optimiser update with the gradients that lie in the parameters."""
    if clip_grad_norm is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(module.parameters(), clip_grad_norm)
    scaler.step(optimizer)
    scaler.update()


def _is_due(training: FoldTraining) -> bool:
    """True where a validation is due now, inside the epoch."""
    every, progress = training.experiment.validation.every_steps, training.progress
    inside = 0 < progress.batch < len(training.loader) and not progress.is_validated
    return inside and every is not None and training.updates_of_epoch % every == 0


def _request(training: FoldTraining, interruption: Interruption, saved: float) -> int:
    if interruption.asked:
        return STOP
    if not training.ranks.is_main:
        return CONTINUE
    if training.budget.seconds_left < 2 * training.seconds_a_batch * training.span.phase.optim.accumulate:
        return PAUSE  # ranks agree an update later, which has to fit too
    return SAVE if time.monotonic() - saved > 60 * training.experiment.save_minutes else CONTINUE


def _validation_seconds(training: FoldTraining) -> float:
    """Seconds that a validation may take: the longest so far and some more; before the first, as training on as many
    crops."""
    measured = [record.get(VALIDATION_SECONDS, 0.0) for record in training.progress.history]
    if longest := max(training.budget.validation_seconds, *measured, 0.0):
        return VALIDATION_MARGIN * longest
    candidates = 1 + (training.average is not None) + (training.experiment.average.best > 0)
    return candidates * len(training.crops.validation) / training.global_batch * training.seconds_a_batch


def _require_time_to_validate(training: FoldTraining) -> None:
    """Raise where the budget does not reach for a validation, by the main rank's clock. One that comes before any other
    work of this process is begun all the same: it will not have more time in the next."""
    budget = training.budget
    if budget.hours is not None:
        has_time = not budget.has_worked or budget.seconds_left > _validation_seconds(training)
        if not gather_objects(has_time, training.ranks)[0]:
            raise OutOfTimeError


def _forecast(training: FoldTraining) -> None:
    """Tell which folds fit into the budget by this epoch's rate."""
    if training.ranks.is_main:
        every, updates = training.experiment.validation.every_steps, training.updates_in_epoch(training.span)
        validations = 1 + ((updates - 1) // every if every else 0)
        seconds = len(training.loader) * training.seconds_a_batch + validations * _validation_seconds(training)
        training.budget.epochs_left[training.run.fold] = training.epochs_left
        training.budget.forecast(seconds)


def _save(training: FoldTraining, latest: Candidate | None = None) -> None:
    """Write the state, unless a gradient that was no number has got into the weights: every rank finds the same then.

    After a validation also the table of validations, the latest weights and their predictions.
    """
    started, state = time.monotonic(), training.state()
    if (name := first_not_finite(state)) is not None:
        raise _diverged(training, f"a gradient was not finite, and {name} is not since then")
    if training.ranks.is_main:
        if latest is not None:
            predictions = None if training.trains_backbone_alone else latest.predictions
            training.run.save_validation(training.step.network, predictions, training.progress.history)
        save_state(training.run.path, state)
    wait_for_all(training.ranks)
    training.budget.save_seconds = max(training.budget.save_seconds, time.monotonic() - started)


def require_finite(training: FoldTraining) -> dict[str, float]:
    """The epoch's mean terms so far, over all ranks; an error where one stopped being a number."""
    means, bad = training.meter.means(training.ranks)
    if not bad:
        return means
    step = min(bad.values())
    terms = [name for name, first in bad.items() if first == step]
    causes = [name for name in terms if name != "loss"] or terms
    stopped = f"{' and '.join(causes)} stopped being a number first"
    raise _diverged(training, f"step {step}: the loss is not finite; {stopped}")


def _diverged(training: FoldTraining, fault: str) -> ValueError:
    """Make the error for a loss or weights that are no numbers any more."""
    scale = f", gradient scale {training.scaler.get_scale():g}" if training.scaler.is_enabled() else ""
    exact = "" if training.precision == "fp32" else " or --precision fp32"
    return ValueError(
        f"{training.run.model_name}: epoch {training.progress.epoch}, {fault}, at learning rate "
        f"{training.learning_rate:.3g} in {training.precision}{scale}. The state saved before it and the best weights "
        f"are intact. Try {gentler_steps(training.experiment, training.span.phase)}{exact} (with --allow-changes from "
        "the saved state, or under another --name)."
    )


def _validate_inside(training: FoldTraining, live: Live, interruption: Interruption) -> None:
    """Validate inside an epoch, which goes on afterwards."""
    _save(training, _validate(training, live, interruption))
    set_train_mode(training.module, training.step, training.span.phase)


def _validate(training: FoldTraining, live: Live, interruption: Interruption) -> Candidate:
    """Validate on the held-out videos, keep the best candidate, add a record; return the candidate of the latest
    weights."""
    _require_time_to_validate(training)
    means, progress, started = require_finite(training), training.progress, time.monotonic()
    best, latest, figures = validate(training, interruption)
    seconds = time.monotonic() - started
    record = {
        "epoch": progress.epoch,
        "step": training.updates,
        "epochs_done": progress.epoch + progress.batch / len(training.loader),
        "phase": training.span.phase.name,
        **means,
        "learning_rate": training.learning_rate,
        "seconds": round(progress.seconds, 3),
        "samples_per_second": round(training.samples_per_second, 1),
        "data_wait": round(training.data_wait, 4),
        VALIDATION_SECONDS: round(seconds, 3),
        **figures,
    }
    if is_best(training, best) and training.ranks.is_main:
        training.run.save_best(best.network, best.predictions, record)
    progress.history.append(record)
    progress.is_validated = training.budget.has_worked = True
    training.budget.validation_seconds = max(training.budget.validation_seconds, seconds)
    _forecast(training)
    if training.ranks.is_main:
        live.validated(record)
        _log(training.run.model_name, record)
    return latest


def _log(name: str, record: dict[str, Any]) -> None:
    """One line a validation, always the same fields; those of averages where there are any."""
    losses = {
        prefix: describe_losses(record[f"{prefix}log_loss"], record[f"{prefix}balanced_log_loss"])
        for prefix in PREFIXES.values()
        if f"{prefix}log_loss" in record
    }
    alarms = [f"{prefix}{FALSE_ALARMS}" for prefix in losses if f"{prefix}{FALSE_ALARMS}" in record]
    figures = [losses.pop(PREFIXES["last"]), record["validation_auc"], record["validation_accuracy"]]
    averages = "".join(f", {prefix}log_loss {words}" for prefix, words in losses.items())
    averages += "".join(f", {column} on the guard {record[column]:.1%}" for column in alarms)
    logger.info(
        "%s epoch %d: loss %.4f, validation log loss %s, AUC %.4f, accuracy %.3f%s, %.0f samples/s",
        *(name, record["epoch"], record["loss"], *figures, averages, record["samples_per_second"]),
    )
