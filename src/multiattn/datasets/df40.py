"""DF40: fakes by 40 methods as frames that are cropped to the face, with JSON files of DeepfakeBench's form.

Source of the layout: README, `rearrange.py` and `test_config.yaml` of YZY-stack/DF40, and its issues (numbers below).
Below the root lie `DF40/<method>/{ff,cdf}/...` (test), `DF40_train/<method>/...`, and the real frames of
FaceForensics++ and Celeb-DF-v2; the nine methods of other origin have `DF40/<method>/{fake,real}/...`. Folders bear
the names of target and source as in those two data sets. What is made of the defects of these files:

    labels end in `_Real` or `_Fake` and name other methods than the folder (`roop_Fake` of simswap): the folder counts
    a method's folder has several spellings (#20): found in any case, and by its other names
    one folder holds many pictures that are videos of their own: each is one
    videos in several splits, e4e's fakes in training and test (#25): `test` wins over `train`, `train` over `val`
    empty folders (#40), empty pictures (#30), fewer than 32 frames (#16): absent, left out, taken as they are
    paths of another machine, with either slash (#26): found below the root by their tail
"""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from multiattn.datasets.crops_folder import CropVideo, write_crops_folder
from multiattn.datasets.deepfakebench import below_root, json_entries, set_splits
from multiattn.datasets.labelled_folder import CLASS_FOLDERS
from multiattn.datasets.manifest import IndexOptions, Listing, require_root
from multiattn.tables import FAKE, REAL

DATASET = "df40"
TOPS = ("DF40", "DF40_train")
SPELLINGS = (
    {"whichisreal", "whichfaceisreal"},
    {"starganv2", "stargan2"},
    {"collabdiff", "collaborative_diffusion"},
)
"""Names of one method's folder in small letters."""
REALS = (
    (
        re.compile(r"(?P<target>\d{3})(_(?P<source>\d{3}))?$"),
        "FaceForensics++/original_sequences/youtube/c23/frames/{0}",
    ),
    (
        re.compile(r"(?P<target>id\d+)(_(?P<source>id\d+))?_(?P<clip>\d{4})$"),
        "Celeb-DF-v2/Celeb-real/frames/{0}_{2}",
    ),
    (re.compile(r"(?P<target>)(?P<source>)(?P<clip>\d{5})$"), "Celeb-DF-v2/YouTube-real/frames/{2}"),
)
"""Form of a folder's name -> the folder of its original."""
_LABEL = re.compile(r".+_(?P<kind>real|fake)$", re.IGNORECASE)


def read_df40(root: Path, *, json: tuple[Path, ...], faces: Path) -> Listing:
    """List the videos of some of their JSON files, and make a faces folder of their frames, which stay where they are.

    Videos without a frame in the JSON or on disk are `absent`.

    Raises:
        ValueError: as `write_crops_folder`; a JSON of another form, or a video both real and fake.
    """
    require_root(root, f"{' and '.join(TOPS)}, FaceForensics++ and Celeb-DF-v2")
    listing = Listing(dataset=DATASET, root=root)
    disk, videos, splits = _Disk(root), {}, {}
    for path in json:
        entries = json_entries(path, lambda label: bool(_LABEL.match(label)), ("*_Real", "*_Fake"))
        for split, label, name, frames in entries:
            found = disk.find([frame.replace("\\", "/") for frame in frames], name)
            if found is None:
                listing.absent.append(f"{label}/{name}")
                continue
            video_id, pictures = found
            kind = CLASS_FOLDERS[_LABEL.match(label)["kind"].lower()]
            video = videos.setdefault(video_id, CropVideo(_values(video_id, kind), f"{path}: {video_id}"))
            if video.values["label"] != kind:
                raise ValueError(f"{path}: {video_id} is listed as real and as fake.")
            video.pictures.update((picture, {}) for picture in pictures)
            splits.setdefault(video_id, set()).add(split)
    set_splits(videos, splits, listing)
    if not any(video.values["label"] == REAL for video in videos.values()):
        listing.notes.append(
            "There is no real video: those of FaceForensics++ and Celeb-DF-v2 are archives of their own, to lie below "
            f"{root}."
        )
    if videos:
        write_crops_folder(faces, listing, videos)
    return listing


@dataclass(frozen=True, kw_only=True)
class Df40(IndexOptions):
    """DF40's frames, cropped to the face: also writes a faces folder of them, without decoding anything again."""

    reader = staticmethod(read_df40)
    json: tuple[Path, ...]
    """Their JSON files, as simswap_ff.json blendface_cdf.json."""
    faces: Path
    """The faces folder to write."""


class _Disk:
    """Frames as the JSON names them -> where they lie below the root."""

    def __init__(self, root: Path) -> None:
        self.root, self._drop = root, 0
        self._listed, self._located = functools.cache(self._list), functools.cache(self._locate)

    def find(self, frames: list[str], name: str) -> tuple[str, list[str]] | None:
        """video_id and pictures of a video; None where none of its frames is there."""
        by_folder: dict[str, list[str]] = {}
        for frame in frames:
            folder, _, file = frame.rpartition("/")
            by_folder.setdefault(folder, []).append(file)
        pictures = []
        for folder, files in by_folder.items():
            where = self._located(folder)
            pictures += [f"{where}/{file}" for file in files if file in self._listed(where)]
        if not pictures:
            return None
        folder = pictures[0].rpartition("/")[0]
        is_own = PurePosixPath(folder).name == name or len(frames) > 1
        return f"{DATASET}/{folder}" if is_own else f"{DATASET}/{pictures[0].rpartition('.')[0]}", pictures

    def _list(self, folder: str) -> frozenset[str]:
        path = self.root / folder
        return frozenset(os.listdir(path)) if path.is_dir() else frozenset()  # noqa: PTH208

    def _locate(self, folder: str) -> str:
        """A folder's place below the root, under whichever name of its method; generators' may be doubled."""
        found, self._drop = below_root(self.root, folder, self._drop)
        parts = folder.split("/")
        top = next((place for place, part in enumerate(parts) if part in TOPS), None)
        if not (self.root / found).is_dir() and top is not None and top + 1 < len(parts):
            known = next((names for names in SPELLINGS if parts[top + 1].lower() in names), {parts[top + 1].lower()})
            for above in (parts[top], ""):
                for method in self._listed(above):
                    if method.lower() in known:
                        found = "/".join(filter(None, [above, method, *parts[top + 2 :]]))
                        break
        doubled = f"{found}/{found.rpartition('/')[2]}"
        return doubled if (self.root / doubled).is_dir() else found


def _values(video_id: str, label: int) -> dict[str, Any]:
    """Columns of `videos.csv` that a video's label and place tell."""
    parts = video_id.split("/")[1:]
    top = next((place + 1 for place, part in enumerate(parts) if part in TOPS), 0)
    values = {"label": label, "method": parts[top] if label == FAKE else ""}
    if not {"fake", "real"}.isdisjoint(parts):  # of another origin: names mean something else
        return values
    for form, original in REALS:
        if match := form.match(parts[-1]):
            target, source, clip = (match.groupdict().get(name) or "" for name in ("target", "source", "clip"))
            values |= {"target_id": target, "source_id": source}
            if label == FAKE:
                values["original"] = f"{DATASET}/{original.format(target, source, clip)}"
    return values
