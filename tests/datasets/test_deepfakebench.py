"""DeepfakeBench's frames and JSON in their exact form, with its defects, read as training reads a faces folder."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_trees import full_row, rows_by_id

from multiattn.datasets.deepfakebench import CROP_POINTS, LABELS, read_deepfakebench
from multiattn.datasets.manifest import write_manifest
from multiattn.runtime.crop_files import crops_root
from multiattn.tables import LANDMARKS
from multiattn.video.crops.images import CropImages
from multiattn.video.crops.recipe import TEMPLATE, read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

FF = "FaceForensics++"
REALS, FAKES = f"{FF}/original_sequences/youtube/c23/frames", f"{FF}/manipulated_sequences/Deepfakes/c23/frames"
FRAMES = (0, 9, 103)
SIZE = 48


class Tree:
    """`datasets/rgb` and a JSON of it, as their `preprocess.py` and `rearrange.py` write them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "datasets" / "rgb"
        self.json_file = folder / "dataset.json"
        self.faces = folder / "faces"
        self.content: dict = {}

    def preprocess(self, folder: str, frames=FRAMES, *, size: int = SIZE, landmarks: bool = True) -> list[str]:
        """Write the crops of a video, grey levels that tell them apart, and return the paths their JSON would hold."""
        (self.root / folder).mkdir(parents=True)
        marks = self.root / folder.replace("/frames/", "/landmarks/")
        for frame in frames:
            cv2.imwrite(str(self.root / folder / f"{frame:03d}.png"), np.full((size, size, 3), frame % 200, np.uint8))
            if landmarks:
                marks.mkdir(parents=True, exist_ok=True)
                np.save(marks / f"{frame:03d}.npy", dlib_points(frame))
        return [f"./datasets/rgb/{folder}/{frame:03d}.png" for frame in reversed(frames)]

    def enter(self, dataset: str, label: str, split: str, name: str, frames: list[str], level: str | None = None):
        by_split = self.content.setdefault(dataset, {}).setdefault(label, {"train": {}, "val": {}, "test": {}})
        videos = by_split[split].setdefault(level, {}) if level else by_split[split]
        videos[name] = {"label": label, "frames": frames}
        if LABELS.get(label, (0,))[0]:
            videos[name]["masks"] = []

    def read(self, **options):
        self.json_file.write_text(json.dumps(self.content))
        return read_deepfakebench(self.root, json=self.json_file, faces=self.faces, **options)

    def rows(self) -> dict[str, dict]:
        return rows_by_id(self.read(), "path")


def dlib_points(frame: int) -> np.ndarray:
    """(81, 2) int64: point k is (k + frame, 2 k)."""
    return np.stack([np.arange(81) + frame, 2 * np.arange(81)], axis=1)


@pytest.fixture
def tree(tmp_path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def ffpp(tree) -> Tree:
    """A pair of FaceForensics++: two reals of training and a fake, at one level of compression."""
    for name in ("071", "054"):
        tree.enter(FF, "FF-real", "train", name, tree.preprocess(f"{REALS}/{name}"), "c23")
    tree.enter(FF, "FF-DF", "train", "071_054", tree.preprocess(f"{FAKES}/071_054"), "c23")
    return tree


def test_faceforensics_becomes_rows_with_all_that_the_names_tell(ffpp):
    rows = ffpp.rows()
    assert len(rows) == 3
    assert rows[f"{FAKES}/071_054"] == full_row(
        f"deepfakebench/{FAKES}/071_054",
        f"{FAKES}/071_054",
        label=1,
        method="Deepfakes",
        compression="c23",
        split="train",
        original=f"deepfakebench/{REALS}/071",
        target_id="071",
        source_id="054",
    )
    real = rows[f"{REALS}/054"]
    assert real == real | {"label": 0, "method": "", "original": "", "target_id": "054", "source_id": ""}


def test_the_faces_folder_is_read_as_any_other_and_its_crops_are_their_images(ffpp):
    listing = ffpp.read()
    faces, statuses, videos = read_faces_folder(ffpp.faces)
    assert videos["video_id"].tolist() == sorted(row["video_id"] for row in listing.rows)
    assert statuses["video_id"].tolist() == videos["video_id"].tolist()
    assert statuses[["status", "num_frames", "num_crops"]].values.tolist() == [["ok", 3, 3]] * 3
    assert faces["frame_index"].tolist() == [0, 9, 103] * 3
    assert set(faces["track"]) == {0}
    images = CropImages(ffpp.faces, faces["crop"], SIZE)
    assert [int(images[row][0, 0, 0]) for row in range(9)] == [0, 9, 103] * 3
    assert images[0].shape == (SIZE, SIZE, 3)
    assert not (ffpp.faces / "crops").exists(), "nothing is copied"


def test_the_faces_folder_may_move_together_with_the_frames(ffpp, tmp_path):
    ffpp.read()
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}_moved"))
    faces, _, _ = read_faces_folder(moved / "faces")
    assert all((crops_root(moved / "faces") / crop).is_file() for crop in faces["crop"])


