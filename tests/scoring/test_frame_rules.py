"""Frame and track rules: vectors of the winners' code, SciPy, and plain loops that follow the formulas."""

import math
import statistics

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import pmean, trim_mean

from multiattn.scoring.frame_rules import (
    FRAME_RULES,
    TRACK_RULES,
    confident,
    dead_zone,
    faces,
    gate,
    gated,
    power,
    signed_power,
    top_k,
)

MONOTONE = sorted(set(FRAME_RULES) - {"confident", "sharpened", "gated", "dead_zone"})


def of(name: str, probabilities: list[float] | None = None, *, z: list[float] | None = None, **settings) -> float:
    """The rule of one list of frames, in any order, by its probabilities or its logits."""
    z = logit(np.array(probabilities)) if z is None else np.array(z)
    p = expit(z) if probabilities is None else np.array(probabilities)
    rule = FRAME_RULES[name]
    values = {"probabilities": np.sort(p), "logits": np.sort(z), "logits_in_time": z}[rule.takes]
    amount = settings.pop("amount", rule.default)
    return rule.of(values[None], *([] if amount is None else [amount]), **settings).item()


def random_logits(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(0, 2), 2.5, rng.integers(1, 41))


GATE_OF_FRAMES = {"high": 0.85, "low": 0.15, "share": 0.7}
GATE_OF_MODELS = {"high": 0.8, "low": 0.2, "share": 0.7}
SLOW_FAST = np.array([0.95, 0.9, 0.85, 0.3]), np.array([10, 8, 4, 8])
IMAGE = np.array([0.99, 0.97, 0.9, 0.95, 0.88, 0.2, 0.93]), np.array([10, 6, 4, 10, 8, 8, 7])


@pytest.mark.parametrize("faithful", [False, True], ids=["mended", "faithful"])
@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.95] * 13 + [0.3] * 19, 0.95),
        ([0.95] * 12 + [0.3] * 20, 0.54375),
        ([0.05] * 29 + [0.5] * 3, 0.05),
        ([0.05] * 28 + [0.5] * 4, 0.10625),
        ([0.05] * 27 + [0.5] * 3, 0.095),  # 27 is 0.9 of 30, not more
    ],
)
def test_selim_s_rule_gives_what_his_code_gives(probabilities, expected, faithful):
    assert of("confident", probabilities, faithful=faithful) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.9, 0.9, 0.5, 0.1], 0.66332),
        ([0.5, 0.5], 0.5),
        ([0.99, 0.6, 0.55], 0.92122),
        ([0.02, 0.03, 0.7], 0.15635),
        ([0.8338], 0.99),
    ],
)
def test_ntech_s_rule_gives_what_its_code_gives(probabilities, expected):
    assert of("sharpened", probabilities) == pytest.approx(expected, abs=1e-5)


def test_ispl_s_mean_logit_is_sharper_than_the_mean():
    assert of("mean_logit", z=[3, 2, -1]) == pytest.approx(0.7914, abs=5e-5)
    assert of("mean", z=[3, 2, -1]) == pytest.approx(0.7008, abs=5e-5)


@pytest.mark.parametrize(
    ("values", "weights", "settings", "expected"),
    [
        ([0.9] * 5 + [0.2], None, GATE_OF_FRAMES, 0.9),
        (*SLOW_FAST, GATE_OF_MODELS, 0.91364),
        (*IMAGE, GATE_OF_MODELS, 0.94156),
    ],
    ids=["groups of frames", "SlowFast", "image models"],
)
def test_the_gate_gives_what_robust_forensics_code_gives(values, weights, settings, expected):
    assert gate(np.array(values), weights, **settings) == pytest.approx(expected, abs=1e-5)


