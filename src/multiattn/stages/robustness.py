"""Runs + labelled faces -> their figures under distorted crops: robustness.csv, .md, .png and report.html.

multiattn robustness --runs runs/dfdc_b4 --videos data/videos.csv --faces data/faces/dfdc --split val --out robustness
multiattn robustness --runs runs/a --beside runs/b --videos data/videos.csv --faces data/faces/dfdc --out a_and_b
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multiattn.command_line import DetectorWeights, Device, PredictPrecision, RuleTta, Scoring, parse, results
from multiattn.config.choices import Split
from multiattn.runtime.files import write_csv, write_json, write_text
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
    beside: tuple[Path, ...] = ()
    """Other runs, blended likewise, to compare with on the same crops."""
    split: Split = "test"
    """The split of each data set; one without any split is tested whole."""
    distortions: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Only these, as `--distortions jpeg blur` (default: all of crops; evaluation/README.md lists them)."""
    on_videos: bool = False
    """Encode and scale the videos themselves too, and find and cut their faces anew: `video h264`, `video size`."""
    root: tuple[str, ...] = ()
    """Where the videos lie, if not where videos.json says: DIR, or NAME=DIR for each data set."""
    scoring: Scoring = None
    tta: RuleTta = None
    weights: DetectorWeights = None
    device: Device = "auto"
    precision: PredictPrecision = "auto"


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="robustness", doc=__doc__)
    from multiattn.evaluation.robustness import RobustnessInputs, measure_robustness
    from multiattn.evaluation.robustness_table import robustness_tables, summary_words
    from multiattn.figures.page import write_png
    from multiattn.figures.robustness import robustness_figure, robustness_page

    named = {name: tuple(map(named_run, getattr(options, name))) for name in ("runs", "beside")}
    found = measure_robustness(RobustnessInputs(**{**vars(options), **named}))
    path = options.out / ROBUSTNESS_FILE
    tables, summary = robustness_tables(found.cells, found.beside), summary_words(found.cells)
    words = "\n".join([*found.warnings, *(table.markdown() for table in tables), summary])
    write_csv(path, found.cells)
    write_json(path.with_suffix(".json"), {"checkpoints": found.checkpoints})
    write_text(path.with_suffix(".md"), f"# Robustness of {found.runs}\n\n{words}\n")
    write_png(robustness_figure(found), path.with_suffix(".png"))
    write_text(options.out / "report.html", robustness_page(found))
    results(words, f"written: {path}, .md, .json, .png and report.html")
