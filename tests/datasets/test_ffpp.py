"""FaceForensics++ trees in their official form, the official splits, the masks, and DeepFakeDetection among them."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_trees import full_row, make_files, rows_by_id

from multiattn.datasets.ffpp import METHODS, mask_of, read_dfd, read_ffpp, read_pairs

MANIPULATED = "manipulated_sequences"
SHARED = Path(__file__).resolve().parents[3] / "shared"
SPLITS = {"train": [["071", "054"]], "val": [["720", "672"]], "test": [["953", "974"]]}
ACTORS, SWAPS = "original_sequences/actors", f"{MANIPULATED}/DeepFakeDetection"
ACTOR = "24__outside_talking_still_laughing.mp4"
SWAP = "24_23__outside_talking_still_laughing__YR5OVD4S.mp4"


def make_clip(root: Path, sequence: str, name: str, compression: str = "c23") -> None:
    make_files(root, f"{sequence}/{compression}/videos/{name}")


def make_tree(root: Path, compression: str = "c23") -> Path:
    """Pristine 054 and 071, and each method's two fakes of the pair."""
    for name in ("054.mp4", "071.mp4"):
        make_clip(root, "original_sequences/youtube", name, compression)
    for method in METHODS:
        for name in ("054_071.mp4", "071_054.mp4"):
            make_clip(root, f"manipulated_sequences/{method}", name, compression)
    return root


def make_splits(folder: Path, **changes) -> Path:
    folder.mkdir()
    for split, pairs in {**SPLITS, **changes}.items():
        if pairs is not None:
            (folder / f"{split}.json").write_text(pairs if isinstance(pairs, str) else json.dumps(pairs))
    return folder


def test_the_whole_tree_becomes_rows_with_method_target_source_and_original(tmp_path):
    rows = rows_by_id(read_ffpp(make_tree(tmp_path)))
    assert len(rows) == 2 + 2 * 5
    fake = rows["ffpp/manipulated_sequences/Deepfakes/c23/videos/071_054"]
    assert fake == full_row(
        "ffpp/manipulated_sequences/Deepfakes/c23/videos/071_054",
        "manipulated_sequences/Deepfakes/c23/videos/071_054.mp4",
        label=1,
        method="Deepfakes",
        compression="c23",
        original="ffpp/original_sequences/youtube/c23/videos/071",
        target_id="071",
        source_id="054",
    )
    real = rows["ffpp/original_sequences/youtube/c23/videos/054"]
    assert real == real | {"label": 0, "method": "", "target_id": "054", "source_id": "", "original": ""}
    assert sum(row["label"] for row in rows.values()) == 10
    assert {row["original"] for row in rows.values()} - {""} <= set(rows), "every fake's original is a row"


@pytest.mark.parametrize("asked", ["raw", "c0"])
@pytest.mark.parametrize("on_disk", ["raw", "c0"])
def test_raw_and_c0_are_one_level(on_disk, asked, tmp_path):
    rows = rows_by_id(read_ffpp(make_tree(tmp_path, on_disk), compression=asked))
    assert len(rows) == 12
    assert {row["compression"] for row in rows.values()} == {"raw"}
    assert {row["original"] for row in rows.values()} - {""} <= set(rows)


def test_raw_and_c0_side_by_side_do_not_part_a_fake_from_its_original(tmp_path):
    """The script's own download is `raw`; what the README extracts is `c0`."""
    make_clip(tmp_path, "original_sequences/youtube", "071.mp4", "raw")
    make_clip(tmp_path, "manipulated_sequences/Deepfakes", "071_054.mp4", "c0")
    rows = rows_by_id(read_ffpp(tmp_path, compression="raw"))
    fake = rows["ffpp/manipulated_sequences/Deepfakes/c0/videos/071_054"]
    assert fake["target_id"] == "071"
    assert len({row["target_id"] for row in rows.values()}) == 1


