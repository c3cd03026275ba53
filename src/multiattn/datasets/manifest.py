"""`videos.csv` and the `videos.json` beside it: the clips of each data set, and the folder it lies in."""

import csv
import inspect
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiattn.runtime.files import exclusive_folder, read_json, write_json
from multiattn.runtime.frame_folders import IMAGE_SUFFIXES, is_image_name
from multiattn.runtime.paths import name_fault
from multiattn.runtime.text_tables import counted, printable
from multiattn.tables import VIDEOS, path_fault

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".asf", ".flv", ".3gp", ".ts", ".mts"}
    | {".m2ts", ".mxf", ".vob", ".gif"}
)
"""Endings of the files that are indexed, scored and submitted; a file named to `score` itself may have any."""
_SUFFIXES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
LIST_SUFFIXES = (".json", ".csv", ".txt")
NUM_LISTED = 5
_NUMBERED = re.compile(r"[0-9].*\.")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Clips of one official tree, as its reader found them."""

    dataset: str
    root: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One row of `videos.csv` each."""
    absent: list[str] = field(default_factory=list)
    """Paths below the root that a list names and the disk lacks: normal after a partial download."""
    unlisted: list[str] = field(default_factory=list)
    """Paths below the root that no list names; they are left out of the table."""
    notes: list[str] = field(default_factory=list)
    """Remarks on this tree for the user, one line each; logged when the table is written."""

    def add(self, path: str, **values: Any) -> dict[str, Any]:
        """Add the row of the clip at a path below the root, and return it; columns not given are empty."""
        self.rows.append(video_row(self.dataset, path, **values))
        return self.rows[-1]


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """Options of `multiattn index` for every data set; a subclass a data set names its reader and adds its own."""

    root: Path
    """The folder that holds the data set's own folders, as src/multiattn/datasets/README.md shows them."""
    out: Path
    """The videos.csv to write."""
    append: bool = False
    """Keep the other data sets already in the table."""

    def read(self) -> Listing:
        """Call `reader(root, ...)` of the subclass with those of its options that it takes."""
        taken = set(inspect.signature(type(self).reader).parameters) & {option.name for option in fields(self)}
        return type(self).reader(self.root, **{name: getattr(self, name) for name in taken - {"root"}})


_EMPTY_ROW = dict.fromkeys(VIDEOS.columns, "")


def video_row(dataset: str, path: str, **values: Any) -> dict[str, Any]:
    """A row of `videos.csv` for the clip at `path` below the root; columns not given are empty."""
    return {**_EMPTY_ROW, "video_id": video_id(dataset, path), "path": path, "dataset": dataset, **values}


def video_id(dataset: str, path: str) -> str:
    """`<dataset>/<path below the root without a video's or picture's extension>`."""
    return f"{dataset}/{_stem(path)}"


def _stem(path: str) -> str:
    stem, ending = os.path.splitext(path)  # noqa: PTH122 (a Path each takes 4 of 10 s for all of DFDC)
    # A folder of frames may have a dot in its name.
    return stem if ending.lower() in _SUFFIXES else path


def require_root(root: Path, contents: str) -> None:
    """Raise `FileNotFoundError` for a root that is no folder; `contents` says what it should hold."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Pass the folder that holds {contents} as --root.")


def match_name(pattern: re.Pattern[str], form: str, path: Path) -> re.Match[str]:
    """The match of a clip's name without extension; raises `ValueError` for one of another form, `form` in words."""
    match = pattern.match(path.stem)
    if match is None:
        raise ValueError(f"{path}: expected a name of the form {form}.")
    return match


def video_files(folder: Path) -> list[str]:
    """Names of the video files directly in a folder, sorted; [] where there is none. The log names what is left out."""
    return _scan(folder, deep=False)


def video_files_below(folder: Path) -> list[str]:
    """Paths below `folder`, `/` between, of all video files in it and in its folders, sorted; [] where there is none.

    Links to folders are followed, and each folder is read once: where it lies, or else behind the first link to it.
    Hidden folders are left out. The log names what else is.
    """
    return _scan(folder, deep=True)


