"""Validation on the held-out videos: the latest weights and their averages are candidates, the best one is kept."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from multiattn.config import ValidationConfig
from multiattn.config.training import FRAME_PREFIX, METRICS
from multiattn.model.checkpoints import save_weights
from multiattn.model.diagnostics import AttentionStatistics, center_distance, collapse_warning
from multiattn.model.losses import RegionalIndependenceLoss
from multiattn.model.network import NetworkOutput
from multiattn.model.predict import predict_logits
from multiattn.runtime.layout import CANDIDATES_FOLDER, HELD_OUT_FILE
from multiattn.runtime.signals import Interruption
from multiattn.scoring.aggregators import complete_videos, frame_predictions
from multiattn.scoring.frame_rules import sigmoid
from multiattn.scoring.metrics import video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.training.data.crops import FoldCrops
from multiattn.training.engine.averaging import load_average
from multiattn.training.engine.fold_training import FoldTraining
from multiattn.training.engine.guard import guard_threshold, guarded_value
from multiattn.training.engine.ranks import gather_objects, gather_strided, wait_for_all

logger = logging.getLogger(__name__)

PREFIXES = {"last": "validation_", "ema": "ema_", "average": "average_"}
"""Candidate -> prefix of its figures in epochs.csv: the latest weights, their moving average, and the average of the
best validations' weights."""
FALSE_ALARMS = "false_alarms"
"""Figure of a candidate where a guard is given: the share of the guard's crops above its threshold."""


@dataclass(frozen=True)
class Candidate:
    """A network that may become the best checkpoint, its frame predictions of the held-out videos, and their `scores`.

    Predictions and figures are the same on every rank; `name` is a key of `PREFIXES`.
    """

    name: str
    network: nn.Module
    predictions: pd.DataFrame
    figures: dict[str, float]


def validate(training: FoldTraining, interruption: Interruption) -> tuple[Candidate, Candidate, dict[str, Any]]:
    """The best candidate, that of the latest weights, and the figures of all of them for the record.

    A collective call of all ranks, which get the same result. Brings `training.progress` up to date, but for the
    history. A process that is asked to end goes on from the state saved before the validation.

    Raises:
        SystemExit: the process was asked to end; the state saved before the validation holds.
    """
    settings, statistics = training.experiment.validation, AttentionStatistics()
    candidates = [_evaluate(training, "last", training.step.network, interruption, statistics)]
    if not training.trains_backbone_alone:
        if training.average is not None:
            candidates.append(_evaluate(training, "ema", training.average.module, interruption))
        if training.experiment.average.best and (network := _average_of_top(training, candidates[0])) is not None:
            candidates.append(_evaluate(training, "average", network, interruption))
    best = max(candidates, key=lambda candidate: _value(candidate.figures, settings))  # the earlier one of equals
    record: dict[str, Any] = {"candidate": best.name}
    for candidate in candidates:
        record |= {f"{PREFIXES[candidate.name]}{name}": value for name, value in candidate.figures.items()}
    return best, candidates[0], record | _attention_figures(training, statistics)


def rescore(training: FoldTraining) -> None:
    """Give what a continued run holds to be its best validations their values by the metric that is asked for now."""
    settings, progress = training.experiment.validation, training.progress
    records = {record["step"]: record for record in progress.history}
    for entry in (progress.best, *progress.top):
        prefix = PREFIXES[entry.get("candidate", "last")]
        record = records.get(entry["step"], {}) if entry else {}
        if f"{prefix}{settings.metric}" in record:
            figures = {name: record.get(f"{prefix}{name}") for name in (settings.metric, FALSE_ALARMS)}
            entry["value"] = _value(figures, settings)


def is_best(training: FoldTraining, candidate: Candidate) -> bool:
    """True where a candidate beats every validation before it; brings progress up to date.

    Epochs that train the backbone alone have no network to keep, and do not wear out patience.
    """
    if training.trains_backbone_alone:
        return False
    progress, value = training.progress, _value(candidate.figures, training.experiment.validation)
    if progress.best and not value > progress.best["value"]:
        progress.since_best += 1
        return False
    progress.best = {"value": value, "candidate": candidate.name, "step": training.updates}
    progress.since_best = 0
    return True


