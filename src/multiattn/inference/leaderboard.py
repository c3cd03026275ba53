"""Submissions scored against labels: log loss with its interval, the pairwise comparison with the best, coverage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from multiattn.inference.published import KAGGLE_400_DIGEST, SCALES, Scale, scale_of
from multiattn.runtime import read_json
from multiattn.scoring.bootstrap import bootstrap_log_loss, compare_log_loss
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS, video_metrics
from multiattn.tables import LABELS, SUBMISSION
from multiattn.video.crop_images import names_digest

ScaleName = Literal["auto", "released", "public", "private", "none"]
SCORING_CLIP = 1e-15
"""Only keeps a confident mistake of somebody's file finite; our own submissions are clipped harder already."""
FAILURES = ("no_face", "unreadable", "missing", "failed", "late")
"""Statuses that were answered with the prior."""
NUMBERS = ("log_loss", "low", "high", "auc", "accuracy", "difference", "difference_low", "difference_high")
NUMBERS += ("probability_better", "out_of_fold_log_loss")
NOT_COMPARABLE = (
    "These videos are none of the three sets that log losses were published for, so the published figures are not "
    "comparable with those above, nor with each other."
)


@dataclass(frozen=True)
class Leaderboard:
    """Our submissions, best first, and what they were scored on."""

    ours: pd.DataFrame
    """name; log_loss with low and high, the 95 % interval; auc, accuracy; difference: its log loss minus that of the
    best, on the same videos, with difference_low and difference_high, and probability_better, the share of resamples in
    which it is the better of the two; num_videos; no_face, unreadable, missing, failed, late; seen_in_training (NA for
    an imported checkpoint, whose training videos are unknown); out_of_fold_log_loss. NaN where not scored."""
    scored_on: str
    """What the metrics are over, in words."""
    scale: Scale | None = None
    """The published figures that are comparable."""
    notes: tuple[str, ...] = ()
    """What a reader must know of the labels."""

    @property
    def warnings(self) -> list[str]:
        """Whatever makes a figure too good."""
        seen = [
            f"{row.name} was trained on {row.seen_in_training} of the videos it answers; its log loss is too good. "
            "(Kaggle's 400 public test videos lie inside dfdc_train_part_0 to 2.)"
            for row in self.ours.itertuples(index=False)
            if pd.notna(row.seen_in_training) and row.seen_in_training
        ]
        return [*self.notes, *seen]

    def table(self) -> pd.DataFrame:
        """Our rows, the constant and the comparable published ones in one frame with a `source` column."""
        constant = pd.DataFrame([{"name": "constant 0.5", "log_loss": CONSTANT_LOG_LOSS, "source": "reference"}])
        frames = [self.ours.assign(source="ours"), constant]
        if self.scale is not None:
            anchors = self.scale.anchors
            published = pd.DataFrame({"name": list(anchors), "log_loss": list(anchors.values()), "source": "published"})
            frames.append(published.assign(num_videos=self.scale.num_videos))
        return pd.concat(frames, ignore_index=True)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells of our submissions, as pages show them."""
        header = ["submission", "log loss", "95 %", "minus the best", "P(better)", "AUC", "accuracy", "videos"]
        header += ["answered with the prior", "out of fold"]
        cells = [
            [
                row.name,
                _show(row.log_loss),
                _span(row.low, row.high),
                "" if row.Index == 0 else _show(row.difference, row.difference_low, row.difference_high),
                "" if row.Index == 0 or np.isnan(row.probability_better) else f"{row.probability_better:.3f}",
                _show(row.auc),
                _show(row.accuracy),
                str(row.num_videos),
                _failures(row),
                _show(row.out_of_fold_log_loss),
            ]
            for row in self.ours.itertuples()
        ]
        cells.append(["constant 0.5", _show(CONSTANT_LOG_LOSS), "", "", "", "0.5000", *[""] * 4])
        return header, cells

    def markdown(self) -> str:
        """The leaderboard as a page."""
        parts = [f"# Leaderboard\n\nScored on: {self.scored_on}."]
        parts += [f"**Warning:** {warning}" for warning in self.warnings]
        parts.append(_markdown_table(*self.rows()))
        parts.append(
            "95 %: of the bootstrap. Minus the best: log loss minus that of the first row, on the same videos; "
            "P(better): how often it is the better of the two when the videos, or their groups, are drawn again."
        )
        if self.scale is None:
            parts.append(NOT_COMPARABLE)
        for scale in [self.scale] if self.scale is not None else SCALES.values():
            cells = [[name, f"{value:.4f}"] for name, value in scale.anchors.items()]
            parts.append(_markdown_table([f"published: {scale.title} ({scale.source})", "log loss"], cells))
        return "\n\n".join(parts) + "\n"


def _markdown_table(header: list[str], cells: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _show(value: float, low: float | None = None, high: float | None = None) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4f}" if low is None else f"{value:+.4f}{'' if pd.isna(low) else f' ({low:+.4f} to {high:+.4f})'}"


def _span(low: float, high: float) -> str:
    return "" if pd.isna(low) else f"{low:.4f} to {high:.4f}"


def _failures(row: Any) -> str:
    counts = {status: getattr(row, status) for status in FAILURES}
    return ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items() if count) or "none"


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
            names of all their videos. Another than these names say is refused; where they say nothing, a warning.
        resamples: of the bootstrap.

    Raises:
        FileNotFoundError: no submission in the folder, or no such labels or groups file.
        ValueError: a submission, a card, the labels or the groups break their contract; `scale` is another than that
            of the labels.
    """
    paths = sorted(submissions.glob("*/submission.csv"))
    if not paths:
        raise FileNotFoundError(f"{submissions}: no */submission.csv here. Make one with `multiattn submit`.")
    labels = None
    if labels_path is not None:
        labels = LABELS.read(labels_path).sort_values("filename")  # the bootstrap draws the same whatever their order
    groups = _read_groups(groups_path, labels) if groups_path is not None and labels is not None else None
    read = {path.parent.name: SUBMISSION.read(path) for path in paths}
    rows = pd.DataFrame([_describe(submissions / name, len(answers)) for name, answers in read.items()])
    rows = rows.astype({"seen_in_training": "Int64"})
    if labels is None:
        rows = _in_order(rows)
        return Leaderboard(rows, "nothing, no labels were given", None if scale == "auto" else SCALES.get(scale))
    answers = {name: _answers(submission, labels) for name, submission in read.items()}
    rows = _in_order(_scored(rows, labels["label"].to_numpy(), answers, groups, resamples))
    notes = []
    if names_digest(sorted(labels["filename"])) == KAGGLE_400_DIGEST:
        notes.append(
            "these are Kaggle's 400 public test videos, which lie inside dfdc_train_part_0 to 2: whatever was trained "
            "on those parts has seen them."
        )
    found = scale_of(labels["filename"])
    if scale != "auto":
        notes += _doubts(scale, found, labels_path)
        found = SCALES.get(scale)
    return Leaderboard(rows, f"{len(labels):,} videos of {labels_path.name}", found, tuple(notes))