def test_both_families_of_robust_forensics_give_its_final_answer():
    slow_fast, image = (gate(*family, **GATE_OF_MODELS) for family in (SLOW_FAST, IMAGE))
    assert 0.4 * slow_fast + 0.6 * image == pytest.approx(0.93039, abs=1e-5)


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        pytest.param([0.9] * 7 + [0.5] * 3, None, 0.78, id="a share of 0.7 is not more than 0.7"),
        pytest.param([0.1] * 7 + [0.5] * 3, None, 0.22, id="nor below"),
        pytest.param([0.9] * 8 + [0.4] * 2, None, 0.9, id="open above"),
        pytest.param([0.1] * 8 + [0.6] * 2, None, 0.1, id="open below"),
        pytest.param([0.85, 0.85], None, 0.85, id="at the bound: the mean is the same"),
        pytest.param([0.9, 0.9, 0.9, 0.1], [1, 1, 1, 97], 0.9, id="values are counted, whatever their weights"),
        pytest.param([0.9, 0.5], [3, 1], 0.8, id="a weighted mean when shut"),
        pytest.param([0.9, math.nan, 0.5], [3, 0, 1], 0.8, id="weight 0 is left out"),
        pytest.param([0.9, 0.9, 0.9, 0.1, 0.1], [1, 1, 1, 1, 0], 0.9, id="and not counted"),
        pytest.param([0.3], None, 0.3, id="one value"),
        pytest.param([0.3, 0.4], [0, 0], math.nan, id="nothing"),
    ],
)
def test_the_gate_by_hand(values, weights, expected):
    found = gate(np.array(values), None if weights is None else np.array(weights), **GATE_OF_FRAMES)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_gate_of_many_is_the_gate_of_each():
    values = np.random.default_rng(0).beta(0.3, 0.3, (200, 7))
    together = gate(values, IMAGE[1], **GATE_OF_MODELS)
    assert together.tolist() == [gate(row, IMAGE[1], **GATE_OF_MODELS).item() for row in values]
    assert np.all((together >= values.min(axis=1) - 1e-15) & (together <= values.max(axis=1) + 1e-15))


@pytest.mark.parametrize("frames", range(1, 13))
def test_frames_are_gated_in_groups_of_five_in_the_order_of_time(frames):
    z = np.random.default_rng(frames).normal(0, 3, frames)
    groups = [z[start : start + 5] for start in range(0, frames - 4, 5)] or [z]
    expected = gate(np.array([expit(np.mean(group)) for group in groups]), **GATE_OF_FRAMES)
    assert gated(z) == pytest.approx(expected, abs=1e-15)


def test_another_order_of_time_is_another_answer_of_the_gated_rule():
    z = np.array([9.0] * 4 + [-9.0] * 6)
    assert gated(z) != gated(z[[0, 4, 1, 5, 2, 6, 3, 7, 8, 9]])


@pytest.mark.parametrize("seed", range(20))
def test_means_and_medians_equal_scipy_and_the_standard_library(seed):
    z = random_logits(seed)
    p = expit(z)
    expected = {
        ("mean", None): np.mean(p),
        ("mean_logit", None): expit(np.mean(z)),
        ("median", None): statistics.median(p),
        ("median_logit", None): expit(statistics.median(z)),
        **{("trimmed", share): trim_mean(p, share) for share in (0.0, 0.1, 0.25, 0.49)},
        **{("power", exponent): pmean(p, exponent) for exponent in (0.5, 1.0, 3.0, 10.0)},
    }
    found = {key: of(key[0], p, z=z, amount=key[1]) for key in expected}
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("n", "amount", "count"),
    [
        (30, 0.1, 3),
        (32, 0.25, 8),
        (100, 0.07, 7),  # 0.07 * 100 is 7.000000000000001
        (10, 0.01, 1),
        (10, 0.99, 10),
        (1, 0.25, 1),
        (5, 1, 1),
        (5, 3, 3),
        (5, 5, 5),
        (5, 9, 5),
    ],
)
def test_the_top_k_are_a_share_below_one_and_a_number_from_one_on(n, amount, count):
    p = np.random.default_rng(n).random(n)
    expected = np.mean(sorted(p)[-count:])
    assert top_k(np.sort(p), amount) == pytest.approx(expected, abs=1e-15)


