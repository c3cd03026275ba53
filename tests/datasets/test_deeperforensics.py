"""DeeperForensics-1.0 trees in their official form, and their tie to FaceForensics++."""

from pathlib import Path

import pytest
from made_trees import full_row, make_files, rows_by_id

from multiattn.datasets.deeperforensics import TYPES, read_deeperforensics, read_splits
from multiattn.datasets.folds import group_videos
from multiattn.tables import VIDEOS
from pipeline import run

SPLITS = {"train": ["480_W133.mp4"], "val": ["000_W138.mp4"], "test": ["902_M004.mp4"]}
NAMES = tuple(name for names in SPLITS.values() for name in names)


def make_splits(folder: Path, **changes: list[str] | None) -> Path:
    folder.mkdir(parents=True)
    for split, names in {**SPLITS, **changes}.items():
        if names is not None:
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def make_tree(root: Path, *types: str) -> Path:
    """The three fakes of each type, and the split lists."""
    make_files(root, *(f"manipulated_videos/{kind}/{name}" for kind in types for name in NAMES))
    make_splits(root / "lists" / "splits")
    return root


def test_fakes_become_rows_with_method_split_people_and_the_original_of_faceforensics(tmp_path):
    listing = read_deeperforensics(make_tree(tmp_path, "end_to_end"))
    rows = rows_by_id(listing)
    assert rows["deeperforensics/manipulated_videos/end_to_end/480_W133"] == full_row(
        "deeperforensics/manipulated_videos/end_to_end/480_W133",
        "manipulated_videos/end_to_end/480_W133.mp4",
        label=1,
        method="end_to_end",
        split="train",
        original="ffpp/original_sequences/youtube/c23/videos/480",
        target_id="480",
        source_id="W133",
    )
    assert {Path(name).name: row["split"] for name, row in rows.items()} == {
        "480_W133": "train",
        "000_W138": "val",
        "902_M004": "test",
    }
    assert (listing.absent, listing.unlisted) == ([], [])


def test_all_eleven_types_are_read_and_can_be_chosen(tmp_path):
    make_tree(tmp_path, *TYPES)
    assert len(TYPES) == 11
    assert {row["method"] for row in read_deeperforensics(tmp_path).rows} == set(TYPES)
    chosen = read_deeperforensics(tmp_path, types=("end_to_end", "reenact_postprocess"))
    assert {row["method"] for row in chosen.rows} == {"end_to_end", "reenact_postprocess"}
    assert (len(chosen.rows), chosen.unlisted) == (6, [])


def test_both_data_sets_fit_into_one_table_where_a_fake_and_its_pristine_clip_are_one_group(tmp_path):
    make_tree(tmp_path / "deeper", "end_to_end")
    make_files(tmp_path / "ffpp", "original_sequences/youtube/c23/videos/480.mp4")
    out = tmp_path / "videos.csv"
    run("index", "deeperforensics", "--root", tmp_path / "deeper", "--types", "end_to_end", "--out", out)
    run("index", "ffpp", "--root", tmp_path / "ffpp", "--out", out, "--append")
    table = VIDEOS.read(out)
    assert table["dataset"].value_counts().to_dict() == {"deeperforensics": 3, "ffpp": 1}
    groups = dict(zip(table["video_id"], group_videos(table, "original"), strict=True))
    pristine = groups["ffpp/original_sequences/youtube/c23/videos/480"]
    assert groups["deeperforensics/manipulated_videos/end_to_end/480_W133"] == pristine
    assert len(set(groups.values())) == 3


def test_the_actors_recordings_are_left_out_and_counted(tmp_path):
    make_tree(tmp_path, "end_to_end")
    sources = ("light_up/angry/camera_front/a.mp4", "BlendShape/b.mp4", "BlendShape_extra/c.mp4")
    make_files(tmp_path, *(f"source_videos/W133/{name}" for name in sources))
    listing = read_deeperforensics(tmp_path)
    assert {row["label"] for row in listing.rows} == {1}
    assert not any("source_videos" in row["path"] for row in listing.rows)
    assert any(note.startswith("3 clips of source_videos are left out") for note in listing.notes)
    assert any("index ffpp" in note for note in listing.notes)


def test_what_is_missing_or_in_no_list_is_counted(tmp_path):
    make_tree(tmp_path, "end_to_end")
    make_files(tmp_path, "manipulated_videos/end_to_end/111_W001.mp4", "manipulated_videos/mine/480_W133.mp4")
    (tmp_path / "manipulated_videos/end_to_end/902_M004.mp4").unlink()
    listing = read_deeperforensics(tmp_path)
    assert len(listing.rows) == 2
    assert listing.absent == ["manipulated_videos/end_to_end/902_M004.mp4"]
    assert listing.unlisted == ["manipulated_videos/end_to_end/111_W001.mp4", "manipulated_videos/mine/480_W133.mp4"]


def test_without_split_lists_the_split_is_empty(tmp_path):
    make_files(tmp_path, "manipulated_videos/end_to_end/480_W133.mp4")
    listing = read_deeperforensics(tmp_path)
    assert [row["split"] for row in listing.rows] == [""]
    assert listing.absent == []


def test_split_lists_can_lie_elsewhere(tmp_path):
    make_files(tmp_path / "tree", "manipulated_videos/end_to_end/902_M004.mp4")
    listing = read_deeperforensics(tmp_path / "tree", splits=make_splits(tmp_path / "splits"))
    assert [row["split"] for row in listing.rows] == ["test"]


def test_an_unknown_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--types: expected some of end_to_end, .* found end_to_end_level_6"):
        read_deeperforensics(tmp_path, types=("end_to_end", "end_to_end_level_6"))


@pytest.mark.parametrize("names", [["480_W133", "481_W133"], ["480_W133.mp4", "", "481_W133.mp4"]])
def test_names_stand_in_the_lists_with_or_without_extension(names, tmp_path):
    split_of = read_splits(make_splits(tmp_path / "splits", train=names))
    assert split_of == {"480_W133": "train", "481_W133": "train", "000_W138": "val", "902_M004": "test"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(["480"], r"val\.txt:1: expected a name such as 480_W133", id="an id"),
        pytest.param(["000_W138.mp4", "480_W133.mp4"], r"val\.txt:2: 480_W133 is also in train", id="in two splits"),
        pytest.param(["000_W138.mp4"] * 2, r"val\.txt:2: 000_W138 is also in val", id="twice in one"),
    ],
)
def test_lists_that_are_not_what_they_should_be_are_refused(names, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        read_splits(make_splits(tmp_path / "splits", val=names))
