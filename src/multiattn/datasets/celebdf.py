"""Celeb-DF v1 and v2: three folders of clips and `List_of_testing_videos.txt`.

Source of the layout: the authors' repository and its issues 6 and 7. A clip of `Celeb-real` is named
`id<person>_<clip>`, one of `Celeb-synthesis` `id<target>_id<source>_<clip>`: the face of `source` on
`id<target>_<clip>`; `YouTube-real` clips name no person. The list says 1 for REAL and 0 for FAKE. There is no official
validation split, and the same people are in training and test.
"""

import re
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
    video_id,
    video_row,
)
from multiattn.tables import FAKE, REAL

REAL_FOLDER, FAKE_FOLDER, YOUTUBE_FOLDER = "Celeb-real", "Celeb-synthesis", "YouTube-real"
NAMES = {
    REAL_FOLDER: (re.compile(r"(?P<target>id\d+)_\d{4}$"), "id<person>_<clip>, as id0_0000"),
    FAKE_FOLDER: (
        re.compile(r"(?P<target>id\d+)_(?P<source>id\d+)_(?P<clip>\d{4})$"),
        "id<target>_id<source>_<clip>, as id0_id1_0000",
    ),
    YOUTUBE_FOLDER: (re.compile(r"\d{5}$"), "five digits, as 00170"),
}
TEST_LIST = "List_of_testing_videos.txt"
LISTED_LABELS = {"1": REAL, "0": FAKE}
OFFICIAL_TEST_COUNTS = {"v2": {REAL: 178, FAKE: 340}}
"""Copies of the v2 list without its 70 YouTube-real lines are about; with one, test clips would go into training."""
ONE_FRAME_CLIP = f"{REAL_FOLDER}/id27_0005.mp4"


def read_celebdf(root: Path, *, version: str = "v2", test_list: Path | None = None) -> Listing:
    """List the clips of a Celeb-DF tree: those of the test list as `test`, all others as `train`.

    Args:
        version: `v1` or `v2`; part of the data set's name, since both use the same names for different clips.

    Raises:
        FileNotFoundError: no such folder, or no test list.
        ValueError: a clip whose name is not the official one, or a list that is not the official one.
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
                path = (below / name).relative_to(root).as_posix()
                if f"{folder}/{name}" in path_of:
                    raise ValueError(f"{root}: {path} is also {path_of[f'{folder}/{name}']}. Keep one of them.")
                path_of[f"{folder}/{name}"] = path
    for listed, path in path_of.items():
        listing.rows.append(_row(root, dataset, listed, path, path_of, "test" if listed in test else "train"))
    listing.absent.extend(sorted(set(test) - set(path_of)))
    if ONE_FRAME_CLIP in path_of:
        listing.notes.append(f"{path_of[ONE_FRAME_CLIP]} is listed; as released it holds one frame only.")
    return listing


@dataclass(frozen=True, kw_only=True)
class Celebdf(IndexOptions):
    """Celeb-DF v1 or v2: the clips of the test list are the test split, all others the training split."""

    reader = staticmethod(read_celebdf)
    version: Literal["v1", "v2"] = "v2"
    test_list: Path | None = None
    """List_of_testing_videos.txt, where it is not in the root."""


def _row(root: Path, dataset: str, listed: str, path: str, path_of: dict[str, str], split: str) -> dict:
    folder, name = listed.split("/")
    is_fake = folder == FAKE_FOLDER
    people = match_name(*NAMES[folder], root / path).groupdict()
    original = ""
    if is_fake:
        target_clip = f"{people['target']}_{people['clip']}.mp4"
        absent = path.replace(name, target_clip).replace(FAKE_FOLDER, REAL_FOLDER)  # flat or not, as its neighbours
        original = video_id(dataset, path_of.get(f"{REAL_FOLDER}/{target_clip}", absent))
    return video_row(
        dataset,
        path,
        label=FAKE if is_fake else REAL,
        method=FAKE_FOLDER if is_fake else "",
        split=split,
        original=original,
        target_id=people.get("target", ""),
        source_id=people.get("source", ""),
    )


def read_test_list(path: Path, *, version: str) -> dict[str, int]:
    """`<folder>/<name>` -> label (1 = fake, as everywhere here; the file says 1 for real).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not lines of `<0 or 1> <folder>/<name>`, a label against its folder, a clip twice, or counts other
            than the official ones.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. It comes with the download and says which clips are the test set; "
            "pass it as --test-list."
        )
    labels: dict[str, int] = {}
    for number, line in list_lines(path):
        digit, _, clip = line.partition(" ")
        clip = clip.strip()
        folder, _, name = clip.partition("/")
        if digit not in LISTED_LABELS or folder not in NAMES or not name:
            raise ValueError(
                f"{path}:{number}: expected a line such as `1 {YOUTUBE_FOLDER}/00170.mp4`, found {line!r}."
            )
        label = LISTED_LABELS[digit]
        if label != (FAKE if folder == FAKE_FOLDER else REAL):
            raise ValueError(f"{path}:{number}: expected 1 for a real and 0 for a fake clip, found {line!r}.")
        if clip in labels:
            raise ValueError(f"{path}:{number}: {clip} is listed twice.")
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
