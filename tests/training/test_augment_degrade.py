"""Degradations by a strength, on a photograph of a face: nothing at 0, more above, the same for the same numbers."""

import itertools
import logging
import os

import av
import cv2
import numpy as np
import pytest
from skimage.data import astronaut

from multiattn.training.data.augment import Augmentation, CropContext, degrade, reencode
from multiattn.training.data.augment.degrade import DEGRADATIONS
from multiattn.training.data.augment.reencode import CODECS, Encoding, encoders
from multiattn.training.data.augment.steps import Draws

FACE = np.ascontiguousarray(astronaut()[24:184, 144:304])
SEEDS = range(8)
SIZES = (32, 33, 97)
WILD = Augmentation("wild", len(FACE))


def face(size: int) -> np.ndarray:
    return cv2.resize(FACE, (size, size), interpolation=cv2.INTER_AREA)


def degraded(name: str, strength: float, seed: int, crop: np.ndarray = FACE) -> np.ndarray:
    return DEGRADATIONS[name][0](crop, strength, np.random.default_rng(seed))


def psnr(picture: np.ndarray, crop: np.ndarray = FACE) -> float:
    """In dB; 99 where nothing differs."""
    return cv2.PSNR(picture, crop) if (picture != crop).any() else 99.0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DEGRADATIONS)
def test_any_side_and_strength_keeps_shape_and_dtype_and_the_crop_given(name, size):
    crop = face(size)
    for strength, seed in itertools.product((0.0, 0.01, 0.5, 1.0), SEEDS[:4]):
        result = degraded(name, strength, seed, crop)
        assert (result.shape, result.dtype) == ((size, size, 3), np.uint8)
    np.testing.assert_array_equal(crop, face(size))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_the_same_numbers_give_the_same_pixels(name):
    for seed in SEEDS[:3]:
        np.testing.assert_array_equal(degraded(name, 0.7, seed), degraded(name, 0.7, seed))


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_picture_is_nearly_whole_at_strength_0_and_loses_more_at_1_than_at_less(name):
    lossy = name in ("files", "video", "messenger")  # which halve the colours' resolution at any quality
    for seed in SEEDS:
        fidelity = [psnr(degraded(name, strength, seed)) for strength in (0, 0.3, 1)]
        assert fidelity[0] > (36 if lossy else 50)
        assert fidelity[0] > fidelity[1] > fidelity[2] + 1
        assert fidelity[2] > 7, "something of the face is left"


def test_saturation_and_curves_are_those_of_their_formulas():
    np.testing.assert_array_equal(degrade.with_curve(FACE, exponent=1.0), FACE)
    squared = degrade.with_curve(FACE, exponent=2.0, factor=0.5)
    assert np.abs(squared - 255 * 0.5 * (FACE / 255.0) ** 2).max() <= 0.5 + 1e-3
    grey = degrade.with_saturation(FACE, 0.0)
    assert np.ptp(grey, axis=2).max() <= 1
    assert np.abs(grey[..., 0] - FACE @ (0.299, 0.587, 0.114)).max() < 2
    assert np.abs(degrade.with_saturation(FACE, 1.0).astype(int) - FACE).max() <= 2


def test_blurs_keep_the_light_and_spread_a_point_as_far_as_they_say():
    point = np.zeros((65, 65, 3), np.uint8)
    point[32, 32] = 255
    disk = degrade.focus_blur(point, 4.0)[..., 0]
    y, x = np.nonzero(disk)
    assert np.hypot(x - 32, y - 32).max() < 5 and len(x) == pytest.approx(np.pi * 4**2, rel=0.35)
    line = degrade.moving_blur(point, 10.0, 0.0)[..., 0]
    assert np.flatnonzero(line.any(axis=1)).tolist() == [32]
    assert np.ptp(np.flatnonzero(line[32])) == pytest.approx(10, abs=1)
    upright = degrade.moving_blur(point, 10.0, np.pi / 2)[..., 0]
    np.testing.assert_allclose(upright, line.T, atol=1)
    for picture in (degrade.focus_blur(FACE, 4.0), degrade.moving_blur(FACE, 10.0, 1.0)):
        assert picture.mean() == pytest.approx(FACE.mean(), abs=1)


