"""A folder of one's own: clips in `real` and `fake`, or anywhere below the root with a CSV of `path,label`.

A clip is a video, or a folder of pictures; `index frames` takes the latter alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from multiattn.datasets.manifest import IndexOptions, Listing, clips_below, log_left_out, require_root, video_id
from multiattn.tables import FAKE, LABELS, REAL, SPLITS, Column, Table

DATASET, FRAMES = "folder", "frames"
CLASS_FOLDERS = {"real": REAL, "fake": FAKE}
PATH_LABELS = Table(
    name="labelled paths",
    key=("path",),
    made_by="Write it by hand: the line `path,label`, then one line a clip, path below --root, 1 = fake, 0 = real",
    columns={
        "path": Column("text", "a clip's path below --root, not empty", lambda values: values != ""),
        "label": LABELS.columns["label"],
    },
)
OF_CLIP = ("split", "part", "original", "identity", "method", "compression")
"""Columns that the CSV may have beside; `original` is a path as `path` is, `identity` the person shown."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*$")


def read_labelled_folder(
    root: Path, *, labels: Path | None = None, name: str = DATASET, frames_only: bool = False
) -> Listing:
    """List the clips of a folder with their labels; other columns are those the CSV has, or empty.

    Without `labels` the root holds `real`, `fake` or both, with clips at any depth.

    Raises:
        FileNotFoundError: no such folder, neither `real` nor `fake` in it, or no such CSV.
        ValueError: a name that would not make a video_id, or a CSV that is not one of paths below the root and labels.
    """
    require_dataset_name(name)
    require_root(root, "real and fake")
    listing = Listing(dataset=name, root=root)
    if labels is None:
        rows = {
            f"{folder}/{clip}": {"label": label}
            for folder, label in _class_folders(root).items()
            for clip in _clips(root / folder, frames_only)
        }
    else:
        present = set(_clips(root, frames_only))
        listed = _read_labels(labels, root, name)
        rows = {path: values for path, values in listed.items() if path in present}
        listing.absent.extend(sorted(set(listed) - present))
        listing.unlisted.extend(sorted(present - set(listed)))
    for path, values in rows.items():
        listing.add(path, **values)
    return listing


@dataclass(frozen=True, kw_only=True)
class Folder(IndexOptions):
    """A folder of your own: videos and folders of frames in real/ and fake/, or a CSV of path and label."""

    reader = staticmethod(read_labelled_folder)
    labels: Path | None = None
    """A CSV of `path,label` and, where known, split,part,original,identity,method: paths below the root, 1 = fake."""
    name: str = DATASET
    """The data set's name in the table."""


def read_frames(root: Path, *, labels: Path | None = None, name: str = FRAMES) -> Listing:
    """As `read_labelled_folder`, of folders of pictures alone: each is a clip, its pictures are the frames."""
    return read_labelled_folder(root, labels=labels, name=name, frames_only=True)


@dataclass(frozen=True, kw_only=True)
class Frames(Folder):
    """Clips that come as folders of pictures, a picture a frame: in real/ and fake/, or a CSV of path and label."""

    reader = staticmethod(read_frames)
    name: str = FRAMES
    """The data set's name in the table."""


def require_dataset_name(name: str) -> None:
    """Refuse a --name that would make no video_id."""
    if _NAME.match(name) is None:
        raise ValueError(f"--name: expected small letters, digits, dashes and underscores, found {name!r}.")


def _class_folders(root: Path) -> dict[str, int]:
    folders = {
        entry.name: CLASS_FOLDERS[entry.name.lower()]
        for entry in sorted(root.iterdir())
        if entry.is_dir() and entry.name.lower() in CLASS_FOLDERS
    }
    if not folders:
        raise FileNotFoundError(
            f"{root}: expected a folder `real` or `fake` in it, found neither. Pass --labels CSV for clips that lie "
            "otherwise."
        )
    return folders


def _clips(folder: Path, frames_only: bool) -> list[str]:
    clips = clips_below(folder)
    videos = {clip for clip in clips if frames_only and (folder / clip).is_file()}
    log_left_out(folder, sorted(videos))
    return [clip for clip in clips if clip not in videos]


def _read_labels(path: Path, root: Path, name: str) -> dict[str, dict[str, Any]]:
    """Clip below the root -> columns of `videos.csv`."""
    from multiattn.runtime.table_files import read_csv

    table = PATH_LABELS.read(path)
    beside = read_csv(path).set_index("path").reindex(columns=list(OF_CLIP), fill_value="").to_dict("index")
    rows: dict[str, dict[str, Any]] = {}
    for written, label in zip(table["path"], table["label"], strict=True):
        clip, values = _below_root(written, root, path), beside[written]
        if values["split"] not in (*SPLITS, ""):
            expected = ", ".join(SPLITS)
            raise ValueError(f"{path}: {clip}: column 'split': expected one of {expected}, found {values['split']!r}.")
        if clip in rows:
            raise ValueError(f"{path}: {clip} is listed twice.")
        original = values["original"] and video_id(name, _below_root(values["original"], root, path))
        values["original"] = original if original != video_id(name, clip) else ""
        rows[clip] = {"label": label, "target_id": values.pop("identity"), **values}
    return rows


def _below_root(written: str, root: Path, source: Path) -> str:
    clip = PurePosixPath(written)
    if clip.is_absolute() and clip.is_relative_to(root.resolve()):
        clip = clip.relative_to(root.resolve())
    if clip.is_absolute() or ".." in clip.parts:
        raise ValueError(f"{source}: expected paths below {root}, found {written!r}.")
    return clip.as_posix()
