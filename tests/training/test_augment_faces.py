"""The face's outline from five landmarks, and what is made black by them."""

import cv2
import numpy as np
import pytest

from multiattn.training.data.augment import Augmentation, CropContext
from multiattn.training.data.augment.faces import (
    FEATURES,
    HALVES,
    black_out,
    face_outline,
    feature_mask,
    half_face_mask,
    polygon_mask,
)
from multiattn.training.data.augment.steps import Draws
from multiattn.video.crops.recipe import TEMPLATE, CropRecipe, align_crop, crop_landmarks

SIZE = 200
FACE = (TEMPLATE * SIZE).astype(np.float32)
LEFT_EYE, RIGHT_EYE, NOSE, LEFT_MOUTH, RIGHT_MOUTH = FACE


def inside(mask: np.ndarray, point: np.ndarray) -> bool:
    x, y = np.round(point).astype(int)
    return bool(mask[y, x])


@pytest.mark.parametrize("forehead", [True, False])
def test_the_outline_holds_the_five_landmarks_and_stays_in_the_crop(forehead):
    outline = face_outline(FACE, forehead=forehead)
    mask = polygon_mask(outline, (SIZE, SIZE))
    assert all(inside(mask, point) for point in FACE)
    assert outline.min() > 0 and outline.max() < SIZE
    assert 0.1 < mask.mean() < 0.5


def test_the_forehead_adds_to_the_top_and_nowhere_else():
    brows, hairline = (polygon_mask(face_outline(FACE, forehead=f), (SIZE, SIZE)) for f in (False, True))
    only_brows = np.argwhere((brows == 1) & (hairline == 0))
    assert len(only_brows) < 0.01 * brows.sum()
    added = np.argwhere((hairline == 1) & (brows == 0))
    assert len(added) > 0.1 * brows.sum()
    assert added[:, 0].max() < LEFT_EYE[1]


@pytest.mark.parametrize(("degrees", "scale"), [(0, 0.5), (35, 1.0), (-80, 1.7), (180, 1.0)])
def test_the_outline_turns_and_grows_with_the_landmarks(degrees, scale):
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), degrees, scale)

    def moved(points: np.ndarray) -> np.ndarray:
        return points @ matrix[:, :2].T + matrix[:, 2]

    np.testing.assert_allclose(face_outline(moved(FACE)), moved(face_outline(FACE)), atol=0.02)


def test_the_outline_of_a_mirrored_face_is_mirrored():
    turned = FACE + np.array([[0, 0], [0, 0], [9, 0], [3, 0], [1, 0]], dtype=np.float32)
    mirrored = (turned * (-1, 1) + (SIZE, 0))[[1, 0, 2, 4, 3]]
    expected = face_outline(turned) * (-1, 1) + (SIZE, 0)
    one, other = (polygon_mask(outline, (SIZE, SIZE)) for outline in (face_outline(mirrored), expected))
    assert np.mean(one != other) < 0.02


def test_a_face_that_turns_is_narrower_on_the_side_its_nose_points_to():
    turned = FACE.copy()
    turned[2, 0] += 0.7 * (RIGHT_EYE[0] - NOSE[0])

    def reach(landmarks: np.ndarray) -> tuple[float, float]:
        outline, middle = face_outline(landmarks), (LEFT_EYE[0] + RIGHT_EYE[0]) / 2
        return middle - outline[:, 0].min(), outline[:, 0].max() - middle

    assert reach(turned)[1] < 0.8 * reach(FACE)[1]
    assert reach(turned)[0] > 0.9 * reach(FACE)[0]


@pytest.mark.parametrize("scale", [0.2, 0.9, 3.0])
def test_landmarks_of_a_frame_come_to_lie_where_the_crop_shows_them(scale):
    """A white disc on each landmark of the frame, cut by `align_crop`."""
    matrix = cv2.getRotationMatrix2D((0, 0), 20, 1 / scale)
    landmarks = FACE @ matrix[:, :2].T
    landmarks += 60 - landmarks.min(axis=0)
    side = int(landmarks.max()) + 80
    carried = crop_landmarks(CropRecipe(size=SIZE), SIZE, box_xyxy=np.zeros(4), landmarks=landmarks)
    for point, expected in zip(landmarks, carried, strict=True):
        frame = np.zeros((side, side, 3), np.uint8)
        cv2.circle(frame, tuple(round(float(v)) for v in point), max(2, round(4 / scale)), (255, 255, 255), -1)
        crop = align_crop(frame, landmarks, SIZE)[..., 0].astype(float)
        y, x = np.mgrid[:SIZE, :SIZE]
        found = np.array([(x * crop).sum(), (y * crop).sum()]) / crop.sum()
        np.testing.assert_allclose(found, expected, atol=max(0.6, 0.6 * scale))
    np.testing.assert_allclose(carried, FACE, atol=0.01)


