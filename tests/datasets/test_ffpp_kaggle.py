"""The flat upload of FaceForensics++ c23, with an excerpt of its own list."""

import re
from pathlib import Path

import pytest
from made_trees import full_row, make_files, rows_by_id

from multiattn.datasets.ffpp import KAGGLE_LIST, original_id, read_ffpp_kaggle

LIST = """\
,File Path,Label,Frame Count,Width,Height,Codec,File Size(MB)
0,DeepFakeDetection/01_02__meeting_serious__YVGY8LOK.mp4,FAKE,1044,1920,1080,h264,6.43
1000,Deepfakes/000_003.mp4,FAKE,396,640,480,h264,0.85
2000,Face2Face/000_003.mp4,FAKE,303,640,480,h264,0.64
6000,original/000.mp4,REAL,396,640,480,h264,0.85
6001,original/001.mp4,REAL,460,1280,720,h264,2.78
"""
CLIPS = ("original/000.mp4", "Deepfakes/000_003.mp4", "DeepFakeDetection/01_02__meeting_serious__YVGY8LOK.mp4")


def make_tree(root: Path, *clips: str, listed: str | None = LIST) -> Path:
    make_files(root, *clips)
    if listed is not None:
        make_files(root, KAGGLE_LIST)
        (root / KAGGLE_LIST).write_text(listed)
    return root


def test_clips_bear_the_ids_of_the_official_tree_and_the_list_says_what_is_absent(tmp_path):
    listing = read_ffpp_kaggle(make_tree(tmp_path, *CLIPS))
    rows = rows_by_id(listing)
    fake = "ffpp/manipulated_sequences/Deepfakes/c23/videos/000_003"
    assert rows[fake] == full_row(
        fake, "Deepfakes/000_003.mp4", label=1, method="Deepfakes", compression="c23",
        original=original_id("000", "c23"), target_id="000", source_id="003",
    )  # fmt: skip
    assert set(rows) == {fake, original_id("000", "c23")}
    assert rows[original_id("000", "c23")]["path"] == "original/000.mp4"
    assert listing.absent == ["Face2Face/000_003.mp4", "original/001.mp4"]
    assert len(listing.notes) == 1 and listing.notes[0].startswith("1 clip of DeepFakeDetection is left out")


def test_the_official_splits_are_applied_to_the_names(tmp_path):
    for split, pairs in (("train", '[["000", "003"]]'), ("val", "[]"), ("test", "[]")):
        (tmp_path / f"{split}.json").write_text(pairs)
    root = make_tree(tmp_path / "tree", *CLIPS, listed=None)
    listing = read_ffpp_kaggle(root, splits=tmp_path)
    assert {row["split"] for row in listing.rows} == {"train"}
    make_files(root, "original/999.mp4")
    with pytest.raises(ValueError, match="id 999 is in none"):
        read_ffpp_kaggle(root, splits=tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("0,original/000.mp4,FAKE,1,1,1,h264,1", id="a pristine clip called fake"),
        pytest.param("0,Deepfakes/000_003.mp4,REAL,1,1,1,h264,1", id="a fake called real"),
        pytest.param("0,Deepfakes/000_003.mp4,,1,1,1,h264,1", id="no label"),
        pytest.param("0,elsewhere/000.mp4,REAL,1,1,1,h264,1", id="another folder"),
        pytest.param("0", id="a line cut short"),
    ],
)
def test_a_list_that_contradicts_the_folders_is_refused_with_its_line(line, tmp_path):
    make_tree(tmp_path, *CLIPS, listed=f"{LIST.splitlines()[0]}\n{line}\n")
    with pytest.raises(ValueError, match=rf"{re.escape(KAGGLE_LIST)}:2: expected File Path and Label"):
        read_ffpp_kaggle(tmp_path)
    (tmp_path / KAGGLE_LIST).write_bytes(b"\xff")
    with pytest.raises(ValueError, match=rf"{re.escape(KAGGLE_LIST)}: expected a CSV in UTF-8"):
        read_ffpp_kaggle(tmp_path)
