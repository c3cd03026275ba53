"""Leaks of a videos table and its folds: what is trained on and tested or validated on all the same.

With folds, what the folds hold is what is trained on; without, all labelled videos outside the test split are, as
`multiattn folds` would have it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from multiattn.datasets import deeperforensics, dfdc, ffpp
from multiattn.datasets.folds import Grouping
from multiattn.tables import FAKE, UNKNOWN

Severity = Literal["leak", "warning", "note"]
KAGGLE_PUBLIC_TEST = "test_videos"
KAGGLE_PARTS = re.compile(rf"{dfdc.PART_NAME}0?[012]")
"""Training parts that hold the 400 public test videos of the Kaggle competition."""
SPLIT_AGAIN = (
    "Leave the training side out when you test on the others. If you only test on this data set, pass --folds: then "
    "only what the folds hold counts as trained on."
)
FOLD_AGAIN = "Make the folds again with `multiattn folds`."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found, its cases, and what to do about it."""

    severity: Severity
    name: str
    text: str
    """One sentence without the cases."""
    advice: str
    cases: list[str] = field(default_factory=list)
    """All of them, one short line each."""


def find_leaks(videos: pd.DataFrame, folds: pd.DataFrame | None, grouping: Grouping) -> list[Finding]:
    """What crosses from training into test or validation, and what else is wrong with splits, copies and folds.

    Args:
        videos: a `videos` table.
        folds: the `folds` table made of it.
        grouping: what the folds were grouped by; `part` says that parts must not span folds.
    """
    place = places(videos, folds)
    return [
        *_across_splits(videos, place),
        *_across_data_sets(videos, place),
        *_kaggle_copies(videos, place),
        *_duplicates(videos, place),
        *(_across_folds(videos, folds, grouping) if folds is not None else []),
        *(_folds_against_videos(videos, folds) if folds is not None else []),
    ]


def places(videos: pd.DataFrame, folds: pd.DataFrame | None) -> pd.Series:
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
    for key, place, video in zip(
        first["key"], first["place"], videos["video_id"].loc[first["row"]].to_numpy(), strict=True
    ):
        lines.setdefault(key, []).append(f"{video} ({place})")
    return [f"{key}: {', '.join(found)}" if show_key else ", ".join(found) for key, found in lines.items()]


def _across_splits(videos: pd.DataFrame, place: pd.Series) -> list[Finding]:
    findings = []
    own_split = videos[videos["dataset"] != deeperforensics.DATASET]  # these: see `_across_data_sets`
    spread = _spread(own_split, _originals(own_split), place)
    if len(spread):
        fakes = (videos["label"].loc[spread["row"].unique()] == FAKE).sum()
        findings.append(
            Finding(
                severity="leak",
                name="originals across splits",
                text=f"{spread['key'].nunique()} originals and their {fakes} fakes stand in more than one split.",
                advice=SPLIT_AGAIN,
                cases=_cases(videos, spread, show_key=False),
            )
        )
    spread = _spread(videos, _people(videos), place)
    tested = pd.Series(_is_among(spread["key"], spread.loc[spread["place"] == "test", "key"]), index=spread.index)
    for severity, found, splits in (("leak", tested, "training and test"), ("warning", ~tested, "training and val")):
        if found.any():
            findings.append(
                Finding(
                    severity=severity,
                    name="people across splits",
                    text=f"{spread.loc[found, 'key'].nunique()} people (target_id, source_id) are in {splits}: "
                    f"{spread.loc[found, 'row'].nunique()} videos.",
                    advice=SPLIT_AGAIN,
                    cases=_cases(videos, spread[found], show_key=True),
                )
            )
    return findings


