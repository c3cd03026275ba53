"""Submissions scored against labels: log loss with its interval, the pairwise comparison with the best, coverage.

A published figure is compared on its own DFDC scale or not at all: a model that reaches 0.20 on the released test set
is at 0.43 on the private one, half of whose videos came from the web. `published.json` holds these figures, and the
first bytes of the SHA-256 of each file name (without its ending) of the competition's 400 sample videos, apart from
each other, so that any part of the 400 is known.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from multiattn.config.choices import ScaleName
from multiattn.runtime.files import read_json
from multiattn.runtime.layout import CARD_FILE, SUBMISSION_FILE
from multiattn.runtime.text_tables import markdown_table, markdown_text
from multiattn.scoring.metrics import (
    CONSTANT_LOG_LOSS,
    NO_INTERVAL,
    Interval,
    bootstrap_log_loss,
    compare_log_loss,
    describe_losses,
    video_metrics,
)
from multiattn.tables import LABELS, SUBMISSION
from multiattn.video.crops.images import names_digest

SCORING_CLIP = 1e-15
"""Only keeps a confident mistake of somebody's file finite; our own submissions are clipped harder already."""
FAILURES = ("no_face", "unreadable", "missing", "failed", "late")
"""Statuses of videos with the prior."""
MEASURED = ("log_loss", "low", "high", "balanced_log_loss", "auc", "accuracy")
COMPARED = ("difference", "difference_low", "difference_high", "probability_better")
OUT_OF_FOLD = ("log_loss", "balanced_log_loss", "last_epoch_log_loss", "last_epoch_balanced_log_loss")
"""Figures of a card; their columns are named `out_of_fold_` and the figure."""
CONSTANT = "constant 0.5"
NOT_KNOWN, BEST = "not known", "the best"
NOT_COMPARABLE = (
    "These videos are none of the three sets that log losses were published for, so the published figures are not "
    "comparable with those above, nor with each other."
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One set of videos that figures were published for."""

    name: str
    """`released`, `public` or `private`."""
    title: str
    num_videos: int
    source: str
    anchors: dict[str, float]
    """Who -> log loss, the lowest first."""
    digest: str = ""
    """`names_digest` of its file names, sorted; empty where they were never released."""


_PUBLISHED = json.loads((files(__package__) / "published.json").read_text(encoding="utf-8"))
SCALES = {entry["name"]: Scale(**entry) for entry in _PUBLISHED["scales"]}
KAGGLE_400 = frozenset(map(bytes.fromhex, _PUBLISHED["kaggle_400"]))
HASH_BYTES = 5
"""Length of a hash in `KAGGLE_400`. A name that is none of them is taken for one once in 2.7 billion; some 128 names of
ten letters have the same hash, so the hashes are no list of the names."""


def scale_of(names: Iterable[str]) -> Scale | None:
    """The scale whose videos these are, all of them and no others; None for any other videos."""
    digest = names_digest(sorted(names))
    return next((scale for scale in SCALES.values() if scale.digest == digest), None)


def among_kaggles_400(names: Iterable[str]) -> int:
    """Number of these that are among the competition's 400 sample videos, whatever their folder and file format."""
    return sum(hashlib.sha256(PurePath(name).stem.encode()).digest()[:HASH_BYTES] in KAGGLE_400 for name in names)


@dataclass(frozen=True)
class Leaderboard:
    """Our submissions, best first, and the videos they were scored on."""

    ours: pd.DataFrame
    """name; log_loss with low and high, the 95 % interval; balanced_log_loss, over the classes; auc, accuracy;
    difference: its log loss minus that of the best, on the same videos, with difference_low and difference_high, and
    probability_better, the confidence that it is the better of the two; num_videos; no_face, unreadable, missing,
    failed, late; seen_in_training; out_of_fold_log_loss, out_of_fold_balanced_log_loss, and both of the last epochs;
    reason: why it is not scored, or empty. NaN where not scored; NA where the number is not known: without a card none
    of them is, and of an imported checkpoint the training videos are not."""
    scored_on: str
    """The videos of the metrics, in words."""
    constant: pd.DataFrame
    """The answer 0.5 to every video, as a row of the same columns."""
    drawn: str = "single videos"
    """Units the bootstrap draws, in words."""
    scale: Scale | None = None
    """The published figures that are comparable."""
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Notes, and runs that have seen the videos: all that makes a figure too good."""
        seen = [
            f"{row.name} was trained on {row.seen_in_training} of the videos it answers; its log loss is too good. "
            "(Kaggle's 400 public test videos lie inside dfdc_train_part_0 to 2.)"
            for row in self.ours.itertuples(index=False)
            if pd.notna(row.seen_in_training) and row.seen_in_training
        ]
        return [*self.notes, *seen]

    @property
    def has_intervals(self) -> bool:
        """False where there are too few groups, or nothing was scored."""
        return bool(self.ours["low"].notna().any())

    @property
    def legend(self) -> str:
        bootstrap = f"95 %: of the bootstrap, which draws {self.drawn}. " if self.has_intervals else ""
        return (
            f"{bootstrap}Balanced: the mean of both classes' log losses. Minus the best: log loss minus that of the "
            "best submission, on the same videos; P(better): the confidence that it is the better of the two. Answered "
            "with the prior, seen in training, out of fold (as expected at the share of fakes that was stated for the "
            "rule, if one was; the last epoch was not chosen on the held-out videos): from card.json; "
            f"{NOT_KNOWN} where it does not say." + ("" if self.scale is not None else f" {NOT_COMPARABLE}")
        )

    def table(self) -> pd.DataFrame:
        """Our rows, the constant among them, and the comparable published ones, in one frame with a `source` column."""
        rows = pd.concat([self.ours.assign(source="ours"), self.constant.assign(source="reference")])
        frames = [rows.sort_values(["log_loss", "source", "name"], na_position="last")]
        if self.scale is not None:
            anchors = self.scale.anchors
            published = pd.DataFrame({"name": list(anchors), "log_loss": list(anchors.values()), "source": "published"})
            frames.append(published.assign(num_videos=self.scale.num_videos))
        return pd.concat(frames, ignore_index=True)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of our submissions and the constant, as pages show them; cells without a figure say why."""
        header = ["submission", "log loss", "95 %", "balanced", "minus the best", "P(better)", "AUC", "accuracy"]
        header += ["videos", "answered with the prior", "seen in training", "out of fold", "last epoch out of fold"]
        cells, best = [], self.ours["name"].iloc[0]
        for row in self.table().query("source != 'published'").itertuples():
            is_constant, why = row.source == "reference", row.reason
            few = why or NO_INTERVAL
            span = Interval.of(row.low, row.high).words(without=few)
            against = Interval.of(row.difference_low, row.difference_high)
            compared = [why if pd.isna(row.difference) else against.beside(row.difference, sign="+")]
            compared += [_show(row.probability_better, why=few)]
            if row.name == best and not is_constant and not why:
                compared = [BEST, BEST]
            measured = [_show(row.log_loss, why=why), span, _show(row.balanced_log_loss, why=why), *compared]
            measured += [_show(row.auc, why=why or "one class"), _show(row.accuracy, why=why)]
            seen = NOT_KNOWN if pd.isna(row.seen_in_training) else str(row.seen_in_training)
            out_of_fold = [_losses(row, epoch) for epoch in ("", "last_epoch_")]
            from_card = [str(row.num_videos), _failures(row), seen, *out_of_fold]
            cells.append([row.name, *measured, *(["a constant"] * len(from_card) if is_constant else from_card)])
        return header, cells

    def markdown(self) -> str:
        parts = [f"# Leaderboard\n\nScored on: {markdown_text(self.scored_on)}."]
        parts += [f"**Warning:** {markdown_text(warning)}" for warning in self.warnings]
        parts += [markdown_table(*self.rows()), markdown_text(self.legend)]
        return "\n\n".join([*parts, *(markdown_table(*table) for table in self.published())]) + "\n"

    def published(self) -> list[tuple[list[str], list[list[str]]]]:
        """Header and cells of published log losses: of the comparable scale; without one, of each that there is."""
        return [
            (
                [f"published: {scale.title} ({scale.source})", "log loss"],
                [[name, f"{value:.4f}"] for name, value in scale.anchors.items()],
            )
            for scale in ([self.scale] if self.scale is not None else SCALES.values())
        ]


def _show(value: float, *, why: str) -> str:
    return why if pd.isna(value) else f"{value:.4f}"


def _losses(row: Any, epoch: str) -> str:
    plain, balanced = (getattr(row, f"out_of_fold_{epoch}{name}") for name in ("log_loss", "balanced_log_loss"))
    return NOT_KNOWN if pd.isna(plain) else describe_losses(plain, balanced)


def _failures(row: Any) -> str:
    counts = {status: getattr(row, status) for status in FAILURES}
    known = {status: count for status, count in counts.items() if pd.notna(count)}
    if not known:
        return NOT_KNOWN
    words = [f"{count} {status.replace('_', ' ')}" for status, count in known.items() if count]
    return ", ".join(words + [f"others {NOT_KNOWN}"] * (len(known) < len(counts))) or "none"


def score_submissions(
    submissions: Path,
    labels_path: Path | None,
    groups_path: Path | None = None,
    *,
    scale: ScaleName = "auto",
    resamples: int = 10_000,
) -> Leaderboard:
    """Score every `submissions/*/submission.csv`.

    Args:
        labels_path: `filename,label`; a submission that lacks one of its videos is listed without metrics. None lists
            all of them with their out-of-fold figures only.
        groups_path: `filename,group`: what the bootstrap draws as a whole, such as the original; None draws videos.
        scale: which published figures stand beside ours; `auto` knows the released and the public one by the file
            names of all their videos. Another than these names say is refused, and any beside Kaggle's 400 sample
            videos, which are on none; where they say nothing, a warning.
    """
    paths = sorted(submissions.glob(f"*/{SUBMISSION_FILE}"))
    if not paths:
        raise FileNotFoundError(f"{submissions}: no */{SUBMISSION_FILE} here. Make one with `multiattn submit`.")
    read = {path.parent.name: SUBMISSION.read(path) for path in paths}
    rows = pd.DataFrame([_describe(submissions / name, len(answers)) for name, answers in read.items()])
    constant = {"name": CONSTANT, "log_loss": CONSTANT_LOG_LOSS}
    rows = pd.concat([rows, pd.DataFrame([constant])], ignore_index=True)
    if labels_path is None:
        return _board(rows.assign(reason="no labels"), "nothing, no labels were given", scale=SCALES.get(scale))
    labels = LABELS.read(labels_path).sort_values("filename")  # the bootstrap draws the same whatever their order
    groups = read_groups(groups_path, labels) if groups_path is not None else None
    found, notes, drawn = scale_of(labels["filename"]), _kaggles_400(labels["filename"]), Leaderboard.drawn
    if scale != "auto":
        notes += _doubts(scale, found, labels_path, notes)
        found = SCALES.get(scale)
    if groups is not None:
        drawn = f"the {len(set(groups)):,} groups of {groups_path.name}"
    rows = _scored(rows, labels, [*read.values(), labels[["filename"]].assign(label=0.5)], groups, resamples)
    return _board(rows, f"{len(labels):,} videos of {labels_path.name}", drawn=drawn, scale=found, notes=tuple(notes))


def _board(rows: pd.DataFrame, scored_on: str, **more: Any) -> Leaderboard:
    """The leaderboard of rows whose last one is the constant's."""
    rows = rows.astype(dict.fromkeys([*FAILURES, "seen_in_training", "num_videos"], "Int64"))
    ours = rows.iloc[:-1].sort_values(["log_loss", "name"], na_position="last", ignore_index=True)
    return Leaderboard(ours, scored_on, rows.iloc[-1:], **more)


def _kaggles_400(names: pd.Series) -> list[str]:
    """The warning that whoever trained on parts 0 to 2 has seen these videos; nothing where none is of the 400."""
    count = among_kaggles_400(names)
    if not count:
        return []
    which = "these are" if count == len(names) == 400 else f"{count:,} of these {len(names):,} videos are among"
    which = "this video is among" if len(names) == 1 else which
    return [
        f"{which} Kaggle's 400 public test videos, which lie inside dfdc_train_part_0 to 2: whatever was trained on "
        "those parts has seen them."
    ]


def _doubts(asked: str, found: Scale | None, labels_path: Path, notes: list[str]) -> list[str]:
    """Doubts about the scale that was asked for; none where the file names say the same, or with `none`. File names of
    another scale are refused, and any of Kaggle's 400, which `notes` names."""
    if asked == "none" or (found is not None and found.name == asked):
        return []
    if found is not None:
        raise ValueError(
            f"--scale {asked}: {labels_path} holds the {found.num_videos:,} videos of the {found.name} scale; figures "
            f"of different scales are not comparable. Leave --scale out, or give --scale {found.name} or none."
        )
    if notes:
        raise ValueError(
            f"--scale {asked}: expected in {labels_path} {SCALES[asked].title}, found videos of none of the three "
            f"scales: {notes[0]} Leave --scale out, or give --scale none."
        )
    return [
        f"the published figures are of {SCALES[asked].title}; the file names do not say that these are the videos, so "
        "they are comparable only if you know it."
    ]


def read_groups(path: Path, labels: pd.DataFrame) -> np.ndarray:
    """(N,) the group of each labelled video, in the order of the labels, of a file `filename,group` with a row a video;
    other columns and other videos are not used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a labelled video without a group, or with several.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected `filename,group`, a row a video.")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        raise ValueError(f"{path}: not a readable groups file: {error}. Expected `filename,group`.") from error
    if not {"filename", "group"} <= set(table.columns):
        raise ValueError(f"{path}: expected columns filename and group, found {', '.join(table.columns)}.")
    table = table[table["group"] != ""].drop_duplicates(["filename", "group"])
    repeated = table.loc[table["filename"].duplicated(), "filename"]
    if len(repeated):
        raise ValueError(
            f"{path}: expected one group a video, found several for {len(repeated)}; the first: {repeated.iloc[0]}."
        )
    groups = labels["filename"].map(table.set_index("filename")["group"])
    if groups.isna().any():
        first = labels.loc[groups.isna(), "filename"].iloc[0]
        raise ValueError(
            f"{path}: expected a group for each labelled video, found none for {groups.isna().sum()}: "
            f"{first} is the first."
        )
    return groups.to_numpy()


def _describe(folder: Path, num_videos: int) -> dict[str, Any]:
    """The row of a submission from its card; None for a number that the card lacks."""
    card_path = folder / CARD_FILE
    card = read_json(card_path) if card_path.is_file() else {}
    if not isinstance(card, dict):
        raise ValueError(f"{card_path}: expected a card, an object, found {type(card).__name__}.")
    coverage, seen = card.get("coverage") or {}, card.get("seen_in_training")
    if not isinstance(coverage, dict) or not all(type(count) is int for count in [*coverage.values(), seen or 0]):
        raise ValueError(
            f"{card_path}: expected whole numbers in coverage (status: videos) and seen_in_training, found {coverage} "
            f"and {seen}. Make the submission again with `multiattn submit`, or move the card away."
        )
    # Statuses that no video has may be left out. That is known only where those named count every video.
    absent = 0 if sum(coverage.values()) == num_videos else None
    row: dict[str, Any] = {"name": folder.name, **dict.fromkeys((*MEASURED, *COMPARED), np.nan)}
    row["num_videos"] = num_videos
    row |= {status: coverage.get(status, absent) for status in FAILURES}
    row["seen_in_training"] = seen
    out_of_fold = card.get("out_of_fold") or {}
    row |= {f"out_of_fold_{name}": np.nan if (found := out_of_fold.get(name)) is None else float(found)
            for name in OUT_OF_FOLD}  # fmt: skip
    return row | {"reason": ""}


def _scored(
    rows: pd.DataFrame, labels: pd.DataFrame, submissions: list[pd.DataFrame], groups: np.ndarray | None, resamples: int
) -> pd.DataFrame:
    """The rows with the figures of submissions, one a row, the constant last, that predict every labelled video,
    compared with the best of ours."""
    rows, settings = rows.copy(), {"clip": SCORING_CLIP, "resamples": resamples}
    names, labels = labels["filename"], labels["label"].to_numpy()
    answers = [names.map(table.set_index("filename")["label"]) for table in submissions]
    missing = [int(given.isna().sum()) for given in answers]
    rows["reason"] = [f"lacks {count} of the labelled videos" if count else "" for count in missing]
    complete = {row: given.to_numpy(np.float64) for row, given in enumerate(answers) if not missing[row]}
    for row, given in complete.items():
        metrics = video_metrics(labels, given, clip=SCORING_CLIP)
        interval = bootstrap_log_loss(labels, given, groups, **settings)
        figures = vars(metrics) | vars(interval)
        rows.loc[row, list(MEASURED)] = [figures[name] for name in MEASURED]
    ours = rows.iloc[:-1].dropna(subset="log_loss").sort_values(["log_loss", "name"])
    for row, given in complete.items() if len(ours) else ():
        found = compare_log_loss(labels, given, complete[ours.index[0]], groups, **settings)
        rows.loc[row, list(COMPARED)] = [found.difference, found.low, found.high, found.probability_better]
    return rows
