"""The journal of a faces folder: finished videos of a run that has not ended yet, one line of JSON each.

It only ever grows at its end, by one whole line in one write, so a process killed at any moment leaves at worst an
unfinished last line. Lines come in the order in which videos finish; the tables made of them are sorted.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from multiattn.runtime.layout import FACES_JOURNAL
from multiattn.video.extraction.extract import VideoFaces

_BEFORE_ID = '{"video_id":'


class Journal:
    """The journal of one faces folder; as a context manager, open for writing."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / FACES_JOURNAL
        self._file = None

    def __enter__(self) -> "Journal":
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._file = None

    def append(self, result: VideoFaces) -> int:
        """Add a finished video; returns the line's place in the file."""
        line = json.dumps(asdict(result), separators=(",", ":")).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END)
        if self._file.write(line) != len(line):
            raise OSError(f"{self.path}: the disk is full. Make room and run the same command again.")
        return start

    def mend(self) -> None:
        """Cut off the line that a kill left unfinished; its video is done again. A journal without lines goes."""
        if not self.path.is_file():
            return
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                whole += len(line) if line.endswith(b"\n") else 0
        os.truncate(self.path, whole)
        if whole == 0:
            self.path.unlink()

    def places(self) -> dict[str, int]:
        """video_id -> place of its line in the file; only the names are read, the rest may be gigabytes.

        Raises:
            ValueError: a damaged line.
        """
        if not self.path.is_file():
            return {}
        found, start, decoder = {}, 0, json.JSONDecoder()
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                head = line[:8192].decode(errors="replace")
                try:
                    video_id, _ = decoder.raw_decode(head, len(_BEFORE_ID))
                except (json.JSONDecodeError, IndexError) as error:
                    raise self._damaged(number, error) from error
                found[video_id] = start
                start += len(line)
        return found

    def read_at(self, place: int) -> VideoFaces:
        """The video whose line is at `place`."""
        with self.path.open("rb") as file:
            file.seek(place)
            return VideoFaces(**json.loads(file.readline()))

    def __iter__(self) -> Iterator[VideoFaces]:
        """All finished videos, one by one: all of DFDC at once would take gigabytes.

        Raises:
            ValueError: a damaged line.
        """
        if not self.path.is_file():
            return
        with self.path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield VideoFaces(**json.loads(line))
                except (json.JSONDecodeError, TypeError) as error:
                    raise self._damaged(number, error) from error

    def remove(self) -> None:
        """Once its videos stand in the tables."""
        self.path.unlink(missing_ok=True)

    def _damaged(self, number: int, error: Exception) -> ValueError:
        return ValueError(f"{self.path}: line {number} is damaged ({error}). Delete that line and run again.")
