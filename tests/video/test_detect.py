"""Face detectors: MTCNN against its package on a real portrait, the second pass, coordinates, clear errors."""

import hashlib

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from facenet_pytorch import MTCNN

from multiattn.video.detectors import search as face_search
from multiattn.video.detectors.mtcnn import Candidates, cut_patches
from multiattn.video.detectors.registry import DEFAULT_THRESHOLDS, MtcnnDetector, load_detector, weights_digest
from multiattn.video.detectors.search import Faces, search_copies, search_size
from multiattn.video.extraction.scan import pairwise_iou
from sums import machine_was_measured

CPU = torch.device("cpu")
LANDMARKS = np.array([[203.5, 101], [246.5, 103.5], [225, 128], [204, 139.5], [243, 141]])
"""Of the portrait, read off the enlarged picture."""


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """(512, 512, 3) uint8 RGB, one woman, a face of about 85 x 110 pixels."""
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


def two_people(portrait: np.ndarray) -> np.ndarray:
    """(512, 1024, 3): the portrait and its mirror image."""
    return np.concatenate([portrait, portrait[:, ::-1]], axis=1)


def pixels_apart() -> float:
    """By which a face may differ with the batch and the threads."""
    return 0.0 if machine_was_measured() else 0.01


def shrunk(image: np.ndarray, width: int, height: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def test_the_landmarks_lie_where_the_face_is(detector, portrait):
    (faces,) = detector([portrait])
    assert len(faces) == 1
    np.testing.assert_allclose(faces.landmarks[0], LANDMARKS, atol=4)
    left, top, right, bottom = faces.boxes_xyxy[0]
    (x_min, y_min), (x_max, y_max) = LANDMARKS.min(axis=0), LANDMARKS.max(axis=0)
    assert left < x_min < x_max < right and top < y_min < y_max < bottom
    assert 70 < right - left < 100 and 90 < bottom - top < 130
    assert 0.99 < faces.scores[0] <= 1


@pytest.mark.parametrize(
    "size_wh",
    [
        pytest.param((512, 512), id="as it is"),
        pytest.param((501, 251), id="odd"),
        pytest.param((640, 480), id="the bound"),
        pytest.param((128, 128), id="small"),
    ],
)
def test_faces_are_those_of_the_package(portrait, detector, size_wh):
    """facenet-pytorch's own cascade, on the same pixels."""
    image = cv2.resize(two_people(portrait), size_wh, interpolation=cv2.INTER_AREA)
    boxes, scores, landmarks = MTCNN(keep_all=True, min_face_size=32).detect(image, landmarks=True)
    sure = np.flatnonzero((scores.astype(float) >= 0.9) if boxes is not None else [])
    (faces,) = detector([image])
    assert len(sure) == len(faces)
    if len(faces):
        iou = pairwise_iou(boxes[sure].astype(float), faces.boxes_xyxy)
        match = iou.argmax(axis=1)
        assert sorted(match) == list(range(len(faces))) and iou.max(axis=1).min() > 0.85
        side = (faces.boxes_xyxy[:, 2] - faces.boxes_xyxy[:, 0]).min()
        np.testing.assert_allclose(faces.landmarks[match], landmarks[sure].astype(float), atol=0.05 * side)
        np.testing.assert_allclose(faces.scores[match], scores[sure].astype(float), atol=0.02)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_gives_what_each_frame_gives_alone(detector, portrait, thread_setter, threads):
    two = two_people(portrait)
    frames = [two, np.zeros_like(two), two[:, ::-1].copy(), np.roll(two, 40, axis=1), two, two, two]
    together = detector(frames)
    assert [len(faces) for faces in together] == [2, 0, 2, 2, 2, 2, 2]
    thread_setter(threads)
    for frame, faces in zip(frames[:4], together, strict=False):
        (alone,) = detector([frame])
        np.testing.assert_allclose(faces.boxes_xyxy, alone.boxes_xyxy, rtol=0, atol=pixels_apart())
        np.testing.assert_allclose(faces.landmarks, alone.landmarks, rtol=0, atol=pixels_apart())


def test_large_frames_are_searched_small_and_answered_in_their_own_pixels(detector, portrait):
    (faces,) = detector([shrunk(two_people(portrait), 640, 320)])
    (large,) = detector([cv2.resize(two_people(portrait), (1280, 640), interpolation=cv2.INTER_NEAREST)])
    assert pairwise_iou(faces.boxes_xyxy * 2, large.boxes_xyxy).max(axis=1).min() > 0.9
    assert large.boxes_xyxy.dtype == np.float64 and large.landmarks.shape == (2, 5, 2)


def test_the_best_face_comes_first(detector, portrait):
    worse = two_people(portrait)
    worse[:, :512] = cv2.GaussianBlur(worse[:, :512], (0, 0), 5)
    (faces,) = detector([worse])
    assert len(faces) == 2 and faces.scores[0] > faces.scores[1]
    assert faces.boxes_xyxy[0, 0] > 512 > faces.boxes_xyxy[1, 0]


@pytest.mark.parametrize("thorough", [False, True])
@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.zeros((72, 96, 3), np.uint8), id="black"),
        pytest.param(np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8), id="noise"),
        pytest.param(np.full((1, 1, 3), 9, np.uint8), id="one pixel"),
        pytest.param(np.full((2, 700, 3), 200, np.uint8), id="a line"),
        pytest.param(np.full((31, 31, 3), 128, np.uint8), id="smaller than any face"),
    ],
)
def test_frames_without_a_face_give_none(detector, image, thorough):
    for faces in detector([image, image], thorough=thorough):
        assert len(faces) == 0
        assert faces.boxes_xyxy.shape == (0, 4) and faces.landmarks.shape == (0, 5, 2)


