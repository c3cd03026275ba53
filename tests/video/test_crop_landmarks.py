"""Landmarks in crops that another program cut: found by a detector, and kept over interruptions."""

import cv2
import numpy as np
import pandas as pd
import pytest
from toy_detector import ToyDetector

from drawn_faces import landmarks_of
from multiattn.datasets.crops import read_crops
from multiattn.stages import index
from multiattn.tables import LANDMARKS
from multiattn.training.data.augment.faces import CropLandmarks
from multiattn.video.crops import landmarks
from multiattn.video.crops.landmarks import find_landmarks, found_points
from multiattn.video.crops.recipe import TEMPLATE
from multiattn.video.detectors.registry import Faces, load_detector
from multiattn.video.extraction.faces_folder import read_faces_folder
from pipeline import run


class WhiteDetector(ToyDetector):
    """A face the size of the picture's middle half wherever that is white; grey ones only in the second pass."""

    name = "white"
    searched = 0

    def search(self, copies, threshold, *, thorough):
        type(self).searched += len(copies)
        found = super().search(copies, threshold, thorough=thorough)
        lit = [copy[copy.shape[0] // 2, copy.shape[1] // 2, 0] > (60 if thorough else 200) for copy in copies]
        none = Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
        return [faces if is_lit else none for faces, is_lit in zip(found, lit, strict=True)]


@pytest.fixture
def folder(tmp_path):
    """White crops of 40 and 80 pixels, a grey one and a black one."""
    for name, side, grey in (("real/a", 40, 255), ("real/b", 80, 255), ("fake/grey", 40, 100), ("fake/black", 40, 0)):
        path = tmp_path / "root" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((side, side, 3), grey, np.uint8))
    read_crops(tmp_path / "root", faces=tmp_path / "faces")
    load_detector.cache_clear()
    WhiteDetector.searched = 0
    return tmp_path / "faces"


def points_of(folder) -> dict[str, np.ndarray]:
    faces, _, _ = read_faces_folder(folder)
    return {row["crop"]: np.reshape([row[name] for name in LANDMARKS], (5, 2)) for row in faces.to_dict("records")}


def test_points_are_pixels_of_the_stored_crop_whatever_its_size_and_the_padding_around_it(folder):
    assert find_landmarks(folder, WhiteDetector, weights=None, device="cpu") == (3, 4)
    found = points_of(folder)
    assert not found["fake/black.png"].any()
    for name, side in (("real/a.png", 40), ("real/b.png", 80), ("fake/grey.png", 40)):
        # The toy's face is the middle half of the picture with a quarter of the side around it: 3/4 of the crop.
        expected = landmarks_of(side / 8, side / 8, 3 * side / 4)
        np.testing.assert_allclose(found[name], expected, atol=0.6)
    faces, _, _ = read_faces_folder(folder)
    known = CropLandmarks.of(folder, faces, np.arange(4))
    by_crop = dict(zip(faces["crop"], (known.at(row, 32) for row in range(4)), strict=True))
    assert by_crop["fake/black.png"] is None
    np.testing.assert_allclose(by_crop["real/a.png"], by_crop["real/b.png"], atol=0.6)


def test_a_search_that_was_interrupted_continues_and_an_index_anew_keeps_what_was_found(folder, monkeypatch, capsys):
    monkeypatch.setattr(landmarks, "AT_ONCE", 1)
    search, calls = WhiteDetector.search, []

    def die(self, copies, threshold, *, thorough):
        calls.append(len(copies))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(self, copies, threshold, thorough=thorough)

    monkeypatch.setattr(WhiteDetector, "search", die)
    with pytest.raises(KeyboardInterrupt):
        find_landmarks(folder, WhiteDetector, weights=None, device="cpu")
    assert not any(points.any() for points in points_of(folder).values())
    find_landmarks(folder, WhiteDetector, weights=None, device="cpu")
    first = points_of(folder)
    read_crops(folder.parent / "root", faces=folder)
    assert not any(points.any() for points in points_of(folder).values())
    before = len(calls)
    assert find_landmarks(folder, WhiteDetector, weights=None, device="cpu") == (3, 4)
    assert len(calls) == before
    pd.testing.assert_frame_equal(
        pd.DataFrame(map(np.ravel, first.values())), pd.DataFrame(map(np.ravel, points_of(folder).values()))
    )
    run("index", "crops", "--root", folder.parent / "root", "--faces", folder, "--out", folder.parent / "videos.csv")
    assert "the same command with --landmarks has them at once" in capsys.readouterr().out


def test_the_face_that_the_middle_lies_in_is_taken_not_the_surest():
    boxes = np.array([[0, 0, 20, 20], [25, 25, 60, 60], [20, 20, 70, 70]], dtype=float)
    points = np.stack([TEMPLATE * 10 + place for place in range(3)])
    found = found_points("a", Faces(boxes, np.array([0.99, 0.9, 0.8]), points), 60)
    np.testing.assert_allclose(np.reshape(found.points, (5, 2)), TEMPLATE * 10 + 1 - 15, atol=0.01)
    assert found.score == 0.9
    assert found_points("a", Faces(boxes[:1], np.array([0.99]), points[:1]), 60).points == []
    assert found_points("a", Faces(boxes[:0], np.zeros(0), points[:0]), 60).points == []


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        pytest.param("nose", "--landmarks: expected one of mtcnn, retinaface, yunet, found 'nose'", id="unknown"),
        pytest.param("retinaface", "--weights: the detector retinaface needs its weights file", id="no weights"),
    ],
)
def test_a_detector_that_there_is_not_is_refused_before_anything_is_written(detector, message, folder, tmp_path):
    options = ("--root", tmp_path / "root", "--faces", tmp_path / "other", "--out", tmp_path / "videos.csv")
    with pytest.raises(ValueError, match=message):
        index.main(["crops", *map(str, options), "--landmarks", detector])
    assert not (tmp_path / "other").exists() and not (tmp_path / "videos.csv").exists()
