"""Videos of pictures that are cropped already: measured, numbered, and written as a faces folder."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from multiattn.datasets.crops_folder import SIDES, crop_rows, number_frames, recipe_of, write_crops_folder
from multiattn.datasets.labelled_folder import CLASS_FOLDERS
from multiattn.datasets.manifest import Listing, video_row
from multiattn.runtime.crop_files import path_in_archive, read_ends
from multiattn.runtime.files import read_json
from multiattn.runtime.picture_size import picture_size
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FAKE, REAL, VIDEO_STATUS, VIDEOS

LABEL_NAMES = {"0": REAL, "1": FAKE, **CLASS_FOLDERS}
HEAD_BYTES, MORE_HEAD_BYTES = 2048, 1 << 18
"""Bytes in which a header is looked for, and in which where it is not found (profiles may stand before it)."""


@dataclass
class CropVideo:
    """A video of the list, and its pictures: address, and the row that named it."""

    facts: dict[str, str]
    """`label`, of `LABEL_NAMES`, `identity`, and other columns of `videos.csv`."""
    where: str
    """Its place, for an error."""
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)


def write_videos(
    root: Path,
    name: str,
    videos: dict[str, CropVideo],
    listing: Listing,
    faces: Path,
    size: int | None,
    recipe: Path | None = None,
) -> None:
    """Write the faces folder of some videos' pictures, and their rows and notes into the listing.

    Args:
        videos: video_id -> video; at least one.

    Raises:
        ValueError: as `read_crops`, of pictures and faces folder.
    """
    import pandas as pd

    sides, faults = _measure(root, [address for video in videos.values() for address in video.pictures], size)
    if not sides:
        first = next(iter(faults.items()))
        raise ValueError(f"{root}: none of {len(faults)} pictures is usable; the first: {first[0]}: {first[1]}.")
    statuses, tables = [], []
    for video_id, video in videos.items():
        kept = {address: row for address, row in video.pictures.items() if address in sides}
        frames = _frames(kept, video_id)
        tables += [(video_id, *frames[address], address, sides[address]) for address in kept]
        bad = [f"{path_in_archive(address)}: {faults[address]}" for address in video.pictures if address in faults]
        status = "ok" if kept else "unreadable"
        statuses.append((video_id, status, len(video.pictures), len(kept), "; ".join(bad[:3])))
        listing.rows.append(_video_row(name, video_id, video))
    if faults:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(map(_kind, faults.values())).most_common())
        first = next(iter(faults))
        listing.notes.append(
            f"{len(faults)} of {len(faults) + len(sides)} pictures are left out ({kinds}); the first: "
            f"{path_in_archive(first)}: {faults[first]}"
        )
    lengths = np.fromiter(sides.values(), np.int64)
    smallest = int(lengths.min()) if size is None else size
    settings = _recipe(recipe, name, size=smallest, num_frames=max(count for *_, count, _ in statuses))
    write_crops_folder(
        faces,
        root,
        settings,
        faces=crop_rows(*map(list, zip(*tables, strict=True))),
        videos=VIDEOS.validate(pd.DataFrame(listing.rows), faces),
        statuses=pd.DataFrame(statuses, columns=list(VIDEO_STATUS.columns)),
        replaced_dataset=name,
    )
    spread = f"{lengths.min()} to {lengths.max()}, median {np.median(lengths):g}" if np.ptp(lengths) else lengths[0]
    listing.notes.append(
        f"{faces} reads {len(sides)} crops from {root}: keep both. Their sides are {spread} pixels: train at "
        f"{smallest} or less" + (", or leave small ones out with --size." if np.ptp(lengths) and size is None else ".")
    )


def _measure(root: Path, addresses: list[str], size: int | None) -> tuple[dict[str, int], dict[str, str]]:
    """Address -> side of the usable pictures, and what is wrong with the others, by their headers and last bytes."""
    low, high = max(SIDES[0], size or 0), SIDES[1]
    if size is not None and not SIDES[0] <= size <= high:
        raise ValueError(f"--size: expected {SIDES[0]} to {high} pixels, found {size}.")
    sides, faults = {}, {}
    with progress_bar(len(addresses), "crops", "pictures") as bar:
        for address in addresses:
            found = _side(root / address, low, high)
            (faults if isinstance(found, str) else sides)[address] = found
            bar.update()
    return sides, faults


def _side(path: Path, low: int, high: int) -> int | str:
    """The side of a picture, or what is wrong with it."""
    try:
        head, tail = read_ends(path, HEAD_BYTES, 2)
        size_wh = picture_size(head) or (picture_size(read_ends(path, MORE_HEAD_BYTES, 0)[0]) if head else None)
    except OSError as error:
        return f"unreadable ({error.strerror or error})"
    if size_wh is None:
        return "unreadable (no header of a JPEG, PNG or WebP)" if head else "unreadable (empty)"
    if head.startswith(b"\xff\xd8") and tail != b"\xff\xd9":
        return "unreadable (cut off)"
    width, height = size_wh
    if width != height:
        return f"not square ({width}x{height})"
    if not low <= width <= high:
        return f"too {'small' if width < low else 'large'} ({width} pixels)"
    return width


def _kind(fault: str) -> str:
    return fault.partition(" (")[0]


def _frames(pictures: dict[str, dict[str, str]], video_id: str) -> dict[str, tuple[int, int]]:
    """Address -> frame and track, each pair once."""
    path_of = {address: path_in_archive(address) for address in pictures}
    numbers = number_frames(list(path_of.values()))
    try:
        found = {
            address: (int(row.get("frame") or numbers[path_of[address]]), int(row.get("track") or 0))
            for address, row in pictures.items()
        }
    except ValueError as error:
        raise ValueError(f"{video_id}: columns 'frame' and 'track': expected whole numbers: {error}.") from error
    if len(set(found.values())) < len(found) or min(map(min, found.values()), default=0) < 0:
        raise ValueError(
            f"{video_id}: expected each frame and track once, from 0 on, found {sorted(found.values())[:5]}."
        )
    return found


def _video_row(name: str, video_id: str, video: CropVideo) -> dict[str, Any]:
    """A row of videos.csv; its path is that of the picture, or of the folder of several."""
    paths = [path_in_archive(address) for address in video.pictures]
    folder = paths[0].rpartition("/")[0]
    facts = dict(video.facts)
    return video_row(
        name,
        paths[0] if len(paths) == 1 or not folder else folder,
        video_id=video_id,
        label=LABEL_NAMES[facts.pop("label")],
        target_id=facts.pop("identity"),
        **facts,
    )


def _recipe(path: Path | None, name: str, *, size: int, num_frames: int) -> dict[str, Any]:
    if path is None:
        return recipe_of(template=f"crops of {name}", size=size, num_frames=num_frames)
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected the settings of a faces.json, found {type(values).__name__}.")
    return {"version": 2, "num_frames": 32, **values, "size": size}  # the frames that videos are to be cut of