def clips_below(folder: Path) -> list[str]:
    """As `video_files_below`, and the folders of pictures that are clips themselves (`is_frame_folder`).

    What lies in folders below such a clip is left out, and so are pictures in `folder` itself.
    """
    return _scan(folder, deep=True, frames=True, kind="no video, nor in a folder of numbered pictures alone")


def files_below(folder: Path, is_wanted: Callable[[str], bool], kind: str) -> list[str]:
    """As `video_files_below`, of the files whose name is wanted; `kind` says in the log what others are not."""
    return _scan(folder, deep=True, is_wanted=is_wanted, kind=kind)


def _scan(
    folder: Path,
    *,
    deep: bool,
    frames: bool = False,
    is_wanted: Callable[[str], bool] | None = None,
    kind: str = "no video's ending",
) -> list[str]:
    found, left_out, read = [], [], set()
    folders, links = [""] if folder.is_dir() else [], []
    while folders or links:
        prefix = folders.pop() if folders else links.pop(0)
        try:
            status = (folder / prefix).stat()
            entries = sorted(os.scandir(folder / prefix), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            left_out.append(f"{prefix} ({error.strerror})")
            continue
        if (status.st_dev, status.st_ino) in read:
            continue
        read.add((status.st_dev, status.st_ino))
        if frames and prefix and _holds_frames(entry.name for entry in entries):
            found.append(prefix.removesuffix("/"))
            left_out += [f"{printable(prefix + entry.name)} (below a clip)" for entry in entries if is_folder(entry)]
            continue
        for entry in entries:  # which say what is a file without a stat each
            path = prefix + entry.name
            if entry.name.startswith(".") or path.lower().endswith(LIST_SUFFIXES):
                continue
            if not is_folder(entry):
                fault = _fault(entry, is_wanted or is_video_name, kind) or name_fault(path)
                (left_out if fault else found).append(f"{printable(path)} ({fault})" if fault else path)
            elif deep:
                (links if entry.is_symlink() else folders).append(f"{path}/")
    stems = {_stem(path) for path in found if not path.lower().endswith(".gif")} if is_wanted is None else ()
    previews = {path for path in found if path.lower().endswith(".gif") and _stem(path) in stems}
    left_out += [f"{path} (beside a clip of its name)" for path in sorted(previews)]
    log_left_out(folder, left_out)
    return sorted({*found} - previews)


def is_frame_folder(folder: Path) -> bool:
    """True for a folder that is a clip: directly in it lie pictures, each with a number in its name, and no video."""
    return folder.is_dir() and _holds_frames(os.listdir(folder))  # noqa: PTH208


def _holds_frames(names: Iterable[str]) -> bool:
    names = list(names)
    pictures = [name for name in names if is_image_name(name)]  # a cover or a contact sheet has no number
    return bool(pictures) and all(map(_NUMBERED.search, pictures)) and not any(map(is_video_name, names))


def log_left_out(folder: Path, names: list[str]) -> None:
    """Count and name the files of a folder that are left out, if there are any."""
    if names:
        logger.warning("%s: %s left out: %s", folder, counted(len(names), "file is", "files are"), _first(names))


def is_folder(entry: os.DirEntry) -> bool:
    """True for a folder, or a link to one, whose name is UTF-8, as tables are."""
    try:
        return is_utf8(entry.name) and entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_utf8(name: str) -> bool:
    """True for a name that tables can hold."""
    return name == name.encode(errors="ignore").decode()


def _fault(entry: os.DirEntry, is_wanted: Callable[[str], bool], kind: str) -> str | None:
    """Reason to leave a file out, in words; None for one that is wanted."""
    if not is_utf8(entry.name):
        return "its name is not UTF-8"
    if not is_wanted(entry.name):
        return kind
    try:
        return None if entry.is_file() else "not a file"
    except OSError as error:
        return f"{error.strerror}"


def is_video_name(name: str) -> bool:
    """True for the name of a video: by its extension, in any case; hidden files are none."""
    stem, _, suffix = name.rpartition(".")
    return f".{suffix.lower()}" in VIDEO_SUFFIXES and stem != "" and not name.startswith(".")


def csv_lines(path: Path) -> list[list[str]]:
    """The rows of a data set's own CSV, its header first.

    Raises:
        ValueError: not a CSV in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.reader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a CSV in UTF-8, found something else: {error}.") from error


def list_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines of a list that are not blank.

    Raises:
        ValueError: not text in UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, found something else: {error}.") from error
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def roots_path(videos_csv: Path) -> Path:
    """Where the data sets' roots are kept: `videos.json` beside `videos.csv`."""
    return Path(videos_csv).with_suffix(".json")


def read_manifest(videos_csv: Path) -> dict[str, dict[str, Any]]:
    """data set -> its root and what `index` found of it, of `videos.json` beside the table; {} where there is none.

    Raises:
        ValueError: another file of that name.
    """
    path = roots_path(videos_csv)
    content = read_json(path) if path.is_file() else {}
    entries = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(entry, dict) and isinstance(entry.get("root"), str) for entry in entries):
        raise ValueError(
            f"{path}: expected a root of each data set, found something else. Run `multiattn index` again."
        )
    return content


