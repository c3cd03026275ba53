"""The DFDC and its preview set.

Source of the DFDC's layout: the competition's download page; every training part is a folder that holds its clips and
a `metadata.json` of {file name: {label, split, original}}; `original` stands on FAKE rows only. The released validation
and test sets hold their clips and a `labels.csv` of `filename,label` (1 = fake). Parts are found in the root, in
its folders and in theirs, since an archive may be unpacked into a folder of its own.

Source of the preview's layout: the readers of the release, there being no document of its own. Keys of `dataset.json`
are paths: `original_videos/<target>/<target>_<scene>_<clip>.mp4` and, of `method_A` and `method_B`,
`method_A/<target>/<target>_<scene>/<swapped>_<target>_<scene>_<clip>.mp4`: the face of `swapped` on a video of
`target`. Some tools move each top folder's content into a `videos` folder in it; both are read.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    is_folder,
    require_root,
    video_files,
    video_files_below,
    video_id,
)
from multiattn.runtime.files import read_json
from multiattn.tables import FAKE, LABELS, REAL, SPLITS, UNKNOWN

DATASET, PREVIEW = "dfdc", "dfdc-preview"
LABEL_NAMES = {"FAKE": FAKE, "REAL": REAL}
PART_NAME = "dfdc_train_part_"
HELD_OUT_FOLDERS = {
    "test": "test",
    "test_videos": "test",
    "val": "val",
    "validation": "val",
    "validation_videos": "val",
}
PREVIEW_LABELS = {name.lower(): label for name, label in LABEL_NAMES.items()}
PREVIEW_FOLDERS = ("method_A", "method_B", "original_videos")
_PREVIEW_FAKE = re.compile(r"(?P<source>\d+)_(?P<clip>(?P<target>\d+)_\w+)$", re.ASCII)
_PREVIEW_REAL = re.compile(r"(?P<target>\d+)_\w+$", re.ASCII)


def read_dfdc(root: Path) -> Listing:
    """List every clip of a DFDC tree: training parts, and validation or test folders, whatever of them is there.

    The root holds `dfdc_train_part_*`, `train_sample_videos`, `test_videos`, `test` or `val`, or is one of these. Clips
    of a part that its `metadata.json` does not name, or of a part without one, are `unlisted`.

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


def read_dfdc_preview(root: Path) -> Listing:
    """List the clips that `dataset.json` names, whatever of them is there.

    `original` of a fake is the listed real clip of its target that `source_video` names, or else the one of the same
    target, scene and clip number; empty where there is none of the two. `method` is the top folder.

    Raises:
        FileNotFoundError: no `dataset.json` in the folder.
        ValueError: a `dataset.json` that is not what it should be.
    """
    path = root / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Pass the folder that holds it and method_A as --root.")
    entries = _read_entries(path, {"label": tuple(PREVIEW_LABELS), "set": ("train", "test")})
    outside = [key for key in entries if key.split("/")[0] not in PREVIEW_FOLDERS or ".." in key.split("/")]
    if outside:
        raise ValueError(f"{path}: expected paths below {', '.join(PREVIEW_FOLDERS)}, found {outside[0]!r}.")
    present = {f"{top}/{name}" for top in PREVIEW_FOLDERS for name in video_files_below(root / top)}
    place = {key: _place(key, present) for key in entries}
    people = {key: _people(key, entry) for key, entry in entries.items()}
    label_of = {key: PREVIEW_LABELS[entry["label"]] for key, entry in entries.items()}
    reals = {Path(key).stem: key for key, label in label_of.items() if label == REAL}
    listing = Listing(dataset=PREVIEW, root=root)
    for key, entry in sorted(entries.items()):
        if place[key] not in present:
            listing.absent.append(key)
            continue
        row = listing.add(place[key], label=label_of[key], split=entry["set"], **people[key])
        if label_of[key] == FAKE:
            original = _original(key, entry, reals, people)
            row["method"] = key.split("/")[0]
            row["original"] = video_id(PREVIEW, place[original]) if original is not None else ""
    listing.unlisted.extend(sorted(present - set(place.values())))
    return listing


