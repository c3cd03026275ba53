"""Celeb-DF++, also called Celeb-DF v3: the real clips of Celeb-DF v2 and fakes by 22 methods.

Source of the layout: README of OUC-VAS/Celeb-DF-PP; of the clips' names: `celebdf.py` of
dfwb-research/deepfake-workbench. A swapped or reenacted clip is named `id<target>_id<source>_<clip>`, a talking face
`id<target>_<clip>_test_<reference>`, both made on `Celeb-real/id<target>_<clip>`. One name recurs under several
methods. The methods are the folders below FaceSwap, FaceReenact and TalkingFace; the swaps of v2 are `Celeb-DF` there,
in some copies `Celeb-DF-v2`.

The list has a line `<label> <path>` a test clip. The label is taken from the folder, since it is not known to be 1 for
REAL as in v2; how many clips the list has is not known either. There is no official validation split, and the same
people are in training and test.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from multiattn.datasets.celebdf import FAKE_FOLDER, LISTED_LABELS, NAMES, REAL_FOLDER, TEST_LIST, YOUTUBE_FOLDER
from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    list_lines,
    match_name,
    require_root,
    video_files_below,
    video_id,
    video_row,
)
from multiattn.tables import FAKE, REAL

DATASET = "celebdf-pp"
FAKE_NAME = (
    re.compile(r"(?P<target>id\d+)(_(?P<source>id\d+))?_(?P<clip>\d{4})(_test_.+)?$"),
    "id<target>_id<source>_<clip> or id<target>_<clip>_test_<reference>",
)
V2_SWAPS = {"Celeb-DF-v2": "Celeb-DF"}


def read_celebdf_pp(root: Path, *, test_list: Path | None = None) -> Listing:
    """List the clips: those of the test list as `test`, all others as `train`.

    Raises:
        FileNotFoundError: no such folder, or no test list.
        ValueError: a clip whose name is not the official one, or a list of something else.
    """
    require_root(root, f"{REAL_FOLDER}, {YOUTUBE_FOLDER} and {FAKE_FOLDER}")
    listing = Listing(dataset=DATASET, root=root)
    test = _read_test_list(test_list or root / TEST_LIST, listing)
    path_of: dict[str, str] = {}
    for folder in NAMES:
        for name in video_files_below(root / folder):
            clip = listed_clip(f"{folder}/{name}")
            if clip is None:
                listing.unlisted.append(f"{folder}/{name}")
            elif clip in path_of:
                raise ValueError(f"{root}: {folder}/{name} is also {path_of[clip]}. Keep one of them.")
            else:
                path_of[clip] = f"{folder}/{name}"
    for clip, path in path_of.items():
        listing.rows.append(_row(root, clip, path, path_of) | {"split": "test" if clip in test else "train"})
    listing.absent.extend(sorted(test - set(path_of)))
    listing.notes.append(
        "Celeb-DF++ holds the clips of Celeb-DF v2 under other video_ids: do not index celebdf --version v2 into the "
        "same table, and do not test on the one what was trained on the other."
    )
    return listing


@dataclass(frozen=True, kw_only=True)
class CelebdfPp(IndexOptions):
    """Celeb-DF++ (v3): the clips of the test list are the test split, all others the training split."""

    reader = staticmethod(read_celebdf_pp)
    test_list: Path | None = None
    """List_of_testing_videos.txt, where it is not in the root."""


def listed_clip(path: str) -> str | None:
    """`<folder>/<name>` of a real clip, `Celeb-synthesis/<scenario>/<method>/<name>` of a fake; None for other paths.

    Args:
        path: from the root or from above it, as the list or the disk has it: a `videos` level is dropped, and v2's
            swaps are found under each of their names, and without one.
    """
    parts = [V2_SWAPS.get(part, part) for part in path.split("/") if part != "videos"]
    while parts and parts[0] not in NAMES:
        parts = parts[1:]
    if len(parts) == 2 and parts[0] == FAKE_FOLDER:
        parts[1:1] = ["FaceSwap", "Celeb-DF"]
    return "/".join(parts) if len(parts) == (4 if parts[:1] == [FAKE_FOLDER] else 2) else None


def _row(root: Path, clip: str, path: str, path_of: dict[str, str]) -> dict:
    folder, *below = clip.split("/")
    if folder != FAKE_FOLDER:
        people = match_name(*NAMES[folder], root / path).groupdict()
        return video_row(DATASET, path, label=REAL, target_id=people.get("target", ""))
    people = match_name(*FAKE_NAME, root / path).groupdict(default="")
    original = f"{REAL_FOLDER}/{people['target']}_{people['clip']}.mp4"
    return video_row(
        DATASET,
        path,
        label=FAKE,
        method=below[1],
        original=video_id(DATASET, path_of.get(original, original)),
        target_id=people["target"],
        source_id=people["source"],
    )


def _read_test_list(path: Path, listing: Listing) -> set[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. It comes with the download and says which clips are the test set; "
            "pass it as --test-list."
        )
    test, contradictions = set(), 0
    for number, line in list_lines(path):
        digit, _, written = line.partition(" ")
        clip = listed_clip(written.strip())
        if digit not in LISTED_LABELS or clip is None:
            raise ValueError(
                f"{path}:{number}: expected a line such as `1 {YOUTUBE_FOLDER}/00170.mp4` or "
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
