"""Several runs on a validation split: which is the best, by one number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from multiattn.inference.evaluation.measures import ALL, Figures
from multiattn.inference.scoring_file import experiment_name

Criterion = Literal["log_loss", "auc"]


@dataclass(frozen=True)
class Choice:
    """The best of several runs."""

    best: str
    table: pd.DataFrame
    """run, log_loss, auc (means over data sets, NaN where one class is missing), num_datasets; the best first."""
    criterion: Criterion

    def describe(self) -> str:
        """The table, and the choice in words."""
        words = self.table.to_string(index=False, float_format="%.4f")
        return f"{words}\nchosen by {self.criterion} of videos: {self.best}"


def choose_run(measured: dict[str, pd.DataFrame], criterion: Criterion) -> Choice:
    """The run with the lowest log loss or the highest AUC of videos, as a mean over data sets; equals by name.

    Args:
        measured: run -> its table of `measures.measure`, all of the same data sets.

    Raises:
        ValueError: AUC where a data set has one class only.
    """
    rows = []
    for run, table in measured.items():
        figures, datasets = Figures(table), table["dataset"].unique()
        of = {
            metric: sum(figures.of(name, ALL, "", "video", metric)[0] for name in datasets) / len(datasets)
            for metric in ("log_loss", "auc")
        }
        rows.append({"run": run, **of, "num_datasets": len(datasets)})
    table = pd.DataFrame(rows)
    if table[criterion].isna().any():
        raise ValueError(f"--choose {criterion}: a data set has one class only. Choose by log_loss.")
    order = table.sort_values([criterion, "run"], ascending=[criterion == "log_loss", True], ignore_index=True)
    return Choice(order["run"].iloc[0], order, criterion)


def require_choosable(runs: Sequence[Path], split: str, criterion: Criterion) -> None:
    """Refuse a choice on a test split, or among fewer than two experiments.

    Raises:
        ValueError: either.
    """
    if split != "val":
        raise ValueError(
            f"--choose {criterion} --split {split}: a test split never selects anything: what was chosen on it looks "
            "better than it is. Choose with --split val, then evaluate the chosen run on the test split."
        )
    names = sorted({experiment_name(run) for run in runs})
    if len(names) < 2 or len(names) < len(runs):
        raise ValueError(
            f"--choose {criterion}: expected two experiments or more to choose among, each once, found "
            f"{', '.join(names)} in {len(runs)} --runs."
        )
