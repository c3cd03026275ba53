"""Crops in tar shards, for file systems on which millions of small files are slow, or too many.

    shards/000000.tar    crops/<video_id>/<frame>_<track>.jpg and .json (video_id, frame_index, track, label), in turn

Members are named as WebDataset has it: the files of a sample follow each other and share their name up to its first
dot. `faces.parquet` has their addresses (`runtime/crop_files.py`), so whatever reads crops reads them where they lie.

Shards are written, read back and synced; then the table is written that addresses them; then the loose files go. So the
table names crops that are there at any moment, and the next packing ends what a killed one began.
"""

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd

from multiattn.runtime import layout
from multiattn.runtime.crop_files import (
    PACKED,
    ROOT_KEY,
    archive_members,
    crops_root,
    declared_root,
    path_in_archive,
    read_stored,
)
from multiattn.runtime.files import atomic_path, exclusive_folder, read_json, write_json
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FACES, UNKNOWN, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

if TYPE_CHECKING:
    from tqdm import tqdm

SHARD_CROPS = 1 << 15
"""Crops in a shard, 1.2 GB at 380 pixels."""
TABLE_WRITES = 16
"""Times that the table is written at most: so much of the crops, or one shard, needs space twice."""
THREADS, READ_AHEAD = 8, 256
"""Loose files are read and removed by so many threads, as they wait for a disk or a network; so many crops ahead."""
_NUMBER = rf"^{layout.SHARDS_FOLDER}/(\d+)\.tar@"


