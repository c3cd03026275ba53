"""MTCNN against its package: on a real portrait, the second pass, and the same bits whatever batch and threads."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from torch import nn

from multiattn.video.detectors.mtcnn import MtcnnDetector
from multiattn.video.detectors.mtcnn_cascade import (
    WEIGHTS,
    Candidates,
    LargestPixel,
    PatchNetwork,
    ProposalNetwork,
    cut_patches,
    read_weights,
)
from multiattn.video.extraction.extract import extraction_settings
from multiattn.video.extraction.scan import pairwise_iou
from sums import machine_was_measured

BATCHES = [1, 2, 3, 5, 7, 8, 9, 20]
PROPOSAL, REFINE, OUTPUT = read_weights()
PATCH_NETWORKS = [pytest.param("RNet", REFINE, 24, id="refine"), pytest.param("ONet", OUTPUT, 48, id="output")]
LANDMARKS = np.array([[203.5, 101], [246.5, 103.5], [225, 128], [204, 139.5], [243, 141]])
"""Landmarks of the portrait, read off the enlarged picture."""


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """(512, 512, 3) uint8 RGB, one woman, a face of about 85 x 110 pixels."""
    return skimage.data.astronaut()


@pytest.fixture(scope="module")
def package():
    """The code beside the weights, as a second opinion; nothing of the source uses it."""
    pytest.importorskip("facenet_pytorch", exc_type=ImportError)
    import facenet_pytorch.models.mtcnn

    return facenet_pytorch.models.mtcnn


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
def test_faces_are_those_of_the_package(portrait, package, detector, size_wh):
    """facenet-pytorch's own cascade, on the same pixels."""
    image = cv2.resize(two_people(portrait), size_wh, interpolation=cv2.INTER_AREA)
    boxes, scores, landmarks = package.MTCNN(keep_all=True, min_face_size=32).detect(image, landmarks=True)
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
    assert detector([], thorough=thorough) == []
    for faces in detector([image, image], thorough=thorough):
        assert len(faces) == 0
        assert faces.boxes_xyxy.shape == (0, 4) and faces.landmarks.shape == (0, 5, 2)


def test_the_thorough_pass_finds_faces_too_small_for_the_first(detector, portrait):
    small = shrunk(portrait, 64, 64)  # a face of 11 x 14 pixels
    assert [len(faces) for faces in detector([small] * 2)] == [0, 0]
    for faces in detector([small] * 2, thorough=True):
        assert len(faces) == 1
        np.testing.assert_allclose(faces.landmarks[0], LANDMARKS / 8, atol=1)


def test_the_thorough_pass_asks_for_less_and_gives_the_true_score(portrait):
    """Blurred until the first pass, asked for 0.9999, finds nothing."""
    strict = MtcnnDetector(threshold=0.9999)
    blurred = cv2.GaussianBlur(portrait, (0, 0), 4)
    assert len(strict([blurred])[0]) == 0
    (faces,) = strict([blurred], thorough=True)
    assert len(faces) == 1 and 0.8 <= faces.scores[0] < 0.9999


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


def images(*shape: int) -> torch.Tensor:
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return drawn.contiguous(memory_format=torch.channels_last)


def ours(network: nn.Module) -> nn.Module:
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def answers_of(network: nn.Module, frames: torch.Tensor) -> list[torch.Tensor]:
    answers = network(frames)
    return [answers] if isinstance(answers, torch.Tensor) else answers


@pytest.mark.parametrize("size_hw", [(12, 12), (12, 14), (46, 90)])
def test_the_proposal_network_is_the_packages(package, size_hw):
    frames = images(2, 3, *size_hw)
    with torch.inference_mode():
        offsets, probabilities = package.PNet().eval()(frames)
        answers = ours(ProposalNetwork(PROPOSAL))(frames)
    torch.testing.assert_close(answers[:, 1:], offsets, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.sigmoid(answers[:, 0]), probabilities[:, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize(("name", "state", "side"), PATCH_NETWORKS)
def test_the_patch_networks_are_the_packages(package, name, state, side, batch):
    patches = images(batch, 3, side, side)
    with torch.inference_mode():
        *expected, probabilities = getattr(package, name)().eval()(patches)
        scores, *answers = ours(PatchNetwork(state))(patches)
    torch.testing.assert_close(scores, probabilities[:, 1], atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(answers, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "size_hw"),
    [
        pytest.param(3, (22, 22), id="the last window cut off"),
        pytest.param(3, (23, 9), id="all windows whole"),
        pytest.param(3, (3, 4), id="one window"),
        pytest.param(2, (8, 8), id="pairs"),
    ],
)
def test_pooling_is_torchs(side, size_hw):
    features = images(2, 5, *size_hw)
    expected = nn.MaxPool2d(side, stride=2, ceil_mode=True)(features)
    assert torch.equal(LargestPixel(side)(features), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("network", "size_hw"),
    [
        pytest.param(lambda: ProposalNetwork(PROPOSAL), (12, 12), id="smallest proposals"),
        pytest.param(lambda: ProposalNetwork(PROPOSAL), (12, 22), id="a wide film's smallest proposals"),
        pytest.param(lambda: ProposalNetwork(PROPOSAL), (90, 70), id="proposals"),
        pytest.param(lambda: PatchNetwork(REFINE), (24, 24), id="refine"),
        pytest.param(lambda: PatchNetwork(OUTPUT), (48, 48), id="output"),
    ],
)
def test_an_answer_depends_on_its_image_alone(network, size_hw, thread_setter, threads):
    network, frames = ours(network()), images(max(BATCHES), 3, *size_hw)
    thread_setter(1)
    expected = answers_of(network, frames)
    thread_setter(threads)
    atol = 0.0 if machine_was_measured() else 1e-4
    for batch in BATCHES:
        for mine, all_of_them in zip(answers_of(network, frames[-batch:]), expected, strict=True):
            torch.testing.assert_close(mine, all_of_them[-batch:], rtol=0, atol=atol)


def test_the_weights_lie_in_any_folder_and_are_checked(tmp_path, monkeypatch):
    package = Path(importlib.util.find_spec("facenet_pytorch").submodule_search_locations[0])
    for name in WEIGHTS:
        shutil.copy(package / "data" / name, tmp_path)
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)  # neither to be found nor to be imported
    with pytest.raises(FileNotFoundError, match=r"--no-deps facenet-pytorch==2\.5\.3`, or name a folder with pnet\.pt"):
        MtcnnDetector()
    settings = {"detector": "mtcnn", "threshold": None, "device": "cpu"}
    found = extraction_settings(weights=tmp_path, **settings)
    assert found.recipe.weights == "" and found.load_detector().weights == tmp_path
    (tmp_path / "rnet.pt").write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"rnet\.pt: expected the file of SHA-256 bbb937de72efc9ef"):
        MtcnnDetector(weights=tmp_path)
    (tmp_path / "rnet.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"rnet\.pt"):
        MtcnnDetector(weights=tmp_path)


def test_naming_the_detectors_imports_no_torch():
    code = "import sys, multiattn.video.crops.recipe; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