@pytest.mark.parametrize("compression", ["raw", "c23", "c40"])
def test_only_the_level_asked_for_is_listed(compression, tmp_path):
    for level in ("c0", "c23", "c40"):
        make_clip(tmp_path, "original_sequences/youtube", "000.mp4", level)
    rows = rows_by_id(read_ffpp(tmp_path, compression=compression))
    assert [row["compression"] for row in rows.values()] == [compression]


def test_whatever_of_the_tree_is_there_is_listed(tmp_path):
    make_clip(tmp_path, "manipulated_sequences/FaceShifter", "999_000.mp4")
    make_clip(tmp_path, "original_sequences/actors", "24__outside_talking_still_laughing.mp4")
    make_clip(tmp_path, "manipulated_sequences/DeepFakeDetection", "24_23__outside__YR5OVD4S.mp4")
    (tmp_path / "manipulated_sequences/FaceShifter/masks/videos").mkdir(parents=True)
    rows = rows_by_id(read_ffpp(tmp_path))
    assert list(rows) == ["ffpp/manipulated_sequences/FaceShifter/c23/videos/999_000"]


def test_the_splits_are_taken_from_the_target(tmp_path):
    make_tree(tmp_path / "tree")
    make_clip(tmp_path / "tree", "manipulated_sequences/Face2Face", "953_974.mp4")
    rows = rows_by_id(read_ffpp(tmp_path / "tree", splits=make_splits(tmp_path / "splits")))
    assert rows["ffpp/manipulated_sequences/Face2Face/c23/videos/953_974"]["split"] == "test"
    assert {row["split"] for row in rows.values() if row["target_id"] != "953"} == {"train"}


def test_clips_of_the_official_list_that_a_folder_lacks_are_absent(tmp_path):
    """A method without a folder was not downloaded at all, which is no accident."""
    make_tree(tmp_path / "tree")
    (tmp_path / "tree/manipulated_sequences/FaceSwap/c23/videos/071_054.mp4").unlink()
    for method in METHODS[:-1]:
        if method != "FaceSwap":
            (tmp_path / f"tree/manipulated_sequences/{method}/c23").rename(tmp_path / method)
    splits = make_splits(tmp_path / "splits", val=[], test=[["953", "974"]])
    assert read_ffpp(tmp_path / "tree", splits=splits).absent == [
        "original_sequences/youtube/c23/videos/953.mp4",
        "original_sequences/youtube/c23/videos/974.mp4",
        "manipulated_sequences/FaceSwap/c23/videos/071_054.mp4",
        "manipulated_sequences/FaceSwap/c23/videos/953_974.mp4",
        "manipulated_sequences/FaceSwap/c23/videos/974_953.mp4",
        "manipulated_sequences/FaceShifter/c23/videos/953_974.mp4",
        "manipulated_sequences/FaceShifter/c23/videos/974_953.mp4",
    ]
    assert read_ffpp(tmp_path / "tree").absent == []


@pytest.mark.parametrize("pristine", ["raw", "c0"])
def test_a_clip_under_either_name_of_a_level_is_not_absent(pristine, tmp_path):
    make_clip(tmp_path / "tree", "original_sequences/youtube", "071.mp4", "raw")
    make_clip(tmp_path / "tree", "original_sequences/youtube", "054.mp4", pristine)
    splits = make_splits(tmp_path / "splits", val=[], test=[])
    assert read_ffpp(tmp_path / "tree", compression="raw", splits=splits).absent == []


def test_an_id_in_no_split_is_refused(tmp_path):
    make_clip(tmp_path / "tree", "original_sequences/youtube", "001.mp4")
    with pytest.raises(ValueError, match=r"001\.mp4: id 001 is in none of"):
        read_ffpp(tmp_path / "tree", splits=make_splits(tmp_path / "splits"))