def _across_data_sets(videos: pd.DataFrame, place: pd.Series) -> list[Finding]:
    """DeeperForensics is made on FaceForensics++ clips, and has splits of its own."""
    fakes = videos["dataset"] == deeperforensics.DATASET
    pristine = videos["dataset"] == ffpp.DATASET
    if not fakes.any():
        return []
    if not (pristine & (videos["split"] != "")).any():
        return [
            Finding(
                severity="note",
                name="DeeperForensics without FaceForensics++",
                text="DeeperForensics clips are made on FaceForensics++ clips, and this table does not say which of "
                "those are test clips.",
                advice="Index FaceForensics++ c23 into the table: `multiattn index ffpp --splits DIR --append`.",
            )
        ]
    trained = place.isin(["train", "val"])
    findings = []
    for one, other, text in (
        (trained, place == "test", "are trained on, and their FaceForensics++ ids are test ids"),
        (place == "test", trained, "are test clips, and their FaceForensics++ ids are trained on"),
    ):
        ids = set(videos.loc[pristine & other, "target_id"]) - {""}
        found = fakes & one & videos["target_id"].isin(ids)
        if found.any():
            findings.append(
                Finding(
                    severity="leak",
                    name="DeeperForensics and FaceForensics++",
                    text=f"{found.sum()} DeeperForensics clips {text}.",
                    advice="Let FaceForensics++ decide: keep the DeeperForensics clips whose id is of the same split "
                    "there, and leave these out.",
                    cases=videos.loc[found, "video_id"].tolist(),
                )
            )
    return findings


def _names(videos: pd.DataFrame) -> pd.Series:
    return videos["path"].str.rsplit("/", n=1).str[-1]


def _kaggle_copies(videos: pd.DataFrame, place: pd.Series) -> list[Finding]:
    clips = videos[(videos["dataset"] == dfdc.DATASET) & (videos["part"] != "")]
    trained = place.loc[clips.index].isin(["train", "val"])
    is_part = clips["part"].str.startswith(dfdc.PART_NAME)
    public = set(_names(clips[clips["part"] == KAGGLE_PUBLIC_TEST]))
    parts = clips[is_part & trained]
    copies = parts[_names(parts).isin(public)] if public else parts.iloc[:0]
    if len(copies):
        return [
            Finding(
                severity="leak",
                name="Kaggle's public test videos",
                text=f"{len(copies)} of {len(public)} clips of {KAGGLE_PUBLIC_TEST} are also in "
                f"{', '.join(sorted(copies['part'].unique()))}, which are trained on.",
                advice=f"Take the rows of these parts out of videos.csv and make the folds again, or do not score on "
                f"{KAGGLE_PUBLIC_TEST}.",
                cases=copies["video_id"].tolist(),
            )
        ]
    seen = sorted(part for part in parts["part"].unique() if KAGGLE_PARTS.fullmatch(part))
    if not seen:
        return []
    return [
        Finding(
            severity="note",
            name="Kaggle's public test videos",
            text=f"{', '.join(seen)} are trained on; parts 0 to 2 hold the 400 public test videos of the competition.",
            advice=f"Do not score such a model on {KAGGLE_PUBLIC_TEST}: it has seen them.",
        )
    ]


def _duplicates(videos: pd.DataFrame, place: pd.Series) -> list[Finding]:
    findings = []
    repeated = videos.duplicated(["dataset", "path"], keep=False)
    if repeated.any():
        findings.append(
            Finding(
                severity="warning",
                name="paths listed twice",
                text=f"{repeated.sum()} rows share their path with another row of their data set.",
                advice="Keep one row a file: run `multiattn index` again.",
                cases=videos.loc[repeated, "video_id"].tolist(),
            )
        )
    keys = ["dataset", "method", "compression", "label"]
    named = videos[keys].assign(name=_names(videos), place=place)
    # Every method and level of FaceForensics++ uses the same names; Kaggle's copies are told apart above.
    named = named[~(repeated | ((videos["dataset"] == dfdc.DATASET) & (videos["part"] == KAGGLE_PUBLIC_TEST)))]
    same = named[named.duplicated([*keys, "name"], keep=False)]
    sides = [same["place"].isin(side) for side in (["train", "val"], ["test"])]
    names = [same[column] for column in [*keys, "name"]]
    on_both = sides[0].groupby(names).transform("any") & sides[1].groupby(names).transform("any")
    tested = on_both & (same["dataset"] == dfdc.DATASET)  # its names are unique, so these are copies
    for severity, rows in (("leak", same[tested]), ("warning", same[~tested])):
        if len(rows):
            where = ", in training and in test" if severity == "leak" else ""
            findings.append(
                Finding(
                    severity=severity,
                    name="file names used twice",
                    text=f"{len(rows)} clips share their file name with another of their data set and method{where}.",
                    advice="If they are copies, delete one of each and index again.",
                    cases=videos.loc[rows.sort_values("name", kind="stable").index, "video_id"].tolist(),
                )
            )
    return findings


