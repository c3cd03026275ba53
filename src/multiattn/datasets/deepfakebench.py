"""DeepfakeBench's preprocessed frames: read as a videos table, and as a faces folder without decoding anything again.

Source of the layout: `preprocessing/preprocess.py` and `rearrange.py` of SCLBD/DeepfakeBench. Below the root,
`<data set>/.../frames/<video>/<frame>.png` is the largest face of a frame, `<frame>` its number in decoding order,
found by dlib and aligned to the same five points with the same margin as ours; `landmarks` in place of `frames` holds
its 81 points in pixels of the crop. A JSON per data set says {data set: {label: {split: {video: {label, frames}}}}},
with the compression level between split and video in the FaceForensics++ family. Known defects of these files, and
what is made of them here:

    videos in several splits (`val` a copy of `test` or `train`, DFD, UADFV and DF_real in all three, Celeb-DF's test
        videos in `train`): one row each; `test` wins over `train`, `train` over `val`
    Celeb-DF's first real folder missing from `train`: its videos are `unlisted`
    DFDC's `val` a single entry in place of videos, or both at once: read as the video it is
    paths of the machine that wrote them, with either slash: found below the root by their tail
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from multiattn.datasets.crops_folder import CropVideo, write_crops_folder
from multiattn.datasets.ffpp import compression_of
from multiattn.datasets.manifest import IndexOptions, Listing, is_folder, require_root
from multiattn.runtime.crop_files import picture_size, read_ends
from multiattn.runtime.files import read_json
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, REAL

DATASET = "deepfakebench"
LABELS = {
    **dict.fromkeys(("FF-real", "DFD_real", "CelebDFv1_real", "CelebDFv2_real", "DFDCP_Real", "DFDC_Real"), (REAL, "")),
    **dict.fromkeys(("DF_real", "UADFV_Real", "roop_Real"), (REAL, "")),
    "FF-DF": (FAKE, "Deepfakes"),
    "FF-F2F": (FAKE, "Face2Face"),
    "FF-FS": (FAKE, "FaceSwap"),
    "FF-NT": (FAKE, "NeuralTextures"),
    "FF-FH": (FAKE, "FaceShifter"),
    "FF-SH": (FAKE, "FaceShifter"),
    "DFD_fake": (FAKE, "DeepFakeDetection"),
    "CelebDFv1_fake": (FAKE, "Celeb-synthesis"),
    "CelebDFv2_fake": (FAKE, "Celeb-synthesis"),
    "DFDCP_FakeA": (FAKE, "method_A"),
    "DFDCP_FakeB": (FAKE, "method_B"),
    "DFDC_Fake": (FAKE, "DFDC"),
    "DF_fake": (FAKE, "DeeperForensics"),
    "UADFV_Fake": (FAKE, "UADFV"),
    "roop_Fake": (FAKE, "roop"),
}
"""Their label -> ours and the method."""
SPLITS = ("test", "train", "val")
"""The first of a video's splits is its own."""
RULES = tuple(
    (re.compile(rf"(?P<above>(?:.*/)?){pattern}", re.ASCII), original)
    for pattern, original in (
        (r"original_sequences/youtube/(?P<level>\w+)/frames/(?P<target>\d{3})", ""),
        (r"original_sequences/actors/(?P<level>\w+)/frames/(?P<target>\d\d)__\w+", ""),
        (
            r"manipulated_sequences/DeepFakeDetection/(?P<level>\w+)/frames/"
            r"(?P<target>\d\d)_(?P<source>\d\d)__(?P<clip>\w+)__[A-Z0-9]{8}",
            "{above}original_sequences/actors/{level}/frames/{target}__{clip}",
        ),
        (
            r"manipulated_sequences/\w+/(?P<level>\w+)/frames/(?P<target>\d{3})_(?P<source>\d{3})",
            "{above}original_sequences/youtube/{level}/frames/{target}",
        ),
        (r"Celeb-real/frames/(?P<target>id\d+)_\d{4}", ""),
        (
            r"Celeb-synthesis/frames/(?P<target>id\d+)_(?P<source>id\d+)_(?P<clip>\d{4})",
            "{above}Celeb-real/frames/{target}_{clip}",
        ),
        (r"original_videos/frames/(?P<target>\d+)_\w+", ""),
        (
            r"method_[AB]/frames/(?P<source>\d+)_(?P<target>\d+)_(?P<clip>\w+)",
            "{above}original_videos/frames/{target}_{clip}",
        ),
        (r"(?P<part>dfdc_train_part_\d+)/frames/\w+", ""),
        (
            r"manipulated_videos/\w+/frames/(?P<target>\d{3})_(?P<source>[MW]\d{3})",
            "FaceForensics++/original_sequences/youtube/c23/frames/{target}",
        ),
        (r"source_videos/(?P<target>[MW]\d{3})/frames/.+", ""),
    )
)
"""Form of a path below the root -> the folder of frames of a fake's original."""
_TEMPLATE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
CROP_POINTS = (_TEMPLATE_112 / 112 - 0.5) / 1.3 + 0.5
"""(5, 2) in units of the crop's side: where they bring eyes, nose and mouth corners, ArcFace's template (Deng et al.
2019) with a margin of 1.3."""
RECIPE = {
    "detector": "dlib",
    "threshold": 0.5,
    "policy": "largest",
    "template": "deepfakebench: arcface-5-point, margin 1.3, of dlib's points 37, 44, 30, 49, 55",
    "interpolation": "bilinear, border black",
    "jpeg_quality": 100,  # PNG loses nothing
}
HEAD_BYTES = 64