def test_a_fake_across_two_splits_is_refused(tmp_path):
    """Official fakes stay inside one split; one that does not would carry a test face into training."""
    make_clip(tmp_path / "tree", "manipulated_sequences/Deepfakes", "071_953.mp4")
    with pytest.raises(ValueError, match="071_953"):
        read_ffpp(tmp_path / "tree", splits=make_splits(tmp_path / "splits"))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param("", "expected a JSON file", id="empty"),
        pytest.param({"071": "054"}, "expected a list of pairs", id="an object"),
        pytest.param(["071", "054"], "expected a list of pairs", id="a list of ids"),
        pytest.param([["071"]], "expected a list of pairs", id="one id"),
        pytest.param([["071", "054", "001"]], "expected a list of pairs", id="three ids"),
        pytest.param([[71, 54]], "expected a list of pairs", id="numbers"),
        pytest.param([["953", "001"]], r"id 953 is also in", id="an id of another split"),
    ],
)
def test_split_files_that_are_not_what_they_should_be_are_refused(pairs, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        read_pairs(make_splits(tmp_path / "splits", train=pairs))


@pytest.mark.parametrize("level", ["raw", "c0", "c23", "c40"])
@pytest.mark.parametrize(
    ("dataset", "method", "name"),
    [
        *(("ffpp", method, "519_515.mp4") for method in ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures")),
        ("dfd", "DeepFakeDetection", "24_23__outside_talking_still_laughing__YR5OVD4S.mp4"),
    ],
)
def test_a_manipulated_clip_of_any_level_has_the_one_mask_of_its_method(dataset, method, name, level):
    assert mask_of(dataset, f"{MANIPULATED}/{method}/{level}/videos/{name}") == (
        f"{MANIPULATED}/{method}/masks/videos/{name}"
    )


@pytest.mark.parametrize(
    ("dataset", "path"),
    [
        pytest.param("ffpp", "original_sequences/youtube/c23/videos/519.mp4", id="pristine"),
        pytest.param("dfd", "original_sequences/actors/c23/videos/24__kitchen_pan.mp4", id="an actor's clip"),
        pytest.param("ffpp", f"{MANIPULATED}/FaceShifter/c23/videos/519_515.mp4", id="FaceShifter has none"),
        pytest.param("dfd", f"{MANIPULATED}/Deepfakes/c23/videos/519_515.mp4", id="a method of the other data set"),
        pytest.param("dfdc", "dfdc_train_part_0/a.mp4", id="a data set without masks"),
        pytest.param("folder", f"{MANIPULATED}/Deepfakes/c23/videos/519_515.mp4", id="a folder of the same form"),
        pytest.param("ffpp", f"{MANIPULATED}/Deepfakes/masks/videos/519_515.mp4", id="a mask itself"),
        pytest.param("ffpp", f"{MANIPULATED}/Deepfakes/c23/images/519_515.mp4", id="another folder"),
        pytest.param("ffpp", "", id="empty"),
    ],
)
def test_other_clips_have_no_mask(dataset, path):
    assert mask_of(dataset, path) is None


def test_the_rows_of_a_tree_lead_to_the_masks_beside_them(tmp_path):
    """With masks downloaded, every manipulated clip listed has its mask on disk, and no mask is listed as a clip."""
    for method, name in (("Deepfakes", "519_515.mp4"), ("DeepFakeDetection", "24_23__kitchen_pan__YR5OVD4S.mp4")):
        for folder in ("c23", "masks"):
            make_clip(tmp_path, f"{MANIPULATED}/{method}", name, folder)
    rows = read_ffpp(tmp_path).rows + read_dfd(tmp_path).rows
    assert [row["dataset"] for row in rows] == ["ffpp", "dfd"]
    assert all((tmp_path / mask_of(row["dataset"], row["path"])).is_file() for row in rows)


def rows_by_name(listing) -> dict[str, dict]:
    return {Path(path).name: row for path, row in rows_by_id(listing, "path").items()}


def test_actors_and_swaps_become_rows_without_a_split(tmp_path):
    make_clip(tmp_path, ACTORS, ACTOR)
    make_clip(tmp_path, SWAPS, SWAP)
    rows = rows_by_name(read_dfd(tmp_path))
    assert rows[SWAP] == full_row(
        f"dfd/{SWAPS}/c23/videos/24_23__outside_talking_still_laughing__YR5OVD4S",
        f"{SWAPS}/c23/videos/{SWAP}",
        label=1,
        method="DeepFakeDetection",
        compression="c23",
        original=f"dfd/{ACTORS}/c23/videos/24__outside_talking_still_laughing",
        target_id="24",
        source_id="23",
    )
    assert rows[ACTOR]["video_id"] == rows[SWAP]["original"]
    assert rows[ACTOR] == rows[ACTOR] | {"label": 0, "method": "", "original": "", "target_id": "24", "source_id": ""}


@pytest.mark.parametrize(
    "real",
    [
        pytest.param(None, id="no real at all"),
        pytest.param("24__kitchen_pan.mp4", id="another scene"),
        pytest.param("23__outside_talking_still_laughing.mp4", id="the source's clip of the scene"),
    ],
)
def test_a_swap_whose_target_has_no_clip_of_the_scene_names_no_original(real, tmp_path):
    make_clip(tmp_path, SWAPS, SWAP)
    if real is not None:
        make_clip(tmp_path, ACTORS, real)
    assert rows_by_name(read_dfd(tmp_path))[SWAP]["original"] == ""


@pytest.mark.parametrize(
    ("on_disk", "asked", "found"),
    [("raw", "raw", "raw"), ("c0", "raw", "raw"), ("raw", "c0", "raw"), ("c23", "c23", "c23"), ("c40", "c40", "c40")],
)
def test_a_level_is_found_under_both_of_its_names(on_disk, asked, found, tmp_path):
    for level in {"c23", "c40", on_disk}:
        make_clip(tmp_path, ACTORS, ACTOR, level)
    rows = read_dfd(tmp_path, compression=asked).rows
    assert [(row["compression"], row["path"]) for row in rows] == [(found, f"{ACTORS}/{on_disk}/videos/{ACTOR}")]


def test_an_original_as_raw_is_found_for_a_swap_as_c0(tmp_path):
    make_clip(tmp_path, ACTORS, ACTOR, "raw")
    make_clip(tmp_path, SWAPS, SWAP, "c0")
    rows = rows_by_name(read_dfd(tmp_path, compression="raw"))
    assert rows[SWAP]["original"] == rows[ACTOR]["video_id"]


def test_clips_of_faceforensics_itself_and_masks_are_not_dfd(tmp_path):
    make_clip(tmp_path, "original_sequences/youtube", "519.mp4")
    make_clip(tmp_path, "manipulated_sequences/Deepfakes", "519_515.mp4")
    make_clip(tmp_path, SWAPS, SWAP, "masks")
    assert read_dfd(tmp_path).rows == []


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "data/lists/ffpp_splits").is_dir(), reason="needs ../shared/data/lists/ffpp_splits")
def test_the_official_splits_are_720_140_140_disjoint_ids():
    pairs = read_pairs(SHARED / "data/lists/ffpp_splits")
    split_of = pd.Series({name: split for pair, split in pairs.items() for name in pair})
    assert split_of.value_counts().to_dict() == {"train": 720, "val": 140, "test": 140}
    assert sorted(split_of.index) == [f"{number:03d}" for number in range(1000)]


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "data/videos/ffpp").is_dir(), reason="needs ../shared/data/videos/ffpp")
def test_the_real_excerpt_is_listed_with_its_splits():
    listing = read_ffpp(SHARED / "data/videos/ffpp", splits=SHARED / "data/lists/ffpp_splits")
    rows = rows_by_id(listing)
    found = {name.rsplit("/", 1)[1]: (row["label"], row["method"], row["target_id"]) for name, row in rows.items()}
    assert found == {
        "519": (0, "", "519"),
        "634": (0, "", "634"),
        "519_515": (1, "Deepfakes", "519"),
        "634_660": (1, "FaceSwap", "634"),
    }
    assert {row["target_id"]: row["split"] for row in rows.values()} == {"519": "train", "634": "test"}
    assert len(listing.absent) == 3 * 1000 - 4, "of the pristine clips and the two methods that are there"
