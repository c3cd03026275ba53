"""How crops were made: stored, read back, compared, refused."""

import dataclasses
import json

import pytest

from multiattn.video.align import TEMPLATE_NAME
from multiattn.video.recipe import RECIPE_FILE, CropRecipe, describe_difference, read_recipe, write_recipe


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(CropRecipe(), id="defaults"),
        pytest.param(CropRecipe(num_frames=1, size=32, threshold=0.01, jpeg_quality=1), id="least"),
        pytest.param(CropRecipe(num_frames=10_000, size=4096, threshold=0.99, jpeg_quality=100), id="most"),
    ],
)
def test_a_recipe_comes_back_as_it_was_stored(recipe, tmp_path):
    write_recipe(recipe, tmp_path / "faces")
    assert read_recipe(tmp_path / "faces") == recipe
    assert json.loads((tmp_path / "faces" / RECIPE_FILE).read_text())["template"] == TEMPLATE_NAME


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
        ({"template": "another"}, "aligned to 'another'"),
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
        pytest.param('{"template": "old"}', "aligned to 'old'", id="another template"),
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
    assert describe_difference(recipe, dataclasses.replace(recipe, **changes)) == difference
