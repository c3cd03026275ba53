"""Ensembles: several experiments -> one probability a video; the ways to blend, and the fit of their weights.

Units are experiments (seeds are experiments too). The folds of one experiment count alike: at test time all of them see
a video and their mean is the experiment's answer, out of fold the one that never saw the video answers alone. A mean
of folds is a little better, and less extreme, than the single fold the weights were fitted on.

Weights are fitted on the out-of-fold answers for the videos that every experiment saw. The simplex objectives are
convex and compiled with numba; a small pull towards equal weights makes their minimum the only one, so that copies of
an experiment share its weight and the order of experiments means nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from multiattn.config.settings import require, require_fields
from multiattn.scoring.aggregators import Aggregator, FrameGroups, aggregate_units
from multiattn.scoring.calibration import fit_calibration
from multiattn.scoring.frame_rules import gate, sigmoid, to_logits

if TYPE_CHECKING:
    import pandas as pd

SPACES = ("probability", "logit")
GATE_HIGH, GATE_LOW, GATE_SHARE = 0.8, 0.2, 0.7
"""Bounds and share of `gated`."""
PULL = 10.0
"""Towards equal weights: half of it times the squared distance, in nats over all videos together. For 100,000 videos
next to nothing."""
LOSS_FLOOR = 0.01
"""Probabilities of a mixture are moved into [0.01, 0.99] in the loss of its weights, as the clip will do."""
GREEDY_STEPS = 100
STACKING_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C of scikit-learn: the smaller, the more the weights are pulled to 0."""


@dataclass(frozen=True, eq=False)
class ExperimentScores:
    """One probability a video and experiment."""

    video_ids: "pd.Index"
    """(V,) in ascending order."""
    experiments: tuple[str, ...]
    """(E,) in ascending order."""
    values: np.ndarray
    """(V, E) P(fake) in [0, 1], float64, not clipped: the mean of the experiment's folds that saw the video; NaN where
    none did."""
    num_crops: np.ndarray
    """(V,) int64: the most frames any model saw."""

    def beside(self, outside: "pd.DataFrame | None") -> Self:
        """These scores and those of outside models together, videos and experiments of both in ascending order.

        Args:
            outside: rows by video_id, a column of P(fake) for each model; None: these alone.
        """
        if outside is None:
            return self
        import pandas as pd

        table = pd.DataFrame(self.values, self.video_ids, self.experiments).join(outside, how="outer")
        table = table.sort_index().sort_index(axis=1)
        num_crops = pd.Series(self.num_crops, self.video_ids).reindex(table.index, fill_value=0)
        values = table.to_numpy(np.float64)
        return replace(
            self, video_ids=table.index, experiments=tuple(table), values=values, num_crops=num_crops.to_numpy()
        )


def experiment_of(model: str) -> str:
    """The experiment of a model named `<experiment>/fold<k>`; a name of another form is its own experiment."""
    experiment, separator, fold = model.rpartition("/fold")
    return experiment if separator and fold.isdigit() else model


def score_experiments(predictions: "pd.DataFrame | FrameGroups", aggregator: Aggregator) -> ExperimentScores:
    """Frame predictions, or the groups made of them, which serve any number of aggregators -> one probability a video
    and experiment."""
    import pandas as pd

    groups = FrameGroups.of(predictions)
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


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """A blend of experiments; the default is their plain mean."""

    method: str = "mean"
    space: str = "probability"
    """The averaged quantity, `probability` or `logit`. A mean of logits is sharper than a mean of probabilities."""
    weights: dict[str, float] = field(default_factory=dict)
    """Experiment -> weight; empty for methods without a fit: all count alike."""
    intercept: float = 0.0
    """Logit added by `stacked`."""

    def __post_init__(self) -> None:
        require_fields(self, method=METHODS, space=SPACES)
        fitted = ", ".join(name for name, method in METHODS.items() if method.fit)
        has_fit, weights = METHODS[self.method].fit is not None, np.array(list(self.weights.values()))
        require(bool(self.weights) == has_fit, self, "weights", f"some with {fitted} only, {self.method} asked for")
        require(bool(np.isfinite(weights).all()), self, "weights", "finite numbers")
        require(bool(np.isfinite(self.intercept)), self, "intercept", "a finite number")
        if METHODS[self.method].on_simplex:
            on_simplex = weights.min() >= 0 and abs(weights.sum() - 1) <= 1e-6
            require(on_simplex, self, "weights", "numbers of at least 0 that sum to 1")

    def blend(self, values: np.ndarray, experiments: Sequence[str]) -> np.ndarray:
        """(V, E) P(fake) of experiments -> (V,) P(fake), not clipped.

        A video that some experiments did not see (NaN) is scored by the others: their weights are renormalised, or
        are equal where all of them are 0; for `stacked` the mean logit of those that saw it stands in for each other
        one. So it is with experiments that have a weight and are not among those given. A video that none saw is NaN.

        Raises:
            ValueError: an experiment has no weight.
        """
        names = list(self.weights or experiments)
        if unknown := sorted(set(experiments) - set(names)):
            raise ValueError(f"weights are for {', '.join(names)}; found none for {', '.join(unknown)}.")
        given = np.asarray(values, dtype=np.float64)
        values = np.full((len(given), len(names)), np.nan)
        for column, name in enumerate(experiments):
            values[:, names.index(name)] = given[:, column]
        weights = np.array([self.weights.get(name, 1.0) for name in names])
        with np.errstate(invalid="ignore"):  # a video that no experiment saw
            return METHODS[self.method].blend(values, weights, self)


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


