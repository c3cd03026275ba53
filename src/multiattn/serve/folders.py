"""The temporary folder of a server, and those that killed servers left."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from multiattn.runtime.files import exclusive_folder, fcntl

FOLDER = "multiattn_serve_"
"""Prefix of its name."""


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    """An empty temporary folder, for as long as this block; those of servers that were killed are removed first."""
    place = Path(tempfile.gettempdir()).resolve()
    for folder in place.glob(f"{FOLDER}*") if fcntl is not None else ():
        _remove_left(folder, place)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True) as name,
            exclusive_folder(Path(name)),
        ):
            if (Path(name) / ".lock").exists():  # not removed by another server before it was locked
                jobs = Path(name) / "jobs"
                jobs.mkdir()
                yield jobs
                return


def _remove_left(folder: Path, place: Path) -> None:
    """Remove a server's folder that is ours, lies where it seems to, and is locked by no process that lives."""
    with contextlib.suppress(OSError, ValueError):
        is_ours = not folder.is_symlink() and folder.resolve().parent == place and folder.stat().st_uid == os.getuid()
        if is_ours and (folder / ".lock").is_file():
            with exclusive_folder(folder, patience_seconds=0):
                shutil.rmtree(folder)
