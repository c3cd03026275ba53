"""The DFDC tree: training parts with `metadata.json`, validation and test folders with `labels.csv`, Kaggle's folders.

Source of the layout: the competition's download page; every training part is a folder that holds its clips and a
`metadata.json` of {file name: {label, split, original}}; `original` stands on FAKE rows only.
"""

from pathlib import Path
from typing import Any

from multiattn.datasets.manifest import Listing, video_files, video_id, video_row
from multiattn.runtime import read_json
from multiattn.tables import FAKE, LABELS, REAL, UNKNOWN

DATASET = "dfdc"
LABEL_NAMES = {"FAKE": FAKE, "REAL": REAL}
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

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a `metadata.json` that is not what it should be, an unknown label, a file name used twice.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Pass the folder that holds dfdc_train_part_* as --root.")
    listing = Listing(dataset=DATASET, root=root, rows=[])
    _read_parts(root, listing)
    for folder in [root, *sorted(entry for entry in root.iterdir() if entry.is_dir())]:
        split = HELD_OUT_FOLDERS.get(folder.resolve().name)
        if split is not None and not (folder / "metadata.json").is_file():
            _read_held_out(root, folder, split, listing)
    return listing


def _read_parts(root: Path, listing: Listing) -> None:
    metadata = {
        path: _read_metadata(path)
        for pattern in ("", "*/", "*/*/")
        for path in sorted(root.glob(f"{pattern}metadata.json"))
    }
    folder_of: dict[str, Path] = {}
    for path, entries in metadata.items():
        for name in entries:
            if name in folder_of:
                raise ValueError(
                    f"{path}: {name} is also in {folder_of[name] / 'metadata.json'}; DFDC names are unique. "
                    "Is a part unpacked twice?"
                )
            folder_of[name] = path.parent
    for path, entries in metadata.items():
        folder = path.parent
        present = set(video_files(folder))
        prefix = _below(root, folder)
        for name, entry in sorted(entries.items()):
            if name not in present:
                listing.absent.append(prefix + name)
                continue
            original = entry.get("original") or ""
            if original:
                # Of a part that is not here: the first that names it stands for it, so that its fakes stay together.
                folder_of.setdefault(original, folder)
                original = video_id(DATASET, _below(root, folder_of[original]) + original)
            listing.rows.append(
                video_row(
                    DATASET,
                    prefix + name,
                    label=LABEL_NAMES[entry["label"]],
                    split=entry.get("split") or "train",
                    part=folder.name if folder != root else root.resolve().name,
                    original=original,
                )
            )
        listing.unlisted.extend(prefix + name for name in sorted(present - set(entries)))


def _below(root: Path, folder: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"


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


def _read_held_out(root: Path, folder: Path, split: str, listing: Listing) -> None:
    """A validation or test folder: labels from `labels.csv` in it or beside it, unknown where there is none."""
    candidates = [path for path in (folder / "labels.csv", folder.parent / "labels.csv") if path.is_file()]
    labels: dict[str, int] = {}
    if candidates:
        table = LABELS.read(candidates[0])
        labels = dict(zip(table["filename"], table["label"], strict=True))
    present = video_files(folder)
    if not set(labels) & set(present):
        labels = {}  # a labels.csv beside several folders may belong to another of them
    prefix = _below(root, folder)
    for name in present:
        listing.rows.append(
            video_row(DATASET, prefix + name, label=labels.get(name, UNKNOWN), split=split, part=folder.resolve().name)
        )
    listing.absent.extend(prefix + name for name in sorted(set(labels) - set(present)))
