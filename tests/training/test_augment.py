"""Augmentation as a function of crop and seed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from multiattn.training.augment import PRESETS, Augmentation

SOURCE = Path(__file__).resolve().parents[2] / "src"
SEEDS = range(30)


SIZE = 48


def make_crop(size: int = SIZE) -> np.ndarray:
    y, x = np.mgrid[:size, :size] * (255 / size)
    return np.stack([x, y, (x + 255 - y) / 2], axis=2).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 33, 112])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_crop_keeps_its_shape_and_dtype(preset, size):
    augmentation = Augmentation(preset, size)
    for seed in SEEDS:
        result = augmentation(make_crop(size), seed)
        assert (result.shape, result.dtype) == ((size, size, 3), np.uint8)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_seed_gives_the_same_pixels_in_any_order(preset):
    augmentation, other = Augmentation(preset, SIZE), Augmentation(preset, SIZE)
    first = {seed: augmentation(make_crop(), seed) for seed in SEEDS}
    for seed in reversed(SEEDS):
        np.testing.assert_array_equal(augmentation(make_crop(), seed), first[seed])
        np.testing.assert_array_equal(other(make_crop(), seed), first[seed])


@pytest.mark.parametrize(("preset", "least"), [("none", 1), ("paper", 2), ("light", 25), ("standard", 12)])
def test_other_seeds_give_other_pixels(preset, least):
    augmentation = Augmentation(preset, SIZE)
    assert len({augmentation(make_crop(), seed).tobytes() for seed in SEEDS}) >= least


@pytest.mark.parametrize("preset", ["light", "standard"])
def test_the_kinds_of_change_are_drawn_independently_of_each_other(preset):
    """albumentations' `Compose.set_random_seed` gives every transform the same seed, so all would draw the same number:
    a crop would be coloured, blurred and compressed only where it is mirrored, and all at once."""
    augmentation = Augmentation(preset, SIZE)
    crop = np.full((SIZE, SIZE, 3), (70, 60, 50), dtype=np.uint8)
    crop[:, SIZE // 2 :] += 90
    results = [augmentation(crop, seed).astype(float) for seed in range(300)]
    changed = [not np.array_equal(result, crop) and not np.array_equal(result, crop[:, ::-1]) for result in results]
    mirrored = [result[:, :12].mean() > result[:, -12:].mean() for result in results]
    assert np.mean(changed) > 0.6
    assert 0.35 < np.mean(np.array(mirrored)[changed]) < 0.65
    coloured = [abs(result[..., 0] - result[..., 2] - 20).mean() > 3 for result in results]
    assert 0.35 < np.mean(np.array(mirrored)[coloured]) < 0.65


def test_none_changes_nothing():
    for seed in SEEDS:
        np.testing.assert_array_equal(Augmentation("none", SIZE)(make_crop(), seed), make_crop())


def test_paper_is_a_mirror_half_of_the_time_and_nothing_else():
    augmentation, crop = Augmentation("paper", SIZE), make_crop()
    mirrored = [np.array_equal(augmentation(crop, seed), crop[:, ::-1]) for seed in range(200)]
    same = [np.array_equal(augmentation(crop, seed), crop) for seed in range(200)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


@pytest.mark.parametrize("preset", PRESETS)
def test_the_crop_given_is_left_as_it_was(preset):
    crop = make_crop()
    for seed in SEEDS:
        Augmentation(preset, SIZE)(crop, seed)
    np.testing.assert_array_equal(crop, make_crop())


def test_the_largest_seed_of_the_sampler_is_accepted():
    Augmentation("standard", SIZE)(make_crop(), 2**31 - 2)
    Augmentation("standard", SIZE)(make_crop(), 0)


def test_the_global_generators_are_neither_used_nor_moved():
    np.random.seed(1)  # noqa: NPY002
    first = Augmentation("standard", SIZE)(make_crop(), 5)
    np.random.seed(2)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.testing.assert_array_equal(Augmentation("standard", SIZE)(make_crop(), 5), first)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_an_unknown_preset_is_refused():
    with pytest.raises(KeyError, match="strong"):
        Augmentation("strong", SIZE)


def test_importing_it_asks_no_network():
    script = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('the import asked the network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        "import multiattn.training.augment"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
