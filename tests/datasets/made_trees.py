"""Trees of empty files for readers, and their rows checked against the table's contract."""

from pathlib import Path

import pandas as pd

from multiattn.datasets.manifest import Listing
from multiattn.tables import VIDEOS


def make_files(root: Path, *paths: str) -> Path:
    """Empty files below the root, which is made too."""
    root.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def rows_by_id(listing: Listing, key: str = "video_id") -> dict[str, dict]:
    """The column `key` -> row of a `videos` table."""
    if not listing.rows:
        return {}
    return {row[key]: row for row in VIDEOS.validate(pd.DataFrame(listing.rows), "listing").to_dict("records")}
