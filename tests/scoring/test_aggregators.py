"""Frames -> tracks -> video -> models -> clip, by hand and against a reference written in plain NumPy."""

import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest
from made_predictions import Simulation, predictions, random_predictions
from scipy.special import expit, logit

from multiattn.__main__ import main
from multiattn.scoring import aggregators
from multiattn.scoring.aggregators import (
    DEFAULT_CLIP,
    RECIPES,
    Aggregator,
    FrameGroups,
    aggregate_units,
    complete_videos,
    register_aggregator,
)
from multiattn.scoring.frame_rules import FRAME_RULES, TRACK_RULES, FrameRule, TrackRule
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.tuning import describe_tuning, tune
from multiattn.tables import FRAME_PREDICTIONS

OPEN = {"clip": 1e-9}
"""A clip that leaves the hand values alone."""


def aggregated(table: pd.DataFrame, **settings) -> dict[str, tuple[float, int]]:
    found = ScoringRule(aggregator=Aggregator(**settings)).score(table)
    return {row.video_id: (row.probability, row.num_crops) for row in found.itertuples()}


ONE_TRACK = [("m", "v", 0, value) for value in (0.2, 0.9, 0.4)]
TWO_TRACKS = [("m", "v", 0, 0.2), ("m", "v", 0, 0.2), ("m", "v", 0, 0.2), ("m", "v", 1, 0.8)]


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        pytest.param(ONE_TRACK, {"frames": "mean"}, 0.5, id="mean of frames"),
        pytest.param(ONE_TRACK, {"frames": "median"}, 0.4, id="median of frames"),
        pytest.param(
            [("m", "v", 0, 0.8), ("m", "v", 0, 0.5)],
            {"frames": "mean_logit"},
            2 / 3,  # logits ln 4 and 0: their mean is ln 2
            id="mean of logits",
        ),
        pytest.param([("m", "v", 0, 0.3), ("m", "v", 0, 0.4)], {"frames": "median"}, 0.35, id="median of two"),
        pytest.param(TWO_TRACKS, {"tracks": "weighted"}, 0.35, id="tracks weighed by frames"),
        pytest.param(TWO_TRACKS, {"tracks": "mean"}, 0.5, id="tracks alike"),
        pytest.param(TWO_TRACKS, {"tracks": "max"}, 0.8, id="the most forged track"),
        pytest.param([("m", "v", 5, 0.7)], {}, 0.7, id="one frame"),
        pytest.param([("m", "v", 5, 0.7)], {"frames": "median", "tracks": "max"}, 0.7, id="one frame, other rules"),
        pytest.param([("m", "v", 0, 0.1), ("n", "v", 0, 0.5)], {}, 0.3, id="two models"),
        pytest.param(
            [("m", "v", 0, 0.1), *[("n", "v", 0, 0.5)] * 9], {}, 0.3, id="two models alike, whatever they saw"
        ),
        pytest.param([("m", "v", 0, 1.0)], {"clip": 0.01}, 0.99, id="clipped above"),
        pytest.param([("m", "v", 0, 0.0)], {"clip": 0.01}, 0.01, id="clipped below"),
        pytest.param([("m", "v", 0, 1.0), ("n", "v", 0, 0.9)], {"clip": 0.1}, 0.9, id="clipped after the models"),
        pytest.param([("m", "v", 0, 1.0), ("n", "v", 0, 0.0)], {"clip": 0.1}, 0.5, id="not clipped before"),
    ],
)
def test_every_rule_by_hand(rows, settings, expected):
    logits = np.clip([row[3] for row in rows], 1e-12, 1 - 1e-12)
    found = aggregated(predictions(*rows, logits=logit(logits).tolist()), **{**OPEN, **settings})
    assert found["v"][0] == pytest.approx(expected, abs=1e-12)


def test_the_crops_counted_are_the_most_any_model_saw():
    rows = [("m", "v", 0, 0.5), *[("n", "v", 0, 0.5)] * 2, ("n", "v", 1, 0.5)]
    assert aggregated(predictions(*rows))["v"] == (0.5, 3)


