"""The FaceForensics++ tree and its official splits.

Source of the layout: the FaceForensics++ download script and `dataset/README.md`. A manipulated clip is named
`<target>_<source>`: the face of `source` on the video of `target`.
"""

import re
from pathlib import Path

from multiattn.datasets.manifest import Listing, video_files, video_id, video_row
from multiattn.runtime import read_json
from multiattn.tables import FAKE, REAL

DATASET = "ffpp"
METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter")
COMPRESSIONS = {"raw": ("raw", "c0"), "c23": ("c23",), "c40": ("c40",)}
ORIGINALS = "original_sequences/youtube"
_REAL_NAME = re.compile(r"(\d{3})$")
_FAKE_NAME = re.compile(r"(\d{3})_(\d{3})$")


def read_ffpp(root: Path, *, compression: str = "c23", splits: Path | None = None) -> Listing:
    """List the pristine and manipulated clips of one compression level, whatever of them is there.

    Args:
        root: the folder that holds `original_sequences` and `manipulated_sequences`.
        compression: `raw` (the script's name; `c0` on disk is the same), `c23` or `c40`.
        splits: folder of the official `train.json`, `val.json`, `test.json`; None leaves the split empty.

    Raises:
        FileNotFoundError: no such folder, or a split file is missing.
        ValueError: a clip whose name is not the official one, or an id no split holds.
    """
    if compression not in COMPRESSIONS:
        raise ValueError(f"--compression: expected one of {', '.join(COMPRESSIONS)}, found {compression!r}.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Pass the folder that holds original_sequences as --root.")
    split_of = read_splits(splits) if splits is not None else None
    listing = Listing(dataset=DATASET, root=root, rows=[])
    for level in COMPRESSIONS[compression]:
        for method in ("", *METHODS):
            sequence = f"manipulated_sequences/{method}" if method else ORIGINALS
            folder = f"{sequence}/{level}/videos"
            if (root / folder).is_dir():
                for name in video_files(root / folder):
                    listing.rows.append(_row(root, f"{folder}/{name}", method, compression, level, split_of))
    return listing


def _row(root: Path, path: str, method: str, compression: str, level: str, split_of: dict[str, str] | None) -> dict:
    match = (_FAKE_NAME if method else _REAL_NAME).match(Path(path).stem)
    if match is None:
        expected = "<target>_<source>, as 519_515" if method else "three digits, as 519"
        raise ValueError(f"{root / path}: expected a name of the form {expected}.")
    target, source = (match[1], match[2]) if method else (match[1], "")
    if split_of is not None and target not in split_of:
        raise ValueError(f"{root / path}: id {target} is in none of train.json, val.json, test.json.")
    if split_of is not None and source and split_of.get(source) != split_of[target]:
        raise ValueError(f"{root / path}: target {target} is of {split_of[target]}.json, source {source} is not.")
    return video_row(
        DATASET,
        path,
        label=FAKE if method else REAL,
        method=method,
        compression=compression,
        split=split_of[target] if split_of is not None else "",
        original=video_id(DATASET, f"{ORIGINALS}/{level}/videos/{target}.mp4") if method else "",
        target_id=target,
        source_id=source,
    )


def read_splits(folder: Path) -> dict[str, str]:
    """id -> split, from the official files (lists of pairs of ids).

    Raises:
        FileNotFoundError: one of the three files is missing.
        ValueError: not lists of pairs, or an id in two splits.
    """
    split_of: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = folder / f"{split}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. --splits is the folder of the official split files.")
        pairs = read_json(path)
        well_formed = isinstance(pairs, list) and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
        )
        if not well_formed:
            raise ValueError(f'{path}: expected a list of pairs of ids, as [["071", "054"], ...].')
        for name in (name for pair in pairs for name in pair):
            if split_of.setdefault(name, split) != split:
                raise ValueError(f"{path}: id {name} is also in {split_of[name]}.json; splits must be disjoint.")
    return split_of
