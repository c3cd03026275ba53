"""DeeperForensics-1.0: fakes made on FaceForensics++ clips with the faces of hired actors.

Source of the layout: `dataset/README.md` of the authors' repository. A fake is named `<FF++ id>_<actor>`; each type of
`manipulated_videos` holds the same thousand swaps, with other distortions or made by another method. The real class is
FaceForensics++ c23 with the same ids, indexed as `ffpp`; the actors' own recordings below `source_videos` are not it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from multiattn.datasets.ffpp import original_id
from multiattn.datasets.manifest import (
    IndexOptions,
    Listing,
    list_lines,
    match_name,
    require_root,
    video_files,
    video_files_below,
)
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, SPLITS

DATASET = "deeperforensics"
TYPES = (
    "end_to_end",
    *(f"end_to_end_level_{level}" for level in range(1, 6)),
    "end_to_end_random_level",
    *(f"end_to_end_mix_{number}_distortions" for number in range(2, 5)),
    "reenact_postprocess",
)
SPLITS_FOLDER = "lists/splits"
_NAME = re.compile(r"(?P<target>\d{3})_(?P<actor>[MW]\d{3})$")


def read_deeperforensics(root: Path, *, types: tuple[str, ...] = (), splits: Path | None = None) -> Listing:
    """List the fakes, whatever of them is there.

    `original` is the video_id that `read_ffpp` gives the target's c23 clip. Clips that no split file names, or of a
    type that was not released, are `unlisted`; a type without a folder is not missed. Without split files in either
    place `split` stays empty.

    Raises:
        FileNotFoundError: no such folder, or one of the split files is missing.
        ValueError: an unknown type, a name that is not the official one, a split file that names a clip twice.
    """
    unknown = sorted(set(types) - set(TYPES))
    if unknown:
        raise ValueError(f"--types: expected some of {', '.join(TYPES)}, found {', '.join(unknown)}.")
    require_root(root, "manipulated_videos")
    if splits is None and (root / SPLITS_FOLDER).is_dir():
        splits = root / SPLITS_FOLDER
    split_of = read_splits(splits) if splits is not None else None
    listing = Listing(dataset=DATASET, root=root)
    for folder in sorted((root / "manipulated_videos").glob("*/")):
        if folder.name not in TYPES:
            listing.unlisted.extend(f"manipulated_videos/{folder.name}/{name}" for name in video_files(folder))
        elif not types or folder.name in types:
            _list_type(root, folder.name, split_of, listing)
    listing.notes.append(
        "The real class of DeeperForensics is FaceForensics++ c23: index it into the same table with "
        "`multiattn index ffpp --compression c23 --append`."
    )
    sources = video_files_below(root / "source_videos")
    if sources:
        listing.notes.append(
            f"{counted(len(sources), 'clip of source_videos is', 'clips of source_videos are')} left out: not the real "
            "class."
        )
    return listing


@dataclass(frozen=True, kw_only=True)
class DeeperForensics(IndexOptions):
    """DeeperForensics-1.0's fakes; index FaceForensics++ c23 into the same table for the real class."""

    reader = staticmethod(read_deeperforensics)
    types: tuple[str, ...] = ()
    """Only these folders of manipulated_videos, such as end_to_end; none named means all."""
    splits: Path | None = None
    """The folder of the official train.txt, val.txt, test.txt, where it is not lists/splits below the root."""


def _list_type(root: Path, kind: str, split_of: dict[str, str] | None, listing: Listing) -> None:
    prefix = f"manipulated_videos/{kind}/"
    present = video_files(root / prefix)
    for name in present:
        match = match_name(_NAME, "<FF++ id>_<actor>, as 480_W133", root / prefix / name)
        if split_of is not None and Path(name).stem not in split_of:
            listing.unlisted.append(prefix + name)
            continue
        listing.add(
            prefix + name,
            label=FAKE,
            method=kind,
            split=split_of[Path(name).stem] if split_of is not None else "",
            original=original_id(match["target"], "c23"),
            target_id=match["target"],
            source_id=match["actor"],
        )
    if split_of is not None:
        listing.absent.extend(f"{prefix}{stem}.mp4" for stem in sorted(set(split_of) - {Path(n).stem for n in present}))


def read_splits(folder: Path) -> dict[str, str]:
    """Name without extension -> split, from the three official lists of one fake's name a line.

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: a line that is not the name of a fake, or a name twice.
    """
    split_of: dict[str, str] = {}
    for split in SPLITS:
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. --splits is the folder of train.txt, val.txt, test.txt.")
        for number, line in list_lines(path):
            stem = Path(line).stem
            if _NAME.match(stem) is None:
                raise ValueError(f"{path}:{number}: expected a name such as 480_W133.mp4, found {line!r}.")
            if stem in split_of:
                raise ValueError(f"{path}:{number}: {stem} is also in {split_of[stem]}.txt; each is in one split once.")
            split_of[stem] = split
    return split_of
