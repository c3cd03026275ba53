"""Celeb-DF++ in the tree of its README, with lines of a test list."""

from pathlib import Path

import pytest
from made_trees import make_files, rows_by_id

from multiattn.datasets.celebdf import TEST_LIST, read_celebdf_pp

SWAP, GHOST = "Celeb-synthesis/FaceSwap/BlendFace/id0_id1_0000.mp4", "Celeb-synthesis/FaceSwap/GHOST/id0_id1_0000.mp4"
TALKS = "Celeb-synthesis/TalkingFace/SadTalker/id3_0001_test_id5_0002.mp4"
CLIPS = ("Celeb-real/id0_0000.mp4", "YouTube-real/00170.mp4", SWAP, GHOST, TALKS)
LINES = f"1 YouTube-real/00170.mp4\n0 {GHOST}\n0 {TALKS}\n"


def make_tree(root: Path, *clips: str, lines: str = LINES) -> Path:
    make_files(root, *clips)
    (root / TEST_LIST).write_text(lines)
    return root


def test_a_name_that_recurs_under_two_methods_is_a_clip_each_with_a_split_of_its_own(tmp_path):
    listing = read_celebdf_pp(make_tree(tmp_path, *CLIPS))
    found = {
        path: [row[name] for name in ("label", "method", "split", "target_id", "source_id", "original")]
        for path, row in rows_by_id(listing, "path").items()
    }
    assert found == {
        "Celeb-real/id0_0000.mp4": [0, "", "train", "id0", "", ""],
        "YouTube-real/00170.mp4": [0, "", "test", "", "", ""],
        SWAP: [1, "BlendFace", "train", "id0", "id1", "celebdf-pp/Celeb-real/id0_0000"],
        GHOST: [1, "GHOST", "test", "id0", "id1", "celebdf-pp/Celeb-real/id0_0000"],
        TALKS: [1, "SadTalker", "test", "id3", "", "celebdf-pp/Celeb-real/id3_0001"],
    }
    assert (listing.absent, listing.unlisted) == ([], [])


@pytest.mark.parametrize("on_disk", ["FaceSwap/Celeb-DF/", "FaceSwap/Celeb-DF-v2/", "FaceSwap/Celeb-DF/videos/"])
@pytest.mark.parametrize("listed", ["FaceSwap/Celeb-DF/", "FaceSwap/Celeb-DF-v2/", ""])
def test_the_swaps_of_version_2_are_found_under_each_of_their_names(listed, on_disk, tmp_path):
    clip = f"Celeb-synthesis/{on_disk}id0_id1_0000.mp4"
    root = make_tree(tmp_path, clip, lines=f"0 Celeb-DF++/Celeb-synthesis/{listed}id0_id1_0000.mp4")
    listing = read_celebdf_pp(root)
    assert [(row["path"], row["split"], row["method"]) for row in listing.rows] == [(clip, "test", "Celeb-DF")]
    assert listing.absent == []


def test_labels_are_those_of_the_folders_whatever_the_list_says(tmp_path):
    listing = read_celebdf_pp(make_tree(tmp_path, *CLIPS, lines=f"0 YouTube-real/00170.mp4\n1 {GHOST}\n1 {TALKS}\n"))
    assert {row["path"]: row["label"] for row in listing.rows}[GHOST] == 1
    assert any("3 of 3 lines do not say 1 for a clip of a real folder" in note for note in listing.notes)


@pytest.mark.parametrize(
    "lines", ["", "label,path\n", f"{GHOST}\n", f"2 {GHOST}\n", "0 Celeb-synthesis/GHOST/id0_id1_0000.mp4\n"]
)
def test_a_list_of_something_else_is_refused_with_its_path(lines, tmp_path):
    with pytest.raises(ValueError, match=f"{TEST_LIST}.*expected a line"):
        read_celebdf_pp(make_tree(tmp_path, *CLIPS, lines=lines))


def test_clips_outside_a_methods_folder_are_unlisted_and_listed_ones_may_be_absent(tmp_path):
    listing = read_celebdf_pp(make_tree(tmp_path, "Celeb-synthesis/FaceSwap/id0_id1_0000.mp4"))
    assert listing.unlisted == ["Celeb-synthesis/FaceSwap/id0_id1_0000.mp4"]
    assert len(listing.absent) == 3
