"""The bytes of stored crops: files, or members of tar archives that are read where they lie.

A crop's address, the column `crop` of faces.parquet, is a path below the root of its faces folder's crops:

    part0/apedduehoy.jpg                          a file
    train.tar@1536+4201/part0/apedduehoy.jpg      4,201 bytes from byte 1,536 on of train.tar, which it names so

So the table is the index of its archives: nothing is loaded beside it, and any number of worker processes seek for
themselves. With each crop its header in the archive is read, which says whether the archive is still the same.
"""

import functools
import os
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from multiattn.runtime.files import read_json, require_plain_file
from multiattn.runtime.layout import CROPS_FOLDER, RECIPE_FILE, SHARDS_FOLDER

if TYPE_CHECKING:
    import pandas as pd

ROOT_KEY = "root"
"""In faces.json: the folder crops lie below, from the faces folder. Where it is declared, the crops came from
elsewhere, and boxes and landmarks are pixels of each crop as it is stored, not of a frame."""
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BLOCK = tarfile.BLOCKSIZE
_NAME, _SIZE = slice(0, 100), slice(124, 136)
"""Fields of a member's header, which is the block before its content."""
_MEMBER = re.compile(
    r"(?P<archive>.+?\.(?:tar|tar\.gz|tgz))@(?P<offset>\d+)\+(?P<size>\d+)/(?P<member>.+)", re.DOTALL | re.IGNORECASE
)
PACKED = rf"^{SHARDS_FOLDER}/\d+\.tar@\d+\+\d+/{CROPS_FOLDER}/"
"""Pattern of how the address of a packed crop begins (`video/extraction/packing.py`)."""
_OPEN_ARCHIVES = 128
"""All shards of DFDC's crops; macOS lets a process have 256 files open."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that are followed by its size."""
_PNG = struct.Struct(">8s4x4sII")
_PADDING_BYTES = 1 << 16
"""An archive ends in zeros up to a multiple of usually 10,240 bytes."""


def declared_root(folder: Path) -> Path | None:
    """The folder that `faces.json` declares its crops to lie below; None where they lie in the faces folder itself.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = Path(folder) / RECIPE_FILE
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict) or not isinstance(name := values.get(ROOT_KEY), str):
        return None
    root = path.parent.resolve() / name
    if not root.is_dir():
        raise FileNotFoundError(
            f"{path}: {ROOT_KEY}: expected the folder that holds the crops, found none at {root}. If they moved, "
            "correct the line, or run `multiattn index` again with another --faces."
        )
    return root


def crops_root(folder: Path) -> Path:
    """The folder that the addresses of a faces folder's crops start from; raises as `declared_root`."""
    return declared_root(folder) or Path(folder)


def _member(address: str) -> re.Match[str] | None:
    """The parts of the address of an archive's member; None for that of a file."""
    return _MEMBER.fullmatch(address) if "@" in address else None


def unpacked_path(address: str) -> str:
    """The path a crop would have, were its archive unpacked where it lies."""
    if (match := _member(address)) is None:
        return address
    above = match["archive"].rpartition("/")[0]
    return f"{above}/{match['member']}" if above else match["member"]


def path_in_archive(address: str) -> str:
    """`<archive>/<member>` of an address, for people; the path itself of a file."""
    match = _member(address)
    return address if match is None else f"{match['archive']}/{match['member']}"


def loose_name(address: str) -> str:
    """The path that a packed crop had before; any other address as it is."""
    return re.sub(PACKED, f"{CROPS_FOLDER}/", address)


def loose_names(addresses: "pd.Series") -> "pd.Series":
    """`loose_name` of many."""
    if not addresses.str.startswith(f"{SHARDS_FOLDER}/").any():  # the pattern takes a second for a million
        return addresses
    return addresses.str.replace(PACKED, f"{CROPS_FOLDER}/", regex=True)


def stored_file(address: str) -> str:
    """The path of the file that holds a crop: its own, or that of its archive."""
    match = _member(address)
    return address if match is None else match["archive"]


