"""The FaceForensics++ tree: clips, official splits and masks, Google's DeepFakeDetection (DFD) in it, Kaggle's copy.

Source of the layout: the FaceForensics++ download script and `dataset/README.md`. A manipulated clip is named
`<target>_<source>`: the face of `source` on the video of `target`. DFD's originals are named `<actor>__<scene>`, its
swaps `<target>_<source>__<scene>__<id>`: the face of `source` on the target's clip of that scene. Most of DFD's clips
show several faces of which one is forged: `mask_of` says where.

Source of the layout of Kaggle's flat copy: the upload itself, kaggle.com/datasets/xdxd003/ff-c23. Clips bear their
official names, so rows bear the video_ids of the official tree. All of its clips of `DeepFakeDetection` are 1920 x
1080, which no other fake there is, so that the size would tell the label, and their originals are not in it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    csv_lines,
    match_name,
    require_root,
    video_files,
    video_id,
    video_row,
)
from multiattn.runtime.files import read_json
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, REAL, SPLITS

DATASET, DFD = "ffpp", "dfd"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
DFD_METHOD = "DeepFakeDetection"
LEVEL_FOLDERS = {"raw": ("raw", "c0"), "c0": ("raw", "c0"), "c23": ("c23",), "c40": ("c40",)}
"""Compression level -> its folders: the script writes `raw` for what the README and the extraction script call `c0`."""
Compression = Literal[tuple(LEVEL_FOLDERS)]
MASKED_METHODS = {DATASET: METHODS[:-1], DFD: (DFD_METHOD,)}
"""Data set -> methods whose masks were released; FaceShifter has none."""
ORIGINALS = "original_sequences/youtube"
KAGGLE_ORIGINALS, KAGGLE_LIST, KAGGLE_LEVEL = "original", "csv/FF++_Metadata.csv", "c23"
_NAMES = {
    (DATASET, REAL): (re.compile(r"(?P<target>\d{3})$"), "three digits, as 519"),
    (DATASET, FAKE): (re.compile(r"(?P<target>\d{3})_(?P<source>\d{3})$"), "<target>_<source>, as 519_515"),
    (DFD, REAL): (re.compile(r"(?P<target>\d{2})__(?P<scene>\w+)$", re.ASCII), "<actor>__<scene>"),
    (DFD, FAKE): (
        re.compile(r"(?P<target>\d{2})_(?P<source>\d{2})__(?P<scene>\w+)__[A-Z0-9]{8}$", re.ASCII),
        "<target>_<source>__<scene>__<8 letters and digits>",
    ),
}
"""(data set, label) -> form of a clip's name, and the form in words."""


def read_ffpp(root: Path, *, compression: str = "c23", splits: Path | None = None) -> Listing:
    """List the pristine and manipulated clips of one compression level, whatever of them is there.

    Returns:
        With `splits`, `absent` names the clips of the official list that a folder lacks; a method without a folder
        was not asked for and is not missed.

    Raises:
        FileNotFoundError: no such folder, or a split file is missing.
        ValueError: a clip whose name is not the official one, or an id no split holds.
    """
    levels = level_folders(compression)
    require_root(root, "original_sequences")
    split_of_pair = read_pairs(splits) if splits is not None else {}
    listing = Listing(dataset=DATASET, root=root)
    for method in ("", *METHODS):
        sequence = sequence_of(method)
        folders = [level for level in levels if (root / sequence / level / "videos").is_dir()]
        present = set()
        for level in folders:
            rows = ffpp_rows(root, f"{sequence}/{level}/videos", method, level, split_of_pair)
            listing.rows.extend(rows)
            present.update(Path(row["path"]).name for row in rows)
        if folders:
            # A pair (a, b) of the official lists stands for the pristine a and b, and the fakes a_b and b_a.
            stems = {f"{a}_{b}" if method else a for pair in split_of_pair for a, b in (pair, pair[::-1])}
            missing = sorted({f"{stem}.mp4" for stem in stems} - present)
            listing.absent.extend(f"{sequence}/{folders[0]}/videos/{name}" for name in missing)
    return listing


