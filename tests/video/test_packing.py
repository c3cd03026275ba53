"""Crops in shards: read in place and by other programs, packed by a process that may be killed."""

import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from drawn_faces import write_faces_folder
from multiattn.runtime import crop_files
from multiattn.runtime.crop_files import loose_name, loose_names, read_stored
from multiattn.runtime.files import read_json, write_json
from multiattn.tables import FACES, Table
from multiattn.training.data.crops import FoldCrops
from multiattn.video.crops.images import CropImages, crop_loader
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction import packing
from multiattn.video.extraction.extract import VideoFaces
from multiattn.video.extraction.faces_folder import faces_journal, read_faces_folder
from multiattn.video.extraction.packing import pack_crops
from pipeline import finish, start

SIDE = 32
LONG = f"set/{'long ' * 20}ü.mp4"
"""A header has no room for it."""
VIDEOS = {"set/part.0/a": 0, LONG: 1}
FACTS = ["video_id", "frame_index", "track"]


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def make_faces(folder: Path, crops_each: int = 3) -> Path:
    """A finished faces folder with so many crops of each video, a file each, and a file that is none of them."""
    numbers = itertools.count()
    rows = [(video, frame, 1 - frame % 2) for video in sorted(VIDEOS) for frame in range(0, 10 * crops_each, 10)]
    faces = pd.DataFrame([dict.fromkeys(FACES.columns, 0.5)] * len(rows)).assign(crop="")
    faces[FACTS] = rows
    faces["crop"] = [f"crops/{video}/{frame:06d}_{track}.jpg" for video, frame, track in rows]
    write_faces_folder(folder, faces, VIDEOS, CropRecipe(num_frames=crops_each, size=SIDE))
    for name in faces["crop"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(next(numbers)))
    (folder / "crops/note.txt").write_text("keep me")
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(packing, "SHARD_CROPS", 2)
    monkeypatch.setattr(packing, "TABLE_WRITES", 2)


@pytest.fixture(scope="module")
def loose(tmp_path_factory) -> Path:
    return make_faces(tmp_path_factory.mktemp("loose") / "faces")


@pytest.fixture
def folder(loose, tmp_path) -> Path:
    return Path(shutil.copytree(loose, tmp_path / "faces"))


def names(faces: pd.DataFrame) -> pd.Series:
    """Those that the crops have as files."""
    return loose_names(faces["crop"])


def contents(folder: Path) -> dict[str, bytes]:
    """What the table's addresses lead to, by the names that crops have as files."""
    faces, _, _ = read_faces_folder(folder)
    root = crop_files.crops_root(folder)
    return {name: read_stored(root / address) for name, address in zip(names(faces), faces["crop"], strict=True)}


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_packed_folder_has_the_same_crops_tables_and_no_other_file_of_them(folder, loose):
    assert pack_crops(folder) == (6, 3)
    assert contents(folder) == contents(loose) and all(contents(folder).values())
    before, after = (read_faces_folder(one) for one in (loose, folder))
    pd.testing.assert_frame_equal(after[0].drop(columns="crop"), before[0].drop(columns="crop"))
    assert sorted(name for name in files(folder) if name.startswith(("crops", "shards"))) == [
        "crops/note.txt", "shards/000000.tar", "shards/000001.tar", "shards/000002.tar"
    ]  # fmt: skip
    assert [path.name for path in (folder / "crops").iterdir()] == ["note.txt"], "empty folders are gone too"
    packed = files(folder)
    assert pack_crops(folder) == (0, 3)
    assert files(folder) == packed


def samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and files of each sample, grouped as WebDataset does it (tariterators.py: base_plus_ext, group_by_keys)."""
    with tarfile.open(shard) as file:
        members = [(*re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name).groups(), member) for member in file]
        for key, group in itertools.groupby(members, key=lambda member: member[0]):
            yield key, {ending: file.extractfile(member).read() for _, ending, member in group}


def test_shards_are_webdatasets_samples_and_plain_tar_unpacks_them_to_what_was_packed(folder, loose, tmp_path):
    pack_crops(folder)
    faces, _, _ = read_faces_folder(loose)
    shards = sorted((folder / "shards").iterdir())
    found = [sample for shard in shards for sample in samples(shard)]
    assert [f"{key}.jpg" for key, _ in found] == faces["crop"].tolist()
    facts = faces[FACTS].assign(label=faces["video_id"].map(VIDEOS)).to_dict("records")
    for row, (key, sample) in zip(facts, found, strict=True):
        assert sample.keys() == {"jpg", "json"} and sample["jpg"] == (loose / f"{key}.jpg").read_bytes()
        assert json.loads(sample["json"]) == row
    for shard in shards:
        subprocess.run(["tar", "xf", shard, "-C", tmp_path], check=True)
    assert all((tmp_path / name).read_bytes() == (loose / name).read_bytes() for name in faces["crop"])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_packed_crops_are_those_of_files(workers, folder, loose):
    pack_crops(folder)
    batches = []
    for one in (loose, folder):
        images = CropImages(one, read_faces_folder(one)[0]["crop"], 16)
        images[0]  # workers are forked from a process that has archives open
        batches.append(torch.cat(list(crop_loader(images, num_workers=workers, batch_size=2))))
    assert len(batches[0]) == 6 and torch.equal(*batches)


def test_threads_read_more_shards_than_may_be_open(folder, loose, monkeypatch):
    monkeypatch.setattr(crop_files, "_opened", functools.lru_cache(maxsize=2)(crop_files._opened.__wrapped__))
    pack_crops(folder)
    expected, addresses = list(contents(loose).values()), read_faces_folder(folder)[0]["crop"]
    rows = np.random.default_rng(0).integers(0, len(expected), 5000)
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda row: read_stored(folder / addresses[row]), rows)
        assert all(content == expected[row] for row, content in zip(rows, found, strict=True))


def test_what_is_drawn_by_a_crops_name_or_compared_by_it_stays(folder, loose):
    """Distortions are drawn by it, and a training goes on only with the crops that it began with."""
    pack_crops(folder)
    seen = []
    for one in (loose, folder):
        faces = read_faces_folder(one)[0]
        drawn = []
        images = CropImages(one, faces["crop"], SIDE, change=lambda crop, name, drawn=drawn: drawn.append(name) or crop)
        crops = [images[row] for row in range(len(faces))]
        seen.append((drawn, torch.stack(crops).sum(), FoldCrops(one, faces[:4], faces[4:], faces).fingerprint()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("crops/a/000000_0.jpg", "crops/a/000000_0.jpg"),
        ("shards/000012.tar@512+99/crops/a/000000_0.jpg", "crops/a/000000_0.jpg"),
        ("shards/000012.tar@512+99/crops/shards/1.tar@1+2/a.jpg", "crops/shards/1.tar@1+2/a.jpg"),
        ("shards/000012.tar@512+99/real/a.jpg", "shards/000012.tar@512+99/real/a.jpg"),
        ("train.tar@512+99/real/a.jpg", "train.tar@512+99/real/a.jpg"),
        ("x/shards/000012.tar@512+99/a.jpg", "x/shards/000012.tar@512+99/a.jpg"),
    ],
)
def test_only_packed_crops_have_another_name(address, name):
    assert loose_name(address) == name
    assert loose_names(pd.Series([address, "a"])).tolist() == [name, "a"]
    assert loose_names(pd.Series([], dtype=str)).tolist() == []


def changes_the_disk(event: str, arguments: tuple) -> bool:
    """True for an audit event of Python's that comes before a new file, a file's new name, or the end of one."""
    is_new = event == "open" and bool(arguments[2] & os.O_EXCL)
    is_crop = event == "os.remove" and str(arguments[0]).endswith(".jpg")
    return is_new or is_crop or event in ("os.rename", "os.rmdir")


def unchecked(table: Table, frame: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Takes the place of checks that need most of the time, and change nothing of what is sound."""
    return frame


