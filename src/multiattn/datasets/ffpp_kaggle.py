"""The flat copy of FaceForensics++ c23 on Kaggle: a folder a method, without masks, splits and DFD's actors.

Source of the layout: the upload itself, kaggle.com/datasets/xdxd003/ff-c23, whose `csv/FF++_Metadata.csv` begins with
`,File Path,Label,Frame Count,Width,Height,Codec,File Size(MB)`. Clips bear their official names, so rows bear the
video_ids of the official tree: DeeperForensics finds its originals among them, and no table holds both copies. The
thousand clips of `DeepFakeDetection` are left out: the actors' originals are not in the upload, and all of them are
1920 x 1080, which no other fake there is, so that the size would tell the label.
"""

from dataclasses import dataclass
from pathlib import Path

from multiattn.datasets.dfdc import LABEL_NAMES
from multiattn.datasets.ffpp import DATASET, DFD_METHOD, METHODS, ffpp_rows, read_pairs, sequence_of
from multiattn.datasets.manifest import IndexOptions, Listing, csv_lines, require_root, video_files, video_id
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, REAL

ORIGINAL_FOLDER = "original"
METADATA = "csv/FF++_Metadata.csv"
LEVEL = "c23"


def read_ffpp_kaggle(root: Path, *, splits: Path | None = None) -> Listing:
    """List the pristine clips and those of the five methods, whatever of them is there.

    Returns:
        Clips that the upload's list names and the disk lacks are `absent`.

    Raises:
        FileNotFoundError: no such folder, or a split file is missing.
        ValueError: a clip whose name is not the official one, an id no split holds, a list of another form or one
            whose label is not that of the folder.
    """
    require_root(root, f"{ORIGINAL_FOLDER}, {METHODS[0]} and csv")
    split_of_pair = read_pairs(splits) if splits is not None else {}
    listing = Listing(dataset=DATASET, root=root)
    for method in ("", *METHODS):
        for row in ffpp_rows(root, method or ORIGINAL_FOLDER, method, LEVEL, split_of_pair):
            official = f"{sequence_of(method)}/{LEVEL}/videos/{Path(row['path']).name}"
            listing.rows.append(row | {"video_id": video_id(DATASET, official)})
    listed = _listed_clips(root / METADATA)
    listing.absent.extend(sorted(listed - {row["path"] for row in listing.rows}))
    if others := len(video_files(root / DFD_METHOD)):
        listing.notes.append(
            f"{counted(others, f'clip of {DFD_METHOD} is', f'clips of {DFD_METHOD} are')} "
            "left out: their originals are not in this upload, and their size "
            "alone tells them from all others. Index DFD from the official tree with `multiattn index dfd`."
        )
    return listing


@dataclass(frozen=True, kw_only=True)
class FfppKaggle(IndexOptions):
    """FaceForensics++ c23 as uploaded to Kaggle, a folder a method; without the clips of DeepFakeDetection."""

    reader = staticmethod(read_ffpp_kaggle)
    splits: Path | None = None
    """The folder of the official train.json, val.json, test.json; without it the split stays empty."""


def _listed_clips(path: Path) -> set[str]:
    """Paths of the upload's list, but for DFD's; none where the list was not downloaded."""
    if not path.is_file():
        return set()
    header, *lines = csv_lines(path) or [[]]
    rows = [dict(zip(header, line, strict=False)) for line in lines if line]
    listed = set()
    for number, row in enumerate(rows, start=2):
        clip, label = row.get("File Path") or "", LABEL_NAMES.get(row.get("Label") or "")
        folder = clip.partition("/")[0]
        if folder not in (ORIGINAL_FOLDER, DFD_METHOD, *METHODS) or label != (
            REAL if folder == ORIGINAL_FOLDER else FAKE
        ):
            raise ValueError(
                f"{path}:{number}: expected File Path and Label such as original/000.mp4 and REAL, or "
                f"Deepfakes/000_003.mp4 and FAKE, found {clip!r} and {row.get('Label')!r}."
            )
        listed.add(clip)
    return {clip for clip in listed if not clip.startswith(f"{DFD_METHOD}/")}
