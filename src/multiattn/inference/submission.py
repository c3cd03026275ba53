"""Video probabilities -> submission.csv in the sample's rows and order, card.json beside it, both checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multiattn.datasets.manifest import video_id
from multiattn.runtime.environment import git_commit
from multiattn.runtime.files import write_json
from multiattn.scoring.aggregators import complete_videos
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import SUBMISSION, VIDEO_PREDICTIONS

STATUSES = ("ok", "no_face", "unreadable", "missing", "failed", "late")
NOT_THERE = "not in the folder of videos"


@dataclass(frozen=True)
class Submission:
    """What a submission folder holds."""

    submission: pd.DataFrame
    """`submission.csv`."""
    videos: pd.DataFrame
    """`video_predictions.csv`: how each row came about."""
    rule: ScoringRule

    @property
    def coverage(self) -> dict[str, int]:
        """Videos of each status; all but `ok` were answered with the prior. `failed` and `late`, which only a kernel
        knows, are named where there are some."""
        counts = self.videos["status"].value_counts()
        return {
            status: int(counts.get(status, 0))
            for status in STATUSES
            if status in counts or status not in ("failed", "late")
        }


def build_submission(
    predictions: pd.DataFrame, statuses: pd.DataFrame, sample: pd.DataFrame, rule: ScoringRule
) -> Submission:
    """One probability for each row of the sample.

    Args:
        predictions: a `frame_predictions` table of videos of dataset `folder`.
        statuses: their `video_status` table, or video_id, status and message of it, where a status may also be
            `failed` (an error while it was judged) or `late` (no time was left); a sample row without a status is
            `missing`.
        sample: the sample submission; only its filenames and their order matter.
    """
    return complete_submission(rule.score(predictions), statuses, sample, rule)


def complete_submission(
    scored: pd.DataFrame, statuses: pd.DataFrame, sample: pd.DataFrame, rule: ScoringRule
) -> Submission:
    """`build_submission` of videos that are scored already.

    Args:
        scored: what `ScoringRule.score` made, of any number of calls: no video's score depends on another's.
    """
    ids = sample["filename"].map(lambda name: video_id("folder", name))
    videos = complete_videos(ids, scored, rule.prior)
    known = statuses.set_index("video_id")
    videos["status"] = videos["video_id"].map(known["status"]).fillna("missing").astype(str)
    videos["message"] = videos["video_id"].map(known["message"]).fillna(NOT_THERE).astype(str)
    silent = videos[(videos["status"] == "ok") & (videos["num_crops"] == 0)]
    if len(silent):
        raise ValueError(f"{len(silent)} videos have faces but no prediction; the first: {silent['video_id'].iloc[0]}.")
    submission = pd.DataFrame({"filename": sample["filename"].to_numpy(), "label": videos["probability"].to_numpy()})
    return Submission(submission, VIDEO_PREDICTIONS.validate(videos, "video predictions"), rule)


def check_submission(submission: pd.DataFrame, sample: pd.DataFrame, rule: ScoringRule, source: Path) -> None:
    """Refuse a file the competition would refuse, or that would score worse than it must.

    Raises:
        ValueError: rows missing, added or out of order, or a probability outside [clip, 1 - clip].
    """
    SUBMISSION.validate(submission, source)
    expected, found = sample["filename"].tolist(), submission["filename"].tolist()
    if expected != found:
        missing = sorted(set(expected) - set(found))[:3]
        added = sorted(set(found) - set(expected))[:3]
        raise ValueError(
            f"{source}: expected the sample's {len(expected)} rows in its order, found {len(found)}; "
            f"missing {missing}, added {added}."
        )
    probabilities = submission["label"].to_numpy(np.float64)
    outside = (probabilities < rule.clip) | (probabilities > 1 - rule.clip)
    if outside.any():
        name = submission["filename"].iloc[int(np.argmax(outside))]
        raise ValueError(
            f"{source}: expected probabilities in [{rule.clip}, {1 - rule.clip}], found "
            f"{int(outside.sum())} outside; the first: {name}."
        )


def write_submission(result: Submission, sample: pd.DataFrame, folder: Path, card: dict[str, Any]) -> None:
    """Write video_predictions.csv, card.json and, last, submission.csv, read back and checked.

    Args:
        card: what the card says beside commit, scoring rule and coverage: the runs, the out-of-fold log loss.
    """
    path = folder / "submission.csv"
    check_submission(result.submission, sample, result.rule, path)
    VIDEO_PREDICTIONS.write(result.videos, folder / "video_predictions.csv")
    card = {**card, "commit": git_commit(), "scoring": result.rule.as_dict(), "coverage": result.coverage}
    write_json(folder / "card.json", card)
    SUBMISSION.write(result.submission, path)
    check_submission(SUBMISSION.read(path), sample, result.rule, path)


def read_sample(path: Path) -> pd.DataFrame:
    """A sample submission: `filename,label`, any labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other columns, no rows, or a filename twice.
    """
    return SUBMISSION.read(path)