def pack_until(folder: Path, fatal: int) -> None:
    """Pack, and be killed before the change of the file system of this number."""
    numbers = itertools.count(1)

    def before(event: str, arguments: tuple) -> None:
        if changes_the_disk(event, arguments) and str(folder) in str(arguments[0]) and next(numbers) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    packing.SHARD_CROPS, packing.TABLE_WRITES = 1, 2  # the table is written after every second of four shards
    Table.validate = unchecked
    sys.addaudithook(before)
    pack_crops(folder)


@pytest.mark.parametrize("first", [1, *(pytest.param(first, marks=pytest.mark.slow) for first in (2, 3))])
def test_a_kill_at_any_change_of_the_disk_loses_nothing_and_the_same_call_ends_the_work(first, tmp_path, monkeypatch):
    """Every third change is fatal, from the first, second or third on."""
    monkeypatch.setattr(packing, "SHARD_CROPS", 1)
    monkeypatch.setattr(Table, "validate", unchecked)
    loose = make_faces(tmp_path / "loose", crops_each=2)
    expected, undisturbed = contents(loose), Path(shutil.copytree(loose, tmp_path / "undisturbed"))
    pack_crops(undisturbed)
    for fatal in itertools.count(first, 3):
        folder = Path(shutil.copytree(loose, tmp_path / f"killed {fatal}"))
        code = finish(start(pack_until, folder, fatal))
        assert contents(folder) == expected, "every crop can be read at any moment"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        pack_crops(folder)
        assert files(folder) == files(undisturbed)
    assert fatal > 20


def test_a_shard_that_does_not_read_back_as_written_removes_nothing(folder, loose, monkeypatch):
    reads = itertools.count()

    def read_damaged(path: Path) -> bytes:
        return read_stored(path)[:-1] + b"!" if "multiattn-tmp" in str(path) and next(reads) == 3 else read_stored(path)

    monkeypatch.setattr(packing, "read_stored", read_damaged)
    with pytest.raises(ValueError, match=r"000001\.tar: .* expected the crop's content, found another"):
        pack_crops(folder)
    assert files(folder).items() >= files(loose).items() and contents(folder) == contents(loose)


def interrupted(folder: Path) -> None:
    with faces_journal(folder) as journal:
        journal.append(VideoFaces("c", "unreadable", 0, "", []))


def of_elsewhere(folder: Path) -> None:
    write_json(folder / "faces.json", read_json(folder / "faces.json") | {"root": ".."})


def with_a_linked_folder(folder: Path) -> None:
    (folder.parent / "others").mkdir()
    (folder / "shards").symlink_to(folder.parent / "others")


def without_a_shard(folder: Path) -> None:
    pack_crops(folder)
    (folder / "shards/000001.tar").unlink()


def without_a_crop(folder: Path) -> None:
    (folder / f"crops/{LONG}/000010_1.jpg").unlink()


def with_other_names(folder: Path) -> None:
    faces = FACES.read(folder / "faces.parquet")
    FACES.write(faces.assign(crop=faces["crop"].str.replace("jpg", "png")), folder / "faces.parquet")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shutil.rmtree, "not a faces folder"),
        (interrupted, "the extraction was interrupted"),
        (of_elsewhere, "its crops are those of .* not its own to pack"),
        (with_a_linked_folder, "shards: expected a folder, found a link"),
        (without_a_shard, "expected the shards of its table, found no shards/000001.tar"),
        (without_a_crop, "000010_1.jpg: expected a crop, found none"),
        (with_other_names, "expected crops as `multiattn faces` names them, .* found crops/.*000000_1.png"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_keeps_its_crops(change, expected, folder):
    change(folder)
    before = {name: content for name, content in files(folder.parent).items() if name.endswith(".jpg")}
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        pack_crops(folder)
    assert files(folder.parent).items() >= before.items()


def test_no_crop_is_removed_through_a_link(folder, loose):
    place, elsewhere = folder / "crops/set/part.0/a", folder.parent / "a"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    before = files(elsewhere)
    with pytest.raises(ValueError, match="or remove the link"):
        pack_crops(folder)
    assert files(elsewhere) == before and len(before) == 3
    assert contents(folder) == contents(loose)