@pytest.mark.parametrize(("shot", "read"), [(0.01, 0.0), (0.0, 0.001), (0.004, 0.0005), (0.0, 0.0)])
def test_noise_has_the_variance_of_its_formula_in_linear_light(shot, read):
    grey = np.full((200, 200, 3), 150, np.uint8)
    noisy = degrade.sensor_noise(grey, shot, read, np.random.default_rng(1))
    light = (150 / 255) ** 2.2
    assert ((noisy / 255) ** 2.2).var() == pytest.approx(shot * light + read, rel=0.05, abs=2e-6)
    assert ((noisy / 255) ** 2.2).mean() == pytest.approx(light, abs=2e-3)


@pytest.mark.parametrize("codec", ["h264", "h265", "av1"])
def test_a_codec_encodes_its_own_bitstream_the_same_each_time_and_loses_more_at_a_higher_rate_factor(
    codec, monkeypatch
):
    if codec not in encoders():
        pytest.skip(f"PyAV {av.__version__} has no encoder for {codec}")
    created, create = [], av.CodecContext.create
    monkeypatch.setattr(av.CodecContext, "create", lambda *args: created.append(create(*args)) or created[-1])
    names = {"h264": "h264", "h265": "hevc", "av1": "av1"}
    finest, coarsest = CODECS[codec].crf
    scheduling = getattr(os, "sched_getscheduler", lambda _: None)
    before = scheduling(0)
    results = [reencode.reencode([FACE], Encoding(codec=codec, crf=crf)) for crf in (finest, coarsest, coarsest)]
    assert {context.codec.canonical_name for context in created} == {names[codec]}
    assert [context.is_encoder for context in created] == [True, False] * 3
    np.testing.assert_array_equal(results[1], results[2])
    assert scheduling(0) == before, "SVT-AV1 makes root's thread a real-time one"
    assert psnr(results[0]) > 36 and 20 < psnr(results[1]) < psnr(results[0]) - 5


def test_a_codec_that_is_missing_is_named_once_and_left_out(monkeypatch, caplog):
    monkeypatch.setitem(CODECS, "av1", reencode.Codec("libnone", "av1", (1, 2), {}))
    encoders.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            augmentation = Augmentation("wild", len(FACE))
            for seed in SEEDS:
                augmentation(FACE, seed)
            assert encoders() == ("h264", "h265")
        assert [record.getMessage() for record in caplog.records] == [
            f"PyAV {av.__version__} has no codec libnone: clips are not encoded with av1"
        ]
        monkeypatch.setattr(reencode, "CODECS", {})
        encoders.cache_clear()
        results = [Augmentation("wild", len(FACE))(FACE, seed) for seed in range(60)]  # without any there is no video
        assert len({result.tobytes() for result in results}) > 50
    finally:
        encoders.cache_clear()


def moved(seed: int) -> np.ndarray:
    return WILD.steps[0].change(FACE, Draws(seed), CropContext())


def test_three_crops_of_ten_are_moved_alone_and_all_of_them_at_strength_0():
    alone = [np.array_equal(WILD(FACE, seed, geometry_seed=seed), moved(seed)) for seed in range(200)]
    assert 0.2 < np.mean(alone) < 0.4
    for seed in range(40):
        np.testing.assert_array_equal(WILD(FACE, seed, CropContext(strength=0.0)), moved(seed))


def test_more_strength_changes_a_crop_more():
    def lost(strength: float) -> np.ndarray:
        return np.array([psnr(WILD(FACE, seed, CropContext(strength=strength)), moved(seed)) for seed in range(60)])

    weak, middle, strong = lost(0.1), lost(0.4), lost(1.0)
    degraded = strong < 99
    assert np.mean(weak[degraded] > middle[degraded]) > 0.9 < np.mean(middle[degraded] > strong[degraded])
    assert middle[degraded].mean() > strong[degraded].mean() + 3


def test_a_pair_is_degraded_alike_whatever_its_own_seeds_are():
    """Not only moved alike, as by other presets: a difference in noise or codec would tell the fake from its real."""
    for seed in range(30):
        one, other = (WILD(FACE, own, geometry_seed=seed) for own in (seed + 100, seed + 200))
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(WILD(FACE, 1, geometry_seed=3), WILD(FACE, 1, geometry_seed=4))
