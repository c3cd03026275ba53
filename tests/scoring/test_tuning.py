"""Nested tuning: what is held out stays out, the simple choice stays where gains are uncertain, order means nothing."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made_predictions import Simulated, Simulation
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from multiattn.scoring.aggregators import Aggregator
from multiattn.scoring.calibration import Calibration, fit_calibration
from multiattn.scoring.ensembling import Ensemble, ensemble_candidates, score_experiments
from multiattn.scoring.metrics import Comparison, compare_log_loss, log_loss
from multiattn.scoring.nested_tuning import (
    STAGES,
    Choice,
    candidate_rules,
    choose_rule,
    decide,
    gain_is_certain,
    gather_evidence,
    inner_parts,
    tune_nested,
)
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.tuning import closing_line, describe_tuning, num_steps, tune

SMALL = {"num_videos": 400, "num_frames": 4, "num_groups": 21, "num_folds": 3}


@pytest.fixture(scope="module")
def drawn() -> Simulated:
    """Three overconfident experiments with a constant error, 400 videos in 21 groups and 3 folds."""
    return Simulation(**SMALL, sharpness=3.0, seed=1).draw()


@pytest.fixture(scope="module")
def tuned(drawn):
    return tune(drawn.predictions, drawn.videos)


@pytest.fixture(scope="module")
def nested(drawn):
    """Evidence, and what was tuned on it without each fold."""
    evidence, positions = gather_evidence(drawn.predictions, drawn.videos)
    return evidence, tune_nested(evidence, positions, drawn.videos)


def draw_candidates(gain: float, *, num_videos: int = 1_000, groups: int = 50, seed: int = 0):
    """(2, N) P(fake) with the second better by about `gain` logits, labels, groups, parts."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num_videos)
    logits = rng.standard_normal((2, num_videos)) + np.array([[1.0], [1.0 + gain]]) * (2 * labels - 1)
    group = np.arange(num_videos) % groups
    return expit(logits), labels, group, group % 5


@pytest.mark.parametrize(
    ("gain", "num_videos", "chosen"), [(1.0, 1_000, "other"), (0.0, 200, "simple"), (-1.0, 200, "simple")]
)
def test_the_simple_one_stays_unless_choosing_gains_clearly(gain, num_videos, chosen):
    decision = decide("stage", ["simple", "other"], *draw_candidates(gain, num_videos=num_videos), clip=0.01, seed=0)
    assert decision.chosen == chosen
    assert (decision.challenger.high < 0) == (chosen == "other")


def test_candidates_are_reported_with_their_own_log_loss():
    probabilities, labels, groups, parts = draw_candidates(0.3)
    decision = decide("stage", ["simple", "other"], probabilities, labels, groups, parts, clip=0.05, seed=0)
    for candidate, of in zip(decision.candidates, probabilities, strict=True):
        assert candidate.log_loss == pytest.approx(log_loss(labels, of, clip=0.05))
    alone = decide("stage", ["simple", "other"], probabilities, labels, np.arange(1_000), parts, clip=0.05, seed=0)
    losses = -np.log(
        np.where(labels == 1, np.clip(probabilities[0], 0.05, 0.95), np.clip(1 - probabilities[0], 0.05, 0.95))
    )
    assert alone.candidates[0].standard_error == pytest.approx(losses.std(ddof=1) / np.sqrt(1_000))


def test_the_luckiest_of_many_candidates_that_know_as_much_seldom_wins():
    """Twenty of them: the best compared with the simple one, as if there were no others, would win in every fourth."""
    taken = naive = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 300)
        probabilities = expit(rng.standard_normal((21, 300)) + (2 * labels - 1))
        groups = np.arange(300) % 30
        decision = decide(
            "s", [str(n) for n in range(21)], probabilities, labels, groups, groups % 5, clip=0.01, seed=0
        )
        taken += decision.chosen != "0"
        losses = -np.log(np.where(labels == 1, probabilities, 1 - probabilities))
        gains = losses[0] - losses[losses.mean(axis=1).argmin()]
        naive += gains.mean() > 1.96 * gains.std() / np.sqrt(300)
    assert taken <= 10
    assert naive >= 20


