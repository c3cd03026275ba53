"""Intervals and comparisons: against NumPy's own draws, by hand, and by how often they hold the truth."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm, t
from sklearn.metrics import roc_auc_score

from multiattn.scoring.metrics import (
    MIN_GROUPS,
    WIDEST,
    Interval,
    _studentized,
    auc_interval,
    bootstrap_log_loss,
    compare_log_loss,
    log_loss,
    log_losses,
    standard_error,
)

CLIP = 0.01


def answers(seed: int, size: int, num_groups: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and groups; the videos of a group share a shift, so they are alike."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    labels[:2] = [0, 1]
    groups = rng.integers(0, num_groups or size, size)
    shifts = rng.normal(0, 0.2, num_groups or size)
    return labels, np.clip(rng.normal(0.3 + 0.4 * labels, 0.2) + shifts[groups], 0, 1).round(2), groups


def draws_of_rows(groups: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows of as many whole groups as there are, drawn with replacement."""
    rng = np.random.default_rng(99)
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    return [
        np.concatenate([rows[pick] for pick in picked]) for picked in rng.integers(0, len(rows), (count, len(rows)))
    ]


@pytest.mark.parametrize("num_groups", [8, 40])
def test_the_interval_is_the_bootstrap_t_of_drawing_whole_groups(num_groups):
    labels, probabilities, groups = answers(num_groups, 200, num_groups)
    losses = log_losses(labels, probabilities, clip=CLIP)
    picks = np.random.default_rng(0).integers(0, num_groups, (4000, num_groups))
    studentized = []
    for picked in picks:  # a group that is drawn twice is two groups
        values = [losses[groups == group] for group in picked]
        names = np.repeat(np.arange(num_groups), list(map(len, values)))
        drawn = np.concatenate(values)
        studentized.append((drawn.mean() - losses.mean()) / standard_error(drawn, names))
    student = t.ppf(0.975, num_groups - 1)
    low, high = np.quantile(studentized, [0.025, 0.975])
    error = standard_error(losses, groups)
    found = bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    expected = [losses.mean() - max(high, student) * error, losses.mean() + max(-low, student) * error]
    assert [found.low, found.high] == pytest.approx(expected, abs=0.15 * error)


@pytest.mark.parametrize("seed", range(2))
def test_the_errors_over_groups_are_those_of_a_bootstrap(seed):
    labels, probabilities, groups = answers(seed, 300, 30)
    losses = log_losses(labels, probabilities, clip=CLIP)
    rows = draws_of_rows(groups, 1500)
    found = bootstrap_log_loss(labels, probabilities, groups, clip=CLIP).standard_error
    assert found == pytest.approx(np.std([losses[drawn].mean() for drawn in rows]), rel=0.1)
    areas = [roc_auc_score(labels[drawn], probabilities[drawn]) for drawn in rows[:400]]
    found = auc_interval(labels, probabilities, groups)
    assert found.standard_error == pytest.approx(np.std(areas), rel=0.15)
    assert [found.low, found.high] == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=1.2 * found.standard_error)


@pytest.mark.parametrize("size", [50, 5000])
def test_without_groups_the_error_is_that_of_a_mean(size):
    labels, probabilities, _ = answers(0, size)
    losses = log_losses(labels, probabilities, clip=CLIP)
    found = bootstrap_log_loss(labels, probabilities, clip=CLIP)
    assert found.standard_error == pytest.approx(losses.std(ddof=1) / math.sqrt(size))
    assert found.low < log_loss(labels, probabilities, clip=CLIP) < found.high


def test_videos_that_are_alike_give_a_wider_interval_than_single_ones():
    labels, probabilities, groups = answers(1, 1000, 20)
    together = bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    apart = bootstrap_log_loss(labels, probabilities, clip=CLIP)
    assert together.standard_error > 1.5 * apart.standard_error


