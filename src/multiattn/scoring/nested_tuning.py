"""Nested tuning: every choice and number of a scoring rule, fitted on some folds and evaluated on the others.

The stages stand in README.md. Parts of the inner loop are the folds that remain without the one of the outer loop. With
two folds in all one remains, and its groups are dealt into up to five parts; where it is one group, nothing can be held
out and the simple rule stays. Groups never span parts. A single fold is itself dealt into parts, which stand for folds
throughout. Videos without a face take no part in any fit; they count in every figure with the rule's prior.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from multiattn.config.choices import Tta
from multiattn.scoring.aggregators import DEFAULT_CLIP, RECIPES, Aggregator, FrameGroups
from multiattn.scoring.calibration import CALIBRATORS, CLIP_RANGE, Calibration, PriorShift, fit_calibration, fit_clip
from multiattn.scoring.ensembling import Ensemble, ensemble_candidates, fit_ensemble, score_experiments
from multiattn.scoring.metrics import MIN_GROUPS, Comparison, Interval, compare_log_loss, standard_error
from multiattn.scoring.rule import ScoringRule

RESAMPLES = 2_000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to do a stage, and its score on videos that were held out of its fit."""

    name: str
    log_loss: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The choice of one stage of tuning, and its reason."""

    stage: str
    candidates: tuple[Candidate, ...]
    """The simple one first."""
    challenger: Comparison
    """Choosing the best candidate, cross-fitted, against the simple one; negative: choosing is better."""
    chosen: str
    reason: str


def decide(
    stage: str,
    names: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    parts: np.ndarray,
    *,
    clip: float,
    seed: int,
) -> Decision:
    """Keep the simple candidate, or take the best one.

    The best of many candidates seems better than it is. So what is compared with the simple one is not a candidate but
    the act of choosing: in every part stands the candidate that was best in the other parts. That is taken as better
    where the whole 95 % interval of the paired difference over groups lies below 0; with fewer than 5 groups, Student's
    interval with G - 1 degrees of freedom. With one group it never is.
    Measured with 20 candidates that know exactly as much as the simple one (300 videos, 5 to 150 groups, 400 draws
    each): one of them is taken in 6 to 8 % of draws, against 27 % where the best is compared with the simple one as if
    there were no others.

    Args:
        names: C candidates, the simple one first.
        probabilities: (C, N) P(fake), of every candidate as fitted on other parts than the video's.
        labels, groups, parts: (N,).
        clip: probabilities are moved into [clip, 1 - clip].
    """
    clipped = np.clip(probabilities, clip, 1 - clip)
    losses = -np.log(np.where(labels == 1, clipped, 1 - clipped))
    part_values, part_of = np.unique(parts, return_inverse=True)
    in_part = np.stack([losses[:, part_of == part].sum(axis=1) for part in range(len(part_values))])
    best_elsewhere = np.argmin(in_part.sum(axis=0) - in_part, axis=1)
    elsewhere = probabilities[best_elsewhere[part_of], np.arange(len(labels))]
    drawn = {"clip": clip, "resamples": RESAMPLES, "seed": seed}
    comparison = compare_log_loss(labels, elsewhere, probabilities[0], groups, **drawn)
    best = int(np.argmin(in_part.sum(axis=0)))
    is_taken = best != 0 and gain_is_certain(comparison, len(np.unique(groups)))
    gain = f"gain of choosing {Interval(-comparison.high, -comparison.low).beside(-comparison.difference)}"
    return Decision(
        stage=stage,
        candidates=tuple(
            Candidate(name=name, log_loss=float(of.mean()), standard_error=standard_error(of, groups))
            for name, of in zip(names, losses, strict=True)
        ),
        challenger=comparison,
        chosen=names[best] if is_taken else names[0],
        reason=gain if is_taken else f"{'within the error' if best else 'none is better'}, {gain}",
    )


def gain_is_certain(comparison: Comparison, num_groups: int) -> bool:
    """True where the first of two compared is better beyond the error of the comparison, as `decide` says."""
    if num_groups < MIN_GROUPS:
        margin = stdtrit(num_groups - 1, 0.975) * comparison.standard_error  # NaN of one group
        return bool(comparison.difference + margin < 0)
    return bool(comparison.high < 0)


SIMPLE = "mean"
COMPARED_AFTER = "platt"
"""Aggregators and ensembles are compared after this calibration, fitted on other parts: the one that knows more is to
win, not the one that happens to be as sharp as these networks need, which is the calibration's part."""
MAX_PARTS = 5
"""Into which the groups of a single fold are dealt."""
STAGES = 5