def named_roots(words: Iterable[str], datasets: list[str]) -> dict[str, Path]:
    """data set -> root, of the words a user gave as --root: NAME=DIR each, or one DIR where there is one data set.

    Raises:
        ValueError: a name that is none of them.
    """
    words = list(words)
    if len(words) == 1 and "=" not in words[0] and len(datasets) == 1:
        return {datasets[0]: Path(words[0])}
    roots = dict(word.partition("=")[::2] for word in words)
    if set(roots) - set(datasets):
        raise ValueError(f"--root: expected NAME=DIR with NAME of {', '.join(datasets)}, found {' '.join(words)}.")
    return {name: Path(folder) for name, folder in roots.items()}


def write_manifest(listing: Listing, videos_csv: Path, *, append: bool) -> "pd.DataFrame":
    """Write the table and its roots; with `append`, keep the other data sets already there. Returns the whole table.

    Raises:
        ValueError: nothing was found, a clip is already in the table, or another process holds the table's folder.
    """
    import pandas as pd

    videos_csv = Path(videos_csv)
    if not listing.rows:
        hint = f"; {counted(len(listing.absent), 'clip is', 'clips are')} listed but absent" if listing.absent else ""
        hint += f": {_first(listing.absent)}" if listing.absent else ""
        raise ValueError(
            f"{listing.root}: expected a {listing.dataset} tree, found no clip of one{hint}. Compare --root with the "
            "trees in src/multiattn/datasets/README.md."
        )
    _require_single_ids(listing)
    table = pd.DataFrame(listing.rows)
    roots: dict[str, Any] = {}
    with exclusive_folder(videos_csv.parent):  # from reading to writing: another index may append at the same time
        if append and videos_csv.is_file():
            earlier, roots = VIDEOS.read(videos_csv), read_manifest(videos_csv)
            _require_new(listing, earlier, roots, videos_csv)
            table = pd.concat([earlier, table], ignore_index=True)
            table.attrs |= earlier.attrs
        table = table.sort_values("video_id", ignore_index=True)
        kept = roots.get(listing.dataset, {})  # of another compression level, say
        roots[listing.dataset] = {
            "root": str(listing.root.resolve()),
            "videos": int((table["dataset"] == listing.dataset).sum()),
            "absent": list(dict.fromkeys(kept.get("absent", []) + listing.absent)),
            "unlisted": list(dict.fromkeys(kept.get("unlisted", []) + listing.unlisted)),
        }
        VIDEOS.write(table, videos_csv)
        write_json(roots_path(videos_csv), roots)
    _report(listing)
    return table


def _require_single_ids(listing: Listing) -> None:
    path_of: dict[str, str] = {}
    for row in listing.rows:
        if (other := path_of.setdefault(row["video_id"], row["path"])) != row["path"]:
            raise ValueError(
                f"{listing.root}: {other} and {row['path']} differ in their ending only, so both would be "
                f"{row['video_id']}. Rename or move one of them."
            )


