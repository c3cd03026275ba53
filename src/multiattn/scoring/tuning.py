"""Out-of-fold predictions -> the scoring rule that is used, and the report of the comparison.

The report is plain types for `scoring.json` and Markdown tables for a terminal.
"""

import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from multiattn.runtime.text_tables import markdown_table
from multiattn.scoring.aggregators import RECIPES, FrameGroups
from multiattn.scoring.calibration import CALIBRATORS
from multiattn.scoring.ensembling import ensemble_candidates
from multiattn.scoring.metrics import Comparison, bootstrap_log_loss, compare_log_loss, log_loss, video_metrics
from multiattn.scoring.nested_tuning import (
    STAGES,
    Choice,
    Nested,
    gain_is_certain,
    gather_evidence,
    shift_rule,
    tune_nested,
)
from multiattn.scoring.rule import ScoringRule

UNTUNED, TUNED = "equal mean, untuned", "tuned, nested"
"""Names of figures."""
CALIBRATED_STAGES = ("aggregator", "ensemble")
"""Stages whose candidates are compared calibrated."""
EXACT = 1e-6
"""The clip of every figure: probabilities are clipped by their rules."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """A rule, the way to it, and its answers."""

    rule: ScoringRule
    report: dict[str, Any]
    """Report of `report_tuning`, and `decision`: whether the tuned rule was taken."""
    videos: pd.DataFrame
    """As `Nested.videos`."""


def num_steps(videos: pd.DataFrame) -> int:
    """Number of times `tune` calls `advance` for these videos."""
    return len(RECIPES) + STAGES * (videos["fold"].nunique() + 1)


def tune(
    predictions: pd.DataFrame,
    videos: pd.DataFrame,
    *,
    test_prior: float | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Tuned:
    """Tune the rule on held-out predictions, nested (`nested_tuning.py`).

    The tuned rule is taken where its nested answers gain more on the untuned rule's than the error of the comparison
    (`gain_is_certain`); otherwise the untuned one is the result. `out_of_fold` of the rule are the figures of whichever
    it is.

    Args:
        predictions: a `frame_predictions` table of held-out videos; `model` is `<experiment>/fold<k>`.
        videos: those videos, rows of a `folds` table; a video without a face has no predictions.
        test_prior: the share of fakes expected at test time, in (0, 1). None: as among these videos.
        seed: of the bootstraps.
        advance: called after each of `num_steps` steps.

    Raises:
        ValueError: fewer than two folds, a prior outside (0, 1), or what `gather_evidence` refuses.
    """
    if test_prior is not None and not 0 < test_prior < 1:
        raise ValueError(f"--test-prior: expected a share of fakes in (0, 1), found {test_prior}.")
    videos = videos.sort_values("video_id", ignore_index=True)
    evidence, positions = gather_evidence(FrameGroups.of(predictions), videos, advance=advance)
    nested = tune_nested(evidence, positions, videos, test_prior=test_prior, seed=seed, advance=advance)
    report = report_tuning(nested, test_prior=test_prior, seed=seed)
    figures = {row["name"]: row for row in report["figures"]}
    if gain_is_certain(Comparison(**report["tuned_against_untuned"]), report["videos"]["groups"]):
        rule, taken, decision = nested.final.rule, TUNED, "the tuned rule is taken"
    else:
        rule = shift_rule(ScoringRule(experiments=evidence.experiments), videos["label"], test_prior)
        taken, decision = UNTUNED, "the gain of tuning on held-out folds is within its error: the untuned rule is kept"
    measured = {name: figures[taken][name] for name in ("log_loss", "auc")}
    return Tuned(replace(rule, out_of_fold=measured), {**report, "decision": decision}, nested.videos)


def report_tuning(nested: Nested, *, test_prior: float | None, seed: int) -> dict[str, Any]:
    """Describe every comparison of a tuning.

    Returns:
        `videos`: their numbers. `stages`: for every stage the candidates and the choice on all folds. `folds`: what was
        chosen without each fold. `figures`: log loss with its 95 % interval, AUC, Brier score and calibration error of
        the constant 0.5, the base rate (of the other folds), every experiment alone, the equal mean untuned, the tuned
        rule nested, and the tuned rule on the videos it was fitted on. `tuned_against_untuned`: the paired comparison.
        `test_prior`: with one, the log losses expected at that share of fakes.
    """
    videos = nested.videos
    labels, groups = videos["label"].to_numpy(), videos["group"].to_numpy()
    comparison = compare_log_loss(
        labels, videos["tuned"].to_numpy(), videos["untuned"].to_numpy(), groups, clip=EXACT, seed=seed
    )
    return {
        "videos": {
            "number": len(videos),
            "fakes": int(labels.sum()),
            "without_face": int(videos["without_face"].sum()),
            "groups": int(videos["group"].nunique()),
            "folds": int(videos["fold"].nunique()),
        },
        "experiments": list(nested.final.rule.experiments),
        "stages": [asdict(decision) for decision in nested.final.decisions],
        "folds": [{"fold": fold, **_chosen(choice)} for fold, choice in nested.choices.items()],
        "figures": [_figures(name, labels, of, groups, seed) for name, of in _answers(videos).items()],
        "tuned_against_untuned": asdict(comparison),
        "test_prior": None if test_prior is None else _at_prior(videos, test_prior),
    }


def _answers(videos: pd.DataFrame) -> dict[str, np.ndarray]:
    """Row name -> (N,) P(fake)."""
    label = videos["label"]
    sums, sizes = label.groupby(videos["fold"]).agg("sum"), label.groupby(videos["fold"]).size()
    return {
        "constant 0.5": np.full(len(videos), 0.5),
        "base rate": videos["fold"].map((label.sum() - sums) / (len(videos) - sizes)).to_numpy(np.float64),
        **{name: videos[name].to_numpy() for name in videos if name.startswith("only ")},
        UNTUNED: videos["untuned"].to_numpy(),
        TUNED: videos["tuned"].to_numpy(),
        "tuned, on the videos it was fitted on": videos["in_sample"].to_numpy(),
    }


def _figures(name: str, labels: np.ndarray, answers: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, Any]:
    metrics = video_metrics(labels, answers, clip=EXACT)
    interval = bootstrap_log_loss(labels, answers, groups, clip=EXACT, seed=seed)
    measured = {metric: getattr(metrics, metric) for metric in ("auc", "brier", "calibration_error")}
    return {"name": name, "log_loss": metrics.log_loss, **asdict(interval), **measured}


def _chosen(choice: Choice) -> dict[str, Any]:
    rule = choice.rule
    return {
        "aggregator": choice.recipe,
        "ensemble": f"{rule.ensemble.method}, {rule.ensemble.space}",
        "calibration": rule.calibration.method,
        "clip": rule.clip,
    }


def _at_prior(videos: pd.DataFrame, test_prior: float) -> dict[str, float]:
    """Log loss of a test set with that share of fakes: the two classes' own log losses, weighed by it."""
    classes = [videos[videos["label"] == label] for label in (0, 1)]

    def expected(column: str) -> float:
        real, fake = (log_loss(of["label"].to_numpy(), of[column].to_numpy(), clip=EXACT) for of in classes)
        return (1 - test_prior) * real + test_prior * fake

    return {
        "training": float(videos["label"].mean()),
        "test": test_prior,
        "log_loss_untuned": expected("untuned"),
        "log_loss_tuned": expected("tuned"),
        "log_loss_tuned_shifted": expected("tuned_shifted"),
    }


