"""The submission folder: submission.csv in the sample's rows and order, always complete; card.json and tables."""

import contextlib
import logging
import queue
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from multiattn.config import to_json
from multiattn.datasets.manifest import folder_ids
from multiattn.inference.submit.extraction import Extraction, Work
from multiattn.inference.submit.frames import frame_table
from multiattn.inference.submit.inputs import require_rows
from multiattn.inference.submit.plan import PlanChange
from multiattn.inference.submit.results import VideoResult
from multiattn.runtime.environment import git_commit
from multiattn.runtime.files import free_name, read_json, write_json
from multiattn.runtime.layout import (
    CARD_FILE,
    PREDICTIONS_FILE,
    SUBMISSION_FILE,
    UNFINISHED_BLEND,
    VIDEO_HELD_OUT_FILE,
    VIDEO_PREDICTIONS_FILE,
)
from multiattn.runtime.text_tables import counted
from multiattn.scoring import DEFAULT_PRIOR
from multiattn.scoring.aggregators import complete_videos
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FRAME_PREDICTIONS, SUBMISSION, VIDEO_PREDICTIONS
from multiattn.video.extraction.isolation import end_processes

logger = logging.getLogger(__name__)

NOT_THERE = "not in the folder of videos"
STATUSES = ("ok", "no_face", "unreadable", "missing", "failed", "late")
StatusOf = Callable[[str], tuple[str, str] | None]
"""video_id -> status and message; None of a video that is not there."""
VIDEOS_AT_ONCE = 2000
"""Whose crops are in memory when they are scored, and when their table is written."""
THUMBNAIL_PIXELS = 96
THUMBNAIL_SECONDS = 120.0
"""For all pictures together. A notebook shows them after the delivery, for which 300 s of its nine hours are kept."""


@dataclass(frozen=True)
class Submission:
    """The answers to one sample submission."""

    submission: pd.DataFrame
    """`submission.csv`."""
    videos: pd.DataFrame
    """`video_predictions.csv`: how each row came about."""
    rule: ScoringRule

    @property
    def coverage(self) -> dict[str, int]:
        """Number of videos of each status, `failed` and `late` where there are some; all but `ok` have the prior, or
        outside models' answers. Empty where it is not known how the rows came about."""
        if self.videos.empty:
            return {}
        counts = Counter(self.videos["status"])
        return {name: counts[name] for name in STATUSES if name in counts or name not in ("failed", "late")}


def build_submission(
    scored: pd.DataFrame,
    status_of: StatusOf,
    sample: pd.DataFrame,
    rule: ScoringRule,
    ids: Sequence[str] | None = None,
) -> Submission:
    """One probability for each row of the sample.

    Args:
        scored: rows of `ScoringRule.score`, of any number of calls: no video's score depends on another's.
        status_of: for these videos; `failed` (an error while it was predicted) or `late` (no time was left) beside
            those of a `video_status` table. A sample row without a status is `missing`.
        ids: `folder_ids` of the sample, where they are known: those of a million names take seconds.
    """
    ids = folder_ids(sample["filename"]) if ids is None else ids
    videos = complete_videos(pd.Series(ids), scored, rule.prior)
    absent, same = ("missing", NOT_THERE), {}  # a million statuses are of a few kinds
    known = [same.setdefault(status, status) for status in (status_of(video) or absent for video in ids)]
    videos["status"], videos["message"] = [status for status, _ in known], [message for _, message in known]
    if rule.outside:
        alone = (videos["status"] != "ok") & videos["video_id"].isin(scored["video_id"])
        videos.loc[alone, "message"] = (videos.loc[alone, "message"] + "; answered by outside models").str.lstrip("; ")
    silent = videos[(videos["status"] == "ok") & (videos["num_crops"] == 0)]
    if len(silent):
        raise ValueError(
            f"{counted(len(silent), 'video has', 'videos have')} faces "
            f"but no prediction; the first: {silent['video_id'].iloc[0]}."
        )
    submission = pd.DataFrame({"filename": sample["filename"].to_numpy(), "label": videos["probability"].to_numpy()})
    return Submission(submission, VIDEO_PREDICTIONS.validate(videos, "video predictions"), rule)


def check_submission(submission: pd.DataFrame, sample: pd.DataFrame, rule: ScoringRule, source: Path) -> None:
    """Raise `ValueError` where rows are missing, added or out of order, or a probability lies outside
    [clip, 1 - clip]."""
    SUBMISSION.validate(submission, source)
    require_rows(submission, sample, source)
    probabilities = submission["label"].to_numpy(np.float64)
    outside = (probabilities < rule.clip) | (probabilities > 1 - rule.clip)
    if outside.any():
        name = submission["filename"].iloc[int(np.argmax(outside))]
        raise ValueError(
            f"{source}: expected probabilities in [{rule.clip}, {1 - rule.clip}], found "
            f"{int(outside.sum())} outside; the first: {name}."
        )


