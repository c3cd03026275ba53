"""The DFDC tree: training parts with `metadata.json`, validation and test folders with `labels.csv`, Kaggle's folders.

Source of the layout: the competition's download page; every training part is a folder that holds its clips and a
`metadata.json` of {file name: {label, split, original}}; `original` stands on FAKE rows only. The released validation
and test sets hold their clips and a `labels.csv` of `filename,label` (1 = fake). Parts are found in the root, in
its folders and in theirs, since an archive may be unpacked into a folder of its own.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.datasets.manifest import IndexOptions, Listing, require_root, video_files, video_id, video_row
from multiattn.runtime.files import read_json
from multiattn.tables import FAKE, LABELS, REAL, UNKNOWN

DATASET = "dfdc"
LABEL_NAMES = {"FAKE": FAKE, "REAL": REAL}
PART_NAME = "dfdc_train_part_"
HELD_OUT_FOLDERS = {
    "test": "test",
    "test_videos": "test",
    "val": "val",
    "validation": "val",
    "validation_videos": "val",
}


def read_dfdc(root: Path) -> Listing:
    """List every clip of a DFDC tree: training parts, and validation or test folders, whatever of them is there.

    Args:
        root: the folder that holds `dfdc_train_part_*`, `train_sample_videos`, `test_videos`, `test` or `val`; or one
            of these folders itself.

    Returns:
        Clips that `metadata.json` or `labels.csv` names and the disk lacks are `absent`; clips of a part that its
        `metadata.json` does not name, or of a part without one, are `unlisted`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a `metadata.json` that is not what it should be, an unknown label, a file name used twice.
    """
    require_root(root, "dfdc_train_part_*")
    listing = Listing(dataset=DATASET, root=root)
    metadata: dict[str, dict[str, dict[str, Any]]] = {}
    held_out = []
    for prefix in _folders(root):
        has_labels = (root / prefix / "labels.csv").is_file()
        is_held_out = _name(root, prefix) in HELD_OUT_FOLDERS
        if (root / prefix / "metadata.json").is_file() and not (is_held_out and has_labels):
            metadata[prefix] = _read_metadata(root / prefix / "metadata.json")
        elif is_held_out:
            held_out.append(prefix)
        elif _name(root, prefix).startswith(PART_NAME):
            listing.unlisted.extend(prefix + name for name in video_files(root / prefix))
    _list_parts(root, metadata, listing)
    for prefix in held_out:
        _list_held_out(root, prefix, listing)
    return listing


@dataclass(frozen=True, kw_only=True)
class Dfdc(IndexOptions):
    """DFDC: training parts, validation and test folders, Kaggle's folders; whatever of them is there."""

    reader = staticmethod(read_dfdc)


def _folders(root: Path) -> list[str]:
    """The root, its folders and theirs, as what to write before a file's name: `` or `dfdc_train_part_0/`."""
    children = _children(root, "")
    return ["", *children, *(deeper for child in children for deeper in _children(root, child))]


def _children(root: Path, prefix: str) -> list[str]:
    with os.scandir(root / prefix) as entries:  # says what is a folder without a stat each: parts hold 2,400 clips
        return sorted(f"{prefix}{entry.name}/" for entry in entries if entry.is_dir() and entry.name[0] != ".")


def _name(root: Path, prefix: str) -> str:
    return prefix.rstrip("/").rpartition("/")[2] or root.resolve().name


def _list_parts(root: Path, metadata: dict[str, dict[str, dict[str, Any]]], listing: Listing) -> None:
    prefix_of: dict[str, str] = {}
    for prefix, entries in metadata.items():
        for name in entries:
            if name in prefix_of:
                raise ValueError(
                    f"{root / prefix / 'metadata.json'}: {name} is also in "
                    f"{root / prefix_of[name] / 'metadata.json'}; DFDC names are unique. Is a part unpacked twice?"
                )
            prefix_of[name] = prefix
    for prefix, entries in metadata.items():
        part = _name(root, prefix)
        present = set(video_files(root / prefix))
        for name, entry in sorted(entries.items()):
            if name not in present:
                listing.absent.append(prefix + name)
                continue
            original = entry.get("original") or ""
            if original:
                # Of a part that is not here: the first that names it stands for it, so that its fakes stay together.
                original = video_id(DATASET, prefix_of.setdefault(original, prefix) + original)
            listing.rows.append(
                video_row(
                    DATASET,
                    prefix + name,
                    label=LABEL_NAMES[entry["label"]],
                    split=entry.get("split") or HELD_OUT_FOLDERS.get(part, "train"),
                    part=part,
                    original=original,
                )
            )
        listing.unlisted.extend(prefix + name for name in sorted(present - set(entries)))


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected an object of file name -> entry, found {type(entries).__name__}.")
    for name, entry in entries.items():
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, str) or label not in LABEL_NAMES:
            raise ValueError(f"{path}: {name}: expected a label of {sorted(LABEL_NAMES)}, found {label!r}.")
        split = entry.get("split")
        if split not in ("train", "val", "test", None):
            raise ValueError(f"{path}: {name}: expected a split of train, val, test, found {split!r}.")
        original = entry.get("original")
        if not isinstance(original, str | None):
            raise ValueError(f"{path}: {name}: expected the file name of an original or null, found {original!r}.")
    return entries


def _list_held_out(root: Path, prefix: str, listing: Listing) -> None:
    """A validation or test folder: labels from `labels.csv` in it or beside it, unknown where there is none."""
    folder = root / prefix
    candidates = [path for path in (folder / "labels.csv", folder.parent / "labels.csv") if path.is_file()]
    labels: dict[str, int] = {}
    if candidates:
        table = LABELS.read(candidates[0])
        labels = dict(zip(table["filename"], table["label"], strict=True))
    present = video_files(folder)
    if not set(labels) & set(present):
        labels = {}  # a labels.csv beside several folders may belong to another of them
    part = _name(root, prefix)
    for name in present:
        listing.rows.append(
            video_row(DATASET, prefix + name, label=labels.get(name, UNKNOWN), split=HELD_OUT_FOLDERS[part], part=part)
        )
    listing.absent.extend(prefix + name for name in sorted(set(labels) - set(present)))
