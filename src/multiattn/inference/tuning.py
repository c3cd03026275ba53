"""Runs -> the tuned scoring rule: reads their out-of-fold predictions and shows how far tuning has come."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from multiattn.inference.out_of_fold import read_out_of_fold
from multiattn.inference.runs import experiment_name
from multiattn.runtime.progress import progress_bar
from multiattn.scoring.tuning import Tuned, num_steps, tune


def tune_runs(runs: Sequence[Path], *, test_prior: float | None = None, seed: int = 0) -> Tuned:
    """Tune the rule of some experiments on their `oof.parquet`, which only holds videos of the folds tables: a test
    split is in none of them (`datasets/folds.py`), and predictions of any other video are refused.

    Args:
        runs: folders of experiments of one folds table.
        test_prior, seed: as of `tune`.

    Raises:
        FileNotFoundError: a fold has no predictions yet.
        ValueError: two runs have one name, or one of them is a single fold; else as `tune` and `read_out_of_fold`.
    """
    names = Counter(experiment_name(path) for path in runs)
    if twice := [name for name, number in names.items() if number > 1]:
        raise ValueError(
            f"--runs: expected experiments of different names, found {', '.join(twice)} more than once; their weights "
            "could not be told apart. Name each experiment's folder once, not its folds; rename one of two."
        )
    held_out = read_out_of_fold(*map(Path, runs))
    with progress_bar(num_steps(held_out.videos), "tune", "steps") as progress:
        return tune(held_out.predictions, held_out.videos, test_prior=test_prior, seed=seed, advance=progress.update)
