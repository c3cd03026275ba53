"""Runs + labelled faces of any data set -> metrics with intervals: evaluation.md, metrics.csv and report.html.

    multiattn evaluate --runs runs/ffpp_b4 --videos data/celebdf.csv --faces data/faces/celebdf
    multiattn evaluate --runs runs/a runs/b --videos data/ffpp.csv --faces data/faces/ffpp --split val --choose log_loss

Several runs are blended by the scoring rule; with --choose each is measured by itself, and the best one named.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Devices, PredictPrecision, RuleTta, Scoring, parse, results
from multiattn.config.choices import Criterion, Split
from multiattn.runtime.files import write_csv, write_text
from multiattn.runtime.layout import VIDEO_PREDICTIONS_FILE, named_run


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: tuple[Path, ...]
    """runs/<experiment>, or several; or a packaged run by its name."""
    videos: Path
    """A videos.csv of `multiattn index`, of one data set or several: splits and labels are those it has."""
    faces: tuple[Path, ...]
    """The faces folders with these videos."""
    out: Path | None = None
    """Where the report goes, and the predictions, which are made once (default: in the folder of the first run,
    evaluation_<name of videos.csv>_<split>)."""
    split: Split = "test"
    """The split of each data set; one without any split is tested whole."""
    choose: Criterion | None = None
    """Measure each run by itself and name the best, by log loss or AUC of videos; with --split val only."""
    scoring: Scoring = None
    tta: RuleTta = None
    device: Devices = "auto"
    precision: PredictPrecision = "auto"


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="evaluate", doc=__doc__)
    from multiattn.evaluation.run import EvaluationInputs, evaluate_runs, require_choosable
    from multiattn.figures.evaluation import evaluation_page
    from multiattn.tables import VIDEO_PREDICTIONS

    if options.choose is not None:
        require_choosable(options.runs, options.split, options.choose)
    runs = tuple(map(named_run, options.runs))
    # A packaged run stays as it is, and nothing of its name is made here, which would go before it.
    beside = options.runs[0] if runs[0] == options.runs[0] else Path()
    out = options.out or beside / f"evaluation_{options.videos.stem}_{options.split}"
    given = {name: value for name, value in vars(options).items() if name != "choose"}
    inputs, lines = EvaluationInputs(**{**given, "runs": runs, "out": out}), []
    evaluation, choice = evaluate_runs(inputs, choose=options.choose)
    if choice is not None:
        lines.append(choice.describe())
        write_csv(out / "choice.csv", choice.table)
    write_text(out / "evaluation.md", evaluation.markdown())
    write_csv(out / "metrics.csv", evaluation.metrics)
    write_text(out / "report.html", evaluation_page(evaluation))
    VIDEO_PREDICTIONS.write(evaluation.video_predictions(), out / VIDEO_PREDICTIONS_FILE)
    results(evaluation.markdown(), *lines, f"written: {out}/evaluation.md, metrics.csv, report.html")