def pack_crops(folder: Path) -> tuple[int, int]:
    """Move the loose crops of a finished faces folder into new shards of it; restartable.

    Returns:
        How many were packed, and how many shards the folder's crops lie in.

    Raises:
        FileNotFoundError, ValueError: no finished faces folder, crops that lie elsewhere or were not cut by
            `multiattn faces`, a crop that cannot be read or has another content than its copy, or another process is
            writing the folder.
    """
    read_recipe(folder)  # before the lock makes a folder
    with exclusive_folder(folder):
        faces, _, videos = read_faces_folder(folder)
        packed = faces["crop"].str.match(PACKED)
        _require_own(folder, faces[~packed], shards := _numbers(faces["crop"][packed]))
        _remove_loose(folder, faces[packed])
        loose = _labelled(faces[~packed], videos)
        at_once = SHARD_CROPS * max(1, -(-len(loose) // (SHARD_CROPS * TABLE_WRITES)))
        with progress_bar(len(faces), "pack", "crops", initial=int(packed.sum())) as bar:
            for start in range(0, len(loose), at_once):
                some = loose.iloc[start : start + at_once]
                addresses = write_shards(some, folder, folder, bar, first=max(shards, default=-1) + 1)
                faces.loc[some.index, "crop"] = addresses
                FACES.write(faces, folder / layout.FACES_FILE)
                shards |= _numbers(faces["crop"][some.index])
                _remove_loose(folder, some)
    return len(loose), len(shards)


def _require_own(folder: Path, loose: pd.DataFrame, shards: set[int]) -> None:
    """Refuse crops and shards that are not the folder's own, and shards that are gone."""
    if (root := declared_root(folder)) is not None:
        raise ValueError(
            f"{folder}: its crops are those of {root}, and not its own to pack. Pack them there, by `tar`, and run "
            "`multiattn index` again, which reads archives where they lie."
        )
    place = folder / layout.SHARDS_FOLDER
    if place.resolve() != folder.resolve() / place.name:  # shards there may be another faces folder's
        raise ValueError(f"{place}: expected a folder, found a link. Remove it.")
    if gone := [_shard(number) for number in sorted(shards) if not (folder / _shard(number)).is_file()]:
        raise ValueError(f"{folder}: expected the shards of its table, found no {', '.join(gone[:3])}. Put them back.")
    names = [layout.crop_path(*key) for key in loose[list(FACES.key)].itertuples(index=False, name=None)]
    if (other := loose["crop"] != names).any():
        raise ValueError(
            f"{folder}: expected crops as `multiattn faces` names them, crops/<video_id>/<frame>_<track>.jpg, found "
            f"{loose['crop'][other].iloc[0]}."
        )


def copy_packed(source: Path, out: Path, video_ids: Collection[str] | None = None) -> None:
    """Write a faces folder whose crops are packed: copies of those of a finished one, of any kind.

    Args:
        out: a new folder, or one that a killed call left.
        video_ids: the videos to take; None takes all.

    Raises:
        FileNotFoundError, ValueError: as `read_faces_folder`; none of these videos, a faces folder at `out`, or a crop
            that cannot be read.
    """
    if (out / layout.RECIPE_FILE).exists():
        raise ValueError(f"{out}: expected a new folder, found a faces folder. Choose another.")
    faces, statuses, videos = read_faces_folder(source)
    if video_ids is not None:
        wanted = set(video_ids)
        faces, statuses, videos = (table[table["video_id"].isin(wanted)] for table in (faces, statuses, videos))
    if videos.empty:
        raise ValueError(f"{source}: expected some of these videos in {layout.VIDEOS_FILE}, found none.")
    with exclusive_folder(out):
        with progress_bar(len(faces), "pack", "crops") as bar:
            addresses = write_shards(_labelled(faces, videos), crops_root(source), out, bar)
        FACES.write(faces.assign(crop=addresses), out / layout.FACES_FILE)
        VIDEOS.write(videos, out / layout.VIDEOS_FILE)
        VIDEO_STATUS.write(statuses, out / layout.STATUS_FILE)
        recipe = read_json(source / layout.RECIPE_FILE)
        if ROOT_KEY in recipe:
            recipe[ROOT_KEY] = "."  # and so boxes and landmarks remain pixels of the crops
        write_json(out / layout.RECIPE_FILE, recipe)  # last: it makes a faces folder


def _labelled(faces: pd.DataFrame, videos: pd.DataFrame) -> pd.DataFrame:
    """The crops of these rows as `write_shards` takes them."""
    labels = faces["video_id"].map(videos.set_index("video_id")["label"])
    return faces[[*FACES.key, "crop"]].assign(label=labels.fillna(UNKNOWN).astype("int64"))


def write_shards(crops: pd.DataFrame, root: Path, folder: Path, bar: "tqdm", *, first: int = 0) -> list[str]:
    """Write crops into shards below `folder`, and read them back.

    Args:
        crops: video_id, frame_index, track and crop of a `faces` table, and `label`.
        root: the folder that their addresses start from.
        bar: advanced by each crop.
        first: number of the first shard; those that a killed packing left are replaced.

    Returns:
        Their new addresses, from `folder` on, in order.

    Raises:
        ValueError: a crop that cannot be read, or has another content than its copy.
    """
    addresses = []
    for number, start in enumerate(range(0, len(crops), SHARD_CROPS), start=first):
        members = _write_shard(crops.iloc[start : start + SHARD_CROPS], root, folder / _shard(number), bar)
        addresses += [f"{_shard(number)}@{member}" for member in members]
    return addresses


def _write_shard(crops: pd.DataFrame, root: Path, path: Path, bar: "tqdm") -> list[str]:
    """Write one shard; `<offset>+<size>/<name>` of its crops, each of them read back."""
    digests = []
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w") as file, ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(crops), READ_AHEAD):
                some = crops.iloc[start : start + READ_AHEAD]
                facts_of = some[["video_id", "frame_index", "track", "label"]].to_dict("records")
                contents = threads.map(read_stored, [root / address for address in some["crop"]])
                for address, facts, content in zip(some["crop"], facts_of, contents, strict=True):
                    if not content:
                        raise ValueError(
                            f"{root / address}: expected a crop, found none. Put it back or, if `multiattn faces` cut "
                            "it, delete its video's line in video_status.csv and run the same command again."
                        )
                    suffix = PurePosixPath(path_in_archive(address)).suffix
                    key = layout.crop_path(facts["video_id"], facts["frame_index"], facts["track"], suffix="")
                    _add(file, key + suffix, content)
                    _add(file, f"{key}.json", json.dumps(facts).encode())
                    digests.append(hashlib.sha256(content).digest())
                    bar.update()
        members = list(archive_members(path.parent, temporary.name))[::2]
        for member, digest in zip(members, digests, strict=True):
            if hashlib.sha256(read_stored(path.parent / member)).digest() != digest:
                raise ValueError(f"{path}: {member}: expected the crop's content, found another. Check the disk.")
    return [member.partition("@")[2] for member in members]


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    file.addfile(member, io.BytesIO(content))


def _remove_loose(folder: Path, packed: pd.DataFrame) -> None:
    """Remove the files of crops that the table on disk has in shards, and folders that are empty then."""
    crops = (folder / layout.CROPS_FOLDER).resolve()
    if crops.is_dir() and any(crops.iterdir()):
        of_videos = packed["crop"].groupby(packed["video_id"])
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda of_video: _remove_of_video(folder, crops, *of_video), of_videos))


def _remove_of_video(folder: Path, crops: Path, video_id: str, addresses: pd.Series) -> None:
    place = layout.crops_folder(folder, video_id)
    if place.is_dir():
        for address in addresses:
            (place / address.rpartition("/")[2]).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it holds more
            while place != crops:
                place.rmdir()
                place = place.parent


def _numbers(packed: pd.Series) -> set[int]:
    """Numbers of the shards in addresses of packed crops."""
    return set(packed.str.extract(_NUMBER, expand=False).astype(int))


def _shard(number: int) -> str:
    return f"{layout.SHARDS_FOLDER}/{number:06d}.tar"
