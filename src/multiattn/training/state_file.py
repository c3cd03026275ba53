"""resume.pt: everything training needs to go on, on disk in such a way that a good copy is always there.

A new state is written beside the old one, synced, read back and compared, and only then takes its name; the old one is
kept as `resume.previous.pt`. Whoever reads meanwhile finds one of the two whole. A file that was cut off or altered is
noticed by its checksums when it is read, and the previous one takes its place.
"""

import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from multiattn.runtime.files import atomic_path

logger = logging.getLogger(__name__)

STATE_FILE, PREVIOUS_FILE = "resume.pt", "resume.previous.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain types.

    Raises:
        OSError: the disk does not take it, or gives back something else; the state before it is left as it was.
    """
    path, previous = folder / STATE_FILE, folder / PREVIOUS_FILE
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            fault = _fault(file)
        if fault:
            raise OSError(f"{path}: the state that was just written cannot be read back ({fault}). Is the disk sound?")
        if path.is_file():
            _keep(path, previous)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The latest state that can be read; None where there is none. Loads tensors and plain types only.

    Raises:
        ValueError: there are states, and all of them are damaged.
        OSError: a state is there and cannot be opened, by its permissions for example.
    """
    faults = []
    for path in (folder / STATE_FILE, folder / PREVIOUS_FILE):
        try:
            file = path.open("rb")  # once, so that what was checked is what is loaded, whatever is renamed meanwhile
        except FileNotFoundError:
            continue
        with file:
            fault = _fault(file)
            if fault is None:
                file.seek(0)
                try:
                    state = torch.load(file, map_location="cpu", weights_only=True)
                except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
                    fault = str(error).splitlines()[0]
                else:
                    if faults:
                        logger.warning("%s; going on from the state before it, %s.", "; ".join(faults), path.name)
                    return state
        faults.append(f"{path}: damaged ({fault})")
    if faults:
        raise ValueError(f"{'; '.join(faults)}. Delete both to train this fold from its beginning.")
    return None


def _keep(path: Path, previous: Path) -> None:
    """Give the state a second name, so that the first one is never without a file."""
    link = previous.with_name(f".{previous.name}.link")
    link.unlink(missing_ok=True)  # of a write that was killed here
    try:
        os.link(path, link)
        link.replace(previous)
    except OSError:  # a disk without links (exFAT): the name is free for a moment, and a reader takes the other state
        path.replace(previous)
    finally:
        link.unlink(missing_ok=True)  # a rename onto the same file's other name leaves both


def _fault(file: IO[bytes]) -> str | None:
    """What is wrong with a file of `torch.save`, which is a zip archive with a checksum for every entry."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    # What zipfile says of altered bytes: no archive, an entry cut off, an unknown compression, a place before the file.
    # OSError is also a disk that cannot read them; whether the file may be opened was settled before.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        return str(error) or type(error).__name__
    return f"entry {damaged} does not match its checksum" if damaged else None