@dataclass(frozen=True, kw_only=True)
class Dfdc(IndexOptions):
    """DFDC: training parts, validation and test folders, Kaggle's folders; whatever of them is there."""

    reader = staticmethod(read_dfdc)


@dataclass(frozen=True, kw_only=True)
class DfdcPreview(IndexOptions):
    """The DFDC preview set: dataset.json, method_A, method_B, original_videos."""

    reader = staticmethod(read_dfdc_preview)


def _folders(root: Path) -> list[str]:
    """The root, its folders and theirs, as what to write before a file's name: `` or `dfdc_train_part_0/`."""
    children = _children(root, "")
    return ["", *children, *(deeper for child in children for deeper in _children(root, child))]


def _children(root: Path, prefix: str) -> list[str]:
    with os.scandir(root / prefix) as entries:  # says what is a folder without a stat each: parts hold 2,400 clips
        return sorted(f"{prefix}{entry.name}/" for entry in entries if is_folder(entry) and entry.name[0] != ".")


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
            split = entry.get("split") or HELD_OUT_FOLDERS.get(part, "train")
            listing.add(prefix + name, label=LABEL_NAMES[entry["label"]], split=split, part=part, original=original)
        listing.unlisted.extend(prefix + name for name in sorted(present - set(entries)))


def _read_entries(path: Path, allowed: dict[str, tuple[str | None, ...]]) -> dict[str, dict[str, Any]]:
    """Read {file: entry}; `allowed` holds the values of an entry's keys, None among them where one may be absent."""
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected an object of file -> entry, found {type(entries).__name__}.")
    for file, entry in entries.items():
        for key, values in allowed.items():
            found = entry.get(key) if isinstance(entry, dict) else None
            if found not in values:
                listed = ", ".join(value for value in values if value is not None)
                raise ValueError(f"{path}: {file}: expected a {key} of {listed}, found {found!r}.")
    return entries


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    entries = _read_entries(path, {"label": tuple(LABEL_NAMES), "split": (*SPLITS, None)})
    for name, entry in entries.items():
        if not isinstance(original := entry.get("original"), str | None):
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
        listing.add(prefix + name, label=labels.get(name, UNKNOWN), split=HELD_OUT_FOLDERS[part], part=part)
    listing.absent.extend(prefix + name for name in sorted(set(labels) - set(present)))


def _place(key: str, present: set[str]) -> str:
    """Path of the clip of a key: the key itself, or below `videos` in its top folder when the clip is there."""
    top, _, rest = key.partition("/")
    moved = f"{top}/videos/{rest}"
    return moved if key not in present and moved in present else key


def _people(key: str, entry: dict[str, Any]) -> dict[str, str]:
    """target_id and source_id: as the entry says, else as the name does, else empty."""
    is_fake = PREVIEW_LABELS[entry["label"]] == FAKE
    match = (_PREVIEW_FAKE if is_fake else _PREVIEW_REAL).match(Path(key).stem)
    named = match.groupdict() if match is not None else {}
    target = entry.get("target_id") or named.get("target", "")
    source = (entry.get("swapped_id") or named.get("source", "")) if is_fake else ""
    return {"target_id": str(target), "source_id": str(source)}


def _original(key: str, entry: dict[str, Any], reals: dict[str, str], people: dict[str, dict[str, str]]) -> str | None:
    """Key of the real clip a fake was made on. `source_video` counts only where it shows the target."""
    match = _PREVIEW_FAKE.match(Path(key).stem)
    for stem in (Path(str(entry.get("source_video") or "")).stem, match["clip"] if match is not None else ""):
        real = reals.get(stem)
        if real is not None and people[real]["target_id"] == people[key]["target_id"]:
            return real
    return None
