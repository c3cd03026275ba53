"""One fold from its first epoch, or from where it was, to its last: train, validate, keep the best, save."""

import logging
from typing import Any

import torch

from multiattn.config import Experiment
from multiattn.training.crops import FoldCrops
from multiattn.training.distributed import Ranks, wait_for_all
from multiattn.training.epoch import require_finite, train_epoch
from multiattn.training.fold_training import FoldTraining, Progress, prepare, progress_of
from multiattn.training.interruption import Interruption, listening
from multiattn.training.live import Live
from multiattn.training.phases import span_at
from multiattn.training.run_folder import RunFolder
from multiattn.training.state_file import load_state, save_state
from multiattn.training.validation import PREFIXES, is_best, validate

logger = logging.getLogger(__name__)


def train_fold(experiment: Experiment, crops: FoldCrops, run: RunFolder, *, device: torch.device, ranks: Ranks) -> None:
    """Train one fold to its end; does nothing when it is there already.

    Validates after every epoch, and inside it every `validation.every_steps` updates. The best checkpoint is the
    candidate with the best `validation.metric` over the held-out videos, by the aggregator that also makes submissions;
    a held-out video without a face counts with the prior.

    The state is saved every `save_minutes`, before and after a validation, and when the process is asked to end
    (SIGTERM): whatever moment it ends at, the same command continues from the last saved state and, on a CPU, comes to
    the same weights bit for bit.

    Raises:
        ValueError: settings that do not fit the data, or a loss that is not finite.
        SystemExit: the process was asked to end; the state has been saved.
    """
    state = load_state(run.path)
    if state is not None and _is_over(progress_of(state, run), experiment):
        logger.info("%s: finished already", run.model_name)
        return
    with listening() as interruption:
        training = prepare(experiment, crops, run, device=device, ranks=ranks, state=state)
        if state is not None:
            progress = training.progress
            logger.info("%s: continues in epoch %d, batch %d", run.model_name, progress.epoch, progress.batch)
        live = Live(training)
        try:
            _train(training, live, interruption)
        finally:
            live.close()


def _is_over(progress: Progress, experiment: Experiment) -> bool:
    """Whether the last epoch is done, or patience worn out."""
    patience = experiment.validation.patience
    return progress.epoch >= experiment.num_epochs or (patience is not None and progress.since_best >= patience)


def _train(training: FoldTraining, live: Live, interruption: Interruption) -> None:
    experiment, progress, name = training.experiment, training.progress, training.run.model_name

    def save() -> None:
        _save(training)

    def judge() -> None:
        _validate(training, live, interruption)
        _save(training, judged=True)

    while not _is_over(progress, experiment):
        if progress.epoch == training.span.end:
            training.begin_phase(span_at(experiment, progress.epoch))
            phase = training.span.phase
            logger.info("%s: phase %s begins, %d epochs", name, phase.name, phase.epochs)
        if progress.batch < len(training.loader):
            train_epoch(training, live, interruption, save=save, judge=judge)
            training.step.end_epoch()
            _save(training)
        _validate(training, live, interruption)
        live.picture(training)
        training.end_epoch()
        _save(training, judged=True)
        interruption.exit_if_asked()
    if progress.epoch < experiment.num_epochs:
        logger.info("%s: ends here, after %d validations that were no better", name, progress.since_best)


def _validate(training: FoldTraining, live: Live, interruption: Interruption) -> None:
    """Look at the held-out videos, keep the best candidate, add a record."""
    means, progress = require_finite(training), training.progress
    best, figures = validate(training, interruption)
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
        **figures,
    }
    if is_best(training, best) and training.ranks.is_main:
        training.run.save_best(best.network, best.predictions, record)
    progress.history.append(record)
    progress.is_judged = True
    if training.ranks.is_main:
        live.validated(record)
        _log(training.run.model_name, record)


def _log(name: str, record: dict[str, Any]) -> None:
    """One line a validation, always the same fields; those of averages where there are any."""
    averages = [f"{prefix}log_loss" for candidate, prefix in PREFIXES.items() if candidate != "last"]
    logger.info(
        "%s epoch %d: loss %.4f, validation log loss %.4f, AUC %.4f, accuracy %.3f%s, %.0f samples/s",
        name,
        record["epoch"],
        record["loss"],
        record["validation_log_loss"],
        record["validation_auc"],
        record["validation_accuracy"],
        "".join(f", {column} {record[column]:.4f}" for column in averages if column in record),
        record["samples_per_second"],
    )


def _save(training: FoldTraining, *, judged: bool = False) -> None:
    """Write the state; after a validation also the table and the weights that people look at."""
    state = training.state()
    if training.ranks.is_main:
        if judged:
            training.run.save_validation(training.step.network, training.progress.history)
        save_state(training.run.path, state)
    wait_for_all(training.ranks)
