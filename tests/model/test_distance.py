"""Distances of faces: Mahalanobis on the scale of held-out crops, and words from simple statistics."""

import cv2
import numpy as np
import pytest
import torch

from multiattn.model.distance import (
    NUM_WORDS,
    PIXEL_SHRINKAGE,
    SHRINKAGE,
    STATISTICS,
    FaceDistance,
    Faces,
    fit_distance,
    pixel_statistics,
)

NUM_PIXELS = 31


def made_faces(count: int, seed: int, *, size: float = 100.0) -> Faces:
    generator = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(4, 4))
    features, pixels = generator.normal(size=(count, 4)) @ mixing, generator.normal(5, 1, size=(count, NUM_PIXELS))
    return Faces(features, pixels, size + generator.normal(size=count))


def picture(seed: int = 0) -> np.ndarray:
    """(64, 64, 3) uint8, with detail of every size."""
    generator = np.random.default_rng(seed)
    layers = [cv2.resize(generator.normal(0, 25, (side, side, 3)), (64, 64)) for side in (4, 8, 16, 32, 64)]
    return (128 + sum(layers)).clip(0, 255).astype(np.uint8)


def compressed(image: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def noisy(image: np.ndarray, deviation: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, deviation, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


def mahalanobis_squares(training: np.ndarray, held_out: np.ndarray, shrunk: np.ndarray) -> np.ndarray:
    centred = held_out - training.mean(axis=0)
    return np.einsum("ij,jk,ik->i", centred, np.linalg.inv(shrunk), centred)


def test_held_out_crops_lie_at_0_in_the_median_and_at_1_in_the_99th_percentile_of_a_mahalanobis_distance():
    training, held_out = made_faces(400, 1), made_faces(1000, 2)
    of_features = np.cov(training.features, rowvar=False)
    mean_variance = np.trace(of_features) / 4 * np.eye(4)
    of_pixels = np.cov(training.pixels, rowvar=False)
    deviation = training.pixels.std(axis=0)
    squares = [
        mahalanobis_squares(*pair, shrunk)
        for pair, shrunk in (
            ((training.features, held_out.features), (1 - SHRINKAGE) * of_features + SHRINKAGE * mean_variance),
            (
                (training.pixels, held_out.pixels),
                (1 - PIXEL_SHRINKAGE) * of_pixels + PIXEL_SHRINKAGE * np.diag(deviation**2),
            ),
        )
    ]
    raw = np.sqrt(sum(values / np.median(values) for values in squares))
    expected = (raw - np.median(raw)) / (np.quantile(raw, 0.99) - np.median(raw))
    fitted = fit_distance(training, held_out, {})
    found = fitted.squares(*(torch.from_numpy(part).float() for part in held_out[:2]))
    found = ((found * fitted.shares).sum(dim=1).sqrt() - fitted.scale[0]) / (fitted.scale[1] - fitted.scale[0])
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("side", [32, 64, 75])
def test_the_statistics_of_flat_and_small_pictures_are_numbers(side):
    crops = torch.stack([torch.full((side, side, 3), level, dtype=torch.uint8) for level in (0, 200)])
    found = pixel_statistics(crops)
    assert found.shape == (2, NUM_PIXELS) and found.isfinite().all()


@pytest.mark.parametrize(
    ("change", "statistic", "sign"),
    [
        pytest.param(lambda image: cv2.GaussianBlur(image, (0, 0), 3), "sharpness", -1, id="blur"),
        pytest.param(lambda image: image // 4, "brightness", -1, id="dark"),
        pytest.param(lambda image: 96 + image // 4, "contrast", -1, id="pale"),
        pytest.param(lambda image: cv2.GaussianBlur(image, (0, 0), 3), "smooth area", 1, id="smooth"),
        pytest.param(lambda image: compressed(image, 3), "block edges", 1, id="blocky"),
        pytest.param(lambda image: noisy(image, 40), "noise", 1, id="noisy"),
    ],
)
def test_each_statistic_tells_its_fault(change, statistic, sign):
    column = list(STATISTICS).index(statistic)
    crops = torch.from_numpy(np.stack([picture(), change(picture())]))
    before, after = pixel_statistics(crops)[:, column]
    assert sign * (after - before) > 0.05 * abs(before)


def test_reasons_are_the_words_of_what_held_out_faces_do_not_show_the_most_unusual_first():
    fitted = fit_distance(made_faces(100, 1), made_faces(100, 2), {})
    usual = np.full(NUM_WORDS + 1, 5.0)
    usual[-1] = 100.0
    small, dark_and_small, less_noise = usual.copy(), usual.copy(), usual.copy()
    small[-1] = 20.0
    dark_and_small[[1, -1]] = -30.0, 90.0
    less_noise[5] = -30.0
    rows = np.stack([usual, small, dark_and_small, less_noise])
    assert fitted.reasons(rows) == ["", "small", "dark, small", ""]
    assert fitted.reasons(rows[:0]) == []


def test_faces_of_unknown_size_give_no_reason_by_it():
    fitted = fit_distance(made_faces(100, 1, size=np.nan), made_faces(100, 2, size=np.nan), {})
    assert fitted.reasons(np.r_[np.full(NUM_WORDS, 5.0), 3.0][None]) == [""]


def test_a_saved_distance_measures_the_same_and_another_file_is_refused(tmp_path):
    fitted = fit_distance(made_faces(100, 1), made_faces(100, 2), {"weights": "abc"})
    path = tmp_path / "distance.safetensors"
    fitted.save(path)
    loaded = FaceDistance.load(path)
    assert loaded.notes["weights"] == "abc" and loaded.notes["held_out_crops"] == "100"
    features, crops = torch.randn(3, 4), torch.from_numpy(np.stack([picture(seed) for seed in range(3)]))
    for one, other in zip(fitted.measure(features, crops), loaded.measure(features, crops), strict=True):
        assert torch.equal(one, other)
    fitted.notes["version"] = "0"
    fitted.save(path)
    with pytest.raises(ValueError, match="--fit-distance"):
        FaceDistance.load(path)