@dataclass(frozen=True, eq=False)
class Evidence:
    """Held-out videos that have a face, N of them, as every recipe and experiment sees them."""

    values: dict[str, dict[str, np.ndarray]]
    """Views of each crop, the simple ones first -> recipe -> (N, E) P(fake), NaN where an experiment did not see the
    video; of videos of one crop the simple recipe."""
    experiments: tuple[str, ...]
    labels: np.ndarray
    """(N,) of 0 and 1."""
    groups: np.ndarray
    """(N,) int64, which never span folds."""
    folds: np.ndarray
    """(N,) int64, of `outer_parts`."""
    outside: tuple[str, ...] = ()
    """The outside models among the experiments."""

    def only(self, kept: np.ndarray) -> "Evidence":
        """The videos of a (N,) mask."""
        values = {tta: {name: of[kept] for name, of in recipes.items()} for tta, recipes in self.values.items()}
        return replace(self, values=values, labels=self.labels[kept], groups=self.groups[kept], folds=self.folds[kept])


@dataclass(frozen=True)
class Choice:
    """A rule and how it was arrived at."""

    rule: ScoringRule
    recipe: str
    """The name of the rule's aggregator."""
    decisions: tuple[Decision, ...]
    """One a stage; empty where nothing could be held out."""
    at_share: Calibration
    """The rule's calibration, or a Platt one where that has no intercept: right on average at the share of fakes it was
    fitted at, as a shift to another share asks. `none` where nothing could be held out."""
    simple_tta: Tta = "none"
    """The views that others were compared with, which the untuned rule takes."""


@dataclass(frozen=True, eq=False)
class Nested:
    """Every held-out video, with answers of rules that were found without its fold, and of others beside them."""

    videos: pd.DataFrame
    """The `folds` table given, and columns part (of `outer_parts`), without_face, in_sample, one a candidate of
    `candidate_rules`, and one `only <experiment>` each: P(fake), clipped."""
    choices: dict[int, Choice]
    """Fold, or part of a single fold -> the rule found without it."""
    final: Choice
    rules: dict[int, dict[str, ScoringRule]]
    """Fold -> the candidates found without it."""
    candidates: dict[str, ScoringRule]
    """Found on all folds: what may be delivered."""


def gather_evidence(
    predictions: pd.DataFrame | FrameGroups | Mapping[Tta, pd.DataFrame | FrameGroups],
    videos: pd.DataFrame,
    *,
    outside: pd.DataFrame | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Evidence, np.ndarray]:
    """Out-of-fold frame predictions, aggregated by every recipe, once.

    Args:
        predictions: a `frame_predictions` table of held-out videos; `model` is `<experiment>/fold<k>`. Or several of
            the same crops, by the views that their logits are means of, the simple ones first.
        videos: those videos, a `folds` table: video_id, label, group, fold.
        outside: as of `ScoringRule.score`, of these videos.

    Returns:
        The evidence, and the (N,) positions in `videos` of its videos: those with a face or an outside answer, in the
        order of their video_id, so that the order of the rows given changes nothing.

    Raises:
        ValueError: one group only; a video that is not among those given, or was scored by a model of another
            fold, which may have learned it; no video with a face of one of the classes.
    """
    tables = predictions if isinstance(predictions, Mapping) else {"none": predictions}
    values: dict[str, dict[str, np.ndarray]] = {}
    for tta, table in tables.items():
        groups = FrameGroups.of(table)
        check_held_out(groups, videos)
        values[tta] = {}
        for name, aggregator in RECIPES.items():
            if name == SIMPLE or groups.frames_of_units.max(initial=0) > 1:
                scores = score_experiments(groups, aggregator).beside(outside)
                values[tta][name] = scores.values
            advance()
    positions = pd.Index(videos["video_id"]).get_indexer(scores.video_ids)
    found = videos.iloc[positions]
    labels = found["label"].to_numpy(np.int64)
    if len(np.unique(labels)) < 2:
        raise ValueError(
            "expected videos of both classes with a face, found "
            f"{len(labels)} of {'one class' if len(labels) else 'either'}."
        )
    codes = pd.factorize(found["group"], sort=True)[0]
    names = () if outside is None else tuple(sorted(outside))
    return Evidence(values, scores.experiments, labels, codes, outer_parts(videos)[positions], names), positions


