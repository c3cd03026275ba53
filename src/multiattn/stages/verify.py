"""A submission.csv against the competition's sample, before it is uploaded: rows, order, probabilities.

multiattn verify submissions/dfdc_b4 --sample-submission /data/sample_submission.csv
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Positional, parse, results
from multiattn.runtime.layout import SUBMISSION_FILE


@dataclass(frozen=True, kw_only=True)
class Options:
    submission: Positional[Path]
    """A submission.csv, or the submission folder it lies in."""
    sample_submission: Path
    """The competition's sample."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="verify", doc=__doc__)
    from multiattn.inference.submit.inputs import describe_submission, require_rows
    from multiattn.tables import SAMPLE, SUBMISSION  # with pandas

    path = options.submission / SUBMISSION_FILE if options.submission.is_dir() else options.submission
    submission, sample = SUBMISSION.read(path), SAMPLE.read(options.sample_submission)
    require_rows(submission, sample, path)
    results(f"{path}: {describe_submission(submission)}")