@pytest.mark.parametrize(
    ("difference", "high", "error", "groups", "expected"),
    [
        (-0.1, -0.05, 0.02, 50, True),
        (-0.1, 0.01, 0.02, 50, False),
        (-0.1, -0.05, np.nan, 1, False),
        (-0.1, -0.01, 0.04, 5, True),
        (-0.1, np.nan, 0.04, 4, False),
        (-0.1, np.nan, 0.03, 4, True),
        (0.0, 0.0, 0.0, 50, False),
        (-0.1, np.nan, 0.0, 2, True),
    ],
)
def test_a_gain_is_certain_beyond_an_error_that_grows_with_fewer_groups(difference, high, error, groups, expected):
    high = high if groups >= 5 else np.nan  # of so few there is no interval
    assert gain_is_certain(Comparison(difference, difference - 0.1, high, error, 0.99), groups) == expected


def test_labels_of_a_fold_do_not_reach_its_own_answers(drawn, nested):
    """Turning every label of fold 2 changes what is chosen elsewhere, but no answer for fold 2."""
    turned = drawn.videos.assign(
        label=np.where(drawn.videos["fold"] == 2, 1 - drawn.videos["label"], drawn.videos["label"])
    )
    other, positions = gather_evidence(drawn.predictions, turned)
    before, after = nested[1], tune_nested(other, positions, turned)
    of_fold = (drawn.videos["fold"] == 2).to_numpy()
    assert before.videos.loc[of_fold, "tuned"].tolist() == after.videos.loc[of_fold, "tuned"].tolist()
    assert before.videos.loc[~of_fold, "tuned"].tolist() != after.videos.loc[~of_fold, "tuned"].tolist()


def test_every_nested_answer_is_that_of_the_rule_found_without_its_fold(drawn, nested):
    evidence, nested = nested
    assert sorted(nested.choices) == [0, 1, 2]
    for fold, choice in nested.choices.items():
        assert choice.rule == choose_rule(evidence.only(evidence.folds != fold)).rule
        scored = choice.rule.score(drawn.predictions[drawn.predictions["fold"] == fold]).set_index("video_id")
        videos = nested.videos[(nested.videos["fold"] == fold) & ~nested.videos["without_face"]].set_index("video_id")
        assert videos["tuned"].to_numpy() == pytest.approx(
            scored.loc[videos.index, "probability"].to_numpy(), abs=1e-12
        )


def test_groups_never_span_parts_and_parts_are_of_like_size():
    groups = np.repeat(np.arange(12), np.arange(1, 13))
    parts = inner_parts(np.zeros(len(groups)), groups)
    assert all(len(set(parts[groups == group])) == 1 for group in range(12))
    sizes = np.bincount(parts)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 3


@pytest.mark.parametrize(
    ("folds", "groups", "expected"),
    [
        pytest.param([0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], id="folds are the parts"),
        pytest.param([3, 3, 3], [0, 1, 1], [1, 0, 0], id="groups of one fold"),
        pytest.param([3, 3, 3], [7, 7, 7], None, id="one group"),
    ],
)
def test_parts_by_hand(folds, groups, expected):
    parts = inner_parts(np.array(folds), np.array(groups))
    assert (None if parts is None else parts.tolist()) == expected


