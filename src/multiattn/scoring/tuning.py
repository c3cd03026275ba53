"""Out-of-fold predictions -> the scoring rule that is used, and the report of the comparison.

The report is plain types for `scoring.json` and Markdown tables for a terminal.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from multiattn.config.choices import Tta
from multiattn.runtime.text_tables import counted, markdown_table
from multiattn.scoring.aggregators import RECIPES, FrameGroups
from multiattn.scoring.answers import HeldOutAnswers, held_out_answers
from multiattn.scoring.calibration import CALIBRATORS
from multiattn.scoring.metrics import (
    Interval,
    bootstrap_log_loss,
    compare_log_loss,
    describe_losses,
    log_losses,
    video_metrics,
)
from multiattn.scoring.nested_tuning import (
    STAGES,
    Choice,
    Nested,
    are_single_crops,
    check_held_out,
    gain_is_certain,
    gather_evidence,
    outer_parts,
    tune_nested,
)
from multiattn.scoring.rule import ScoringRule

UNTUNED, TUNED, SHIFTED = "equal mean, untuned", "tuned, nested", "tuned and shifted, nested"
NAMES = {"untuned": UNTUNED, "tuned": TUNED, "tuned_shifted": SHIFTED}
"""Candidate of `candidate_rules` -> name of its figures."""
LAST_EPOCH = ", last epoch"
"""Ends the names of figures that no choice of an epoch went into."""
CALIBRATED_STAGES = ("tta", "aggregator", "ensemble")
"""Stages whose candidates are compared calibrated."""
OTHER_FIGURES = ("auc", "brier", "calibration_error")
EXACT = 1e-6
"""The clip of every figure: probabilities are clipped by their rules."""
BALANCED, NEAR = 0.5, 0.1
"""Shares of fakes further than 0.1 from a half are warned of, where none was stated."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A rule, the way to it, and its answers."""

    rule: ScoringRule
    report: dict[str, Any]
    """Report of `report_tuning`, and `decision`: which candidate is delivered, and why."""
    videos: pd.DataFrame
    """As `Nested.videos`."""
    taken: str
    """The candidate that is delivered: its answers are that column of `videos`."""

    def out_of_fold(self) -> pd.DataFrame:
        """Its answers, an `out-of-fold` table."""
        return self.videos[["video_id", "fold", "label"]].assign(probability=self.videos[self.taken])


def num_steps(videos: pd.DataFrame, num_tables: int = 1) -> int:
    """Number of times `tune` calls `advance` for these videos and so many tables of their predictions."""
    return num_tables * len(RECIPES) + STAGES * (len(np.unique(outer_parts(videos))) + 1)


