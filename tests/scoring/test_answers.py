"""Answers in words: error rates hold on held-out videos, doubts come first, and nothing is said of too few videos."""

import json

import numpy as np
import pytest
from scipy.special import expit

from multiattn.config import from_json, to_json
from multiattn.scoring.answers import (
    CANNOT_TELL,
    MANIPULATED,
    NO_SIGN,
    QUANTILES,
    HeldOutAnswers,
    answer_in_words,
    find_doubts,
    held_out_answers,
    set_thresholds,
)


def drawn(separation: float, *, videos: int = 4_000, clip: float = 0.01, groups: int = 40, seed: int = 0):
    """Labels, P(fake), groups and folds of videos whose logits are normal, `separation` apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(videos) % 2
    probabilities = np.clip(expit(rng.standard_normal(videos) + separation * (labels - 0.5)), clip, 1 - clip)
    group = np.arange(videos) // 2 % groups
    return labels, probabilities, group, group % 5


def kept(separation: float = 2.0, **settings) -> HeldOutAnswers:
    return held_out_answers(*drawn(separation, **settings), datasets=["dfdc"], crops=1)


@pytest.mark.parametrize(
    ("separation", "clip"),
    [
        pytest.param(2.0, 0.01, id="overlapping"),
        pytest.param(12.0, 0.01, id="told apart"),
        pytest.param(40.0, 0.01, id="all on the clip"),
        pytest.param(0.0, 0.01, id="not told apart"),
    ],
)
def test_the_thresholds_hold_their_error_rates_on_videos_they_were_not_set_on(separation, clip):
    found, (labels, new, *_) = kept(separation, clip=clip), drawn(separation, clip=clip, seed=1)
    answers = np.array([answer_in_words(p, found).answer for p in new])
    assert np.mean(answers[labels == 0] == MANIPULATED) <= 0.065 and found.reals_manipulated <= 0.065
    assert np.mean(answers[labels == 1] == NO_SIGN) <= 0.065 and found.fakes_no_sign <= 0.065
    if separation >= 12:
        assert np.mean(answers == CANNOT_TELL) <= 0.1
    if separation == 2:  # by scipy.stats.norm: P(z > 1.645 - 2) = 0.639
        assert found.fakes_manipulated == pytest.approx(0.639, abs=0.04)
        assert found.manipulated_from == pytest.approx(expit(1.645 - 1), abs=0.03)
        assert found.no_sign_until == pytest.approx(expit(1 - 1.645), abs=0.03)


def test_a_threshold_that_no_answer_reaches_is_never_crossed():
    labels, probabilities = np.array([0, 1] * 200), np.full(400, 0.5)
    assert set_thresholds(labels, probabilities) == (np.inf, -np.inf)
    found = held_out_answers(labels, probabilities, np.arange(400) % 8, np.arange(400) % 4, datasets=["a"], crops=3)
    assert found.manipulated_from is None and found.no_sign_until is None
    assert found.describe().count("is never said") == 2
    assert answer_in_words(0.5, found).answer == CANNOT_TELL


def test_shares_beside_are_those_of_the_held_out_videos():
    labels, probabilities, *_ = drawn(2.0)
    found = kept()
    for p in (0.01, 0.3, 0.5, 0.9):
        higher, lower = np.mean(probabilities[labels == 0] > p), np.mean(probabilities[labels == 1] < p)
        reals, fakes = np.mean(np.array(found.real_quantiles) > p), np.mean(np.array(found.fake_quantiles) < p)
        assert reals == pytest.approx(higher, abs=0.5 / QUANTILES + 1e-9)
        assert fakes == pytest.approx(lower, abs=0.5 / QUANTILES + 1e-9)
    assert found.beside(0.5) == f"of held-out real faces of dfdc {np.mean(np.array(found.real_quantiles) > 0.5):.0%} " \
        f"score higher, of fakes {np.mean(np.array(found.fake_quantiles) < 0.5):.0%} lower"  # fmt: skip
    assert found.beside(1.0).startswith("of held-out real faces of dfdc less than 1% score higher, of fakes 100%")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param({"videos": 198}, "100 held-out real videos, these runs have 99", id="99 of each class"),
        pytest.param({"groups": 2}, "3 held-out groups of videos, these runs have 2", id="two groups"),
        pytest.param({"videos": 0}, "100 held-out real videos, these runs have 0", id="empty"),
    ],
)
def test_of_too_few_videos_nothing_is_said_and_why(settings, words):
    found = kept(**settings)
    assert words in found.lacks and words in found.describe()
    assert found.real_quantiles == () and found.manipulated_from is None and found.beside(0.9) == ""
    answer = answer_in_words(0.99, found)
    assert answer.answer == CANNOT_TELL and words in str(answer)


@pytest.mark.parametrize(
    ("probability", "doubts", "answer", "words"),
    [
        pytest.param(0.95, [], MANIPULATED, "looks manipulated", id="above"),
        pytest.param(0.05, [], NO_SIGN, "no sign found", id="below"),
        pytest.param(0.5, [], CANNOT_TELL, "cannot tell: P(fake) lies where", id="between"),
        pytest.param(0.95, ["dark", "small"], CANNOT_TELL, "cannot tell: dark; small", id="doubts"),
        pytest.param(None, [], CANNOT_TELL, "cannot tell: no face was found", id="no face"),
        pytest.param(float("nan"), [], CANNOT_TELL, "cannot tell: no face was found", id="not a number"),
    ],
)
def test_an_answer_follows_the_thresholds_and_doubts_come_first(probability, doubts, answer, words):
    found = answer_in_words(probability, kept(), doubts)
    assert found.answer == answer and str(found).startswith(words)
    assert "authentic" not in str(found) and (found.beside != "") == (probability in (0.95, 0.05, 0.5))


def test_runs_without_thresholds_say_how_to_get_them():
    assert "multiattn tune" in str(answer_in_words(0.9, None))


@pytest.mark.parametrize(
    ("pixels", "more", "words"),
    [
        pytest.param([48, 100, 60], {"num_frames": 3}, "", id="three frames of 48 px"),
        pytest.param([47, 100, 60], {"num_frames": 32}, "in 2 of 32 frames, 3 are needed", id="two frames"),
        pytest.param([], {"num_frames": 32}, "in 0 of 32 frames", id="empty"),
        pytest.param([60], {"num_frames": 1}, "", id="a picture"),
        pytest.param([31.4], {"num_frames": 1}, "the face is 31 px large, 48 px are needed", id="a small picture"),
        pytest.param([np.nan] * 3, {"num_frames": 3}, "", id="sizes not known"),
        pytest.param([60] * 3, {"num_frames": 3, "unlike": 0.5}, "", id="half of them unlike"),
        pytest.param([60] * 3, {"num_frames": 3, "unlike": np.nan}, "", id="distance not measured"),
        pytest.param(
            [60] * 3,
            {"num_frames": 3, "unlike": 0.6},
            "60% of the faces are unlike those the network was trained on",
            id="most unlike",
        ),
    ],
)
def test_a_video_is_doubted_for_small_or_unlike_faces(pixels, more, words):
    doubts = find_doubts(np.array(pixels), **more)
    assert len(doubts) == bool(words) and words in "".join(doubts)


@pytest.mark.parametrize("found", [kept(), kept(videos=20)], ids=["enough", "too few"])
def test_json_brings_held_out_answers_back_and_a_part_of_them_is_refused(found):
    values = json.loads(json.dumps(to_json(found)))
    assert from_json(HeldOutAnswers, values, complete=True) == found
    with pytest.raises(ValueError, match="real_quantiles"):
        from_json(HeldOutAnswers, {**values, "real_quantiles": [0.5]}, complete=True)
