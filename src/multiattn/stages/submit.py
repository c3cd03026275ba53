"""Runs + test videos -> submissions/NAME: submission.csv, card.json, and the predictions behind them.

    multiattn submit --runs runs/dfdc_b4 --videos-dir /data/test_videos \\
        --sample-submission /data/sample_submission.csv --out submissions/dfdc_b4
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiattn.command_line import parse, results
from multiattn.inference.kernel import KernelInputs, run_kernel
from multiattn.inference.scoring_file import choose_scoring


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
    faces: Path | None = None
    """Where faces of the test videos are kept (default: data/faces/NAME)."""
    scoring: str | None = None
    """The scoring.json of `multiattn tune`; `none` for plain means (default: that of the first run, if it was tuned for
    these runs)."""
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    jobs: int | None = None
    """Processes that extract faces."""
    weights: Path | None = None
    """The weights file of the detector the runs' faces were found with (mtcnn needs none)."""


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="submit", doc=__doc__)
    result = run_kernel(
        KernelInputs(
            runs=options.runs,
            videos_dir=options.videos_dir,
            sample_submission=options.sample_submission,
            out=options.out,
            faces=options.faces or Path("data/faces") / options.out.name,
            rule=choose_scoring(options.runs, options.scoring),
            device=options.device,
            precision=options.precision,
            jobs=options.jobs,
            weights=options.weights,
        )
    )
    coverage = ", ".join(f"{count} {status}" for status, count in result.coverage.items())
    results(f"{len(result.submission)} rows in {options.out / 'submission.csv'}: {coverage}")
