"""Out-of-fold predictions -> the scoring rule that is used, with what was compared on the way."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from multiattn.scoring.bootstrap import Comparison
from multiattn.scoring.frame_groups import FrameGroups
from multiattn.scoring.nested_tuning import STAGES, gather_evidence, shift_rule, tune_nested
from multiattn.scoring.recipes import RECIPES
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.selection import gain_is_certain
from multiattn.scoring.tuning_report import TUNED, UNTUNED, report_tuning


@dataclass(frozen=True, eq=False)
class Tuned:
    """A rule, how it was arrived at, and what it answered."""

    rule: ScoringRule
    report: dict[str, Any]
    """Of `report_tuning`, and `decision`: whether the tuned rule was taken."""
    videos: pd.DataFrame
    """Of `Nested.videos`."""


def num_steps(videos: pd.DataFrame) -> int:
    """How often `tune` calls `advance` for these videos."""
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
