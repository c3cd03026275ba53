"""Trees of empty files for readers, their rows checked against the table's contract, and tables made by hand."""

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


def full_row(video_id: str, path: str, **values: object) -> dict[str, object]:
    """A row of a `videos` table; columns not given are empty."""
    name = {"video_id": video_id, "path": path, "dataset": video_id.partition("/")[0]}
    return dict.fromkeys(VIDEOS.columns, "") | name | values


def rows_by_id(listing: Listing, key: str = "video_id") -> dict[str, dict]:
    """The column `key` -> row of a `videos` table."""
    if not listing.rows:
        return {}
    return {row[key]: row for row in VIDEOS.validate(pd.DataFrame(listing.rows), "listing").to_dict("records")}


def videos(*rows: dict) -> pd.DataFrame:
    """A `videos` table; each row says only what matters: a video with an `original` is fake, others are real."""
    filled = []
    for row in rows:
        path = f"{row['video_id'].partition('/')[2]}.mp4"
        filled.append(full_row(**{"path": path, "label": int("original" in row), "split": "train", **row}))
    return VIDEOS.validate(pd.DataFrame(filled), "made here") if filled else VIDEOS.empty()
