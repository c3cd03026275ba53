"""Metrics against scikit-learn, against their definitions written out, and by hand."""

import math
from dataclasses import asdict

import numpy as np
import pytest
from sklearn import metrics

from multiattn.scoring.metrics import CONSTANT_LOG_LOSS, balanced_log_loss, log_loss, roc_points, video_metrics


def random_table(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both classes, probabilities with ties and with values close to 0 and 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, size)
    labels[:2] = [0, 1]
    probabilities = rng.choice([rng.random(size), rng.random(size).round(1) * 0.98 + 0.01, rng.random(size) ** 30])
    return labels, np.clip(probabilities, 1e-9, 1 - 1e-9)


@pytest.mark.parametrize("size", [2, 3, 10, 5000])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn(seed, size):
    labels, probabilities = random_table(seed, size)
    found = video_metrics(labels, probabilities, clip=1e-15)
    assert found.log_loss == pytest.approx(metrics.log_loss(labels, probabilities, labels=[0, 1]), rel=0, abs=1e-12)
    assert found.auc == pytest.approx(metrics.roc_auc_score(labels, probabilities), abs=1e-12)
    answers = probabilities > 0.5
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, answers), abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, answers), abs=1e-12)
    assert found.average_precision == pytest.approx(metrics.average_precision_score(labels, probabilities), abs=1e-12)
    assert found.brier == pytest.approx(metrics.brier_score_loss(labels, probabilities), abs=1e-12)
    assert found.num_videos == size


