"""Trees of the DFDC and of its preview set in their official form, whole, partial and broken."""

import json
import shutil
from pathlib import Path

import pytest
from made_trees import full_row, make_files, rows_by_id

from multiattn.datasets.dfdc import read_dfdc, read_dfdc_preview
from multiattn.tables import LABELS

SHARED = Path(__file__).resolve().parents[3] / "shared"
FAKE_ENTRY = {"label": "FAKE", "split": "train", "original": "r.mp4"}
REAL_ENTRY = {"label": "REAL", "split": "train"}


def make_part(folder: Path, entries: dict, *, absent: tuple[str, ...] = (), extra: tuple[str, ...] = ()) -> Path:
    """A training part: `metadata.json` and an empty file a clip."""
    make_files(folder, *({*entries, *extra} - set(absent)))
    (folder / "metadata.json").write_text(json.dumps(entries))
    return folder


def make_clips(folder: Path, *names: str, labels: dict[str, int] | None = None) -> Path:
    """A validation or test folder, with `labels.csv` when labels are given."""
    make_files(folder, *names)
    if labels is not None:
        write_labels(folder / "labels.csv", labels)
    return folder


def write_labels(path: Path, labels: dict[str, int]) -> None:
    path.write_text("filename,label\n" + "".join(f"{name},{label}\n" for name, label in labels.items()))


def test_parts_become_rows_with_label_split_part_and_original(tmp_path):
    make_part(tmp_path / "dfdc_train_part_0", {"f.mp4": FAKE_ENTRY, "r.mp4": REAL_ENTRY})
    make_part(tmp_path / "dfdc_train_part_1", {"s.mp4": REAL_ENTRY})
    listing = read_dfdc(tmp_path)
    rows = rows_by_id(listing)
    assert list(rows) == ["dfdc/dfdc_train_part_0/f", "dfdc/dfdc_train_part_0/r", "dfdc/dfdc_train_part_1/s"]
    assert rows["dfdc/dfdc_train_part_0/f"] == full_row(
        "dfdc/dfdc_train_part_0/f",
        "dfdc_train_part_0/f.mp4",
        label=1,
        split="train",
        part="dfdc_train_part_0",
        original="dfdc/dfdc_train_part_0/r",
    )
    real = rows["dfdc/dfdc_train_part_1/s"]
    assert (real["label"], real["original"], real["part"]) == (0, "", "dfdc_train_part_1")
    assert (listing.absent, listing.unlisted) == ([], [])


@pytest.mark.parametrize(
    ("entry", "original", "split"),
    [
        pytest.param({"label": "REAL", "split": "train"}, "", "train", id="real without original"),
        pytest.param({"label": "REAL", "split": "train", "original": None}, "", "train", id="real, original null"),
        pytest.param({"label": "FAKE", "split": "train"}, "", "train", id="fake without original"),
        pytest.param({"label": "FAKE", "split": "train", "original": None}, "", "train", id="fake, original null"),
        pytest.param({"label": "FAKE", "split": "train", "original": ""}, "", "train", id="fake, original empty"),
        pytest.param({"label": "FAKE", "original": "x.mp4"}, "dfdc/part_0/x", "train", id="split missing"),
        pytest.param({"label": "FAKE", "split": None, "original": "x.mp4"}, "dfdc/part_0/x", "train", id="split null"),
        pytest.param({"label": "REAL", "split": "val"}, "", "val", id="split val"),
        pytest.param({"label": "REAL", "split": "test"}, "", "test", id="split test"),
    ],
)
def test_what_may_be_missing_from_an_entry(entry, original, split, tmp_path):
    make_part(tmp_path / "part_0", {"a.mp4": entry})
    row = rows_by_id(read_dfdc(tmp_path))["dfdc/part_0/a"]
    assert (row["original"], row["split"]) == (original, split)


def test_after_a_partial_download_what_is_missing_is_counted_and_not_invented(tmp_path):
    entries = {"f.mp4": FAKE_ENTRY, "r.mp4": REAL_ENTRY, "g.mp4": FAKE_ENTRY}
    make_part(tmp_path / "dfdc_train_part_7", entries, absent=("r.mp4", "g.mp4"), extra=("stray.mp4", "notes.txt"))
    listing = read_dfdc(tmp_path)
    assert list(rows_by_id(listing)) == ["dfdc/dfdc_train_part_7/f"]
    assert rows_by_id(listing)["dfdc/dfdc_train_part_7/f"]["original"] == "dfdc/dfdc_train_part_7/r"
    assert listing.absent == ["dfdc_train_part_7/g.mp4", "dfdc_train_part_7/r.mp4"]
    assert listing.unlisted == ["dfdc_train_part_7/stray.mp4"]


