"""Submissions + labels -> leaderboard.md, .csv and .png, beside the published figures.

multiattn leaderboard --submissions submissions --labels /data/test/labels.csv
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import parse, results
from multiattn.figures.leaderboard import draw_leaderboard
from multiattn.inference.leaderboard import score_submissions
from multiattn.runtime import atomic_path, write_text


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `multiattn leaderboard`."""

    submissions: Path = Path("submissions")
    """The folder of submission folders."""
    labels: Path | None = None
    """`filename,label` of the test videos; without it only out-of-fold figures are shown."""
    out: Path | None = None
    """Where leaderboard.md, .csv and .png go (default: the submissions folder)."""


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="leaderboard", doc=__doc__)
    board = score_submissions(options.submissions, options.labels)
    out = options.out or options.submissions
    write_text(out / "leaderboard.md", board.markdown())
    with atomic_path(out / "leaderboard.csv") as temporary:
        board.table().to_csv(temporary, index=False)
    draw_leaderboard(board.table(), board.scored_on, out / "leaderboard.png")
    results(board.markdown(), f"written: {out / 'leaderboard.md'}, .csv, .png")
