"""The FaceForensics++ tree, its official splits and its masks.

Source of the layout: the FaceForensics++ download script and `dataset/README.md`. A manipulated clip is named
`<target>_<source>`: the face of `source` on the video of `target`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    match_name,
    require_root,
    video_files,
    video_id,
    video_row,
)
from multiattn.runtime.files import read_json
from multiattn.tables import FAKE, REAL

DATASET = "ffpp"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
LEVEL_FOLDERS = {"raw": ("raw", "c0"), "c0": ("raw", "c0"), "c23": ("c23",), "c40": ("c40",)}
"""Compression level -> its folders: the script writes `raw` for what the README and the extraction script call `c0`."""
Compression = Literal[tuple(LEVEL_FOLDERS)]
MASKED_METHODS = {DATASET: METHODS[:-1], "dfd": ("DeepFakeDetection",)}
"""Data set -> methods whose masks were released; FaceShifter has none."""
ORIGINALS = "original_sequences/youtube"
_REAL_NAME = re.compile(r"(\d{3})$")
_FAKE_NAME = re.compile(r"(\d{3})_(\d{3})$")


def read_ffpp(root: Path, *, compression: str = "c23", splits: Path | None = None) -> Listing:
    """List the pristine and manipulated clips of one compression level, whatever of them is there.

    Args:
        root: the folder that holds `original_sequences` and `manipulated_sequences`.
        compression: `raw` (`c0` is the same, on disk too), `c23` or `c40`.
        splits: folder of the official `train.json`, `val.json`, `test.json`; None leaves the split empty.

    Returns:
        With `splits`, `absent` names the clips of the official list that a folder lacks; a method without a folder
        was not asked for and is not missed.

    Raises:
        FileNotFoundError: no such folder, or a split file is missing.
        ValueError: a clip whose name is not the official one, or an id no split holds.
    """
    levels = level_folders(compression)
    require_root(root, "original_sequences")
    pairs = read_pairs(splits) if splits is not None else None
    split_of = split_of_ids(pairs) if pairs is not None else None
    listing = Listing(dataset=DATASET, root=root)
    for method in ("", *METHODS):
        sequence = f"manipulated_sequences/{method}" if method else ORIGINALS
        present = {}
        for level in levels:
            folder = f"{sequence}/{level}/videos"
            if (root / folder).is_dir():
                present[level] = video_files(root / folder)
                for name in present[level]:
                    listing.rows.append(_row(root, f"{folder}/{name}", method, level, split_of))
        if pairs is not None and present:
            missing = _official_names(pairs, fakes=bool(method)).difference(*present.values())
            listing.absent.extend(f"{sequence}/{next(iter(present))}/videos/{name}" for name in sorted(missing))
    return listing


@dataclass(frozen=True, kw_only=True)
class Ffpp(IndexOptions):
    """FaceForensics++: pristine clips and the five manipulation methods at one compression level."""

    reader = staticmethod(read_ffpp)
    compression: Compression = "c23"
    splits: Path | None = None
    """The folder of the official train.json, val.json, test.json; without it the split stays empty."""


def level_folders(compression: str) -> tuple[str, ...]:
    """The folders of a compression level.

    Raises:
        ValueError: no such level.
    """
    if compression not in LEVEL_FOLDERS:
        raise ValueError(f"--compression: expected one of {', '.join(LEVEL_FOLDERS)}, found {compression!r}.")
    return LEVEL_FOLDERS[compression]


def compression_of(level: str) -> str:
    """Name in the table of a folder's level: `raw` for `c0`, else its own."""
    return "raw" if level == "c0" else level


def original_id(target: str, level: str) -> str:
    """video_id of the pristine clip of an FF++ id (three digits) below the folder of a level."""
    return video_id(DATASET, f"{ORIGINALS}/{level}/videos/{target}.mp4")


def _row(root: Path, path: str, method: str, level: str, split_of: dict[str, str] | None) -> dict:
    pattern, form = (_FAKE_NAME, "<target>_<source>, as 519_515") if method else (_REAL_NAME, "three digits, as 519")
    match = match_name(pattern, root / path, form)
    target, source = (match[1], match[2]) if method else (match[1], "")
    if split_of is not None and target not in split_of:
        raise ValueError(f"{root / path}: id {target} is in none of train.json, val.json, test.json.")
    if split_of is not None and source and split_of.get(source) != split_of[target]:
        raise ValueError(f"{root / path}: target {target} is of {split_of[target]}.json, source {source} is not.")
    return video_row(
        DATASET,
        path,
        label=FAKE if method else REAL,
        method=method,
        compression=compression_of(level),
        split=split_of[target] if split_of is not None else "",
        original=original_id(target, level) if method else "",
        target_id=target,
        source_id=source,
    )


def _official_names(pairs_of: dict[str, list[tuple[str, str]]], *, fakes: bool) -> set[str]:
    """A pair (a, b) of the official lists stands for the pristine a and b, and the fakes a_b and b_a of each method."""
    pairs = [pair for pairs in pairs_of.values() for pair in pairs]
    stems = [stem for a, b in pairs for stem in ((f"{a}_{b}", f"{b}_{a}") if fakes else (a, b))]
    return {f"{stem}.mp4" for stem in stems}


def read_pairs(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Split -> pairs of ids, from the official files.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: not lists of pairs, or an id in two splits.
    """
    pairs_of: dict[str, list[tuple[str, str]]] = {}
    seen: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = folder / f"{split}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. --splits is the folder of the official split files.")
        pairs = read_json(path)
        well_formed = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
        )
        if not well_formed:
            raise ValueError(f'{path}: expected a list of pairs of ids, as [["071", "054"], ...].')
        for name in (name for pair in pairs for name in pair):
            if seen.setdefault(name, split) != split:
                raise ValueError(f"{path}: id {name} is also in {seen[name]}.json; splits must be disjoint.")
        pairs_of[split] = [(first, second) for first, second in pairs]
    return pairs_of


def split_of_ids(pairs_of: dict[str, list[tuple[str, str]]]) -> dict[str, str]:
    """id -> split, of what `read_pairs` gives."""
    return {name: split for split, pairs in pairs_of.items() for pair in pairs for name in pair}


def read_splits(folder: Path) -> dict[str, str]:
    """id -> split, from the official files; raises as `read_pairs` does."""
    return split_of_ids(read_pairs(folder))


def mask_of(dataset: str, path: str) -> str | None:
    """Path of a clip's mask video, as long as the clip and bright where the face was changed.

    It is `manipulated_sequences/<method>/masks/videos/<name>` for all compression levels.

    Source: the FaceForensics++ download script.

    Args:
        dataset: the row's `dataset`.
        path: the row's `path`, below the data set's root.

    Returns:
        The mask's path below the same root, whether or not it was downloaded; None where none was released: pristine
        clips, FaceShifter, and data sets other than `ffpp` and `dfd`.
    """
    match path.split("/"):
        case ["manipulated_sequences", method, level, "videos", name] if any(
            level in folders for folders in LEVEL_FOLDERS.values()
        ):
            if method in MASKED_METHODS.get(dataset, ()):
                return f"manipulated_sequences/{method}/masks/videos/{name}"
    return None