def tune(
    predictions: pd.DataFrame | Mapping[Tta, pd.DataFrame],
    videos: pd.DataFrame,
    *,
    outside: pd.DataFrame | None = None,
    last_epoch: pd.DataFrame | None = None,
    test_prior: float | None = None,
    calibration: str | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Tuned:
    """Tune the rule on held-out predictions, nested (`nested_tuning.py`).

    The tuned rule is taken where its nested answers gain more on the untuned rule's than the error of the comparison
    (`gain_is_certain`), the shifted one as README.md says. `out_of_fold` are the figures of the one that is delivered.

    Args:
        predictions: a `frame_predictions` table of held-out videos; `model` is `<experiment>/fold<k>`. Or several of
            the same crops, by the views that their logits are means of, the simple ones first.
        videos: those videos, rows of a `folds` table; a video without a face has no predictions.
        outside: out-of-fold answers of outside models to these videos, as of `ScoringRule.score`; predictions may be
            empty beside them.
        last_epoch: predictions of the same videos by the last epochs' weights, which no choice went into, for figures
            beside the others; None where they were not kept. They are of each crop as it is, and no figures of rules
            with other views. Outside models answer as they do beside the others.
        test_prior: the share of fakes expected at test time, in (0, 1). None: as among these videos.
        calibration: a name in `CALIBRATORS` that is taken, and the tuned rule with it, whatever the comparisons say.
        advance: called after each of `num_steps` steps.

    Raises:
        ValueError: no such share or calibration, or one that needs more videos.
    """
    if test_prior is not None and not 0 < test_prior < 1:
        raise ValueError(f"--test-prior: expected a share of fakes in (0, 1), found {test_prior}.")
    fit = [name for name, of in CALIBRATORS.items() if test_prior is None or of.has_intercept]
    if calibration not in (None, *fit):
        beside = "" if test_prior is None else " beside --test-prior, which shifts what is right on average"
        raise ValueError(f"--calibration: expected one of {', '.join(fit)}{beside}, found {calibration!r}.")
    videos = videos.sort_values("video_id", ignore_index=True)
    tables = predictions if isinstance(predictions, Mapping) else {"none": predictions}
    tables = {tta: FrameGroups.of(table) for tta, table in tables.items()}
    evidence, positions = gather_evidence(tables, videos, outside=outside, advance=advance)
    frames = next(iter(tables.values()))
    how = {"test_prior": test_prior, "calibration": calibration}
    nested = tune_nested(evidence, positions, videos, **how, seed=seed, advance=advance)
    labels, groups = videos["label"].to_numpy(), videos["group"].to_numpy()
    weights = _weights(labels, test_prior)
    answers = [nested.videos[name].to_numpy() for name in ("tuned", "untuned")]
    comparison = compare_log_loss(labels, *answers, groups, clip=EXACT, weights=weights, seed=seed)
    if calibration is not None:
        taken, decision = "tuned", f"the calibration {calibration} was asked for: the tuned rule is taken"
    elif gain_is_certain(comparison, videos["group"].nunique()):
        taken, decision = "tuned", "the tuned rule is taken"
    else:
        taken = "untuned"
        decision = "the gain of tuning on held-out folds is within its error: the untuned rule is kept"
    at_prior = None
    if test_prior is not None:
        losses = {name: log_losses(labels, nested.videos[name].to_numpy(), clip=EXACT) for name in nested.candidates}
        at_prior = {f"log_loss_{name}": float(np.mean(weights * of)) for name, of in losses.items()}
        at_prior |= {"training": float(labels.mean()), "test": test_prior, "unshifted": NAMES[taken]}
        pair = [nested.videos[name].to_numpy() for name in ("tuned_shifted", taken)]
        gain = compare_log_loss(labels, *pair, groups, clip=EXACT, weights=weights, seed=seed)
        if gain.difference + gain.standard_error < 0:
            taken, decision = "tuned_shifted", "the tuned rule is taken, calibrated and shifted"
    last = None if last_epoch is None else _answer_last_epoch(nested, last_epoch, outside)
    report = report_tuning(nested, last, seed=seed)
    report |= {"tuned_against_untuned": asdict(comparison), "test_prior": at_prior, "decision": decision}
    measured = _measure(labels, nested.videos[taken].to_numpy(), weights)
    at_end = _measure(labels, last[taken], weights) if taken in (last or {}) else {}
    measured |= {f"last_epoch_{name}": at_end.get(name) for name in ("log_loss", "balanced_log_loss")}
    measured["test_prior"] = test_prior
    rule = replace(
        nested.candidates[taken],
        out_of_fold=measured,
        per_frame=are_single_crops(frames),
        held_out=_held_out_answers(nested.videos, taken, frames.frames_of_units),
    )
    return Tuned(rule, _plain(report), nested.videos, taken)


def _held_out_answers(videos: pd.DataFrame, taken: str, frames: np.ndarray) -> HeldOutAnswers:
    """The answers of the rule that is delivered, for the videos with a face; (U,) frames each model saw of one."""
    crops = int(np.median(frames)) if len(frames) else 0
    videos = videos[~videos["without_face"]]
    columns = (videos[name].to_numpy() for name in ("label", taken, "group", "part"))
    datasets = sorted({video.split("/", 1)[0] for video in videos["video_id"]})
    return held_out_answers(*columns, datasets=datasets, crops=crops)


def _weights(labels: np.ndarray, test_prior: float | None) -> np.ndarray:
    """(N,) weights of mean 1 that make these videos a test set of that share of fakes."""
    share = labels.mean()
    test = share if test_prior is None else test_prior
    return np.where(labels == 1, test / share, (1 - test) / (1 - share))


def _measure(labels: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> dict[str, float | None]:
    metrics = video_metrics(labels, answers, clip=EXACT)
    expected = float(np.mean(weights * log_losses(labels, answers, clip=EXACT)))
    return {"log_loss": expected, "balanced_log_loss": metrics.balanced_log_loss, "auc": metrics.auc}


def _answer_last_epoch(
    nested: Nested, predictions: pd.DataFrame, outside: pd.DataFrame | None
) -> dict[str, np.ndarray]:
    """Candidate -> (N,) answers to predictions of the last epochs, by the rules found without each fold; nothing of a
    candidate that takes several views of a crop."""
    check_held_out(FrameGroups.of(predictions), nested.videos)
    named = [name for name in nested.candidates if all(rules[name].tta == "none" for rules in nested.rules.values())]
    answers = {name: pd.Series(np.nan, index=nested.videos.index) for name in named}
    for part, rows in nested.videos.groupby("part"):
        mine = FrameGroups.of(predictions[predictions["video_id"].isin(set(rows["video_id"]))])
        for name in named:
            rule = nested.rules[part][name]
            scored = rule.score_videos(rows["video_id"], mine, outside)
            answers[name][rows.index] = scored["probability"].to_numpy()
    return {name: of.to_numpy() for name, of in answers.items()}


def report_tuning(nested: Nested, last_epoch: dict[str, np.ndarray] | None, *, seed: int) -> dict[str, Any]:
    """Describe every comparison of a tuning.

    Returns:
        `videos`: their numbers. `stages`: for every stage the candidates and the choice on all folds. `folds`: what was
        chosen without each fold, or part of a single one. `figures`, at these videos' share of fakes: those of
        `_figures` for each of `_answers`, and for the last epochs' answers.
    """
    videos = nested.videos
    labels, groups = videos["label"].to_numpy(), videos["group"].to_numpy()
    answers = _answers(videos)
    for name in ("untuned", "tuned"):
        if name in (last_epoch or {}):
            answers[f"{NAMES[name]}{LAST_EPOCH}"] = last_epoch[name]
    return {
        "videos": {
            "number": len(videos),
            "fakes": int(labels.sum()),
            "without_face": int(videos["without_face"].sum()),
            "groups": int(videos["group"].nunique()),
            "folds": int(videos["fold"].nunique()),
        },
        "experiments": [*nested.candidates["tuned"].experiments, *nested.candidates["tuned"].outside],
        "stages": [asdict(decision) for decision in nested.final.decisions],
        "folds": [{"fold": fold, **_chosen(choice)} for fold, choice in nested.choices.items()],
        "figures": [_figures(name, labels, of, groups, seed) for name, of in answers.items()],
    }


def _plain(value: Any) -> Any:
    """As JSON has it: None for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _answers(videos: pd.DataFrame) -> dict[str, np.ndarray]:
    """Row name -> (N,) P(fake)."""
    label = videos["label"]
    sums, sizes = label.groupby(videos["part"]).agg("sum"), label.groupby(videos["part"]).size()
    return {
        "constant 0.5": np.full(len(videos), 0.5),
        "base rate": videos["part"].map((label.sum() - sums) / (len(videos) - sizes)).to_numpy(np.float64),
        **{name: videos[name].to_numpy() for name in videos if name.startswith("only ")},
        UNTUNED: videos["untuned"].to_numpy(),
        TUNED: videos["tuned"].to_numpy(),
        "tuned, on the videos it was fitted on": videos["in_sample"].to_numpy(),
    }


def _figures(name: str, labels: np.ndarray, answers: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, Any]:
    metrics = video_metrics(labels, answers, clip=EXACT)
    interval = bootstrap_log_loss(labels, answers, groups, clip=EXACT, seed=seed)
    measured = {metric: getattr(metrics, metric) for metric in ("balanced_log_loss", *OTHER_FIGURES)}
    return {"name": name, "log_loss": metrics.log_loss, **asdict(interval), **measured}


def _chosen(choice: Choice) -> dict[str, Any]:
    rule = choice.rule
    return {
        "tta": rule.tta,
        "aggregator": choice.recipe,
        "ensemble": f"{rule.ensemble.method}, {rule.ensemble.space}",
        "calibration": rule.calibration.method,
        "clip": rule.clip,
    }


def describe_tuning(rule: ScoringRule, report: dict[str, Any]) -> str:
    count = report["videos"]
    lines = [
        f"{counted(count['number'], 'video')} ({count['fakes']} fake, "
        f"{count['without_face']} without a face, which count with the"
        f" prior {rule.prior:g}) in {counted(count['groups'], 'group')} and {counted(count['folds'], 'fold')}; "
        f"{counted(len(report['experiments']), 'experiment')}: {', '.join(report['experiments'])}",
        "",
    ]
    for stage in report["stages"]:
        rows = [
            [candidate["name"], _number(candidate["log_loss"]), _number(candidate["standard_error"])]
            for candidate in sorted(stage["candidates"], key=lambda candidate: candidate["log_loss"])
        ]
        after = " after Platt calibration" if stage["stage"] in CALIBRATED_STAGES else ""
        lines += _table([stage["stage"], f"log loss{after}, cross-fitted", "standard error"], rows)
        lines += [f"{stage['stage']}: {stage['chosen']} ({stage['reason']})", ""]
    rows = [[row[key] if key != "clip" else f"{row[key]:.4g}" for key in row] for row in report["folds"]]
    lines += _table(
        [f"without {'fold' if count['folds'] > 1 else 'part'}", "tta", "aggregator", "ensemble", "calibration", "clip"],
        rows,
    )
    rows = []
    for row in report["figures"]:
        others = [_number(row[key]) for key in ("balanced_log_loss", *OTHER_FIGURES)]
        rows.append([row["name"], Interval.of(row["low"], row["high"]).beside(row["log_loss"]), *others])
    header = ["out of fold", "log loss (95 % interval)", "balanced", "AUC", "Brier", "calibration error"]
    lines += _table(header, rows)
    if not any(row["name"].endswith(LAST_EPOCH) for row in report["figures"]):
        noted = report.get("last_epoch_noted")
        words = "not known" if noted is None else f"{describe_losses(*noted)}, untuned"
        lines += [f"log loss of the last epoch, whose predictions were not kept: {words}", ""]
    found, shift = report["tuned_against_untuned"], report["test_prior"]
    more = Interval.of(found["low"], found["high"]).words(sign="+")
    if found["probability_better"] is not None:
        more += f", P(better) {found['probability_better']:.0%}"
    at = "" if shift is None else f" at {shift['test']:.0%} fakes"
    lines += [f"tuned - untuned{at}: {found['difference']:+.4f}, {more}", report["decision"]]
    if rule.held_out is not None:
        lines.append(rule.held_out.describe())
    return "\n".join([*lines, f"rule: {describe_rule(rule)}"])


def closing_line(report: dict[str, Any]) -> str:
    """Both figures at the stated share of fakes, and which rule is delivered; where none was stated, a warning if it
    matters, or nothing."""
    shift, videos = report["test_prior"], report["videos"]
    share = videos["fakes"] / videos["number"]
    if shift is not None:
        shifted, delivered = shift["log_loss_tuned_shifted"], "shifted" in report["decision"]
        unshifted = shift["log_loss_tuned" if shift["unshifted"] == TUNED else "log_loss_untuned"]
        return (
            f"expected log loss at {shift['test']:.0%} fakes instead of {share:.0%}: shifted {shifted:.4f}, unshifted "
            f"{unshifted:.4f} ({shift['unshifted']}); the rule is delivered {'shifted' if delivered else 'unshifted'}"
        )
    if abs(share - BALANCED) <= NEAR:
        return ""
    return (
        f"warning: the rule is for a test set of {share:.0%} fakes, as out of fold, and loses on one of another share. "
        "State the share you expect: --test-prior 0.5 for DFDC's test sets."
    )


def describe_rule(rule: ScoringRule) -> str:
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in rule.ensemble.weights.items())
    blend = f"{rule.ensemble.method} of {'logits' if rule.ensemble.space == 'logit' else 'probabilities'}"
    # Isotonic calibration has as many parameters as steps.
    is_short = rule.calibration.method not in ("none", "isotonic")
    parameters = f" ({', '.join(f'{value:.4g}' for value in rule.calibration.parameters)})" if is_short else ""
    parts = [
        f"frames {rule.aggregator.frames}, tracks {rule.aggregator.tracks}",
        f"experiments {blend}" + (f" ({weights})" if weights else ""),
        f"calibration {rule.calibration.method}{parameters}",
        f"clip {rule.clip:.4g}",
        f"prior {rule.prior:g}",
    ]
    if rule.per_frame:
        parts.insert(2, "blended and calibrated frame by frame")
    if rule.outside:
        parts.append(f"outside models {', '.join(rule.outside)}")
    if rule.tta != "none":
        parts.insert(0, f"views {rule.tta}")
    if rule.prior_shift is not None:
        parts.append(f"prior shift {rule.prior_shift.training:.3f} -> {rule.prior_shift.test:g}")
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.4f}"


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    return [markdown_table(header, rows, padded=True), ""]
