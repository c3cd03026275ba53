"""The scoring rule: untuned it is the plain mean, tuned it does each step in its order, and JSON brings it back."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from made_predictions import predictions, random_predictions

from multiattn.config import from_json, to_json
from multiattn.scoring.aggregators import Aggregator, FrameGroups, aggregate_units
from multiattn.scoring.calibration import Calibration, PriorShift
from multiattn.scoring.ensembling import Ensemble
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS

TUNED = ScoringRule(
    aggregator=Aggregator(frames="mean_logit", clip=0.002),
    ensemble=Ensemble(method="weighted", weights={"a": 0.75, "b": 0.25}),
    calibration=Calibration(method="platt", parameters=(0.5, 0.1)),
    prior_shift=PriorShift(training=0.84, test=0.5),
    experiments=("a", "b"),
    out_of_fold={"log_loss": 0.2, "auc": 0.97},
)
read = partial(from_json, ScoringRule, source="not a scoring rule", complete=True)


@pytest.mark.parametrize("experiments", [1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_the_untuned_rule_is_the_plain_mean_over_folds_with_the_clip(seed, experiments):
    """Over experiments of as many folds for each video too."""
    table = random_predictions(seed)
    table = pd.concat([table, table.assign(model="n/" + table["model"].str[2:], probability=0.3)][:experiments])
    units = aggregate_units(table, Aggregator()).groupby("video_id")
    expected = units.agg(probability=("probability", "mean"), num_crops=("num_crops", "max")).reset_index()
    expected["probability"] = expected["probability"].clip(0.01, 0.99)
    pd.testing.assert_frame_equal(ScoringRule().score(table), expected, rtol=0, atol=1e-14)


def test_every_step_is_done_and_in_its_order():
    table = predictions(("a/fold0", "v", 0, 0.9), ("a/fold1", "v", 0, 0.7), ("b/fold0", "v", 0, 0.2))
    blend = 0.75 * 0.8 + 0.25 * 0.2
    odds = (blend / (1 - blend)) ** 0.5 * np.exp(0.1) * (0.16 / 0.84)
    assert TUNED.score(table)["probability"].tolist() == pytest.approx([odds / (1 + odds)], abs=1e-12)


def test_the_clip_comes_last():
    sure = ScoringRule(aggregator=Aggregator(clip=0.1), prior_shift=PriorShift(training=0.5, test=0.01))
    table = predictions(("a/fold0", "v", 0, 0.5), ("a/fold0", "w", 0, 1.0), logits=[0.0, 50.0])
    assert sure.score(table)["probability"].tolist() == [0.1, 0.9]


def test_a_rule_per_frame_is_the_mean_of_calibrated_frames_and_of_one_crop_the_same_as_any():
    per_frame = replace(TUNED, aggregator=Aggregator(clip=0.002), per_frame=True)
    table = random_predictions(1)
    table = pd.concat([table.assign(model=table["model"].str.replace("m/", f"{name}/")) for name in "ab"])
    frames = per_frame.answer_frames(table)
    first = table[(table[["video_id", "track", "frame_index"]] == frames.iloc[0][:3]).all(axis=1)]
    alone = replace(TUNED, aggregator=Aggregator(clip=1e-9)).score(first)["probability"].item()
    assert frames["probability"][0] == pytest.approx(alone, abs=1e-12)
    expected = frames.groupby("video_id")["probability"].mean()
    scored = per_frame.score(table).set_index("video_id")
    assert scored["probability"].to_dict() == pytest.approx(expected.clip(0.002, 0.998).to_dict(), abs=1e-12)
    assert scored["num_crops"].to_dict() == frames.groupby("video_id").size().to_dict()
    singles = table.drop_duplicates(["video_id", "model"]).assign(track=0, frame_index=0)
    pd.testing.assert_frame_equal(
        per_frame.score(singles), replace(per_frame, per_frame=False).score(singles), rtol=0, atol=1e-12
    )


PER_FRAME = replace(TUNED, per_frame=True)


def test_a_video_whose_experiments_saw_other_faces_is_blended_as_a_whole_and_the_others_per_frame():
    shared = random_predictions(2)
    shared = pd.concat([shared.assign(model=shared["model"].str.replace("m/", f"{name}/")) for name in "ab"])
    mixed, last = shared.iloc[:-1], shared["video_id"].iloc[-1]
    found, per_frame = (PER_FRAME.score(table).set_index("video_id")["probability"] for table in (mixed, shared))
    assert found.drop(last).equals(per_frame.drop(last))
    whole = TUNED.score(mixed).set_index("video_id")["probability"]
    assert found[last] == pytest.approx(whole[last], abs=1e-12)
    assert abs(found[last] - per_frame[last]) > 1e-3


def test_an_outside_model_answers_each_frame_of_a_video_alike_and_one_without_a_frame_alone():
    rule = replace(TUNED, aggregator=Aggregator(clip=0.002), experiments=("a",), outside=("b",), per_frame=True)
    table = predictions(("a/fold0", "v", 0, 0.9), ("a/fold0", "v", 0, 0.3))
    outside = pd.DataFrame({"b": [0.6, 0.2]}, index=pd.Index(["u", "v"], name="video_id"))
    blends = np.array([0.6, 0.75 * 0.9 + 0.25 * 0.2, 0.75 * 0.3 + 0.25 * 0.2])
    odds = (blends / (1 - blends)) ** 0.5 * np.exp(0.1) * (0.16 / 0.84)
    answers = odds / (1 + odds)
    found = rule.score(table, outside)
    assert found["video_id"].tolist() == ["u", "v"] and found["num_crops"].tolist() == [0, 2]
    assert found["probability"].tolist() == pytest.approx([answers[0], answers[1:].mean()], abs=1e-12)
    with pytest.raises(ValueError, match="found no answers of b"):
        rule.score(table)


@pytest.mark.parametrize("rule", [ScoringRule(), TUNED, PER_FRAME], ids=["untuned", "tuned", "per frame"])
def test_no_predictions_are_no_rows(rule):
    found = rule.score(FRAME_PREDICTIONS.empty())
    assert list(found.columns) == ["video_id", "probability", "num_crops"]
    assert found.empty


def test_the_order_of_the_rows_changes_nothing_not_the_last_bit():
    table = random_predictions(1)
    shuffled = table.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(ScoringRule().score(table), ScoringRule().score(shuffled), check_exact=True)
    pd.testing.assert_frame_equal(
        ScoringRule().score(FrameGroups.of(table)), ScoringRule().score(table), check_exact=True
    )


def test_predictions_of_an_experiment_that_was_not_tuned_for_are_refused():
    with pytest.raises(ValueError, match="none for c"):
        TUNED.score(predictions(("c/fold0", "v", 0, 0.5)))


@pytest.mark.parametrize(
    "rule",
    [
        ScoringRule(),
        PER_FRAME,
        ScoringRule(ensemble=Ensemble(method="stacked", space="logit", weights={"a": -1.5}, intercept=0.3)),
        ScoringRule(calibration=Calibration(method="isotonic", parameters=(0.1, 0.7, 0.2, 0.6))),
        ScoringRule(aggregator=Aggregator(frames="top_k", amount=3, tracks="faces_shrunk", faithful=True)),
    ],
    ids=["untuned", "tuned", "stacked", "isotonic", "faithful"],
)
def test_json_brings_a_rule_back(rule):
    assert read(json.loads(json.dumps(to_json(rule)))) == rule


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda values: values.pop("calibration"), id="a field missing"),
        pytest.param(lambda values: values.update(extra=1), id="a field unknown"),
        pytest.param(lambda values: values.update(aggregator={"frames": "magic"}), id="an unknown aggregator"),
        pytest.param(lambda values: values.update(aggregator={"speed": 1}), id="an unknown setting"),
        pytest.param(lambda values: values.update(ensemble=None), id="no ensemble"),
        pytest.param(lambda values: values["ensemble"].update(weights={"a": "much"}), id="a weight that is no number"),
        pytest.param(lambda values: values["calibration"].update(method="magic"), id="an unknown calibration"),
        pytest.param(lambda values: values["calibration"].pop("parameters"), id="a calibration in part"),
        pytest.param(lambda values: values.update(calibration={}), id="an empty calibration"),
        pytest.param(lambda values: values["ensemble"].pop("weights"), id="an ensemble in part"),
        pytest.param(lambda values: values.update(prior_shift={"training": 0.5}), id="a shift in part"),
    ],
)
def test_what_is_no_rule_is_refused(change):
    values = json.loads(json.dumps(to_json(TUNED)))
    change(values)
    with pytest.raises(ValueError, match="not a scoring rule"):
        read(values)


@pytest.mark.parametrize("values", [None, [], "rule", {}])
def test_other_json_is_no_rule(values):
    with pytest.raises(ValueError, match="not a scoring rule"):
        read(values)
