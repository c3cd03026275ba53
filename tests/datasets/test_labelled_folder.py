"""A folder of one's own: class folders, or a CSV of path and label."""

from pathlib import Path

import pytest
from made_trees import make_files, rows_by_id

from multiattn.datasets.labelled_folder import read_frames, read_labelled_folder
from multiattn.tables import VIDEOS
from pipeline import run


def write_labels(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in ("path,label", *lines)))
    return path


def labels_by_id(listing) -> dict[str, int]:
    return {name: row["label"] for name, row in rows_by_id(listing).items()}


def test_class_folders_become_rows_at_any_depth(tmp_path):
    make_files(tmp_path, "real/a.mp4", "fake/a.mp4", "fake/2024/zoom/ä b.MOV", "fake/notes.txt", "other/c.mp4", "d.mp4")
    listing = read_labelled_folder(tmp_path)
    assert labels_by_id(listing) == {"folder/real/a": 0, "folder/fake/a": 1, "folder/fake/2024/zoom/ä b": 1}
    assert listing.rows[-1] == listing.rows[-1] | {"split": "", "method": "", "original": "", "part": ""}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param(("Real/a.mp4", "FAKE/b.mp4"), {"folder/FAKE/b": 1, "folder/Real/a": 0}, id="in any case"),
        pytest.param(("real/a.mp4",), {"folder/real/a": 0}, id="one class"),
        pytest.param(("real/a.txt", "fake/.b.mp4"), {}, id="no videos in them"),
        pytest.param(("real/.trash/a.mp4", "fake/b.mp4"), {"folder/fake/b": 1}, id="a hidden folder"),
    ],
)
def test_which_folders_count(files, expected, tmp_path):
    assert labels_by_id(read_labelled_folder(make_files(tmp_path, *files))) == expected


def test_a_folder_of_pictures_is_a_clip_in_place_of_a_video(tmp_path):
    make_files(
        tmp_path, "real/a.mp4", "real/v1.5/0001.png", "real/v1.5/masks/0001.png", "fake/deep/b/2.jpg", "fake/cover.png",
        "fake/clips/c.mp4", "fake/clips/cover.jpg",
    )  # fmt: skip
    expected = {"folder/real/a": 0, "folder/real/v1.5": 0, "folder/fake/deep/b": 1, "folder/fake/clips/c": 1}
    assert labels_by_id(read_labelled_folder(tmp_path)) == expected
    assert labels_by_id(read_frames(tmp_path)) == {"frames/real/v1.5": 0, "frames/fake/deep/b": 1}
    labels = write_labels(tmp_path / "labels.csv", "real/v1.5,0", "fake/deep/b,1")
    assert read_frames(tmp_path, labels=labels).unlisted == []


def test_a_csv_may_say_more_of_its_clips(tmp_path):
    make_files(tmp_path, "a/000/1.png", "a/000_003/1.png", "b.mp4")
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "original,path,label,split,identity,method,score\na/000,a/000,0,test,000,,1\na/000,a/000_003,1,test,000,swap,2\n"
        ",b.mp4,0,,,,3\n"
    )
    rows = rows_by_id(read_labelled_folder(tmp_path, labels=labels, name="mine"))
    fake = {"label": 1, "split": "test", "target_id": "000", "method": "swap", "original": "mine/a/000"}
    assert rows["mine/a/000_003"] == rows["mine/a/000_003"] | fake
    assert rows["mine/a/000"]["original"] == "", "a real that names itself has none"
    assert rows["mine/b"] == rows["mine/b"] | {"label": 0, "split": "", "target_id": ""}


def test_links_are_followed_but_not_in_circles(tmp_path):
    make_files(tmp_path / "disk", "x/a.mp4")
    make_files(tmp_path / "root", "fake/b.mp4")
    (tmp_path / "root/real").symlink_to(tmp_path / "disk")
    (tmp_path / "root/fake/linked").symlink_to(tmp_path / "disk/x")
    (tmp_path / "root/fake/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/fake/gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    assert labels_by_id(read_labelled_folder(tmp_path / "root")) == {
        "folder/real/x/a": 0,
        "folder/fake/b": 1,
        "folder/fake/linked/a": 1,
    }


@pytest.mark.parametrize("files", [(), ("a.mp4", "reals/b.mp4")], ids=["empty", "clips elsewhere"])
def test_a_root_without_class_folders_is_refused_with_the_way_out(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="--labels CSV"):
        read_labelled_folder(make_files(tmp_path, *files))


def test_a_csv_labels_clips_anywhere_and_counts_the_others(tmp_path):
    root = make_files(tmp_path / "root", "a.mp4", "x/b.mp4", "x/stray.mp4", "real/c.mp4")
    labels = write_labels(tmp_path / "labels.csv", "a.mp4,1", "./x/b.mp4,0", "gone.mp4,1", f"{root}/real/c.mp4,1")
    listing = read_labelled_folder(root, labels=labels)
    assert labels_by_id(listing) == {"folder/a": 1, "folder/x/b": 0, "folder/real/c": 1}
    assert (listing.absent, listing.unlisted) == (["gone.mp4"], ["x/stray.mp4"])


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param((), "no rows", id="empty"),
        pytest.param(("a.mp4,fake",), "column 'label'", id="a word for a label"),
        pytest.param(("a.mp4,2",), "column 'label'", id="label 2"),
        pytest.param((",1",), "column 'path'", id="no path"),
        pytest.param(("a.mp4",), "expected 2 cells", id="no label"),
        pytest.param(("a.mp4,1", "a.mp4,0"), "share theirs", id="twice"),
        pytest.param(("a.mp4,1", "./a.mp4,0"), "a.mp4 is listed twice", id="twice in two spellings"),
        pytest.param(("../a.mp4,1",), "expected paths below", id="a path that leads out"),
        pytest.param(("/elsewhere/a.mp4,1",), "expected paths below", id="a path elsewhere"),
    ],
)
def test_a_csv_that_is_not_what_it_should_be_is_refused_with_its_path(lines, expected, tmp_path):
    labels = write_labels(tmp_path / "labels.csv", *lines)
    with pytest.raises(ValueError, match=expected) as caught:
        read_labelled_folder(make_files(tmp_path / "root", "a.mp4"), labels=labels)
    assert str(labels) in str(caught.value)


def test_a_csv_with_other_columns_or_none_at_all_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("filename,label\na.mp4,1\n")
    with pytest.raises(ValueError, match="expected column 'path'"):
        read_labelled_folder(tmp_path, labels=tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("path,label,split\na.mp4,1,Train\n")
    with pytest.raises(ValueError, match=r"labels.csv: a.mp4: column 'split': expected one of train, .* found 'Train'"):
        read_labelled_folder(tmp_path, labels=tmp_path / "labels.csv")
    with pytest.raises(FileNotFoundError, match=r"gone\.csv"):
        read_labelled_folder(tmp_path, labels=tmp_path / "gone.csv")


@pytest.mark.parametrize("name", ["", "a/b", "A", "my set", "-a"])
def test_a_name_that_would_not_make_a_video_id_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match="--name"):
        read_labelled_folder(make_files(tmp_path, "real/a.mp4"), name=name)


def test_two_folders_fit_into_one_table_under_two_names(tmp_path):
    out = tmp_path / "videos.csv"
    for name in ("web", "phone"):
        root = make_files(tmp_path / name, "real/a.mp4", "fake/b.mp4")
        run("index", "folder", "--root", root, "--name", name, "--out", out, "--append")
    assert VIDEOS.read(out)["video_id"].tolist() == ["phone/fake/b", "phone/real/a", "web/fake/b", "web/real/a"]
