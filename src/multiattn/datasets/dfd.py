"""Google's DeepFakeDetection (DFD), which lies in the FaceForensics++ tree: actors' clips and swaps between them.

Source of the layout: the FaceForensics++ download script. An original is named `<actor>__<scene>`; a manipulated clip
`<target>_<source>__<scene>__<id>`: the face of `source` on the target's clip of that scene. There is no official split,
so `split` stays empty. Most clips show several faces of which one is forged: `ffpp.mask_of` says where.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.datasets.ffpp import Compression, compression_of, level_folders
from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    match_name,
    require_root,
    video_files,
    video_id,
    video_row,
)
from multiattn.tables import FAKE, REAL

DATASET = "dfd"
METHOD = "DeepFakeDetection"
ORIGINALS = "original_sequences/actors"
MANIPULATED = f"manipulated_sequences/{METHOD}"
_REAL_NAME = re.compile(r"(?P<target>\d{2})__(?P<scene>\w+)$", re.ASCII)
_FAKE_NAME = re.compile(r"(?P<target>\d{2})_(?P<source>\d{2})__(?P<scene>\w+)__(?P<id>[A-Z0-9]{8})$", re.ASCII)


def read_dfd(root: Path, *, compression: str = "c23") -> Listing:
    """List the actors' clips and the swaps of one compression level, whatever of them is there.

    Args:
        root: the folder that holds `original_sequences` and `manipulated_sequences`.
        compression: `raw` (`c0` is the same, on disk too), `c23` or `c40`.

    Returns:
        `original` of a fake is the target's clip of the scene where that is on disk, else empty: not every swap was
        made on a clip that was released.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a clip whose name is not the official one.
    """
    levels = level_folders(compression)
    require_root(root, "original_sequences")
    listing = Listing(dataset=DATASET, root=root)
    originals: dict[tuple[str, str], str] = {}
    for level in levels:
        for path, match in _clips(root, f"{ORIGINALS}/{level}/videos", _REAL_NAME, "<actor>__<scene>"):
            originals.setdefault((match["target"], match["scene"]), video_id(DATASET, path))
            listing.rows.append(_row(path, match, level, label=REAL))
    form = "<target>_<source>__<scene>__<8 letters and digits>"
    for level in levels:
        for path, match in _clips(root, f"{MANIPULATED}/{level}/videos", _FAKE_NAME, form):
            original = originals.get((match["target"], match["scene"]), "")
            row = _row(path, match, level, label=FAKE)
            listing.rows.append({**row, "method": METHOD, "original": original, "source_id": match["source"]})
    return listing


@dataclass(frozen=True, kw_only=True)
class Dfd(IndexOptions):
    """Google's DeepFakeDetection in the FaceForensics++ tree, at one compression level; it has no official split."""

    reader = staticmethod(read_dfd)
    compression: Compression = "c23"


def _clips(root: Path, folder: str, pattern: re.Pattern[str], form: str) -> list[tuple[str, re.Match[str]]]:
    if not (root / folder).is_dir():
        return []
    return [
        (f"{folder}/{name}", match_name(pattern, root / folder / name, form)) for name in video_files(root / folder)
    ]


def _row(path: str, match: re.Match[str], level: str, *, label: int) -> dict[str, Any]:
    return video_row(DATASET, path, label=label, compression=compression_of(level), target_id=match["target"])