def read_deepfakebench(root: Path, *, json: Path, faces: Path) -> Listing:
    """List the videos of one of their JSON files, and make a faces folder of their frames, which stay where they are.

    A row's `path` is the folder of its frames. Landmarks are eye centres, nose and mouth corners of the 81 points, or
    where their file is absent the points the crop was aligned to. Another JSON of the same root may follow into the
    same faces folder. Videos without a frame in the JSON or on disk are `absent`; folders of frames beside listed ones
    are `unlisted`.

    Raises:
        ValueError: as `write_crops_folder`; a JSON of another form, a video both real and fake, or crops of different
            sizes.
    """
    require_root(root, "DeepfakeBench's data sets, datasets/rgb,")
    listing = Listing(dataset=DATASET, root=root)
    videos = _read_videos(root, json, listing)
    present: dict[str, CropVideo] = {}
    num_gone = 0
    for folder, video in videos.items():
        on_disk = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()  # noqa: PTH208
        names = sorted(name for name in video.pictures if name in on_disk)
        if not names:
            listing.absent.append(folder)
            continue
        num_gone += len(video.pictures) - len(names)
        video.pictures = {f"{folder}/{name}": {} for name in names}
        present[f"{DATASET}/{folder}"] = video
    listing.unlisted.extend(_unlisted(root, videos))
    if num_gone:
        listing.notes.append(f"{json}: {counted(num_gone, 'frame is', 'frames are')} listed but absent.")
    if any(video.where == "DF_real" for video in videos.values()):
        listing.notes.append(
            "DF_real are the actors' own recordings; the real class of DeeperForensics is FaceForensics++ c23."
        )
    if present:
        _require_one_size(root, present.values())
        _write_faces_folder(faces, listing, present)
    return listing


@dataclass(frozen=True, kw_only=True)
class DeepfakeBench(IndexOptions):
    """DeepfakeBench's preprocessed frames: also writes a faces folder of them, without decoding anything again."""

    reader = staticmethod(read_deepfakebench)
    json: Path
    """Their JSON of data set, label, split, video and frames."""
    faces: Path
    """The faces folder to write."""


def _read_videos(root: Path, json_file: Path, listing: Listing) -> dict[str, CropVideo]:
    """Folder below the root -> its video, whose `where` is their label and whose pictures are names of files."""
    videos: dict[str, CropVideo] = {}
    splits: dict[str, set[str]] = {}
    drop = 0
    for split, label, name, frames in json_entries(json_file):
        if not frames:
            listing.absent.append(f"{label}/{name}")
            continue
        paths = [path.replace("\\", "/") for path in frames]
        parents = sorted({path.rpartition("/")[0] for path in paths})
        if len(parents) > 1:
            raise ValueError(f"{json_file}: expected the frames of a video in one folder, found {parents[:3]}.")
        folder, drop = below_root(root, parents[0], drop)
        video = videos.setdefault(folder, CropVideo(_values(folder, label), label, path=folder))
        if video.values["label"] != LABELS[label][0]:
            raise ValueError(f"{json_file}: {folder} is listed as {video.where} and as {label}.")
        splits.setdefault(folder, set()).add(split)
        video.pictures.update((sys.intern(path.rpartition("/")[2]), {}) for path in paths)
    set_splits(videos, splits, listing, f"{json_file}: ")
    return videos


def set_splits(videos: dict[str, CropVideo], splits: dict[str, set[str]], listing: Listing, source: str = "") -> None:
    """Give each video the first of its splits, by the order of `SPLITS`, note how many had several, and list what is
    absent once."""
    for key, video in videos.items():
        video.values["split"] = next(split for split in SPLITS if split in splits[key])
    listing.absent[:] = dict.fromkeys(listing.absent)
    if repeated := sum(len(found) > 1 for found in splits.values()):
        listing.notes.append(
            f"{source}{counted(repeated, 'video is', 'videos are')} in several splits; each is one row, of test, "
            "else of train."
        )