def _doubts(asked: str, found: Scale | None, labels_path: Path) -> list[str]:
    """What speaks against the scale that was asked for: nothing where the file names say the same, or with `none`.

    Raises:
        ValueError: the file names are those of another scale.
    """
    if asked == "none" or (found is not None and found.name == asked):
        return []
    if found is not None:
        raise ValueError(
            f"--scale {asked}: {labels_path} holds the {found.num_videos:,} videos of the {found.name} scale; figures "
            f"of different scales are not comparable. Leave --scale out, or give --scale {found.name} or none."
        )
    return [
        f"the published figures are of {SCALES[asked].title}; the file names do not say that these are the videos, so "
        "they are comparable only if you know it."
    ]


def _read_groups(path: Path, labels: pd.DataFrame) -> np.ndarray:
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
    """What the card says of a submission."""
    card_path = folder / "card.json"
    card = read_json(card_path) if card_path.is_file() else {}
    if not isinstance(card, dict):
        raise ValueError(f"{card_path}: expected a card, an object, found {type(card).__name__}.")
    coverage = card.get("coverage", {})
    row: dict[str, Any] = {"name": folder.name, **dict.fromkeys(NUMBERS, np.nan)}
    row["num_videos"] = num_videos
    row |= {status: coverage.get(status, 0) for status in FAILURES}
    row["seen_in_training"] = card.get("seen_in_training", 0)
    out_of_fold = (card.get("out_of_fold") or {}).get("log_loss")
    row["out_of_fold_log_loss"] = np.nan if out_of_fold is None else float(out_of_fold)
    return row


def _answers(submission: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray | None:
    """(N,) probabilities of the labelled videos, in their order; None where one is missing."""
    answers = labels["filename"].map(submission.set_index("filename")["label"])
    return None if answers.isna().any() else answers.to_numpy(np.float64)


def _scored(
    rows: pd.DataFrame,
    labels: np.ndarray,
    answers: dict[str, np.ndarray | None],
    groups: np.ndarray | None,
    resamples: int,
) -> pd.DataFrame:
    """The rows with their figures, and with the comparison with the best of them."""
    rows, settings = rows.set_index("name"), {"clip": SCORING_CLIP, "resamples": resamples}
    complete = {name: given for name, given in answers.items() if given is not None}
    for name, given in complete.items():
        metrics = video_metrics(labels, given, clip=SCORING_CLIP)
        interval = bootstrap_log_loss(labels, given, groups, **settings)
        auc = np.nan if metrics.auc is None else metrics.auc
        columns = ["log_loss", "low", "high", "auc", "accuracy"]
        rows.loc[name, columns] = [metrics.log_loss, interval.low, interval.high, auc, metrics.accuracy]
    best = min(complete, key=lambda name: (rows.loc[name, "log_loss"], name), default=None)
    for name, given in complete.items():
        found = compare_log_loss(labels, given, complete[best], groups, **settings)
        columns = ["difference", "difference_low", "difference_high", "probability_better"]
        rows.loc[name, columns] = [found.difference, found.low, found.high, found.probability_better]
    return rows.reset_index()


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["log_loss", "name"], na_position="last", ignore_index=True)
