"""Runs + labelled faces -> their figures under distorted crops: robustness.csv and robustness.md.

multiattn robustness --runs runs/dfdc_b4 --videos data/videos.csv --faces data/faces/dfdc --split val --out robustness
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multiattn.command_line import DetectorWeights, Device, PredictPrecision, Scoring, parse, results
from multiattn.config.choices import Split
from multiattn.runtime.files import write_csv, write_text
from multiattn.runtime.layout import ROBUSTNESS_FILE, named_run


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: tuple[Path, ...]
    """runs/<experiment>, or several, blended by the scoring rule; or a packaged run by its name."""
    videos: Path
    """A videos.csv of `multiattn index`: splits and labels are those it has."""
    faces: tuple[Path, ...]
    """The faces folders with these videos."""
    out: Path
    """The folder to write; predictions are kept there, cell by cell."""
    split: Split = "test"
    """The split of each data set; one without any split is tested whole."""
    distortions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Only these, as `--distortions jpeg blur` (default: all; evaluation/README.md lists them)."""
    scoring: Scoring = None
    weights: DetectorWeights = None
    device: Device = "auto"
    precision: PredictPrecision = "auto"


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="robustness", doc=__doc__)
    from multiattn.evaluation.robustness import RobustnessInputs, describe_robustness, measure_robustness

    cells = measure_robustness(RobustnessInputs(**{**vars(options), "runs": tuple(map(named_run, options.runs))}))
    words = describe_robustness(cells)
    write_csv(options.out / ROBUSTNESS_FILE, cells)
    write_text((options.out / ROBUSTNESS_FILE).with_suffix(".md"), f"# Robustness\n\n{words}\n")
    results(words, f"written: {options.out}/{ROBUSTNESS_FILE} and .md")