def json_entries(
    json_file: Path, is_label: Callable[[str], bool] = LABELS.__contains__, labels: Iterable[str] = LABELS
) -> Iterator[tuple[str, str, str, list[str]]]:
    """(split, label, video, frames) of everything in one of their JSON files that has a list of frames, be it empty.

    `labels` are words for the labels there are, for an error.
    """
    content = read_json(json_file)
    expected = f"{json_file}: expected {{data set: {{label: {{split: {{video: ...}}}}}}}} of DeepfakeBench"
    if not isinstance(content, dict):
        raise ValueError(f"{expected}, found {type(content).__name__}.")
    for dataset, by_label in content.items():
        for label, by_split in by_label.items() if isinstance(by_label, dict) else [("", by_label)]:
            if not is_label(label):
                raise ValueError(f"{expected} with a label of {', '.join(labels)}, found {label!r} in {dataset!r}.")
            if not isinstance(by_split, dict) or set(by_split) - set(SPLITS):
                raise ValueError(f"{expected}, found something else than train, val, test in {dataset} {label}.")
            for split, node in by_split.items():
                complaint = f"{expected}, found something else in {dataset} {label} {split}."
                for name, frames in _frames(split, node, complaint):
                    yield split, label, name, frames


def _frames(node_name: str, node: Any, complaint: str) -> Iterator[tuple[str, list[str]]]:
    """Names and `frames` of a node and of all nodes below it: videos, compression levels, or both at once."""
    if not isinstance(node, dict):
        raise ValueError(complaint)
    for name, child in node.items():
        if name == "frames" and isinstance(child, list):
            if not all(isinstance(path, str) for path in child):
                raise ValueError(complaint)
            yield node_name, child
        elif isinstance(child, dict):
            yield from _frames(name, child, complaint)
        elif name not in ("label", "masks", "landmarks"):
            raise ValueError(complaint)


def below_root(root: Path, folder: str, drop: int) -> tuple[str, int]:
    """A folder as some machine named it -> its path below the root, and how many leading names that leaves out; as many
    as the folder before left out are tried first."""
    names = [name for name in folder.split("/") if name not in ("", ".", "..")]
    for number in (drop, *range(len(names))):
        tail = "/".join(names[number:])
        if tail and (root / tail).is_dir():
            return tail, number
    return "/".join(names[drop:] or names), drop


def _values(folder: str, written: str) -> dict[str, Any]:
    """Columns of `videos.csv` that a folder's place and their label tell."""
    label, method = LABELS[written]
    values: dict[str, Any] = {"label": label, "method": method}
    for pattern, original in RULES:
        if match := pattern.fullmatch(folder):
            found = match.groupdict()
            values["original"] = f"{DATASET}/{original.format(**found)}" if label == FAKE and original else ""
            values["compression"] = compression_of(found.get("level", ""))
            values["part"] = found.get("part", "")
            return values | {"target_id": found.get("target", ""), "source_id": found.get("source", "")}
    return values


def _unlisted(root: Path, videos: Iterable[str]) -> list[str]:
    """Folders beside those of the videos, which the JSON does not name."""
    found = []
    for parent in sorted({folder.rpartition("/")[0] for folder in videos}):
        if (root / parent).is_dir():
            prefix = f"{parent}/" if parent else ""
            with os.scandir(root / parent) as entries:
                found += sorted(prefix + entry.name for entry in entries if is_folder(entry))
    return [folder for folder in found if folder not in videos]


def _write_faces_folder(faces: Path, listing: Listing, videos: dict[str, CropVideo]) -> None:
    num_unmarked = 0

    def landmarks(address: str, side: int) -> np.ndarray:
        nonlocal num_unmarked
        above, _, frame = address.rpartition("frames/")
        found = _five_points(listing.root / above / "landmarks" / Path(frame).with_suffix(".npy"))
        num_unmarked += found is None
        return CROP_POINTS * side if found is None else found

    write_crops_folder(faces, listing, videos, recipe=RECIPE, landmarks=landmarks, replace_dataset=False)
    if num_unmarked:
        num_frames = sum(len(video.pictures) for video in videos.values())
        listing.notes.append(
            f"{num_unmarked} of {counted(num_frames, 'frame')} without landmarks: the points of the alignment stand "
            "for them."
        )


def _require_one_size(root: Path, videos: Iterable[CropVideo]) -> None:
    """Raise `ValueError` where the first frames of all videos are not PNG images of one square size."""
    size = 0
    for video in videos:
        path = root / next(iter(video.pictures))
        size_wh = picture_size(read_ends(path, HEAD_BYTES, 0)[0])
        if size_wh is None:
            raise ValueError(f"{path}: expected a PNG image. Preprocess the video again with DeepfakeBench.")
        width, height = size_wh
        if width != height or (size and width != size):
            expected = f"{size}x{size} as before it" if size else "a square"
            raise ValueError(f"{path}: expected a crop of {expected}, found {width}x{height}.")
        size = width


def _five_points(path: Path) -> np.ndarray | None:
    """(5, 2) eye centres, nose and mouth corners of a file of dlib's points (at least 68); None without such a file."""
    try:
        points = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if points.ndim != 2 or points.shape[0] < 68 or points.shape[1] != 2 or not np.isfinite(points).all():
        return None
    return np.stack([points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]])
