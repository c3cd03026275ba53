"""The making of crops: the alignment against scikit-image and drawn faces; recipes stored, compared, refused."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
from skimage.transform import estimate_transform

from multiattn.runtime.layout import RECIPE_FILE
from multiattn.video.crops.recipe import (
    INTERPOLATION_NAME,
    TEMPLATE,
    TEMPLATE_MARGIN,
    TEMPLATE_NAME,
    VERSION,
    CropRecipe,
    align_crop,
    crop_landmarks,
    crop_transform,
    cut_crop,
    describe_difference,
    read_recipe,
    similarity_transform,
    write_recipe,
)


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


def test_heavy_down_scaling_averages_instead_of_skipping_pixels_and_leaves_the_image_as_it_was():
    """A checkerboard of single pixels becomes grey, not a pattern."""
    y, x = np.mgrid[:900, :900]
    board = np.repeat((((x + y) % 2) * 255).astype(np.uint8)[..., None], 3, axis=2)
    crop = align_crop(board, moved(TEMPLATE - 0.5, degrees=0, scale=800, shift=(450, 450)), 64)
    assert crop.std() < 20
    assert abs(crop.mean() - 127.5) < 3
    np.testing.assert_array_equal(board[..., 2], ((x + y) % 2) * 255)


def test_what_lies_outside_the_image_repeats_its_border():
    image = np.full((40, 40, 3), 90, dtype=np.uint8)
    assert (align_crop(image, moved(TEMPLATE - 0.5, degrees=0, scale=200, shift=(0, 0)), 64) == 90).all()


def test_a_whole_template_crop_is_the_image_itself():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), (5, 5), 1)
    np.testing.assert_array_equal(align_crop(image, TEMPLATE * 64, 64), image)


BOX = np.array([30.0, 20.0, 70.0, 70.0])
"""40 x 50 pixels around (50, 45)."""
POINTS = BOX[:2] + TEMPLATE * 40


@pytest.mark.parametrize(
    ("cut", "square"),
    [
        pytest.param({"margin": 1.0}, (25, 20, 75, 70), id="the longer side"),
        pytest.param({"margin": 1.2}, (20, 15, 80, 75), id="a margin"),
        pytest.param({"margin": 0.8, "shift": 0.05}, (30, 27, 70, 67), id="shifted down by 2 of 40"),
        pytest.param({"margin": 2.0, "shift": -0.5}, (0, -55, 100, 45), id="leaves the frame"),
    ],
)
@pytest.mark.parametrize("size", [40, 100, 380])
def test_a_box_recipe_carries_the_corners_of_its_square_to_the_corners_of_the_crop(cut, square, size):
    """Values of `square` by hand. Pixels are counted by their centres, so edges lie half a pixel before them."""
    recipe = CropRecipe(alignment="box", size=size, **cut)
    matrix = crop_transform(recipe, box_xyxy=BOX, landmarks=POINTS)
    corners = np.array(square, dtype=float).reshape(2, 2) - 0.5
    np.testing.assert_allclose(apply(matrix, corners), [[-0.5, -0.5], [size - 0.5, size - 0.5]], atol=1e-9)
    points = np.random.default_rng(0).uniform(0, 100, (20, 2))
    scale = size / (square[2] - square[0])
    np.testing.assert_allclose(apply(matrix, points), (points + 0.5 - square[:2]) * scale - 0.5, atol=1e-9)
    back = cv2.invertAffineTransform(matrix)
    np.testing.assert_allclose(apply(back, apply(matrix, points)), points, atol=1e-9)
    carried = crop_landmarks(recipe, size, box_xyxy=BOX, landmarks=POINTS)
    np.testing.assert_allclose(carried, apply(matrix, POINTS), atol=1e-4)


@pytest.mark.parametrize(("size", "face"), [(64, 64), (64, 40), (64, 300), (48, 301)])
def test_a_point_of_the_frame_lies_where_a_box_crop_shows_it(size, face):
    recipe = CropRecipe(alignment="box", size=size, margin=1.1, shift=0.04)
    landmarks = moved(TEMPLATE - 0.5, degrees=15, scale=face, shift=(230, 210))
    place = {
        "box_xyxy": np.array([230, 210, 230, 210]) + face / 2 * np.array([-0.8, -1, 0.8, 1]),
        "landmarks": landmarks,
    }
    for picture, expected in zip(
        draw((460, 420), landmarks, 0.05 * face), crop_landmarks(recipe, size, **place), strict=True
    ):
        assert np.abs(centroid(cut_crop(picture, recipe, **place)) - expected).max() < 0.5


def test_a_square_of_whole_pixels_is_copied_and_repeats_the_border_outside_the_frame():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    recipe = CropRecipe(alignment="box", size=40, margin=1.0)

    def cut(*box: float) -> np.ndarray:
        return cut_crop(image, recipe, box_xyxy=np.array(box), landmarks=POINTS)

    np.testing.assert_array_equal(cut(20, 10, 60, 50), image[10:50, 20:60])
    padded = np.pad(image, ((0, 40), (40, 0), (0, 0)), mode="edge")
    np.testing.assert_array_equal(cut(-15, 35, 25, 75), padded[35:75, 25:65])


def test_an_aligned_recipe_cuts_by_the_landmarks_alone():
    image = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    crop = cut_crop(image, CropRecipe(size=64), box_xyxy=np.zeros(4), landmarks=POINTS)
    np.testing.assert_array_equal(crop, align_crop(image, POINTS, 64))


@pytest.mark.parametrize("box", [(10, 10, 10, 10), (10, 10, 5, 5), (np.nan, 0, 9, 9)], ids=str)
def test_a_box_without_an_extent_is_refused(box):
    with pytest.raises(ValueError, match="expected a box with an extent"):
        cut_crop(np.zeros((50, 50, 3), np.uint8), CropRecipe(alignment="box"), box_xyxy=np.array(box), landmarks=POINTS)


VERSION_1 = {"num_frames": 16, "size": 224, "detector": "mtcnn", "threshold": 0.8, "jpeg_quality": 90}
VERSION_1["template"] = "arcface-5-point, margin 1.3"
"""A faces.json as the first version of `multiattn faces` wrote it."""
RETINAFACE = {"detector": "retinaface", "weights": "0123456789abcdef"}
FOREIGN = {"detector": "dlib", "template": "deepfakebench, dlib 81 points, margin 1.3", "size": 256}


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(CropRecipe(), id="defaults"),
        pytest.param(CropRecipe(num_frames=1, size=32, threshold=0.01, jpeg_quality=1), id="least"),
        pytest.param(CropRecipe(num_frames=10_000, size=4096, threshold=0.99, jpeg_quality=100), id="most"),
        pytest.param(
            CropRecipe(**RETINAFACE, detect_every=16, policy="forged-mask", reuse_original=True, fast_frames=True),
            id="everything else",
        ),
        pytest.param(CropRecipe(alignment="box", margin=0.5, shift=0.5), id="least box"),
        pytest.param(CropRecipe(alignment="box", margin=4.0, shift=-0.5), id="most box"),
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
        (
            {"weights": "0123456789abcdef"},
            "--weights: the detector mtcnn needs no weights file, found 0123456789abcdef",
        ),
        ({"detector": "retinaface"}, "--weights: the detector retinaface needs its weights file"),
        ({"version": 1}, "version: expected 2, found 1"),
        ({"alignment": "eyes"}, "--alignment: expected one of template, box, found 'eyes'"),
        ({"alignment": "box", "margin": 0.49}, "--margin: expected 0.5 to 4.0 sides of the box, found 0.49"),
        ({"alignment": "box", "margin": 4.1}, "--margin"),
        ({"alignment": "box", "margin": float("nan")}, "--margin"),
        ({"alignment": "box", "shift": -0.51}, "--shift: expected -0.5 to 0.5 sides of the square, found -0.51"),
        ({"margin": 1.2}, "--margin: expected 1.3 without --alignment box, found 1.2"),
        ({"shift": 0.1}, "--shift: expected 0 without --alignment box, found 0.1"),
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
            RETINAFACE,
            "detector: expected mtcnn, found retinaface; weights: expected , found 0123456789abcdef",
            id="another detector",
        ),
        pytest.param({"interpolation": "bicubic"}, f"expected {INTERPOLATION_NAME}, found bicubic", id="interpolation"),
        pytest.param({"size": 224}, "size: expected 380, found 224", id="size"),
        pytest.param(
            {"alignment": "box", "margin": 1.1, "shift": 0.05},
            "alignment: expected template, found box; margin: expected 1.3, found 1.1; shift: expected 0.0, found 0.05",
            id="box",
        ),
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
    with pytest.raises(
        ValueError, match=r"another program \(detector: expected 'mtcnn' or 'retinaface' or 'yunet', found 'dlib'"
    ):
        found.require_makeable()
    CropRecipe().require_makeable()
    for name in ("detector", "template", "interpolation"):
        assert name in CropRecipe(**{name: "else"}).foreign


def test_the_template_means_nothing_to_a_box_recipe():
    ours = CropRecipe(alignment="box", margin=0.8)
    theirs = dataclasses.replace(ours, template="another program's boxes")
    assert theirs.foreign == "" and describe_difference(ours, theirs) == ""
    assert "template" in describe_difference(ours, dataclasses.replace(theirs, alignment="template", margin=1.3))


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