def test_a_faces_folder_with_a_link_to_the_frames_still_loads(ffpp):
    """As earlier versions wrote it: no root in faces.json, crops below a link of the folder."""
    ffpp.read()
    recipe = json.loads((ffpp.faces / "faces.json").read_text())
    del recipe["root"]
    (ffpp.faces / "faces.json").write_text(json.dumps(recipe))
    (ffpp.faces / "frames").symlink_to(ffpp.root)
    faces, _, _ = read_faces_folder(ffpp.faces)
    images = CropImages(ffpp.faces, "frames/" + faces["crop"], SIZE)
    assert [int(images[row][0, 0, 0]) for row in range(3)] == [0, 9, 103]


def test_its_recipe_says_that_another_program_cut_the_crops(ffpp):
    ffpp.read()
    recipe = read_recipe(ffpp.faces)
    assert (recipe.size, recipe.num_frames, recipe.detector) == (SIZE, len(FRAMES), "dlib")
    assert recipe.foreign
    with pytest.raises(ValueError, match="cut by another program"):
        recipe.require_makeable()


def test_five_points_are_taken_from_their_81(ffpp):
    """Points 36 to 41 and 42 to 47 are the eyes, 30 the tip of the nose, 48 and 54 the corners of the mouth."""
    ffpp.read()
    faces, _, _ = read_faces_folder(ffpp.faces)
    expected = [38.5, 77, 44.5, 89, 30, 60, 48, 96, 54, 108]
    found = faces.loc[faces["frame_index"] == 0, list(LANDMARKS)]
    assert found.values.tolist() == [expected] * 3
    box = faces[["x1", "y1", "x2", "y2"]].drop_duplicates()
    assert box.values.tolist() == [[0, 0, SIZE, SIZE]], "the crop itself is the frame of reference"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="absent"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not an array", id="garbage"),
        pytest.param(np.zeros((5, 2)), id="five points"),
        pytest.param(np.full((81, 2), np.nan), id="no numbers"),
    ],
)
def test_without_landmarks_the_points_of_the_template_stand_for_them(content, tree):
    tree.enter(FF, "FF-real", "train", "071", tree.preprocess(f"{REALS}/071", (0,), landmarks=False), "c23")
    path = tree.root / f"{REALS}/071/000.npy".replace("/frames/", "/landmarks/")
    if content is not None:
        path.parent.mkdir(parents=True)
        np.save(path, content) if isinstance(content, np.ndarray) else path.write_bytes(content)
    assert any("1 of 1 frame without landmarks" in note for note in tree.read().notes)
    faces, _, _ = read_faces_folder(tree.faces)
    np.testing.assert_allclose(faces[list(LANDMARKS)].to_numpy().reshape(5, 2), TEMPLATE * SIZE)


