"""Several experiments -> one probability a video: what is blended, and how.

Units are experiments (seeds are experiments too). The folds of one experiment count alike: at test time all of them see
a video and their mean is the experiment's answer, out of fold the one that never saw the video answers alone. A mean
of folds is a little better, and less extreme, than the single fold the weights were fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import pandas as pd

from multiattn.scoring.aggregators import Aggregator, aggregate_units
from multiattn.scoring.frame_groups import FrameGroups
from multiattn.scoring.frame_rules import gate, sigmoid

LOGIT_FLOOR = 1e-6
"""Probabilities are moved into [1e-6, 1 - 1e-6] before a logit is taken: logits lie within 13.8 of 0."""
GATE_HIGH, GATE_LOW, GATE_SHARE = 0.8, 0.2, 0.7
"""RobustForensics' gate over models."""


@dataclass(frozen=True, eq=False)
class ExperimentScores:
    """One probability a video and experiment."""

    video_ids: pd.Index
    """(V,) in ascending order."""
    experiments: tuple[str, ...]
    """(E,) in ascending order."""
    values: np.ndarray
    """(V, E) P(fake) in [0, 1], float64, not clipped: the mean of the experiment's folds that saw the video; NaN where
    none did."""
    num_crops: np.ndarray
    """(V,) int64: the most frames any model saw."""


def experiment_of(model: str) -> str:
    """The experiment of a model named `<experiment>/fold<k>`; a name of another form is its own experiment."""
    experiment, separator, fold = model.rpartition("/fold")
    return experiment if separator and fold.isdigit() else model


def score_experiments(predictions: pd.DataFrame | FrameGroups, aggregator: Aggregator) -> ExperimentScores:
    """Frame predictions -> one probability a video and experiment.

    Args:
        predictions: a `frame_predictions` table, or the groups made of one, which serve any number of aggregators.
    """
    groups = predictions if isinstance(predictions, FrameGroups) else FrameGroups.of(predictions)
    experiment_of_model, experiments = pd.factorize(
        np.array([experiment_of(model) for model in groups.models], dtype=object), sort=True
    )
    shape = (len(groups.video_ids), len(experiments))
    cells = groups.unit_videos * max(shape[1], 1) + experiment_of_model[groups.unit_models]
    probability = aggregate_units(groups, aggregator)["probability"].to_numpy(np.float64)
    total = np.bincount(cells, weights=probability, minlength=shape[0] * shape[1])
    folds = np.bincount(cells, minlength=shape[0] * shape[1])
    values = np.divide(total, folds, out=np.full(len(total), np.nan), where=folds > 0).reshape(shape)
    num_crops = np.zeros(shape[0], dtype=np.int64)
    np.maximum.at(num_crops, groups.unit_videos, groups.frames_of_units)
    # A mean of folds may leave [0, 1] by a rounding error.
    return ExperimentScores(groups.video_ids, tuple(experiments), np.clip(values, 0, 1), num_crops)


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """ln(p / (1 - p)), float64, of p moved into [LOGIT_FLOOR, 1 - LOGIT_FLOOR]; NaN stays."""
    p = np.clip(np.asarray(probabilities, dtype=np.float64), LOGIT_FLOOR, 1 - LOGIT_FLOOR)
    return np.log(p) - np.log1p(-p)


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """How experiments are blended; the default is their plain mean."""

    method: Literal["mean", "weighted", "greedy", "stacked", "gated"] = "mean"
    """`mean`; `weighted`: a mean with weights fitted on the simplex; `greedy`: with weights from selection with
    replacement; `stacked`: sigmoid(intercept + sum of weights * logits), weights of any size and sign; `gated`:
    RobustForensics' gate over models (DFDC, 4th place), the mean of the sure ones where more than 0.7 of them are sure
    of the same (above 0.8, below 0.2), else the mean of all."""
    space: Literal["probability", "logit"] = "probability"
    """What is averaged. A mean of logits is sharper than a mean of probabilities."""
    weights: dict[str, float] = field(default_factory=dict)
    """Experiment -> weight; of `mean` and `gated` empty, all count alike."""
    intercept: float = 0.0
    """Of `stacked`."""

    def __post_init__(self) -> None:
        hints = get_type_hints(Ensemble)
        for name in ("method", "space"):
            if getattr(self, name) not in get_args(hints[name]):
                choices = ", ".join(get_args(hints[name]))
                raise ValueError(f"ensemble: expected a {name} of {choices}, found {getattr(self, name)!r}.")
        if bool(self.weights) == (self.method in ("mean", "gated")):
            raise ValueError(f"ensemble: expected weights with weighted, greedy and stacked only, found {self}.")
        if not np.isfinite([*self.weights.values(), self.intercept]).all():
            raise ValueError(f"ensemble: expected finite weights, found {self.weights}, {self.intercept}.")
        if self.method in ("weighted", "greedy"):
            weights = np.array(list(self.weights.values()))
            if weights.min() < 0 or abs(weights.sum() - 1) > 1e-6:
                raise ValueError(f"ensemble: expected weights of at least 0 that sum to 1, found {self.weights}.")

    def blend(self, values: np.ndarray, experiments: Sequence[str]) -> np.ndarray:
        """(V, E) P(fake) of experiments -> (V,) P(fake), not clipped.

        A video that some experiments did not see (NaN) is scored by the others: their weights are renormalised, or
        are equal where all of them are 0; for `stacked` the mean logit of those that saw it stands in for each other
        one. So it is with experiments that have a weight and are not among those given. A video that none saw is NaN.

        Raises:
            ValueError: an experiment has no weight.
        """
        if not self.weights:
            names = list(experiments)
        elif unknown := sorted(set(experiments) - set(self.weights)):
            raise ValueError(f"weights are for {', '.join(self.weights)}; found none for {', '.join(unknown)}.")
        else:
            names = list(self.weights)
        given = np.asarray(values, dtype=np.float64)
        values = np.full((len(given), len(names)), np.nan)
        for column, name in enumerate(experiments):
            values[:, names.index(name)] = given[:, column]
        if self.method == "gated":
            weights = np.where(np.isnan(values), 0.0, 1.0)
            return gate(values, weights, high=GATE_HIGH, low=GATE_LOW, share=GATE_SHARE)
        weights = np.array([self.weights[name] for name in names]) if self.weights else np.ones(len(names))
        if self.method != "stacked" and self.space == "probability":
            return np.clip(weighted_mean(values, weights), 0, 1)
        logits = to_logits(values)
        if self.method == "stacked":
            filled = np.where(np.isnan(logits), weighted_mean(logits, np.ones(len(names)))[:, None], logits)
            blended = self.intercept + filled @ weights
        else:
            blended = weighted_mean(logits, weights)
        with np.errstate(invalid="ignore"):  # a video that nobody saw
            return sigmoid(blended)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Ensemble":
        """The inverse of `dataclasses.asdict`."""
        return cls(**{**values, "weights": {name: float(weight) for name, weight in values["weights"].items()}})


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(V,) mean over the columns of (V, E) that are not NaN, by (E,) weights; by equal ones where theirs sum to 0.

    NaN where all are.
    """
    seen = ~np.isnan(values)
    used = seen * weights
    used = np.where(used.sum(axis=1, keepdims=True) > 0, used, seen)
    total = used.sum(axis=1)
    summed = (np.where(seen, values, 0.0) * used).sum(axis=1)
    return np.divide(summed, total, out=np.full(len(values), np.nan), where=total > 0)
