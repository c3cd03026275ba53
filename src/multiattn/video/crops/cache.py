"""Decoded crops kept for the next epoch: one file, in memory or on disk, that any number of processes share.

The file is a row of records of equal length, one a crop: its pixels, then a check of them. The check is written last,
and a record whose pixels do not fit it counts as empty, so neither a killed process nor a power cut leaves half a crop.
Records are read through a memory map and written with `pwrite`, which a full disk refuses with an error where a memory
map would end the process.

In memory means a file in /dev/shm, which all training processes of a machine find by its name and the last of them
removes. The file of a killed run serves the same command run again; any other run removes it.
"""

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import weakref
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

try:
    import fcntl
except ImportError:  # on Windows, where no crops are kept
    fcntl = None

from multiattn.config import to_json
from multiattn.runtime.layout import FACES_FILE
from multiattn.runtime.processor import free_memory
from multiattn.video.crops.recipe import read_recipe

logger = logging.getLogger(__name__)

DECODING = 1
"""Raised when `read_crop` begins to give other pixels."""
SHARED_MEMORY = Path("/dev/shm")
_CHECK_BYTES = 4
_CHECK_STRIDE = 509
"""Distance of the bytes that are checked: far below a page, so that no lost page goes unseen, and a hundredth of the
time that a check of all bytes takes."""
GIGABYTE = 10**9
_in_use: "weakref.WeakValueDictionary[Path, CropCache]" = weakref.WeakValueDictionary()
"""Caches of this process, which holds one lock on each file: closing a second one would give up the first."""


def record_bytes(size: int) -> int:
    """Bytes of a crop of this side."""
    return size * size * 3 + _CHECK_BYTES


class CropCache:
    """The first `rows` crops of one size, by number. Safe to use from any number of processes, forked or not."""

    def __init__(self, path: Path, rows: int, size: int) -> None:
        self.path, self.rows, self.size = path, rows, size
        self._bytes, self._stride, self._is_full = size * size * 3, record_bytes(size), False
        self._file = _open_and_hold(path)
        if os.fstat(self._file).st_size < rows * self._stride:
            # Not ftruncate: of two processes that open it at once, one could cut off what the other made.
            os.pwrite(self._file, b"\0", rows * self._stride - 1)
        self._map = mmap.mmap(self._file, rows * self._stride, prot=mmap.PROT_READ)
        weakref.finalize(self, _let_go, self._file, path, os.getpid())

    def get(self, row: int) -> np.ndarray | None:
        """A copy of the crop, (size, size, 3) uint8; None where it is not there yet."""
        if row >= self.rows:
            return None
        start = row * self._stride
        check = self._map[start + self._bytes : start + self._stride]
        if check == b"\0" * _CHECK_BYTES:
            return None
        crop = np.frombuffer(self._map, np.uint8, self._bytes, start).copy()
        return crop.reshape(self.size, self.size, 3) if check == _check(crop) else None

    def put(self, row: int, crop: np.ndarray) -> None:
        """Keep a crop; does nothing where the cache has no place for it, or its file system has none left."""
        if row >= self.rows or self._is_full:
            return
        start, pixels = row * self._stride, np.ascontiguousarray(crop).reshape(-1)
        try:
            if os.pwrite(self._file, pixels.data, start) == self._bytes:
                os.pwrite(self._file, _check(pixels), start + self._bytes)
        except OSError as error:
            logger.warning("%s takes no more crops: %s. Those are read from their files.", self.path, error)
            self._is_full = True

    def __reduce__(self) -> tuple[Any, ...]:
        return CropCache, (self.path, self.rows, self.size)


def _check(pixels: np.ndarray) -> bytes:
    return zlib.crc32(pixels[::_CHECK_STRIDE].tobytes()).to_bytes(_CHECK_BYTES, "little")


