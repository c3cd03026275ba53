"""Results of finished videos, one line of JSON a video, so that a run that was killed continues.

    OUT/kernel_results.jsonl    first line: what the results belong to; then one line a video

The file only grows at its end, a whole line in one write, so a process killed at any moment leaves at worst an
unfinished last line. Logits are kept, not probabilities: another scoring rule needs no new results. A file that belongs
to other work (runs, crops, precision) is set aside under another name and never mixed in.
"""

import contextlib
import dataclasses
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiattn.inference.submit.plan import Level
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
    """Logits of one video, or why there are none; plain types only."""

    video_id: str
    file_bytes: int
    """As of `FileStamp`; another size is another video."""
    file_modified: int = 0
    """Likewise; an unreadable file that was changed since is tried again."""
    status: str
    message: str = ""
    frames: int = 0
    """Asked of it."""
    crops: list[list[int]] = field(default_factory=list)
    """[frame_index, track] of each crop."""
    models: list[str] = field(default_factory=list)
    """Those that predicted it."""
    logits: list[list[float]] = field(default_factory=list)
    """One list a model, a value a crop."""
    again: bool = False
    """True where the file is unreadable by what may have been the machine's fault."""

    def is_of(self, stamp: FileStamp) -> bool:
        """True where the next run need not answer the video first: it is the same file, and the machine did not fail
        at it."""
        return self.file_bytes == stamp.file_bytes and self.status != "failed"

    def is_reduced(self, everything: Level) -> bool:
        """True where fewer frames or models were used than there are."""
        few_models = self.status == "ok" and len(self.models) < everything.models
        return few_models or (self.status in ANSWERED and self.frames < everything.frames)

    def may_be_readable(self, stamp: FileStamp) -> bool:
        """True where the file could not be read, and another try might."""
        return self.status == "unreadable" and (self.again or self.file_modified != stamp.file_modified)


FIELDS = {each.name for each in dataclasses.fields(VideoResult)}


def results_of(path: Path) -> tuple[dict[str, Any] | None, dict[str, VideoResult]]:
    """Read what a file's results belong to, and the results; None and nothing where there is no whole first line.

    A line that is not whole is skipped: its video is answered again. Keys of older versions are left out.
    """
    if not path.is_file():
        return None, {}
    fingerprint: dict[str, Any] | None = None
    results: dict[str, VideoResult] = {}
    damaged = 0
    with path.open("rb") as file:
        for number, line in enumerate(file):
            try:
                values = json.loads(line) if line.endswith(b"\n") else None
                if number == 0:
                    fingerprint = values["work"]
                    continue
                result = VideoResult(**{name: value for name, value in values.items() if name in FIELDS})
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError):
                damaged += 1
                if number == 0:
                    return None, {}
                continue
            results[result.video_id] = result
    if damaged:
        logger.warning("%s: %d lines are not whole; their videos are answered again", path, damaged)
    return fingerprint, results


class ResultStore:
    """The results of one submission folder, open for writing.

    Args:
        folder: the submission folder.
        work: what results belong to, plain types: they are of use only to the same work.

    Attributes:
        results: video_id -> result, those of earlier runs too.
    """

    def __init__(self, folder: Path, work: dict[str, Any]) -> None:
        self.path = folder / SUBMISSION_JOURNAL
        self.results: dict[str, VideoResult] = {}
        self._complains = True
        found, results = results_of(self.path)
        if found == work:
            self.results = results
            self._mend()
        elif self.path.exists():
            self._set_aside(found, work)
        self._file = self.path.open("ab", buffering=0)
        if not self.path.stat().st_size:
            self._write({"work": work})

    def add(self, result: VideoResult) -> None:
        """Keep a result. A disk without room costs the restart, not the submission."""
        self.results[result.video_id] = result
        try:
            self._write(dataclasses.asdict(result))
        except OSError as error:
            if self._complains:
                logger.warning("%s: results cannot be kept (%s); a restart would do them again", self.path, error)
            self._complains = False

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End writing."""
        self.sync()
        self._file.close()

    def _write(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
        start = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) != len(line):
            os.ftruncate(self._file.fileno(), start)  # a part of a line would spoil the next one
            raise OSError("the disk is full")

    def _mend(self) -> None:
        """Cut off the line that a kill left unfinished."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                whole += len(line) if line.endswith(b"\n") else 0
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)

    def _set_aside(self, found: dict[str, Any] | None, work: dict[str, Any]) -> None:
        if found is None:
            self.path.unlink()  # killed before its first line was whole: nothing is in it
            return
        names = (self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}") for number in range(1, 10**6))
        aside = next(path for path in names if not path.exists())
        self.path.replace(aside)
        parts = ", ".join(key for key in work if found.get(key) != work[key]) or "other settings"
        logger.warning("%s: results of other work (%s differ), set aside as %s", self.path, parts, aside.name)
