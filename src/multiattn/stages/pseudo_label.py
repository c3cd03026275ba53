"""Runs + unlabelled videos -> a folds table with their confident answers as labels, which are never validated on.

    multiattn pseudo-label --runs runs/dfdc_b4 --faces data/faces/all --folds folds/dfdc.csv --out folds/dfdc_pseudo.csv
    multiattn train dfdc_b4 --name dfdc_b4_pseudo --faces data/faces/all --folds folds/dfdc_pseudo.csv --fold all

A video is labelled where the models of each fold by themselves are confident, and of one opinion.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Devices, FacesFolder, PredictPrecision, Scoring, parse, results
from multiattn.runtime.layout import named_run
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: tuple[Path, ...]
    """runs/<experiment>, or several, blended by the scoring rule; the labels are for training the same folds."""
    faces: FacesFolder
    folds: Path
    """The folds CSV that the runs were trained with."""
    out: Path
    """The folds CSV to write; predictions are kept beside it."""
    confidence: float = 0.95
    """Least P of a label, by the models of each fold."""
    balance: bool = True
    """As many fakes as reals, the surest of either."""
    scoring: Scoring = None
    device: Devices = "auto"
    precision: PredictPrecision = "auto"


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="pseudo-label", doc=__doc__)
    from multiattn.evaluation.pseudo_labels import pseudo_label

    rows, left_out = pseudo_label(**{**vars(options), "runs": tuple(map(named_run, options.runs))})
    fakes = int(rows["label"].sum())
    results(f"{counted(len(rows), 'pseudo-labelled video')} ({fakes} fake) more in {options.out}")
    if left_out:
        results(f"left out: {left_out}")