def test_logits_beyond_what_a_probability_can_tell_apart_change_nothing_either():
    """Above a logit of 37 the probability is exactly 1, so sorting by it leaves those frames as they came."""
    logits = [40.1, 41.7, 38.3, 44.9, 39.7, -203.9]
    rows = [("m", "v", 0, float(expit(value))) for value in logits]
    table = predictions(*rows, logits=logits)
    assert table["probability"].eq(1.0).sum() == 5
    found = {
        aggregated(table.sample(frac=1, random_state=seed), frames="mean_logit", **OPEN)["v"][0] for seed in range(40)
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param([], [], id="nothing asked for"),
        pytest.param(["v"], [("v", 0.7, 1)], id="predicted"),
        pytest.param(["x"], [("x", 0.4, 0)], id="not predicted"),
        pytest.param(["x", "v", "a"], [("x", 0.4, 0), ("v", 0.7, 1), ("a", 0.4, 0)], id="in the order asked"),
    ],
)
def test_completing_gives_the_prior_where_nothing_was_predicted(asked, expected):
    some = ScoringRule().score(predictions(("m", "v", 0, 0.7), ("m", "w", 0, 0.2)))
    table = complete_videos(pd.Series(asked, dtype=str), some, 0.4)
    none = complete_videos(pd.Series(asked, dtype=str), some.iloc[:0], 0.5)
    assert none[["probability", "num_crops"]].to_numpy().tolist() == [[0.5, 0]] * len(asked)
    assert list(table.itertuples(index=False, name=None)) == expected
    assert (table["probability"].dtype, table["num_crops"].dtype) == (np.float64, np.int64)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"faithful": True}, "frames mean and tracks weighted .*have confident, faces_shrunk"),
        ({"faithful": True, "frames": "gated", "tracks": "faces"}, "frames gated and tracks faces"),
        ({"clip": 0.0}, "clip"),
        ({"clip": 0.5}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"prior": 0.001}, "prior"),
        ({"prior": 1.0}, "prior"),
        ({"prior": 0.05, "clip": 0.1}, "prior"),
        ({"prior": float("nan")}, "prior"),
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        Aggregator(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"prior": 0.1, "clip": 0.1},
        {"prior": 0.9, "clip": 0.1},
        {"frames": "confident", "faithful": True},
        {"tracks": "faces_shrunk", "faithful": True},
    ],
    ids=repr,
)
def test_settings_on_the_edge_are_accepted(settings):
    assert settings.items() <= asdict(Aggregator(**settings)).items()


@pytest.mark.parametrize("settings", [{"frames": "average"}, {"tracks": "min"}], ids=repr)
def test_a_rule_that_does_not_exist_is_refused(settings):
    with pytest.raises(ValueError, match=r"(frames|tracks): expected one of .*mean, .*m.*, found '(average|min)'"):
        Aggregator(**settings)


WITHOUT_AMOUNT = [name for name, rule in FRAME_RULES.items() if rule.default is None]


@pytest.mark.parametrize("frames", WITHOUT_AMOUNT)
def test_an_amount_is_refused_by_a_rule_that_has_none(frames):
    with pytest.raises(ValueError, match=f"amount: expected None .*: trimmed, power.* with frames {frames}, found 0.3"):
        Aggregator(frames=frames, amount=0.3)


@pytest.mark.parametrize(
    ("frames", "amount"),
    [
        ("trimmed", 0.5),
        ("trimmed", -0.1),
        ("power", 0.0),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_k", -3),
        ("sharpened", -0.65),
        ("dead_zone", -1.0),
        ("signed_power", 0),
        *((name, value) for name, rule in FRAME_RULES.items() if rule.default for value in (np.nan, np.inf)),
    ],
)
def test_an_amount_out_of_its_range_is_refused(frames, amount):
    with pytest.raises(ValueError, match=f"amount: expected (finite numbers|.* with frames {frames}), found"):
        Aggregator(frames=frames, amount=amount)


