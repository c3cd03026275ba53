"""Runs + labelled faces of any data set -> metrics with intervals: evaluation.md, metrics.csv and report.html.

    multiattn evaluate --runs runs/ffpp_b4 --videos data/celebdf.csv --faces data/faces/celebdf
    multiattn evaluate --runs runs/a runs/b --videos data/ffpp.csv --faces data/faces/ffpp --split val --choose log_loss

Several runs are blended by the scoring rule; with --choose each is measured by itself, and the best one named.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiattn.command_line import parse, results
from multiattn.evaluation.run import (
    Criterion,
    Evaluation,
    EvaluationInputs,
    choose_among,
    evaluate_runs,
    require_choosable,
)
from multiattn.figures.evaluation import evaluation_page
from multiattn.runtime.files import atomic_path, write_text
from multiattn.runtime.layout import VIDEO_PREDICTIONS_FILE
from multiattn.tables import VIDEO_PREDICTIONS


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `multiattn evaluate`."""

    runs: tuple[Path, ...]
    """runs/<experiment>, or several."""
    videos: Path
    """A videos.csv of `multiattn index`, of one data set or several: splits and labels are those it has."""
    faces: tuple[Path, ...]
    """The faces folders with these videos."""
    out: Path | None = None
    """Where the report goes, and the predictions, which are made once (default: in the folder of the first run,
    evaluation_<name of videos.csv>_<split>)."""
    split: Literal["test", "val"] = "test"
    """Of each data set; one without any split is tested whole."""
    choose: Criterion | None = None
    """Measure each run by itself and name the best, by log loss or AUC of videos; with --split val only."""
    scoring: str | None = None
    """The scoring.json of `multiattn tune`; `none` for plain means (default: the one in a run's folder, if it was tuned
    for these runs)."""
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto`: half precision on a GPU; on a CPU float32, or bf16 where the processor has it, a short trial is faster
    and P(fake) stays within 0.002."""


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="evaluate", doc=__doc__)
    if options.choose is not None:
        require_choosable(options.runs, options.split, options.choose)
    inputs = EvaluationInputs(
        runs=options.runs,
        videos=options.videos,
        faces=options.faces,
        out=options.out or options.runs[0] / f"evaluation_{options.videos.stem}_{options.split}",
        split=options.split,
        scoring=options.scoring,
        device=options.device,
        precision=options.precision,
    )
    lines = []
    if options.choose is None:
        evaluation = evaluate_runs(inputs)
    else:
        choice, evaluation = choose_among(inputs, options.choose)
        lines.append(choice.describe())
        with atomic_path(inputs.out / "choice.csv") as temporary:
            choice.table.to_csv(temporary, index=False)
    _write(evaluation, inputs.out)
    results(evaluation.markdown(), *lines, f"written: {inputs.out}/evaluation.md, metrics.csv, report.html")


def _write(evaluation: Evaluation, out: Path) -> None:
    write_text(out / "evaluation.md", evaluation.markdown())
    with atomic_path(out / "metrics.csv") as temporary:
        evaluation.metrics.to_csv(temporary, index=False)
    write_text(out / "report.html", evaluation_page(evaluation))
    VIDEO_PREDICTIONS.write(evaluation.video_predictions(), out / VIDEO_PREDICTIONS_FILE)
