"""Blending experiments and fitting their weights: by hand, by brute force, by finite differences, by the conditions."""

import numpy as np
import pytest
from made_predictions import predictions
from scipy.optimize import approx_fprime, minimize
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from multiattn.scoring.aggregators import Aggregator
from multiattn.scoring.ensembling import (
    STACKING_STRENGTHS,
    Ensemble,
    experiment_of,
    fit_ensemble,
    greedy_weights,
    score_experiments,
    simplex_objective,
    simplex_weights,
    stacking_weights,
)
from multiattn.tables import FRAME_PREDICTIONS

SPACES = ("probability", "logit")
NAN = np.nan
OPEN = {"pull": 0.0, "floor": 0.0}
"""The objective is then the plain log loss."""


def answers(num_videos: int, own_sd: list[float], *, sharpness: float = 1.0, seed: int = 0):
    """(V, E) P(fake) of experiments with errors of their own, infinite: noise; and (V,) labels, 70 % fake."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(num_videos) < 0.7).astype(int)
    own_sd = np.array(own_sd)
    knows = np.isfinite(own_sd)
    evidence = np.where(knows, (2.5 * (labels - 0.5) + 0.8 * rng.standard_normal(num_videos))[:, None], 0.0)
    evidence = evidence + np.where(knows, own_sd, 1.0) * rng.standard_normal((num_videos, len(own_sd)))
    return expit(sharpness * 2.0 * evidence), labels


def plain_loss(weights, values, labels, space):
    """Log loss of a blend, written without any of the code under test."""
    blended = expit(logit(values) @ weights) if space == "logit" else values @ weights
    return -np.mean(np.where(labels == 1, np.log(blended), np.log1p(-blended)))


@pytest.mark.parametrize(
    ("ensemble", "values", "expected"),
    [
        pytest.param(Ensemble(), [[0.2, 0.8]], [0.5], id="mean"),
        pytest.param(Ensemble(), [[0.2, NAN], [NAN, NAN]], [0.2, NAN], id="mean, one experiment, none"),
        pytest.param(Ensemble(), np.empty((0, 2)), [], id="no videos"),
        pytest.param(Ensemble(), [[0.0, 1.0]], [0.5], id="mean of certainties"),
        pytest.param(
            Ensemble(space="logit"), [[0.9, 0.5], [NAN, NAN]], [0.75, NAN], id="mean logit: odds 9 and 1, root 3"
        ),
        pytest.param(Ensemble(method="weighted", weights={"a": 0.75, "b": 0.25}), [[0.2, 0.6]], [0.3], id="weighted"),
        pytest.param(
            Ensemble(method="weighted", weights={"b": 0.25, "a": 0.75}), [[0.2, 0.6]], [0.3], id="names, not places"
        ),
        pytest.param(
            Ensemble(method="weighted", weights={"a": 0.75, "b": 0.25}), [[NAN, 0.6]], [0.6], id="renormalised"
        ),
        pytest.param(
            Ensemble(method="greedy", weights={"a": 1.0, "b": 0.0}), [[NAN, 0.6]], [0.6], id="only the useless saw it"
        ),
        pytest.param(
            Ensemble(method="weighted", weights={"a": 0.5, "b": 0.25, "c": 0.25}),
            [[0.2, 0.5]],
            [0.3],
            id="an experiment is missing altogether",
        ),
        pytest.param(
            Ensemble(method="stacked", space="logit", weights={"a": 1.0, "b": 1.0}, intercept=np.log(2)),
            [[0.5, 0.75], [NAN, 0.75], [NAN, NAN]],
            [6 / 7, 18 / 19, NAN],
            id="stacked: odds 1 * 3 * 2, and 3 * 3 * 2 where b stands in for a",
        ),
        pytest.param(Ensemble(method="gated"), [[0.95, 0.9]], [0.925], id="gate: all sure"),
        pytest.param(Ensemble(method="gated"), [[0.95, 0.3]], [0.625], id="gate: not sure"),
        pytest.param(Ensemble(method="gated"), [[0.95, NAN]], [0.95], id="gate: one saw it"),
    ],
)
def test_blends_by_hand(ensemble, values, expected):
    assert ensemble.blend(np.array(values), ("a", "b")) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_gate_over_models_gives_the_vectors_of_the_winners_notes():
    """RobustForensics' SlowFast family, here with equal weights: [.95, .9, .85] are sure, .3 is not, 3 of 4 > 0.7."""
    values = np.array([[0.95, 0.9, 0.85, 0.3]])
    assert Ensemble(method="gated").blend(values, tuple("abcd")) == pytest.approx([0.9])