@pytest.mark.parametrize("absent", [(), ("r.mp4",)], ids=["on disk", "not on disk"])
def test_an_original_in_another_part_is_found_there(absent, tmp_path):
    make_part(tmp_path / "part_0", {"f.mp4": FAKE_ENTRY})
    make_part(tmp_path / "part_1", {"r.mp4": REAL_ENTRY}, absent=absent)
    assert rows_by_id(read_dfdc(tmp_path))["dfdc/part_0/f"]["original"] == "dfdc/part_1/r"


def test_fakes_of_one_original_that_no_list_holds_still_name_the_same_original(tmp_path):
    """Its part was not downloaded; names are unique over DFDC, so it is one video and the fakes belong together."""
    make_part(tmp_path / "part_0", {"f.mp4": FAKE_ENTRY})
    make_part(tmp_path / "part_1", {"g.mp4": FAKE_ENTRY})
    rows = rows_by_id(read_dfdc(tmp_path))
    assert rows["dfdc/part_0/f"]["original"] == rows["dfdc/part_1/g"]["original"] != ""


def test_parts_one_level_down_are_found_under_their_own_name(tmp_path):
    make_part(tmp_path / "dfdc_train_part_00" / "dfdc_train_part_0", {"r.mp4": REAL_ENTRY})
    row = rows_by_id(read_dfdc(tmp_path))["dfdc/dfdc_train_part_00/dfdc_train_part_0/r"]
    assert row["part"] == "dfdc_train_part_0"


def test_a_part_without_its_metadata_is_counted_as_unlisted(tmp_path):
    """Its labels are unknown; a part that was skipped without a word would seem never downloaded."""
    make_part(tmp_path / "dfdc_train_part_0", {"r.mp4": REAL_ENTRY})
    make_clips(tmp_path / "dfdc_train_part_1", "b.mp4", "a.mp4")
    make_clips(tmp_path / "elsewhere", "c.mp4")
    listing = read_dfdc(tmp_path)
    assert list(rows_by_id(listing)) == ["dfdc/dfdc_train_part_0/r"]
    assert listing.unlisted == ["dfdc_train_part_1/a.mp4", "dfdc_train_part_1/b.mp4"]


def test_a_part_itself_can_be_the_root(tmp_path, monkeypatch):
    folder = make_part(tmp_path / "dfdc_train_part_3", {"f.mp4": FAKE_ENTRY, "r.mp4": REAL_ENTRY})
    by_path = rows_by_id(read_dfdc(folder))
    monkeypatch.chdir(folder)
    assert rows_by_id(read_dfdc(Path())) == by_path
    assert by_path["dfdc/f"] == by_path["dfdc/f"] | {"path": "f.mp4", "part": "dfdc_train_part_3", "original": "dfdc/r"}


def test_an_empty_part_gives_no_rows(tmp_path):
    make_part(tmp_path / "part_0", {})
    listing = read_dfdc(tmp_path)
    assert (listing.rows, listing.absent, listing.unlisted) == ([], [], [])


def test_kaggles_folders_are_read_side_by_side(tmp_path):
    """/kaggle/input/deepfake-detection-challenge: train_sample_videos, test_videos without labels, the sample."""
    make_part(tmp_path / "train_sample_videos", {"f.mp4": FAKE_ENTRY, "r.mp4": REAL_ENTRY})
    make_clips(tmp_path / "test_videos", "t.mp4")
    (tmp_path / "sample_submission.csv").write_text("filename,label\nt.mp4,0\n")
    rows = rows_by_id(read_dfdc(tmp_path))
    found = {name: (row["label"], row["split"], row["part"]) for name, row in rows.items()}
    assert found == {
        "dfdc/train_sample_videos/f": (1, "train", "train_sample_videos"),
        "dfdc/train_sample_videos/r": (0, "train", "train_sample_videos"),
        "dfdc/test_videos/t": (-1, "test", "test_videos"),
    }