@pytest.mark.parametrize(
    ("feature", "covered", "free"),
    [
        pytest.param("eyes", [LEFT_EYE, RIGHT_EYE, (LEFT_EYE + RIGHT_EYE) / 2], [LEFT_MOUTH, RIGHT_MOUTH], id="eyes"),
        pytest.param("mouth", [LEFT_MOUTH, RIGHT_MOUTH], [LEFT_EYE, RIGHT_EYE, NOSE], id="mouth"),
        pytest.param("nose", [NOSE, (LEFT_EYE + RIGHT_EYE) / 2], [LEFT_MOUTH, RIGHT_MOUTH, LEFT_EYE], id="nose"),
        pytest.param("none", [], list(FACE), id="none"),
    ],
)
def test_a_band_covers_its_feature_and_no_other(feature, covered, free):
    mask = feature_mask(FACE, feature, (SIZE, SIZE))
    assert all(inside(mask, point) for point in covered)
    assert not any(inside(mask, point) for point in free)
    assert mask.any() == bool(covered)


@pytest.mark.parametrize(("feature", "ends", "share"), [("eyes", FACE[:2], 1 / 4), ("mouth", FACE[3:], 1 / 3)])
def test_a_band_is_as_wide_as_published(feature, ends, share):
    mask = feature_mask(FACE, feature, (SIZE, SIZE))
    assert abs(mask[:, SIZE // 2].sum() - 2 * share * np.linalg.norm(ends[1] - ends[0])) <= 3


def test_a_picture_that_is_not_square_is_covered_in_its_own_shape():
    """The published code took height for width in one place."""
    mask = feature_mask(FACE + (150, 0), "eyes", (350, SIZE))
    assert mask.shape == (SIZE, 350)
    np.testing.assert_array_equal(mask[:, 150:], feature_mask(FACE, "eyes", (SIZE, SIZE)))


def test_two_halves_are_the_face_without_overlap_and_of_one_size():
    whole = polygon_mask(face_outline(FACE, forehead=False), (SIZE, SIZE))
    for one, other in (("upper", "lower"), ("left", "right")):
        halves = [half_face_mask(FACE, half, (SIZE, SIZE)).astype(int) for half in (one, other)]
        np.testing.assert_array_equal(halves[0] + halves[1], whole)
        assert 0.8 < halves[0].sum() / halves[1].sum() < 1.25
    assert inside(half_face_mask(FACE, "upper", (SIZE, SIZE)), LEFT_EYE)
    assert inside(half_face_mask(FACE, "left", (SIZE, SIZE)), LEFT_MOUTH)


def test_a_face_outside_the_picture_has_no_half():
    assert not half_face_mask(FACE + 5000, "upper", (SIZE, SIZE)).any()


def test_what_is_drawn_has_the_published_probabilities():
    """First place: 0.7 times eyes 1/2, mouth 1/4, nose 1/8, nothing 1/8; else with 0.2 one of four halves."""
    step, crop = black_out(features=0.7, halves=0.2), np.full((SIZE, SIZE, 3), 200, np.uint8)
    masks = {feature: feature_mask(FACE, feature, (SIZE, SIZE)) for feature in FEATURES}
    masks |= {half: half_face_mask(FACE, half, (SIZE, SIZE)) for half in HALVES}
    names = {(mask == 0).tobytes(): name for name, mask in masks.items()}
    context, total = CropContext(FACE), 2000
    drawn = [names[(step.change(crop, Draws(seed), context)[..., 0] > 0).tobytes()] for seed in range(total)]
    share = {name: drawn.count(name) / total for name in masks}
    expected = {"eyes": 0.35, "mouth": 0.175, "nose": 0.0875, "none": 0.0875 + 0.24} | dict.fromkeys(HALVES, 0.015)
    for name, probability in expected.items():
        assert abs(share[name] - probability) < 4 * np.sqrt(probability * (1 - probability) / total), name


@pytest.mark.parametrize("preset", ["selim", "strong"])
def test_without_landmarks_nothing_is_made_black(preset):
    crop = np.full((SIZE, SIZE, 3), 128, np.uint8)
    middle = np.s_[60:140, 60:140]
    augmentation = Augmentation(preset, SIZE)
    darkest = [
        min(int(augmentation(crop, seed, CropContext(landmarks))[middle].min()) for seed in range(40))
        for landmarks in (FACE, None)
    ]
    assert darkest[0] < 40 < darkest[1]