def ispl(z: np.ndarray, name: str) -> float:
    """The menu of ISPL, each as its formula."""
    if name == "dead_zone":
        kept = [value for value in z if value > 1 or value < -1] or [0.0]
        return expit(sum(kept) / len(kept))
    if name == "signed_power":
        mean = sum(math.copysign(abs(value) ** 3, value) for value in z) / len(z)
        return expit(math.copysign(abs(mean) ** (1 / 3), mean))
    if name == "max_abs":
        return expit(min(z) if abs(min(z)) > abs(max(z)) else max(z))
    if name == "average_vote":
        return sum(1.0 if value > 0 else 0.0 for value in z) / len(z)
    return float(sum(z) > 0)


@pytest.mark.parametrize("name", ["dead_zone", "signed_power", "max_abs", "average_vote", "vote"])
@pytest.mark.parametrize("seed", range(12))
def test_the_menu_of_ispl_follows_its_formulas(seed, name):
    z = random_logits(seed)
    assert of(name, z=z) == pytest.approx(ispl(z, name), abs=1e-12)


@pytest.mark.parametrize(
    ("name", "z", "expected"),
    [
        pytest.param("dead_zone", [0.5, -1.0, 1.0], 0.5, id="nothing outside the zone"),
        pytest.param("dead_zone", [1.0, 2.0], float(expit(2.0)), id="its bound lies inside"),
        pytest.param("max_abs", [-3.0, 3.0], float(expit(3.0)), id="of two as far the fake one"),
        pytest.param("max_abs", [-3.0, -2.0], float(expit(-3.0)), id="both real"),
        pytest.param("average_vote", [0.0, 1.0], 0.75, id="a tie is half a vote"),
        pytest.param("vote", [-2.0, 2.0], 0.5, id="no majority"),
        pytest.param("vote", [-2.0, 3.0], 1.0, id="the sign of the mean, not of most"),
    ],
)
def test_ties_and_bounds_of_the_menu(name, z, expected):
    assert of(name, z=z) == pytest.approx(expected, abs=1e-15)


def test_a_dead_zone_of_nothing_is_the_mean_of_logits():
    z = np.sort(random_logits(3))
    assert dead_zone(z, 0.0) == of("mean_logit", z=z)


def test_a_power_of_one_is_the_mean_and_a_large_one_the_highest():
    p = np.array([1e-300, 0.2, 0.7])
    assert power(p, 1.0) == pytest.approx(p.mean(), abs=1e-15)
    assert power(p, 5000.0) == pytest.approx(0.7, abs=1e-3)
    assert power(np.zeros(4), 3.0) == 0
    assert power(np.full(4, 1e-200), 3.0) == pytest.approx(1e-200)  # 1e-600 would be 0
    assert signed_power(np.array([-1e200, 1e201]), 3.0) == 1


def test_from_28_frames_on_the_mended_rule_is_the_original():
    rng = np.random.default_rng(0)
    for n in range(28, 128):
        p = np.sort(rng.beta(0.4, 0.4, (40, n)), axis=1)
        assert np.array_equal(confident(p), confident(p, faithful=True))


@pytest.mark.parametrize(
    ("probabilities", "mended", "faithful"),
    [
        pytest.param([0.95], 0.95, 0.5, id="one crop: its 0-d tensor was an error"),
        pytest.param([0.95, 0.3], 0.95, 0.625, id="two"),
        pytest.param([0.95] * 3 + [0.3] * 4, 0.95, (2.85 + 1.2) / 7, id="seven"),
        pytest.param([0.95] * 11, 0.95, 0.95, id="eleven alike"),
        pytest.param([0.9] * 11 + [0.3] * 15, 0.9, (9.9 + 4.5) / 26, id="26: eleven of them sure"),
        pytest.param([0.9] * 12 + [0.3] * 14, 0.9, 0.9, id="26: twelve of them sure"),
        pytest.param([0.05], 0.05, 0.5, id="one real crop"),
        pytest.param([0.05, 0.3], 0.175, 0.175, id="half real is not 0.9"),
    ],
)
def test_with_few_crops_the_mended_rule_can_still_be_sure(probabilities, mended, faithful):
    assert of("confident", probabilities) == pytest.approx(mended, abs=1e-12)
    assert of("confident", probabilities, faithful=True) == pytest.approx(faithful, abs=1e-12)