@pytest.mark.parametrize("beside", [False, True], ids=["labels inside", "labels beside"])
@pytest.mark.parametrize("name", ["test", "test_videos", "val", "validation", "validation_videos"])
def test_held_out_folders_take_their_labels_from_labels_csv(name, beside, tmp_path):
    folder = make_clips(tmp_path / name, "a.mp4", "b.mp4", "nolabel.mp4")
    labels = {"b.mp4": 0, "a.mp4": 1, "gone.mp4": 1}
    write_labels((tmp_path if beside else folder) / "labels.csv", labels)
    listing = read_dfdc(tmp_path)
    rows = rows_by_id(listing)
    assert {key: row["label"] for key, row in rows.items()} == {
        f"dfdc/{name}/a": 1,
        f"dfdc/{name}/b": 0,
        f"dfdc/{name}/nolabel": -1,
    }
    assert {row["split"] for row in rows.values()} == {"test" if name.startswith("test") else "val"}
    assert listing.absent == [f"{name}/gone.mp4"]


def test_labels_inside_come_before_labels_beside_and_a_metadata_json_of_another_form(tmp_path):
    folder = make_clips(tmp_path / "test", "a.mp4", labels={"a.mp4": 1})
    write_labels(tmp_path / "labels.csv", {"a.mp4": 0})
    assert rows_by_id(read_dfdc(tmp_path))["dfdc/test/a"]["label"] == 1
    (folder / "metadata.json").write_text(json.dumps({"a.mp4": {"is_fake": 1}}))
    assert rows_by_id(read_dfdc(tmp_path))["dfdc/test/a"]["label"] == 1


@pytest.mark.parametrize(("name", "split"), [("test", "test"), ("validation", "val"), ("train_sample_videos", "train")])
def test_metadata_without_split_takes_it_from_the_folder(name, split, tmp_path):
    make_part(tmp_path / name, {"a.mp4": {"label": "REAL"}})
    assert rows_by_id(read_dfdc(tmp_path))[f"dfdc/{name}/a"]["split"] == split


def test_a_held_out_folder_one_level_down_or_behind_a_link_is_found(tmp_path):
    make_clips(tmp_path / "disk" / "dfdc_2020_06", "a.mp4", labels={"a.mp4": 1})
    make_clips(tmp_path / "root" / "kaggle" / "test_videos", "b.mp4")
    (tmp_path / "root" / "test").symlink_to(tmp_path / "disk" / "dfdc_2020_06")
    rows = rows_by_id(read_dfdc(tmp_path / "root"))
    assert {name: (row["label"], row["split"], row["part"]) for name, row in rows.items()} == {
        "dfdc/test/a": (1, "test", "test"),
        "dfdc/kaggle/test_videos/b": (-1, "test", "test_videos"),
    }


def test_a_held_out_folder_itself_can_be_the_root(tmp_path, monkeypatch):
    folder = make_clips(tmp_path / "test", "a.mp4", labels={"a.mp4": 1})
    by_path = rows_by_id(read_dfdc(folder))
    assert by_path["dfdc/a"] == by_path["dfdc/a"] | {"label": 1, "split": "test", "part": "test"}
    monkeypatch.chdir(folder)
    assert rows_by_id(read_dfdc(Path())) == by_path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", "expected a JSON file", id="empty"),
        pytest.param("filename,label", "expected a JSON file", id="not JSON"),
        pytest.param("[]", "expected an object of file -> entry, found list", id="a list"),
        pytest.param("null", "found NoneType", id="null"),
        pytest.param('{"a.mp4": "FAKE"}', "a.mp4: expected a label", id="an entry that is text"),
        pytest.param('{"a.mp4": null}', "a.mp4: expected a label", id="an entry that is null"),
        pytest.param('{"a.mp4": {}}', "a.mp4: expected a label", id="an entry without label"),
        pytest.param('{"a.mp4": {"label": "fake"}}', "found 'fake'", id="an unknown label"),
        pytest.param('{"a.mp4": {"label": 1}}', "found 1", id="a number for a label"),
        pytest.param('{"a.mp4": {"label": ["FAKE"]}}', r"found \['FAKE'\]", id="a list for a label"),
        pytest.param('{"a.mp4": {"label": "REAL", "split": "dev"}}', "found 'dev'", id="an unknown split"),
        pytest.param('{"a.mp4": {"label": "FAKE", "original": 5}}', "original", id="a number for an original"),
        pytest.param(
            '{"a.mp4": {"label": "FAKE"}, "a.mp4": {"label": "REAL"}}',
            "'a.mp4' stands twice",
            id="a clip of two labels",
        ),
        pytest.param('{"a.mp4": {"label": "FAKE", "original": ["r"]}}', "original", id="a list for an original"),
    ],
)
def test_metadata_that_is_not_what_it_should_be_is_refused_with_its_path(content, expected, tmp_path):
    path = tmp_path / "part_0" / "metadata.json"
    path.parent.mkdir()
    path.write_text(content)
    (path.parent / "a.mp4").touch()
    with pytest.raises(ValueError, match=expected) as caught:
        read_dfdc(tmp_path)
    assert str(path) in str(caught.value)


