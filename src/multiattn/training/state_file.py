"""resume.pt: everything training needs to go on, on disk in such a way that a good copy is always there.

A new state is written beside the old one, synced, read back and compared, and only then takes its name; the old one is
kept as `resume.previous.pt`. A file that was cut off or altered is noticed by its checksums when it is read, and the
previous one takes its place.
"""

import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from multiattn.runtime import atomic_path

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
        if fault := _fault(temporary):
            raise OSError(f"{path}: the state that was just written cannot be read back ({fault}). Is the disk sound?")
        if path.is_file():
            path.replace(previous)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The latest state that can be read; None where there is none. Loads tensors and plain types only.

    Raises:
        ValueError: there are states, and all of them are damaged.
    """
    faults = []
    for path in (folder / STATE_FILE, folder / PREVIOUS_FILE):
        if not path.is_file():
            continue
        fault = _fault(path)
        if fault is None:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
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


def _fault(path: Path) -> str | None:
    """What is wrong with a file of `torch.save`, which is a zip archive with a checksum for every entry."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        return str(error) or type(error).__name__
    return f"entry {damaged} does not match its checksum" if damaged else None