def _blend_mean(values: np.ndarray, weights: np.ndarray, ensemble: Ensemble) -> np.ndarray:
    if ensemble.space == "probability":
        return np.clip(weighted_mean(values, weights), 0, 1)
    return sigmoid(weighted_mean(to_logits(values), weights))


def _blend_stacked(values: np.ndarray, weights: np.ndarray, ensemble: Ensemble) -> np.ndarray:
    logits = to_logits(values)
    filled = np.where(np.isnan(logits), weighted_mean(logits, np.ones(len(weights)))[:, None], logits)
    return sigmoid(ensemble.intercept + filled @ weights)


def _blend_gated(values: np.ndarray, weights: np.ndarray, ensemble: Ensemble) -> np.ndarray:
    return gate(values, ~np.isnan(values), high=GATE_HIGH, low=GATE_LOW, share=GATE_SHARE)


def fit_ensemble(
    method: str, space: str, values: np.ndarray, labels: np.ndarray, experiments: Sequence[str], folds: np.ndarray
) -> Ensemble:
    """The ensemble of one method, fitted; without a video of each class that all experiments saw the plain mean.

    Args:
        values: (V, E) out-of-fold P(fake); NaN where an experiment did not see the video.
        folds: (V,) any numbers: the parts that `stacked` chooses its strength with.
    """
    fit = METHODS[method].fit
    if fit is None:
        return Ensemble(method=method, space=space)
    complete = ~np.isnan(values).any(axis=1)
    values, labels, folds = values[complete], np.asarray(labels)[complete], np.asarray(folds)[complete]
    if len(np.unique(labels)) < 2:
        return Ensemble()
    weights, intercept = fit(space, values, labels, folds)
    named = dict(zip(experiments, weights.tolist(), strict=True))
    return Ensemble(method=method, space=space, weights=named, intercept=intercept)


def _fit_simplex(space: str, values: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, float]:
    if space == "logit":
        # Weights of sum 1 can not make overconfident logits flatter, but unequal ones would be punished for being
        # sharper still. So they are fitted after the calibration that equal weights need.
        blended = _blend_mean(values, np.ones(values.shape[1]), Ensemble(space=space))
        calibration = fit_calibration("platt", labels, blended)
        values = calibration.apply(values.ravel()).reshape(values.shape)
    return simplex_weights(values, labels, space=space), 0.0