def test_an_experiment_without_a_weight_is_refused():
    with pytest.raises(ValueError, match="weights are for a, b; found none for c"):
        Ensemble(method="weighted", weights={"a": 0.5, "b": 0.5}).blend(np.ones((1, 2)), ("a", "c"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "method: expected one of mean"),
        ({"space": "odds"}, "space: expected one of probability"),
        ({"weights": {"a": 1.0}}, "weighted, greedy, stacked only, mean asked for"),
        ({"method": "weighted"}, "weighted, greedy, stacked only, weighted asked for"),
        ({"method": "weighted", "weights": {"a": 0.5, "b": 0.6}}, "sum to 1"),
        ({"method": "weighted", "weights": {"a": -0.5, "b": 1.5}}, "at least 0"),
        ({"method": "stacked", "weights": {"a": NAN}}, "weights: expected finite"),
        ({"intercept": NAN}, "intercept: expected finite"),
    ],
)
def test_every_fault_of_an_ensemble_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(**settings)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("a/fold0", "a"), ("runs/a/fold12", "runs/a"), ("a/fold0/fold1", "a/fold0"), ("a", "a"), ("a/foldx", "a/foldx")],
)
def test_the_experiment_of_a_model(model, expected):
    assert experiment_of(model) == expected


def test_folds_count_alike_within_an_experiment_and_experiments_among_each_other():
    rows = [("a/fold0", "v", 0, 0.1), ("a/fold1", "v", 0, 0.3), ("b/fold0", "v", 0, 0.8), ("b/fold0", "w", 0, 0.6)]
    table = predictions(*rows)
    scores = score_experiments(table.sample(frac=1, random_state=0), Aggregator())
    assert scores.video_ids.tolist() == ["v", "w"]
    assert scores.experiments == ("a", "b")
    assert scores.values == pytest.approx(np.array([[0.2, 0.8], [NAN, 0.6]]), nan_ok=True)
    assert scores.num_crops.tolist() == [1, 1]
    # Over models it would be 0.4.
    assert Ensemble().blend(scores.values, scores.experiments) == pytest.approx([0.5, 0.6])


def test_nothing_predicted_is_nothing_scored():
    scores = score_experiments(FRAME_PREDICTIONS.empty(), Aggregator())
    assert scores.values.shape == (0, 0)
    assert Ensemble().blend(scores.values, scores.experiments).tolist() == []


@pytest.mark.parametrize("space", SPACES)
def test_the_objective_is_the_log_loss_of_the_blend(space):
    values, labels = answers(200, [0.5, 1.0, 2.0])
    weights = np.array([0.2, 0.5, 0.3])
    objective = simplex_objective(values, labels, space=space, **OPEN)
    # logits are kept within 13.8, which some of these are beyond
    assert objective(weights)[0] == pytest.approx(plain_loss(weights, np.clip(values, 1e-6, 1 - 1e-6), labels, space))


@pytest.mark.parametrize("settings", [OPEN, {"pull": 10.0, "floor": 0.01}], ids=["plain", "with pull and floor"])
@pytest.mark.parametrize("space", SPACES)
def test_the_gradient_equals_finite_differences(space, settings):
    values, labels = answers(300, [0.5, 1.0, 2.0, np.inf], seed=3)
    objective = simplex_objective(np.clip(values, 1e-3, 1 - 1e-3), labels, space=space, **settings)
    for weights in (np.full(4, 0.25), np.array([0.7, 0.1, 0.2, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])):
        differences = approx_fprime(weights, lambda w: objective(w)[0], 1e-7)
        assert objective(weights)[1] == pytest.approx(differences, abs=2e-5)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("own_sd", [[0.5, 1.0], [1.0, 1.0, 1.2]])