def scores(crops: FoldCrops, predictions: pd.DataFrame) -> dict[str, float]:
    """Log loss (plain, and balanced over the classes), AUC and accuracy of videos, and the same of frames.

    By the rule that makes submissions before any tuning, with its clip. A held-out video without a face counts with the
    prior; it has no frames.
    """
    rule, figures = ScoringRule(), {}
    videos = complete_videos(crops.held_out["video_id"], rule.score(predictions), rule.prior)
    frames = predictions.assign(probability=predictions["probability"].clip(rule.clip, 1 - rule.clip))
    for prefix, labelled, table in (("", crops.held_out, videos), (FRAME_PREFIX, crops.validation, frames)):
        labels, probabilities = labelled["label"].to_numpy(), table["probability"].to_numpy()
        metrics = video_metrics(labels, probabilities, clip=rule.clip)
        figures |= {f"{prefix}{name}": getattr(metrics, name) for name in METRICS}
    return figures


def set_guard(training: FoldTraining) -> None:
    """Set the guard's threshold, where there is a guard and none yet, by the network as it is."""
    if training.guard is not None and training.progress.guard_threshold is None:
        threshold = guard_threshold(_guard_probabilities(training, training.step.network))
        training.progress.guard_threshold = gather_objects(threshold, training.ranks)[0]


def _guard_probabilities(training: FoldTraining, network: nn.Module) -> np.ndarray:
    """(N,) P(fake) of the guard's crops; every rank predicts them all."""
    how = {"device": training.device, "precision": training.precision}
    forward = training.step.backbone_logits if training.trains_backbone_alone else None
    return sigmoid(predict_logits(network, training.guard, forward=forward, **how))


def _value(figures: Mapping[str, float | None], settings: ValidationConfig) -> float:
    """The larger the better."""
    value = figures[settings.metric]
    return guarded_value(value if settings.higher_is_better else -value, figures.get(FALSE_ALARMS))


def _evaluate(
    training: FoldTraining,
    name: str,
    network: nn.Module,
    interruption: Interruption,
    statistics: AttentionStatistics | None = None,
) -> Candidate:
    """Predict every rank's share of the held-out crops, and gather; `statistics` takes in this rank's maps."""

    def watch(_: Tensor, output: NetworkOutput) -> None:
        interruption.exit_if_asked()
        if statistics is not None and output.attention is not None:
            statistics.update(output.attention)

    logits = predict_logits(
        network,
        training.validation,
        device=training.device,
        precision=training.precision,
        forward=training.step.backbone_logits if training.trains_backbone_alone else None,
        watch=watch,
    )
    rows = training.crops.validation
    logits = gather_strided(logits, len(rows), training.ranks)
    predictions = frame_predictions(rows, logits, model=training.run.model_name, fold=training.run.fold)
    predictions = FRAME_PREDICTIONS.validate(predictions, training.run.path / HELD_OUT_FILE)
    figures = scores(training.crops, predictions)
    if training.guard is not None:
        above = np.mean(_guard_probabilities(training, network) > training.progress.guard_threshold)
        figures[FALSE_ALARMS] = gather_objects(float(above), training.ranks)[0]
    return Candidate(name, network, predictions, figures)


def _average_of_top(training: FoldTraining, latest: Candidate) -> nn.Module | None:
    """The network whose weights are the mean of the best validations' so far; None where they did not change, or there
    is only one."""
    progress = training.progress
    entry = {"value": _value(latest.figures, training.experiment.validation), "step": training.updates}
    ranked = sorted([*progress.top, entry], key=lambda one: (-one["value"], one["step"]))
    kept = ranked[: training.experiment.average.best]
    if entry not in kept:
        return None
    if training.ranks.is_main:
        save_weights(training.step.network, _top_path(training, entry), {"step": str(entry["step"])})
        # The state before this one may have to be taken up again, so the files it names stay too.
        named = [_top_path(training, one) for one in (*kept, *progress.top)]
        for path in (training.run.path / CANDIDATES_FOLDER).glob("*.safetensors"):
            if path not in named:
                path.unlink()
    wait_for_all(training.ranks)
    progress.top = kept
    if len(kept) < 2:
        return None
    network = copy.deepcopy(training.step.network)
    load_average(network, [_top_path(training, one) for one in kept])
    return network


def _top_path(training: FoldTraining, entry: dict[str, Any]) -> Path:
    return training.run.path / CANDIDATES_FOLDER / f"step{entry['step']}.safetensors"


def _attention_figures(training: FoldTraining, statistics: AttentionStatistics) -> dict[str, float]:
    """Measures of how different the maps are, for the record; warns when they have collapsed."""
    figures, experiment = statistics.compute(), training.experiment
    warning = collapse_warning(figures, experiment, training.span.phase)
    if warning and experiment.model.num_maps > 1 and training.ranks.is_main:
        logger.warning("%s: %s", training.run.model_name, warning)
    if isinstance(training.step.auxiliary, RegionalIndependenceLoss):
        figures["center_distance"] = center_distance(training.step.auxiliary.centers)
    return figures
