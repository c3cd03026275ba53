"""Files that are read and written whole: atomic writes, JSON, digests, and the lock of a folder."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiattn.runtime.text_tables import printable

try:
    import fcntl
except ImportError:  # on Windows, where folders are not locked and what a killed process left stays
    fcntl = None

if TYPE_CHECKING:
    import pandas as pd

TEMPORARY = ".multiattn-tmp"
"""In the name of every file that is being written."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ALMOST_FULL_BYTES = 1 << 16


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well.

    Whoever reads `path` sees the old file or the whole new one. When the block raises, or the process is killed,
    the old file is left as it was; what killed processes left in the folder is removed first.

    Args:
        durable: also survive a power cut (fsync); not worth its time for millions of crops that can be made again.

    Raises:
        OSError: the disk is full, whatever error the library that writes makes of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if durable:
        remove_leftovers(path.parent)
    handle, temporary = _create_temporary(path)
    try:
        yield temporary
        if durable:
            os.fsync(handle)
        if os.name == "nt":  # where an open file cannot be renamed
            handle = os.close(handle)
        temporary.replace(path)
        if durable and os.name != "nt":
            _sync_folder(path.parent)
    except Exception as error:
        if number := _full_disk(error, path.parent):
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        if handle is not None:
            os.close(handle)
        temporary.unlink(missing_ok=True)


def _create_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, locked as long as this process lives, so that nobody takes it for a leftover."""
    while True:
        temporary = path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}{TEMPORARY}{path.suffix[:16]}")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # removed as a leftover before it was locked


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder whose writers were killed; those being written are locked, and stay."""
    for path in folder.glob(f".*{TEMPORARY}*") if fcntl is not None else ():
        if path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _full_disk(error: BaseException, folder: Path) -> int:
    """The number of the operating system's error where a full disk (or quota, or limit) is behind this one, else 0.

    Libraries that write without Python's files tell of it in words, or of a write that failed.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause.errno
        if named := [number for number in FULL if re.search(rf"os error {number}\b|{os.strerror(number)}", str(cause))]:
            return named[0]
        cause = cause.__cause__ or cause.__context__
    is_other = isinstance(error, OSError | ValueError | TypeError)
    return 0 if is_other or shutil.disk_usage(folder).free > ALMOST_FULL_BYTES else errno.ENOSPC


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, table: "pd.DataFrame") -> None:
    """Write a table for people as CSV without its index, atomically; to a spreadsheet no text in it is a formula."""
    table = table.apply(lambda column: column.map(_no_formula) if column.dtype.kind == "O" else column)
    write_text(path, table.rename(columns=_no_formula).to_csv(index=False, lineterminator="\n"))


def _no_formula(cell: Any) -> Any:
    """The cell; text that a spreadsheet would calculate begins with an apostrophe."""
    if not isinstance(cell, str):
        return cell
    cell = printable(cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_list(digests: Mapping[str, str]) -> str:
    """Name -> SHA-256, as the text that `sha256sum --check` reads."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def write_digests(path: Path) -> None:
    """Write the `digest_list` of every other file in a file's folder and below."""
    files = (file for file in path.parent.rglob("*") if file.is_file() and file != path)
    write_text(path, digest_list({file.relative_to(path.parent).as_posix(): file_digest(file) for file in files}))


def read_digests(path: Path) -> dict[str, str]:
    """Name -> SHA-256 of a `digest_list`."""
    lines = (line.partition("  ") for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, _, name in lines}


def changed_files(path: Path) -> list[str]:
    """The files of a `write_digests` list that are not as they were, each with what is found in its place, and those
    beside them that it does not list; empty where all are. Hidden files do not count.

    Raises:
        OSError: no such list.
    """
    changed, digest_of = [], read_digests(path)
    for file in sorted(path.parent.rglob("*")):
        name = file.relative_to(path.parent).as_posix()
        is_more = (file.is_symlink() or file.is_file()) and file != path and name not in digest_of
        if is_more and not file.name.startswith("."):
            changed.append(f"{name}: not in the list")
    for name, digest in digest_of.items():
        file = path.parent / name
        if (found := file_digest(file) if file.is_file() else "no file") != digest:
            changed.append(f"{name}: {found}")
    return changed


def require_plain_file(path: Path) -> None:
    """Raise `OSError` for what only looks like a file: whoever opens a FIFO waits for ever, and a device may have no
    end. The message names no path."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise OSError(f"expected a file, found {kinds.get(stat.S_IFMT(mode), 'a device')}")


def content_fingerprint(path: Path) -> str:
    """Size and SHA-256 of a file's whole content: `<bytes>-<hex digits>`; results of a file are kept under it.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    require_plain_file(path)
    return f"{Path(path).stat().st_size}-{file_digest(path)}"


def require_file(path: str | Path) -> None:
    """Raise `FileNotFoundError` unless there is such a weights file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file.")


def standing_folder(path: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(one for one in (path, *path.absolute().parents) if one.is_dir())


def free_name(path: Path) -> Path:
    """The first name beside a file that is free for setting it aside: `card.1.json` of `card.json`."""
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: not JSON, too deep, a number that is none, or a key twice with different values.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_without_contradictions, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON file, found something else: {error}.") from error


def _without_contradictions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    for key, value in pairs if len(values) < len(pairs) else ():
        if value != values[key]:
            raise ValueError(f"the key {key!r} stands twice, with different values")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@contextlib.contextmanager
def exclusive_folder(folder: Path, *, patience_seconds: float = 20.0) -> Iterator[None]:
    """Hold a folder for one writing process at a time; the lock goes with the process, however it ends.

    What killed processes left of files they were writing is removed from the folder.

    Raises:
        ValueError: another process still holds the folder after `patience_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        deadline = time.monotonic() + patience_seconds
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{folder}: another process is writing here. Wait for it, stop it, or choose another folder."
                    ) from None
                time.sleep(0.2)
        remove_leftovers(folder)
        yield
