"""A multipart upload -> a file on disk, piece by piece and within bounds; its name becomes no path."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from fastapi import HTTPException, Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from multiattn.serve.limits import MEGABYTE

STALL_SECONDS = 30.0
"""An upload of which nothing arrives for so long is given up."""
LEAST_RATE = 2_000
"""Mean bytes a second, below which an upload is given up too: it holds a place in the queue."""
RESERVE_BYTES = 200 * MEGABYTE
"""Free space left for crops, reports and whoever else writes there."""
RETRY_SECONDS = 10
MAX_NAME = 200


def busy(words: str) -> HTTPException:
    """The answer to what may go well later."""
    return HTTPException(503, words, headers={"Retry-After": str(RETRY_SECONDS)})


class Disk:
    """Free space of a folder's disk, less what was promised to uploads under way; for one thread."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._promised = folder, 0

    @contextlib.contextmanager
    def promised(self, size: int) -> Iterator[None]:
        """Room for so many bytes; without it the answer is that the disk is full."""
        if size > shutil.disk_usage(self._folder).free - self._promised - RESERVE_BYTES:
            raise busy("The server's disk is full.")
        self._promised += size
        try:
            yield
        finally:
            self._promised -= size


def declared_length(request: Request, most: int) -> int:
    """Bytes of the body by its header, `most` where it has none; more is refused."""
    declared = request.headers.get("content-length", str(most))
    length = int(declared) if declared.isdecimal() else most
    if length > most:
        raise HTTPException(413, f"The upload is larger than the limit of {most:,} bytes.")
    return length


async def pieces(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body as it arrives, of at most so many bytes."""
    received, stream, begun = 0, request.stream(), time.monotonic()
    while True:
        try:
            piece = await asyncio.wait_for(anext(stream, None), STALL_SECONDS)
        except TimeoutError:
            raise HTTPException(408, f"Nothing arrived for {STALL_SECONDS:.0f} s.") from None
        except ClientDisconnect:
            raise HTTPException(400, "The upload was broken off.") from None
        if piece is None:
            return
        received += len(piece)
        if received > most:
            raise HTTPException(413, f"The upload is larger than the limit of {most:,} bytes.")
        if received < LEAST_RATE * (time.monotonic() - begun - STALL_SECONDS):
            raise HTTPException(408, f"Less than {LEAST_RATE:,} bytes a second arrived.")
        yield piece


async def receive_file(request: Request, folder: Path, most: int) -> tuple[Path, str]:
    """The path of the field `file` of a multipart body in a folder, and the name that it came with."""
    _, options = parse_options_header(request.headers["content-type"])
    if not 1 <= len(options.get(b"boundary", b"")) <= 200:
        raise HTTPException(400, "The multipart body's content type has no boundary.")
    part = _FilePart(folder)
    try:
        parser = MultipartParser(options[b"boundary"], part.callbacks())
        async for piece in pieces(request, most):
            await to_thread.run_sync(parser.write, piece)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"The body is no multipart form: {error}.") from error
    finally:
        part.close()
    if part.path is None or not part.is_whole:
        raise HTTPException(400, "The body has no whole file in a field named `file`.")
    return part.path, part.name


class _FilePart:
    """Callbacks of the parser: writes the part that is the file, and passes over all others."""

    def __init__(self, folder: Path) -> None:
        self.path: Path | None = None
        self.name, self.is_whole = "", False
        self._folder, self._file = folder, None
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""

    def callbacks(self) -> dict:
        """The methods `on_...` by their names."""
        return {name: getattr(self, name) for name in dir(self) if name.startswith("on_")}

    def close(self) -> None:
        """Close the file, whole or not."""
        if self._file is not None:
            file: BinaryIO = self._file
            self._file = None
            file.close()

    def on_part_begin(self) -> None:
        self._headers = {}

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if options.get(b"name") != b"file" or b"filename" not in options:
            return
        if self.path is not None:
            raise HTTPException(400, "The body has more than one file; send each by itself.")
        self.name = plain_name(options[b"filename"].decode("utf-8", "replace"))
        self.path = self._folder / f"clip{safe_suffix(self.name)}"
        self._file = self.path.open("xb")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])

    def on_part_end(self) -> None:
        self.close()

    def on_end(self) -> None:
        self.is_whole = True


def plain_name(name: str) -> str:
    """The last part of a name that may hold anything, of `MAX_NAME` letters at most, its ending kept."""
    name = re.split(r"[/\\]", name)[-1] or "file"
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 20]}…{name[-19:]}"


def safe_suffix(name: str) -> str:
    """A name's ending, by which pictures are told from videos; empty where it is not a few letters and digits."""
    found = re.search(r"\.[a-z0-9]{1,5}\Z", name.lower(), re.ASCII)
    return found[0] if found else ""