def outer_parts(videos: pd.DataFrame) -> np.ndarray:
    """(N,) int64: the fold of every video of a `folds` table, or its part where there is one fold only.

    Raises:
        ValueError: one group only, of which nothing can be held out.
    """
    parts = videos["fold"].to_numpy(np.int64)
    if len(np.unique(parts)) < 2:
        parts = inner_parts(parts, videos["group"].to_numpy())
    if parts is None:
        raise ValueError(
            f"expected held-out videos of at least 2 groups, found 1, {videos['group'].iloc[0]}: what is fitted on it "
            "can be checked on no other. Train more folds (`multiattn train --fold all`); until then the untuned rule "
            "is used."
        )
    return parts


def are_single_crops(groups: FrameGroups) -> bool:
    """True where every model saw one crop of each video: nothing can be said of ways to put frames together."""
    return len(groups.frames_of_units) > 0 and int(groups.frames_of_units.max()) == 1


def tune_nested(
    evidence: Evidence,
    positions: np.ndarray,
    videos: pd.DataFrame,
    *,
    test_prior: float | None = None,
    calibration: str | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Nested:
    """Find the rule without each fold in turn, and on all of them.

    Args:
        evidence, positions: of `gather_evidence` with these videos.
        test_prior: the stated share of fakes at test time, as of `candidate_rules`.
        calibration: as of `choose_rule`.
        advance: called STAGES times a fold, and as often for the whole.
    """
    choose = partial(choose_rule, calibration=calibration, seed=seed, advance=advance)
    answers, choices, rules, parts = {}, {}, {}, outer_parts(videos)
    simple = next(iter(evidence.values))
    for fold in np.unique(evidence.folds).tolist():
        held_out = evidence.folds == fold
        choices[fold] = choose(evidence.only(~held_out))
        # The shift of the fold that is held out comes from the others' share of fakes, as its rule does.
        rules[fold] = candidate_rules(choices[fold], videos.loc[parts != fold, "label"], test_prior)
        for name, rule in rules[fold].items():
            values = evidence.values[rule.tta][SIMPLE if name == "untuned" else choices[fold].recipe][held_out]
            answers.setdefault(name, np.empty(len(held_out)))[held_out] = rule.answer(values, evidence.experiments)
    final = choose(evidence)
    answers["in_sample"] = final.rule.answer(evidence.values[final.rule.tta][final.recipe], evidence.experiments)
    for column, name in enumerate(evidence.experiments):
        answers[f"only {name}"] = ScoringRule().answer(evidence.values[simple][SIMPLE][:, [column]], (name,))

    table = videos.reset_index(drop=True).assign(part=parts, without_face=True)
    table.loc[positions, "without_face"] = False
    candidates = candidate_rules(final, videos["label"], test_prior)
    prior = candidates["untuned"].prior
    for name, of in answers.items():
        table[name] = prior
        # A video that one experiment did not see is, for that experiment alone, a video without a face.
        table.loc[positions, name] = np.where(np.isnan(of), prior, of)
    own = tuple(name for name in evidence.experiments if name not in evidence.outside)
    named = {"experiments": own, "outside": evidence.outside}
    candidates = {name: replace(rule, **named) for name, rule in candidates.items()}
    return Nested(table, choices, final, rules, candidates)


def candidate_rules(choice: Choice, labels: pd.Series, test_prior: float | None) -> dict[str, ScoringRule]:
    """The rules that may be delivered: untuned, tuned, and for a stated share of fakes at test time tuned_shifted.

    Only what is calibrated at the share of fakes among these `labels` is shifted from there. A stated share is also the
    answer for a video without a face, of every candidate.
    """
    rules = {"untuned": ScoringRule(tta=choice.simple_tta), "tuned": choice.rule}
    if test_prior is None:
        return rules
    for name, rule in rules.items():
        prior = float(np.clip(test_prior, rule.clip, 1 - rule.clip))
        rules[name] = replace(rule, aggregator=replace(rule.aggregator, prior=prior))
    rules["tuned_shifted"] = rules["tuned"]
    if choice.at_share.method != "none":
        shift = PriorShift(training=float(labels.mean()), test=test_prior)
        rules["tuned_shifted"] = replace(rules["tuned"], calibration=choice.at_share, prior_shift=shift)
    return rules


def choose_rule(
    evidence: Evidence,
    *,
    calibration: str | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Choice:
    """The rule for videos like these, stage by stage; every candidate is scored on parts held out of its fit.

    Args:
        calibration: taken whatever the comparison says; None: as it says.
    """
    parts, simple = inner_parts(evidence.folds, evidence.groups), next(iter(evidence.values))
    if parts is None or len(np.unique(evidence.labels)) < 2:
        for _ in range(STAGES):
            advance()
        return Choice(ScoringRule(tta=simple), SIMPLE, (), Calibration(), simple)
    labels, decisions = evidence.labels, []

    def stage(name: str, candidates: dict[str, np.ndarray], clip: float = DEFAULT_CLIP) -> str:
        of_videos = (np.stack(list(candidates.values())), labels, evidence.groups, parts)
        decision = decide(name, list(candidates), *of_videos, clip=clip, seed=seed)
        decisions.append(decision)
        advance()
        return decision.chosen

    def calibrated(candidates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: _calibrate_held_out(COMPARED_AFTER, of, labels, parts) for name, of in candidates.items()}

    names, tta = evidence.experiments, simple
    if len(evidence.values) > 1:
        views = {name: Ensemble().blend(recipes[SIMPLE], names) for name, recipes in evidence.values.items()}
        tta = stage("tta", calibrated(views))
    else:
        advance()
    blended = {name: Ensemble().blend(values, names) for name, values in evidence.values[tta].items()}
    recipe = stage("aggregator", calibrated(blended))
    values = evidence.values[tta][recipe]

    ensemble, held_out = Ensemble(), blended[recipe]
    if len(names) > 1:
        ways = ensemble_candidates()
        candidates = {name: _blend_held_out(way, values, labels, names, parts) for name, way in ways.items()}
        chosen = stage("ensemble", calibrated(candidates))
        ensemble, held_out = fit_ensemble(*ways[chosen], values, labels, names, parts), candidates[chosen]
    else:
        advance()

    methods = [method for method, calibrator in CALIBRATORS.items() if len(labels) >= calibrator.min_videos]
    if calibration not in (None, *methods):
        raise ValueError(f"--calibration: expected one of {', '.join(methods)}, found {calibration!r}.")
    candidates = {method: _calibrate_held_out(method, held_out, labels, parts) for method in methods}
    method = stage("calibration", candidates)
    if calibration is not None:
        method, decisions[-1] = calibration, replace(decisions[-1], chosen=calibration, reason="asked for")
    calibrated_by = at_share = fit_calibration(method, labels, held_out)
    if not CALIBRATORS[method].has_intercept:
        at_share = fit_calibration(COMPARED_AFTER, labels, held_out)
    held_out = candidates[method]

    default = f"{DEFAULT_CLIP:g}"
    unfitted = np.clip(held_out, DEFAULT_CLIP, 1 - DEFAULT_CLIP)
    clipped = {default: unfitted, "fitted": _clip_held_out(held_out, labels, parts)}
    clip = DEFAULT_CLIP if stage("clip", clipped, CLIP_RANGE[0]) == default else fit_clip(labels, held_out)
    aggregator = replace(RECIPES[recipe], clip=clip, prior=Aggregator().prior)
    rule = ScoringRule(aggregator=aggregator, ensemble=ensemble, calibration=calibrated_by, tta=tta)
    return Choice(rule, recipe, tuple(decisions), at_share, simple)


def inner_parts(folds: np.ndarray, groups: np.ndarray) -> np.ndarray | None:
    """(N,) part of every video: its fold, or where there is one fold only, its group dealt into up to MAX_PARTS.

    Groups are dealt by size, the largest first, each to the part with the fewest videos. None: one group only.
    """
    if len(np.unique(folds)) > 1:
        return folds
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return None
    load, part_of_group = np.zeros(min(MAX_PARTS, len(sizes))), np.empty(len(sizes), dtype=np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        part_of_group[group] = np.argmin(load)
        load[part_of_group[group]] += sizes[group]
    return part_of_group[group_of]


def _blend_held_out(
    how: tuple[str, str], values: np.ndarray, labels: np.ndarray, experiments: Sequence[str], parts: np.ndarray
) -> np.ndarray:
    def of(rest: np.ndarray, part: np.ndarray) -> np.ndarray:
        ensemble = fit_ensemble(*how, values[rest], labels[rest], experiments, parts[rest])
        return ensemble.blend(values[part], experiments)

    return _held_out(parts, of)


def _calibrate_held_out(method: str, blended: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    return _held_out(
        parts, lambda rest, part: fit_calibration(method, labels[rest], blended[rest]).apply(blended[part])
    )


def _clip_held_out(calibrated: np.ndarray, labels: np.ndarray, parts: np.ndarray) -> np.ndarray:
    def of(rest: np.ndarray, part: np.ndarray) -> np.ndarray:
        clip = fit_clip(labels[rest], calibrated[rest])
        return np.clip(calibrated[part], clip, 1 - clip)

    return _held_out(parts, of)


def _held_out(parts: np.ndarray, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """(N,): every part as predicted by what was fitted on the others; `of` takes the masks of both."""
    result = np.empty(len(parts))
    for part in np.unique(parts):
        result[parts == part] = of(parts != part, parts == part)
    return result


def check_held_out(groups: FrameGroups, videos: pd.DataFrame) -> None:
    """Raise `ValueError` for groups of other videos than these, and for models that learned theirs."""
    positions = pd.Index(videos["video_id"]).get_indexer(groups.video_ids)
    if (positions < 0).any():
        unknown = groups.video_ids[positions < 0]
        raise ValueError(
            f"expected predictions of the folds' held-out videos only, found {len(unknown)} others; first: "
            f"{unknown[0]}. A test split tunes nothing."
        )
    numbers = [name.rpartition("/fold")[2] for name in groups.models]
    if strange := [name for name, number in zip(groups.models, numbers, strict=True) if not number.isdigit()]:
        raise ValueError(f"expected models named <experiment>/fold<k>, found {strange[0]}.")
    fold_of_model = np.array([int(number) for number in numbers], dtype=np.int64)
    wrong = fold_of_model[groups.unit_models] != videos["fold"].to_numpy()[positions[groups.unit_videos]]
    if wrong.any():
        unit = int(np.argmax(wrong))
        raise ValueError(
            f"{groups.video_ids[groups.unit_videos[unit]]}: scored by {groups.models[groups.unit_models[unit]]}, which "
            f"was trained on it; {int(wrong.sum())} such videos. Out-of-fold predictions are of each model's own fold."
        )