def test_no_point_of_a_grid_is_better(own_sd, space, sharpness):
    values, labels = answers(400, own_sd, sharpness=sharpness, seed=1)
    values = np.clip(values, 1e-5, 1 - 1e-5)
    weights = simplex_weights(values, labels, space=space, **OPEN)
    steps = np.linspace(0, 1, 101)
    grid = [(a, b, 1 - a - b)[: len(own_sd)] if len(own_sd) == 3 else (a, 1 - a) for a in steps for b in steps]
    grid = [point for point in grid if min(point) >= -1e-12]
    best = min(grid, key=lambda point: plain_loss(np.array(point), values, labels, space))
    assert plain_loss(weights, values, labels, space) <= plain_loss(np.array(best), values, labels, space) + 1e-9
    assert weights == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_fulfils_the_conditions_of_karush_kuhn_and_tucker(seed, space):
    values, labels = answers(1_000, [0.6, 0.8, 1.0, 1.5, np.inf, np.inf], seed=seed)
    objective = simplex_objective(values, labels, space=space, pull=10.0, floor=0.01)
    weights = simplex_weights(values, labels, space=space)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    gradient = objective(weights)[1]
    multiplier = gradient @ weights
    used = weights > 1e-6
    assert gradient[used] == pytest.approx(multiplier, abs=1e-5)
    assert (gradient[~used] >= multiplier - 1e-5).all()


