"""Folds that were trained in several places -> one folder of runs.

    multiattn merge mine/runs yours/runs --out runs

Each is a folder of experiments, as `--runs` of `multiattn train`, an experiment's or a fold's. Folds of one experiment
must have the same settings, folds table and crop recipe; a fold that two places have with other bytes is refused. One
whose training left neither weights nor a state is left out and named; an unfinished one comes along, named so, and the
same `multiattn train` goes on with it. The copies are compared with their sources by SHA-256. The same command
continues after a kill.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Positional, parse, results
from multiattn.runtime import layout
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    sources: Positional[tuple[Path, ...]]
    """Folders of runs, of experiments or of folds."""
    out: Path
    """The folder of runs to fill: <out>/<experiment>/fold<k>; what is there stays."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="merge", doc=__doc__)
    folders = [folder for source in options.sources for folder in layout.folds_of_runs(source)]
    from multiattn.inference.predictor import keep_out_of_fold
    from multiattn.training.merging import is_trained, is_unfinished, merge_folds

    trained = list(filter(is_trained, folders))
    not_trained = ", ".join(str(folder) for folder in folders if folder not in trained)
    if not trained:
        raise ValueError(
            f"{not_trained}: expected trained folds, found none with {layout.BEST_WEIGHTS} or {layout.STATE_FILE}. "
            "Train them with `multiattn train`. Nothing was copied."
        )
    copied = merge_folds(trained, options.out)
    lines = [f"{layout.fold_name(target)}: copied" for target in copied]
    lines += [f"not trained, left out: {not_trained}"] if not_trained else []
    for name in sorted({layout.experiment_name(folder) for folder in trained}):
        folds = list(filter(is_trained, layout.folds_below(options.out / name, layout.EXPERIMENT_FILE)))
        unfinished = ", ".join(folder.name for folder in filter(is_unfinished, folds))
        going_on = f", unfinished: {unfinished} (the same `multiattn train` goes on there)" if unfinished else ""
        if layout.folds_below(options.out / name, layout.HELD_OUT_FILE):
            keep_out_of_fold(options.out / name)  # the answers of all folds, where each place had its own
        lines.append(
            f"{options.out / name} has {counted(len(folds), 'fold')}{going_on}; scoring.json and card.md are not taken "
            f"along: multiattn tune --runs {options.out / name}"
        )
    results(*lines)
