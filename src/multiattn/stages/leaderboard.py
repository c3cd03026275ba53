"""Submissions + labels -> leaderboard.md, .csv, .png and .html, beside the published figures that are comparable.

multiattn leaderboard --submissions submissions --labels /data/test/labels.csv
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import parse, results
from multiattn.config.choices import ScaleName
from multiattn.runtime.files import write_csv, write_text


@dataclass(frozen=True, kw_only=True)
class Options:
    submissions: Path = Path("submissions")
    """The folder of submission folders."""
    labels: Path | None = None
    """`filename,label` of the test videos; without it only out-of-fold figures are shown."""
    groups: Path | None = None
    """`filename,group`: videos that the bootstrap draws as a whole, such as an original and its fakes."""
    scale: ScaleName = "auto"
    """Which published figures are comparable. `auto` knows the 5,000 released test videos and the 4,000 of the public
    leaderboard by their file names; the three scales are never mixed."""
    resamples: int = 10_000
    """Resamples of the bootstrap."""
    out: Path | None = None
    """Where leaderboard.md, .csv, .png and .html go (default: the submissions folder)."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="leaderboard", doc=__doc__)
    from multiattn.evaluation.leaderboard import score_submissions
    from multiattn.figures.comparisons import draw_leaderboard, leaderboard_page
    from multiattn.figures.page import write_png

    board = score_submissions(
        options.submissions, options.labels, options.groups, scale=options.scale, resamples=options.resamples
    )
    out = options.out or options.submissions
    write_text(out / "leaderboard.md", board.markdown())
    write_csv(out / "leaderboard.csv", board.table())
    figure = draw_leaderboard(board)
    write_png(figure, out / "leaderboard.png")
    write_text(out / "leaderboard.html", leaderboard_page(board, figure))
    results(board.markdown(), f"written: {out / 'leaderboard.md'}, .csv, .png, .html")
