"""Celeb-DF trees in their official form, flat and with `videos` folders, and the test list's inverted labels."""

from pathlib import Path

import pandas as pd
import pytest
from made_trees import make_files, rows_by_id

from multiattn.datasets.celebdf import TEST_LIST, read_celebdf, read_test_list
from multiattn.tables import VIDEOS

SHARED = Path(__file__).resolve().parents[3] / "shared"
OFFICIAL_LIST = SHARED / "data/lists/celeb_df_v2_List_of_testing_videos.txt"
CLIPS = (
    "Celeb-real/id0_0000.mp4",
    "Celeb-real/id1_0007.mp4",
    "Celeb-synthesis/id0_id1_0000.mp4",
    "Celeb-synthesis/id1_id0_0007.mp4",
    "YouTube-real/00170.mp4",
    "YouTube-real/00001.mp4",
)
TEST_LINES = ("1 YouTube-real/00170.mp4", "1 Celeb-real/id1_0007.mp4", "0 Celeb-synthesis/id1_id0_0007.mp4")


def make_tree(root: Path, *clips: str, videos_level: bool = False, lines: tuple[str, ...] = TEST_LINES) -> Path:
    """Empty clips and a test list without a final newline, as released."""
    make_files(root, *(clip.replace("/", "/videos/") if videos_level else clip for clip in clips))
    (root / TEST_LIST).write_text("\n".join(lines))
    return root


def official_lines(num_real: int = 178, num_fake: int = 340) -> tuple[str, ...]:
    """As many lines as the official v2 list has: those of TEST_LINES, and clips that are nowhere."""
    reals = [f"1 Celeb-real/id90_{number:04d}.mp4" for number in range(num_real - 2)]
    fakes = [f"0 Celeb-synthesis/id90_id91_{number:04d}.mp4" for number in range(num_fake - 1)]
    return (*TEST_LINES, *reals, *fakes)


@pytest.mark.parametrize("level", ["", "videos/"], ids=["flat", "videos"])
def test_the_tree_becomes_rows_with_label_split_people_and_original(level, tmp_path):
    listing = read_celebdf(make_tree(tmp_path, *CLIPS, videos_level=bool(level)), version="v1")
    rows = rows_by_id(listing, "path")
    found = {
        Path(path).name: (row["label"], row["split"], row["target_id"], row["source_id"], row["original"])
        for path, row in rows.items()
    }
    assert found == {
        "id0_0000.mp4": (0, "train", "id0", "", ""),
        "id1_0007.mp4": (0, "test", "id1", "", ""),
        "id0_id1_0000.mp4": (1, "train", "id0", "id1", f"celebdf-v1/Celeb-real/{level}id0_0000"),
        "id1_id0_0007.mp4": (1, "test", "id1", "id0", f"celebdf-v1/Celeb-real/{level}id1_0007"),
        "00170.mp4": (0, "test", "", "", ""),
        "00001.mp4": (0, "train", "", "", ""),
    }
    fake = rows[f"Celeb-synthesis/{level}id0_id1_0000.mp4"]
    assert fake["video_id"] == f"celebdf-v1/Celeb-synthesis/{level}id0_id1_0000"
    assert (fake["dataset"], fake["method"], fake["compression"]) == ("celebdf-v1", "Celeb-synthesis", "")
    assert {row["original"] for row in rows.values()} - {""} <= {row["video_id"] for row in rows.values()}
    assert (listing.absent, listing.unlisted, listing.notes) == ([], [], [])


def test_version_2_has_a_name_of_its_own_and_wants_the_whole_list(tmp_path):
    listing = read_celebdf(make_tree(tmp_path, *CLIPS, lines=official_lines()))
    assert listing.dataset == "celebdf-v2"
    assert {row["dataset"] for row in listing.rows} == {"celebdf-v2"}
    assert sum(row["split"] == "test" for row in listing.rows) == 3
    assert len(listing.absent) == 518 - 3
    assert listing.absent[0] == "Celeb-real/id90_0000.mp4"


@pytest.mark.parametrize("level", ["", "videos/"], ids=["flat", "videos"])
def test_a_fake_keeps_the_name_of_its_original_when_that_was_not_downloaded(level, tmp_path):
    """Two fakes on one absent clip belong together."""
    clips = ("Celeb-synthesis/id0_id1_0000.mp4", "Celeb-synthesis/id0_id2_0000.mp4", "Celeb-real/id9_0000.mp4")
    rows = rows_by_id(read_celebdf(make_tree(tmp_path, *clips, videos_level=bool(level)), version="v1"), "path")
    assert {row["original"] for row in rows.values()} == {"", f"celebdf-v1/Celeb-real/{level}id0_0000"}


def test_the_misspelt_youtube_folder_is_read_with_its_own_path(tmp_path):
    listing = read_celebdf(make_tree(tmp_path, "Youtube-real/00170.mp4"), version="v1")
    assert [(row["path"], row["split"]) for row in listing.rows] == [("Youtube-real/00170.mp4", "test")]


