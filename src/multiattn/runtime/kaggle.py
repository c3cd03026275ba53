"""Kaggle's and Colab's places and limits, and how a notebook finds what is attached to it.

Sources, as they stood when this was written: a GPU session ends after 12 hours and keeps 20 GB of /kaggle/working
(kaggle.com/docs/notebooks, "Technical Specifications"); an account has about 30 GPU hours a week, in some weeks more
(kaggle.com/docs/efficient-gpu-usage; kaggle.com/product-feedback/173129), of which an hour with two T4 takes one.
"""

import os
from pathlib import Path

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
COLAB_CONTENT = Path("/content")
"""A mounted Drive lies in it. Colab may have /kaggle/input too, where its kagglehub puts data sets."""
SESSION_HOURS, WEEKLY_GPU_HOURS = 12.0, 30.0
SEARCH_DEPTH = 6


def search(folder: Path, pattern: str) -> list[Path]:
    """Matches a few levels down, each once: a Drive has links, and hidden folders of what others share or was deleted.

    Not `**`: a faces folder may hold millions of crops.
    """
    found = (path for depth in range(SEARCH_DEPTH) for path in sorted(folder.glob("[!.]*/" * depth + pattern)))
    unique: dict[Path, Path] = {}
    for path in found:
        unique.setdefault(path.parent.resolve() / path.name, path)
    return list(unique.values())


def from_environment(name: str) -> Path | None:
    """The path that the environment variable MULTIATTN_<name> holds; None where it is not set."""
    return Path(value) if (value := os.environ.get(f"MULTIATTN_{name}")) else None


def paths_from_environment(name: str) -> tuple[Path, ...]:
    """The paths that it holds, with colons between; empty where it is not set."""
    return tuple(Path(path) for path in os.environ.get(f"MULTIATTN_{name}", "").split(os.pathsep) if path)


def hours_from_environment(default: float) -> float:
    """The hours that MULTIATTN_BUDGET_HOURS holds.

    Raises:
        ValueError: it holds something else.
    """
    text = os.environ.get("MULTIATTN_BUDGET_HOURS") or str(default)
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"MULTIATTN_BUDGET_HOURS: expected hours, found {text!r}.") from error
