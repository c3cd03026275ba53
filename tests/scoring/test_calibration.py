"""Calibration, prior shift and clip: against scikit-learn, SciPy and brute force, at the edges, and for few videos."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from multiattn.scoring.calibration import (
    CALIBRATORS,
    CLIP_RANGE,
    PSEUDO_VIDEOS,
    Calibration,
    PriorShift,
    fit_calibration,
    fit_clip,
    fit_logistic,
)
from multiattn.scoring.metrics import log_loss

FITTED = sorted(set(CALIBRATORS) - {"none"})


def calibrated_videos(num_videos: int, *, share: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(N,) probabilities that are right, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = expit(2.0 * rng.standard_normal(num_videos) + logit(share))
    return probabilities, (rng.random(num_videos) < probabilities).astype(int)


@pytest.mark.parametrize(
    ("calibration", "given", "expected"),
    [
        pytest.param(Calibration(), [0.0, 0.3, 1.0], [0.0, 0.3, 1.0], id="none"),
        pytest.param(Calibration(), [], [], id="no videos"),
        pytest.param(Calibration(method="temperature", parameters=(2.0,)), [0.9, 0.5], [0.75, 0.5], id="odds 9 -> 3"),
        pytest.param(Calibration(method="platt", parameters=(0.5, np.log(2))), [0.9], [6 / 7], id="odds 3 * 2"),
        pytest.param(Calibration(method="platt", parameters=(0.0, 0.0)), [0.1, 0.9], [0.5, 0.5], id="slope 0"),
        pytest.param(Calibration(method="beta", parameters=(2.0, 1.0, 0.0)), [0.5], [1 / 3], id="odds 1/4 / 1/2"),
        pytest.param(
            Calibration(method="isotonic", parameters=(0.2, 0.6, 0.1, 0.9)),
            [0.0, 0.2, 0.4, 0.6, 1.0],
            [0.1, 0.1, 0.5, 0.9, 0.9],
            id="between the steps and beyond",
        ),
        pytest.param(Calibration(method="isotonic", parameters=(0.5, 0.3)), [0.0, 1.0], [0.3, 0.3], id="one step"),
    ],
)
def test_maps_by_hand(calibration, given, expected):
    assert calibration.apply(np.array(given)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", CALIBRATORS)
def test_order_is_kept_results_stay_in_the_unit_interval_and_nan_stays(method):
    probabilities, labels = calibrated_videos(300)
    calibration = fit_calibration(method, labels, probabilities)
    grid = calibration.apply(np.linspace(0, 1, 1001))
    assert (np.diff(grid) >= 0).all()
    assert (grid >= 0).all()
    assert (grid <= 1).all()
    assert np.isnan(calibration.apply(np.array([0.5, np.nan]))[1])


@pytest.mark.parametrize("method", FITTED)
def test_beyond_the_steps_nothing_is_certain(method):
    """Not even after videos that are separated perfectly: log loss of the opposite stays finite."""
    probabilities, labels = np.repeat([0.001, 0.999], 20), np.repeat([0, 1], 20)
    ends = fit_calibration(method, labels, probabilities).apply(np.array([0.0, 1.0]))
    assert ends.min() > 0
    assert ends.max() < 1
    assert log_loss(np.array([1, 0]), ends, clip=1e-15) < 40


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("magic", ()),
        ("none", (1.0,)),
        ("temperature", ()),
        ("temperature", (0.0,)),
        ("temperature", (-1.0,)),
        ("platt", (1.0,)),
        ("platt", (-1.0, 0.0)),
        ("platt", (1.0, np.nan)),
        ("beta", (1.0, -1.0, 0.0)),
        ("isotonic", ()),
        ("isotonic", (0.1, 0.2, 0.3)),
        ("isotonic", (0.2, 0.1, 0.3, 0.4)),
        ("isotonic", (0.1, 0.2, 0.4, 0.3)),
        ("isotonic", (0.1, 1.2)),
    ],
)
def test_every_fault_of_a_calibration_is_refused(method, parameters):
    with pytest.raises(ValueError, match="Calibration"):
        Calibration(method=method, parameters=parameters)


def test_platt_is_the_logistic_regression_of_scikit_learn():
    probabilities, labels = calibrated_videos(2_000)
    squashed = expit(0.4 * logit(probabilities) - 0.7)
    fitted = fit_calibration("platt", labels, squashed, ridge=0.0)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(squashed)[:, None], labels)
    assert fitted.parameters == pytest.approx((reference.coef_[0, 0], reference.intercept_[0]), abs=1e-4)


def test_platt_temperature_and_beta_find_back_what_was_done():
    probabilities, labels = calibrated_videos(100_000)
    z = logit(probabilities)
    assert fit_calibration("temperature", labels, expit(3 * z)).parameters == pytest.approx([3.0], rel=0.05)
    assert fit_calibration("platt", labels, expit((z - 0.5) / 2)).parameters == pytest.approx([2, 0.5], abs=0.05)
    # odds^(1/2), so that a = b = 2, is the beta map that is also Platt's
    assert fit_calibration("beta", labels, expit(z / 2)).parameters == pytest.approx([2, 2, 0], abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_beta_is_the_optimum_that_scipy_finds_under_its_bounds(seed):
    probabilities, labels = calibrated_videos(300, seed=seed)
    probabilities = probabilities**2 if seed else 1 - probabilities  # seed 0: the wrong way round, slopes end at 0

    def cost(theta):
        margins = theta[0] * np.log(probabilities) - theta[1] * np.log1p(-probabilities) + theta[2]
        return np.sum(np.logaddexp(0, margins) - labels * margins) + np.sum((theta - (1, 1, 0)) ** 2) / 2

    reference = minimize(cost, np.ones(3), bounds=[(0, None), (0, None), (None, None)], tol=1e-12).x
    assert fit_calibration("beta", labels, probabilities).parameters == pytest.approx(reference, abs=1e-3)


def test_isotonic_is_scikit_learns():
    probabilities, labels = calibrated_videos(500)
    reference = IsotonicRegression(y_min=1 / 502, y_max=501 / 502, out_of_bounds="clip").fit(probabilities, labels)
    grid = np.linspace(0, 1, 777)
    assert fit_calibration("isotonic", labels, probabilities).apply(grid) == pytest.approx(reference.predict(grid))


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_calibrated_videos_cost_less_or_the_same(sharpness, method):
    probabilities, labels = calibrated_videos(4_000, share=0.8, seed=1)
    given = expit(sharpness * logit(probabilities))
    # fitted on one half, measured on the other
    fitted = fit_calibration(method, labels[::2], given[::2]).apply(given[1::2])
    assert log_loss(labels[1::2], fitted) < log_loss(labels[1::2], given[1::2]) + 0.02
    if sharpness != 1.0:
        assert log_loss(labels[1::2], fitted) < log_loss(labels[1::2], given[1::2]) - 0.01


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_and_one_video_are_cases(label, method):
    for number in (1, 30):
        calibration = fit_calibration(method, np.full(number, label), np.full(number, 0.5))
        assert 0 < calibration.apply(np.array([0.5]))[0] < 1


@pytest.mark.parametrize("method", ["temperature", "platt"])
def test_an_upside_down_model_is_made_flat_not_turned(method):
    probabilities, labels = calibrated_videos(2_000)
    flat = fit_calibration(method, labels, 1 - probabilities).apply(np.array([0.1, 0.9]))
    assert flat == pytest.approx([labels.mean() if method == "platt" else 0.5] * 2, abs=0.01)


def test_the_solver_needs_no_good_start():
    probabilities, labels = calibrated_videos(500)
    features = np.column_stack([logit(probabilities) * 30, np.ones(500)])
    near, far = (fit_logistic(features, labels, np.array(start), 0.0) for start in ([0.03, 0.0], [50.0, -40.0]))
    assert near == pytest.approx(far, abs=1e-6)


@pytest.mark.parametrize(
    ("training", "test", "given", "expected"),
    [
        (0.5, 0.5, [0.0, 0.3, 1.0], [0.0, 0.3, 1.0]),
        (0.8, 0.5, [0.8, 0.5, 0.0, 1.0], [0.5, 0.2, 0.0, 1.0]),
        (0.5, 0.9, [0.5, 0.1], [0.9, 0.5]),
        (0.5, 0.9, [], []),
    ],
)
def test_odds_are_multiplied(training, test, given, expected):
    assert PriorShift(training=training, test=test).apply(np.array(given)) == pytest.approx(expected)


def test_a_shift_and_its_opposite_cancel():
    probabilities = np.linspace(0.001, 0.999, 99)
    there = PriorShift(training=0.84, test=0.5).apply(probabilities)
    assert PriorShift(training=0.5, test=0.84).apply(there) == pytest.approx(probabilities, abs=1e-12)


def test_calibrated_probabilities_stay_calibrated_on_a_test_set_of_another_share():
    probabilities, labels = calibrated_videos(200_000, share=0.8)
    fake_share = labels.mean()
    # half of the fakes are left out
    kept = (labels == 0) | (np.arange(len(labels)) % 2 == 0)
    test = labels[kept].mean()
    shifted = PriorShift(training=fake_share, test=test).apply(probabilities[kept])
    assert fit_calibration("platt", labels[kept], shifted).parameters == pytest.approx([1, 0], abs=0.03)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, np.nan])
def test_an_impossible_prior_is_refused(prior):
    with pytest.raises(ValueError, match=r"PriorShift.test: expected a share in \(0, 1\)"):
        PriorShift(training=0.5, test=prior)


def clip_cost(clip, labels, probabilities):
    pseudo = PSEUDO_VIDEOS * (-0.01 * np.log(clip) - 0.99 * np.log(1 - clip))
    return len(labels) * log_loss(labels, probabilities, clip=clip) + pseudo


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 5.0, 50.0])
@pytest.mark.parametrize("num_videos", [1, 2, 30, 1_000])
def test_no_clip_of_a_fine_grid_is_better(num_videos, sharpness):
    probabilities, labels = calibrated_videos(num_videos, seed=num_videos)
    probabilities = expit(sharpness * logit(probabilities))
    found = fit_clip(labels, probabilities)
    grid = np.geomspace(*CLIP_RANGE, 2_000)
    assert CLIP_RANGE[0] <= found <= CLIP_RANGE[1]
    best = min(clip_cost(clip, labels, probabilities) for clip in grid)
    assert clip_cost(found, labels, probabilities) <= best + 1e-9


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        pytest.param([], [], 0.01, id="no videos: the default"),
        pytest.param([1] * 100, [1.0] * 100, 0.005, id="100 right: 1 wrong of 200"),
        pytest.param([1] * 1_000_000, [1.0] * 1_000_000, 1e-4, id="very many right: the lower end"),
        pytest.param([0] * 30, [1.0] * 30, 0.2, id="all wrong: the upper end"),
        pytest.param([0] + [1] * 99, [1.0] * 100, 0.01, id="as many wrong as was thought"),
        pytest.param([0, 1] * 50, [0.5] * 100, 0.01, id="no video is reached"),
    ],
)
def test_clips_by_hand(labels, probabilities, expected):
    assert fit_clip(np.array(labels), np.array(probabilities, dtype=float)) == pytest.approx(expected, rel=1e-6)
