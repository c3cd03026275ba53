"""The bootstrap against NumPy's own draws, against the analytic error of a mean, and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from multiattn.scoring.metrics import bootstrap_auc, bootstrap_log_loss, compare_log_loss, log_loss, log_losses

CLIP = 0.01


def answers(seed: int, size: int, num_groups: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and groups; the videos of a group share a shift, so they are alike."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    labels[:2] = [0, 1]
    groups = rng.integers(0, num_groups or size, size)
    shifts = rng.normal(0, 0.2, num_groups or size)
    return labels, np.clip(rng.normal(0.3 + 0.4 * labels, 0.2) + shifts[groups], 0, 1).round(2), groups


def numpy_resamples(values: list[np.ndarray], groups: np.ndarray, statistic, count: int) -> np.ndarray:
    """The same bootstrap by lists of rows."""
    rng = np.random.default_rng(99)
    rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    picks = rng.integers(0, len(rows), (count, len(rows)))
    drawn = [np.concatenate([rows[pick] for pick in picked]) for picked in picks]
    return np.array([statistic(*(value[chosen] for value in values)) for chosen in drawn])


@pytest.mark.parametrize("num_groups", [5, 40])
@pytest.mark.parametrize("seed", range(2))
def test_the_interval_is_that_of_drawing_whole_groups(seed, num_groups):
    labels, probabilities, groups = answers(seed, 200, num_groups)
    losses = log_losses(labels, probabilities, clip=CLIP)
    expected = numpy_resamples([losses], groups, np.mean, 4000)
    found = bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    spread = expected.std()
    assert found.standard_error == pytest.approx(spread, rel=0.06)
    assert [found.low, found.high] == pytest.approx(np.quantile(expected, [0.025, 0.975]), abs=0.12 * spread)


@pytest.mark.parametrize("seed", range(2))
def test_the_interval_of_the_auc_is_that_of_scikit_learns_on_resamples(seed):
    labels, probabilities, groups = answers(seed, 120, 20)
    expected = numpy_resamples([labels, probabilities], groups, roc_auc_score, 1500)
    found = bootstrap_auc(labels, probabilities, groups, resamples=4000)
    spread = expected.std()
    assert found.standard_error == pytest.approx(spread, rel=0.08)
    assert [found.low, found.high] == pytest.approx(np.quantile(expected, [0.025, 0.975]), abs=0.15 * spread)


@pytest.mark.parametrize("size", [50, 5000])
def test_without_groups_the_error_is_that_of_a_mean(size):
    labels, probabilities, _ = answers(0, size)
    losses = log_losses(labels, probabilities, clip=CLIP)
    found = bootstrap_log_loss(labels, probabilities, clip=CLIP)
    assert found.standard_error == pytest.approx(losses.std() / math.sqrt(size), rel=0.04)
    assert found.low < log_loss(labels, probabilities, clip=CLIP) < found.high


def test_videos_that_are_alike_give_a_wider_interval_than_single_ones():
    labels, probabilities, groups = answers(1, 1000, 20)
    together = bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    apart = bootstrap_log_loss(labels, probabilities, clip=CLIP)
    assert together.standard_error > 1.5 * apart.standard_error


def test_nineteen_of_twenty_intervals_hold_the_true_loss():
    rng = np.random.default_rng(0)
    true = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    inside = 0
    for seed in range(300):
        found = bootstrap_log_loss(
            (rng.random(100) < 0.7).astype(int), np.full(100, 0.7), clip=CLIP, resamples=1000, seed=seed
        )
        inside += found.low <= true <= found.high
    assert 0.9 <= inside / 300 <= 0.98


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


def test_the_comparison_is_paired():
    labels, a, _ = answers(0, 500)
    b = np.clip(a + 0.01 * (0.5 - labels), 0, 1)  # a little worse everywhere
    found = compare_log_loss(labels, a, b, clip=CLIP)
    assert found.probability_better > 0.99
    assert found.standard_error < 0.2 * bootstrap_log_loss(labels, a, clip=CLIP).standard_error


def test_where_all_are_alike_the_interval_is_a_point():
    found = bootstrap_log_loss(np.array([1, 1]), np.array([0.8, 0.8]), clip=CLIP)
    assert (found.low, found.high, found.standard_error) == pytest.approx((-math.log(0.8), -math.log(0.8), 0))


@pytest.mark.parametrize("groups", [["a", "a", "a"], [7, 7, 7]], ids=["named", "numbered"])
def test_one_group_says_nothing_of_the_error(groups):
    labels, probabilities = np.array([1, 0, 1]), np.array([0.8, 0.4, 0.6])
    found = bootstrap_log_loss(labels, probabilities, np.array(groups), clip=CLIP)
    assert np.isnan([found.low, found.high, found.standard_error]).all()
    assert np.isnan(bootstrap_auc(labels, probabilities, np.array(groups)).low)
    compared = compare_log_loss(labels, probabilities, 1 - probabilities, np.array(groups), clip=CLIP)
    assert np.isnan([compared.low, compared.probability_better]).all() and not np.isnan(compared.difference)


def test_one_video_says_nothing_of_the_error():
    assert np.isnan(bootstrap_log_loss(np.array([1]), np.array([0.8]), clip=CLIP).low)


def test_resamples_of_one_class_do_not_count_for_the_auc():
    labels, probabilities = np.array([0, 1]), np.array([0.2, 0.9])
    found = bootstrap_auc(labels, probabilities)
    assert (found.low, found.high, found.standard_error) == (1, 1, 0)
    assert np.isnan(bootstrap_auc(np.ones(3), np.full(3, 0.5)).low)


@pytest.mark.parametrize("measure", [bootstrap_log_loss, bootstrap_auc])
def test_the_order_of_the_rows_changes_nothing_but_the_last_bits(measure):
    labels, probabilities, groups = answers(4, 300, 30)
    settings = {"clip": CLIP} if measure is bootstrap_log_loss else {}
    first = measure(labels, probabilities, groups, **settings)
    order = np.random.default_rng(0).permutation(len(labels))
    again = measure(labels[order], probabilities[order], groups[order], **settings)
    assert vars(again) == pytest.approx(vars(first))
    assert measure(labels, probabilities, groups, seed=1, **settings) != first


def test_the_bootstrap_leaves_torchs_threads_alone():
    labels, probabilities, groups = answers(4, 300, 30)
    before = torch.get_num_threads()
    bootstrap_log_loss(labels, probabilities, groups, clip=CLIP)
    bootstrap_auc(labels, probabilities, groups)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"groups": np.zeros(3)}, "one for each of 2 videos, found 3", id="groups"),
        pytest.param({"resamples": 0}, "at least 1 resample", id="no resamples"),
    ],
)
@pytest.mark.parametrize("measure", [bootstrap_log_loss, bootstrap_auc])
def test_what_cannot_be_drawn_is_refused(measure, changes, expected):
    settings = {"clip": CLIP} if measure is bootstrap_log_loss else {}
    with pytest.raises(ValueError, match=expected):
        measure(np.array([0, 1]), np.array([0.2, 0.8]), **settings, **changes)
