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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from multiattn.runtime import layout
from multiattn.runtime.crop_files import PACKED, archive_members, declared_root, read_stored
from multiattn.runtime.files import atomic_path, exclusive_folder
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FACES, UNKNOWN
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
                addresses = _write_shards(some, folder, bar, first=max(shards, default=-1) + 1)
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


def _labelled(faces: pd.DataFrame, videos: pd.DataFrame) -> pd.DataFrame:
    """Key, address and label of the crops of these rows."""
    labels = faces["video_id"].map(videos.set_index("video_id")["label"])
    return faces[[*FACES.key, "crop"]].assign(label=labels.fillna(UNKNOWN).astype("int64"))


def _write_shards(crops: pd.DataFrame, folder: Path, bar: "tqdm", *, first: int) -> list[str]:
    """Write loose crops into shards, of which the first has this number; those that a killed packing left are replaced.

    Returns:
        Their new addresses, in order.
    """
    addresses = []
    for number, start in enumerate(range(0, len(crops), SHARD_CROPS), start=first):
        members = _write_shard(crops.iloc[start : start + SHARD_CROPS], folder, _shard(number), bar)
        addresses += [f"{_shard(number)}@{member}" for member in members]
    return addresses


def _write_shard(crops: pd.DataFrame, folder: Path, shard: str, bar: "tqdm") -> list[str]:
    """Write one shard; `<offset>+<size>/<name>` of its crops, each of them read back."""
    path, digests = folder / shard, []
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w") as file, ThreadPoolExecutor(THREADS) as threads:
            for start in range(0, len(crops), READ_AHEAD):
                some = crops.iloc[start : start + READ_AHEAD]
                facts_of = some[["video_id", "frame_index", "track", "label"]].to_dict("records")
                contents = threads.map(read_stored, [folder / address for address in some["crop"]])
                for address, facts, content in zip(some["crop"], facts_of, contents, strict=True):
                    if not content:
                        raise ValueError(
                            f"{folder / address}: expected a crop, found none. Put it back, or delete its video's "
                            "line in video_status.csv and run the command that cut it again."
                        )
                    _add(file, address, content)
                    _add(file, f"{address.removesuffix('.jpg')}.json", json.dumps(facts).encode())
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
