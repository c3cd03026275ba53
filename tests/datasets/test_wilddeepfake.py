"""WildDeepfake's archives in their official form, read where they lie."""

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_trees import rows_by_id

from multiattn.datasets.wilddeepfake import read_wilddeepfake
from multiattn.video.crops.images import CropImages
from multiattn.video.extraction.faces_folder import read_faces_folder


def write_archive(path: Path, *names: str) -> None:
    """A plain tar with a leading `./` and entries for folders, whatever its name says; a grey picture for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for grey, name in enumerate(names):
            folder = tarfile.TarInfo(f"./{name.rpartition('/')[0]}")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            picture = cv2.imencode(".png", np.full((224, 224, 3), grey, np.uint8))[1].tobytes()
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))


@pytest.mark.parametrize("space", ["_", " "])
def test_top_folders_decide_and_frames_are_sorted_as_numbers_in_archives_and_out(space, tmp_path):
    root = tmp_path / "data"
    write_archive(root / f"real{space}train/0.tar.gz", "0/real/54/9.png", "0/real/54/10.png", "0/real/7/100.png")
    write_archive(root / f"fake{space}test/0.tar.gz", "0/real/54/3.png")
    listing = read_wilddeepfake(root, faces=tmp_path / "faces")
    found = {name: [row[key] for key in ("label", "split", "part")] for name, row in rows_by_id(listing).items()}
    assert found == {
        f"wilddeepfake/fake{space}test/0/real/54": [1, "test", f"fake{space}test/0"],
        f"wilddeepfake/real{space}train/0/real/54": [0, "train", f"real{space}train/0"],
        f"wilddeepfake/real{space}train/0/real/7": [0, "train", f"real{space}train/0"],
    }
    faces, _, _ = read_faces_folder(tmp_path / "faces")
    assert faces["frame_index"].tolist() == [3, 9, 10, 100]
    images = CropImages(tmp_path / "faces", faces["crop"], 224)
    assert [int(images[row][0, 0, 0]) for row in range(4)] == [0, 0, 1, 2]


def test_two_archives_without_a_shards_level_do_not_merge_their_sequences(tmp_path):
    for shard in (0, 1):
        write_archive(tmp_path / f"data/fake_train/{shard}.tar.gz", "fake/5/1.png", f"fake/6/{shard}.png")
    listing = read_wilddeepfake(tmp_path / "data", faces=tmp_path / "faces")
    expected = [f"wilddeepfake/fake_train/{shard}.tar.gz/fake/{sequence}" for shard in (0, 1) for sequence in (5, 6)]
    assert sorted(rows_by_id(listing)) == expected
    assert {row["part"] for row in listing.rows} == {"fake_train/0.tar.gz", "fake_train/1.tar.gz"}


def test_pictures_elsewhere_are_unlisted_and_a_cut_off_archive_is_refused(tmp_path):
    root = tmp_path / "data"
    write_archive(root / "other/0.tar", "0/real/1/1.png")
    assert read_wilddeepfake(root, faces=tmp_path / "faces").unlisted == ["other/0/real/1/1.png"]
    write_archive(root / "real_train/0.tar.gz", "0/real/1/1.png")
    whole = (root / "real_train/0.tar.gz").read_bytes()
    (root / "real_train/0.tar.gz").write_bytes(whole[:1600])
    with pytest.raises(ValueError, match="expected an uncompressed tar archive"):
        read_wilddeepfake(root, faces=tmp_path / "faces")