def test_overconfidence_is_mended(drawn, tuned):
    figures = {row["name"]: row for row in tuned.report["figures"]}
    assert tuned.rule.calibration.method != "none"
    assert figures["tuned, nested"]["log_loss"] < figures["equal mean, untuned"]["log_loss"] - 0.05
    assert tuned.report["tuned_against_untuned"]["high"] < 0
    keys = ("log_loss", "balanced_log_loss", "auc")
    unknown = dict.fromkeys(["last_epoch_log_loss", "last_epoch_balanced_log_loss", "test_prior"])
    assert tuned.rule.out_of_fold == {key: pytest.approx(figures["tuned, nested"][key]) for key in keys} | unknown
    labels = drawn.videos["label"].to_numpy()
    assert figures["tuned, nested"]["log_loss"] == pytest.approx(log_loss(labels, tuned.videos["tuned"].to_numpy()))
    assert log_loss(labels, drawn.best) < figures["tuned, nested"]["log_loss"]


def test_the_rule_scores_what_it_was_said_to_score(drawn, tuned):
    """In-sample answers of the report are those of `ScoringRule.score`."""
    scored = tuned.rule.score(drawn.predictions).set_index("video_id")["probability"]
    videos = tuned.videos[~tuned.videos["without_face"]].set_index("video_id")
    assert videos["in_sample"].to_numpy() == pytest.approx(scored.loc[videos.index].to_numpy(), abs=1e-12)
    assert tuned.rule.experiments == ("experiment0", "experiment1", "experiment2")


def test_videos_without_a_face_count_with_the_prior(drawn, tuned):
    faceless = tuned.videos["without_face"]
    assert faceless.sum() == tuned.report["videos"]["without_face"] > 0
    assert set(tuned.videos.loc[faceless, "video_id"]).isdisjoint(drawn.predictions["video_id"])
    assert (tuned.videos.loc[faceless, ["tuned", "untuned", "in_sample"]] == 0.5).all(axis=None)


def test_the_order_of_rows_and_experiments_changes_nothing(drawn, tuned):
    other = tune(drawn.predictions.sample(frac=1, random_state=0), drawn.videos.sample(frac=1, random_state=0))
    assert other.rule == tuned.rule
    assert other.report == tuned.report


def test_an_outside_model_is_blended_as_an_experiment_that_gives_the_same_answers():
    """With a video in which ours see no face."""
    drawn = Simulation(**SMALL | {"num_frames": 1}, sharpness=3.0, seed=1).draw()
    table = drawn.predictions.astype({"video_id": str, "model": str})
    alone = table["video_id"].iloc[0]
    is_theirs = table["model"].str.startswith("experiment1")
    theirs, ours = table[is_theirs], table[~is_theirs & (table["video_id"] != alone)]
    outside = theirs.set_index("video_id")[["probability"]].set_axis(["experiment1"], axis=1)
    both = pd.concat([ours, theirs])
    found = tune(ours, drawn.videos, outside=outside, last_epoch=ours)
    expected = tune(both, drawn.videos, last_epoch=both)
    assert found.rule.outside == ("experiment1",) and found.rule.experiments == ("experiment0", "experiment2")
    assert replace(found.rule, outside=(), experiments=expected.rule.experiments) == expected.rule
    assert found.report["figures"] == expected.report["figures"]
    scored = found.rule.score(ours, outside)
    np.testing.assert_allclose(scored["probability"], expected.rule.score(both)["probability"], rtol=0, atol=1e-12)
    assert scored.loc[scored["num_crops"] == 0, "video_id"].tolist() == [alone]


def test_an_experiment_alone_has_no_ensemble_stage():
    one = Simulation(**SMALL, experiment_sd=(0.8,)).draw()
    result = tune(one.predictions, one.videos)
    assert [stage["stage"] for stage in result.report["stages"]] == ["aggregator", "calibration", "clip"]
    assert result.rule.ensemble == Ensemble()


def test_a_video_that_one_experiment_did_not_see_is_scored_by_the_others(drawn):
    gone = drawn.videos["video_id"].iloc[::7]
    kept = ~((drawn.predictions["model"].str.startswith("experiment1")) & drawn.predictions["video_id"].isin(gone))
    result = tune(drawn.predictions[kept], drawn.videos)
    assert result.videos["without_face"].sum() == (~drawn.videos["video_id"].isin(drawn.predictions["video_id"])).sum()
    assert result.videos["tuned"].between(0, 1).all()


