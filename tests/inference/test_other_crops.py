"""A model and crops that were made another way than its own: refused, or taken with a warning."""

import dataclasses
import logging
from pathlib import Path

import pytest
import torch

from multiattn.inference.runs import TrainedModel
from multiattn.inference.score_files import extract_folder_faces
from multiattn.video.crops.recipe import CropRecipe

FOLDER = Path("data/faces/test")
OWN = CropRecipe()


def model(recipe: CropRecipe = OWN) -> TrainedModel:
    return TrainedModel(Path("runs/demo/fold0"), 0, None, recipe)


@pytest.mark.parametrize(
    ("trained", "found"),
    [
        pytest.param({}, {}, id="the same"),
        pytest.param({}, {"num_frames": 8, "reuse_original": True, "fast_frames": True}, id="other frames"),
        pytest.param({"policy": "forged-mask"}, {}, id="trained with masks, predicted without"),
        pytest.param({}, {"policy": "forged-mask"}, id="the other way round"),
    ],
)
def test_crops_made_alike_are_taken_without_a_word(trained, found, caplog):
    model(CropRecipe(**trained)).require_same_crops(FOLDER, CropRecipe(**found))
    assert caplog.records == []


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        pytest.param({"size": 224}, "size: expected 380, found 224", id="size"),
        pytest.param({"policy": "largest"}, "policy: expected all-tracks, found largest", id="policy"),
        pytest.param({"detect_every": 4}, "detect_every: expected 1, found 4", id="detection"),
    ],
)
def test_other_crops_are_refused_unless_told_and_the_warning_names_the_difference(found, difference, caplog):
    other = dataclasses.replace(OWN, **found)
    with pytest.raises(ValueError, match=f"{FOLDER}: .* demo/fold0 was trained on: {difference}. Make the faces again"):
        model().require_same_crops(FOLDER, other)
    with caplog.at_level(logging.WARNING):
        model().taking_any_crops().require_same_crops(FOLDER, other)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{FOLDER}: its crops differ" in caplog.text and difference in caplog.text


def test_faces_of_a_folder_are_not_made_after_a_recipe_of_another_program(tmp_path):
    foreign = CropRecipe(detector="dlib", template="deepfakebench, dlib 81 points, margin 1.3", size=256)
    with pytest.raises(ValueError, match="cut by another program"):
        extract_folder_faces(tmp_path, tmp_path / "faces", foreign, jobs=1, device=torch.device("cpu"))
    assert list(tmp_path.iterdir()) == []


def test_retinaface_asks_for_its_weights_before_anything_is_written(tmp_path):
    recipe = CropRecipe(detector="retinaface", weights="0123456789abcdef")
    with pytest.raises(ValueError, match=r"retinaface needs its weights file .* Pass --weights FILE"):
        extract_folder_faces(tmp_path, tmp_path / "faces", recipe, jobs=1, device=torch.device("cpu"))
    assert list(tmp_path.iterdir()) == []
