"""Runs + test videos -> submissions/NAME: submission.csv, card.json, and the predictions behind them.

submission.csv is complete from the start (the prior in each row) and gets better as videos are finished; whenever this
is killed there is a submission, and the same command goes on from there: first with what has no answer yet, then with
what was answered from fewer frames or models for want of time.

    multiattn submit --runs runs/dfdc_b4 --videos-dir /data/test_videos \\
        --sample-submission /data/sample_submission.csv --out submissions/dfdc_b4
    multiattn submit --runs dfdc_lite --videos-dir clips --out submissions/clips    # every video of a folder
"""

from dataclasses import dataclass

from multiattn.command_line import parse, results
from multiattn.inference.outside import require_answers
from multiattn.inference.submit.inputs import SubmitInputs, write_first_answer
from multiattn.runtime.layout import SUBMISSION_FILE
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options(SubmitInputs):
    dry_run: bool = False
    """Say what would be done, in which time and memory, and write nothing."""


def main(argv: list[str]) -> None:
    inputs = parse(Options, argv, stage="submit", doc=__doc__)
    require_answers(inputs.runs, inputs.scoring, inputs.outside_files)
    if inputs.dry_run:
        from multiattn.inference.submit.dry_run import describe_submit

        results(*describe_submit(inputs))
        return
    write_first_answer(inputs)
    from multiattn.inference.submit.run import run_submit  # with torch, which takes seconds

    result = run_submit(inputs)
    coverage = ", ".join(f"{count} {status}" for status, count in result.coverage.items())
    where = f"{counted(len(result.submission), 'row')} in {inputs.out / SUBMISSION_FILE}"
    if not result.delivered:
        where = f"{inputs.out / SUBMISSION_FILE} keeps its former answers, for this run has fewer so far"
    lines = [f"{where}: {coverage}"]
    lines += map(str, result.plan_changes)
    if result.reduced:
        lines.append(f"{result.reduced} from fewer frames or models; the same command with time left improves them")
    results(*lines)
