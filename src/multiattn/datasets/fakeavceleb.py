"""FakeAVCeleb v1.2: interviews of VoxCeleb2 and fakes of their pictures, their sound, or both.

Source of the layout: the release's `meta_data.csv`, as the readers of it in public repositories quote it, and
`fakeavceleb.py` of dfwb-research/deepfake-workbench. Its header names nine columns and ends in a comma: `path` holds
the file name, the column without a name the folder, which begins with `FakeAVCeleb/`.

Departures: labels are of the picture, so RealVideo-FakeAudio is real. `source`, the person to be seen, is our
`target_id`; `target1` and `target2`, whose face or voice was put on, are left out, since by them all people hang
together and no folds could be made. There is no official split.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiattn.datasets.manifest import IndexOptions, Listing, csv_lines, require_root, video_files_below, video_id
from multiattn.runtime.text_tables import counted
from multiattn.tables import FAKE, REAL

DATASET = "fakeavceleb"
METADATA = "meta_data.csv"
COLUMNS = ("source", "target1", "target2", "method", "category", "type", "race", "gender", "path")
GENUINE, VOICE_ONLY = "RealVideo-RealAudio", "RealVideo-FakeAudio"
LABELS = {GENUINE: REAL, VOICE_ONLY: REAL, "FakeVideo-RealAudio": FAKE, "FakeVideo-FakeAudio": FAKE}
"""Top folder and `type` -> label of the picture."""


def read_fakeavceleb(root: Path) -> Listing:
    """List the clips that the metadata name and the disk has, labelled by their pictures.

    `original` of a fake is the genuine clip its name begins with; `method` is empty for real pictures. A clip that the
    metadata name twice, as some are with two methods, has the first.

    Raises:
        FileNotFoundError: no such folder, or no `meta_data.csv` in it; says where below it one lies.
        ValueError: metadata of another form.
    """
    require_root(root, f"{METADATA} and {GENUINE}")
    if not (root / METADATA).is_file():
        found = [*sorted(root.glob(f"*/{METADATA}")), *sorted(root.glob(f"*/*/{METADATA}"))]
        advice = f"Pass {found[0].parent} as --root." if found else "It comes with the download, beside the clips."
        raise FileNotFoundError(f"{root / METADATA}: no such file. {advice}")
    listing = Listing(dataset=DATASET, root=root)
    present = {f"{folder}/{name}" for folder in LABELS for name in video_files_below(root / folder)}
    listed: dict[str, dict[str, Any]] = {}
    repeated = 0
    for path, entry in _entries(root / METADATA):
        repeated += path in listed
        listed.setdefault(path, _values(path, entry))
    for path in (path for path in listed if path in present):
        listing.add(path, **listed[path])
    listing.absent.extend(sorted(listed.keys() - present))
    listing.unlisted.extend(sorted(present - listed.keys()))
    if repeated:
        listing.notes.append(
            f"{root / METADATA}: {counted(repeated, 'clip is', 'clips are')} listed again; each has the first method "
            "named."
        )
    if voices := sum(row["path"].startswith(f"{VOICE_ONLY}/") for row in listing.rows):
        listing.notes.append(
            f"{counted(voices, f'clip of {VOICE_ONLY} is', f'clips of {VOICE_ONLY} are')} labelled real: nothing is "
            "wrong with their pictures, and sound is not examined."
        )
    return listing


@dataclass(frozen=True, kw_only=True)
class FakeAVCeleb(IndexOptions):
    """FakeAVCeleb v1.2, labelled by its pictures: real video with a fake voice is real."""

    reader = staticmethod(read_fakeavceleb)


def _entries(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Path below the root and columns of every clip of the metadata."""
    header, *lines = csv_lines(path) or [[]]
    header = [name.strip() for name in header]
    if tuple(header[: len(COLUMNS)]) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {','.join(COLUMNS)}, found {','.join(header) or 'nothing'}.")
    for number, values in enumerate(lines, start=2):
        entry = dict(zip(COLUMNS, values, strict=False))
        folder = values[len(COLUMNS)].strip("/") if len(values) > len(COLUMNS) else ""
        folder = folder.partition("/")[2] if folder.partition("/")[0] not in LABELS else folder
        if not values:
            continue
        if len(values) < len(COLUMNS) or entry["type"] not in LABELS:
            raise ValueError(f"{path}:{number}: expected a type of {', '.join(LABELS)}, found {','.join(values)!r}.")
        folder = folder or "/".join(entry[name] for name in ("type", "race", "gender", "source"))
        if folder.partition("/")[0] != entry["type"]:
            raise ValueError(f"{path}:{number}: expected a folder below {entry['type']}, found {folder!r}.")
        yield f"{folder}/{entry['path']}", entry


def _values(path: str, entry: dict[str, str]) -> dict[str, Any]:
    values = {"label": LABELS[entry["type"]], "target_id": entry["source"]}
    if values["label"] == FAKE:
        clip = Path(entry["path"]).stem.partition("_")[0]
        person = path.partition("/")[2].rpartition("/")[0]
        values |= {"method": entry["method"], "original": video_id(DATASET, f"{GENUINE}/{person}/{clip}.mp4")}
    return values