@pytest.mark.parametrize("num_groups", [2, 40], ids=["one group a fold", "twenty groups a fold"])
def test_two_folds_are_enough(num_groups):
    """With one group a fold nothing is tuned without a fold, so what tuning on all folds might gain was never seen."""
    two = Simulation(**{**SMALL, "num_groups": num_groups, "num_folds": 2}, sharpness=4.0).draw()
    result = tune(two.predictions, two.videos)
    without_choice = [fold["calibration"] == "none" for fold in result.report["folds"]]
    # With one group nothing can be held out of the single fold that remains: its rule is the untuned one.
    assert all(without_choice) == (num_groups == 2)
    if num_groups > 2:
        return
    assert result.rule.calibration == Calibration()
    assert "untuned rule is kept" in result.report["decision"]
    untuned = next(row for row in result.report["figures"] if row["name"] == "equal mean, untuned")
    assert result.rule.out_of_fold["log_loss"] == untuned["log_loss"]


def test_every_step_is_announced(drawn):
    steps = itertools.count(1)
    tune(drawn.predictions, drawn.videos, advance=lambda: next(steps))
    assert next(steps) - 1 == num_steps(drawn.videos)
    one = Simulation(**{**SMALL, "num_groups": 2, "num_folds": 2}, experiment_sd=(0.8,)).draw()
    steps = itertools.count(1)
    tune(one.predictions, one.videos, advance=lambda: next(steps))
    assert next(steps) - 1 == num_steps(one.videos)


def simulate_networks(seed: int, *, fake_share: float, num_videos: int, num_groups: int, **settings) -> Simulated:
    """Answers of networks trained on balanced classes, as over-confident as fine-tuned ones are."""
    shape = {"num_videos": num_videos, "num_groups": num_groups, "num_frames": 2, "fake_share": fake_share}
    return Simulation(**shape, seed=seed, **{"sharpness": 3.0, "faceless_share": 0.0, **settings}).draw()


def test_a_rule_is_shifted_to_a_stated_share_where_that_is_expected_to_cost_less():
    known = simulate_networks(
        0, fake_share=0.84, num_videos=600, num_groups=21, num_folds=3, experiment_sd=(0.8,), faceless_share=0.02
    )
    tuned, share = tune(known.predictions, known.videos, test_prior=0.3), known.videos["label"].mean()
    assert tuned.rule.prior_shift.training == pytest.approx(share)
    assert (tuned.rule.prior_shift.test, tuned.rule.prior) == (0.3, 0.3)
    assert tuned.rule.calibration.method in ("platt", "beta")
    at_prior, figures = tuned.report["test_prior"], tuned.rule.out_of_fold
    assert at_prior["log_loss_tuned_shifted"] < min(at_prior["log_loss_tuned"], at_prior["log_loss_untuned"]) - 0.02
    labels, answers = known.videos["label"].to_numpy(), tuned.videos["tuned_shifted"].to_numpy()
    of_class = [log_loss(labels[labels == label], answers[labels == label]) for label in (0, 1)]
    expected = 0.7 * of_class[0] + 0.3 * of_class[1]
    assert [figures["log_loss"], at_prior["log_loss_tuned_shifted"]] == pytest.approx([expected] * 2)
    assert figures["balanced_log_loss"] == pytest.approx(np.mean(of_class))
    assert (figures["test_prior"], closing_line(tuned.report)[-8:]) == (0.3, " shifted")