LOSSES = {
    "exponential": (lambda rng, group, size: np.exp(rng.normal(0, 0.4, 99))[group] * rng.exponential(1, size), 1.0833),
    "cubed tails": (
        lambda rng, group, size: np.exp(rng.normal(0, 0.5, 99))[group] * rng.exponential(1, size) ** 1.5,
        1.5063,
    ),
    "one in ten wrong": (
        lambda rng, group, size: np.where(
            rng.random(size) < rng.beta(0.6, 5.4, 99)[group],
            1 + rng.exponential(1.5, size),
            rng.exponential(0.08, size),
        ),
        0.322,
    ),
    "a difference": (
        lambda rng, group, size: (
            rng.normal(0, 0.3, 99)[group] + np.where(rng.random(size) < 0.7, 1.5 * (rng.exponential(1, size) - 1), 0)
        ),
        0.0,
    ),
}
"""Name -> draws of skewed losses whose groups differ, and their true mean."""


def held(name: str, num_groups: int, sets: int) -> tuple[float, float]:
    """The share of intervals that hold the true mean; and of confidences of 0.975 and more that it lies below it."""
    draw, truth = LOSSES[name]
    rng, inside, sure = np.random.default_rng(0), 0, 0
    for _ in range(sets):
        groups = np.repeat(np.arange(num_groups), rng.integers(1, 40, num_groups))
        interval, confidence = _studentized(draw(rng, groups, len(groups)) - truth, groups, 1000, 0)
        inside += interval.low <= 0 <= interval.high
        sure += confidence >= 0.975
    return inside / sets, sure / sets


@pytest.mark.parametrize(("num_groups", "at_least"), [(5, 0.90), (18, 0.93), (50, 0.93)])
@pytest.mark.parametrize("name", LOSSES)
def test_ninety_five_per_cent_intervals_of_skewed_losses_hold_the_truth(name, num_groups, at_least):
    inside, sure = held(name, num_groups, 500)
    assert at_least <= inside <= 0.98
    if name == "a difference":  # of a loss, whose tail is on one side, nobody asks for the confidence
        assert sure <= 0.04


@pytest.mark.parametrize(("num_groups", "at_least"), [(5, 0.90), (18, 0.93)])
def test_intervals_of_an_auc_hold_the_truth(num_groups, at_least):
    rng, inside = np.random.default_rng(0), 0
    for _ in range(500):
        groups = np.repeat(np.arange(num_groups), rng.integers(4, 40, num_groups))
        labels = rng.integers(0, 2, len(groups))
        evidence = 1.5 * labels + rng.normal(0, 0.4, num_groups)[groups] + rng.normal(0, 1, len(groups))
        found = auc_interval(labels, norm.cdf(evidence), groups)
        inside += found.low <= norm.cdf(1.5 / math.sqrt(2 * 1.16)) <= found.high
    assert at_least <= inside / 500 <= 0.98


def test_where_few_mistakes_cost_all_there_is_the_interval_stays_finite():
    labels, probabilities = np.ones(36), np.where(np.arange(36) == 3, 0.01, 0.99)
    found = bootstrap_log_loss(labels, probabilities, clip=CLIP)
    mean = log_loss(labels, probabilities, clip=CLIP)
    assert found.high == pytest.approx(mean + WIDEST * t.ppf(0.975, 35) * found.standard_error)
    assert found.low == 0, "a log loss is not below 0"


def test_identical_answers_are_neither_better_nor_worse():
    labels, probabilities, groups = answers(0, 50, 5)
    found = compare_log_loss(labels, probabilities, probabilities, groups, clip=CLIP)
    assert (found.difference, found.low, found.high, found.probability_better) == (0, 0, 0, 0.5)


def test_a_comparison_turned_round_is_the_same_with_the_other_sign():
    labels, a, groups = answers(0, 80, 10)
    b = np.clip(a + np.random.default_rng(3).normal(0, 0.1, len(a)), 0, 1)
    one, other = (compare_log_loss(labels, *pair, groups, clip=CLIP) for pair in ((a, b), (b, a)))
    assert one.difference == pytest.approx(log_loss(labels, a, clip=CLIP) - log_loss(labels, b, clip=CLIP))
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))
    assert one.probability_better + other.probability_better == pytest.approx(1)


