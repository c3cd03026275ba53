"""A run -> its model card in Markdown: data, training, figures, what it has not seen, use and licence.

multiattn card --runs runs/dfdc_b4 --evaluations evaluations/celebdf
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multiattn.command_line import parse, results
from multiattn.runtime.files import write_text
from multiattn.runtime.layout import DIGESTS_FILE, MODEL_CARD_FILE, experiment_folder, named_run


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: Path
    """runs/<experiment>, one of its folds, or a packaged run by its name."""
    out: Path | None = None
    """The Markdown file to write (default: card.md in the folder of the experiment; none for a packaged run)."""
    evaluations: tuple[Path, ...] = ()
    """Folders that `multiattn evaluate --out` wrote for this run: their figures of videos."""
    robustness: Path | None = None
    """The folder that `multiattn robustness --out` wrote for this run."""
    videos: Path | None = None
    """The videos.csv its folds were made of: counts by split too, and what was not used."""
    source: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME=SET")] = ()
    """The published data set behind a name in the tables, as crops=dfdc; once for each."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="card", doc=__doc__)
    from multiattn.config.settings import look_up
    from multiattn.datasets.sources import SOURCES
    from multiattn.evaluation.card import model_card

    sources = dict(word.partition("=")[::2] for word in options.source)
    for name in sources.values():
        look_up(SOURCES, name, "published data set")
    run = named_run(options.runs)
    beside = {"evaluations": options.evaluations, "robustness": options.robustness, "videos": options.videos}
    text = model_card(run, sources=sources, **beside)
    path = options.out or experiment_folder(run) / MODEL_CARD_FILE
    if options.out is None and (path.parent / DIGESTS_FILE).is_file():
        results(text, f"not written: {path.parent} is a packaged run, which has its own; name a file with --out")
        return
    write_text(path, text)
    results(text, f"written: {path}")
