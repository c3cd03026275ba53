"""A faces folder over pictures that another program cut: tables, and the root the pictures lie below, uncopied.

The frame of reference is the crop itself: a box is the whole crop, landmarks are pixels of it or, all 0, not known;
`seconds` are 0 and `score` is 1.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiattn.runtime.crop_files import ROOT_KEY
from multiattn.runtime.files import exclusive_folder, read_json, write_json
from multiattn.runtime.frame_folders import frame_numbers, natural_order
from multiattn.runtime.layout import FACES_FILE, RECIPE_FILE, STATUS_FILE, VIDEOS_FILE
from multiattn.tables import FACES, LANDMARKS, VIDEO_STATUS, VIDEOS, Table

if TYPE_CHECKING:
    import pandas as pd

SIDES = (32, 4096)
"""Smallest and largest side of crops in pixels."""


def crop_rows(
    video_ids: list[str], frames: list[int], tracks: list[int], crops: list[str], sides: Any
) -> "pd.DataFrame":
    """A `faces` table without landmarks, of crops by address; `sides` in pixels, one or one each."""
    import pandas as pd

    table = pd.DataFrame({"video_id": video_ids, "frame_index": frames, "track": tracks, "crop": crops})
    table = table.assign(seconds=0.0, x1=0.0, y1=0.0, x2=sides, y2=sides, score=1.0, **dict.fromkeys(LANDMARKS, 0.0))
    return table.astype({"x2": "float64", "y2": "float64"})[list(FACES.columns)]


def number_frames(names: list[str]) -> dict[str, int]:
    """Picture -> frame index, as those of a clip that is a folder of pictures."""
    ordered = sorted(names, key=natural_order)
    return dict(zip(ordered, frame_numbers(ordered), strict=True))


def recipe_of(*, size: int, num_frames: int, template: str, detector: str = "unknown", **settings: Any) -> dict:
    """`faces.json` of such crops: a crop recipe (`video/crops/recipe.py`) that this code can train on."""
    recipe = {"version": 2, "num_frames": num_frames, "size": size, "detector": detector, "threshold": 0.5}
    return recipe | {"template": template, "interpolation": "unknown"} | settings


def write_crops_folder(
    folder: Path,
    root: Path,
    recipe: dict[str, Any],
    *,
    faces: "pd.DataFrame",
    videos: "pd.DataFrame",
    statuses: "pd.DataFrame",
    replaced_dataset: str = "",
) -> None:
    """Write a faces folder, or add to one of the same root; rows of videos it has already are replaced.

    Args:
        faces: a `faces` table whose crops are addresses below the root.
        replaced_dataset: all of its rows go first.

    Raises:
        ValueError: the folder belongs to something else, or its other crops were made otherwise.
    """
    import pandas as pd

    with exclusive_folder(folder):
        kept = _read_kept(folder, root, VIDEOS)
        old = kept["video_id"].isin(set(videos["video_id"])) | (kept["dataset"] == replaced_dataset)
        recipe = {**recipe, ROOT_KEY: _relative(root, folder)}
        if not old.all():
            recipe["num_frames"] = _require_same_recipe(folder, recipe)
        gone = set(kept.loc[old, "video_id"])
        write_json(folder / RECIPE_FILE, recipe)
        for kind, frame, name in (
            (FACES, faces, FACES_FILE),
            (VIDEOS, videos, VIDEOS_FILE),
            (VIDEO_STATUS, statuses, STATUS_FILE),  # last: its rows make a video done
        ):
            earlier = kind.read(folder / name, allow_empty=True) if (folder / name).is_file() else kind.empty()
            earlier = earlier[~earlier["video_id"].isin(gone)]
            frame = pd.concat([earlier, frame], ignore_index=True) if len(earlier) else frame
            kind.write(frame.sort_values(list(kind.key), ignore_index=True), folder / name)


def _relative(root: Path, folder: Path) -> str:
    """The root from the faces folder, so that both may move together."""
    try:
        return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return str(root.resolve())


def _read_kept(folder: Path, root: Path, kind: Table) -> "pd.DataFrame":
    """The videos that a folder of this root holds already; none in a new one."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        return kind.empty()
    values = read_json(path)
    declared = values.get(ROOT_KEY) if isinstance(values, dict) else None
    if not isinstance(declared, str):
        raise ValueError(f"{folder}: this faces folder has crops of its own, made otherwise. Choose another --faces.")
    if (folder.resolve() / declared).resolve() != root.resolve():
        raise ValueError(
            f"{folder}: this faces folder belongs to {(folder.resolve() / declared).resolve()}, not to {root}. Choose "
            f"another --faces, or, if the crops moved, correct `{ROOT_KEY}` in {path.name}."
        )
    return kind.read(folder / VIDEOS_FILE) if (folder / VIDEOS_FILE).is_file() else kind.empty()


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
