"""Robustness: what each distortion does to a crop, and what the table says of runs under it."""

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from multiattn.evaluation.distortions import DISTORTIONS, distort
from multiattn.evaluation.robustness import detect_again
from multiattn.scoring.metrics import auc_interval, compare_auc
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.detectors.registry import Faces

SIDE, PAD = 192, 48


@pytest.fixture(scope="module")
def crop():
    """Smooth colours, an edge and some texture."""
    noise = np.random.default_rng(0).integers(0, 60, (SIDE, SIDE, 3))
    ramp = np.linspace(40, 160, SIDE)[:, None, None] + np.zeros((SIDE, SIDE, 3)) + (30, 0, -20)
    ramp[:, SIDE // 2 :] += 30
    return (ramp + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_every_level_changes_the_crop_alike_in_every_run_and_more_than_the_one_before(name, crop):
    before, away = crop.copy(), []
    for level in DISTORTIONS[name].levels:
        changed = distort(name, level, crop, "a/0.jpg")
        assert changed.shape == crop.shape and changed.dtype == np.uint8 and changed.flags.c_contiguous
        assert np.array_equal(changed, distort(name, level, crop, "a/0.jpg"))
        away.append(np.abs(changed.astype(float) - crop).mean())
    assert np.array_equal(crop, before), "the crop itself stays"
    assert away[0] > 0
    if name not in ("gamma", "jpeg"):  # brighter, then darker; 90 and 95 round alike
        assert away == sorted(away)


@pytest.mark.parametrize(
    ("name", "level"),
    [("shift", 0), ("larger box", 1), ("smaller box", 1), ("rotation", 0), ("resolution", SIDE), ("gamma", 1),
     ("contrast", 1), ("blocks", 0), ("downscaled", 1)],
)  # fmt: skip
def test_a_level_that_means_nothing_leaves_every_pixel(name, level, crop):
    assert np.array_equal(distort(name, level, crop, ""), crop)


def test_distortions_do_what_their_source_says(crop):
    grey = distort("saturation", 0, crop, "").astype(int)
    assert np.ptp(grey, axis=2).max() <= 1
    assert np.array_equal(distort("contrast", 0.6, crop, ""), (crop * np.float32(0.6)).astype(np.uint8))
    assert np.array_equal(distort("flip", 1, distort("flip", 1, crop, ""), ""), crop)
    covered = (distort("blocks", 16, np.zeros((SIDE, SIDE, 3), np.uint8), "") == 128).all(axis=2)
    assert 8 * 64 <= covered.sum() <= 16 * 64
    flat = np.full((256, 256, 3), 128, np.uint8)
    luma = cv2.cvtColor(distort("noise", 0.005, flat, ""), cv2.COLOR_RGB2YCrCb)[..., 0] / 255
    assert luma.var() == pytest.approx(0.005, rel=0.05)
    line = np.zeros((SIDE, SIDE, 3), np.uint8)
    line[:, SIDE // 2] = 255
    blurred = distort("blur", 21, line, "")[..., 0].astype(float)
    offsets = np.arange(SIDE) - SIDE // 2
    assert np.sqrt((blurred.sum(0) * offsets**2).sum() / blurred.sum()) == pytest.approx(21 / 6, rel=0.15)
    corners = np.zeros((SIDE, SIDE, 3), np.uint8)
    corners[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = 255
    assert (distort("smaller box", 0.5, corners, "") == 255).mean() > 0.95, "half the box is the inner square"


def test_a_face_is_found_again_and_cut_as_the_recipe_does(crop):
    class Fixed:
        def __call__(self, images, *, thorough=False):
            side = len(images[0])
            boxes = np.array([[0.0, 0, 4, 4], [PAD, PAD, PAD + SIDE, PAD + SIDE]])
            assert side == SIDE + 2 * PAD
            return [Faces(boxes, np.ones(2), np.zeros((2, 5, 2)))]

    plain = CropRecipe(size=SIDE, alignment="box", margin=1.0)
    assert np.array_equal(detect_again(Fixed(), plain, crop), crop), "the largest box is the crop itself"
    nothing = Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
    assert detect_again(lambda images, thorough=False: [nothing], plain, crop) is crop


def test_the_paired_interval_of_an_auc_is_that_of_delong():
    """Against the covariance of DeLong et al. (1988) by its definition over all pairs."""
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], (40, 60))
    a, b = (generator.normal(labels * 1.2, 1) for _ in range(2))
    a, b = 1 / (1 + np.exp(-a)), 1 / (1 + np.exp(-(0.5 * a + b)))
    placed = []
    for answers in (a, b):
        wins = (answers[labels == 1][:, None] > answers[labels == 0][None]).astype(float)
        placed.append((wins.mean(axis=1), wins.mean(axis=0)))
    variance = sum(np.var(placed[0][k] - placed[1][k], ddof=1) / len(placed[0][k]) for k in (0, 1))
    difference, interval = compare_auc(labels, a, b)
    assert difference == pytest.approx(roc_auc_score(labels, a) - roc_auc_score(labels, b))
    assert interval.standard_error == pytest.approx(np.sqrt(variance), rel=0.01)
    assert interval.low < difference < interval.high
    same, nothing = compare_auc(labels, a, a)
    assert (same, nothing.low, nothing.high) == (0, 0, 0)
    assert np.isnan(compare_auc(np.ones(9, int), a[:9], a[:9])[0]) and auc_interval(labels, a).is_known