@pytest.mark.parametrize(("test_prior", "expected"), [(0.999, 0.99), (0.3, 0.3), (None, 0.5)])
@pytest.mark.parametrize("method", ["none", "platt"])
def test_only_what_is_calibrated_is_shifted_and_the_answer_for_no_face_stays_within_the_clip(
    method, test_prior, expected
):
    calibration = Calibration(method=method, parameters=(0.5, 0.1) if method == "platt" else ())
    rules = candidate_rules(Choice(ScoringRule(), "mean", (), calibration), pd.Series([0, 1]), test_prior)
    assert {rule.prior for rule in rules.values()} == {expected}
    assert ("tuned_shifted" in rules) == (test_prior is not None)
    if test_prior is not None:
        shifted = rules["tuned_shifted"]
        assert (shifted.prior_shift is None) == (method == "none")
        assert shifted.calibration == calibration


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "seeds"),
    [({}, 1), ({"experiment_sd": (0.8,)}, 2), ({"experiment_sd": (0.8,), "sharpness": 1.0}, 1)],
    ids=["three over-confident", "one over-confident", "one calibrated for a half"],
)
def test_a_rule_for_a_stated_share_is_never_worse_than_the_unshifted_one(settings, seeds):
    """Tuned on 84 % fakes in 5 groups, tested on 50 %: what was expected of a rule is what it costs."""
    gains, errors = [], []
    for seed in range(seeds):
        known = simulate_networks(seed, fake_share=0.84, num_videos=800, num_groups=5, **settings)
        test = simulate_networks(1_000 + seed, fake_share=0.5, num_videos=2_000, num_groups=50, **settings)
        tuned = tune(known.predictions, known.videos, test_prior=0.5)
        unshifted = tune(known.predictions, known.videos).rule
        rules = (tuned.rule, unshifted, ScoringRule())
        scored = [rule.score(test.predictions)["probability"].to_numpy() for rule in rules]
        labels = test.videos["label"].to_numpy()
        found, *others = (log_loss(labels, of, clip=1e-6) for of in scored)
        assert found <= min(others) + 0.005, f"seed {seed}"
        gains.append(others[0] - found)
        errors.append(tuned.rule.out_of_fold["log_loss"] - found)
    assert np.mean(gains) >= 0
    assert np.abs(errors).mean() < 0.06, "what is delivered is what was measured"


@pytest.mark.parametrize("share", [0.84, 0.55])
def test_a_share_far_from_a_half_is_warned_of_where_none_was_stated(share):
    known = simulate_networks(0, fake_share=share, num_videos=300, num_groups=5, experiment_sd=(0.8,), num_folds=2)
    line = closing_line(tune(known.predictions, known.videos).report)
    assert ("--test-prior 0.5" in line) == (share == 0.84)


def test_a_shift_that_does_not_win_is_not_delivered():
    """Answers that say fake far too seldom for any share: calibrated at 84 % and shifted to 16 % they cost more."""
    known = simulate_networks(0, fake_share=0.84, num_videos=300, num_groups=2, num_folds=2, experiment_sd=(0.8,))
    tuned = tune(known.predictions, known.videos, test_prior=0.5)
    at_prior = tuned.report["test_prior"]
    assert tuned.rule.prior_shift is None, "with one group a fold nothing was calibrated on held-out videos"
    assert at_prior["log_loss_tuned_shifted"] == at_prior["log_loss_untuned"]
    assert closing_line(tuned.report).endswith("(equal mean, untuned); the rule is delivered unshifted")