def is_archive_name(name: str) -> bool:
    """True for the name of a tar archive: by its ending, in any case."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_members(root: Path, archive: str) -> Iterator[str]:
    """Addresses of the files in an archive, in its order; only its headers are read.

    Raises:
        ValueError: not a tar archive, cut off, damaged, or compressed, which leaves nothing to seek in.
    """
    path = root / archive
    try:
        require_plain_file(path)
        with tarfile.open(path, "r:") as file:
            while (member := file.next()) is not None:
                file.members.clear()  # or it would keep millions
                if member.isreg():
                    yield f"{archive}@{member.offset_data}+{member.size}/{member.name.removeprefix('./')}"
            end = file.offset
        if path.stat().st_size < end:
            raise tarfile.ReadError(f"it ends after {path.stat().st_size} of {end} bytes")
        with path.open("rb") as content:  # tarfile takes a damaged header for the end
            content.seek(end)
            if content.read(_PADDING_BYTES).strip(b"\0"):
                raise tarfile.ReadError(f"one whose members end after {end} bytes, and something else follows")
    except (tarfile.TarError, OSError) as error:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        found = "a compressed one" if compressed else error
        advice = f"Unpack it once: `tar xf {path}`" if compressed else "Copy it again, or take it away"
        raise ValueError(f"{path}: expected an uncompressed tar archive, found {found}. {advice}.") from error


def read_stored(path: Path) -> bytes:
    """The content of the crop at an address, joined to the root of the crops; empty where there is no such file.

    Raises:
        ValueError: an archive that is gone, or no longer the one that was indexed.
    """
    match = _member(os.fspath(path))
    if match is None:
        return Path(path).read_bytes() if Path(path).is_file() else b""  # a FIFO would keep us waiting
    size = int(match["size"])
    content = _read_at(match["archive"], int(match["offset"]) - BLOCK, BLOCK + size)
    _require_same(content[:BLOCK], match, len(content) == BLOCK + size)
    return content[BLOCK:]


def read_ends(path: Path, head: int, tail: int) -> tuple[bytes, bytes]:
    """The first and the last bytes of a crop, fewer where it has fewer; as `read_stored`.

    Raises:
        OSError: no such file, or it cannot be read.
    """
    match = _member(os.fspath(path))
    if match is None:
        require_plain_file(path)
        with Path(path).open("rb", buffering=0) as file:
            begin = file.read(head)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - tail))
            return begin, file.read(tail)
    offset, size = int(match["offset"]), int(match["size"])
    begin = _read_at(match["archive"], offset, min(head, size))
    return begin, _read_at(match["archive"], offset + max(0, size - tail), min(tail, size))


def _read_at(archive: str, place: int, length: int) -> bytes:
    if not hasattr(os, "pread"):  # on Windows
        with Path(archive).open("rb") as file:
            file.seek(place)
            return file.read(length)
    file = _opened(archive)  # kept until it is read: another thread may have it leave the cache, which closes it
    return os.pread(file.fileno(), length, place)  # processes share the file, not a place in it


@functools.lru_cache(maxsize=_OPEN_ARCHIVES)
def _opened(archive: str) -> BinaryIO:
    try:
        return Path(archive).open("rb", buffering=0)
    except OSError as error:
        raise ValueError(
            f"{archive}: expected the archive that holds the crops, found none: {error.strerror}. Put it back or, if "
            f"{RECIPE_FILE} of the faces folder has a `{ROOT_KEY}` and the archives moved, correct that."
        ) from error


def _require_same(header: bytes, match: re.Match[str], is_whole: bool) -> None:
    member = match["member"]
    tail = member.rpartition("/")[2].encode()
    # Longer and other names stand elsewhere, and here in part.
    named = tail in header[_NAME] or len(member) > 100 or not member.isascii()
    size = (header[_SIZE].strip(b" \0").lstrip(b"0") or b"0") == b"%o" % int(match["size"])
    if not (is_whole and named and size):
        raise ValueError(
            f"{match['archive']}: {member} is no longer at byte {match['offset']}: the archive was changed after it "
            "was indexed or packed. Put it back as it was, or run the same `multiattn index crops` command again."
        )


def picture_size(head: bytes) -> tuple[int, int] | None:
    """Width and height that a picture's header names; None where none is found in these bytes."""
    return jpeg_size(head) or _png_size(head) or _webp_size(head)


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG's header names; None where it is no JPEG or has no such header."""
    if not content.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in _JPEG_FRAMES:
            height, width = (int.from_bytes(content[place + i : place + i + 2], "big") for i in (5, 7))
            return width, height
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def _png_size(head: bytes) -> tuple[int, int] | None:
    if len(head) < _PNG.size:
        return None
    signature, kind, width, height = _PNG.unpack(head[: _PNG.size])
    return (width, height) if signature == b"\x89PNG\r\n\x1a\n" and kind == b"IHDR" else None


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Size in any of its three forms: lossy, lossless, and extended (RFC 9649, sections 2.5 to 2.7)."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return None
    kind = head[12:16]
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    return None