def read_dfd(root: Path, *, compression: str = "c23") -> Listing:
    """List DFD's actors' clips and the swaps of one compression level; errors as `read_ffpp`.

    `original` of a fake is the target's clip of the scene where that is on disk, else empty: not every swap was made on
    a clip that was released.
    """
    levels = level_folders(compression)
    require_root(root, "original_sequences")
    listing = Listing(dataset=DFD, root=root)
    originals: dict[tuple[str, str], str] = {}
    for label, sequence in ((REAL, "original_sequences/actors"), (FAKE, f"manipulated_sequences/{DFD_METHOD}")):
        for level in levels:
            for path, match in _clips(root, f"{sequence}/{level}/videos", DFD, label):
                row = _row(DFD, path, match, level, DFD_METHOD if label == FAKE else "")
                scene = match.group("target", "scene")
                if label == FAKE:
                    row["original"] = originals.get(scene, "")
                originals.setdefault(scene, row["video_id"])
                listing.rows.append(row)
    return listing


def read_ffpp_kaggle(root: Path, *, splits: Path | None = None) -> Listing:
    """List the clips of Kaggle's copy but for DFD's; errors as `read_ffpp`, and `ValueError` for a list not its own.

    Clips that its list names and the disk lacks are `absent`.
    """
    require_root(root, f"{KAGGLE_ORIGINALS}, {METHODS[0]} and csv")
    split_of_pair = read_pairs(splits) if splits is not None else {}
    listing = Listing(dataset=DATASET, root=root)
    for method in ("", *METHODS):
        for row in ffpp_rows(root, method or KAGGLE_ORIGINALS, method, KAGGLE_LEVEL, split_of_pair):
            official = f"{sequence_of(method)}/{KAGGLE_LEVEL}/videos/{Path(row['path']).name}"
            listing.rows.append(row | {"video_id": video_id(DATASET, official)})
    listed = _kaggle_clips(root / KAGGLE_LIST)
    listing.absent.extend(sorted(listed - {row["path"] for row in listing.rows}))
    if others := len(video_files(root / DFD_METHOD)):
        listing.notes.append(
            f"{counted(others, f'clip of {DFD_METHOD} is', f'clips of {DFD_METHOD} are')} left out: their originals "
            "are not in this upload, and their size alone tells them from all others. Index DFD from the official tree "
            "with `multiattn index dfd`."
        )
    return listing


@dataclass(frozen=True, kw_only=True)
class Ffpp(IndexOptions):
    """FaceForensics++: pristine clips and the five manipulation methods at one compression level."""

    reader = staticmethod(read_ffpp)
    compression: Compression = "c23"
    splits: Path | None = None
    """The folder of the official train.json, val.json, test.json; without it the split stays empty."""


@dataclass(frozen=True, kw_only=True)
class Dfd(IndexOptions):
    """Google's DeepFakeDetection in the FaceForensics++ tree, at one compression level; it has no official split."""

    reader = staticmethod(read_dfd)
    compression: Compression = "c23"


@dataclass(frozen=True, kw_only=True)
class FfppKaggle(IndexOptions):
    """FaceForensics++ c23 as uploaded to Kaggle, a folder a method; without the clips of DeepFakeDetection."""

    reader = staticmethod(read_ffpp_kaggle)
    splits: Path | None = None
    """The folder of the official train.json, val.json, test.json; without it the split stays empty."""


def level_folders(compression: str) -> tuple[str, ...]:
    """The folders of a compression level; raises `ValueError` where there is no such level."""
    if compression not in LEVEL_FOLDERS:
        raise ValueError(f"--compression: expected one of {', '.join(LEVEL_FOLDERS)}, found {compression!r}.")
    return LEVEL_FOLDERS[compression]


def compression_of(level: str) -> str:
    """Name in the table of a folder's level: `raw` for `c0`, else its own."""
    return "raw" if level == "c0" else level


def sequence_of(method: str) -> str:
    """Folder below the root of a method's clips at all levels; that of the pristine clips for an empty name."""
    return f"manipulated_sequences/{method}" if method else ORIGINALS


