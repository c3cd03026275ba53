"""Faces that are cropped already, as any program leaves them: pictures below a root, in folders or in tar archives.

A picture in an archive has the path it would have were the archive unpacked where it lies (`part0/a.jpg` of
`train.tar`), or, where two archives hold one, `train.tar/part0/a.jpg`. Labels come from class folders, `real` and
`fake`, or from a CSV with a line a picture.
"""

import csv
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from multiattn.datasets.crops_folder import CropVideo, write_crops_folder
from multiattn.datasets.labelled_folder import CLASS_FOLDERS, require_dataset_name
from multiattn.datasets.manifest import (
    VIDEO_SUFFIXES,
    IndexOptions,
    Listing,
    files_below,
    is_utf8,
    log_left_out,
    require_root,
)
from multiattn.runtime.crop_files import archive_members, is_archive_name, path_in_archive, unpacked_path
from multiattn.runtime.files import read_json
from multiattn.runtime.paths import path_fault
from multiattn.runtime.text_tables import counted, printable
from multiattn.tables import FAKE, REAL, SPLITS

if TYPE_CHECKING:
    import pandas as pd

DATASET = "crops"
LABEL_NAMES = {"0": REAL, "1": FAKE, **CLASS_FOLDERS}
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
ENDINGS = PICTURE_SUFFIXES | VIDEO_SUFFIXES
COLUMNS = {
    "path": "the picture below the root",
    "label": "0 or real, 1 or fake",
    "video": "the video it is of; without it a picture is a video",
    "split": "train, val or test",
    "part": "part of the data set, which never spans folds",
    "original": "the video a fake was made from; a real that names itself has none",
    "identity": "the person shown",
    "method": "the manipulation",
    "compression": "its level",
    "frame": "number of the frame; without it the number that is the picture's name, or its place in order",
    "track": "number of the face, where frames show several",
}
"""Columns a CSV may have, the first two it must."""
OF_VIDEO = ("label", "split", "part", "original", "identity", "method", "compression")


def read_crops(
    root: Path,
    *,
    faces: Path,
    labels: Path | None = None,
    column: tuple[str, ...] = (),
    name: str = DATASET,
    size: int | None = None,
    recipe: Path | None = None,
) -> Listing:
    """List the videos that cropped pictures are of, and make a faces folder of the pictures, which stay where they are.

    Args:
        root: without `labels` its class folders, or those of its archives, hold the pictures at any depth.
        column: OURS=THEIRS each, for columns of the CSV by other names than in `COLUMNS`.

    Returns:
        A row a video. Pictures that are not readable, square or large enough are left out and counted; a video with no
        other is `unreadable` in the faces folder's video_status.csv.

    Raises:
        ValueError: as `write_crops_folder`; a CSV that contradicts itself or leads out of the root, or an archive that
            cannot be read in place.
    """
    require_dataset_name(name)
    require_root(root, "the cropped faces")
    if column and labels is None:
        raise ValueError(f"--column {column[0]}: names a column of a CSV, and none is given. Pass it as --labels CSV.")
    listing = Listing(dataset=name, root=root)
    present, shadowed = find_pictures(root, listing)
    if labels is None:
        videos = _videos_of_class_folders(listing, present, shadowed)
    else:
        videos = _videos_of_csv(labels, column, listing, present, shadowed)
    taken = {unpacked_path(address) for video in videos.values() for address in video.pictures}
    listing.unlisted.extend(sorted(present.keys() - taken))
    if videos:
        write_crops_folder(faces, listing, videos, size=size, recipe=_read_recipe(recipe) if recipe else None)
    return listing


@dataclass(frozen=True, kw_only=True)
class Crops(IndexOptions):
    """Faces cropped already, in folders or tar archives: also writes a faces folder of them, and copies nothing."""

    reader = staticmethod(read_crops)
    faces: Path
    """The faces folder to write."""
    labels: Path | None = None
    """A CSV with a line a picture; without it pictures lie in real/ and fake/."""
    column: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="OURS=THEIRS")] = ()
    """A column of the CSV that has another name, as original=source_video; once for each."""
    name: str = DATASET
    """The data set's name in the table."""
    size: int | None = None
    """Pictures with a smaller side are left out (default: none, and the smallest side is the folder's)."""
    landmarks: str | None = None
    """A detector of `multiattn faces` that finds five landmarks in each crop, as mtcnn: presets with cut-outs and --sbi
    need them."""
    weights: Path | None = None
    """The detector's weights file, where it needs one."""
    recipe: Path | None = None
    """A faces.json, or some of its settings, that says how the crops were cut; without it that is not known."""


