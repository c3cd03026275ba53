"""Leak and health report of videos.csv and folds; exit code 1 on a leak.

multiattn check --videos data/videos.csv
multiattn check --videos data/videos.csv --folds folds/dfdc.csv --root dfdc=/data/dfdc
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multiattn.command_line import VideosTable, parse, require_at_least, results
from multiattn.runtime.text_tables import counted, terminal_table

if TYPE_CHECKING:
    import pandas as pd

    from multiattn.datasets.health import Finding

WIDTH = 120


@dataclass(frozen=True, kw_only=True)
class Options:
    videos: VideosTable
    folds: Path | None = None
    """The folds CSV made of it. What it holds is what is trained on; without it, all labelled videos outside the test
    split count as trained on."""
    root: tuple[str, ...] = ()
    """Where the data lies, if not where videos.json says: DIR where the table holds one data set, else NAME=DIR."""
    examples: int = 5
    """So many cases of each finding are shown."""


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="check", doc=__doc__)
    from multiattn.datasets.folds import read_grouping
    from multiattn.datasets.health import check_health, count_videos
    from multiattn.datasets.manifest import named_roots, read_manifest, roots_path
    from multiattn.tables import FOLDS, VIDEOS, left_out_lines

    require_at_least(options, 0, "examples")
    videos = VIDEOS.read(options.videos)
    manifest = read_manifest(options.videos) if roots_path(options.videos).is_file() else None
    datasets = sorted(videos["dataset"].unique())
    kept = {name: Path(entry["root"]) for name, entry in (manifest or {}).items() if name in datasets}
    roots = {name: root for name, root in kept.items() if root.is_dir()} | named_roots(options.root, datasets)
    findings = check_health(
        videos,
        folds=FOLDS.read(options.folds) if options.folds is not None else None,
        grouping=read_grouping(options.folds) if options.folds is not None else "original",
        manifest=manifest,
        roots=roots,
    )
    unlocated = [name for name in datasets if name not in roots]
    lines = _lines(findings, count_videos(videos), options, len(videos), unlocated)
    results(*lines, *left_out_lines(videos, options.videos))
    if any(finding.severity == "leak" for finding in findings):
        raise SystemExit(1)


def _lines(
    findings: "list[Finding]", counts: "pd.DataFrame", options: Options, num_videos: int, unlocated: list[str]
) -> list[str]:
    counts = counts.replace({"": "-"})
    numbers = [place for place, name in enumerate(counts) if name not in ("dataset", "split", "method")]
    lines = [
        f"{counted(num_videos, 'video')} in {options.videos}"
        + (f", folds of {options.folds}" if options.folds else ""),
        "",
        terminal_table([list(counts), *counts.itertuples(index=False)], right=numbers),
        "",
    ]
    for finding in findings:
        lines += _finding(finding, options.examples)
    severities = [finding.severity for finding in findings]
    numbers = [counted(severities.count(severity), severity) for severity in ("leak", "warning", "note")]
    unchecked = f" Files were not checked: {', '.join(unlocated)} (no root here; pass --root)." if unlocated else ""
    return [*lines, ", ".join(numbers) + "." + unchecked]


def _finding(finding: "Finding", examples: int) -> list[str]:
    """`LEAK  what: sentence`, then cases and what to do, indented."""
    head = f"{finding.severity.upper():<8}{finding.name}: {finding.text}"
    indent = " " * 8
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=indent)
    lines += [f"{indent}  {case}" for case in finding.cases[:examples]]
    if examples and len(finding.cases) > examples:
        lines.append(f"{indent}  and {len(finding.cases) - examples} more (--examples {len(finding.cases)} shows all)")
    return [*lines, *textwrap.wrap(f"-> {finding.advice}", WIDTH, initial_indent=indent, subsequent_indent=indent), ""]
