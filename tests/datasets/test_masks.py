"""Where the mask of a manipulated clip lies, by the FaceForensics++ download script."""

import pytest

from multiattn.datasets.dfd import read_dfd
from multiattn.datasets.ffpp import read_ffpp
from multiattn.datasets.masks import mask_of

MANIPULATED = "manipulated_sequences"


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
        pytest.param("folder", f"{MANIPULATED}/Deepfakes/c23/videos/519_515.mp4", id="a folder that looks like it"),
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
            path = tmp_path / MANIPULATED / method / folder / "videos" / name
            path.parent.mkdir(parents=True)
            path.touch()
    rows = read_ffpp(tmp_path).rows + read_dfd(tmp_path).rows
    assert [row["dataset"] for row in rows] == ["ffpp", "dfd"]
    assert all((tmp_path / mask_of(row["dataset"], row["path"])).is_file() for row in rows)