def _read_recipe(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected the settings of a faces.json, found {type(values).__name__}.")
    return {"num_frames": 32, **values}  # the frames that videos are to be cut of


def find_pictures(root: Path, listing: Listing) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Path -> address of all pictures, and the addresses of each path that several have."""
    names = files_below(
        root,
        lambda name: _is_picture(name) or is_archive_name(name),
        "neither a JPEG, PNG or WebP nor a tar archive",
    )
    found = [name for name in names if not is_archive_name(name)]
    present = dict(zip(found, found, strict=True))
    shadowed: dict[str, list[str]] = {}
    unpacked, left_out = 0, []
    for archive in filter(is_archive_name, names):
        members: dict[str, str] = {}  # the last of one path counts, as when the archive is unpacked
        for address in archive_members(root, archive):
            path = unpacked_path(address)
            if not _is_picture(path):
                continue
            if fault := path_fault(path) or ("" if is_utf8(path) else "its name is not UTF-8"):
                left_out.append(f"{printable(path_in_archive(address))} ({fault})")
            else:
                members[path] = address
        for path, address in members.items():
            other = present.setdefault(path, address)
            if other == path:
                unpacked += 1
            elif other != address:
                shadowed.setdefault(path, [other]).append(address)
    log_left_out(root, left_out)
    if unpacked:
        listing.notes.append(
            f"{counted(unpacked, 'picture lies', 'pictures lie')} in an archive and unpacked beside it; the latter "
            "count."
        )
    return present, shadowed


def _is_picture(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name[name.rfind(".") :].lower() in PICTURE_SUFFIXES and not name.startswith(".")


def _videos_of_class_folders(
    listing: Listing, present: dict[str, str], shadowed: dict[str, list[str]]
) -> dict[str, CropVideo]:
    videos: dict[str, CropVideo] = {}
    for path in sorted(present):
        label = path.partition("/")[0]
        if "/" in path and label.lower() in CLASS_FOLDERS:
            _require_one(path, shadowed, "Take one of them away, or name it in a CSV with --labels")
            new = CropVideo({"label": CLASS_FOLDERS[label.lower()]}, path)
            if (video := videos.setdefault(f"{listing.dataset}/{_stem(path)}", new)) is not new:
                raise ValueError(
                    f"{listing.root}: {video.where} and {path} differ in their ending only. Rename one of them."
                )
            video.pictures[present[path]] = {}
    if not videos:
        raise FileNotFoundError(
            f"{listing.root}: expected pictures in folders `real` or `fake`, there or in tar archives, found none "
            f"among {len(present)} pictures. Pass --labels CSV for pictures that lie otherwise."
        )
    return videos


def _require_one(path: str, shadowed: dict[str, list[str]], advice: str) -> None:
    if path in shadowed:
        where = " and as ".join(map(path_in_archive, shadowed[path]))
        raise ValueError(f"{path} stands in several archives, as {where}. {advice}.")


def _videos_of_csv(
    labels: Path,
    column: tuple[str, ...],
    listing: Listing,
    present: dict[str, str],
    shadowed: dict[str, list[str]],
) -> dict[str, CropVideo]:
    name = listing.dataset
    in_archives = {path_in_archive(address): address for path in shadowed for address in shadowed[path]}
    in_archives |= {path_in_archive(address): address for address in present.values() if "@" in address}
    videos: dict[str, CropVideo] = {}
    row_of: dict[str, dict[str, str]] = {}
    repeated = 0
    for number, row in enumerate(_read_cells(labels, column).to_dict("records")):
        where = f"{labels}: row {number}"
        path = _below_root(row["path"], listing.root, where)
        if row_of.setdefault(path, row) != row:
            raise ValueError(f"{where}: {path} is listed twice, as {_in_words(row_of[path])} and as {_in_words(row)}.")
        if row_of[path] is not row:
            repeated += 1
            continue
        if path not in in_archives:
            _require_one(path, shadowed, f"Name one of these paths in {labels}")
        path = _with_ending(path, present)
        address = in_archives.get(path) or present.get(path)
        video_id = f"{name}/{_stem(row['video'] or unpacked_path(address or path))}"
        if fault := path_fault(video_id):
            raise ValueError(f"{where}: video {row['video']!r}: {fault}.")
        values = _values(row, video_id, name, where)
        video = videos.setdefault(video_id, CropVideo(values, f"row {number}"))
        if video.values != values:
            raise ValueError(
                f"{where}: {video_id} is {_in_words(values)}, and {_in_words(video.values)} in {video.where}."
            )
        if address is None:
            listing.absent.append(path)
        else:
            video.pictures[address] = row
    if repeated:
        listing.notes.append(
            f"{labels}: {counted(repeated, 'row that repeats another is', 'rows that repeat others are')} left out."
        )
    _resolve_originals(videos, row_of, name, listing)
    return {video_id: video for video_id, video in videos.items() if video.pictures}


def _read_cells(labels: Path, column: tuple[str, ...]) -> "pd.DataFrame":
    """The CSV's cells as text under our names; columns it does not have are empty."""
    if not labels.is_file():
        raise FileNotFoundError(f"{labels}: no such CSV. It has a line a picture: {', '.join(COLUMNS)}.")
    import pandas as pd

    from multiattn.runtime.table_files import read_csv

    try:
        cells = read_csv(labels)
    except (csv.Error, OSError, ValueError) as error:
        raise ValueError(
            f"{labels}: expected a CSV in UTF-8 with a line a picture ({', '.join(COLUMNS)}), found something else: "
            f"{error}."
        ) from error
    theirs = dict(word.partition("=")[::2] for word in column)
    if len(theirs) < len(column):
        raise ValueError(f"--column: expected each of our columns once, found {' '.join(column)}.")
    for ours, name in theirs.items():
        if ours not in COLUMNS or name not in cells:
            raise ValueError(
                f"--column {ours}={name}: expected OURS=THEIRS with OURS of {', '.join(COLUMNS)} and THEIRS of "
                f"{', '.join(cells)}."
            )
    chosen = {ours: theirs.get(ours, ours) for ours in COLUMNS}
    if missing := [ours for ours in ("path", "label") if chosen[ours] not in cells]:
        is_separated = cells.columns.str.contains("[;\t]").any()
        named = f"Name the one that stands for it with --column {missing[0]}=THEIRS"
        advice = "Put commas between the cells" if is_separated else named
        raise ValueError(
            f"{labels}: expected a column {missing[0]!r} ({COLUMNS[missing[0]]}), found {', '.join(cells)}. {advice}."
        )
    return pd.DataFrame({ours: cells.get(name, "") for ours, name in chosen.items()})


def _below_root(written: str, root: Path, where: str) -> str:
    if path_fault(written) is None:
        return written
    path = PurePosixPath(written)
    if path.is_absolute() and path.is_relative_to(root.resolve()):
        path = path.relative_to(root.resolve())
    text = path.as_posix() if written else ""
    if fault := path_fault(text):
        raise ValueError(f"{where}: expected a path below {root}, found {written!r}: {fault}.")
    return text


def _with_ending(path: str, present: dict[str, str]) -> str:
    """The picture's path, of a list that names videos and means their pictures (`a.mp4` for `a.jpg`)."""
    if path in present or _is_picture(path):
        return path
    pictures = (f"{_stem(path)}{suffix}" for suffix in sorted(PICTURE_SUFFIXES))
    return next((picture for picture in pictures if picture in present), path)


def _values(row: dict[str, str], video_id: str, name: str, where: str) -> dict[str, Any]:
    """Columns of `videos.csv` that a row states of its video, checked."""
    values = {key: row[key].strip() for key in OF_VIDEO}
    values["label"], values["split"] = values["label"].lower(), values["split"].lower()
    for key, allowed in (("label", list(LABEL_NAMES)), ("split", [*SPLITS, ""])):
        if values[key] not in allowed:
            raise ValueError(
                f"{where}: column {key!r}: expected one of {', '.join(filter(None, allowed))}, found {row[key]!r}."
            )
    if values["original"] and f"{name}/{_stem(values['original'])}" == video_id:
        values["original"] = ""
    values["target_id"] = values.pop("identity")
    values["label"] = LABEL_NAMES[values["label"]]
    values["method"] = values["method"] if values["label"] == FAKE else ""
    return values


def _in_words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value != "")


def _resolve_originals(
    videos: dict[str, CropVideo], row_of: dict[str, dict[str, str]], name: str, listing: Listing
) -> None:
    """Originals by video_id: an original is named as a video is, or by a picture of it."""
    itself = 0
    for video_id, video in videos.items():
        if not (original := video.values["original"]):
            continue
        named = f"{name}/{_stem(original)}"
        if named not in videos and (row := row_of.get(original)) is not None:
            named = f"{name}/{_stem(row['video'] or unpacked_path(original))}"
        if path_fault(named):
            raise ValueError(f"{video.where}: original {original!r}: {path_fault(named)}.")
        video.values["original"] = "" if named == video_id else named
        itself += named == video_id and video.values["label"] == FAKE
    if itself:
        listing.notes.append(f"{counted(itself, 'fake names', 'fakes name')} itself as the original: without one here.")


def _stem(name: str) -> str:
    """Without the ending of a picture or a video."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 (of millions a Path each takes longer than all the rest)
    return stem if suffix.lower() in ENDINGS else name
