"""Common parts of all detectors: the copies they search, the registry, clear errors; one from outside the package."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from toy_detector import HungryDetector, ToyDetector

from multiattn.tables import FACES
from multiattn.video.crops.recipe import CropRecipe, read_recipe
from multiattn.video.detectors import registry
from multiattn.video.detectors.registry import (
    Detector,
    Faces,
    detector_names,
    get_detector,
    load_detector,
    register_detector,
    search_size,
    weights_digest,
)
from multiattn.video.extraction.extract import extraction_settings
from pipeline import run


@pytest.mark.parametrize(
    ("size_wh", "first", "thorough"),
    [
        pytest.param((1920, 1080), (640, 360), (1920, 1080), id="full HD as it is"),
        pytest.param((1080, 1920), (360, 640), (1080, 1920), id="portrait"),
        pytest.param((3840, 2160), (640, 360), (1920, 1080), id="4K is bounded"),
        pytest.param((1280, 720), (640, 360), (1280, 720), id="not enlarged"),
        pytest.param((1000, 500), (640, 320), (1280, 640), id="enlarged to 1280"),
        pytest.param((640, 480), (640, 480), (1280, 960), id="twice"),
        pytest.param((320, 240), (320, 240), (640, 480), id="twice at most"),
        pytest.param((1, 1), (1, 1), (2, 2), id="one pixel"),
        pytest.param((9000, 1), (640, 1), (1920, 1), id="a line keeps its pixel"),
    ],
)
def test_the_searched_copy_has_the_documented_size(size_wh, first, thorough):
    assert search_size(size_wh, thorough=False) == first
    assert search_size(size_wh, thorough=True) == thorough


class MarkDetector(Detector):
    """Each frame's "face" is its mark, found at (1, 2) of the copy."""

    name, default_threshold, thorough_threshold = "mark", 0.5, 0.5

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.passes: list[list[tuple]] = []

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        self.passes.append([copy.shape for copy in copies])
        points = np.tile([1.0, 2.0], (1, 5, 1))
        return [Faces(np.array([[1.0, 2.0, 3.0, 4.0]]), copy[:1, 0, 0] / 100, points) for copy in copies]


def test_copies_go_in_bounded_passes_and_come_back_in_order(monkeypatch):
    monkeypatch.setattr(registry, "PIXELS_A_PASS", {"cpu": 250})
    detector = MarkDetector(longest_side=10)
    found = detector([np.full((20, 20, 3), mark, np.uint8) for mark in range(5)])
    assert detector.passes == [[(10, 10, 3)] * 2, [(10, 10, 3)] * 2, [(10, 10, 3)]]
    assert [faces.scores[0] for faces in found] == [0, 0.01, 0.02, 0.03, 0.04]
    assert all(faces.boxes_xyxy.tolist() == [[2, 4, 6, 8]] for faces in found)
    assert all((faces.landmarks == [2, 4]).all() for faces in found)
    assert detector([]) == []


@pytest.fixture
def toys(monkeypatch) -> None:
    """Two detectors more, for one test."""
    monkeypatch.setattr(registry, "_detectors", dict(registry._detectors))
    register_detector(ToyDetector)
    register_detector(HungryDetector)


@pytest.mark.usefixtures("toys")
def test_a_detector_from_outside_appears_in_help_errors_and_a_run(small_dataset, tmp_path, capsys):
    for command in ("faces", "bench faces"):
        with pytest.raises(SystemExit):
            run(*command.split(), "--help")
        assert re.search(r"--detector\s+\{mtcnn,retinaface,yunet,toy,hungry\}", capsys.readouterr().out)
    with pytest.raises(ValueError, match="expected one of mtcnn, retinaface, yunet, toy, hungry, found 'dlib'"):
        get_detector("dlib")

    run("index", "dfdc", "--root", small_dataset, "--out", tmp_path / "videos.csv")
    run("faces", "--videos", tmp_path / "videos.csv", "--out", tmp_path / "faces", "--splits", "test",
        "--num-frames", 1, "--size", 32, "--jobs", 1, "--detector", "toy",
        "--alignment", "box", "--margin", 0.9, "--shift", 0.1)  # fmt: skip
    recipe = read_recipe(tmp_path / "faces")
    assert (recipe.detector, recipe.threshold, recipe.weights) == ("toy", 0.6, "")
    assert (recipe.alignment, recipe.margin, recipe.shift) == ("box", 0.9, 0.1)
    faces = FACES.read(tmp_path / "faces/faces.parquet")
    assert set(faces["score"]) == {0.8}


