"""The faces that a run's distances are fitted to: its crops as they are, and as another box would have cut them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from multiattn.inference import distances
from multiattn.inference.distances import MOST_SCALE, MOST_SHIFT, another_cut, keep_distances
from multiattn.inference.runs import find_models
from multiattn.inference.runtimes import load_network
from multiattn.model.distance import FaceDistance
from multiattn.video.crops.images import CropImages
from multiattn.video.extraction.faces_folder import read_faces_folder

CPU = torch.device("cpu")


def test_another_cut_is_drawn_by_the_address_within_its_bounds():
    side, places = 100, []
    dot = np.zeros((side, side, 3), np.uint8)
    dot[48:52, 48:52] = 255
    for number in range(200):
        cut = another_cut(dot, f"crops/{number}.jpg")
        assert np.array_equal(cut, another_cut(dot, f"crops/{number}.jpg"))
        rows, columns = np.nonzero(cut[..., 0] > 64)
        places.append([rows.mean() - 49.5, columns.mean() - 49.5])
    farthest = np.abs(places).max()
    assert MOST_SHIFT * side * 0.9 < farthest < MOST_SHIFT * side / (2 - MOST_SCALE) + 1
    assert np.abs(np.mean(places, axis=0)).max() < 2
    grey = np.full((side, side, 3), 77, np.uint8)
    assert np.array_equal(another_cut(grey, "a"), grey)


@pytest.fixture
def run_copy(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "LEAST_CROPS", 2)
    shutil.copytree(pipeline.experiment / "fold0", tmp_path / "demo_tiny" / "fold0")
    (tmp_path / "demo_tiny" / "fold0" / "distance.safetensors").unlink(missing_ok=True)
    return tmp_path / "demo_tiny"


def test_a_run_is_fitted_to_its_training_crops_as_they_are_and_moved(run_copy, pipeline):
    (model,) = find_models(run_copy)
    assert keep_distances([model], pipeline.faces, device=CPU) == 1
    fitted = model.distance()
    faces, folds = read_faces_folder(pipeline.faces)[0], model.folds().set_index("video_id")["fold"]
    training = faces[faces["video_id"].map(folds) != model.fold]
    assert fitted.notes["training_crops"] == str(len(training))
    network, size = load_network(model, CPU), model.experiment.data.image_size
    with torch.inference_mode():
        features = [
            network((crop[None].permute(0, 3, 1, 2) / 127.5 - 1).float()).features[0]
            for change in (None, another_cut)
            for crop in CropImages(pipeline.faces, training["crop"], size, change=change)
        ]
    assert torch.allclose(fitted.mean, torch.stack(features).mean(dim=0), atol=1e-4)


def test_a_distance_of_unmoved_crops_alone_is_fitted_anew_and_one_of_both_is_left(run_copy, pipeline):
    (model,) = find_models(run_copy)
    keep_distances([model], pipeline.faces, device=CPU)
    path = model.path / "distance.safetensors"
    first, written = path.read_bytes(), path.stat().st_mtime_ns
    keep_distances([model], pipeline.faces, device=CPU)
    assert path.stat().st_mtime_ns == written
    kept = FaceDistance.load(path)
    notes = {name: value for name, value in kept.notes.items() if name not in ("shown", "version")}
    replace(kept, mean=kept.mean + 1, notes=notes).save(path)
    assert model.distance() is not None  # it still measures
    keep_distances([model], pipeline.faces, device=CPU)
    assert path.read_bytes() == first