def test_their_crops_are_aligned_to_the_template_of_ours():
    """Their five points, as written in `preprocess.py` for a crop of 112 pixels and a margin of 1.3."""
    theirs = np.array(
        [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    )
    theirs = (theirs + [8, 0] + 0.15 * 112) / 1.3 / 112
    np.testing.assert_allclose(CROP_POINTS, theirs, atol=1e-12)
    np.testing.assert_allclose(CROP_POINTS, TEMPLATE, atol=1e-12)


@pytest.mark.parametrize(
    ("folder", "label", "expected"),
    [
        (f"{FF}/original_sequences/youtube/raw/frames/071", "FF-real", {"target_id": "071", "compression": "raw"}),
        (f"{FF}/original_sequences/youtube/c0/frames/071", "FF-real", {"target_id": "071", "compression": "raw"}),
        (
            f"{FF}/manipulated_sequences/FaceShifter/c40/frames/071_054",
            "FF-FH",
            {
                "method": "FaceShifter",
                "compression": "c40",
                "original": f"deepfakebench/{FF}/original_sequences/youtube/c40/frames/071",
                "source_id": "054",
            },
        ),
        (
            f"{FF}/original_sequences/actors/c23/frames/24__outside_talking",
            "DFD_real",
            {"target_id": "24", "compression": "c23", "label": 0},
        ),
        (
            f"{FF}/manipulated_sequences/DeepFakeDetection/c23/frames/24_23__outside_talking__YR5OVD4S",
            "DFD_fake",
            {
                "method": "DeepFakeDetection",
                "target_id": "24",
                "source_id": "23",
                "original": f"deepfakebench/{FF}/original_sequences/actors/c23/frames/24__outside_talking",
            },
        ),
        ("Celeb-DF-v2/Celeb-real/frames/id0_0000", "CelebDFv2_real", {"target_id": "id0", "label": 0}),
        ("Celeb-DF-v2/YouTube-real/frames/00170", "CelebDFv2_real", {"target_id": "", "label": 0}),
        (
            "Celeb-DF-v1/Celeb-synthesis/frames/id0_id1_0002",
            "CelebDFv1_fake",
            {
                "target_id": "id0",
                "source_id": "id1",
                "original": "deepfakebench/Celeb-DF-v1/Celeb-real/frames/id0_0002",
                "method": "Celeb-synthesis",
            },
        ),
        (
            "DFDCP/method_A/frames/1255229_1003254_A_001",
            "DFDCP_FakeA",
            {
                "source_id": "1255229",
                "target_id": "1003254",
                "original": "deepfakebench/DFDCP/original_videos/frames/1003254_A_001",
                "method": "method_A",
            },
        ),
        ("DFDCP/original_videos/frames/1003254_A_001", "DFDCP_Real", {"target_id": "1003254", "label": 0}),
        ("DFDC/train/dfdc_train_part_9/frames/aaa", "DFDC_Fake", {"part": "dfdc_train_part_9", "label": 1}),
        ("DFDC/test/frames/aaa", "DFDC_Real", {"part": "", "label": 0}),
        (
            "DeeperForensics-1.0/manipulated_videos/end_to_end/frames/480_W133",
            "DF_fake",
            {"target_id": "480", "source_id": "W133", "original": f"deepfakebench/{REALS}/480"},
        ),
        ("DeeperForensics-1.0/source_videos/W133/frames/W133_light", "DF_real", {"target_id": "W133", "label": 0}),
        ("UADFV/fake/frames/0001_fake", "UADFV_Fake", {"method": "UADFV", "label": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" not in value else "",
)
def test_every_data_set_of_theirs_is_known_by_its_paths(folder, label, expected, tree):
    tree.enter("X", label, "test", folder.rpartition("/")[2], tree.preprocess(folder, (0,)))
    (row,) = tree.rows().values()
    assert row["path"] == folder
    assert row == row | expected


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        pytest.param(["train"], "train", id="training only"),
        pytest.param(["val"], "val", id="val only"),
        pytest.param(["test", "val"], "test", id="val is a copy of test"),
        pytest.param(["train", "val"], "train", id="val is a copy of train"),
        pytest.param(["train", "test"], "test", id="test videos in train"),
        pytest.param(["train", "test", "val"], "test", id="all three"),
    ],
)
def test_a_video_in_several_splits_is_one_row_and_is_counted(splits, expected, tree):
    frames = tree.preprocess("UADFV/real/frames/0001")
    for split in splits:
        tree.enter("UADFV", "UADFV_Real", split, "0001", frames)
    (row,) = tree.rows().values()
    assert row["split"] == expected
    notes = [note for note in tree.read().notes if "1 video is in several splits" in note]
    assert len(notes) == (len(splits) > 1)


def test_dfdcs_val_is_an_entry_and_holds_videos_at_once(tree):
    test, train = (
        tree.preprocess(f"DFDC/{where}/frames/{name}")
        for where, name in (("test", "t"), ("train/dfdc_train_part_0", "a"))
    )
    tree.enter("DFDC", "DFDC_Real", "test", "t", test)
    tree.enter("DFDC", "DFDC_Real", "train", "a", train)
    tree.content["DFDC"]["DFDC_Real"]["val"] = {
        "label": "DFDC_Real", "frames": test, "a": {"label": "DFDC_Real", "frames": train},
    }  # fmt: skip
    rows = tree.rows()
    assert {path: row["split"] for path, row in rows.items()} == {
        "DFDC/test/frames/t": "test",
        "DFDC/train/dfdc_train_part_0/frames/a": "train",
    }


def test_videos_that_the_json_forgot_are_unlisted(ffpp):
    ffpp.preprocess(f"{REALS}/999")
    assert ffpp.read().unlisted == [f"{REALS}/999"]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param("/workspace/datasets/rgb/{}", id="another machine"),
        pytest.param("{}", id="below the root"),
        pytest.param("./{}", id="with a dot"),
        pytest.param("C:\\data\\{}", id="backslashes"),
    ],
)
def test_paths_of_another_machine_are_found_by_their_tail(written, tree):
    tree.preprocess(f"{REALS}/071")
    tail = f"{REALS}/071/009.png"
    path = written.format(tail.replace("/", "\\") if "\\" in written else tail)
    tree.enter(FF, "FF-real", "train", "071", [path], "c23")
    assert list(tree.rows()) == [f"{REALS}/071"]
    faces, _, _ = read_faces_folder(tree.faces)
    assert faces["frame_index"].tolist() == [9], "frames on disk that the JSON leaves out stay out"


