"""The folds of an experiment at a glance: how each ended, and its best validation."""

from pathlib import Path

import pandas as pd

from multiattn.config import Experiment
from multiattn.training.fold_runs import FoldOutcome
from multiattn.training.validation import PREFIXES


def describe_folds(experiment: Experiment, folder: Path, outcomes: list[FoldOutcome]) -> str:
    """A table for a terminal, a line a fold.

    Args:
        folder: `runs/<experiment>`.
        outcomes: how the folds of this command ended; those not among them are left out.
    """
    metric = experiment.validation.metric
    rows = [
        f"{'fold':>4}  {'ended':<10}{'epochs':>7}{metric:>24}{'AUC':>9}  {'epoch':>5}  {'weights':<8}{'minutes':>8}"
    ]
    for outcome in outcomes:
        path = folder / f"fold{outcome.fold}" / "epochs.csv"
        ended = "failed" if outcome.error else "well"
        if not path.is_file():
            rows.append(f"{outcome.fold:>4}  {ended:<10}{0:>7}")
            continue
        history = pd.read_csv(path)
        best, value, auc = _best(history, experiment)
        minutes = history.groupby("epoch")["seconds"].last().sum() / 60
        rows.append(
            f"{outcome.fold:>4}  {ended:<10}{history['epochs_done'].max():>7g}{value:>24.4f}{auc:>9.4f}"
            f"  {best['epoch']:>5}  {best['candidate']:<8}{minutes:>8.1f}"
        )
    failures = [f"fold {outcome.fold} failed: {outcome.error}" for outcome in outcomes if outcome.error]
    return "\n".join([*rows, *failures])


def _best(history: pd.DataFrame, experiment: Experiment) -> tuple[pd.Series, float, float]:
    """The row of the best validation, and its candidate's metric and AUC."""
    settings = experiment.validation
    alone = {phase.name for phase in experiment.schedule if phase.objective == "backbone"}
    rows = history[~history["phase"].isin(alone)]
    rows = rows if len(rows) else history
    prefixes = rows["candidate"].map(PREFIXES)
    values = pd.Series(
        [rows.loc[index, f"{prefix}{settings.metric}"] for index, prefix in prefixes.items()], index=rows.index
    )
    index = values.idxmax() if settings.higher_is_better else values.idxmin()
    return rows.loc[index], float(values[index]), float(rows.loc[index, f"{prefixes[index]}auc"])