def write_submission(
    result: Submission,
    sample: pd.DataFrame,
    folder: Path,
    card: dict[str, Any],
    write_frames: Callable[[Path], dict[str, Any]] | None = None,
) -> None:
    """Write the files of a submission folder, submission.csv read back and checked, the card (to which commit, rule
    and coverage are added) last: at no moment does one lie there beside answers it does not describe. `write_frames`
    writes the frame predictions, once the answers are there, and gives the card's entries about them; None where they
    are not complete."""
    path = folder / SUBMISSION_FILE
    check_submission(result.submission, sample, result.rule, path)
    VIDEO_PREDICTIONS.write(result.videos, folder / VIDEO_PREDICTIONS_FILE)
    for name in (CARD_FILE, PREDICTIONS_FILE, VIDEO_HELD_OUT_FILE):
        (folder / name).unlink(missing_ok=True)
    SUBMISSION.write(result.submission, path)
    check_submission(SUBMISSION.read(path), sample, result.rule, path)
    if write_frames is not None:
        card = {**card, **write_frames(folder / PREDICTIONS_FILE)}
    scoring = to_json(replace(result.rule, held_out=None))  # hundreds of numbers that no submission goes by
    card = {**card, "commit": git_commit(), "scoring": scoring, "coverage": result.coverage}
    write_json(folder / CARD_FILE, card)


class Delivery:
    """Writes the answers to one sample submission into its folder. The former answers to the same sample stay until
    there are as many new ones.

    Attributes:
        predicted: videos to which submission.csv has another value than the prior.
        ids: the video_id of each row of the sample.
    """

    def __init__(
        self, sample: pd.DataFrame, rule: ScoringRule, folder: Path, outside: pd.DataFrame | None = None
    ) -> None:
        self.sample, self.rule, self.folder, self.outside = sample, rule, folder, outside
        self.path = folder / SUBMISSION_FILE
        self.predicted = 0
        self.ids = folder_ids(sample["filename"])
        self._unscored: dict[str, list[VideoResult]] = {}
        self._unread: list[str] = []
        self._read: Callable[[str], Mapping[int, VideoResult]] = lambda video: {}
        # What outside models say until a video has results, or where it has none; of a video the last row counts.
        self._scored = [rule.score(FRAME_PREDICTIONS.empty(), outside).astype({"video_id": str})]

    def begin(self) -> None:
        """Make sure that a complete submission for this sample lies there, by priors where there is none; one for
        another sample is set aside."""
        (self.folder / UNFINISHED_BLEND).unlink(missing_ok=True)
        try:
            labels = SUBMISSION.read(self.path).set_index("filename")["label"]
        except (FileNotFoundError, ValueError):
            labels = pd.Series(dtype=float)
        if labels.index.tolist() == self.sample["filename"].tolist():
            self.predicted = int((~labels.isin([DEFAULT_PRIOR, self.rule.prior])).sum())
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # the prior may have been another
                self.predicted = min(self.predicted, read_json(self.folder / CARD_FILE)["coverage"]["ok"])
        else:
            self._set_aside()
        if not self.predicted:
            (self.folder / CARD_FILE).unlink(missing_ok=True)
            SUBMISSION.write(self.sample.assign(label=self.rule.prior), self.path)

    def _set_aside(self) -> None:
        """Keep what lies there under other names; submission.csv stays until it is replaced."""
        for name in (CARD_FILE, SUBMISSION_FILE, VIDEO_PREDICTIONS_FILE, PREDICTIONS_FILE):
            if (path := self.folder / name).is_file():
                aside = free_name(path)
                logger.warning("%s: of other answers, set aside as %s", path, aside.name)
                shutil.copyfile(path, aside)
                if name != SUBMISSION_FILE:
                    path.unlink()

    def add_kept(self, videos: Iterable[str], read: Callable[[str], Mapping[int, VideoResult]]) -> None:
        """Take videos of an earlier run, whose results by recipe are read when they are scored: no worker waits for the
        half a minute that a million take."""
        self._unread, self._read = list(videos), read

    def add(self, video: str, results: Sequence[VideoResult]) -> None:
        """Take the results of a video by each recipe, in place of those it had."""
        if any(result.logits for result in results):
            self._unscored[video] = list(results)
        if len(self._unscored) >= VIDEOS_AT_ONCE:
            self._score()

    def _score(self) -> None:
        """Score the videos that were taken, each once and by itself: no video's score depends on another's."""
        videos = self._unscored
        if not videos:
            return
        outside = self.outside if self.outside is None else self.outside.reindex(list(videos))
        self._scored.append(self.rule.score(frame_table([it for them in videos.values() for it in them]), outside))
        self._unscored = {}

    def build(self, status_of: StatusOf) -> Submission:
        """The submission of what is known so far."""
        while self._unread:
            self.add(self._unread[-1], list(self._read(self._unread[-1]).values()))
            self._unread.pop()
        self._score()
        self._scored = [pd.concat(self._scored).drop_duplicates("video_id", keep="last", ignore_index=True)]
        return build_submission(self._scored[0], status_of, self.sample, self.rule, self.ids)

    def try_to_write(self, submission: Submission, card: dict[str, Any]) -> None:
        """Replace what is in the folder, unless it answers more; a full disk is no reason to end."""
        if submission.coverage["ok"] < self.predicted:
            return
        try:
            write_submission(submission, self.sample, self.folder, card)
        except OSError as error:
            logger.warning("%s could not be replaced (%s); the former one is still there", self.path, error)
        else:
            self.predicted = submission.coverage["ok"]

    def deliver(
        self, submission: Submission, card: dict[str, Any], write_frames: Callable[[Path], dict[str, Any]]
    ) -> bool:
        """Write the folder at a run's end; False where the former answers stay, for this run was ended early and has
        fewer. What answers more than a run that came to its end is set aside."""
        coverage = submission.coverage
        if coverage["ok"] < self.predicted:
            if "late" in coverage or not coverage["ok"]:
                logger.warning(
                    "%s: the former answers to %d videos stay; this run has %d so far, and the same command goes on",
                    self.path, self.predicted, coverage["ok"],
                )  # fmt: skip
                return False
            self._set_aside()
        write_submission(submission, self.sample, self.folder, card, write_frames)
        self.predicted = coverage["ok"]
        return True