def test_the_one_frame_clip_is_listed_and_named(tmp_path):
    listing = read_celebdf(make_tree(tmp_path, "Celeb-real/id27_0005.mp4"), version="v1")
    assert [row["path"] for row in listing.rows] == ["Celeb-real/id27_0005.mp4"]
    assert len(listing.notes) == 1
    assert listing.notes[0].startswith("Celeb-real/id27_0005.mp4") and "one frame" in listing.notes[0]


def test_the_list_can_lie_elsewhere(tmp_path):
    make_tree(tmp_path / "tree", "YouTube-real/00170.mp4")
    elsewhere = (tmp_path / "tree" / TEST_LIST).rename(tmp_path / "list.txt")
    listing = read_celebdf(tmp_path / "tree", version="v1", test_list=elsewhere)
    assert [row["split"] for row in listing.rows] == ["test"]


def test_a_tree_without_its_list_is_refused(tmp_path):
    (make_tree(tmp_path, *CLIPS) / TEST_LIST).unlink()
    with pytest.raises(FileNotFoundError, match="--test-list"):
        read_celebdf(tmp_path)


def test_an_empty_root_with_a_list_gives_no_rows(tmp_path):
    listing = read_celebdf(make_tree(tmp_path), version="v1")
    assert (listing.rows, len(listing.absent)) == ([], 3)


def test_a_clip_both_flat_and_in_videos_is_refused(tmp_path):
    make_tree(tmp_path, *CLIPS)
    make_tree(tmp_path, CLIPS[0], videos_level=True)
    with pytest.raises(ValueError, match=r"videos/id0_0000\.mp4 is also Celeb-real/id0_0000\.mp4"):
        read_celebdf(tmp_path, version="v1")


def test_the_lists_one_is_real_and_zero_is_fake(tmp_path):
    path = tmp_path / TEST_LIST
    path.write_text("\r\n".join([*TEST_LINES, ""]))
    assert read_test_list(path, version="v1") == {
        "YouTube-real/00170.mp4": 0,
        "Celeb-real/id1_0007.mp4": 0,
        "Celeb-synthesis/id1_id0_0007.mp4": 1,
    }


@pytest.mark.parametrize(
    ("version", "lines", "expected"),
    [
        pytest.param("v1", (), "found 0 real and 0 fake", id="empty"),
        pytest.param("v1", ("0 Celeb-real/id1_0007.mp4",), "1 for a real and 0 for a fake", id="real as 0"),
        pytest.param("v1", ("1 Celeb-synthesis/id1_id0_0007.mp4",), "1 for a real and 0 for a fake", id="fake as 1"),
        pytest.param("v1", ("YouTube-real/00170.mp4",), r":1: expected a line such as", id="no label"),
        pytest.param("v1", (*TEST_LINES, "2 YouTube-real/00001.mp4"), r":4: expected a line such as", id="label 2"),
        pytest.param("v1", ("1 Actors/00170.mp4",), "expected a line such as", id="an unknown folder"),
        pytest.param("v1", (TEST_LINES[0],) * 2, "listed twice", id="twice"),
        pytest.param("v2", TEST_LINES, r"\(178 real, 340 fake\), found 2 real and 1 fake", id="a few lines"),
        pytest.param("v2", official_lines(num_real=108), "found 108 real", id="the copy without its YouTube clips"),
    ],
)
def test_a_list_that_is_not_the_official_one_is_refused_with_its_path(version, lines, expected, tmp_path):
    path = tmp_path / TEST_LIST
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=expected) as caught:
        read_test_list(path, version=version)
    assert str(path) in str(caught.value)


@pytest.mark.shared
@pytest.mark.skipif(not OFFICIAL_LIST.is_file(), reason=f"needs ../shared/data/lists/{OFFICIAL_LIST.name}")
@pytest.mark.parametrize("videos_level", [False, True], ids=["flat", "videos"])
def test_the_official_v2_list_is_518_test_clips_of_which_340_are_fake(videos_level, tmp_path):
    lines = tuple(OFFICIAL_LIST.read_text().splitlines())
    clips = [line.split(" ")[1] for line in lines]
    make_tree(tmp_path, *clips, CLIPS[0], videos_level=videos_level, lines=lines)
    listing = read_celebdf(tmp_path)
    table = VIDEOS.validate(pd.DataFrame(listing.rows), "listing")
    assert table.groupby(["split", "label"]).size().to_dict() == {("train", 0): 1, ("test", 0): 178, ("test", 1): 340}
    assert table["path"].str.startswith("YouTube-real").sum() == 70
    originals, test_reals = table.loc[table["label"] == 1, "original"], table.loc[table["split"] == "test", "video_id"]
    assert originals.isin(test_reals).sum() == 106, "fakes whose target clip is among the test reals"
    assert listing.absent == []
