"""Runs + test videos -> submissions/NAME: submission.csv, card.json, and the predictions behind them.

submission.csv is complete from the start (the prior in each row) and gets better as videos are finished; whenever this
is killed there is a submission, and the same command goes on from there: first with what has no answer yet, then with
what was answered from fewer frames or models for want of time.

    multiattn submit --runs runs/dfdc_b4 --videos-dir /data/test_videos \\
        --sample-submission /data/sample_submission.csv --out submissions/dfdc_b4
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import DetectorWeights, Device, Jobs, PredictPrecision, Scoring, parse, results
from multiattn.inference.submit.inputs import SubmitInputs, write_first_answer
from multiattn.runtime.layout import SUBMISSION_FILE


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `multiattn submit`."""

    runs: tuple[Path, ...]
    """runs/<experiment>, or several; their predictions are blended."""
    videos_dir: Path
    """The folder of test videos."""
    sample_submission: Path
    """The competition's sample: its rows, in its order, are answered."""
    out: Path
    """The submission folder, submissions/NAME."""
    scoring: Scoring = None
    device: Device = "auto"
    precision: PredictPrecision = "auto"
    jobs: Jobs = None
    budget_hours: float | None = None
    """Deliver within so many hours of this process's start: with fewer frames, then fewer models, then priors, as the
    time goes (default: no limit)."""
    write_seconds: float = 30.0
    """Between two writings of the submission."""
    weights: DetectorWeights = None


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="submit", doc=__doc__)
    write_first_answer(options.sample_submission, options.out)
    from multiattn.inference.scoring_file import choose_scoring  # with torch, which takes seconds
    from multiattn.inference.submit.run import run_submit

    result = run_submit(
        SubmitInputs(
            runs=options.runs,
            videos_dir=options.videos_dir,
            sample_submission=options.sample_submission,
            out=options.out,
            rule=choose_scoring(options.runs, options.scoring),
            device=options.device,
            precision=options.precision,
            jobs=options.jobs,
            weights=options.weights,
            budget_hours=options.budget_hours,
            write_seconds=options.write_seconds,
        )
    )
    coverage = ", ".join(f"{count} {status}" for status, count in result.coverage.items())
    results(
        f"{len(result.submission)} rows in {options.out / SUBMISSION_FILE}: {coverage}",
        *(str(change) for change in result.plan_changes),
        *_reduced(result.reduced),
    )


def _reduced(count: int) -> list[str]:
    return (
        [f"{count} answered from fewer frames or models; the same command with time left improves them"]
        if count
        else []
    )