def _open_and_hold(path: Path) -> int:
    """Open the file with a lock that marks it as used. The lock goes with the process, and forks do not inherit it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600 if path.parent == SHARED_MEMORY else 0o666)
        fcntl.lockf(file, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)  # it was removed between the two calls


def _let_go(file: int, path: Path, process: int) -> None:
    """Close the file; the last process that used a cache in memory removes it."""
    if process != os.getpid():
        return
    if path.parent == SHARED_MEMORY:
        _remove_unless_used(file, path)
    os.close(file)


def _remove_unless_used(file: int, path: Path) -> None:
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)


def open_cache(
    kind: Literal["memory", "disk"], folder: Path, *, names_digest: str, num_crops: int, size: int, gigabytes: float
) -> CropCache:
    """The cache of a faces folder: its first crops that fit, at one size.

    Args:
        kind: `memory` lies in /dev/shm, `disk` in the folder's `.cache/` and survives.
        names_digest: of the names of all crops of the folder in order, by which their numbers go.
        gigabytes: bound on its size, in 1e9 bytes.

    Raises:
        ValueError: there is not so much room, not one crop fits, or this system has no such cache.
        FileNotFoundError: not a faces folder.
    """
    if fcntl is None or (kind == "memory" and not SHARED_MEMORY.is_dir()):
        raise ValueError(f"--data.cache {kind}: not on this system. Take --data.cache none, or disk on macOS.")
    rows = min(num_crops, int(gigabytes * GIGABYTE) // record_bytes(size))
    if rows == 0:
        raise ValueError(f"--data.cache-gb {gigabytes}: expected room for a crop of {size} pixels, found too little.")
    path = _cache_path(kind, folder, names_digest, size)
    if (cache := _in_use.get(path)) is not None and cache.rows == rows:
        return cache
    _remove_others(path)
    missing = rows * record_bytes(size) - (path.stat().st_blocks * 512 if path.is_file() else 0)
    free = _free_bytes(kind, path.parent if kind == "memory" else folder)
    if missing > free:
        raise ValueError(
            f"--data.cache {kind}: the crops to keep take {missing / GIGABYTE:.1f} GB more, and {path.parent} has room "
            f"for {free / GIGABYTE:.1f} GB. Take a --data.cache-gb below that, or another --data.cache (none, memory, "
            "disk). A container gets more memory of this kind by its --shm-size."
        )
    what = f"all {num_crops} crops" if rows == num_crops else f"the first {rows} of {num_crops} crops"
    logger.info("cache: %s at %d px, %.2f GB, in %s", what, size, rows * record_bytes(size) / GIGABYTE, path)
    try:
        path.parent.mkdir(exist_ok=True)
        cache = CropCache(path, rows, size)
    except PermissionError as error:
        raise ValueError(f"--data.cache {kind}: cannot write {path}. Take another --data.cache.") from error
    _in_use[path] = cache
    return cache


def _cache_path(kind: str, folder: Path, names_digest: str, size: int) -> Path:
    """`<digest of what the crops are>-<size>.crops`; tables written anew are other crops, whatever their names."""
    table, in_memory = (folder / FACES_FILE).stat(), kind == "memory"
    facts = [to_json(read_recipe(folder)), names_digest, table.st_size, table.st_mtime_ns, DECODING]
    facts += [str(folder.resolve())] if in_memory else []
    name = f"{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}-{size}.crops"
    return SHARED_MEMORY / f"multiattn-{os.getuid()}-{name}" if in_memory else folder / ".cache" / name


def _remove_others(path: Path) -> None:
    """Remove caches that no process uses: in memory all others of this user, on disk those of crops that are gone."""
    in_memory = path.parent == SHARED_MEMORY
    pattern = f"multiattn-{os.getuid()}-*.crops" if in_memory else "*.crops"
    for other in path.parent.glob(pattern):
        is_same = other == path if in_memory else other.name.split("-")[0] == path.name.split("-")[0]
        if is_same or other in _in_use:
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError):
            file = os.open(other, os.O_RDWR | os.O_CLOEXEC)
            _remove_unless_used(file, other)
            os.close(file)


def _free_bytes(kind: str, folder: Path) -> int:
    free = shutil.disk_usage(folder).free
    if kind == "memory":
        free = min(free, free_memory())
    return free