def equal_error_rate(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """By trying every threshold there is; of equally good ones the one that calls the fewest fake."""
    found = []
    for threshold in [np.inf, *sorted(set(probabilities.tolist()), reverse=True)]:
        false_positives = np.mean(probabilities[labels == 0] >= threshold)
        false_negatives = np.mean(probabilities[labels == 1] < threshold)
        found.append((abs(false_negatives - false_positives), (false_negatives + false_positives) / 2))
    return next(rate for difference, rate in found if difference == min(found)[0])


def calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Video by video into 15 bins."""
    bins = {}
    for label, probability in zip(labels, probabilities, strict=True):
        bins.setdefault(min(int(probability * 15), 14), []).append((probability, label))
    means = [(len(pairs), *np.mean(pairs, axis=0)) for pairs in bins.values()]
    return sum(size * abs(probability - fakes) for size, probability, fakes in means) / len(labels)


@pytest.mark.parametrize("size", [2, 3, 10, 200])
@pytest.mark.parametrize("seed", range(5))
def test_rates_and_calibration_equal_their_definitions(seed, size):
    labels, probabilities = random_table(seed, size)
    found = video_metrics(labels, probabilities, clip=1e-15)
    assert found.eer == pytest.approx(equal_error_rate(labels, probabilities), abs=1e-12)
    assert found.calibration_error == pytest.approx(calibration_error(labels, probabilities), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "probabilities", "eer", "calibration"),
    [
        pytest.param([0, 1], [0.0, 1.0], 0.0, 0.0, id="perfect"),
        pytest.param([0, 1], [1.0, 0.0], 1.0, 1.0, id="all wrong"),
        pytest.param([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5], 0.5, 0.0, id="no opinion"),
        pytest.param([0, 0, 1, 1], [0.1, 0.8, 0.3, 0.9], 0.5, 0.425, id="one of each wrong"),
    ],
)
def test_equal_error_rate_and_calibration_by_hand(labels, probabilities, eer, calibration):
    found = video_metrics(np.array(labels), np.array(probabilities), clip=1e-15)
    assert (found.eer, found.calibration_error) == (pytest.approx(eer), pytest.approx(calibration))


@pytest.mark.parametrize("seed", range(3))
def test_the_area_under_the_roc_points_is_the_auc(seed):
    labels, probabilities = random_table(seed, 50)
    false_positives, true_positives = roc_points(labels, probabilities)
    assert (false_positives[0], true_positives[0], false_positives[-1], true_positives[-1]) == (0, 0, 1, 1)
    area = np.trapezoid(true_positives, false_positives)
    assert area == pytest.approx(metrics.roc_auc_score(labels, probabilities), abs=1e-12)


def test_one_class_has_no_roc_curve():
    with pytest.raises(ValueError, match="one class only"):
        roc_points(np.ones(3), np.full(3, 0.5))


@pytest.mark.parametrize("clip", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_the_clip_is_applied_before_the_logarithm(seed, clip):
    labels, probabilities = random_table(seed, 100)
    expected = metrics.log_loss(labels, np.clip(probabilities, clip, 1 - clip), labels=[0, 1])
    assert log_loss(labels, probabilities, clip=clip) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        pytest.param([1], [0.5], math.log(2), id="one video, no opinion"),
        pytest.param([1], [0.9], -math.log(0.9), id="one fake"),
        pytest.param([0], [0.9], -math.log(0.1), id="one real"),
        pytest.param([1, 0, 0, 1], [0.8, 0.4, 0.1, 0.3], -math.log(0.8 * 0.6 * 0.9 * 0.3) / 4, id="four"),
        pytest.param([1, 0], [1.0, 0.0], 0.0, id="sure and right"),
    ],
)
def test_log_loss_by_hand(labels, probabilities, expected):
    assert log_loss(np.array(labels), np.array(probabilities)) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("clip", [0.01, 0.25, 1e-15])
def test_a_confident_mistake_costs_what_the_clip_says(clip):
    found = log_loss(np.array([1, 0]), np.array([0.0, 1.0]), **({"clip": clip} if clip > 1e-15 else {}))
    assert found == pytest.approx(-math.log(clip), rel=1e-3)


@pytest.mark.parametrize("labels", [[0, 1], [0], [1, 1, 1], [0, 1] * 2000], ids=["two", "real", "fakes", "many"])
def test_a_constant_half_costs_the_logarithm_of_two(labels):
    found = video_metrics(np.array(labels), np.full(len(labels), 0.5), clip=0.01)
    assert found.log_loss == pytest.approx(math.log(2), abs=1e-15)
    assert pytest.approx(0.693147, abs=1e-6) == CONSTANT_LOG_LOSS
    assert found.accuracy == labels.count(0) / len(labels), "exactly 0.5 answers real"
    assert found.auc == (0.5 if len(set(labels)) == 2 else None)


@pytest.mark.parametrize("label", [0, 1], ids=["reals", "fakes"])
@pytest.mark.parametrize("size", [1, 3])
def test_one_class_has_no_auc(label, size):
    found = video_metrics(np.full(size, label), np.full(size, 0.8), clip=0.01)
    loss = -math.log(0.8 if label else 0.2)
    assert asdict(found) == {
        "log_loss": pytest.approx(loss),
        "auc": None,
        "accuracy": float(label),
        "num_videos": size,
        "balanced_log_loss": pytest.approx(loss),
        "average_precision": None,
        "eer": None,
        "balanced_accuracy": None,
        "brier": pytest.approx(0.04 if label else 0.64),
        "calibration_error": pytest.approx(0.2 if label else 0.8),
    }


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        pytest.param([], [], r"N >= 1, found \(0,\)", id="empty"),
        pytest.param([1, 0], [0.5], r"\(2,\), \(1,\)", id="lengths differ"),
        pytest.param([[1], [0]], [[0.5], [0.5]], r"\(2, 1\)", id="two dimensions"),
        pytest.param([1, -1], [0.5, 0.5], "labels of 0", id="an unknown label"),
        pytest.param([1, 2], [0.5, 0.5], "labels of 0", id="a label of 2"),
        pytest.param([1, 0.5], [0.5, 0.5], "labels of 0", id="a label of one half"),
        pytest.param([1, np.nan], [0.5, 0.5], "labels of 0", id="a label of NaN"),
        pytest.param([1, 0], [0.5, np.nan], r"\[0, 1\]", id="NaN"),
        pytest.param([1, 0], [0.5, np.inf], r"\[0, 1\]", id="infinite"),
        pytest.param([1, 0], [0.5, 1 + 1e-9], r"\[0, 1\]", id="above 1"),
        pytest.param([1, 0], [-1e-9, 0.5], r"\[0, 1\]", id="below 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(labels, probabilities, expected):
    for measure in (log_loss, video_metrics):
        with pytest.raises(ValueError, match=expected):
            measure(np.array(labels), np.array(probabilities), clip=0.01)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
def test_labels_of_any_numeric_dtype_are_the_same(dtype):
    labels, probabilities = random_table(0, 50)
    probabilities = probabilities.astype(np.float32)  # scored in float64
    expected = video_metrics(labels, probabilities.astype(np.float64), clip=0.01)
    assert video_metrics(labels.astype(dtype), probabilities, clip=0.01) == expected


def test_metrics_are_plain_numbers_that_json_knows():
    values = asdict(video_metrics(*random_table(0, 10), clip=0.01))
    assert {name: type(value) for name, value in values.items() if type(value) is not float} == {"num_videos": int}


@pytest.mark.parametrize("seed", range(3))
def test_the_balanced_log_loss_is_scikit_learns_with_weights_that_balance_the_classes(seed):
    labels, probabilities = random_table(seed, 60)
    labels[:40] = 1
    weights = np.where(labels == 1, 1 / (labels == 1).sum(), 1 / (labels == 0).sum())
    expected = metrics.log_loss(labels, probabilities, sample_weight=weights, labels=[0, 1])
    assert balanced_log_loss(labels, probabilities) == pytest.approx(expected, abs=1e-12)
