"""A folder of one's own: clips in `real` and `fake`, or anywhere below the root with a CSV of `path,label`.

A clip is a video, or a folder of pictures; `index frames` takes the latter alone.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from multiattn.datasets.manifest import IndexOptions, Listing, clips_below, log_left_out, require_root, video_row
from multiattn.tables import FAKE, LABELS, REAL, Column, Table

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
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*$")


def read_labelled_folder(
    root: Path, *, labels: Path | None = None, name: str = DATASET, frames_only: bool = False
) -> Listing:
    """List the clips of a folder with their labels; all other columns stay empty.

    Args:
        root: without `labels` it holds `real`, `fake` or both, with clips at any depth.
        frames_only: take folders of pictures alone, not videos.
        labels: clips that the CSV does not name are `unlisted`, those it names and the disk lacks are `absent`.

    Raises:
        FileNotFoundError: no such folder, neither `real` nor `fake` in it, or no such CSV.
        ValueError: a name that would not make a video_id, or a CSV that is not one of paths below the root and labels.
    """
    require_dataset_name(name)
    require_root(root, "real and fake")
    listing = Listing(dataset=name, root=root)
    if labels is None:
        label_of = {
            f"{folder}/{clip}": label
            for folder, label in _class_folders(root).items()
            for clip in _clips(root / folder, frames_only)
        }
    else:
        present = set(_clips(root, frames_only))
        listed = _read_labels(labels, root)
        label_of = {path: label for path, label in listed.items() if path in present}
        listing.absent.extend(sorted(set(listed) - present))
        listing.unlisted.extend(sorted(present - set(listed)))
    listing.rows.extend(video_row(name, path, label=label) for path, label in label_of.items())
    return listing


@dataclass(frozen=True, kw_only=True)
class Folder(IndexOptions):
    """A folder of your own: videos and folders of frames in real/ and fake/, or a CSV of path and label."""

    reader = staticmethod(read_labelled_folder)
    labels: Path | None = None
    """A CSV of `path,label`: paths below the root, 1 = fake, 0 = real."""
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


def _read_labels(path: Path, root: Path) -> dict[str, int]:
    table = PATH_LABELS.read(path)
    label_of: dict[str, int] = {}
    for written, label in zip(table["path"], table["label"], strict=True):
        clip = PurePosixPath(written)
        if clip.is_absolute() and clip.is_relative_to(root.resolve()):
            clip = clip.relative_to(root.resolve())
        if clip.is_absolute() or ".." in clip.parts:
            raise ValueError(f"{path}: expected paths below {root}, found {written!r}.")
        if clip.as_posix() in label_of:
            raise ValueError(f"{path}: {clip} is listed twice.")
        label_of[clip.as_posix()] = label
    return label_of
