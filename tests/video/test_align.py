"""Aligned crops: the transform against scikit-image, and where landmarks of a drawn face end up."""

import cv2
import numpy as np
import pytest
from skimage.transform import estimate_transform

from multiattn.video.crops.recipe import TEMPLATE, TEMPLATE_MARGIN, align_crop, similarity_transform


def moved(points: np.ndarray, *, degrees: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ rotation.T + shift


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


MOVES = [
    pytest.param({"degrees": 0, "scale": 1, "shift": (0, 0)}, id="nothing"),
    pytest.param({"degrees": 0, "scale": 1, "shift": (31.5, -8)}, id="shift"),
    pytest.param({"degrees": 0, "scale": 7.3, "shift": (0, 0)}, id="scale up"),
    pytest.param({"degrees": 0, "scale": 0.01, "shift": (0, 0)}, id="scale down"),
    pytest.param({"degrees": 30, "scale": 1, "shift": (0, 0)}, id="turn"),
    pytest.param({"degrees": 180, "scale": 2, "shift": (5, 5)}, id="upside down"),
    pytest.param({"degrees": -95, "scale": 431, "shift": (1000, 700)}, id="everything"),
]


@pytest.mark.parametrize("move", MOVES)
def test_a_moved_template_is_brought_back_exactly(move):
    landmarks = moved(TEMPLATE, **move)
    matrix = similarity_transform(landmarks, TEMPLATE)
    np.testing.assert_allclose(apply(matrix, landmarks), TEMPLATE, atol=1e-12)
    np.testing.assert_allclose(matrix, estimate_transform("similarity", landmarks, TEMPLATE).params[:2], atol=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_noisy_landmarks_give_the_least_squares_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    landmarks = moved(TEMPLATE, degrees=rng.uniform(-60, 60), scale=100, shift=(300, 200)) + rng.normal(0, 4, (5, 2))
    matrix = similarity_transform(landmarks, TEMPLATE * 380)
    expected = estimate_transform("similarity", landmarks, TEMPLATE * 380).params[:2]
    np.testing.assert_allclose(matrix, expected, atol=1e-9)


def test_two_points_are_enough():
    matrix = similarity_transform(np.array([[0, 0], [2, 0]]), np.array([[1, 1], [1, 5]]))
    np.testing.assert_allclose(matrix, [[0, -2, 1], [2, 0, 1]], atol=1e-15)


def test_mirrored_landmarks_are_not_mirrored_back():
    matrix = similarity_transform(TEMPLATE * [-1, 1], TEMPLATE)
    assert np.linalg.det(matrix[:, :2]) > 0


@pytest.mark.parametrize("points", [[[3.0, 4.0]], [[3.0, 4.0]] * 2, [[3.0, 4.0]] * 5], ids=["one", "two", "five"])
def test_landmarks_in_one_place_are_refused(points):
    with pytest.raises(ValueError, match="expected landmarks that differ"):
        similarity_transform(np.array(points), TEMPLATE[: len(points)])


def test_degenerate_landmarks_give_no_crop():
    with pytest.raises(ValueError, match="expected landmarks that differ"):
        align_crop(np.zeros((50, 50, 3), dtype=np.uint8), np.full((5, 2), 20.0), 64)


def test_the_template_is_a_face_in_the_middle_of_the_crop():
    left_eye, right_eye, nose, left_mouth, right_mouth = TEMPLATE
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < nose[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    np.testing.assert_allclose(left_eye, [0.378, 0.470], atol=1e-3)
    np.testing.assert_allclose(left_eye, (np.array([38.2946, 51.6963]) / 112 - 0.5) / TEMPLATE_MARGIN + 0.5)


def draw(size_wh: tuple[int, int], landmarks: np.ndarray, radius: float) -> list[np.ndarray]:
    """One picture a landmark: a bright disc on black, drawn with the pixels' centres at whole numbers."""
    width, height = size_wh
    y, x = np.mgrid[:height, :width]
    pictures = []
    for point in landmarks:
        inside = (x - point[0]) ** 2 + (y - point[1]) ** 2 <= radius**2
        pictures.append(np.repeat((inside * 255).astype(np.uint8)[..., None], 3, axis=2))
    return pictures


def centroid(image: np.ndarray) -> np.ndarray:
    weights = image[..., 0].astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize(
    ("size", "face", "size_wh", "degrees"),
    [
        pytest.param(112, 112, (300, 200), 0, id="scale 1"),
        pytest.param(112, 112, (300, 200), 25, id="scale 1, turned"),
        pytest.param(112, 40, (200, 160), -15, id="enlarged"),
        pytest.param(112, 240, (400, 300), 10, id="just below half"),
        pytest.param(64, 640, (1100, 900), 20, id="down to a tenth"),
        pytest.param(64, 901, (1201, 1001), -40, id="down to a tenth, odd sizes"),
    ],
)
def test_the_landmarks_of_a_drawn_face_end_up_on_the_template(size, face, size_wh, degrees):
    """`face` is the side of the square in the picture that becomes the crop."""
    centre = np.array(size_wh) / 2
    landmarks = moved(TEMPLATE - 0.5, degrees=degrees, scale=face, shift=tuple(centre))
    for picture, expected in zip(draw(size_wh, landmarks, 0.04 * face), TEMPLATE * size, strict=True):
        crop = align_crop(picture, landmarks, size)
        assert (crop.shape, crop.dtype) == ((size, size, 3), np.uint8)
        assert np.abs(centroid(crop) - expected).max() < 1.0


def test_heavy_down_scaling_averages_instead_of_skipping_pixels():
    """A checkerboard of single pixels becomes grey, not a pattern."""
    y, x = np.mgrid[:900, :900]
    board = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    crop = align_crop(board, moved(TEMPLATE - 0.5, degrees=0, scale=800, shift=(450, 450)), 64)
    assert crop.std() < 20
    assert abs(crop.mean() - 127.5) < 3


def test_what_lies_outside_the_image_repeats_its_border():
    image = np.full((40, 40, 3), 90, dtype=np.uint8)
    crop = align_crop(image, moved(TEMPLATE - 0.5, degrees=0, scale=200, shift=(0, 0)), 64)
    assert (crop == 90).all()


def test_the_image_given_is_left_as_it_was():
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    before = image.copy()
    align_crop(image, moved(TEMPLATE - 0.5, degrees=5, scale=250, shift=(150, 150)), 64)
    np.testing.assert_array_equal(image, before)


def test_a_whole_template_crop_is_the_image_itself():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), (5, 5), 1)
    np.testing.assert_array_equal(align_crop(image, TEMPLATE * 64, 64), image)