@pytest.mark.parametrize("how", [("weighted", "probability"), ("weighted", "logit"), ("greedy", "probability")])
def test_an_experiment_that_knows_nothing_gets_next_to_no_weight(how):
    values, labels = answers(5_000, [0.6, 0.6, np.inf])
    weights = fit_ensemble(*how, values, labels, ("a", "b", "c"), np.arange(5_000) % 5).weights
    assert weights["c"] < 0.02
    assert weights["a"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("space", SPACES)
def test_copies_share_the_weight_of_one(space):
    values, labels = answers(2_000, [0.8, 0.8])
    one = simplex_weights(values, labels, space=space, pull=1e-3)
    three = simplex_weights(values[:, [0, 0, 1]], labels, space=space, pull=1e-3)
    assert three[0] == pytest.approx(three[1], abs=1e-6)
    assert three[0] + three[1] == pytest.approx(one[0], abs=1e-3)


@pytest.mark.parametrize(
    "how", [("weighted", "probability"), ("weighted", "logit"), ("greedy", "probability"), ("stacked", "logit")]
)
def test_experiments_in_another_order_get_the_same_weights(how):
    values, labels = answers(1_000, [0.6, 0.9, 1.2, np.inf])
    folds, names, order = np.arange(1_000) % 4, np.array(list("abcd")), [2, 0, 3, 1]
    straight = fit_ensemble(*how, values, labels, names, folds)
    other = fit_ensemble(*how, values[:, order], labels, names[order], folds)
    assert other.weights == pytest.approx(straight.weights, abs=1e-4)
    assert other.intercept == pytest.approx(straight.intercept, abs=1e-4)


def test_overconfident_logits_do_not_force_weights_to_be_equal():
    """The better experiment keeps its weight however sharp all of them are."""
    values, labels = answers(20_000, [0.4, 1.5], sharpness=0.5)
    sharp = expit(3 * logit(values))
    given, sharper = (
        fit_ensemble("weighted", "logit", of, labels, ("a", "b"), np.zeros(20_000)).weights for of in (values, sharp)
    )
    assert given["a"] > 0.8
    assert sharper["a"] == pytest.approx(given["a"], abs=0.05)


def test_weights_are_fitted_on_the_videos_that_every_experiment_saw():
    values, labels = answers(1_000, [0.6, 0.9])
    folds = np.arange(1_000) % 5
    partly = values.copy()
    partly[::3, 0] = np.nan
    found = fit_ensemble("weighted", "probability", partly, labels, ("a", "b"), folds)
    complete = np.arange(1_000) % 3 > 0
    assert found == fit_ensemble(
        "weighted", "probability", values[complete], labels[complete], ("a", "b"), folds[complete]
    )


@pytest.mark.parametrize("method", ["mean", "weighted", "greedy", "stacked", "gated"])
@pytest.mark.parametrize("seen", [0, 5], ids=["no video", "one class"])
def test_without_both_classes_nothing_is_fitted(seen, method):
    found = fit_ensemble(method, "probability", np.full((seen, 2), 0.5), np.ones(seen), ("a", "b"), np.zeros(seen))
    assert found.weights == {}


@pytest.mark.parametrize("how", [("weighted", "probability"), ("weighted", "logit"), ("greedy", "probability")])
def test_one_experiment_has_all_the_weight(how):
    values, labels = answers(100, [0.6])
    assert fit_ensemble(*how, values, labels, ("a",), np.arange(100) % 2).weights == {"a": 1.0}


def greedy_by_the_book(values, labels, steps):
    """Caruana's selection in plain loops."""

    def loss(bag):
        return plain_loss(np.ones(1), np.mean(values[:, bag], axis=1, keepdims=True), labels, "probability")

    order = sorted(range(values.shape[1]), key=lambda e: loss([e]))
    bag = min((order[: n + 1] for n in range(len(order))), key=loss)
    best = list(bag)
    while len(bag) < steps:
        bag = bag + [min(range(values.shape[1]), key=lambda e: loss([*bag, e]))]
        best = bag if loss(bag) < loss(best) else best
    return np.bincount(best, minlength=values.shape[1]) / len(best)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_selection_goes_by_the_book(seed):
    values, labels = answers(150, [0.6, 0.9, 1.0, 1.5], seed=seed)
    values = np.clip(values, 0.001, 0.999)
    found = greedy_weights(values, labels, steps=12, floor=0.0)
    assert found == pytest.approx(greedy_by_the_book(values, labels, 12), abs=1e-12)


def test_greedy_selection_comes_near_the_optimum():
    values, labels = answers(2_000, [0.6, 0.9, 1.0, 1.5, np.inf])
    objective = simplex_objective(values, labels, space="probability", pull=0.0, floor=0.01)
    optimum = objective(simplex_weights(values, labels, space="probability", pull=0.0))[0]
    assert optimum <= objective(greedy_weights(values, labels))[0] <= optimum + 1e-3


def test_stacking_is_the_ridge_regression_with_one_of_the_strengths():
    values, labels = answers(500, [0.6, 0.9], sharpness=2.0)
    weights, intercept = stacking_weights(values, labels, np.arange(500) % 5)
    logits = logit(np.clip(values, 1e-6, 1 - 1e-6))

    def cost(theta, strength):
        margins = logits @ theta[:-1] + theta[-1]
        return strength * np.sum(np.logaddexp(0, margins) - labels * margins) + theta[:-1] @ theta[:-1] / 2

    found = np.append(weights, intercept)
    optima = [minimize(cost, np.zeros(3), args=(strength,), tol=1e-10).x for strength in STACKING_STRENGTHS]
    assert min(np.abs(found - optimum).max() for optimum in optima) < 1e-3


def test_stacking_unlearns_overconfidence():
    values, labels = answers(3_000, [0.8, 0.8], sharpness=4.0)
    ensemble = fit_ensemble("stacked", "logit", values, labels, ("a", "b"), np.arange(3_000) % 5)
    reference = LogisticRegression(C=np.inf).fit(logit(np.clip(values, 1e-6, 1 - 1e-6)), labels)
    assert list(ensemble.weights.values()) == pytest.approx(reference.coef_[0], rel=0.1)
    assert sum(ensemble.weights.values()) < 0.5
