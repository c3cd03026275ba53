"""Video probabilities -> submission.csv in the sample's rows and order, card.json beside it, both checked.

The submission folder while a kernel runs: always a complete valid submission.csv, better with every writing.

What a kernel run gives back: the submission, how each row came about, and what was given up to be in time.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multiattn.datasets.manifest import video_id
from multiattn.inference.submit.plan import PlanChange
from multiattn.inference.submit.store import VideoResult
from multiattn.runtime.environment import git_commit
from multiattn.runtime.files import write_json
from multiattn.runtime.layout import CARD_FILE, SUBMISSION_FILE, VIDEO_PREDICTIONS_FILE
from multiattn.scoring.aggregators import complete_videos, sigmoid
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_PREDICTIONS, VIDEO_STATUS

logger = logging.getLogger(__name__)

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
    path = folder / SUBMISSION_FILE
    check_submission(result.submission, sample, result.rule, path)
    VIDEO_PREDICTIONS.write(result.videos, folder / VIDEO_PREDICTIONS_FILE)
    card = {**card, "commit": git_commit(), "scoring": result.rule.as_dict(), "coverage": result.coverage}
    write_json(folder / CARD_FILE, card)
    SUBMISSION.write(result.submission, path)
    check_submission(SUBMISSION.read(path), sample, result.rule, path)


def read_sample(path: Path) -> pd.DataFrame:
    """A sample submission: `filename,label`, any labels.

    Raises:
        FileNotFoundError: no such file.
        ValueError: other columns, no rows, or a filename twice.
    """
    return SUBMISSION.read(path)


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
        self.path = folder / SUBMISSION_FILE
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


@dataclass(frozen=True)
class KernelResult(Submission):
    """A submission and how it was made.

    `videos` says for each row of the sample its status, probability, number of crops and, in `message`, the reason of
    whatever went wrong or was left out.
    """

    plan_changes: tuple[PlanChange, ...] = ()
    """What this run gave up to be in time, in order; empty where nothing was."""
    reduced: int = 0
    """Videos whose answer comes from fewer frames or models than there are, in this run or one before it."""
    rate: float = 0.0
    """Videos a second of this run, from the first video's start to the last one's end; 0 where none was done in it."""
    seconds: float = 0.0
    """From the start of this process to the delivery."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Of this run: `decode` and `search` summed over its workers, `classify` over its threads, and `wall`, from the
    first video's start to the last one's end."""
    workers: int = 0
    threads: int = 0
    thumbnails: dict[str, bytes] = field(default_factory=dict)
    """video_id -> JPEG, at most 96 pixels, of the crop that the models are surest of; judged videos only."""

    def least_certain(self, count: int) -> pd.DataFrame:
        """The `count` judged videos whose P(fake) is nearest to 0.5, the nearest first.

        Returns:
            Columns filename, probability, num_crops, message and thumbnail (JPEG bytes); equals in the order of the
            file names.
        """
        table = self.videos.assign(filename=self.submission["filename"].to_numpy())
        table = table[table["status"] == "ok"]
        table = table.assign(
            thumbnail=[self.thumbnails.get(video, b"") for video in table["video_id"]],
            distance=(table["probability"] - 0.5).abs(),
        )
        table = table.sort_values(["distance", "filename"], ignore_index=True).head(count)
        return table[["filename", "probability", "num_crops", "message", "thumbnail"]]
