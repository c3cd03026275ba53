"""Faults of paths that tables bring, before they are joined to a folder; and what is published of paths."""

from collections.abc import Callable
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MAX_NAME_BYTES = 255
"""Longest name of a file or folder, in UTF-8, that Linux, macOS and Windows take."""
MAX_PATH_BYTES = 3500
"""Longest path below a folder, in UTF-8: Linux takes 4,095 bytes with those of the folder."""


def path_fault(path: str) -> str | None:
    """Fault of a path that is to lie below a folder, in words; None for a sound one."""
    if not {"", ".", ".."}.isdisjoint(path.split("/")):
        return "it is empty, absolute, or has an empty part, `.` or `..`"
    return name_fault(path)


def name_fault(path: str) -> str | None:
    """Fault of a path that no file system takes, in words; None for any other."""
    if "\0" in path:
        return "it has a NUL"
    encoded = path.encode("utf-8", "surrogateescape")
    if len(encoded) > MAX_PATH_BYTES:
        return f"it has {len(encoded)} bytes, of at most {MAX_PATH_BYTES}"
    longest = max(map(len, encoded.split(b"/")))
    return f"a part of it has {longest} bytes, of at most {MAX_NAME_BYTES}" if longest > MAX_NAME_BYTES else None


_SUSPECT = r"(?:^|/)\.{0,2}(?:/|$)|\x00|[^/]{64}|(?s:.{875})"
"""Pattern of all paths that may be at fault, to find them among millions; a character takes at most 4 bytes."""


def faulty_paths(values: "pd.Series", fault: Callable[[str], str | None]) -> "pd.Series":
    """True where a path has the fault."""
    import pandas as pd
    import pyarrow.compute

    texts = pyarrow.array(values, pyarrow.string(), from_pandas=True)  # of pandas' two kinds of text, one is slow
    found = pyarrow.compute.match_substring_regex(texts, _SUSPECT).to_numpy(zero_copy_only=False)
    found[found] = [fault(value) is not None for value in values[found]]
    return pd.Series(found, index=values.index)


def names_only(values: Any) -> Any:
    """The same JSON with the names alone of absolute paths: what is published tells of no home folder."""
    if isinstance(values, dict):
        return {name: names_only(value) for name, value in values.items()}
    if isinstance(values, list):
        return [names_only(value) for value in values]
    is_path = isinstance(values, str) and (PurePosixPath(values).is_absolute() or PureWindowsPath(values).is_absolute())
    return PureWindowsPath(values).name if is_path else values