def _require_new(listing: Listing, earlier: "pd.DataFrame", roots: dict[str, Any], videos_csv: Path) -> None:
    """Refuse a data set that the table holds from another root, or clips that it holds already."""
    known = roots.get(listing.dataset, {}).get("root")
    others = sorted(set(earlier["dataset"]) - {listing.dataset})
    anew = f", then append {', '.join(others)}" if others else ""
    repeated = sorted({row["video_id"] for row in listing.rows} & set(earlier["video_id"]))
    if repeated:
        raise ValueError(
            f"{videos_csv}: {len(repeated)} of {counted(len(listing.rows), 'clip')} of {listing.root} in the table "
            f"already ({repeated[0]}). To index {listing.dataset} again, leave --append out, which writes the table "
            f"anew{anew}."
        )
    if known is not None and known != str(listing.root.resolve()):
        both = os.path.commonpath([known, listing.root.resolve()])
        raise ValueError(
            f"{videos_csv}: {listing.dataset} is already indexed from {known}; one table holds one root a data set. "
            f"Write another --out, or leave --append out and index {both}."
        )


def _report(listing: Listing) -> None:
    for what, names in (("listed but absent", listing.absent), ("present but unlisted", listing.unlisted)):
        if names:
            logger.warning("%s %s: %s", counted(len(names), "clip"), what, _first(names))
    for note in listing.notes:
        logger.warning("%s", note)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
    return ", ".join(names[:NUM_LISTED]) + more


def locate_videos(videos: "pd.DataFrame", videos_csv: Path, *, roots: dict[str, Path] | None = None) -> dict[str, Path]:
    """video_id -> file on this machine; `roots`, by data set, override those of `videos.json`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: no root is known for a data set.
    """
    roots = dict(roots or {})
    if unknown := sorted(set(videos["dataset"]) - set(roots)):
        kept = read_manifest(videos_csv)
        if absent := [name for name in unknown if name not in kept]:
            raise ValueError(f"{roots_path(videos_csv)}: no root of {absent[0]}. Pass --root or index it again.")
        roots |= {name: Path(kept[name]["root"]) for name in unknown}
    # As lists: pandas hands out single values of a column ten times slower.
    columns = (videos[name].tolist() for name in ("video_id", "dataset", "path"))
    located = {video: roots[dataset] / path for video, dataset, path in zip(*columns, strict=True)}
    absent = [path for path in located.values() if not (path.is_file() or path.is_dir())]
    if absent:
        raise FileNotFoundError(
            f"{absent[0]}: no such file, nor {counted(len(absent) - 1, 'other')} of {len(located)} in {videos_csv}. "
            "If the data moved, pass --root; if the download changed, run `multiattn index` again."
        )
    return located


def folder_manifest(folder: Path, filenames: Iterable[str] | None = None) -> "pd.DataFrame":
    """A `videos` table of the unlabelled clips of one folder, for prediction; dataset `folder`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no video in it.
    """
    import pandas as pd

    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of videos, found none.")
    if filenames is None:
        frames = [path.name for path in folder.iterdir() if not path.name.startswith(".") and is_frame_folder(path)]
        filenames = [*video_files(folder), *frames]
    names = sorted(filenames)
    if not names:
        raise ValueError(f"{folder}: expected videos ({', '.join(sorted(VIDEO_SUFFIXES))}), found none.")
    rows = [
        video_row("folder", name, label=-1) | {"video_id": video}
        for video, name in zip(folder_ids(names), names, strict=True)
    ]
    return VIDEOS.validate(pd.DataFrame(rows), folder)


def folder_ids(names: Iterable[str]) -> list[str]:
    """The video_id of each file of a folder: `folder/<name>` without its ending, which stays where names differ in
    nothing else; the number in place of a name that is none of a file below."""
    sound = {name: name if path_fault(name) is None else f"row {row}" for row, name in enumerate(names)}
    ids = {name: video_id("folder", name) for name in sound.values()}
    counts = Counter(ids.values())
    return [f"folder/{name}" if counts[ids[name]] > 1 else ids[name] for name in sound.values()]