def test_scaling_the_eleven_to_the_number_of_crops_would_bind_nowhere():
    for n in range(1, 500):
        assert n // 2.5 + 1 > 11 * n / 32


@pytest.mark.parametrize("name", FRAME_RULES)
def test_every_rule_stays_in_the_range_whatever_the_logits(name):
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 11, 32):
        for scale in (0.0, 1e-9, 1.0, 30.0, 1000.0):
            found = of(name, z=rng.normal(0, 1, n) * scale)
            assert 0 <= found <= 1
    assert of(name, z=[1000.0] * 7) >= 0.99 - 1e-12
    assert of(name, z=[-1000.0] * 7) <= 0.01 + 1e-12
    assert 0 <= of(name, z=[-1000.0, 1000.0, 1000.0]) <= 1


@pytest.mark.parametrize("name", FRAME_RULES)
@pytest.mark.parametrize("n", [1, 2, 5, 32])
def test_undecided_frames_are_an_undecided_video(name, n):
    assert of(name, z=[0.0] * n) == 0.5


@pytest.mark.parametrize("name", sorted(set(FRAME_RULES) - {"sharpened", "vote", "average_vote", "dead_zone"}))
@pytest.mark.parametrize("probability", [1e-12, 0.1, 0.5, 0.7, 1 - 1e-12])
def test_one_frame_and_frames_alike_are_their_own_answer(name, probability):
    for n in (1, 2, 7):
        assert of(name, [probability] * n) == pytest.approx(probability, abs=1e-15, rel=1e-9)


@pytest.mark.parametrize("name", MONOTONE)
def test_no_monotone_rule_falls_when_a_frame_rises(name):
    assert "Monotone" in FRAME_RULES[name].of.__doc__
    rng = np.random.default_rng(0)
    for _ in range(400):
        z = rng.normal(0, 3, rng.integers(1, 12))
        raised = z.copy()
        raised[rng.integers(len(z))] += rng.exponential(2)
        assert of(name, z=raised) >= of(name, z=z) - 1e-12


@pytest.mark.parametrize(
    ("name", "lower", "higher"),
    [
        ("confident", [0.95] * 13 + [0.8] * 19, [0.95] * 13 + [0.8] * 18 + [0.81]),
        ("sharpened", [0.45, 0.1], [0.5, 0.1]),
        ("gated", [0.95] * 20 + [0.84] * 5, [0.95] * 20 + [0.86] * 5),
        ("dead_zone", [0.1, 0.26], [0.1, 0.28]),
    ],
)
def test_a_rule_that_says_it_is_not_monotone_is_not(name, lower, higher):
    assert "Not monotone" in FRAME_RULES[name].of.__doc__
    assert np.all(np.array(higher) >= np.array(lower))
    assert of(name, higher) < of(name, lower)


@pytest.mark.parametrize("name", FRAME_RULES)
def test_a_list_s_answer_does_not_depend_on_the_lists_beside_it(name):
    rng = np.random.default_rng(0)
    rule = FRAME_RULES[name]
    for n in (1, 2, 7, 32, 130):
        values = np.sort(rng.normal(0, 3, (50, n)), axis=1)
        values = expit(values) if rule.takes == "probabilities" else values
        amount = [] if rule.default is None else [rule.default]
        together = rule.of(values, *amount)
        assert together.shape == (50,)
        assert together.tolist() == [rule.of(row[None], *amount).item() for row in values]
        assert rule.of(values[:0], *amount).shape == (0,)