@pytest.mark.parametrize("frames", sorted(set(FRAME_RULES) - set(WITHOUT_AMOUNT)))
def test_no_amount_is_the_rule_s_own(frames):
    table = random_predictions(3)
    own = aggregate_units(table, Aggregator(frames=frames))
    given = aggregate_units(table, Aggregator(frames=frames, amount=FRAME_RULES[frames].default))
    pd.testing.assert_frame_equal(own, given, check_exact=True)


@pytest.mark.parametrize(
    ("frames", "amount"), [("trimmed", 0.3), ("power", 9), ("top_k", 2), ("sharpened", 0.9), ("dead_zone", 3.0)]
)
def test_another_amount_gives_another_answer(frames, amount):
    table = random_predictions(3)
    own = aggregate_units(table, Aggregator(frames=frames))
    assert not own.equals(aggregate_units(table, Aggregator(frames=frames, amount=amount)))


def test_a_unit_is_a_video_as_one_model_saw_it():
    rows = [("n", "w", 0, 0.25), ("n", "w", 3, 0.75), ("m", "w", 0, 0.999999), ("n", "v", 0, 0.5)]
    units = aggregate_units(predictions(*rows), Aggregator())
    assert list(units.itertuples(index=False, name=None)) == [
        ("v", "n", 0.5, 1),
        ("w", "m", 0.999999, 1),  # not clipped
        ("w", "n", 0.5, 2),
    ]


def test_groups_made_once_serve_as_the_table_does():
    table = random_predictions(6)
    groups = FrameGroups.of(table)
    for settings in ({}, {"frames": "gated", "tracks": "faces"}, {"frames": "confident", "tracks": "pooled"}, {}):
        once, anew = (aggregate_units(of, Aggregator(**settings)) for of in (groups, table))
        pd.testing.assert_frame_equal(once, anew, check_exact=True)


EVERY = {
    **RECIPES,
    **{
        f"{name}, faithful": replace(recipe, faithful=True)
        for name, recipe in RECIPES.items()
        if recipe.frames == "confident" or recipe.tracks == "faces_shrunk"
    },
}
every_recipe = pytest.mark.parametrize("recipe", EVERY.values(), ids=EVERY)


def answer(table: pd.DataFrame, recipe: Aggregator) -> float:
    return aggregate_units(table, recipe)["probability"].item()


def test_every_rule_is_in_a_recipe_and_no_aggregator_twice():
    assert {recipe.frames for recipe in RECIPES.values()} == set(FRAME_RULES)
    assert {recipe.tracks for recipe in RECIPES.values()} == set(TRACK_RULES)
    assert len(set(RECIPES.values())) == len(RECIPES)
    assert RECIPES["mean"] == Aggregator()


def test_the_readme_lists_every_recipe_and_the_default_clip():
    text = (Path(aggregators.__file__).parent / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:5]] for line in text.splitlines() if line.count("|") == 6]
    expected = [[name, of.frames, of.tracks, f"{of.clip:g}"] for name, of in RECIPES.items()]
    assert rows[2:] == expected  # after the head and its rule
    assert f"`DEFAULT_CLIP = {DEFAULT_CLIP}`" in text and f"all {len(RECIPES)} aggregators" in text


def test_an_aggregator_saved_before_there_were_recipes_is_the_same_rule():
    old = {"frames": "median", "tracks": "max", "clip": 0.02, "prior": 0.4}
    assert asdict(Aggregator(**old)) == {**old, "amount": None, "faithful": False}