def reasons(videos: pd.DataFrame) -> dict[str, int]:
    """Reasons of the prior -> number of videos, the most frequent first, at most 50."""
    messages = videos.loc[videos["status"] != "ok", ["status", "message"]].itertuples(index=False)
    return dict(Counter(": ".join(filter(None, row)) for row in messages).most_common(50))


@dataclass(frozen=True)
class SubmitResult(Submission):
    """A submission and how it was made."""

    plan_changes: tuple[PlanChange, ...] = ()
    """Changes by this run to be in time, in order."""
    reduced: int = 0
    """Videos whose answer comes from fewer frames or models than there are, in this run or one before it."""
    rate: float = 0.0
    """Videos a second of this run, from the first video's start to the last one's end; 0 where none was done in it."""
    seconds: float = 0.0
    """From the start of this process to the delivery."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """`decode` and `search` summed over this run's workers, `classify` over its threads, and `wall`."""
    workers: int = 0
    threads: int = 0
    surest_crop: Callable[[str], tuple[Work, int, int] | None] = lambda video: None
    """Gives work, frame_index and track of the crop of a video that the models are surest of; None without faces."""
    delivered: bool = True
    """False where the former answers stay in the folder, for they are more."""

    def least_certain(self, count: int) -> pd.DataFrame:
        """The `count` videos with faces whose P(fake) is nearest to 0.5, the nearest first, equals by name: filename,
        probability, num_crops, message and thumbnail (of `cut_thumbnails`)."""
        distance = (self.videos["probability"] - 0.5).abs()
        table = self.videos.assign(filename=self.submission["filename"].to_numpy(), distance=distance)
        table = table[table["status"] == "ok"].sort_values(["distance", "filename"], ignore_index=True).head(count)
        chosen = list(filter(None, map(self.surest_crop, table["video_id"])))
        pictures = cut_thumbnails(chosen, workers=max(1, self.workers))
        table["thumbnail"] = [pictures.get(video, b"") for video in table["video_id"]]
        return table[["filename", "probability", "num_crops", "message", "thumbnail"]]


def cut_thumbnails(crops: Sequence[tuple[Work, int, int]], *, workers: int) -> dict[str, bytes]:
    """Cut crops (the work that extracted their video, frame_index, track) from their videos again: video_id -> JPEG of
    at most 96 pixels a side, without videos that could not be read again within `THUMBNAIL_SECONDS`."""
    places = {work.task.video_id: (frame_index, track) for work, frame_index, track in crops}
    works = ([work] for work, *_ in crops)
    extraction = Extraction(
        lambda: next(works, None),
        workers=workers,
        time_limit=THUMBNAIL_SECONDS,
        lost=lambda task, how: None,
        crashed=lambda error: logger.warning("pictures were not cut: %s", error),
    )
    deadline = time.monotonic() + THUMBNAIL_SECONDS
    pictures = {}
    try:
        while (found := extraction.results.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            video = found.work.task.video_id
            for crop in found.crops.crops if found.crops is not None else ():
                if (crop.frame_index, crop.track) == places[video]:
                    pictures[video] = _thumbnail(crop.jpeg)
    except queue.Empty:
        logger.warning("%d of %s not cut in time", len(places) - len(pictures), counted(len(places), "picture"))
        end_processes()
    finally:
        extraction.stop()
    return pictures


def _thumbnail(jpeg: bytes) -> bytes:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image.shape[0] > THUMBNAIL_PIXELS:
        image = cv2.resize(image, (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
