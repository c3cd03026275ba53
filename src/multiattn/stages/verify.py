"""A submission.csv against the competition's sample, before it is uploaded: rows, order, probabilities.

multiattn verify submissions/dfdc_b4 --sample-submission /data/sample_submission.csv
multiattn verify submissions/mine        # of a folder of videos without a sample: each name once, and probabilities
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Positional, parse, results
from multiattn.runtime.layout import SUBMISSION_FILE


@dataclass(frozen=True, kw_only=True)
class Options:
    submission: Positional[Path]
    """A submission.csv, or the submission folder it lies in."""
    sample_submission: Path | None = None
    """The competition's sample, whose rows it has to have."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="verify", doc=__doc__)
    from multiattn.tables import SAMPLE, SUBMISSION

    path = options.submission / SUBMISSION_FILE if options.submission.is_dir() else options.submission
    submission, has_sample = SUBMISSION.read(path), options.sample_submission is not None
    from multiattn.inference.submit.inputs import describe_submission, require_rows

    if has_sample:
        require_rows(submission, SAMPLE.read(options.sample_submission), path)
    results(f"{path}: {describe_submission(submission, fits_sample=has_sample)}")