def test_a_name_in_two_parts_is_refused_with_both_places(tmp_path):
    make_part(tmp_path / "part_0", {"r.mp4": REAL_ENTRY})
    make_part(tmp_path / "part_1", {"r.mp4": REAL_ENTRY})
    with pytest.raises(ValueError, match=r"r\.mp4 is also in") as caught:
        read_dfdc(tmp_path)
    assert str(tmp_path / "part_0" / "metadata.json") in str(caught.value)
    assert str(tmp_path / "part_1" / "metadata.json") in str(caught.value)


def test_a_broken_labels_file_is_refused_with_its_path(tmp_path):
    folder = make_clips(tmp_path / "test", "a.mp4")
    (folder / "labels.csv").write_text("filename,label\na.mp4,FAKE\n")
    with pytest.raises(ValueError, match=r"labels\.csv: labels: column 'label'"):
        read_dfdc(tmp_path)


def test_hidden_files_of_a_mac_are_no_clips(tmp_path):
    make_clips(tmp_path / "test_videos", "a.mp4", "._a.mp4")
    assert list(rows_by_id(read_dfdc(tmp_path))) == ["dfdc/test_videos/a"]


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


def make_preview(root: Path, entries: dict, *, absent=(), extra=(), videos_level: bool = False) -> Path:
    """`dataset.json` and an empty file a clip."""
    present = {*entries, *extra} - set(absent)
    make_files(root, *(key.replace("/", "/videos/", 1) if videos_level else key for key in present))
    (root / "dataset.json").write_text(json.dumps(entries))
    return root


def test_the_preview_becomes_rows_with_method_split_people_and_original(tmp_path):
    method_b = fake(set="test", target_id="1260311", source_video="original_videos/1260311/1260311_C_001.mp4")
    listing = read_dfdc_preview(make_preview(tmp_path, {REAL: real(), FAKE_A: fake(), FAKE_B: method_b}))
    rows = rows_by_id(listing, "path")
    assert rows[FAKE_A] == full_row(
        "dfdc-preview/method_A/1003254/1003254_A/1255229_1003254_A_001",
        FAKE_A,
        label=1,
        method="method_A",
        split="train",
        original="dfdc-preview/original_videos/1003254/1003254_A_001",
        target_id="1003254",
        source_id="1255229",
    )
    assert rows[REAL] == rows[REAL] | {"label": 0, "method": "", "target_id": "1003254", "source_id": ""}
    assert (rows[FAKE_B]["method"], rows[FAKE_B]["split"], rows[FAKE_B]["original"]) == ("method_B", "test", "")
    assert (listing.absent, listing.unlisted) == ([], [])


def test_clips_of_the_preview_moved_into_a_videos_folder_are_found(tmp_path):
    rows = rows_by_id(
        read_dfdc_preview(make_preview(tmp_path, {REAL: real(), FAKE_A: fake()}, videos_level=True)), "path"
    )
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
    listing = read_dfdc_preview(make_preview(tmp_path, {**entries, FAKE_A: fake(**changes)}))
    expected = f"dfdc-preview/{original.removesuffix('.mp4')}" if original else ""
    assert rows_by_id(listing, "path")[FAKE_A]["original"] == expected


def test_people_come_from_the_name_where_the_entry_says_none(tmp_path):
    bare = {"label": "fake", "set": "test"}
    rows = rows_by_id(
        read_dfdc_preview(make_preview(tmp_path, {REAL: {"label": "real", "set": "test"}, FAKE_A: bare})), "path"
    )
    assert (rows[FAKE_A]["target_id"], rows[FAKE_A]["source_id"]) == ("1003254", "1255229")
    assert rows[FAKE_A]["original"] == rows[REAL]["video_id"]
    assert rows[REAL]["target_id"] == "1003254"


