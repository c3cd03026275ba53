"""A faces folder over pictures that another program cut: tables, and the root the pictures lie below, uncopied.

The frame of reference is the crop itself: a box is the whole crop, landmarks are pixels of it or, all 0, not known;
`seconds` are 0 and `score` is 1.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from multiattn.datasets.manifest import Listing
from multiattn.runtime.crop_files import ROOT_KEY, path_in_archive, picture_size, read_ends
from multiattn.runtime.files import exclusive_folder, read_json, write_json
from multiattn.runtime.frame_folders import frame_numbers, natural_order
from multiattn.runtime.layout import FACES_FILE, RECIPE_FILE, STATUS_FILE, VIDEOS_FILE
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FACES, LANDMARKS, VIDEO_STATUS, VIDEOS

if TYPE_CHECKING:
    import pandas as pd

SIDES = (32, 4096)
"""Smallest and largest side of crops in pixels."""
HEAD_BYTES, MORE_HEAD_BYTES = 2048, 1 << 18
"""Bytes in which a header is looked for, and in which where it is not found (profiles may stand before it)."""


@dataclass
class CropVideo:
    """A video of cropped pictures."""

    values: dict[str, Any]
    """Columns of its row in `videos.csv`."""
    where: str
    """Its place, for an error."""
    pictures: dict[str, dict[str, str]] = field(default_factory=dict)
    """Address -> `frame` and `track` as text, where they are known."""
    path: str = ""
    """Its path in `videos.csv`; empty for that of its picture, or of the folder of several."""


def write_crops_folder(
    faces: Path,
    listing: Listing,
    videos: dict[str, CropVideo],
    *,
    size: int | None = None,
    recipe: dict[str, Any] | None = None,
    landmarks: Callable[[str, int], np.ndarray] | None = None,
    replace_dataset: bool = True,
) -> None:
    """Write a faces folder of some videos' pictures, or add to one of the same root; their rows go into the listing.

    Args:
        videos: video_id -> video; at least one. Those that the folder has already are replaced.
        size: pictures with a smaller side are left out; None leaves none out, and the smallest side is the folder's.
        recipe: settings of `faces.json`, a crop recipe (`video/crops/recipe.py`); None says that they are not known.
        landmarks: (address, side) -> (5, 2) pixels of the crop.
        replace_dataset: also replace all other videos of this data set.

    Raises:
        ValueError: no usable picture, a frame twice, or a folder of something else or whose other crops were made
            otherwise.
    """
    import pandas as pd

    name, root = listing.dataset, listing.root
    sides, faults = _measure(root, [address for video in videos.values() for address in video.pictures], size)
    if not sides:
        first, fault = next(iter(faults.items()))
        raise ValueError(f"{root}: none of {len(faults)} pictures is usable; the first: {first}: {fault}.")
    rows, statuses = [], []
    for video_id, video in videos.items():
        kept = {address: numbers for address, numbers in video.pictures.items() if address in sides}
        rows += [(video_id, *numbers, address, sides[address]) for address, numbers in _number(kept, video_id).items()]
        bad = [f"{path_in_archive(address)}: {faults[address]}" for address in video.pictures if address in faults]
        status = "ok" if kept else "unreadable"
        statuses.append((video_id, status, len(video.pictures), len(kept), "; ".join(bad[:3])))
        listing.add(video.path or _path(video), video_id=video_id, **video.values)
    lengths = np.fromiter(sides.values(), np.int64)
    smallest = int(lengths.min()) if size is None else size
    not_known = {"detector": "unknown", "threshold": 0.5, "template": f"crops of {name}", "interpolation": "unknown"}
    table = pd.DataFrame(rows, columns=["video_id", "frame_index", "track", "crop", "x2"])
    table = table.assign(seconds=0.0, x1=0.0, y1=0.0, y2=table["x2"], score=1.0, **dict.fromkeys(LANDMARKS, 0.0))
    if landmarks is not None:
        points = [landmarks(address, side) for *_, address, side in rows]
        table[list(LANDMARKS)] = np.reshape(points, (-1, len(LANDMARKS)))
    _write_tables(
        faces,
        root,
        {"version": 2, "num_frames": max(row[3] for row in statuses), **(recipe or not_known), "size": smallest},
        table,
        VIDEOS.validate(pd.DataFrame(listing.rows), faces),
        pd.DataFrame(statuses, columns=list(VIDEO_STATUS.columns)),
        replaced_dataset=name if replace_dataset else "",
    )
    if faults:
        kinds = Counter(fault.partition(" (")[0] for fault in faults.values()).most_common()
        first, fault = next(iter(faults.items()))
        listing.notes.append(
            f"{len(faults)} of {len(faults) + len(sides)} pictures are left out "
            f"({', '.join(f'{count} {kind}' for kind, count in kinds)}); the first: {path_in_archive(first)}: {fault}"
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


def _number(pictures: dict[str, dict[str, str]], video_id: str) -> dict[str, tuple[int, int]]:
    """Address -> frame and track, each pair once; without a frame as those of a clip that is a folder of pictures."""
    path_of = {address: path_in_archive(address) for address in pictures}
    ordered = sorted(path_of.values(), key=natural_order)
    number_of = dict(zip(ordered, frame_numbers(ordered), strict=True))
    try:
        found = {
            address: (int(row.get("frame") or number_of[path_of[address]]), int(row.get("track") or 0))
            for address, row in pictures.items()
        }
    except ValueError as error:
        raise ValueError(f"{video_id}: columns 'frame' and 'track': expected whole numbers: {error}.") from error
    if len(set(found.values())) < len(found) or min(map(min, found.values()), default=0) < 0:
        raise ValueError(
            f"{video_id}: expected each frame and track once, from 0 on, found {sorted(found.values())[:5]}."
        )
    return found


def _path(video: CropVideo) -> str:
    paths = [path_in_archive(address) for address in video.pictures]
    folder = paths[0].rpartition("/")[0]
    return paths[0] if len(paths) == 1 or not folder else folder


def _write_tables(
    folder: Path,
    root: Path,
    recipe: dict[str, Any],
    faces: "pd.DataFrame",
    videos: "pd.DataFrame",
    statuses: "pd.DataFrame",
    *,
    replaced_dataset: str,
) -> None:
    """Write recipe and tables; rows that the folder has of other videos stay."""
    import pandas as pd

    with exclusive_folder(folder):
        kept = _read_kept(folder, root)
        old = kept["video_id"].isin(set(videos["video_id"])) | (kept["dataset"] == replaced_dataset)
        recipe = {**recipe, ROOT_KEY: _relative(root, folder)}
        if not old.all():
            recipe["num_frames"] = _require_same_recipe(folder, recipe)
        gone = set(kept.loc[old, "video_id"])
        write_json(folder / RECIPE_FILE, recipe)
        for kind, table, name in (
            (FACES, faces, FACES_FILE),
            (VIDEOS, videos, VIDEOS_FILE),
            (VIDEO_STATUS, statuses, STATUS_FILE),  # last: its rows make a video done
        ):
            if (folder / name).is_file():
                earlier = kind.read(folder / name, allow_empty=True)
                earlier = earlier[~earlier["video_id"].isin(gone)]
                table = pd.concat([earlier, table], ignore_index=True) if len(earlier) else table
            kind.write(table.sort_values(list(kind.key), ignore_index=True), folder / name)


def _relative(root: Path, folder: Path) -> str:
    """The root from the faces folder, so that both may move together."""
    try:
        return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return str(root.resolve())


def _read_kept(folder: Path, root: Path) -> "pd.DataFrame":
    """The videos that a folder of this root holds already; none in a new one."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return VIDEOS.empty()
    values = read_json(path)
    declared = values.get(ROOT_KEY) if isinstance(values, dict) else None
    if not isinstance(declared, str):
        raise ValueError(f"{folder}: this faces folder has crops of its own, made otherwise. Choose another --faces.")
    if (other := (folder.resolve() / declared).resolve()) != root.resolve():
        raise ValueError(
            f"{folder}: this faces folder belongs to {other}, not to {root}. Choose another --faces, or, if the crops "
            f"moved, correct `{ROOT_KEY}` in {path.name}."
        )
    return VIDEOS.read(folder / VIDEOS_FILE) if (folder / VIDEOS_FILE).is_file() else VIDEOS.empty()


def _require_same_recipe(folder: Path, recipe: dict[str, Any]) -> int:
    """The number of frames for both; refuses another recipe."""
    kept = read_json(folder / RECIPE_FILE)
    differing = [key for key in {**kept, **recipe} if key != "num_frames" and kept.get(key) != recipe.get(key)]
    if differing:
        found = ", ".join(f"{key} {kept.get(key)!r} and now {recipe.get(key)!r}" for key in sorted(differing))
        raise ValueError(
            f"{folder / RECIPE_FILE}: this faces folder was made otherwise: {found}. Choose another --faces."
        )
    return max(recipe["num_frames"], kept["num_frames"])