def original_id(target: str, level: str) -> str:
    """video_id of the pristine clip of an FF++ id (three digits) below the folder of a level."""
    return video_id(DATASET, f"{ORIGINALS}/{level}/videos/{target}.mp4")


def ffpp_rows(
    root: Path, folder: str, method: str, level: str, split_of_pair: dict[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """A row of each clip of a folder below the root; `method` is empty for pristine ones.

    Raises:
        ValueError: a clip whose name is not the official one, or an id no split holds.
    """
    split_of = {name: split for pair, split in split_of_pair.items() for name in pair}
    rows = []
    for path, match in _clips(root, folder, DATASET, FAKE if method else REAL):
        row = _row(DATASET, path, match, level, method)
        row["original"] = original_id(match["target"], level) if method else ""
        row["split"] = _split(root / path, row, split_of) if split_of_pair else ""
        rows.append(row)
    return rows


def _clips(root: Path, folder: str, dataset: str, label: int) -> list[tuple[str, re.Match[str]]]:
    """Path below the root and parsed name of every clip of a folder; none where the folder is not there."""
    return [
        (f"{folder}/{name}", match_name(*_NAMES[dataset, label], root / folder / name))
        for name in video_files(root / folder)
    ]


def _row(dataset: str, path: str, match: re.Match[str], level: str, method: str) -> dict[str, Any]:
    return video_row(
        dataset,
        path,
        label=FAKE if method else REAL,
        method=method,
        compression=compression_of(level),
        target_id=match["target"],
        source_id=match["source"] if method else "",
    )


def _split(path: Path, row: dict[str, Any], split_of: dict[str, str]) -> str:
    """Split of the clip's target, which its source shares."""
    target, source = row["target_id"], row["source_id"]
    if target not in split_of:
        raise ValueError(f"{path}: id {target} is in none of train.json, val.json, test.json.")
    if source and split_of.get(source) != split_of[target]:
        raise ValueError(f"{path}: target {target} is of {split_of[target]}.json, source {source} is not.")
    return split_of[target]


def read_pairs(folder: Path) -> dict[tuple[str, str], str]:
    """Pair of ids -> split, from the three official files.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: not lists of pairs, or an id in two splits.
    """
    split_of_pair: dict[tuple[str, str], str] = {}
    seen: dict[str, str] = {}
    for split in SPLITS:
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
        split_of_pair |= dict.fromkeys(map(tuple, pairs), split)
    return split_of_pair


def _kaggle_clips(path: Path) -> set[str]:
    """Paths of the copy's list, but for DFD's; none where the list was not downloaded."""
    if not path.is_file():
        return set()
    header, *lines = csv_lines(path) or [[]]
    rows = [dict(zip(header, line, strict=False)) for line in lines if line]
    listed = set()
    for number, row in enumerate(rows, start=2):
        clip, label = row.get("File Path") or "", row.get("Label")
        folder = clip.partition("/")[0]
        expected = {KAGGLE_ORIGINALS: "REAL", **dict.fromkeys((DFD_METHOD, *METHODS), "FAKE")}
        if label is None or label != expected.get(folder):
            raise ValueError(
                f"{path}:{number}: expected File Path and Label such as original/000.mp4 and REAL, or "
                f"Deepfakes/000_003.mp4 and FAKE, found {clip!r} and {label!r}."
            )
        if folder != DFD_METHOD:
            listed.add(clip)
    return listed


def mask_of(dataset: str, path: str) -> str | None:
    """Path of the mask video of a row's clip, as long as the clip and bright where the face was changed.

    It lies below the same root, one for all compression levels, whether or not it was downloaded; None where none was
    released: pristine clips, FaceShifter, and data sets other than `ffpp` and `dfd`.
    """
    match path.split("/"):
        case ["manipulated_sequences", method, level, "videos", name] if any(
            level in folders for folders in LEVEL_FOLDERS.values()
        ):
            if method in MASKED_METHODS.get(dataset, ()):
                return f"manipulated_sequences/{method}/masks/videos/{name}"
    return None
