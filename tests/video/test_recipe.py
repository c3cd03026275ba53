"""How crops were made: stored, read back, compared, refused."""

import dataclasses
import json

import pytest

from multiattn.runtime.layout import RECIPE_FILE
from multiattn.video.crops.recipe import (
    INTERPOLATION_NAME,
    TEMPLATE_NAME,
    VERSION,
    CropRecipe,
    describe_difference,
    read_recipe,
    write_recipe,
)

VERSION_1 = {
    "num_frames": 16,
    "size": 224,
    "detector": "mtcnn",
    "threshold": 0.8,
    "jpeg_quality": 90,
    "template": "arcface-5-point, margin 1.3",
}
"""A faces.json as the first version of `multiattn faces` wrote it."""
FOREIGN = {"detector": "dlib", "template": "deepfakebench, dlib 81 points, margin 1.3", "size": 256}


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(CropRecipe(), id="defaults"),
        pytest.param(CropRecipe(num_frames=1, size=32, threshold=0.01, jpeg_quality=1), id="least"),
        pytest.param(CropRecipe(num_frames=10_000, size=4096, threshold=0.99, jpeg_quality=100), id="most"),
        pytest.param(
            CropRecipe(
                detector="retinaface",
                weights="0123456789abcdef",
                detect_every=16,
                policy="forged-mask",
                reuse_original=True,
                fast_frames=True,
            ),
            id="everything else",
        ),
        pytest.param(CropRecipe(**FOREIGN, interpolation="bicubic"), id="foreign"),
    ],
)
def test_a_recipe_comes_back_as_it_was_stored(recipe, tmp_path):
    write_recipe(recipe, tmp_path / "faces")
    assert read_recipe(tmp_path / "faces") == recipe
    stored = json.loads((tmp_path / "faces" / RECIPE_FILE).read_text())
    assert stored["version"] == VERSION == 2
    assert set(stored) == {field.name for field in dataclasses.fields(CropRecipe)}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"num_frames": 0}, "--num-frames: expected at least 1, found 0"),
        ({"size": 31}, "--size: expected 32 to 4096 pixels, found 31"),
        ({"size": 4097}, "--size"),
        ({"threshold": 0.0}, "--threshold"),
        ({"threshold": 1.0}, "--threshold"),
        ({"threshold": float("nan")}, "--threshold"),
        ({"jpeg_quality": 0}, "--jpeg-quality"),
        ({"jpeg_quality": 101}, "--jpeg-quality"),
        ({"detect_every": 0}, "--detect-every: expected 1 to 16, found 0"),
        ({"detect_every": 17}, "--detect-every"),
        ({"policy": "smallest"}, "--policy: expected one of all-tracks, largest, forged-mask, found 'smallest'"),
        ({"weights": "0123456789abcdef"}, "--weights: --detector mtcnn needs no weights file, found 0123456789abcdef"),
        ({"detector": "retinaface"}, "--weights: --detector retinaface needs its weights file"),
        ({"version": 1}, "version: expected 2, found 1"),
    ],
    ids=repr,
)
def test_a_value_out_of_range_is_refused_by_its_option(values, expected):
    with pytest.raises(ValueError, match=expected):
        CropRecipe(**values)