def test_the_last_epochs_figures_stand_beside_those_of_the_chosen_ones(drawn, tuned):
    """The last epoch's weights are the same but for a constant error: they cost more, by the same rules."""
    last = drawn.predictions.assign(logit=drawn.predictions["logit"] + 1)
    last["probability"] = expit(last["logit"])
    both = tune(drawn.predictions, drawn.videos, last_epoch=last)
    figures = {row["name"]: row["log_loss"] for row in both.report["figures"]}
    untuned = ScoringRule().score(last).set_index("video_id")["probability"]
    answers = untuned.reindex(drawn.videos["video_id"], fill_value=0.5).to_numpy()
    expected = log_loss(drawn.videos["label"].to_numpy(), answers, clip=1e-6)
    assert figures["equal mean, untuned, last epoch"] == pytest.approx(expected)
    assert (
        figures["tuned, nested, last epoch"]
        > figures["tuned, nested"]
        == pytest.approx(both.rule.out_of_fold["log_loss"])
    )
    assert both.rule.out_of_fold["last_epoch_log_loss"] == pytest.approx(figures["tuned, nested, last epoch"])
    assert "| tuned, nested, last epoch " in describe_tuning(both.rule, both.report)
    assert "last epoch, whose predictions were not kept: not known" in describe_tuning(tuned.rule, tuned.report)
    with pytest.raises(ValueError, match="found 1 others"):
        tune(drawn.predictions, drawn.videos, last_epoch=last.assign(video_id="other"))


def test_a_single_fold_of_single_crops_is_tuned_on_parts_of_its_groups():
    drawn = Simulation(**{**SMALL, "num_frames": 1}, fake_share=0.5, sharpness=3.0, seed=1).draw()
    videos = drawn.videos[drawn.videos["fold"] == 0].reset_index(drop=True)
    steps = []
    tuned = tune(drawn.predictions[drawn.predictions["fold"] == 0], videos, advance=lambda: steps.append(1))
    assert len(steps) == num_steps(videos)
    assert tuned.videos.groupby("part")["group"].nunique().tolist() == [2, 2, 1, 1, 1]
    assert tuned.videos.groupby("group")["part"].nunique().eq(1).all()
    assert tuned.rule.per_frame and tuned.rule.aggregator.frames == "mean"
    assert "| without part " in describe_tuning(tuned.rule, tuned.report)
    known = tuned.videos[~tuned.videos["without_face"]]
    held_out = tuned.rule.held_out
    assert (held_out.num_reals, held_out.num_fakes) == tuple(known["label"].value_counts().loc[[0, 1]])
    assert (held_out.num_groups, held_out.crops, held_out.datasets) == (7, 1, ("simulated",))


def test_a_calibration_that_is_asked_for_is_taken_and_fitted_without_each_fold(drawn):
    asked = tune(drawn.predictions, drawn.videos, calibration="beta")
    assert asked.rule.calibration.method == "beta" and asked.taken == "tuned"
    assert "beta was asked for" in asked.report["decision"]
    found = tune_nested(*gather_evidence(drawn.predictions, drawn.videos), drawn.videos, calibration="beta")
    assert {rules["tuned"].calibration.method for rules in found.rules.values()} == {"beta"}
    assert len({rules["tuned"].calibration for rules in found.rules.values()}) == len(found.rules)
    with pytest.raises(ValueError, match=r"--calibration: expected one of .*platt.*, found 'plat'"):
        tune(drawn.predictions, drawn.videos, calibration="plat")
    with pytest.raises(ValueError, match=r"expected one of platt, .* beside --test-prior"):
        tune(drawn.predictions, drawn.videos, calibration="temperature", test_prior=0.5)


@pytest.mark.parametrize("test_prior", [0.0, 1.0, -1.0, np.nan])
def test_an_impossible_test_prior_is_refused(test_prior, drawn):
    with pytest.raises(ValueError, match="--test-prior"):
        tune(drawn.predictions, drawn.videos, test_prior=test_prior)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param(
            lambda frames, videos, first: (
                frames[frames["fold"] == 0],
                videos[videos["fold"] == 0].assign(group="one"),
            ),
            r"at least 2 groups, found 1.*multiattn train",
            id="one group",
        ),
        pytest.param(
            lambda frames, videos, first: (frames, videos[~first]), r"found 1 others.*test split", id="in no fold"
        ),
        pytest.param(
            lambda frames, videos, first: (frames, videos.assign(fold=(videos["fold"] + first) % 3)),
            "trained on it; 3 such",
            id="a model that learned the video",
        ),
        pytest.param(lambda frames, videos, first: (frames, videos.assign(label=1)), "both classes", id="one class"),
        pytest.param(
            lambda frames, videos, first: (frames.assign(model="best"), videos),
            r"<experiment>/fold<k>, found best",
            id="models of another name",
        ),
    ],
)
def test_what_cannot_be_tuned_on_is_refused(change, error, drawn):
    first = drawn.videos["video_id"] == drawn.predictions["video_id"].iloc[0]
    with pytest.raises(ValueError, match=error):
        tune(*change(drawn.predictions, drawn.videos, first))