@pytest.mark.usefixtures("toys")
def test_only_a_detector_that_needs_weights_is_asked_for_them(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    settings = {"device": "cpu", "threshold": None}
    assert extraction_settings(detector="toy", weights=None, **settings).load_detector().threshold == 0.6
    hungry = extraction_settings(detector="hungry", weights=tmp_path / "weights", **settings)
    assert hungry.load_detector().weights == tmp_path / "weights"
    with pytest.raises(ValueError, match=r"the detector toy needs no weights file, found .*weights. Leave it out"):
        extraction_settings(detector="toy", weights=tmp_path / "weights", **settings)
    with pytest.raises(
        ValueError, match=r"hungry needs .*with anything, or take a detector without one \(mtcnn, toy\)"
    ):
        extraction_settings(detector="hungry", weights=None, **settings)


@pytest.mark.usefixtures("toys")
def test_a_name_is_registered_once_and_its_class_can_be_imported():
    register_detector(ToyDetector)
    with pytest.raises(ValueError, match="detector 'toy': expected a new name"):
        register_detector(type("Other", (ToyDetector,), {}))
    with pytest.raises(ValueError, match=r"that worker processes can import, found one of __main__"):
        register_detector(type("Mine", (ToyDetector,), {"name": "mine", "__module__": "__main__"}))
    assert detector_names() == ("mtcnn", "retinaface", "yunet", "toy", "hungry")


def test_a_detector_is_loaded_once_and_every_one_has_a_default_threshold():
    mtcnn = get_detector("mtcnn")
    assert load_detector(mtcnn, threshold=0.9, device="cpu") is load_detector(mtcnn, threshold=0.9, device="cpu")
    assert load_detector(mtcnn, threshold=0.95, device="cpu").threshold == 0.95
    thresholds = {name: get_detector(name).default_threshold for name in detector_names()}
    assert thresholds == {"mtcnn": 0.9, "retinaface": 0.7, "yunet": 0.9}
    assert CropRecipe().threshold == thresholds[CropRecipe().detector]


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("retina", None, ValueError, "expected one of mtcnn, retinaface, yunet, found 'retina'"),
        ("retinaface", None, ValueError, "the detector retinaface.*Pass --weights FILE"),
        ("mtcnn", "some.pth", ValueError, "the detector mtcnn needs no weights file, found some.pth"),
        ("retinaface", "absent.pth", FileNotFoundError, "absent.pth: no such weights file"),
    ],
    ids=["unknown", "no weights", "too many", "absent"],
)
def test_what_cannot_be_loaded_says_what_to_do(name, weights, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_detector(get_detector(name), threshold=0.9, device="cpu", weights=weights and Path(weights))


def test_the_digest_is_the_beginning_of_sha256(tmp_path):
    """FIPS 180-2, example B.1, has that of "abc"."""
    (tmp_path / "weights").write_bytes(b"abc")
    assert weights_digest(tmp_path / "weights") == "ba7816bf8f01cfea"
    (tmp_path / "weights").write_bytes(bytes(3_000_000))
    assert weights_digest(tmp_path / "weights") == hashlib.sha256(bytes(3_000_000)).hexdigest()[:16]
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        weights_digest(tmp_path / "absent")
