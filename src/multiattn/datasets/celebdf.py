"""Celeb-DF v1 and v2, and Celeb-DF++, also called v3: clips in three folders, and `List_of_testing_videos.txt`.

Source of the layout: the authors' repository and its issues 6 and 7. A clip of `Celeb-real` is named
`id<person>_<clip>`, one of `Celeb-synthesis` `id<target>_id<source>_<clip>`: the face of `source` on
`id<target>_<clip>`; `YouTube-real` clips name no person. The list says 1 for REAL and 0 for FAKE. There is no official
validation split, and the same people are in training and test.

Source of the layout of Celeb-DF++: README of OUC-VAS/Celeb-DF-PP; of the clips' names: `celebdf.py` of
dfwb-research/deepfake-workbench. Real clips are those of v2, fakes are by 22 methods, the folders below FaceSwap,
FaceReenact and TalkingFace; a talking face is named `id<target>_<clip>_test_<reference>`. One name recurs under
several methods. The swaps of v2 are `Celeb-DF` there, in some copies `Celeb-DF-v2`. Labels are taken from the folders,
since the list's are not known to be 1 for REAL as in v2; how many clips it has is not known either.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    list_lines,
    match_name,
    require_root,
    video_files,
    video_files_below,
    video_id,
)
from multiattn.tables import FAKE, REAL

PLUS_PLUS = "celebdf-pp"
REAL_FOLDER, FAKE_FOLDER, YOUTUBE_FOLDER = "Celeb-real", "Celeb-synthesis", "YouTube-real"
NAMES = {
    REAL_FOLDER: (re.compile(r"(?P<target>id\d+)_\d{4}$"), "id<person>_<clip>, as id0_0000"),
    FAKE_FOLDER: (
        re.compile(r"(?P<target>id\d+)_(?P<source>id\d+)_(?P<clip>\d{4})$"),
        "id<target>_id<source>_<clip>, as id0_id1_0000",
    ),
    YOUTUBE_FOLDER: (re.compile(r"\d{5}$"), "five digits, as 00170"),
}
PLUS_PLUS_FAKE = (
    re.compile(r"(?P<target>id\d+)(_(?P<source>id\d+))?_(?P<clip>\d{4})(_test_.+)?$"),
    "id<target>_id<source>_<clip> or id<target>_<clip>_test_<reference>",
)
V2_SWAPS = {"Celeb-DF-v2": "Celeb-DF"}
TEST_LIST = "List_of_testing_videos.txt"
LISTED_LABELS = {"1": REAL, "0": FAKE}
OFFICIAL_TEST_COUNTS = {"v2": {REAL: 178, FAKE: 340}}
"""Copies of the v2 list without its 70 YouTube-real lines are about; with one, test clips would go into training."""
ONE_FRAME_CLIP = f"{REAL_FOLDER}/id27_0005.mp4"


def read_celebdf(root: Path, *, version: str = "v2", test_list: Path | None = None) -> Listing:
    """List the clips of a Celeb-DF tree: those of the test list as `test`, all others as `train`.

    The version is part of the data set's name, since both use the same names for different clips. Names or a list that
    are not the official ones raise `ValueError`.
    """
    require_root(root, REAL_FOLDER)
    dataset = f"celebdf-{version}"
    test = read_test_list(test_list or root / TEST_LIST, version=version)
    listing = Listing(dataset=dataset, root=root)
    folders = {folder.casefold(): folder for folder in NAMES}
    path_of: dict[str, str] = {}
    for entry in sorted(root.iterdir()):
        folder = folders.get(entry.name.casefold())
        if folder is None or not entry.is_dir():
            continue
        for below in (entry, entry / "videos"):
            for name in video_files(below):
                _add_clip(path_of, f"{folder}/{name}", (below / name).relative_to(root).as_posix(), root)
    _add_rows(listing, path_of, set(test))
    if ONE_FRAME_CLIP in path_of:
        listing.notes.append(f"{path_of[ONE_FRAME_CLIP]} is listed; as released it holds one frame only.")
    return listing


def read_celebdf_pp(root: Path, *, test_list: Path | None = None) -> Listing:
    """List the clips of Celeb-DF++; splits and errors as `read_celebdf`."""
    require_root(root, f"{REAL_FOLDER}, {YOUTUBE_FOLDER} and {FAKE_FOLDER}")
    listing = Listing(dataset=PLUS_PLUS, root=root)
    test = _read_plus_plus_list(test_list or root / TEST_LIST, listing)
    path_of: dict[str, str] = {}
    for folder in NAMES:
        for name in video_files_below(root / folder):
            clip = listed_clip(f"{folder}/{name}")
            if clip is None:
                listing.unlisted.append(f"{folder}/{name}")
            else:
                _add_clip(path_of, clip, f"{folder}/{name}", root)
    _add_rows(listing, path_of, test)
    listing.notes.append(
        "Celeb-DF++ holds the clips of Celeb-DF v2 under other video_ids: do not index celebdf --version v2 into the "
        "same table, and do not test on the one what was trained on the other."
    )
    return listing


@dataclass(frozen=True, kw_only=True)
class Celebdf(IndexOptions):
    """Celeb-DF v1 or v2: the clips of the test list are the test split, all others the training split."""

    reader = staticmethod(read_celebdf)
    version: Literal["v1", "v2"] = "v2"
    test_list: Path | None = None
    """List_of_testing_videos.txt, where it is not in the root."""


@dataclass(frozen=True, kw_only=True)
class CelebdfPp(IndexOptions):
    """Celeb-DF++ (v3): the clips of the test list are the test split, all others the training split."""

    reader = staticmethod(read_celebdf_pp)
    test_list: Path | None = None
    """List_of_testing_videos.txt, where it is not in the root."""


def _add_clip(path_of: dict[str, str], clip: str, path: str, root: Path) -> None:
    if path_of.setdefault(clip, path) != path:
        raise ValueError(f"{root}: {path} is also {path_of[clip]}. Keep one of them.")


def _add_rows(listing: Listing, path_of: dict[str, str], test: set[str]) -> None:
    """Add the clips, those of the test list as `test`, all others as `train`."""
    for clip, path in path_of.items():
        folder, *methods, name = clip.split("/")
        people = match_name(*(PLUS_PLUS_FAKE if methods else NAMES[folder]), listing.root / path).groupdict(default="")
        row = listing.add(path, label=REAL, split="test" if clip in test else "train")
        row |= {"target_id": people.get("target", ""), "source_id": people.get("source", "")}
        if folder == FAKE_FOLDER:
            original = absent = f"{REAL_FOLDER}/{people['target']}_{people['clip']}.mp4"
            if not methods:  # flat or not, as its neighbours
                absent = path.replace(name, Path(original).name).replace(FAKE_FOLDER, REAL_FOLDER)
            row |= {"label": FAKE, "method": methods[1] if methods else FAKE_FOLDER}
            row["original"] = video_id(listing.dataset, path_of.get(original, absent))
    listing.absent.extend(sorted(test - path_of.keys()))


def listed_clip(path: str) -> str | None:
    """`<folder>/<name>` of a real clip, `Celeb-synthesis/<scenario>/<method>/<name>` of a fake; None for other paths.

    The path begins at the root or above it, as the list or the disk has it: a `videos` level is dropped, and v2's swaps
    are found under each of their names, and without one.
    """
    parts = [V2_SWAPS.get(part, part) for part in path.split("/") if part != "videos"]
    while parts and parts[0] not in NAMES:
        parts = parts[1:]
    if len(parts) == 2 and parts[0] == FAKE_FOLDER:
        parts[1:1] = ["FaceSwap", "Celeb-DF"]
    return "/".join(parts) if len(parts) == (4 if parts[:1] == [FAKE_FOLDER] else 2) else None


def _list_entries(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Place for an error, the line, its label as it is written, and its clip."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. It comes with the download and says which clips are the test set; "
            "pass it as --test-list."
        )
    for number, line in list_lines(path):
        digit, _, clip = line.partition(" ")
        yield f"{path}:{number}", line, digit, clip.strip()


def read_test_list(path: Path, *, version: str) -> dict[str, int]:
    """`<folder>/<name>` -> label (1 = fake, as everywhere here; the file says 1 for real), of an official list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not lines of `<0 or 1> <folder>/<name>`, a label against its folder, a clip twice, or counts other
            than the official ones.
    """
    labels: dict[str, int] = {}
    for where, line, digit, clip in _list_entries(path):
        folder, _, name = clip.partition("/")
        if digit not in LISTED_LABELS or folder not in NAMES or not name:
            raise ValueError(f"{where}: expected a line such as `1 {YOUTUBE_FOLDER}/00170.mp4`, found {line!r}.")
        label = LISTED_LABELS[digit]
        if label != (FAKE if folder == FAKE_FOLDER else REAL):
            raise ValueError(f"{where}: expected 1 for a real and 0 for a fake clip, found {line!r}.")
        if clip in labels:
            raise ValueError(f"{where}: {clip} is listed twice.")
        labels[clip] = label
    counts = {label: list(labels.values()).count(label) for label in (REAL, FAKE)}
    official = OFFICIAL_TEST_COUNTS.get(version, counts)
    if not labels or counts != official:
        raise ValueError(
            f"{path}: expected the official list of Celeb-DF {version}"
            + (f" ({official[REAL]} real, {official[FAKE]} fake)" if version in OFFICIAL_TEST_COUNTS else "")
            + f", found {counts[REAL]} real and {counts[FAKE]} fake clips. "
            "A shorter list would put test clips into training; pass the one of your download as --test-list."
        )
    return labels


def _read_plus_plus_list(path: Path, listing: Listing) -> set[str]:
    test, contradictions = set(), 0
    for where, line, digit, written in _list_entries(path):
        clip = listed_clip(written)
        if digit not in LISTED_LABELS or clip is None:
            raise ValueError(
                f"{where}: expected a line such as `1 {YOUTUBE_FOLDER}/00170.mp4` or "
                f"`0 {FAKE_FOLDER}/FaceSwap/BlendFace/id0_id1_0000.mp4`, found {line!r}."
            )
        contradictions += LISTED_LABELS[digit] != (FAKE if clip.startswith(FAKE_FOLDER) else REAL)
        test.add(clip)
    if not test:
        raise ValueError(f"{path}: expected a line a test clip, found none. Pass the list of your download.")
    if contradictions:
        listing.notes.append(
            f"{path}: {contradictions} of {len(test)} lines do not say 1 for a clip of a real folder and 0 for a fake, "
            "as Celeb-DF v2 does; labels are those of the folders."
        )
    return test
