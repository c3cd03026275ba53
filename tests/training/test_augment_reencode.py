"""A clip through H.264 and back: the last frame, the same every time, worse the more it is compressed."""

import cv2
import numpy as np
import pytest

from multiattn.training.data.augment import EARLIER_CROPS, Augmentation, CropContext
from multiattn.training.data.augment.reencode import CRF, FPS, SCALE, TUNES, Encoding, reencode
from multiattn.training.data.augment.steps import Draws


def frame(seed: int, size: int = 96) -> np.ndarray:
    """Blobs and noise, another picture for every seed."""
    numbers = np.random.default_rng(seed)
    blobs = cv2.resize(numbers.uniform(40, 215, (6, 6, 3)).astype(np.float32), (size, size))
    return np.clip(blobs + numbers.normal(0, 8, (size, size, 3)), 0, 255).astype(np.uint8)


def error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("tune", TUNES)
def test_the_same_clip_gives_the_same_pixels(tune):
    clip = [frame(number) for number in range(3)]
    first = reencode(clip, Encoding(crf=30, tune=tune, fps=20, scale=0.7))
    np.testing.assert_array_equal(reencode(clip, Encoding(crf=30, tune=tune, fps=20, scale=0.7)), first)
    assert (first.shape, first.dtype) == ((96, 96, 3), np.uint8)


def test_the_result_is_the_last_frame():
    clip = [frame(number) for number in range(4)]
    result = reencode(clip, Encoding(crf=17))
    errors = [error(result, one) for one in clip]
    assert errors.index(min(errors)) == 3
    assert errors[3] < 8 < min(errors[:3])


def test_more_compression_and_a_lower_resolution_are_worse():
    clip = [frame(1)] * 2
    errors = [error(reencode(clip, Encoding(crf=crf)), clip[-1]) for crf in (17, 28, 39)]
    assert errors == sorted(errors) and errors[2] > 1.5 * errors[0]
    assert error(reencode(clip, Encoding(crf=17, scale=0.25)), clip[-1]) > 1.5 * errors[0]


@pytest.mark.parametrize("size", [16, 33, 50, 97])
@pytest.mark.parametrize("scale", [0.25, 0.61, 1.0])
def test_a_side_that_is_odd_or_small_comes_back_as_it_was(size, scale):
    assert reencode([frame(1, size)], Encoding(scale=scale)).shape == (size, size, 3)


def test_half_the_frame_rate_leaves_every_second_frame_out_but_not_the_last():
    a, b, c, other = (frame(number) for number in (1, 2, 3, 9))
    slow = Encoding(fps=15, crf=35)
    np.testing.assert_array_equal(reencode([a, other, c], slow), reencode([a, b, c], slow))
    assert not np.array_equal(reencode([other, b, c], slow), reencode([a, b, c], slow))
    full = Encoding(fps=30, crf=35)
    assert not np.array_equal(reencode([a, other, c], full), reencode([a, b, c], full))


def test_draws_lie_in_the_published_ranges_and_half_keep_rate_and_scale():
    drawn = [Encoding.draw(Draws(seed), crf=CRF, scale=SCALE) for seed in range(600)]
    assert {one.fps for one in drawn} == {*range(FPS[0], FPS[1] + 1), 30}
    assert {one.crf for one in drawn} == set(range(CRF[0], CRF[1] + 1))
    assert {one.tune for one in drawn} == set(TUNES)
    assert all(SCALE[0] <= one.scale <= SCALE[1] for one in drawn)
    for kept in (np.mean([one.fps == 30 for one in drawn]), np.mean([one.scale == 1 for one in drawn])):
        assert 0.42 < kept < 0.58


def test_the_clip_is_read_only_where_it_is_encoded():
    reads = []
    context = CropContext(clip=lambda: reads.append(1) or [frame(1)])
    augmentation, crop = Augmentation("ntech", 96), frame(2)
    for seed in range(200):
        augmentation(crop, seed, context)
    assert 75 < len(reads) < 125


def test_of_the_earlier_crops_no_more_than_needed_are_used():
    earlier = [frame(number) for number in range(10)]
    augmentation, crop = Augmentation("ntech", 96), frame(20)
    differ = 0
    for seed in range(20):
        whole = augmentation(crop, seed, CropContext(clip=lambda: earlier))
        last = augmentation(crop, seed, CropContext(clip=lambda: earlier[-EARLIER_CROPS:]))
        np.testing.assert_array_equal(whole, last)
        alone = augmentation(crop, seed, CropContext(clip=list))
        np.testing.assert_array_equal(augmentation(crop, seed), alone)
        differ += not np.array_equal(whole, alone)
    assert differ > 3, "but they are used"