def test_after_a_partial_download_of_the_preview_what_is_missing_is_counted_and_not_invented(tmp_path):
    stray = "method_A/1/1_A/2_1_A_000.mp4"
    entries = {REAL: real(), FAKE_A: fake(), FAKE_B: fake(target_id="1260311")}
    listing = read_dfdc_preview(make_preview(tmp_path, entries, absent=(REAL, FAKE_B), extra=(stray,)))
    rows = rows_by_id(listing, "path")
    assert list(rows) == [FAKE_A]
    assert rows[FAKE_A]["original"] == "dfdc-preview/original_videos/1003254/1003254_A_001"
    assert (listing.absent, listing.unlisted) == ([FAKE_B, REAL], [stray])


def test_an_empty_preview_gives_no_rows(tmp_path):
    listing = read_dfdc_preview(make_preview(tmp_path, {}))
    assert (listing.rows, listing.absent, listing.unlisted) == ([], [], [])


@pytest.mark.parametrize("root", ["", "nothing"], ids=["no dataset.json", "no folder"])
def test_a_root_without_the_previews_list_is_refused_with_the_way_out(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json.*--root"):
        read_dfdc_preview(tmp_path / root)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("[]", "expected an object of file -> entry, found list", id="a list"),
        pytest.param(json.dumps({FAKE_A: None}), "expected a label of fake, real, found None", id="null"),
        pytest.param(json.dumps({FAKE_A: fake(label="FAKE")}), "found 'FAKE'", id="an unknown label"),
        pytest.param(json.dumps({FAKE_A: fake(set="val")}), "a set of train, test, found 'val'", id="set val"),
        pytest.param(json.dumps({FAKE_A: {"label": "fake"}}), "expected a set", id="no set"),
        pytest.param(json.dumps({"a.mp4": fake()}), "expected paths below method_A", id="a bare name"),
        pytest.param(json.dumps({"method_A/../../a.mp4": fake()}), "expected paths below", id="a path out"),
    ],
)
def test_a_dataset_json_that_is_not_what_it_should_be_is_refused_with_its_path(content, expected, tmp_path):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_dfdc_preview(tmp_path)
    assert str(tmp_path / "dataset.json") in str(caught.value)


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "data/videos/dfdc").is_dir(), reason="needs ../shared/data/videos/dfdc")
def test_the_real_excerpt_is_listed():
    listing = read_dfdc(SHARED / "data/videos/dfdc")
    rows = rows_by_id(listing)
    assert {name: row["original"] for name, row in rows.items()} == {
        "dfdc/dfdc_train_part_0/brtujopkby": "dfdc/dfdc_train_part_0/gnmmhlbzge",
        "dfdc/dfdc_train_part_10/widuwuoiur": "dfdc/dfdc_train_part_10/ybqmttnept",
        "dfdc/dfdc_train_part_10/yhffcuhhjy": "dfdc/dfdc_train_part_10/wdpsifpppf",
    }
    assert {row["label"] for row in rows.values()} == {1}
    assert listing.absent == ["dfdc_train_part_0/awnfpubqmo.mp4"]
    assert listing.unlisted == []


@pytest.mark.shared
@pytest.mark.parametrize(
    ("folder", "labels", "num_fake"),
    [("test", "dfdc_test_labels.csv", 2500), ("val", "dfdc_val_labels.csv", 2000)],
    ids=["test", "val"],
)
def test_the_official_label_files_are_read_at_full_size(folder, labels, num_fake, tmp_path):
    source = SHARED / "data" / "lists" / labels
    if not source.is_file():
        pytest.skip(f"needs ../shared/data/lists/{labels}")
    labels = LABELS.read(source).set_index("filename")["label"]
    assert labels.value_counts().to_dict() == {0: num_fake, 1: num_fake}
    make_clips(tmp_path / folder, *labels.index[:20])
    shutil.copy(source, tmp_path / folder / "labels.csv")
    listing = read_dfdc(tmp_path)
    assert {Path(row["path"]).name: row["label"] for row in listing.rows} == labels[:20].to_dict()
    assert len(listing.absent) == 2 * num_fake - 20