def _across_folds(videos: pd.DataFrame, folds: pd.DataFrame, grouping: Grouping) -> list[Finding]:
    fold_of = folds.set_index("video_id")["fold"].map(lambda fold: f"fold {fold}" if fold >= 0 else "no fold")
    place = videos["video_id"].map(fold_of).fillna("")
    links = {"originals": _originals(videos), "people": _people(videos)}
    if grouping == "part":
        links["parts"] = _linked(videos, ["part"], videos["dataset"])
    findings = []
    for name, table in links.items():
        spread = _spread(videos, table, place)
        if len(spread):
            findings.append(
                Finding(
                    severity="leak",
                    name=f"{name} across folds",
                    text=f"{spread['key'].nunique()} {name} span folds: {spread['row'].nunique()} videos.",
                    advice=FOLD_AGAIN,
                    cases=_cases(videos, spread, show_key=name != "originals"),
                )
            )
    spread = folds[folds.groupby("group")["fold"].transform("nunique") > 1]
    if len(spread):
        text = f"{spread['group'].nunique()} groups of the folds table span folds: {len(spread)} videos."
        cases = spread["video_id"].tolist()
        findings.append(Finding(severity="leak", name="groups across folds", text=text, advice=FOLD_AGAIN, cases=cases))
    return findings


def _folds_against_videos(videos: pd.DataFrame, folds: pd.DataFrame) -> list[Finding]:
    joined = folds.merge(videos[["video_id", "split", "label"]], on="video_id", how="left", suffixes=("", "_video"))
    known = joined["label_video"].notna()
    left_out = (
        (videos["split"] != "test") & (videos["label"] != UNKNOWN) & ~_is_among(videos["video_id"], folds["video_id"])
    )
    findings = [
        Finding(severity=severity, name=name, text=f"{len(rows)} {text}", advice=advice, cases=rows.tolist())
        for severity, name, rows, text, advice in (
            (
                "leak",
                "test videos in folds",
                joined.loc[joined["split"] == "test", "video_id"],
                "videos of a test split are in the folds.",
                FOLD_AGAIN,
            ),
            (
                "warning",
                "labels",
                joined.loc[known & (joined["label"] != joined["label_video"]), "video_id"],
                "labels of the folds differ from those of the videos table.",
                FOLD_AGAIN,
            ),
            (
                "warning",
                "unknown videos in folds",
                joined.loc[~known, "video_id"],
                "videos of the folds are not in the videos table.",
                "Pass the table the folds were made of, or make them again.",
            ),
            (
                "note",
                "videos in no fold",
                videos.loc[left_out, "video_id"],
                "labelled videos outside the test split are in no fold.",
                "They are never trained on. If they should be, make the folds again.",
            ),
        )
        if len(rows)
    ]
    classes = folds[folds["fold"] >= 0].groupby("fold")["label"].nunique()
    if (classes < 2).any():
        numbers = ", ".join(map(str, classes.index[classes < 2]))
        text = f"Fold {numbers} holds real or fake videos only, so it cannot be scored."
        findings.append(Finding(severity="warning", name="one class", text=text, advice="Use fewer folds."))
    return findings