def test_the_comparison_is_paired_and_surer_of_what_its_interval_leaves_out():
    labels, a, _ = answers(0, 500)
    b = np.clip(a + 0.01 * (0.5 - labels), 0, 1)  # a little worse everywhere
    found = compare_log_loss(labels, a, b, clip=CLIP)
    assert found.probability_better > 0.975 and found.high < 0
    assert found.standard_error < 0.2 * bootstrap_log_loss(labels, a, clip=CLIP).standard_error


def test_weights_make_the_difference_that_of_another_share_of_fakes():
    labels, a, groups = answers(0, 80, 10)
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    found = compare_log_loss(labels, a, np.full(80, 0.5), groups, clip=CLIP, weights=weights)
    losses = log_losses(labels, a, clip=CLIP)
    assert found.difference == pytest.approx(
        (losses[labels == 1].mean() + losses[labels == 0].mean()) / 2 - math.log(2)
    )


def test_where_all_are_alike_the_interval_is_a_point():
    found = bootstrap_log_loss(np.ones(5), np.full(5, 0.8), clip=CLIP)
    assert (found.low, found.high, found.standard_error) == pytest.approx((-math.log(0.8), -math.log(0.8), 0))


@pytest.mark.parametrize(
    ("low", "high", "words", "beside"),
    [
        pytest.param(-0.25, 0.5, "-0.2500 to +0.5000", "+0.1000 (-0.2500 to +0.5000)", id="known"),
        *[pytest.param(none, none, "fewer than 5 groups", "+0.1000", id=str(none)) for none in (None, np.nan, pd.NA)],
    ],
)
def test_an_interval_or_none_in_words(low, high, words, beside):
    interval = Interval.of(low, high)
    assert (interval.words(sign="+"), interval.beside(0.1, sign="+")) == (words, beside)


@pytest.mark.parametrize("groups", [None, list("aaabc"), [7, 7, 7, 8, 9], list("aaaaa")])
def test_with_fewer_than_five_groups_there_is_no_interval(groups):
    labels, probabilities = np.array([1, 0, 1, 0, 1]), np.array([0.8, 0.4, 0.6, 0.3, 0.9])
    some = slice(None) if groups else slice(MIN_GROUPS - 1)
    labels, probabilities, groups = labels[some], probabilities[some], groups and np.array(groups)
    found = bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    assert np.isnan([found.low, found.high, auc_interval(labels, probabilities, groups).low]).all()
    assert np.isnan(found.standard_error) == (groups is not None and len(set(groups)) == 1)
    compared = compare_log_loss(labels, probabilities, 1 - probabilities, groups, clip=CLIP)
    assert np.isnan([compared.low, compared.probability_better]).all() and not np.isnan(compared.difference)


def test_an_auc_of_one_class_has_no_interval_and_of_perfect_order_a_point():
    assert np.isnan(auc_interval(np.ones(6), np.linspace(0, 1, 6)).low)
    found = auc_interval(np.arange(6) // 3, np.linspace(0, 1, 6))
    assert (found.low, found.high, found.standard_error) == (1, 1, 0)


def test_the_order_of_the_rows_changes_nothing_but_the_last_bits():
    labels, probabilities, groups = answers(4, 300, 30)
    order = np.random.default_rng(0).permutation(len(labels))
    turned = labels[order], probabilities[order], groups[order]
    first, again = (bootstrap_log_loss(*rows, clip=CLIP) for rows in ((labels, probabilities, groups), turned))
    assert vars(again) == pytest.approx(vars(first))
    assert bootstrap_log_loss(labels, probabilities, groups, clip=CLIP, seed=1) != first
    assert vars(auc_interval(*turned)) == pytest.approx(vars(auc_interval(labels, probabilities, groups)))


def test_the_bootstrap_leaves_torchs_threads_alone():
    labels, probabilities, groups = answers(4, 300, 30)
    before = torch.get_num_threads()
    bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"groups": np.zeros(3)}, "one for each of 2 videos, found 3", id="groups"),
        pytest.param({"resamples": 0}, "at least 1 resample", id="no resamples"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, expected):
    with pytest.raises(ValueError, match=expected):
        bootstrap_log_loss(np.array([0, 1]), np.array([0.2, 0.8]), clip=CLIP, **changes)
