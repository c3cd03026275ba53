"""The submission folder while a kernel runs: always a complete valid submission.csv, better with every writing."""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multiattn.inference.kernel.store import VideoResult
from multiattn.inference.submission import (
    Submission,
    check_submission,
    complete_submission,
    write_submission,
)
from multiattn.scoring.aggregators import sigmoid
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_STATUS

logger = logging.getLogger(__name__)

Statuses = dict[str, tuple[str, str]]
"""video_id -> status and message."""


class Delivery:
    """Writes the answers to one sample submission.

    Args:
        sample: the sample submission.
        rule: frame predictions -> probabilities.
        folder: the submission folder.
    """

    def __init__(self, sample: pd.DataFrame, rule: ScoringRule, folder: Path) -> None:
        self.sample, self.rule, self.folder = sample, rule, folder
        self.path = folder / "submission.csv"
        self._scored: dict[str, tuple[VideoResult, float, int]] = {}

    @property
    def is_there(self) -> bool:
        """Whether a complete valid submission for this sample lies in the folder."""
        try:
            check_submission(SUBMISSION.read(self.path), self.sample, self.rule, self.path)
        except (FileNotFoundError, ValueError):
            return False
        return True

    def write_priors(self) -> None:
        """A complete submission before anything is known."""
        self.folder.mkdir(parents=True, exist_ok=True)
        table = SUBMISSION.validate(self.sample.assign(label=self.rule.prior), self.path)
        SUBMISSION.write(table, self.path)

    def build(self, results: Iterable[VideoResult], others: Statuses) -> Submission:
        """The submission of what is known so far.

        Args:
            results: finished videos; each result is scored once, for no video's score depends on another's.
            others: statuses of videos of which there is no result.
        """
        results = list(results)
        latest = {result.video_id: result for result in results if result.logits}
        new = {video: it for video, it in latest.items() if self._scored.get(video, (None,))[0] is not it}
        if new:
            table = self.rule.score(frame_table(list(new.values())))
            rows = table[["video_id", "probability", "num_crops"]].itertuples(index=False, name=None)
            self._scored.update({video: (new[video], probability, crops) for video, probability, crops in rows})
        scored = pd.DataFrame(
            [(video, *values[1:]) for video, values in self._scored.items()],
            columns=["video_id", "probability", "num_crops"],
        )
        statuses = {**others, **{result.video_id: (result.status, result.message) for result in results}}
        return complete_submission(scored, _status_table(statuses), self.sample, self.rule)

    def write(self, submission: Submission, card: dict[str, Any]) -> None:
        """Replace what is in the folder.

        Raises:
            OSError: the disk is full, say; the former submission is still there.
        """
        write_submission(submission, self.sample, self.folder, card)

    def try_to_write(self, submission: Submission, card: dict[str, Any]) -> None:
        """`write` on the way, where a full disk is no reason to end."""
        try:
            self.write(submission, card)
        except OSError as error:
            logger.warning("%s could not be replaced (%s); the former one is still there", self.path, error)


def _status_table(statuses: Statuses) -> pd.DataFrame:
    rows = [(video, status, message) for video, (status, message) in statuses.items()]
    return pd.DataFrame(rows, columns=["video_id", "status", "message"]) if rows else VIDEO_STATUS.empty()


def frame_table(results: list[VideoResult], folds: dict[str, int] | None = None) -> pd.DataFrame:
    """The `frame_predictions` table of judged videos, models in the order of `folds`, videos by name within each.

    Args:
        folds: model -> its fold; None where only scores are wanted.
    """
    results = sorted((result for result in results if result.logits), key=lambda result: result.video_id)
    names = list(folds or dict.fromkeys(name for result in results for name in result.models))
    tables = []
    for name in names:
        chosen = [(result, result.models.index(name)) for result in results if name in result.models]
        if not chosen:
            continue
        counts = [len(result.crops) for result, _ in chosen]
        places = np.array([crop for result, _ in chosen for crop in result.crops], dtype=np.int64).reshape(-1, 2)
        logits = np.concatenate([np.asarray(result.logits[row], dtype=np.float64) for result, row in chosen])
        tables.append(
            pd.DataFrame(
                {
                    "model": name,
                    "fold": (folds or {}).get(name, 0),
                    "video_id": np.repeat([result.video_id for result, _ in chosen], counts),
                    "frame_index": places[:, 0],
                    "track": places[:, 1],
                    "logit": logits,
                    "probability": sigmoid(logits),
                }
            )
        )
    if not tables:
        return FRAME_PREDICTIONS.empty()
    return FRAME_PREDICTIONS.validate(pd.concat(tables, ignore_index=True), "frame predictions")


def reasons(videos: pd.DataFrame) -> dict[str, int]:
    """Why videos were not judged, the most frequent reason first."""
    messages = videos.loc[videos["status"] != "ok", ["status", "message"]]
    counts = Counter(f"{row.status}: {row.message}" if row.message else row.status for row in messages.itertuples())
    return dict(counts.most_common(50))