def test_the_report_names_every_candidate_and_every_figure(tuned):
    text = describe_tuning(tuned.rule, tuned.report)
    for name in (*ensemble_candidates(), "robust_forensics", "temperature", "fitted"):
        assert f"| {name} " in text
    for name in ("constant 0.5", "base rate", "only experiment2", "equal mean, untuned", "tuned, nested"):
        assert f"| {name} " in text
    assert "tuned, on the videos it was fitted on" in text
    assert len(tuned.report["stages"]) == STAGES - 1, "of one kind of view there is nothing to compare"
    constant, base_rate = tuned.report["figures"][:2]
    assert constant["log_loss"] == pytest.approx(np.log(2))
    share = tuned.videos["label"].mean()
    assert base_rate["log_loss"] == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share), abs=0.005)


SETTINGS = {
    "calibrated": {"fake_share": 0.5},
    "overconfident": {"sharpness": 3.0},
    "underconfident": {"sharpness": 0.3},
    "skewed classes": {"fake_share": 0.95, "training_prior": 0.5},
    "heavy tails": {"tail": 1.5, "frame_sd": 1.5, "fake_share": 0.5},
    "few videos": {"num_videos": 90, "num_groups": 12, "fake_share": 0.5},
    "few groups": {"num_groups": 6, "fake_share": 0.5},
    "one knows nothing": {"experiment_sd": (0.6, np.inf), "fake_share": 0.5},
    "copies": {"experiment_sd": (1e-3, 1e-3, 1e-3), "fake_share": 0.5},
}
NUM_FOLDS, HELD_OUT_FROM = 5, 3
"""Folds 0 to 2 are tuned on, 3 and 4 stand for a test set of other groups."""


def simulate(**settings):
    return Simulation(
        **{"num_videos": 600, "num_frames": 6, "num_groups": 30, "num_folds": NUM_FOLDS, **settings}
    ).draw()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_tuned_rule_never_loses_more_than_the_error_on_held_out_groups(setting, seed):
    drawn = simulate(**SETTINGS[setting], seed=seed)
    for_tuning = drawn.videos["fold"] < HELD_OUT_FROM
    known = drawn.predictions["fold"] < HELD_OUT_FROM
    tuned = tune(drawn.predictions[known], drawn.videos[for_tuning])
    test = drawn.videos[~for_tuning].set_index("video_id")
    answers = []
    for rule in (tuned.rule, ScoringRule()):
        scored = rule.score(drawn.predictions[~known]).set_index("video_id")["probability"]
        answers.append(scored.reindex(test.index, fill_value=rule.prior).to_numpy())
    for labels, groups, (mine, untuned) in (
        (test["label"], test["group"], answers),
        (tuned.videos["label"], tuned.videos["group"], tuned.videos[["tuned", "untuned"]].to_numpy().T),
    ):
        found = compare_log_loss(labels.to_numpy(), mine, untuned, groups.to_numpy(), clip=1e-6, resamples=1_000)
        assert found.difference <= 2 * found.standard_error, f"{found}"