@pytest.mark.parametrize("thorough", [False, True])
def test_no_frames_give_no_faces(detector, thorough):
    assert detector([], thorough=thorough) == []


def test_the_thorough_pass_finds_faces_too_small_for_the_first(detector, portrait):
    small = shrunk(portrait, 64, 64)  # a face of 11 x 14 pixels
    assert [len(faces) for faces in detector([small] * 2)] == [0, 0]
    for faces in detector([small] * 2, thorough=True):
        assert len(faces) == 1
        np.testing.assert_allclose(faces.landmarks[0], LANDMARKS / 8, atol=1)


def test_the_thorough_pass_asks_for_less_and_tells_the_true_score(portrait):
    """Blurred until the first pass, asked for 0.9999, finds nothing."""
    strict = MtcnnDetector(threshold=0.9999)
    blurred = cv2.GaussianBlur(portrait, (0, 0), 4)
    assert len(strict([blurred])[0]) == 0
    (faces,) = strict([blurred], thorough=True)
    assert len(faces) == 1 and 0.8 <= faces.scores[0] < 0.9999


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


def test_copies_go_in_bounded_passes_and_come_back_in_order(monkeypatch):
    """Each frame's "face" is its mark; it is found at (1, 2) of the half-size copy."""
    monkeypatch.setattr(face_search, "PIXELS_A_PASS", {"cpu": 250})
    passes = []

    def search(copies: list[np.ndarray]) -> list[Faces]:
        passes.append([copy.shape for copy in copies])
        points = np.tile([1.0, 2.0], (1, 5, 1))
        return [Faces(np.array([[1.0, 2.0, 3.0, 4.0]]), copy[:1, 0, 0] / 100, points) for copy in copies]

    images = [np.full((20, 20, 3), mark, np.uint8) for mark in range(5)]
    found = search_copies(images, (10, 10), search, CPU)
    assert passes == [[(10, 10, 3)] * 2, [(10, 10, 3)] * 2, [(10, 10, 3)]]
    assert [faces.scores[0] for faces in found] == [0, 0.01, 0.02, 0.03, 0.04]
    assert all(faces.boxes_xyxy.tolist() == [[2, 4, 6, 8]] for faces in found)
    assert all((faces.landmarks == [2, 4]).all() for faces in found)
    assert search_copies([], (10, 10), search, CPU) == []


def test_candidates_outside_their_image_are_dropped():
    """The package counts pixels from 1 and includes the last: (1, 1, 4, 3) are columns 0 to 3 and rows 0 to 2."""
    image = np.arange(10 * 8, dtype=np.uint8).reshape(8, 10, 1).repeat(3, axis=2)
    boxes = np.array([[1, 1, 4, 3], [-9, -9, -2, -2], [20, 2, 30, 9], [-5, 6, 1, 40]], dtype=np.float32)
    candidates = Candidates(np.zeros(4, np.int64), boxes, np.ones(4, np.float32))
    inside, patches = cut_patches([image], candidates, 24)
    assert inside.boxes_xyxy.tolist() == [[1, 1, 4, 3], [-5, 6, 1, 40]]
    assert patches.shape == (2, 24, 24, 3)
    assert (patches[0, 0, 0, 0], patches[0, -1, -1, 0]) == (0, 23)
    assert (patches[1, 0, 0, 0], patches[1, -1, -1, 0]) == (50, 70)


def test_a_detector_is_loaded_once():
    assert load_detector("mtcnn", threshold=0.9, device="cpu") is load_detector("mtcnn", threshold=0.9, device="cpu")
    assert load_detector("mtcnn", threshold=0.95, device="cpu").first_pass.threshold == 0.95


def test_every_detector_has_a_default_threshold():
    assert DEFAULT_THRESHOLDS == {"mtcnn": 0.9, "retinaface": 0.7}


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        pytest.param("retina", None, ValueError, "expected one of mtcnn, retinaface, found 'retina'", id="unknown"),
        pytest.param("retinaface", None, ValueError, "--detector retinaface.*Pass --weights FILE", id="no weights"),
        pytest.param("mtcnn", "some.pth", ValueError, "--weights.*brings its own, found some.pth", id="too many"),
        pytest.param("retinaface", "absent.pth", FileNotFoundError, "absent.pth: no such weights file", id="absent"),
    ],
)
def test_what_cannot_be_loaded_says_what_to_do(name, weights, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load_detector(name, threshold=0.9, device="cpu", weights=weights)


def test_the_digest_is_the_beginning_of_sha256(tmp_path):
    """Of "abc": FIPS 180-2, example B.1."""
    (tmp_path / "weights").write_bytes(b"abc")
    assert weights_digest(tmp_path / "weights") == "ba7816bf8f01cfea"
    (tmp_path / "weights").write_bytes(bytes(3_000_000))
    assert weights_digest(tmp_path / "weights") == hashlib.sha256(bytes(3_000_000)).hexdigest()[:16]
    with pytest.raises(FileNotFoundError, match="no such weights file"):
        weights_digest(tmp_path / "absent")
