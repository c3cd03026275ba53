"""Weights of experiments from their out-of-fold predictions: on the simplex, by greedy selection, by stacking.

Fitted on the out-of-fold answers for the videos that every experiment saw. The simplex objectives are convex and
compiled with numba; a small pull towards equal weights makes their minimum the only one, so that copies of an
experiment share its weight and the order of experiments means nothing.
"""

from collections.abc import Callable, Sequence

import numba
import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from multiattn.scoring.aggregators import DEFAULT_CLIP
from multiattn.scoring.calibration import fit_calibration
from multiattn.scoring.ensembling import Ensemble, to_logits

PULL = 10.0
"""Towards equal weights: half of it times the squared distance, in nats over all videos together. For 100,000 videos
next to nothing."""
GREEDY_STEPS = 100
STACKING_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""C of scikit-learn: the smaller, the more the weights are pulled to 0."""


def fit_ensemble(
    method: str,
    space: str,
    values: np.ndarray,
    labels: np.ndarray,
    experiments: Sequence[str],
    folds: np.ndarray,
) -> Ensemble:
    """The ensemble of one method, fitted.

    Args:
        method, space: as in `Ensemble`.
        values: (V, E) out-of-fold P(fake); NaN where an experiment did not see the video.
        labels: (V,) of 0 and 1.
        folds: (V,) any numbers: the parts that `stacked` chooses its strength with.

    Returns:
        With `mean` and `gated` nothing is fitted. Without a video of each class that all experiments saw, the plain
        mean.
    """
    if method in ("mean", "gated"):
        return Ensemble(method=method, space=space)
    complete = ~np.isnan(values).any(axis=1)
    values, labels, folds = values[complete], np.asarray(labels)[complete], np.asarray(folds)[complete]
    if len(np.unique(labels)) < 2:
        return Ensemble()
    intercept = 0.0
    if method == "stacked":
        weights, intercept = stacking_weights(values, labels, folds)
    elif method == "greedy":
        weights = greedy_weights(values, labels)
    else:
        if space == "logit":
            # Weights of sum 1 can not make overconfident logits flatter, but unequal ones would be punished for being
            # sharper still. So they are fitted after the calibration that equal weights need.
            calibration = fit_calibration("platt", labels, Ensemble(space=space).blend(values, experiments))
            values = calibration.apply(values.ravel()).reshape(values.shape)
        weights = simplex_weights(values, labels, space=space)
    named = dict(zip(experiments, weights.tolist(), strict=True))
    return Ensemble(method=method, space=space, weights=named, intercept=intercept)


def simplex_weights(
    values: np.ndarray, labels: np.ndarray, *, space: str, pull: float = PULL, floor: float = DEFAULT_CLIP
) -> np.ndarray:
    """(E,) weights, at least 0 and of sum 1, of the least log loss of the blend: SLSQP from equal weights.

    Args:
        values: (V, E) P(fake), no NaN.
        labels: (V,) of 0 and 1.
        space: `probability`: the blend is a mixture sum w_e p_e. Its loss is that of floor + (1 - 2 floor) p, which
            stands for the clip that follows, and unlike it is smooth and keeps the problem convex. `logit`:
            sigmoid(sum w_e z_e), without that.
        pull: towards equal weights.

    Raises:
        RuntimeError: the solver stopped early.
    """
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
    is_fake = (np.asarray(labels) == 1)[:, None]
    if space == "logit":
        logits = to_logits(values)
        terms, compiled = np.where(is_fake, logits, -logits), _logit_loss
    else:
        # Squeezing every p is squeezing the blend, because the weights sum to 1.
        terms, compiled = floor + (1 - 2 * floor) * np.where(is_fake, values, 1 - values), _mixture_loss
    count, size = terms.shape
    terms = np.ascontiguousarray(terms, dtype=np.float64)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        away = weights - 1 / size
        gradient = np.empty(size)
        loss = compiled(weights, terms, gradient)
        return loss + pull / (2 * count) * away @ away, gradient + pull / count * away

    return objective


def greedy_weights(
    values: np.ndarray, labels: np.ndarray, *, steps: int = GREEDY_STEPS, floor: float = DEFAULT_CLIP
) -> np.ndarray:
    """(E,) weights from selection with replacement: the share of the picks that fell on each experiment.

    Source: Caruana et al., "Ensemble selection from libraries of models" (ICML 2004), §2.1 and §2.2: the bag begins
    with the best experiments, as many of them as are best together (sorted initialisation), then the one is added that
    makes the bag's mean P(fake) the best, again and again; the best bag of the way is the answer. Of equal ones, the
    first. Departures: no bagging of the library (§2.3): it is for thousands of models; the loss is that of
    floor + (1 - 2 floor) p, as in `simplex_weights`.
    """
    likelihoods = floor + (1 - 2 * floor) * np.where((np.asarray(labels) == 1)[:, None], values, 1 - values)
    return _greedy(np.ascontiguousarray(likelihoods.T), steps)


def stacking_weights(values: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, float]:
    """(E,) weights of logits and an intercept: logistic regression, its strength chosen over the folds given.

    Source: Wolpert, "Stacked generalization" (1992); scikit-learn's ridge-penalised `LogisticRegression`. With fewer
    than two folds that leave both classes, C is 1.
    """
    logits = to_logits(values)
    parts = [part for part in np.unique(folds) if len(np.unique(labels[folds != part])) == 2]
    strength = 1.0
    if len(parts) >= 2:
        costs = np.zeros(len(STACKING_STRENGTHS))
        for part in parts:
            held_out = folds == part
            for index, candidate in enumerate(STACKING_STRENGTHS):
                margins = _regression(logits[~held_out], labels[~held_out], candidate).decision_function(
                    logits[held_out]
                )
                costs[index] += np.logaddexp(0.0, np.where(labels[held_out] == 1, -margins, margins)).sum()
        strength = STACKING_STRENGTHS[int(np.argmin(costs))]
    fitted = _regression(logits, labels, strength)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _regression(logits: np.ndarray, labels: np.ndarray, strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8, max_iter=200).fit(logits, labels)


@numba.njit(cache=False)
def _mixture_loss(weights, likelihoods, gradient):
    """Mean of -ln(likelihoods @ weights). A product of many likelihoods takes one logarithm."""
    total, product = 0.0, 1.0
    gradient[:] = 0.0
    for video in range(likelihoods.shape[0]):
        likelihood = 0.0
        for experiment in range(len(weights)):
            likelihood += weights[experiment] * likelihoods[video, experiment]
        product *= likelihood
        if product < 1e-200:
            total -= np.log(product)
            product = 1.0
        share = 1.0 / likelihood
        for experiment in range(len(weights)):
            gradient[experiment] -= share * likelihoods[video, experiment]
    gradient /= likelihoods.shape[0]
    return (total - np.log(product)) / likelihoods.shape[0]


@numba.njit(cache=False)
def _logit_loss(weights, margins, gradient):
    """Mean of ln(1 + exp(-margins @ weights)), margins being logits of the true label."""
    total = 0.0
    gradient[:] = 0.0
    for video in range(margins.shape[0]):
        margin = 0.0
        for experiment in range(len(weights)):
            margin += weights[experiment] * margins[video, experiment]
        small = np.exp(-abs(margin))
        total += np.log1p(small) + max(-margin, 0.0)
        share = (small if margin > 0 else 1.0) / (1.0 + small)
        for experiment in range(len(weights)):
            gradient[experiment] -= share * margins[video, experiment]
    gradient /= margins.shape[0]
    return total / margins.shape[0]


@numba.njit(cache=False)
def _greedy(likelihoods, steps):
    num_experiments, num_videos = likelihoods.shape
    bag = np.zeros(num_videos)
    single = np.empty(num_experiments)
    for experiment in range(num_experiments):
        single[experiment] = _bag_loss(bag, likelihoods[experiment], 1)
    counts = np.zeros(num_experiments)
    best_counts, best_loss, begin = counts.copy(), np.inf, 0
    order = np.argsort(single, kind="mergesort")
    for rank in range(num_experiments):
        loss = _bag_loss(bag, likelihoods[order[rank]], rank + 1)
        counts[order[rank]] += 1
        bag += likelihoods[order[rank]]
        if loss < best_loss:
            best_loss, best_counts, begin = loss, counts.copy(), rank + 1
    counts = best_counts.copy()
    bag[:] = 0.0
    for experiment in range(num_experiments):
        bag += counts[experiment] * likelihoods[experiment]
    for picked in range(begin, steps):
        added, least = 0, np.inf
        for experiment in range(num_experiments):
            loss = _bag_loss(bag, likelihoods[experiment], picked + 1)
            if loss < least:
                added, least = experiment, loss
        counts[added] += 1
        bag += likelihoods[added]
        if least < best_loss:
            best_loss, best_counts = least, counts.copy()
    return best_counts / best_counts.sum()


@numba.njit(cache=False)
def _bag_loss(bag, more, size):
    """Mean of -ln((bag + more) / size)."""
    total, product = 0.0, 1.0
    for video in range(len(bag)):
        product *= (bag[video] + more[video]) / size
        if product < 1e-200:
            total -= np.log(product)
            product = 1.0
    return (total - np.log(product)) / len(bag)
