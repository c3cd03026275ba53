"""Results of the videos of a submission, kept in a journal so that a killed run goes on where it was."""

import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiattn.inference.submit.plan import Level
from multiattn.runtime.journal import Journal
from multiattn.runtime.layout import SUBMISSION_JOURNAL

logger = logging.getLogger(__name__)

ANSWERED = ("ok", "no_face")
"""Statuses of videos that were decoded and searched."""


@dataclass(frozen=True)
class FileStamp:
    """A video's file as it was when it was read."""

    file_bytes: int
    """-1: it could not be asked."""
    file_modified: int
    """Nanoseconds."""

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """The stamp of a file now."""
        try:
            facts = path.stat()
        except OSError:
            return cls(-1, 0)
        return cls(facts.st_size, facts.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """Logits of one video, or the reason why there are none; plain types only."""

    video_id: str
    file_bytes: int
    """Of `FileStamp`; another size is another video."""
    file_modified: int = 0
    """Of `FileStamp`; an unreadable file that was changed since is tried again."""
    status: str
    message: str = ""
    frames: int = 0
    """Number asked for."""
    crops: list[list[int]] = field(default_factory=list)
    """[frame_index, track] of each crop."""
    models: list[str] = field(default_factory=list)
    """Names of those that predicted it."""
    precisions: list[str] = field(default_factory=list)
    """Precision of each model; empty in results of older versions."""
    logits: list[list[float]] = field(default_factory=list)
    """(models, crops)."""
    again: bool = False
    """True where the file is unreadable by what may have been the machine's fault."""

    def is_of(self, stamp: FileStamp) -> bool:
        """True where it is the same file, and the machine did not fail at it."""
        return self.file_bytes == stamp.file_bytes and self.status != "failed"

    def is_reduced(self, everything: Level) -> bool:
        """True where fewer frames or models were used than there are."""
        few_models = self.status == "ok" and len(self.models) < everything.models
        return few_models or (self.status in ANSWERED and self.frames < everything.frames)

    def may_be_readable(self, stamp: FileStamp) -> bool:
        """True where the file could not be read, and another try might."""
        return self.status == "unreadable" and (self.again or self.file_modified != stamp.file_modified)


def recorded_work(folder: Path) -> dict[str, Any]:
    """The work that a submission folder's results belong to, as `ResultStore` keeps it; empty where there are none."""
    return Journal(folder / SUBMISSION_JOURNAL, VideoResult).work()


class ResultStore:
    """The results of one submission folder, open for writing. Logits are kept, not probabilities: another scoring rule
    needs no new results.

    Args:
        folder: the submission folder.
        work: what results belong to, plain types: they are of use only to the same work.

    Attributes:
        results: video_id -> result, those of earlier runs too.
    """

    def __init__(self, folder: Path, work: dict[str, Any]) -> None:
        self.journal = Journal(folder / SUBMISSION_JOURNAL, VideoResult)
        self.journal.claim(work)
        self.results = {result.video_id: result for result in self.journal.records(skip_damaged=True)}
        self.journal.__enter__()
        self._warned = False

    def add(self, result: VideoResult) -> None:
        """Keep a result. A disk without room costs the restart, not the submission."""
        self.results[result.video_id] = result
        try:
            self.journal.append(result)
        except OSError as error:
            if not self._warned:
                logger.warning("results cannot be kept (%s); a restart would do them again", error)
            self._warned = True

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        with contextlib.suppress(OSError):
            self.journal.sync()

    def close(self) -> None:
        """End writing."""
        self.sync()
        self.journal.__exit__()