def test_a_folder_without_a_recipe_is_no_faces_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not a faces folder. Make it with `multiattn faces`"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param("", "expected a JSON file", id="empty"),
        pytest.param("[]", "expected an object for CropRecipe", id="list"),
        pytest.param('{"sizes": 380}', "Did you mean 'size'", id="unknown setting"),
        pytest.param('{"size": "380"}', "CropRecipe.size", id="wrong type"),
        pytest.param('{"size": 5}', "--size", id="out of range"),
        pytest.param('{"policy": "smallest"}', "CropRecipe.policy", id="another policy"),
        pytest.param('{"version": 3, "new": 1}', "version 3, and this code knows versions up to 2", id="newer"),
        pytest.param('{"version": "2"}', "version: expected a whole number from 1, found '2'", id="version as text"),
        pytest.param('{"version": 0}', "version: expected a whole number from 1, found 0", id="version 0"),
        pytest.param('{"version": true}', "version: expected a whole number from 1, found True", id="version true"),
    ],
)
def test_a_broken_recipe_is_refused_with_its_path(content, expected, tmp_path):
    (tmp_path / RECIPE_FILE).write_text(content)
    with pytest.raises(ValueError, match=expected) as caught:
        read_recipe(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / RECIPE_FILE))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        pytest.param({}, "", id="equal"),
        pytest.param({"num_frames": 1}, "", id="fewer frames make no other pixels"),
        pytest.param({"reuse_original": True, "fast_frames": True}, "", id="nor does what saves time"),
        pytest.param({"detect_every": 4}, "detect_every: expected 1, found 4", id="interpolated places"),
        pytest.param({"policy": "largest"}, "policy: expected all-tracks, found largest", id="other faces"),
        pytest.param({"policy": "forged-mask"}, "policy: expected all-tracks, found forged-mask", id="chosen fakes"),
        pytest.param(
            {"detector": "retinaface", "weights": "0123456789abcdef"},
            "detector: expected mtcnn, found retinaface; weights: expected , found 0123456789abcdef",
            id="another detector",
        ),
        pytest.param({"interpolation": "bicubic"}, f"expected {INTERPOLATION_NAME}, found bicubic", id="interpolation"),
        pytest.param({"size": 224}, "size: expected 380, found 224", id="size"),
        pytest.param(
            {"size": 224, "jpeg_quality": 90},
            "size: expected 380, found 224; jpeg_quality: expected 95, found 90",
            id="two",
        ),
    ],
)
def test_differences_that_change_pixels_are_described(changes, difference):
    recipe = CropRecipe()
    described = describe_difference(recipe, dataclasses.replace(recipe, **changes))
    assert described.endswith(difference) and bool(described) == bool(difference)


def test_a_recipe_of_version_1_is_read_as_what_its_crops_were_made_with(tmp_path):
    (tmp_path / RECIPE_FILE).write_text(json.dumps(VERSION_1))
    found = read_recipe(tmp_path)
    assert {name: getattr(found, name) for name in VERSION_1} == VERSION_1
    made_with = {name: getattr(found, name) for name in ("detect_every", "policy", "reuse_original", "fast_frames")}
    assert made_with == {"detect_every": 1, "policy": "all-tracks", "reuse_original": False, "fast_frames": False}
    again = CropRecipe(num_frames=16, size=224, threshold=0.8, jpeg_quality=90)
    assert found == again, "today's settings of the same values make the same crops"
    assert VERSION_1["template"] == TEMPLATE_NAME


def test_a_foreign_recipe_can_be_read_and_compared_but_not_followed(tmp_path):
    (tmp_path / RECIPE_FILE).write_text(json.dumps({"version": 2, **FOREIGN}))
    found = read_recipe(tmp_path)
    assert describe_difference(found, read_recipe(tmp_path)) == ""
    assert "detector: expected mtcnn, found dlib" in describe_difference(CropRecipe(), found)
    with pytest.raises(ValueError, match=r"another program \(detector: expected 'mtcnn' or 'retinaface', found 'dlib'"):
        found.require_makeable()
    CropRecipe().require_makeable()
    for name in ("detector", "template", "interpolation"):
        assert name in CropRecipe(**{name: "else"}).foreign


@pytest.mark.parametrize(
    ("trained", "predicted"),
    [
        pytest.param({}, {}, id="defaults"),
        pytest.param({"policy": "forged-mask", "reuse_original": True}, {}, id="masks and originals"),
        pytest.param({"policy": "largest", "detect_every": 2}, {"policy": "largest", "detect_every": 2}, id="the rest"),
    ],
)
def test_prediction_knows_no_masks_and_no_originals(trained, predicted):
    assert CropRecipe(**trained).for_prediction() == CropRecipe(**predicted)
