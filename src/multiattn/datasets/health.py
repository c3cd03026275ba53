"""The health report of a videos table: counts, leaks, and files that are not where the table says.

Three severities. A `leak` makes a score wrong: something seen in training is tested or validated on. A `warning` is
most likely a mistake. A `note` is worth knowing.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from multiattn.datasets.folds import Grouping
from multiattn.datasets.leaks import Finding, Severity, find_leaks, places
from multiattn.datasets.manifest import is_video_name
from multiattn.tables import FAKE, REAL, UNKNOWN

LABEL_NAMES = {REAL: "real", FAKE: "fake", UNKNOWN: "unknown"}
INDEX_AGAIN = "Run `multiattn index` again."


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """What `check_health` found."""

    counts: pd.DataFrame
    """Columns dataset, split, method, real, fake, unknown; a row each combination."""
    findings: list[Finding]
    """The worst first."""

    def count(self, severity: Severity) -> int:
        """How many findings of a severity there are."""
        return sum(finding.severity == severity for finding in self.findings)


def check_health(
    videos: pd.DataFrame,
    *,
    folds: pd.DataFrame | None = None,
    grouping: Grouping = "original",
    manifest: dict[str, Any] | None = None,
    roots: dict[str, Path] | None = None,
) -> HealthReport:
    """Look for leaks between splits and folds, copies, and files that are not where the table says.

    Args:
        videos: a `videos` table.
        folds: the `folds` table made of it.
        grouping: what the folds were grouped by; `part` says that parts must not span folds.
        manifest: what `videos.json` beside the table holds; None where there is none.
        roots: data set -> folder; the files of each are looked up there, one listing a folder.

    Raises:
        FileNotFoundError: a root that is not a folder.
    """
    findings = [
        *find_leaks(videos, folds, grouping),
        *_without_split(videos, places(videos, folds)),
        *_listing(videos, manifest),
    ]
    for dataset, root in (roots or {}).items():
        unlisted = (manifest or {}).get(dataset, {}).get("unlisted", [])
        findings += _files(videos[videos["dataset"] == dataset], dataset, Path(root), unlisted)
    findings.sort(key=lambda finding: get_args(Severity).index(finding.severity))
    return HealthReport(counts=count_videos(videos), findings=findings)


def count_videos(videos: pd.DataFrame) -> pd.DataFrame:
    """Videos by data set, split and method, one column a label."""
    keys = ["dataset", "split", "method"]
    counts = videos.groupby([*keys, "label"], observed=True).size().unstack(fill_value=0)
    return counts.reindex(columns=list(LABEL_NAMES), fill_value=0).rename(columns=LABEL_NAMES).reset_index()


def _without_split(videos: pd.DataFrame, place: pd.Series) -> list[Finding]:
    rows = videos[(videos["split"] == "") & (place == "train")]
    if rows.empty:
        return []
    counts = rows["dataset"].value_counts().sort_index()
    return [
        Finding(
            severity="note",
            name="no split",
            text=f"{len(rows)} videos are of no split and count as training videos: "
            + ", ".join(f"{count} of {dataset}" for dataset, count in counts.items())
            + ".",
            advice="To test on them, set their split to test in videos.csv before making folds.",
        )
    ]


def _listing(videos: pd.DataFrame, manifest: dict[str, Any] | None) -> list[Finding]:
    """What `multiattn index` saw and kept in videos.json."""
    if manifest is None:
        text = "there is no videos.json beside the table, so absent and unlisted clips are not known."
        return [Finding(severity="note", name="no videos.json", text=text, advice=INDEX_AGAIN)]
    findings = []
    counts = videos["dataset"].value_counts()
    for dataset, kept in manifest.items():
        absent, unlisted = kept.get("absent", []), kept.get("unlisted", [])
        if absent:
            text = f"{dataset}: {len(absent)} clips are listed but were absent when it was indexed."
            advice = "Finish the download and index again, or go on without them."
            findings.append(Finding(severity="warning", name="absent", text=text, advice=advice, cases=absent))
        if unlisted:
            text = f"{dataset}: {len(unlisted)} clips were present but no list names them; they are not in the table."
            advice = "See where they come from; a metadata.json or labels.csv may be missing."
            findings.append(Finding(severity="warning", name="unlisted", text=text, advice=advice, cases=unlisted))
        if kept.get("videos", counts.get(dataset, 0)) != counts.get(dataset, 0):
            text = f"{dataset}: {kept['videos']} videos were indexed, {counts.get(dataset, 0)} are in the table now."
            advice = "Fine if you took rows out on purpose; otherwise index again."
            findings.append(Finding(severity="note", name="table changed", text=text, advice=advice))
    return findings


def _files(videos: pd.DataFrame, dataset: str, root: Path, unlisted: list[str]) -> list[Finding]:
    """Compare the table with the folders it names, one listing each: a `stat` for each of DFDC's clips takes minutes
    on a network disk."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Pass where {dataset} lies as --root {dataset}=DIR.")
    listed = set(videos["path"])
    present: set[str] = set()
    for folder in sorted({path.rpartition("/")[0] for path in listed}):
        prefix = f"{folder}/" if folder else ""
        if (root / folder).is_dir():
            present.update(prefix + name for name in os.listdir(root / folder))  # noqa: PTH208 (a Path each is slow)
    vanished = sorted(listed - present)
    appeared = sorted(path for path in present - listed - set(unlisted) if is_video_name(path.rpartition("/")[2]))
    findings = []
    if vanished:
        text = f"{dataset}: {len(vanished)} of {len(listed)} files of the table are not below {root}."
        advice = f"If the data moved, pass --root {dataset}=DIR; if files were deleted, index again."
        findings.append(Finding(severity="warning", name="vanished", text=text, advice=advice, cases=vanished))
    if appeared:
        text = f"{dataset}: {len(appeared)} video files lie beside those of the table and are not in it."
        findings.append(Finding(severity="warning", name="appeared", text=text, advice=INDEX_AGAIN, cases=appeared))
    return findings
