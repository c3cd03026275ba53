"""Self-blended images: a fake inside the face, its target outside, the same for the same seed."""

import cv2
import numpy as np
import pytest

from multiattn.training.data.augment import blend_target, self_blend
from multiattn.training.data.augment.faces import face_outline, polygon_mask
from multiattn.video.crops.recipe import TEMPLATE

SEEDS = range(40)


def picture(size: int = 160) -> np.ndarray:
    numbers = np.random.default_rng(5)
    blobs = cv2.resize(numbers.uniform(50, 205, (9, 9, 3)).astype(np.float32), (size, size), interpolation=3)
    return np.clip(blobs + numbers.normal(0, 5, (size, size, 3)), 0, 255).astype(np.uint8)


def landmarks(size: int = 160) -> np.ndarray:
    return (TEMPLATE * size).astype(np.float32)


def changed(crop: np.ndarray, seed: int, points: np.ndarray) -> np.ndarray:
    """(H, W) bool: where the fake differs from the real crop it was blended onto."""
    return (self_blend(crop, points, seed) != blend_target(crop, seed)).any(axis=2)


@pytest.mark.parametrize("size", [32, 57, 160, 300])
def test_a_fake_and_its_target_are_crops_of_the_same_shape(size):
    for seed in range(8):
        for result in (self_blend(picture(size), landmarks(size), seed), blend_target(picture(size), seed)):
            assert (result.shape, result.dtype) == ((size, size, 3), np.uint8)


def test_the_same_seed_gives_the_same_fake_and_leaves_the_crop_as_it_was():
    crop = picture()
    fakes = [self_blend(crop, landmarks(), seed) for seed in SEEDS]
    for seed in reversed(SEEDS):
        np.testing.assert_array_equal(self_blend(picture(), landmarks(), seed), fakes[seed])
    np.testing.assert_array_equal(crop, picture())
    assert len({fake.tobytes() for fake in fakes}) == len(SEEDS)


def test_outside_the_face_a_fake_is_its_target_and_inside_it_differs():
    """The face's outline, widened by what the source may move: 3 % of the side, and 5 % of its distance to the
    centre."""
    crop = picture()
    face = polygon_mask(face_outline(landmarks()), crop.shape[1::-1])
    reach = 2 * round(0.07 * crop.shape[0]) + 1
    around = cv2.dilate(face, np.ones((reach, reach), np.uint8)) > 0
    for seed in SEEDS:
        different = changed(crop, seed, landmarks())
        assert not different[~around].any()
        assert different[face > 0].mean() > 0.3


def test_half_of_the_targets_are_the_crop_itself_and_the_others_have_its_content():
    crop = picture()
    targets = [blend_target(crop, seed) for seed in range(200)]
    assert 75 < sum(np.array_equal(target, crop) for target in targets) < 125
    for target in targets[:40]:
        assert np.corrcoef(target.ravel().astype(float), crop.ravel())[0, 1] > 0.6, "its content stays"


def test_the_mask_follows_the_face():
    crop = picture()
    centers = []
    for shift in (-20, 20):
        points = landmarks() + (shift, 0)
        columns = np.concatenate([np.nonzero(changed(crop, seed, points))[1] for seed in range(12)])
        centers.append(columns.mean())
    assert 30 < centers[1] - centers[0] < 50


def test_a_quarter_of_the_masks_ends_at_the_brows():
    crop, size = picture(), 160
    hairline = face_outline(landmarks(), forehead=True)[:, 1].min()
    brows = face_outline(landmarks(), forehead=False)[:, 1].min()
    tops = np.array([np.nonzero(changed(crop, seed, landmarks()))[0].min() for seed in range(120)])
    low = np.mean(tops > (hairline + brows) / 2 + 0.06 * size)
    assert 0.1 < low < 0.45


def test_the_edge_is_soft():
    """A step of brightness between source and target is spread over several pixels, never one."""
    crop = np.full((160, 160, 3), 120, np.uint8)
    steps = []
    for seed in SEEDS:
        fake = self_blend(crop, landmarks(), seed).astype(int)
        depth = np.abs(fake - blend_target(crop, seed)).max()
        if depth >= 8:
            steps.append(np.abs(np.diff(fake, axis=0)).max() / depth)
    assert len(steps) > 10
    assert max(steps) < 0.5


@pytest.mark.parametrize("points", [landmarks() + 4000, landmarks() * 0.01], ids=["outside", "a dot"])
def test_landmarks_of_no_face_in_the_crop_are_refused(points):
    with pytest.raises(ValueError, match="expected landmarks of a face inside the crop"):
        self_blend(picture(), points, 1)