def simplex_weights(
    values: np.ndarray, labels: np.ndarray, *, space: str, pull: float = PULL, floor: float = LOSS_FLOOR
) -> np.ndarray:
    """(E,) weights, at least 0 and of sum 1, of the least log loss of the blend: SLSQP from equal weights.

    Args:
        values: (V, E) P(fake), no NaN.
        space: `probability`: the blend is a mixture sum w_e p_e. Its loss is that of floor + (1 - 2 floor) p, which
            stands for the clip that follows, and unlike it is smooth and keeps the problem convex. `logit`:
            sigmoid(sum w_e z_e), without that.
        pull: towards equal weights.

    Raises:
        RuntimeError: the solver stopped early.
    """
    from scipy.optimize import minimize

    objective = simplex_objective(values, labels, space=space, pull=pull, floor=floor)
    size = values.shape[1]
    found = minimize(
        objective,
        np.full(size, 1 / size),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * size,
        constraints=[{"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(size)}],
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    # 8: the line search can not improve any more, at a minimum that is exact to the last digits of the loss.
    if found.status not in (0, 8):
        raise RuntimeError(f"weights of {size} experiments: SLSQP stopped early: {found.message}")
    weights = np.where(found.x < 1e-9, 0.0, found.x)
    return weights / weights.sum()


def simplex_objective(
    values: np.ndarray, labels: np.ndarray, *, space: str, pull: float, floor: float
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """(E,) weights -> the mean loss that `simplex_weights` minimises, and its (E,) gradient."""
    from multiattn.scoring.compiled import logit_loss, mixture_loss

    is_fake = (np.asarray(labels) == 1)[:, None]
    if space == "logit":
        logits = to_logits(values)
        terms, compiled = np.where(is_fake, logits, -logits), logit_loss
    else:
        # Squeezing every p is squeezing the blend, because the weights sum to 1.
        terms, compiled = floor + (1 - 2 * floor) * np.where(is_fake, values, 1 - values), mixture_loss
    count, size = terms.shape
    terms = np.ascontiguousarray(terms, dtype=np.float64)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        away = weights - 1 / size
        gradient = np.empty(size)
        loss = compiled(weights, terms, gradient)
        return loss + pull / (2 * count) * away @ away, gradient + pull / count * away

    return objective


def greedy_weights(
    values: np.ndarray, labels: np.ndarray, *, steps: int = GREEDY_STEPS, floor: float = LOSS_FLOOR
) -> np.ndarray:
    """(E,) weights from selection with replacement: the share of the picks that fell on each experiment.

    Source: Caruana et al., "Ensemble selection from libraries of models" (ICML 2004), §2.1 and §2.2: the bag begins
    with the best experiments, as many of them as are best together (sorted initialisation), then the one is added that
    makes the bag's mean P(fake) the best, again and again; the best bag of the way is the answer. Of equal ones, the
    first. Departures: no bagging of the library (§2.3): it is for thousands of models; the loss is that of
    floor + (1 - 2 floor) p, as in `simplex_weights`.
    """
    from multiattn.scoring.compiled import greedy_shares

    likelihoods = floor + (1 - 2 * floor) * np.where((np.asarray(labels) == 1)[:, None], values, 1 - values)
    return greedy_shares(np.ascontiguousarray(likelihoods.T), steps)


def stacking_weights(values: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, float]:
    """(E,) weights of logits and an intercept: logistic regression, its strength chosen over the folds given.

    Source: Wolpert, "Stacked generalization" (1992); scikit-learn's ridge-penalised `LogisticRegression`. With fewer
    than two folds that leave both classes, C is 1.
    """
    from sklearn.linear_model import LogisticRegression

    def regression(rows: np.ndarray, strength: float) -> LogisticRegression:
        solver = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8, max_iter=200)
        return solver.fit(logits[rows], labels[rows])

    logits = to_logits(values)
    parts = [part for part in np.unique(folds) if len(np.unique(labels[folds != part])) == 2]
    strength = 1.0
    if len(parts) >= 2:
        costs = np.zeros(len(STACKING_STRENGTHS))
        for part in parts:
            held_out = folds == part
            for index, candidate in enumerate(STACKING_STRENGTHS):
                margins = regression(~held_out, candidate).decision_function(logits[held_out])
                costs[index] += np.logaddexp(0.0, np.where(labels[held_out] == 1, -margins, margins)).sum()
        strength = STACKING_STRENGTHS[int(np.argmin(costs))]
    fitted = regression(np.ones(len(labels), dtype=bool), strength)
    return fitted.coef_[0], float(fitted.intercept_[0])


@dataclass(frozen=True, kw_only=True)
class EnsembleMethod:
    blend: Callable[[np.ndarray, np.ndarray, Ensemble], np.ndarray]
    """(V, E) P(fake) with NaN, (E,) weights and the ensemble they belong to -> (V,) P(fake)."""
    fit: Callable[[str, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, float]] | None = None
    """Space, (V, E) P(fake), (V,) labels and (V,) folds -> (E,) weights and intercept. None: all count alike."""
    on_simplex: bool = False
    """The weights are at least 0 and sum to 1."""
    candidates: Mapping[str, str]
    """Candidates of tuning: name -> space."""


METHODS: dict[str, EnsembleMethod] = {
    "mean": EnsembleMethod(blend=_blend_mean, candidates={"mean": "probability", "mean of logits": "logit"}),
    "weighted": EnsembleMethod(
        blend=_blend_mean,
        fit=_fit_simplex,
        on_simplex=True,
        candidates={"weighted": "probability", "weighted logits": "logit"},
    ),
    "greedy": EnsembleMethod(
        blend=_blend_mean,
        fit=lambda space, values, labels, folds: (greedy_weights(values, labels), 0.0),
        on_simplex=True,
        candidates={"greedy": "probability"},
    ),
    "stacked": EnsembleMethod(
        blend=_blend_stacked,
        fit=lambda space, *evidence: stacking_weights(*evidence),
        candidates={"stacked": "logit"},
    ),
    "gated": EnsembleMethod(blend=_blend_gated, candidates={"gated": "probability"}),
}
"""Name -> method. `weighted` has weights fitted on the simplex, `greedy` from selection with replacement; `stacked` is
sigmoid(intercept + sum of weights * logits), weights of any size and sign; `gated` is RobustForensics' gate over models
(DFDC, 4th place): the mean of the sure ones where more than 0.7 of them are sure of the same (above 0.8, below 0.2),
else the mean of all."""


def ensemble_candidates() -> dict[str, tuple[str, str]]:
    """Name -> method and space of every ensemble that tuning compares."""
    return {name: (method, space) for method, of in METHODS.items() for name, space in of.candidates.items()}
