"""Models of a runs folder: found by fold, given only crops made as theirs, and loaded with their preprocessing."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import TrainedModel, find_models, group_by_recipe, load_run, trained_on
from multiattn.tables import FACES
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import CropRecipe
from pipeline import Pipeline

CPU = torch.device("cpu")
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
        pytest.param({"alignment": "box"}, "alignment: expected template, found box", id="squares around boxes"),
        pytest.param({"policy": "largest"}, "policy: expected all-tracks, found largest", id="policy"),
        pytest.param({"detect_every": 4}, "detect_every: expected 1, found 4", id="detection"),
    ],
)
def test_other_crops_are_refused_unless_asked_for_and_the_warning_names_the_difference(found, difference, caplog):
    other = dataclasses.replace(OWN, **found)
    with pytest.raises(ValueError, match=f"{FOLDER}: .* demo/fold0 was trained on: {difference}. Make the faces again"):
        model().require_same_crops(FOLDER, other)
    with caplog.at_level(logging.WARNING):
        dataclasses.replace(model(), any_crops=True).require_same_crops(FOLDER, other)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{FOLDER}: its crops differ" in caplog.text and difference in caplog.text


def test_an_unfinished_fold_and_a_mixed_experiment_are_refused(pipeline: Pipeline, tmp_path):
    shutil.copytree(pipeline.experiment, tmp_path / "runs")
    recipe = json.loads((tmp_path / "runs/fold1/faces.json").read_text())
    (tmp_path / "runs/fold1/faces.json").write_text(json.dumps({**recipe, "size": 96}))
    for any_recipes in (False, True):
        with pytest.raises(ValueError, match="other crops"):
            find_models(tmp_path / "runs", any_recipes=any_recipes)
    (tmp_path / "runs/fold1/best.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="multiattn train"):
        find_models(tmp_path / "runs")


def test_models_are_grouped_by_how_their_crops_are_made():
    recipes = [
        OWN,
        CropRecipe(size=224),
        CropRecipe(num_frames=8),
        CropRecipe(policy="forged-mask"),
        CropRecipe(size=224),
    ]
    groups = group_by_recipe([dataclasses.replace(model(recipe), fold=fold) for fold, recipe in enumerate(recipes)])
    found = {recipe: [model.fold for model in models] for recipe, models in groups.items()}
    assert found == {OWN: [0, 2, 3], CropRecipe(size=224): [1, 4]}
    assert group_by_recipe([]) == {}


def test_names_of_training_videos_are_known(pipeline: Pipeline):
    names = trained_on(pipeline.experiment)
    assert len(names) == 12 and all(len(name) == 10 for name in names)


def test_a_loaded_run_gives_the_probabilities_that_predict_writes(pipeline: Pipeline):
    loaded = load_run(pipeline.experiment / "fold1")
    faces = FACES.read(pipeline.faces / "faces.parquet")
    crops = np.stack([read_crop(pipeline.faces / crop, 64) for crop in faces["crop"]])
    models = find_models(pipeline.experiment / "fold1")
    expected = predict_faces(models, pipeline.faces, device=CPU, precision="fp32")["probability"].to_numpy()
    assert len(crops) > 32, "one batch would do"
    found = loaded.predict(crops)
    assert found.dtype == np.float64 and found.shape == (len(crops),)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.predict(torch.from_numpy(crops[:3])), found[:3], rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.predict(crops[0]), found[:1], rtol=0, atol=1e-6)
    assert loaded.predict(crops[:0]).shape == (0,)
    assert not loaded.training and not loaded.network.training
    assert loaded.experiment == models[0].experiment and loaded.recipe == models[0].recipe
    with torch.no_grad():  # as a module it takes crops too
        output = loaded(crops[:2]).logits.double().softmax(dim=1)[:, 1].numpy()
    np.testing.assert_allclose(output, found[:2], rtol=0, atol=1e-6)


def test_larger_crops_are_averaged_down_and_smaller_ones_enlarged(pipeline: Pipeline):
    loaded = load_run(pipeline.experiment / "fold0")
    small = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    doubled = small.repeat(2, axis=1).repeat(2, axis=2)  # each block of four averages to its pixel
    assert np.array_equal(loaded.sized(doubled).numpy(), small)
    assert loaded.predict(doubled) == loaded.predict(small)
    assert loaded.sized(np.full((32, 32, 3), 7, np.uint8)).unique().tolist() == [7]
    assert loaded.sized(np.zeros((0, 99, 99, 3), np.uint8)).shape == (0, 64, 64, 3)


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        pytest.param(np.zeros((4, 64, 64, 3), np.float32), "expected RGB uint8", id="float"),
        pytest.param(np.zeros((64, 64), np.uint8), "expected RGB uint8", id="grey"),
        pytest.param(np.zeros((1, 3, 64, 64), np.uint8), "expected RGB uint8", id="channels first"),
        pytest.param(np.zeros((64, 48, 3), np.uint8), "square crops.*48x64", id="not square"),
    ],
)
def test_what_is_no_batch_of_crops_is_refused(pipeline: Pipeline, crops, message):
    with pytest.raises(ValueError, match=message):
        load_run(pipeline.experiment / "fold0").predict(crops)


def test_an_experiment_with_several_folds_names_them(pipeline: Pipeline, tmp_path):
    with pytest.raises(ValueError, match="fold0, fold1"):
        load_run(pipeline.experiment)
    with pytest.raises(FileNotFoundError, match="multiattn train"):
        load_run(tmp_path)
