"""The DFDC preview set: two methods, the originals, and one `dataset.json`.

Source of the layout: the readers of the release, there being no document of its own. Keys of `dataset.json` are paths:
`original_videos/<target>/<target>_<scene>_<clip>.mp4` and, of `method_A` and `method_B`,
`method_A/<target>/<target>_<scene>/<swapped>_<target>_<scene>_<clip>.mp4`: the face of `swapped` on a video of
`target`. Some tools move each top folder's content into a `videos` folder in it; both are read.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.datasets.manifest import IndexOptions, Listing, video_files_below, video_id, video_row
from multiattn.runtime.files import read_json
from multiattn.tables import FAKE, REAL

DATASET = "dfdc-preview"
LABEL_NAMES = {"fake": FAKE, "real": REAL}
SPLITS = ("train", "test")
TOP_FOLDERS = ("method_A", "method_B", "original_videos")
_FAKE_NAME = re.compile(r"(?P<source>\d+)_(?P<clip>(?P<target>\d+)_\w+)$", re.ASCII)
_REAL_NAME = re.compile(r"(?P<clip>(?P<target>\d+)_\w+)$", re.ASCII)


def read_dfdc_preview(root: Path) -> Listing:
    """List the clips that `dataset.json` names, whatever of them is there.

    Args:
        root: the folder that holds `dataset.json`, `method_A`, `method_B` and `original_videos`.

    Returns:
        `original` of a fake is the listed real clip of its target that `source_video` names, or else the one of the
        same target, scene and clip number; empty where there is none of the two. `method` is the top folder.

    Raises:
        FileNotFoundError: no `dataset.json` in the folder.
        ValueError: a `dataset.json` that is not what it should be.
    """
    path = root / "dataset.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Pass the folder that holds dataset.json and method_A as --root."
        )
    entries = _read_entries(path)
    present = {f"{top}/{name}" for top in TOP_FOLDERS for name in video_files_below(root / top)}
    place = {key: _place(key, present) for key in entries}
    reals = {Path(key).stem: key for key, entry in entries.items() if LABEL_NAMES[entry["label"]] == REAL}
    listing = Listing(dataset=DATASET, root=root)
    for key, entry in sorted(entries.items()):
        if place[key] not in present:
            listing.absent.append(key)
            continue
        label = LABEL_NAMES[entry["label"]]
        people = _people(key, entry, label)
        original = _original(key, entry, people["target_id"], reals, entries) if label == FAKE else None
        listing.rows.append(
            video_row(
                DATASET,
                place[key],
                label=label,
                method=key.split("/")[0] if label == FAKE else "",
                split=entry["set"],
                original=video_id(DATASET, place[original]) if original is not None else "",
                **people,
            )
        )
    listing.unlisted.extend(sorted(present - set(place.values())))
    return listing


@dataclass(frozen=True, kw_only=True)
class DfdcPreview(IndexOptions):
    """The DFDC preview set: dataset.json, method_A, method_B, original_videos."""

    reader = staticmethod(read_dfdc_preview)


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: expected an object of path -> entry, found {type(entries).__name__}.")
    for key, entry in entries.items():
        if key.split("/")[0] not in TOP_FOLDERS or ".." in key.split("/"):
            raise ValueError(f"{path}: expected paths below {', '.join(TOP_FOLDERS)}, found {key!r}.")
        for name, allowed in (("label", tuple(LABEL_NAMES)), ("set", SPLITS)):
            found = entry.get(name) if isinstance(entry, dict) else None
            if found not in allowed:
                raise ValueError(f"{path}: {key}: expected a {name} of {', '.join(allowed)}, found {found!r}.")
    return entries


def _place(key: str, present: set[str]) -> str:
    """Path of the clip of a key: the key itself, or below `videos` in its top folder when the clip is there."""
    top, _, rest = key.partition("/")
    moved = f"{top}/videos/{rest}"
    return moved if key not in present and moved in present else key


def _people(key: str, entry: dict[str, Any], label: int) -> dict[str, str]:
    """target_id and source_id: as the entry says, else as the name does, else empty."""
    match = (_FAKE_NAME if label == FAKE else _REAL_NAME).match(Path(key).stem)
    named = match.groupdict() if match is not None else {}
    target = entry.get("target_id") or named.get("target", "")
    source = (entry.get("swapped_id") or named.get("source", "")) if label == FAKE else ""
    return {"target_id": str(target), "source_id": str(source)}


def _original(
    key: str, entry: dict[str, Any], target: str, reals: dict[str, str], entries: dict[str, dict[str, Any]]
) -> str | None:
    """Key of the real clip a fake was made on. `source_video` counts only where it shows the target."""
    match = _FAKE_NAME.match(Path(key).stem)
    for stem in (Path(str(entry.get("source_video") or "")).stem, match["clip"] if match is not None else ""):
        real = reals.get(stem)
        if real is not None and _people(real, entries[real], REAL)["target_id"] == target:
            return real
    return None
