"""Submissions scored against labels, beside the published figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from multiattn.runtime import read_json
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS, video_metrics
from multiattn.tables import LABELS, SUBMISSION

# Table 3 of arXiv:2103.02406: log loss on the 5,000 released test videos of DFDC.
PUBLISHED_DFDC_TEST = {
    "Multi-attentional (paper)": 0.1679,
    "NTechLab": 0.1703,
    "WM": 0.1787,
    "Eighteen Years Old": 0.1882,
    "Selim Seferbekov": 0.1983,
    "The Medics": 0.2157,
}
DFDC_TEST_VIDEOS = 5000
SCORING_CLIP = 1e-15
"""Only keeps a confident mistake of somebody's file finite; our own submissions are clipped harder already."""
NOT_COMPARABLE = (
    "The published figures are log losses on the 5,000 released DFDC test videos (Table 3 of arXiv:2103.02406). "
    "Figures on any other videos, the demo's among them, are not comparable with them."
)


@dataclass(frozen=True)
class Leaderboard:
    """Our submissions, best first, and what they were scored on."""

    ours: pd.DataFrame
    """name, log_loss, auc, accuracy (NaN where not scored), num_videos, no_face, unreadable, missing,
    seen_in_training (NA for an imported checkpoint, whose training videos are unknown), out_of_fold_log_loss."""
    scored_on: str
    """What the metrics are over, in words."""

    def table(self) -> pd.DataFrame:
        """Our rows and the published ones in one frame with a `source` column."""
        published = pd.DataFrame(
            {"name": list(PUBLISHED_DFDC_TEST), "log_loss": list(PUBLISHED_DFDC_TEST.values()), "source": "published"}
        )
        published["num_videos"] = DFDC_TEST_VIDEOS
        constant = pd.DataFrame([{"name": "constant 0.5", "log_loss": CONSTANT_LOG_LOSS, "source": "reference"}])
        ours = self.ours.assign(source="ours")
        return pd.concat([ours, constant, published], ignore_index=True)

    def markdown(self) -> str:
        """The leaderboard as a page."""
        ours = ["| submission | log loss | AUC | accuracy | videos | no face | unreadable | missing | out-of-fold |"]
        ours += ["|---|---|---|---|---|---|---|---|---|"]
        for row in self.ours.itertuples(index=False):
            numbers = [_show(value) for value in (row.log_loss, row.auc, row.accuracy)]
            counts = [str(value) for value in (row.num_videos, row.no_face, row.unreadable, row.missing)]
            ours.append(f"| {' | '.join([row.name, *numbers, *counts, _show(row.out_of_fold_log_loss)])} |")
        ours.append(f"| constant 0.5 | {CONSTANT_LOG_LOSS:.4f} | 0.5000 | | | | | | |")
        published = ["| published, DFDC test set | log loss |", "|---|---|"]
        published += [f"| {name} | {value:.4f} |" for name, value in PUBLISHED_DFDC_TEST.items()]
        seen = [
            f"**Warning:** {row.name} was trained on {row.seen_in_training} of the videos it answers; its log loss is "
            "too good. (Kaggle's 400 public test videos lie inside dfdc_train_part_0 to 2.)"
            for row in self.ours.itertuples(index=False)
            if pd.notna(row.seen_in_training) and row.seen_in_training
        ]
        title = ["# Leaderboard", "", f"Scored on: {self.scored_on}."]
        parts = [title, seen, ours, published, [NOT_COMPARABLE]]
        return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _show(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4f}"


def score_submissions(submissions: Path, labels_path: Path | None) -> Leaderboard:
    """Score every `submissions/*/submission.csv`.

    Args:
        labels_path: `filename,label`; a submission that lacks one of its videos is listed without metrics. None lists
            all of them with their out-of-fold figures only.

    Raises:
        FileNotFoundError: no submission in the folder, or no such labels file.
        ValueError: a submission, a card or the labels break their contract.
    """
    paths = sorted(submissions.glob("*/submission.csv"))
    if not paths:
        raise FileNotFoundError(f"{submissions}: no */submission.csv here. Make one with `multiattn submit`.")
    labels = LABELS.read(labels_path) if labels_path is not None else None
    rows = pd.DataFrame([_score(path, labels) for path in paths]).astype({"seen_in_training": "Int64"})
    rows = rows.sort_values(["log_loss", "name"], na_position="last", ignore_index=True)
    scored_on = "nothing, no labels were given" if labels is None else f"{len(labels)} videos of {labels_path}"
    return Leaderboard(rows, scored_on)


def _score(path: Path, labels: pd.DataFrame | None) -> dict[str, Any]:
    submission = SUBMISSION.read(path)
    card_path = path.with_name("card.json")
    card = read_json(card_path) if card_path.is_file() else {}
    if not isinstance(card, dict):
        raise ValueError(f"{card_path}: expected a card, an object, found {type(card).__name__}.")
    coverage = card.get("coverage", {})
    row: dict[str, Any] = {"name": path.parent.name, "log_loss": None, "auc": None, "accuracy": None}
    if labels is not None:
        joined = labels.merge(submission, on="filename", how="inner", suffixes=("", "_submitted"))
        if len(joined) == len(labels):
            metrics = video_metrics(joined["label"].to_numpy(), joined["label_submitted"].to_numpy(), clip=SCORING_CLIP)
            row |= {"log_loss": metrics.log_loss, "auc": metrics.auc, "accuracy": metrics.accuracy}
    row["num_videos"] = len(submission)
    row |= {status: coverage.get(status, 0) for status in ("no_face", "unreadable", "missing")}
    row["seen_in_training"] = card.get("seen_in_training", 0)
    row["out_of_fold_log_loss"] = (card.get("out_of_fold") or {}).get("log_loss")
    for name in ("log_loss", "auc", "accuracy", "out_of_fold_log_loss"):
        row[name] = float("nan") if row[name] is None else float(row[name])
    return row