def test_what_is_listed_and_not_there_is_absent_and_missing_frames_are_counted(ffpp):
    (ffpp.root / f"{REALS}/071/000.png").unlink()
    ffpp.enter(FF, "FF-real", "train", "111", [f"./datasets/rgb/{REALS}/111/000.png"], "c23")
    ffpp.enter(FF, "FF-real", "train", "222", [], "c23")
    listing = ffpp.read()
    assert listing.absent == ["FF-real/222", f"{REALS}/111"]
    assert len(listing.rows) == 3
    assert any("1 frame is listed but absent" in note for note in listing.notes)


def test_frames_without_a_number_are_numbered_in_order(tree):
    tree.preprocess("UADFV/real/frames/1", ())
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tree.root / "UADFV/real/frames/1" / name), np.zeros((SIZE, SIZE, 3), np.uint8))
    tree.enter("UADFV", "UADFV_Real", "train", "1", ["UADFV/real/frames/1/b.png", "UADFV/real/frames/1/a.png"])
    tree.read()
    faces, _, _ = read_faces_folder(tree.faces)
    assert [(row.frame_index, row.crop[-5:]) for row in faces.itertuples()] == [(0, "a.png"), (1, "b.png")]


def test_a_second_json_of_the_root_joins_the_table_and_the_faces_folder(ffpp, tmp_path):
    write_manifest(ffpp.read(), tmp_path / "videos.csv", append=False)
    ffpp.content = {}
    ffpp.enter("UADFV", "UADFV_Real", "test", "1", ffpp.preprocess("UADFV/real/frames/1", (0, 1, 2, 3)))
    table = write_manifest(ffpp.read(), tmp_path / "videos.csv", append=True)
    faces, statuses, videos = read_faces_folder(ffpp.faces)
    assert videos["video_id"].tolist() == statuses["video_id"].tolist() == table["video_id"].tolist()
    assert len(faces) == 3 * 3 + 4
    assert read_recipe(ffpp.faces).num_frames == 4


