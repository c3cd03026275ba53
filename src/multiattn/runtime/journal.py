"""A journal of finished work, one line of JSON a record, that survives being cut.

The file only grows at its end, by one whole line in one write, so a process killed at any moment leaves at worst an
unfinished last line, which `repair` cuts off. Its folder is held by one process at a time (`files.exclusive_folder`).
"""

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from multiattn.runtime.files import free_name
from multiattn.runtime.text_tables import counted

logger = logging.getLogger(__name__)

Record = TypeVar("Record")
CHUNK_BYTES = 1 << 16
_HEADER = b'{"work":'


class Journal(Generic[Record]):
    """Records of one dataclass of plain types, keyed by its first field; as a context manager, open for writing.

    Args:
        pack: a record -> its fields in a shorter form, which `kind` takes as well; None: as they are.
    """

    def __init__(self, path: Path, kind: type[Record], pack: Callable[[Record], dict[str, Any]] | None = None) -> None:
        self.path, self.kind, self._pack = Path(path), kind, pack
        self._fields = {field.name: None for field in fields(kind)}  # in their order
        self._before_key = f'{{"{next(iter(self._fields))}":'
        self._file = self._reader = None
        self._reading = threading.Lock()

    def __enter__(self) -> "Journal[Record]":
        self._file = self.path.open("ab", buffering=0)
        self._reader = self.path.open("rb")  # of a million records each is read once
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._reader.close()
        self._file = self._reader = None

    def repair(self) -> None:
        """Cut off the line that a kill left unfinished; its work is done again. A journal without lines goes."""
        if not self.path.is_file():
            return
        with self.path.open("rb+") as file:
            whole = file.seek(0, os.SEEK_END)
            while whole > 0:
                start = max(0, whole - CHUNK_BYTES)
                file.seek(start)
                if (place := file.read(whole - start).rfind(b"\n")) >= 0:
                    whole = start + place + 1
                    break
                whole = start
            file.truncate(whole)
        if whole == 0:
            self.path.unlink()

    def claim(self, work: dict[str, Any]) -> None:
        """Repair the journal and keep its records if they belong to this work; set those of other work aside.

        `work` is what the records depend on, plain types; it becomes the first line of the file.
        """
        self.repair()
        if self.path.is_file():
            found = self.work()
            if found == work:
                return
            aside = self.path.replace(free_name(self.path))
            parts = ", ".join(key for key in work if found.get(key) != work[key]) or "other settings"
            logger.warning("%s: results of other work (%s differ), set aside as %s", self.path, parts, aside.name)
        with self:
            self._write({"work": work})

    def work(self) -> dict[str, Any]:
        """The work that the records belong to, as `claim` kept it; empty without a journal or a header."""
        if not self.path.is_file():
            return {}
        with self.path.open("rb") as file:
            try:
                return dict(json.loads(file.readline())["work"])
            except (ValueError, KeyError, TypeError):
                return {}

    def append(self, record: Record) -> int:
        """Add a record to the open journal, which a full disk leaves as it was; its line's place in the file.

        Raises:
            OSError: the disk is full; the journal is as it was.
        """
        fields = {name: getattr(record, name) for name in self._fields}
        return self._write(fields if self._pack is None else fields | self._pack(record))

    def _write(self, values: dict[str, Any]) -> int:
        line = json.dumps(values, separators=(",", ":")).encode() + b"\n"
        try:
            written = self._file.write(line)
            start = self._file.tell() - written  # where the file ended, whatever became of it since the last line
            if written == len(line):
                return start
            os.ftruncate(self._file.fileno(), start)  # a part of a line would spoil the next one
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        os.fsync(self._file.fileno())

    def places(self) -> dict[str, int]:
        """Key -> place of its line in the file; only the keys are parsed, the rest may be gigabytes.

        Raises:
            ValueError: a damaged line.
        """
        found, decoder = {}, json.JSONDecoder()
        for number, place, line in self._lines():
            if not line.endswith(b"\n"):  # what a kill left of it, until `repair`
                continue
            try:
                key, _ = decoder.raw_decode(line[:8192].decode(errors="replace"), len(self._before_key))
            except (json.JSONDecodeError, IndexError) as error:
                raise self._damaged(number, error) from error
            found[key] = place
        return found

    def read_at(self, place: int) -> Record:
        """The record whose line is at `place`. Safe for threads."""
        if self._reader is None:
            with self.path.open("rb") as file:
                file.seek(place)
                return self._record(file.readline())
        with self._reading:
            self._reader.seek(place)
            line = self._reader.readline()
        return self._record(line)

    def records(self, *, skip_damaged: bool = False) -> Iterator[Record]:
        """All records, one by one: all of a large data set at once would take gigabytes.

        A damaged line raises `ValueError`; with `skip_damaged` such lines are left out, and the log says how many.
        """
        return (record for _, record in self.placed_records(skip_damaged=skip_damaged))

    def placed_records(self, *, skip_damaged: bool = False) -> Iterator[tuple[int, Record]]:
        """The same, each with the place of its line."""
        damaged = 0
        for number, place, line in self._lines():
            try:
                record = self._record(line)
            except (ValueError, TypeError, AttributeError, OverflowError) as error:
                if not skip_damaged:
                    raise self._damaged(number, error) from error
                damaged += 1
                continue
            yield place, record
        if damaged:
            number = counted(damaged, "damaged line is", "damaged lines are")
            logger.warning("%s: %s left out; the work is done again", self.path, number)

    def _record(self, line: bytes) -> Record:
        """The record of a line; fields that an earlier version had are left out."""
        values = json.loads(line)
        return self.kind(**{name: values[name] for name in values.keys() & self._fields.keys()})

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, place and bytes of each line, without the header."""
        if not self.path.is_file():
            return
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number > 1 or not line.startswith(_HEADER):
                    yield number, place, line
                place += len(line)

    def _damaged(self, number: int, error: Exception) -> ValueError:
        return ValueError(f"{self.path}: line {number} is damaged ({error}). Delete that line and run again.")
