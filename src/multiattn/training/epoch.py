"""The steps of one epoch: batches in, updates done, looked at now and then, saved when it is time."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from multiattn.runtime.devices import autocast, seed_everything
from multiattn.training.apex import ApexScaler
from multiattn.training.distributed import CARRY_ON, SAVE, STOP, SharedDecision
from multiattn.training.fold_training import FoldTraining, set_random_state
from multiattn.training.interruption import Interruption
from multiattn.training.live import Live
from multiattn.training.phases import set_train_mode
from multiattn.training.step import backward_passes

UPDATES_BETWEEN_LOOKS = 20
"""Reading the loss waits for the device, so it is looked at now and then only."""


def train_epoch(
    training: FoldTraining,
    live: Live,
    interruption: Interruption,
    *,
    save: Callable[[], None],
    judge: Callable[[], None],
) -> None:
    """Train what is left of the present epoch.

    Args:
        save: writes the state; called on every rank after the same update.
        judge: looks at the held-out videos and writes the state, inside an epoch where `validation.every_steps` says
            so.

    Raises:
        ValueError: a loss that is not finite.
        SystemExit: the process was asked to end; the state has been saved.
    """
    progress, decision, saved = training.progress, SharedDecision(training.ranks), time.monotonic()
    batches = _begin(training)
    if _is_due(training):  # it was stopped before it had looked
        judge()
        set_train_mode(training.module, training.step, training.span.phase)
    for number in range(progress.batch, len(training.loader)):
        started = time.monotonic()
        crops, labels = next(batches)
        progress.waited += time.monotonic() - started
        is_update = _train_batch(training, number, crops, labels)
        live.advance(len(labels) * training.ranks.world_size, crops)
        progress.batch, progress.is_judged = number + 1, False
        progress.seconds += time.monotonic() - started
        if not is_update:
            continue
        is_last = progress.batch == len(training.loader)
        answer = decision.settle() if is_last else decision.after_step(_wish(training, interruption, saved))
        is_due = _is_due(training)
        if answer != CARRY_ON or is_last or is_due or training.updates_of_epoch % UPDATES_BETWEEN_LOOKS == 1:
            live.look(training, require_finite(training))
        if is_due or (answer != CARRY_ON and not is_last):
            save()  # before a validation too: it may be asked to end, and then has nothing to save
            saved = time.monotonic()
        if answer == STOP and not is_last:
            interruption.asked = True  # on every rank, whichever was told
            interruption.exit_if_asked()
        if is_due:
            judge()
            set_train_mode(training.module, training.step, training.span.phase)


def _begin(training: FoldTraining) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that are left of the epoch; draws go on as they would have without an interruption."""
    progress, loader = training.progress, training.loader
    # Seeded anew each epoch, so a run that continues draws what an undisturbed one would have drawn.
    seed_everything(hash((training.experiment.seed, progress.epoch, training.ranks.rank)))
    loader.batch_sampler.epoch, loader.batch_sampler.first_batch = progress.epoch, progress.batch
    set_train_mode(training.module, training.step, training.span.phase)
    # A draw that nothing uses: loaders once took it here, and with it runs compare with those made then.
    torch.empty((), dtype=torch.int64).random_()
    batches = iter(loader)
    if training.random_state is not None:  # inside an epoch
        set_random_state(training.random_state, training.device)
        training.random_state = None
    return batches


def _is_due(training: FoldTraining) -> bool:
    """Whether the held-out videos are to be looked at now, inside the epoch."""
    every, progress = training.experiment.validation.every_steps, training.progress
    inside = 0 < progress.batch < len(training.loader) and not progress.is_judged
    return inside and every is not None and training.updates_of_epoch % every == 0


def _train_batch(training: FoldTraining, number: int, crops: Tensor, labels: Tensor) -> bool:
    """Forward and backward of one batch, and the update when it is the last of its group; returns whether it was."""
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
        is_update=is_update,
    )
    training.meter.add(terms)
    if is_update:
        update(training.module, training.optimizer, training.scaler, optim.clip_grad_norm)
        if training.average is not None:
            training.average.update(training.updates + 1)
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


def _wish(training: FoldTraining, interruption: Interruption, saved: float) -> int:
    if interruption.asked:
        return STOP
    is_time = time.monotonic() - saved > 60 * training.experiment.save_minutes
    return SAVE if is_time and training.ranks.is_main else CARRY_ON


def require_finite(training: FoldTraining) -> dict[str, float]:
    """The epoch's mean terms so far, over all ranks.

    Raises:
        ValueError: a term stopped being a number; names the first step and terms. Nothing was saved since.
    """
    means, bad = training.meter.look(training.ranks)
    if not bad:
        return means
    step = min(bad.values())
    terms = [name for name, first in bad.items() if first == step]
    causes = [name for name in terms if name != "loss"] or terms
    scale = f", gradient scale {training.scaler.get_scale():g}" if training.scaler.is_enabled() else ""
    raise ValueError(
        f"{training.run.model_name}: epoch {training.progress.epoch}, step {step}: the loss is not finite; "
        f"{' and '.join(causes)} stopped being a number first, at learning rate {training.learning_rate:.3g} in "
        f"{training.precision}{scale}. The state saved before it and the best weights are intact. Try a lower "
        "--optim.lr, --optim.clip-grad-norm 5, or --precision fp32."
    )