@every_recipe
@pytest.mark.parametrize("seed", range(2))
def test_a_recipe_is_its_frame_rule_on_each_track_and_its_track_rule_on_those(seed, recipe):
    """Against one group of pandas after the other, in place of stacks."""
    table = random_predictions(seed).sort_values(["frame_index"])
    frames, tracks = FRAME_RULES[recipe.frames], TRACK_RULES[recipe.tracks]
    amount = [] if frames.default is None else [frames.default]

    def of_frames(rows: pd.DataFrame) -> float:
        column = rows["probability" if frames.takes == "probabilities" else "logit"].to_numpy()
        values = column if frames.takes == "logits_in_time" else np.sort(column)
        return frames.of(values, *amount, **({"faithful": recipe.faithful} if frames.has_fault else {}))

    expected = {}
    for key, rows in table.groupby(["video_id", "model"]):
        if tracks.pools_frames:
            expected[key] = float(of_frames(rows.sort_values(["track", "frame_index"])))
            continue
        groups = [group for _, group in rows.groupby("track")]
        values, counts = np.array([of_frames(group) for group in groups]), np.array([len(group) for group in groups])
        settings = {"faithful": recipe.faithful} if tracks.has_fault else {}
        expected[key] = float(tracks.of(values, counts, **settings))
    units = aggregate_units(table, recipe)
    found = {(row.video_id, row.model): row.probability for row in units.itertuples()}
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-15)


@every_recipe
def test_neither_the_order_of_the_rows_nor_other_videos_and_models_reach_the_last_bit(recipe):
    table = random_predictions(2, videos=30)
    whole = aggregate_units(table, recipe)
    for seed in range(3):
        shuffled = table.sample(frac=1, random_state=seed)
        pd.testing.assert_frame_equal(whole, aggregate_units(shuffled, recipe), check_exact=True)
    for row in whole.iloc[::7].itertuples():
        alone = table[(table["video_id"] == row.video_id) & (table["model"] == row.model)]
        assert answer(alone, recipe) == row.probability


@pytest.mark.parametrize("frames_a_track", [32, 200])
@every_recipe
def test_only_the_gated_rule_sees_the_order_of_time(recipe, frames_a_track):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, 4 * frames_a_track)
    rows = [
        ("m", f"v{index // (2 * frames_a_track)}", index // frames_a_track % 2, 0.5) for index in range(len(logits))
    ]
    table = predictions(*rows, logits=logits.tolist())
    table["probability"] = expit(table["logit"])
    before = aggregate_units(table, recipe)
    changed = table.copy()
    tracks = changed.groupby(["video_id", "track"])["frame_index"]
    changed["frame_index"] = tracks.transform(lambda indices: rng.permutation(indices.to_numpy()))
    assert not changed["frame_index"].equals(table["frame_index"])
    after = aggregate_units(changed, recipe)
    assert before.equals(after) != (recipe.frames == "gated")


EXTREMES = {
    "one frame": [0.7],
    "one sure frame": [1000.0],
    "all surely real": [-1000.0] * 9,
    "sure of both": [1000.0, -1000.0] * 16,
    "all undecided": [0.0] * 32,
}


@every_recipe
def test_hardly_anything_and_extremes_are_probabilities(recipe):
    rows = [(name, track, value) for name, values in EXTREMES.items() for track in (0, 3) for value in values]
    table = predictions(
        *[("m", f"{name}, track {track}", track, float(expit(value))) for name, track, value in rows],
        logits=[value for *_, value in rows],
    )
    found = aggregate_units(table, recipe).set_index("video_id")["probability"]
    assert len(found) == 2 * len(EXTREMES) and found.between(0, 1).all()
    assert found["all undecided, track 0"] == found["all undecided, track 3"] == 0.5
    clipped = ScoringRule(aggregator=recipe).score(table)["probability"]
    assert clipped.between(recipe.clip, 1 - recipe.clip).all()


@every_recipe
def test_no_frame_at_all_is_no_row(recipe):
    for found in (
        aggregate_units(FRAME_PREDICTIONS.empty(), recipe),
        ScoringRule(aggregator=recipe).score(FRAME_PREDICTIONS.empty()),
    ):
        assert found.empty
        assert set(found) - {"model"} == {"video_id", "probability", "num_crops"}
        assert (found["probability"].dtype, found["num_crops"].dtype) == (np.float64, np.int64)


def test_pooled_frames_are_one_list_whatever_their_tracks():
    rows = [("m", "v", 0, 0.9)] * 3 + [("m", "v", 1, 0.1)] * 2
    found = answer(predictions(*rows), Aggregator(frames="median", tracks="pooled"))
    assert found == 0.9
    assert answer(predictions(*rows), Aggregator(frames="median", tracks="mean")) == pytest.approx(0.5)


def test_winners_on_a_video_of_two_people():
    """A person seen in 20 frames and surely fake, another in 10 and surely real; by hand."""
    table = predictions(*[("m", "v", 0, 0.95)] * 20, *[("m", "v", 1, 0.05)] * 10)
    expected = {
        "selim": 0.95,  # 20 of 30 are sure, more than 12
        "wm": 0.95,
        "robust_forensics": 0.95,
        "robust_forensics_shrunk": 0.95,
        "medics": 0.5,
        "medics_2d": 0.5,
        "ispl": 0.95,
        "mean": 0.65,
        "ntech": (20 * 0.99 + 10 * 0.01) / 30,  # 0.5 + 0.45^0.65 > 1
    }
    assert {name: answer(table, RECIPES[name]) for name in expected} == pytest.approx(expected, abs=1e-12)


def test_all_recipes_keep_within_their_time_at_a_sixth_of_dfdc():
    """10 s are allowed for 119,154 videos x 32 frames, 2.6 microseconds a frame; measured 0.25. CPU time."""
    videos, frames = 20_000, 32
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, videos * frames)
    names = pd.Categorical.from_codes(np.repeat(np.arange(videos), frames), [f"v/{video}" for video in range(videos)])
    table = pd.DataFrame({"model": "m/fold0", "video_id": names, "logit": logits, "probability": expit(logits)})
    table["frame_index"] = np.tile(np.arange(frames), videos)
    table["track"] = rng.integers(0, 2, len(table))
    started = process_time()
    groups = FrameGroups.of(table)
    for recipe in RECIPES.values():
        assert len(aggregate_units(groups, recipe)) == videos
    assert process_time() - started < 10 * len(table) / (119_154 * 32)