def of_tracks(name: str, values: list[float], counts: list[int] | None = None, **settings) -> float:
    counts = [1] * len(values) if counts is None else counts
    return TRACK_RULES[name].of(np.array([values]), np.array([counts]), **settings).item()


@pytest.mark.parametrize(
    ("name", "values", "counts", "expected"),
    [
        pytest.param("weighted", [0.2, 0.8], [3, 1], 0.35, id="weighed by frames"),
        pytest.param("mean", [0.2, 0.8], [3, 1], 0.5, id="alike"),
        pytest.param("max", [0.2, 0.8], [3, 1], 0.8, id="the most forged"),
        pytest.param("first", [0.2, 0.8], [1, 3], 0.2, id="the lowest number, whatever the lengths"),
        pytest.param("faces", [0.95, 0.05], None, 0.95, id="one surely fake"),
        pytest.param("faces", [0.7, 0.65], None, 0.7, id="both fake"),
        pytest.param("faces", [0.1, 0.3], None, 0.1, id="both real"),
        pytest.param("faces", [0.85, 0.2], None, 0.525, id="undecided"),
        pytest.param("faces", [0.9, 0.5], None, 0.7, id="0.9 is not sure yet"),
        pytest.param("faces", [0.6, 0.8], None, 0.7, id="0.6 is not fake yet"),
        pytest.param("faces", [0.4, 0.2], None, 0.3, id="0.4 is not real yet"),
        pytest.param("faces", [0.2, 0.99, 0.3], [9, 1, 9], 0.2, id="the third longest has no say"),
        pytest.param("faces", [0.2, 0.3, 0.99], [4, 4, 4], 0.2, id="of equal lengths the lower numbers"),
        pytest.param("faces", [0.99, 0.2, 0.3], [1, 5, 9], 0.2, id="the longest come last"),
    ],
)
def test_every_track_rule_by_hand(name, values, counts, expected):
    assert of_tracks(name, values, counts) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("name", sorted(set(TRACK_RULES) - {"faces_shrunk"}))
@pytest.mark.parametrize("value", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_one_track_is_the_answer(name, value):
    assert of_tracks(name, [value], [7]) == value


@pytest.mark.parametrize("name", TRACK_RULES)
def test_no_track_rule_falls_when_a_track_rises_and_none_leaves_the_range(name):
    rng = np.random.default_rng(0)
    for tracks in (1, 2, 3, 5):
        values, counts = rng.random((4000, tracks)), rng.integers(1, 40, (4000, tracks))
        raised = values.copy()
        raised[np.arange(4000), rng.integers(0, tracks, 4000)] += rng.random(4000)
        before, after = (TRACK_RULES[name].of(np.minimum(p, 1), counts) for p in (values, raised))
        assert np.all(after >= before - 1e-15)
        assert np.all((before >= 0) & (after <= 1))


@pytest.mark.parametrize(
    ("value", "mended", "faithful"),
    [
        (0.0, 0.02, 0.02),
        (0.02, 0.02, 0.0392),
        (0.021, 0.021, 0.021),
        (0.5, 0.5, 0.5),
        (0.979, 0.979, 0.979),
        (0.98, 0.98, 0.9608),  # the fault, so that nobody takes it for ours: it falls where the face rises
        (1.0, 0.98, 0.98),
    ],
)
def test_the_shrink_is_mended_unless_asked_to_be_faithful(value, mended, faithful):
    assert of_tracks("faces_shrunk", [value]) == pytest.approx(mended, abs=1e-15)
    assert of_tracks("faces_shrunk", [value], faithful=True) == pytest.approx(faithful, abs=1e-15)


def test_the_order_of_two_faces_changes_nothing():
    values = np.random.default_rng(1).random((500, 2))
    counts = np.full((500, 2), 6)
    assert np.array_equal(faces(values, counts), faces(values[:, ::-1], counts))


def test_no_videos_give_no_answers():
    for rule in TRACK_RULES.values():
        assert rule.of(np.empty((0, 2)), np.empty((0, 2), dtype=np.int64)).shape == (0,)
