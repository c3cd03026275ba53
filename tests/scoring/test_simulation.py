"""Simulated predictions are what they say, and on them the tuned rule never loses to the mean beyond the error."""

import numpy as np
import pytest
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from multiattn.scoring.aggregators import Aggregator
from multiattn.scoring.bootstrap import compare_log_loss
from multiattn.scoring.calibration import fit_calibration
from multiattn.scoring.ensembling import score_experiments
from multiattn.scoring.metrics import log_loss
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.simulation import Simulation
from multiattn.scoring.tuning import tune
from multiattn.tables import FOLDS, FRAME_PREDICTIONS

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


def draw(**settings):
    return Simulation(
        **{"num_videos": 600, "num_frames": 6, "num_groups": 30, "num_folds": NUM_FOLDS, **settings}
    ).draw()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_tuned_rule_never_loses_more_than_the_error_on_held_out_groups(setting, seed):
    drawn = draw(**SETTINGS[setting], seed=seed)
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


@pytest.mark.parametrize("setting", ["overconfident", "underconfident", "skewed classes"])
def test_the_tuned_rule_wins_where_there_is_something_to_win(setting):
    drawn = draw(**SETTINGS[setting])
    report = tune(drawn.predictions, drawn.videos).report
    assert report["tuned_against_untuned"]["high"] < 0
    best = log_loss(drawn.videos["label"].to_numpy(), drawn.best)
    figures = {row["name"]: row["log_loss"] for row in report["figures"]}
    # At least half of what there is to win.
    assert figures["tuned, nested"] - best < (figures["equal mean, untuned"] - best) / 2


# --- the generator ------------------------------------------------------------------------------------------------


def test_tables_keep_their_contracts_and_a_seed_fixes_them():
    drawn, again, other = draw(seed=5), draw(seed=5), draw(seed=6)
    text = drawn.predictions.astype({"model": str, "video_id": str})
    FRAME_PREDICTIONS.validate(text, "simulated")
    FOLDS.validate(drawn.videos, "simulated")
    assert drawn.predictions.equals(again.predictions)
    assert drawn.videos.equals(again.videos)
    assert not drawn.predictions.equals(other.predictions)


def test_every_video_is_scored_by_each_experiments_model_of_its_fold():
    drawn = draw(faceless_share=0.1)
    fold = drawn.videos.set_index("video_id")["fold"]
    of_row = drawn.predictions["video_id"].astype(str).map(fold).to_numpy()
    assert (drawn.predictions["fold"].to_numpy() == of_row).all()
    named = drawn.predictions["model"].astype(str).str.rpartition("/fold")[2].astype(int)
    assert (named.to_numpy() == of_row).all()
    counts = drawn.predictions.groupby("video_id", observed=True).size()
    assert (counts == 3 * 6).all()
    assert len(drawn.videos) - len(counts) == pytest.approx(60, abs=25)
    assert (drawn.videos.groupby("group")["fold"].nunique() == 1).all()


def test_sizes_and_shares_are_those_asked_for():
    drawn = draw(num_videos=20_000, num_frames=1, fake_share=0.84, num_groups=50)
    assert len(drawn.videos) == 20_000
    assert drawn.videos["label"].mean() == pytest.approx(0.84, abs=0.01)
    assert drawn.videos["group"].nunique() == 50
    assert drawn.videos["fold"].nunique() == NUM_FOLDS


@pytest.mark.parametrize(("sharpness", "prior"), [(1.0, 0.8), (3.0, 0.8), (1 / 3, 0.8), (1.0, 0.5)])
def test_sharpness_and_prior_are_what_platt_finds(sharpness, prior):
    """Without noise of frames and models a single experiment is calibrated up to them."""
    drawn = draw(
        num_videos=20_000, num_frames=1, fake_share=0.8, training_prior=prior, sharpness=sharpness, frame_sd=0.0,
        offset_sd=0.0, group_sd=0.0, faceless_share=0.0, experiment_sd=(0.6,),
    )  # fmt: skip
    values = score_experiments(drawn.predictions, Aggregator()).values[:, 0]
    slope, intercept = fit_calibration("platt", drawn.videos["label"].to_numpy(), values).parameters
    assert slope * sharpness == pytest.approx(1, abs=0.06)
    assert intercept == pytest.approx(logit(0.8) - logit(prior), abs=0.1)


def test_the_best_answer_is_calibrated_and_better_than_every_experiment():
    drawn = draw(num_videos=20_000, num_frames=1, frame_sd=0.0, experiment_sd=(0.6, 0.9, np.inf), faceless_share=0.0)
    labels = drawn.videos["label"].to_numpy()
    assert fit_calibration("platt", labels, drawn.best).parameters == pytest.approx([1, 0], abs=0.1)
    values = score_experiments(drawn.predictions, Aggregator()).values
    areas = [roc_auc_score(labels, values[:, experiment]) for experiment in range(3)]
    assert roc_auc_score(labels, drawn.best) > areas[0] > areas[1] > 0.8
    assert areas[2] == pytest.approx(0.5, abs=0.03)


def test_experiments_share_their_errors():
    drawn = draw(num_videos=5_000, num_frames=1, faceless_share=0.0, experiment_sd=(0.5, 0.5), frame_sd=0.0)
    values = logit(score_experiments(drawn.predictions, Aggregator()).values)
    real = drawn.videos["label"].to_numpy() == 0
    shared = 0.3**2 + 0.9**2
    assert np.corrcoef(values[real].T)[0, 1] == pytest.approx(shared / (shared + 0.5**2), abs=0.08)


def test_more_folds_than_groups_are_refused():
    with pytest.raises(ValueError, match="folds <= groups"):
        Simulation(num_groups=3, num_folds=5)
