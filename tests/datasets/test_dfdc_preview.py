"""The DFDC preview set in its official form, whole, partial and broken."""

import json
from pathlib import Path

import pytest
from made_trees import make_files, rows_by_id

from multiattn.datasets.dfdc_preview import read_dfdc_preview

REAL = "original_videos/1003254/1003254_A_001.mp4"
FAKE_A = "method_A/1003254/1003254_A/1255229_1003254_A_001.mp4"
FAKE_B = "method_B/1260311/1260311_C/1255229_1260311_C_001.mp4"


def fake(**changes) -> dict:
    entry = {
        "label": "fake",
        "set": "train",
        "augmentations": [],
        "source_video": REAL,
        "swapped_id": "1255229",
        "target_id": "1003254",
    }
    return {**entry, **changes}


def real(**changes) -> dict:
    return {"label": "real", "set": "train", "augmentations": [], "target_id": "1003254", **changes}


def make_tree(root: Path, entries: dict, *, absent=(), extra=(), videos_level: bool = False) -> Path:
    """`dataset.json` and an empty file a clip."""
    present = {*entries, *extra} - set(absent)
    make_files(root, *(key.replace("/", "/videos/", 1) if videos_level else key for key in present))
    (root / "dataset.json").write_text(json.dumps(entries))
    return root


def test_the_tree_becomes_rows_with_method_split_people_and_original(tmp_path):
    method_b = fake(set="test", target_id="1260311", source_video="original_videos/1260311/1260311_C_001.mp4")
    listing = read_dfdc_preview(make_tree(tmp_path, {REAL: real(), FAKE_A: fake(), FAKE_B: method_b}))
    rows = rows_by_id(listing, "path")
    assert rows[FAKE_A] == {
        "video_id": "dfdc-preview/method_A/1003254/1003254_A/1255229_1003254_A_001",
        "path": FAKE_A,
        "dataset": "dfdc-preview",
        "label": 1,
        "method": "method_A",
        "compression": "",
        "split": "train",
        "part": "",
        "original": "dfdc-preview/original_videos/1003254/1003254_A_001",
        "target_id": "1003254",
        "source_id": "1255229",
    }
    assert rows[REAL] == rows[REAL] | {"label": 0, "method": "", "target_id": "1003254", "source_id": ""}
    assert (rows[FAKE_B]["method"], rows[FAKE_B]["split"], rows[FAKE_B]["original"]) == ("method_B", "test", "")
    assert (listing.absent, listing.unlisted) == ([], [])


def test_clips_moved_into_a_videos_folder_are_found(tmp_path):
    rows = rows_by_id(read_dfdc_preview(make_tree(tmp_path, {REAL: real(), FAKE_A: fake()}, videos_level=True)), "path")
    moved = FAKE_A.replace("method_A/", "method_A/videos/")
    assert set(rows) == {moved, REAL.replace("original_videos/", "original_videos/videos/")}
    assert rows[moved]["original"] == "dfdc-preview/original_videos/videos/1003254/1003254_A_001"
    assert rows[moved]["method"] == "method_A"


@pytest.mark.parametrize(
    ("changes", "original"),
    [
        pytest.param({}, REAL, id="source_video is the target's clip"),
        pytest.param({"source_video": "1003254_A_002.mp4"}, REAL.replace("001", "002"), id="by its name alone"),
        pytest.param({"source_video": None}, REAL, id="source_video null"),
        pytest.param({"source_video": "original_videos/1255229/1255229_A_001.mp4"}, REAL, id="the swapped face's clip"),
        pytest.param({"source_video": "original_videos/9/9_A_001.mp4"}, REAL, id="a clip that is not listed"),
        pytest.param({"target_id": "7"}, "", id="a target of another number than the name's"),
    ],
)
def test_the_original_is_a_listed_clip_of_the_target(changes, original, tmp_path):
    other = "original_videos/1255229/1255229_A_001.mp4"
    entries = {REAL: real(), REAL.replace("001", "002"): real(), other: real(target_id="1255229")}
    listing = read_dfdc_preview(make_tree(tmp_path, {**entries, FAKE_A: fake(**changes)}))
    expected = f"dfdc-preview/{original.removesuffix('.mp4')}" if original else ""
    assert rows_by_id(listing, "path")[FAKE_A]["original"] == expected


def test_people_come_from_the_name_where_the_entry_says_none(tmp_path):
    bare = {"label": "fake", "set": "test"}
    rows = rows_by_id(
        read_dfdc_preview(make_tree(tmp_path, {REAL: {"label": "real", "set": "test"}, FAKE_A: bare})), "path"
    )
    assert (rows[FAKE_A]["target_id"], rows[FAKE_A]["source_id"]) == ("1003254", "1255229")
    assert rows[FAKE_A]["original"] == rows[REAL]["video_id"]
    assert rows[REAL]["target_id"] == "1003254"


def test_after_a_partial_download_what_is_missing_is_counted_and_not_invented(tmp_path):
    stray = "method_A/1/1_A/2_1_A_000.mp4"
    entries = {REAL: real(), FAKE_A: fake(), FAKE_B: fake(target_id="1260311")}
    listing = read_dfdc_preview(make_tree(tmp_path, entries, absent=(REAL, FAKE_B), extra=(stray,)))
    rows = rows_by_id(listing, "path")
    assert list(rows) == [FAKE_A]
    assert rows[FAKE_A]["original"] == "dfdc-preview/original_videos/1003254/1003254_A_001"
    assert (listing.absent, listing.unlisted) == ([FAKE_B, REAL], [stray])


def test_an_empty_list_gives_no_rows(tmp_path):
    listing = read_dfdc_preview(make_tree(tmp_path, {}))
    assert (listing.rows, listing.absent, listing.unlisted) == ([], [], [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", "expected a JSON file", id="empty"),
        pytest.param("[]", "expected an object of path -> entry, found list", id="a list"),
        pytest.param(json.dumps({FAKE_A: None}), "expected a label of fake, real, found None", id="null"),
        pytest.param(json.dumps({FAKE_A: fake(label="FAKE")}), "found 'FAKE'", id="an unknown label"),
        pytest.param(json.dumps({FAKE_A: fake(label=["fake"])}), "expected a label", id="a list for a label"),
        pytest.param(json.dumps({FAKE_A: fake(set="val")}), "expected a set of train, test, found 'val'", id="set val"),
        pytest.param(json.dumps({FAKE_A: {"label": "fake"}}), "expected a set", id="no set"),
        pytest.param(json.dumps({"a.mp4": fake()}), "expected paths below method_A", id="a bare name"),
        pytest.param(json.dumps({"method_A/../../a.mp4": fake()}), "expected paths below", id="a path that leads out"),
    ],
)
def test_a_list_that_is_not_what_it_should_be_is_refused_with_its_path(content, expected, tmp_path):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_dfdc_preview(tmp_path)
    assert str(tmp_path / "dataset.json") in str(caught.value)


@pytest.mark.parametrize("root", ["", "nothing"], ids=["no dataset.json", "no folder"])
def test_a_root_without_its_list_is_refused_with_the_way_out(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json.*--root"):
        read_dfdc_preview(tmp_path / root)