def describe_tuning(rule: ScoringRule, report: dict[str, Any]) -> str:
    """The report as Markdown."""
    count = report["videos"]
    lines = [
        f"{count['number']} videos ({count['fakes']} fake, {count['without_face']} without a face, which count with the"
        f" prior {rule.prior:g}) in {count['groups']} groups and {count['folds']} folds; "
        f"{len(report['experiments'])} experiments: {', '.join(report['experiments'])}",
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
    lines += _table(["without fold", "aggregator", "ensemble", "calibration", "clip"], rows)
    rows = []
    for row in report["figures"]:
        others = [_number(row[key]) for key in ("auc", "brier", "calibration_error")]
        rows.append([row["name"], f"{row['log_loss']:.4f} [{row['low']:.4f}, {row['high']:.4f}]", *others])
    lines += _table(["out of fold", "log loss [95 % interval]", "AUC", "Brier", "calibration error"], rows)
    difference = report["tuned_against_untuned"]
    lines += [
        f"tuned - untuned: {difference['difference']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}], "
        f"better in {difference['probability_better']:.0%} of resamples",
        report["decision"],
    ]
    if (shift := report["test_prior"]) is not None:
        lines += [
            f"at {shift['test']:.0%} fakes instead of {shift['training']:.0%}, expected log loss: untuned "
            f"{shift['log_loss_untuned']:.4f}, tuned {shift['log_loss_tuned']:.4f}, tuned and shifted "
            f"{shift['log_loss_tuned_shifted']:.4f}"
        ]
    return "\n".join([*lines, f"rule: {describe_rule(rule)}"])


def describe_candidates() -> str:
    """Names of everything that tuning compares, for `multiattn tune --help`."""
    compared = {"aggregators": RECIPES, "ensembles": ensemble_candidates(), "calibrations": CALIBRATORS}
    lines = [textwrap.wrap(f"{kind}: {', '.join(names)}", 96) for kind, names in compared.items()]
    return "\n    ".join(["Compared are", *(line for wrapped in lines for line in wrapped)])


def describe_rule(rule: ScoringRule) -> str:
    """The rule in one line."""
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
    if rule.prior_shift is not None:
        parts.append(f"prior shift {rule.prior_shift.training:.3f} -> {rule.prior_shift.test:g}")
    return "; ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.4f}"


def _table(header: list[str], rows: list[list[Any]]) -> list[str]:
    return [markdown_table(header, rows, padded=True), ""]