def test_reading_the_same_json_again_changes_nothing(ffpp):
    ffpp.read()
    names = ("faces.json", "faces.parquet", "video_status.csv", "videos.csv")
    before = [(ffpp.faces / name).read_bytes() for name in names]
    ffpp.read()
    assert [(ffpp.faces / name).read_bytes() for name in names] == before


@pytest.mark.parametrize("other", ["recipe", "root"])
def test_a_faces_folder_of_something_else_is_refused_and_kept(other, ffpp, tmp_path):
    ffpp.faces.mkdir()
    if other == "recipe":
        (ffpp.faces / "faces.json").write_text('{"num_frames": 32, "size": 380, "detector": "mtcnn"}')
    else:
        (ffpp.faces / "faces.json").write_text('{"num_frames": 32, "size": 380, "root": ".."}')
    with pytest.raises(ValueError, match="Choose another --faces"):
        ffpp.read()
    assert not (ffpp.faces / "faces.parquet").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param([], "found list", id="a list"),
        pytest.param({"FF": {"FF-XX": {"train": {}}}}, "found 'FF-XX' in 'FF'", id="unknown label"),
        pytest.param({"FF": 3}, "found '' in 'FF'", id="no labels"),
        pytest.param({"FF": {"FF-DF": {"training": {}}}}, "something else than train, val, test", id="unknown split"),
        pytest.param({"FF": {"FF-DF": {"train": []}}}, "something else in FF FF-DF train", id="a list of videos"),
        pytest.param({"FF": {"FF-DF": {"train": {"a": 1}}}}, "something else in FF FF-DF train", id="a number"),
        pytest.param({"FF": {"FF-DF": {"train": {"a": {"frames": [1]}}}}}, "something else", id="frames are numbers"),
        pytest.param(
            {"FF": {"FF-DF": {"train": {"a": {"frames": ["x/1.png", "y/2.png"]}}}}}, "in one folder", id="two folders"
        ),
    ],
)
def test_a_json_of_another_form_is_refused(content, expected, tree):
    tree.root.mkdir(parents=True)
    tree.content = content
    with pytest.raises(ValueError, match=expected) as caught:
        tree.read()
    assert str(tree.json_file) in str(caught.value)
    assert not tree.faces.exists()


@pytest.mark.parametrize(
    "content", [{}, {FF: {}}, {FF: {"FF-DF": {"train": {"c23": {}}}}}], ids=["no", "no labels", "no videos"]
)
def test_an_empty_json_gives_no_rows_and_no_faces_folder(content, tree):
    tree.root.mkdir(parents=True)
    tree.content = content
    assert tree.read().rows == []
    assert not tree.faces.exists()


def test_a_video_both_real_and_fake_is_refused(tree):
    frames = tree.preprocess("UADFV/real/frames/1")
    tree.enter("UADFV", "UADFV_Real", "train", "1", frames)
    tree.enter("UADFV", "UADFV_Fake", "test", "1", frames)
    with pytest.raises(ValueError, match="is listed as UADFV_Real and as UADFV_Fake"):
        tree.read()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda path: path.write_bytes(b""), "expected a PNG image", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xd8 this is a jpeg, by another name"), "PNG", id="a jpeg"),
        pytest.param(lambda path: cv2.imwrite(str(path), np.zeros((8, 9, 3), np.uint8)), "found 9x8", id="not square"),
        pytest.param(
            lambda path: cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8)), "found 8x8", id="another size"
        ),
    ],
)
def test_crops_that_are_not_theirs_are_refused(make, expected, ffpp):
    make(ffpp.root / f"{REALS}/054/000.png")
    with pytest.raises(ValueError, match=expected) as caught:
        ffpp.read()
    assert "000.png" in str(caught.value)


def test_a_root_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--root"):
        read_deepfakebench(tmp_path / "nothing", json=tmp_path / "x.json", faces=tmp_path / "faces")