@pytest.fixture
def registries() -> Iterator[None]:
    """Remove after the test whatever it registered."""
    before = [(registry, dict(registry)) for registry in (RECIPES, FRAME_RULES, TRACK_RULES)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def lowest(p: np.ndarray) -> np.ndarray:
    return p[..., 0]


@pytest.mark.usefixtures("registries")
def test_one_call_registers_an_aggregator_for_help_errors_and_tuning(capsys):
    register_aggregator("toy", FrameRule(lowest), TrackRule(lambda values, counts: values.min(axis=-1)), clip=0.02)
    table = predictions(("m", "v", 0, 0.9), ("m", "v", 0, 0.4), ("m", "v", 1, 0.6))
    assert answer(table, RECIPES["toy"]) == 0.4
    assert RECIPES["toy"].clip == 0.02
    for kind in ("frames", "tracks"):
        with pytest.raises(ValueError, match="toy, found 'none such'"):
            Aggregator(**{kind: "none such"})
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    compared = capsys.readouterr().out
    assert re.search(r"aggregators: mean, .*\btoy\b", compared, flags=re.DOTALL)
    drawn = Simulation(num_videos=100, num_frames=3, num_groups=10, num_folds=2).draw()
    tuned = tune(drawn.predictions, drawn.videos)
    assert "toy" in [candidate["name"] for candidate in tuned.report["stages"][0]["candidates"]]
    assert "| toy " in describe_tuning(tuned.rule, tuned.report)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        ("median", {}, "name median is taken"),
        ("first", {"frames": FrameRule(lowest)}, "name first is taken"),
        ("toy", {"frames": FrameRule(lowest), "clip": 2.0}, "clip"),
        ("toy", {"frames": FrameRule(lowest), "tracks": "none such"}, "tracks"),
    ],
)
def test_a_refused_aggregator_leaves_nothing_registered(name, settings, error):
    before = [list(registry) for registry in (RECIPES, FRAME_RULES, TRACK_RULES)]
    with pytest.raises(ValueError, match=error):
        register_aggregator(name, **settings)
    assert [list(registry) for registry in (RECIPES, FRAME_RULES, TRACK_RULES)] == before
