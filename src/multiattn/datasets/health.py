"""The health report of a videos table and its folds: counts, leaks, and files that are not where the table says.

Three severities. A `leak` makes a score wrong: something seen in training is tested or validated on. A `warning` is
most likely a mistake. A `note` is worth knowing. With folds, what the folds hold is what is trained on; without, all
labelled videos outside the test split are, as `multiattn folds` would have it.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from multiattn.datasets import deeperforensics, dfdc, ffpp
from multiattn.datasets.folds import Grouping
from multiattn.datasets.manifest import is_video_name, video_files
from multiattn.runtime.crop_files import is_archive_name
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, REAL, UNKNOWN

Severity = Literal["leak", "warning", "note"]
KAGGLE_PUBLIC_TEST = "test_videos"
KAGGLE_PARTS = re.compile(rf"{dfdc.PART_NAME}0?[012]")
"""Training parts that hold the 400 public test videos of the Kaggle competition."""
SPLIT_AGAIN = (
    "Leave the training side out when you test on the others. If you only test on this data set, pass --folds: then "
    "only what the folds hold counts as trained on."
)
FOLD_AGAIN = "Make the folds again with `multiattn folds`."
LABEL_NAMES = {REAL: "real", FAKE: "fake", UNKNOWN: "unknown"}
INDEX_AGAIN = "Run `multiattn index` again."


@dataclass(frozen=True)
class Finding:
    """One thing found."""

    severity: Severity
    name: str
    text: str
    """One sentence without the cases."""
    advice: str
    cases: list[str] = field(default_factory=list)
    """All of them, one short line each."""


def check_health(
    videos: pd.DataFrame,
    *,
    folds: pd.DataFrame | None = None,
    grouping: Grouping = "original",
    manifest: dict[str, Any] | None = None,
    roots: dict[str, Path] | None = None,
) -> list[Finding]:
    """Leaks between splits and folds, copies, and files that are not where the table says; the worst first.

    Args:
        grouping: what the folds were grouped by; `part` says that parts must not span folds.
        manifest: what `videos.json` beside the table holds; None where there is none.
        roots: data set -> folder; the files of each are compared with those there, one listing a folder.

    Raises:
        FileNotFoundError: a root that is not a folder.
    """
    place = _places(videos, folds)
    findings = [
        *_across_splits(videos, place),
        *_across_data_sets(videos, place),
        *_kaggle_copies(videos, place),
        *_duplicates(videos, place),
        *(_across_folds(videos, folds, grouping) if folds is not None else []),
        *(_folds_against_videos(videos, folds) if folds is not None else []),
        *_without_split(videos, place),
        *_listing(videos, manifest),
    ]
    for dataset, root in (roots or {}).items():
        unlisted = (manifest or {}).get(dataset, {}).get("unlisted", [])
        findings += _files(videos[videos["dataset"] == dataset], dataset, Path(root), unlisted)
    return sorted(findings, key=lambda finding: get_args(Severity).index(finding.severity))


def count_videos(videos: pd.DataFrame) -> pd.DataFrame:
    """Videos by data set, split and method, one column a label."""
    keys = ["dataset", "split", "method"]
    counts = videos.groupby([*keys, "label"], observed=True).size().unstack(fill_value=0)
    return counts.reindex(columns=list(LABEL_NAMES), fill_value=0).rename(columns=LABEL_NAMES).reset_index()


def _places(videos: pd.DataFrame, folds: pd.DataFrame | None) -> pd.Series:
    """`test`, `val` or `train`, and empty for what is neither trained nor tested on."""
    tested = videos["split"] == "test"
    if folds is not None:
        trained = _is_among(videos["video_id"], folds["video_id"])
        place = np.where(trained, "train", "")
    else:
        trained = videos["label"] != UNKNOWN
        place = np.where(trained, np.where(videos["split"] == "val", "val", "train"), "")
    return pd.Series(np.where(tested, "test", place), index=videos.index, dtype="str")


def _is_among(values: pd.Series, names: pd.Series) -> np.ndarray:
    """`isin`, which takes a second for all of DFDC: it turns Arrow's strings into Python's."""
    return pd.Index(names.unique()).get_indexer(values) >= 0


def _linked(videos: pd.DataFrame, columns: Iterable[str], prefix: pd.Series | None = None) -> pd.DataFrame:
    """(row, key) of every non-empty cell of the columns; the key starts with `prefix`, which says whose name it is."""
    tables = []
    for column in columns:
        named = videos.index[videos[column] != ""]
        keys = videos.loc[named, column]
        tables.append(pd.DataFrame({"row": named, "key": keys if prefix is None else prefix[named] + " " + keys}))
    return pd.concat(tables, ignore_index=True).drop_duplicates()


def _originals(videos: pd.DataFrame) -> pd.DataFrame:
    """A fake with its original, and with the other fakes of it, whether or not the original itself is in the table."""
    links = _linked(videos, ["video_id", "original"])
    return links[_is_among(links["key"], videos["original"])]


def _people(videos: pd.DataFrame) -> pd.DataFrame:
    return _linked(videos, ["target_id", "source_id"], videos["dataset"])


def _spread(videos: pd.DataFrame, links: pd.DataFrame, place: pd.Series) -> pd.DataFrame:
    """The links whose key stands in more than one place: columns row, key, place."""
    links = links.assign(place=place.loc[links["row"]].to_numpy())
    links = links[links["place"] != ""]
    return links[links.groupby("key")["place"].transform("nunique") > 1]


def _cases(videos: pd.DataFrame, spread: pd.DataFrame, *, show_key: bool) -> list[str]:
    """A line a key: one video of every place."""
    first = spread.sort_values(["key", "row"]).drop_duplicates(["key", "place"])
    lines: dict[str, list[str]] = {}
    names = videos["video_id"].loc[first["row"]]
    for key, place, video in zip(first["key"], first["place"], names, strict=True):
        lines.setdefault(key, []).append(f"{video} ({place})")
    return [f"{key}: {', '.join(found)}" if show_key else ", ".join(found) for key, found in lines.items()]


def _across_splits(videos: pd.DataFrame, place: pd.Series) -> Iterator[Finding]:
    own_split = videos[videos["dataset"] != deeperforensics.DATASET]  # these: see `_across_data_sets`
    spread = _spread(own_split, _originals(own_split), place)
    if len(spread):
        fakes = (videos["label"].loc[spread["row"].unique()] == FAKE).sum()
        originals = counted(spread["key"].nunique(), "original")
        text = f"In more than one split: {originals} with {counted(fakes, 'fake')}."
        cases = _cases(videos, spread, show_key=False)
        yield Finding("leak", "originals across splits", text, SPLIT_AGAIN, cases)
    spread = _spread(videos, _people(videos), place)
    tested = pd.Series(_is_among(spread["key"], spread.loc[spread["place"] == "test", "key"]), index=spread.index)
    for severity, found, splits in (("leak", tested, "training and test"), ("warning", ~tested, "training and val")):
        if found.any():
            people, rows = spread.loc[found, "key"].nunique(), spread.loc[found, "row"].nunique()
            who = counted(people, "person (target_id, source_id) is", "people (target_id, source_id) are")
            text = f"{who} in {splits}: {counted(rows, 'video')}."
            cases = _cases(videos, spread[found], show_key=True)
            yield Finding(severity, "people across splits", text, SPLIT_AGAIN, cases)


def _across_data_sets(videos: pd.DataFrame, place: pd.Series) -> Iterator[Finding]:
    """DeeperForensics is made on FaceForensics++ clips, and has splits of its own."""
    fakes = videos["dataset"] == deeperforensics.DATASET
    pristine = videos["dataset"] == ffpp.DATASET
    if not fakes.any():
        return
    if not (pristine & (videos["split"] != "")).any():
        text = "DeeperForensics is made on FaceForensics++ clips, and the table does not say which of those are tests."
        advice = "Index FaceForensics++ c23 into the table: `multiattn index ffpp --splits DIR --append`."
        yield Finding("note", "DeeperForensics without FaceForensics++", text, advice)
        return
    trained = place.isin(["train", "val"])
    for one, other, text in (
        (trained, place == "test", "are trained on, and their FaceForensics++ ids are test ids"),
        (place == "test", trained, "are test clips, and their FaceForensics++ ids are trained on"),
    ):
        ids = set(videos.loc[pristine & other, "target_id"]) - {""}
        found = fakes & one & videos["target_id"].isin(ids)
        if found.any():
            text = f"{found.sum()} DeeperForensics clips {text}."
            advice = "Keep the DeeperForensics clips whose id is of the same split in FaceForensics++; leave these out."
            cases = videos.loc[found, "video_id"].tolist()
            yield Finding("leak", "DeeperForensics and FaceForensics++", text, advice, cases)


def _names(videos: pd.DataFrame) -> pd.Series:
    return videos["path"].str.rsplit("/", n=1).str[-1]


def _kaggle_copies(videos: pd.DataFrame, place: pd.Series) -> Iterator[Finding]:
    clips = videos[(videos["dataset"] == dfdc.DATASET) & (videos["part"] != "")]
    trained = place.loc[clips.index].isin(["train", "val"])
    is_part = clips["part"].str.startswith(dfdc.PART_NAME)
    public = set(_names(clips[clips["part"] == KAGGLE_PUBLIC_TEST]))
    parts = clips[is_part & trained]
    copies = parts[_names(parts).isin(public)] if public else parts.iloc[:0]
    if len(copies):
        found = ", ".join(sorted(copies["part"].unique()))
        text = f"{len(copies)} of {len(public)} clips of {KAGGLE_PUBLIC_TEST} are also in {found}: they are trained on."
        advice = f"Take these parts out of videos.csv and make the folds again, or never score on {KAGGLE_PUBLIC_TEST}."
        yield Finding("leak", "Kaggle's public test videos", text, advice, copies["video_id"].tolist())
    elif seen := sorted(part for part in parts["part"].unique() if KAGGLE_PARTS.fullmatch(part)):
        text = f"{', '.join(seen)} are trained on; parts 0 to 2 hold the 400 public test videos of the competition."
        advice = f"Do not score such a model on {KAGGLE_PUBLIC_TEST}: it has seen them."
        yield Finding("note", "Kaggle's public test videos", text, advice)


def _duplicates(videos: pd.DataFrame, place: pd.Series) -> Iterator[Finding]:
    repeated = videos.duplicated(["dataset", "path"], keep=False)
    if repeated.any():
        number = counted(repeated.sum(), "row shares its path", "rows share their path")
        text, advice = f"{number} with another of the same data set.", f"Keep one row a file. {INDEX_AGAIN}"
        yield Finding("warning", "paths listed twice", text, advice, videos.loc[repeated, "video_id"].tolist())
    keys = ["dataset", "method", "compression", "label", "target_id"]  # FakeAVCeleb numbers the clips of each person
    named = videos[keys].assign(name=_names(videos), place=place)
    # Every method and level of FaceForensics++ uses the same names; Kaggle's copies are found above.
    is_file = videos["path"].str.contains(r"\.\w+$")  # folders of frames are often numbered anew in each folder
    is_public = (videos["dataset"] == dfdc.DATASET) & (videos["part"] == KAGGLE_PUBLIC_TEST)
    named = named[is_file & ~repeated & ~is_public]
    same = named[named.duplicated([*keys, "name"], keep=False)]
    sides = [same["place"].isin(side) for side in (["train", "val"], ["test"])]
    names = [same[column] for column in [*keys, "name"]]
    on_both = sides[0].groupby(names).transform("any") & sides[1].groupby(names).transform("any")
    tested = on_both & (same["dataset"] == dfdc.DATASET)  # its names are unique, so these are copies
    for severity, rows in (("leak", same[tested]), ("warning", same[~tested])):
        if len(rows):
            where = ", in training and in test" if severity == "leak" else ""
            number = counted(len(rows), "clip shares its file name", "clips share their file name")
            text = f"{number} with another of that data set and method{where}."
            advice = "If they are copies, delete one of each and index again."
            cases = videos.loc[rows.sort_values("name", kind="stable").index, "video_id"].tolist()
            yield Finding(severity, "file names used twice", text, advice, cases)


def _across_folds(videos: pd.DataFrame, folds: pd.DataFrame, grouping: Grouping) -> Iterator[Finding]:
    fold_of = folds.set_index("video_id")["fold"].map(lambda fold: f"fold {fold}" if fold >= 0 else "no fold")
    place = videos["video_id"].map(fold_of).fillna("")
    links = {"originals": _originals(videos), "people": _people(videos)}
    if grouping == "part":
        links["parts"] = _linked(videos, ["part"], videos["dataset"])
    for name, table in links.items():
        spread = _spread(videos, table, place)
        if len(spread):
            found = counted(spread["key"].nunique(), {"people": "person"}.get(name, name.removesuffix("s")), name)
            text = f"{found} in several folds: {counted(spread['row'].nunique(), 'video')}."
            cases = _cases(videos, spread, show_key=name != "originals")
            yield Finding("leak", f"{name} across folds", text, FOLD_AGAIN, cases)
    spread = folds[folds.groupby("group")["fold"].transform("nunique") > 1]
    if len(spread):
        found = counted(spread["group"].nunique(), "group of the folds table spans", "groups of the folds table span")
        text = f"{found} folds: {counted(len(spread), 'video')}."
        cases = spread["video_id"].tolist()
        yield Finding("leak", "groups across folds", text, FOLD_AGAIN, cases)


def _folds_against_videos(videos: pd.DataFrame, folds: pd.DataFrame) -> Iterator[Finding]:
    joined = folds.merge(videos[["video_id", "split", "label"]], on="video_id", how="left", suffixes=("", "_video"))
    known = joined["label_video"].notna()
    is_usable = (videos["split"] != "test") & (videos["label"] != UNKNOWN)
    left_out = videos.loc[is_usable & ~_is_among(videos["video_id"], folds["video_id"]), "video_id"]
    tested = joined.loc[joined["split"] == "test", "video_id"]
    is_pseudo = (joined["label_source"] != "") & (joined["label_video"] == UNKNOWN)
    relabelled = joined.loc[known & (joined["label"] != joined["label_video"]) & ~is_pseudo, "video_id"]
    unknown = joined.loc[~known, "video_id"]
    remake = "Pass the table the folds were made of, or make them again."
    never = "They are never trained on. If they should be, make the folds again."
    for severity, name, rows, text, advice in (
        ("leak", "test videos in folds", tested, "videos of a test split are in the folds.", FOLD_AGAIN),
        ("warning", "labels", relabelled, "labels of the folds differ from those of the videos table.", FOLD_AGAIN),
        ("warning", "unknown videos in folds", unknown, "videos of the folds are not in the videos table.", remake),
        ("note", "videos in no fold", left_out, "labelled videos outside the test split are in no fold.", never),
    ):
        if len(rows):
            yield Finding(severity, name, f"{len(rows)} {text}", advice, rows.tolist())
    classes = folds[folds["fold"] >= 0].groupby("fold")["label"].nunique()
    if (classes < 2).any():
        numbers = ", ".join(map(str, classes.index[classes < 2]))
        text = f"Fold {numbers} holds real or fake videos only, so it cannot be scored."
        yield Finding("warning", "one class", text, "Make fewer folds, or index more videos of the other class.")


def _without_split(videos: pd.DataFrame, place: pd.Series) -> Iterator[Finding]:
    rows = videos[(videos["split"] == "") & (place == "train")]
    if len(rows):
        counts = rows["dataset"].value_counts().sort_index()
        listed = ", ".join(f"{count} of {dataset}" for dataset, count in counts.items())
        number = counted(len(rows), "video is of no split and counts", "videos are of no split and count")
        text = f"{number} as training videos: {listed}."
        advice = "To test on them, set their split to test in videos.csv before making folds."
        yield Finding("note", "no split", text, advice)


def _listing(videos: pd.DataFrame, manifest: dict[str, Any] | None) -> Iterator[Finding]:
    """Findings of `multiattn index`, kept in videos.json."""
    if manifest is None:
        text = "there is no videos.json beside the table, so absent and unlisted clips are not known."
        yield Finding("note", "no videos.json", text, INDEX_AGAIN)
        return
    counts = videos["dataset"].value_counts()
    for dataset, kept in manifest.items():
        absent, unlisted = kept.get("absent", []), kept.get("unlisted", [])
        if absent:
            number = counted(len(absent), "clip is listed but was", "clips are listed but were")
            text = f"{dataset}: {number} absent when it was indexed."
            advice = "Finish the download and index again, or go on without them."
            yield Finding("warning", "absent", text, advice, absent)
        if unlisted:
            number = counted(len(unlisted), "clip was", "clips were")
            text = f"{dataset}: {number} present but in no list; not in the table."
            advice = "See where they come from; a metadata.json or labels.csv may be missing."
            yield Finding("warning", "unlisted", text, advice, unlisted)
        if kept.get("videos", counts.get(dataset, 0)) != counts.get(dataset, 0):
            number = counted(kept["videos"], "video was", "videos were")
            text = f"{dataset}: {number} indexed, the table holds {counts.get(dataset, 0)} now."
            advice = "Fine if you took rows out on purpose; otherwise index again."
            yield Finding("note", "table changed", text, advice)


def _files(videos: pd.DataFrame, dataset: str, root: Path, unlisted: list[str]) -> Iterator[Finding]:
    """Compare the table with the folders it names, two listings each: a `stat` for each of DFDC's clips takes minutes
    on a network disk."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Pass where {dataset} lies as --root {dataset}=DIR.")
    listed = set(videos["path"])
    has_videos = any(map(is_video_name, listed))  # where there are pictures alone, no video is missed beside them
    present, clips = set(), set()
    archives: set[str] = set()
    for folder in sorted({path.rpartition("/")[0] for path in listed}):
        prefix = f"{folder}/" if folder else ""
        archives.update(above for above in _above(folder) if is_archive_name(above) and (root / above).is_file())
        if (root / folder).is_dir():
            present.update(prefix + name for name in os.listdir(root / folder))  # noqa: PTH208 (a Path each is slow)
            clips.update(prefix + name for name in (video_files(root / folder) if has_videos else ()))
    # Pictures of an archive are there as long as it is.
    vanished = sorted(path for path in listed - present if archives.isdisjoint(_above(path)))
    appeared = sorted(clips - listed - set(unlisted))
    if vanished:
        text = f"{dataset}: {len(vanished)} of {counted(len(listed), 'file')} of the table are not below {root}."
        advice = f"If the data moved, pass --root {dataset}=DIR; if files were deleted, index again."
        yield Finding("warning", "vanished", text, advice, vanished)
    if appeared:
        text = f"{dataset}: {len(appeared)} video files lie beside those of the table and are not in it."
        yield Finding("warning", "appeared", text, INDEX_AGAIN, appeared)


def _above(path: str) -> list[str]:
    """The path and all folders above it, below the root."""
    parts = path.split("/")
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]