@pytest.mark.parametrize("setting", ["underconfident", "skewed classes"])
def test_the_tuned_rule_wins_where_there_is_something_to_win(setting):
    drawn = simulate(**SETTINGS[setting])
    report = tune(drawn.predictions, drawn.videos).report
    assert report["tuned_against_untuned"]["high"] < 0
    best = log_loss(drawn.videos["label"].to_numpy(), drawn.best)
    figures = {row["name"]: row["log_loss"] for row in report["figures"]}
    # At least half of what there is to win.
    assert figures["tuned, nested"] - best < (figures["equal mean, untuned"] - best) / 2


def test_the_best_answer_is_calibrated_and_better_than_every_experiment():
    drawn = simulate(
        num_videos=20_000, num_frames=1, frame_sd=0.0, experiment_sd=(0.6, 0.9, np.inf), faceless_share=0.0
    )
    labels = drawn.videos["label"].to_numpy()
    assert fit_calibration("platt", labels, drawn.best).parameters == pytest.approx([1, 0], abs=0.1)
    values = score_experiments(drawn.predictions, Aggregator()).values
    areas = [roc_auc_score(labels, values[:, experiment]) for experiment in range(3)]
    assert roc_auc_score(labels, drawn.best) > areas[0] > areas[1] > 0.8
    assert areas[2] == pytest.approx(0.5, abs=0.03)


def with_views(drawn: Simulated, gain: float) -> dict[str, pd.DataFrame]:
    """Out-of-fold predictions of crops alone and with a mirror image, whose mean knows so much more of the label."""
    labels = drawn.videos.set_index("video_id")["label"]
    signs = 2 * drawn.predictions["video_id"].map(labels).astype(float) - 1
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(signs))
    logits = drawn.predictions["logit"] + gain * signs + noise
    return {"none": drawn.predictions, "flip": drawn.predictions.assign(logit=logits, probability=expit(logits))}


@pytest.fixture(scope="module")
def tuned_with_views(drawn):
    return tune(with_views(drawn, 1.0), drawn.videos, last_epoch=drawn.predictions)


def test_views_are_taken_where_they_pay_on_folds_held_out(drawn, tuned, tuned_with_views):
    found = tuned_with_views
    stage = found.report["stages"][0]
    assert (stage["stage"], [it["name"] for it in stage["candidates"]]) == ("tta", ["none", "flip"])
    assert found.rule.tta == stage["chosen"] == "flip" and stage["challenger"]["high"] < 0
    assert "rule: views flip; frames" in describe_tuning(found.rule, found.report)
    assert found.videos["untuned"].tolist() == tuned.videos["untuned"].tolist(), "of each crop as it is"
    # The last epoch's predictions are of each crop as it is: no figure of a rule with other views.
    assert found.rule.out_of_fold["last_epoch_log_loss"] is None
    names = [row["name"] for row in found.report["figures"]]
    assert "equal mean, untuned, last epoch" in names and "tuned, nested, last epoch" not in names


@pytest.mark.parametrize("gain", [0.0, -1.0])
def test_views_that_do_not_pay_change_nothing(gain, drawn, tuned):
    steps = itertools.count(1)
    found = tune(with_views(drawn, gain), drawn.videos, advance=lambda: next(steps))
    assert next(steps) - 1 == num_steps(drawn.videos, 2)
    assert found.report["stages"][0]["chosen"] == "none" and found.report["stages"][1:] == tuned.report["stages"]
    assert found.rule == tuned.rule


def test_one_table_with_views_is_taken_without_comparing(drawn, tuned_with_views):
    found = tune({"flip": with_views(drawn, 1.0)["flip"]}, drawn.videos)
    assert found.rule.tta == "flip" and {fold["tta"] for fold in found.report["folds"]} == {"flip"}
    assert found.report["stages"] == tuned_with_views.report["stages"][1:], "the rest is tuned on what was chosen"
    assert found.videos["tuned"].tolist() == tuned_with_views.videos["tuned"].tolist()
    assert found.videos["untuned"].tolist() != tuned_with_views.videos["untuned"].tolist()
