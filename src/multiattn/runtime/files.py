"""Files that are read and written whole: atomic writes, JSON, digests, and the lock of a folder."""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well.

    Whoever reads `path` sees the old file or the whole new one. When the block raises, or the process is killed,
    the old file is left as it was.

    Args:
        durable: also survive a power cut (fsync); not worth its time for millions of crops that can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private; a result is for everyone the umask allows
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Read from Linux's process table: Python can only read it by setting it, which other threads would notice."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:"))


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
    """Write a table without its index as CSV, atomically."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_plain_file(path: Path) -> None:
    """Refuse what only looks like a file: whoever opens a FIFO waits for ever, and a device may have no end.

    Raises:
        OSError: it is none; the message names no path. `FileNotFoundError` where there is nothing.
    """
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


def free_name(path: Path) -> Path:
    """The first name beside a file that is free for setting it aside: `card.1.json` of `card.json`."""
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON; the message names the file, line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON file, found something else: {error}.") from error


@contextlib.contextmanager
def exclusive_folder(folder: Path, *, patience_seconds: float = 20.0) -> Iterator[None]:
    """Hold a folder for one writing process at a time; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process still holds the folder after `patience_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{folder}: another process is writing here. Wait for it, stop it, or choose another folder."
                    ) from None
                time.sleep(0.2)
        yield
