"""DF40's JSON and folders in their exact form, with the defects its threads name."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_trees import rows_by_id

from multiattn.datasets.df40 import read_df40
from multiattn.video.extraction.faces_folder import read_faces_folder

HOME = "deepfakes_detection_datasets"
FF_REAL = "FaceForensics++/original_sequences/youtube/c23/frames/000"
SWAP, CELEB = "DF40/simswap/ff/frames/000_003", "DF40/blendface/cdf/frames/id0_id1_0000"
TRAINED, GENERATED = "DF40_train/facedancer/frames/993_989", "DF40/DiT/cdf/YouTube-real/00043"


def write(root: Path, folder: str, *names: str, size: int = 64) -> list[str]:
    """Pictures, and their paths as the JSON has them."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(root / folder / name), np.full((size, size, 3), 90, np.uint8))
    return [f"{HOME}/{folder}/{name}" for name in names]


def entry(label: str, split: str, video: str, frames: list[str], level: str = "") -> dict:
    videos = {video: {"label": label, "frames": frames}}
    return {label: {"train": {}, "test": {}, "val": {}} | {split: {level: videos} if level else videos}}


def write_json(folder: Path, name: str, *entries: dict) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({name: {label: splits for one in entries for label, splits in one.items()}}))
    return path


def test_folders_tell_method_people_and_original_whatever_the_label_is_called(tmp_path):
    root = tmp_path / "data"
    files = [
        write_json(
            tmp_path, "simswap_ff",
            entry("roop_Real", "test", "000", write(root, FF_REAL, "000.png", "012.png"), "c23"),
            entry("roop_Fake", "test", "000_003", [p.replace("/", "\\") for p in write(root, SWAP, "000.png")], "c23"),
        ),
        write_json(
            tmp_path, "DF40_all",
            entry("FSAll_Fake", "test", "id0_id1_0000", write(root, CELEB, "000.png")),
            entry("facedancer_Fake", "train", "993_989", write(root, TRAINED, "131.png")),
            entry("DiT_Fake", "test", "00043", write(root, GENERATED, "458.png")),
        ),
    ]  # fmt: skip
    listing = read_df40(root, json=tuple(files), faces=tmp_path / "faces")
    found = {
        path: [row[name] for name in ("label", "method", "split", "target_id", "source_id", "original")]
        for path, row in rows_by_id(listing, "video_id").items()
    }
    assert found == {
        f"df40/{FF_REAL}": [0, "", "test", "000", "", ""],
        f"df40/{SWAP}": [1, "simswap", "test", "000", "003", f"df40/{FF_REAL}"],
        f"df40/{CELEB}": [1, "blendface", "test", "id0", "id1", "df40/Celeb-DF-v2/Celeb-real/frames/id0_0000"],
        f"df40/{TRAINED}": [1, "facedancer", "train", "993", "989", f"df40/{FF_REAL[:-3]}993"],
        f"df40/{GENERATED}": [1, "DiT", "test", "", "", "df40/Celeb-DF-v2/YouTube-real/frames/00043"],
    }
    faces, statuses, _ = read_faces_folder(tmp_path / "faces")
    assert faces["frame_index"].tolist() == [458, 0, 0, 131, 0, 12]
    assert set(statuses["status"]) == {"ok"}


def test_pictures_of_one_folder_are_videos_of_their_own_and_a_doubled_folder_is_found(tmp_path):
    root = tmp_path / "data"
    write(root, "DF40/stargan/fake/fake", "a.png", "b.png", size=32)
    (root / "DF40/stargan/fake/fake/c.png").touch()
    frames = [f"{HOME}/DF40/stargan/fake/{name}.png" for name in "abc"]
    entries = [entry("stargan_Fake", "test", name, [frame]) for name, frame in zip("abc", frames, strict=True)]
    both = {"stargan_Fake": {"test": {k: v for one in entries for k, v in one["stargan_Fake"]["test"].items()}}}
    listing = read_df40(root, json=(write_json(tmp_path, "stargan", both),), faces=tmp_path / "faces")
    assert [row["video_id"] for row in listing.rows] == [f"df40/DF40/stargan/fake/fake/{name}" for name in "abc"]
    assert {(row["method"], row["original"]) for row in listing.rows} == {("stargan", "")}
    assert read_faces_folder(tmp_path / "faces")[1]["status"].tolist() == ["ok", "ok", "unreadable"]
    assert any("There is no real video" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("on_disk", "listed"),
    [("PixArt/ff", "pixart/ff"), ("whichfaceisreal/fake", "whichisreal/fake"), ("StarGAN2/fake", "starganv2/fake")],
)
def test_a_methods_folder_is_found_under_its_other_names(on_disk, listed, tmp_path):
    write(tmp_path / "data", f"DF40/{on_disk}/x", "1.png")
    file = write_json(tmp_path, "m", entry("m_Fake", "test", "x", [f"{HOME}/DF40/{listed}/x/1.png"]))
    listing = read_df40(tmp_path / "data", json=(file,), faces=tmp_path / "faces")
    assert [row["path"] for row in listing.rows] == [f"DF40/{on_disk}/x/1.png"]


def test_a_video_of_training_and_test_is_tested_and_one_without_frames_absent(tmp_path):
    root = tmp_path / "data"
    frames = write(root, SWAP, "000.png")
    splits = {split: {"000_003": {"label": "e4e_Fake", "frames": frames}} for split in ("train", "test")}
    empty = {"RDDM_Fake": {"test": {"7": {"label": "RDDM_Fake", "frames": []}}}}
    file = write_json(tmp_path, "e4e", {"e4e_Fake": splits}, empty)
    listing = read_df40(root, json=(file,), faces=tmp_path / "faces")
    assert [row["split"] for row in listing.rows] == ["test"]
    assert listing.absent == ["RDDM_Fake/7"]
    assert any("1 video is in several splits" in note for note in listing.notes)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        pytest.param([{"simswap": {"test": {}}}], "label of \\*_Real, \\*_Fake", id="a label without an ending"),
        pytest.param([{"m_Fake": []}], "found something else", id="no splits"),
        pytest.param(
            [entry(label, "test", "000_003", [f"{HOME}/{SWAP}/000.png"]) for label in ("m_Fake", "m_Real")],
            "listed as real and as fake",
            id="both",
        ),
    ],
)
def test_a_json_of_another_form_is_refused(entries, expected, tmp_path):
    write(tmp_path / "data", SWAP, "000.png")
    with pytest.raises(ValueError, match=expected):
        read_df40(tmp_path / "data", json=(write_json(tmp_path, "m", *entries),), faces=tmp_path / "faces")
