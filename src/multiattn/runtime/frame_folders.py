"""Folders of pictures that are clips: a picture a frame, in the order of the numbers in their names.

What lies in folders below such a clip (masks, say) is none of its frames.
"""

import hashlib
import os
import re
import stat
from pathlib import Path

from multiattn.runtime.files import content_fingerprint

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
_NUMBERS = re.compile(r"([0-9]+)")
_MAX_NUMBER = 10**15
"""Above it a number in a name is none of a frame: a hash, say."""


def is_image_name(name: str) -> bool:
    """True for the name of a picture: by its extension, in any case; hidden files are none."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


def frame_names(folder: Path) -> list[str]:
    """Names of the pictures directly in a folder in natural order: `2.png` before `10.png`.

    Raises:
        OSError: it cannot be listed.
    """
    names = (name for name in os.listdir(folder) if is_image_name(name))  # noqa: PTH208 (names are all that is needed)
    return sorted(names, key=natural_order)


def natural_order(name: str) -> tuple[list[int | str], str]:
    """A key that sorts `2.png` before `10.png`."""
    pieces = _NUMBERS.split(name)  # every second one is a number
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name


def frame_numbers(names: list[str]) -> list[int]:
    """Frame index of each picture of a clip, ascending: the last number in its name; where these do not rise from name
    to name, its place in order, from 0."""
    found = [_NUMBERS.findall(Path(name).stem)[-1:] for name in names]
    numbers = [int(number[0]) if number else -1 for number in found]
    rising = all(before < after for before, after in zip([-1, *numbers], numbers, strict=False))
    return numbers if rising and max(numbers, default=0) < _MAX_NUMBER else list(range(len(names)))


def clip_facts(path: str | Path) -> list[int]:
    """Size, times of change and number of a file; empty where there is none. Nobody can set the second time back.

    Of a folder of frames: their summed size, latest times, count; the folder's own times and number.
    """
    try:
        facts = os.stat(path)  # noqa: PTH116 (of a million paths a `Path` each takes longer)
        if not stat.S_ISDIR(facts.st_mode):
            return [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
        frames = [Path(path, name).stat() for name in frame_names(path)]
    except OSError:
        return []
    latest = [max((getattr(frame, name) for frame in frames), default=0) for name in ("st_mtime_ns", "st_ctime_ns")]
    total = sum(frame.st_size for frame in frames)
    return [total, *latest, len(frames), facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def clip_fingerprint(path: Path) -> str:
    """`content_fingerprint` of a file; of a folder of frames a digest of their names and contents, and their count.

    Raises:
        OSError: it cannot be read, or is no plain file or folder of such.
    """
    if not path.is_dir():
        return content_fingerprint(path)
    digest, names = hashlib.sha256(), frame_names(path)
    for name in names:
        digest.update(f"{name}\0{content_fingerprint(path / name)}\n".encode(errors="surrogateescape"))
    return f"{len(names)} frames-{digest.hexdigest()}"
