"""Augmentation as a function of crop and seeds."""

import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest

from multiattn.training.data.augment import PRESETS, Augmentation, CropContext
from multiattn.training.data.augment.presets import POLICY
from multiattn.training.data.augment.steps import BELOW, OLDEST, Draws, require_albumentations
from multiattn.video.crops.recipe import TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(30)
SIZE = 48


def make_crop(size: int = SIZE) -> np.ndarray:
    y, x = np.mgrid[:size, :size] * (255 / size)
    return np.stack([x, y, (x + 255 - y) / 2], axis=2).astype(np.uint8)


def detailed_crop(size: int) -> np.ndarray:
    """Smooth blobs under fine noise, no two places alike; between 40 and 215."""
    numbers = np.random.default_rng(3)
    blobs = cv2.resize(numbers.uniform(40, 215, (7, 7, 3)).astype(np.float32), (size, size))
    return np.clip(blobs + numbers.normal(0, 12, (size, size, 3)), 40, 215).astype(np.uint8)


def everything_known(size: int) -> CropContext:
    crop = detailed_crop(size)
    return CropContext((TEMPLATE * size).astype(np.float32), lambda: [crop, crop])


def move(augmentation: Augmentation, picture: np.ndarray, geometry_seed: int) -> np.ndarray:
    """A picture, such as a mask (H, W) uint8 or a crop, moved as `geometry_seed` moves crops."""
    geometry = Draws(geometry_seed)
    for step in augmentation.steps:
        if step.moves:
            picture = step.change(picture, geometry, CropContext())
    return picture


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the grey values; a negative counts as its picture."""
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).ravel().astype(float) for picture in (one, other)]
    return abs(np.corrcoef(*grey)[0, 1]) if grey[0].std() > 0 else 0.0


@pytest.mark.parametrize("size", [32, 33, 112])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_crop_keeps_its_shape_and_dtype(preset, size):
    augmentation = Augmentation(preset, size)
    for seed in (*SEEDS, 2**31 - 2):  # the sampler's largest
        result = augmentation(make_crop(size), seed)
        assert (result.shape, result.dtype) == ((size, size, 3), np.uint8)


KINDS = {
    "none": 1,
    "paper": 2,
    "light": 25,
    "standard": 12,
    "wm": 12,
    "selim": 25,
    "ntech": 28,
    "strong": 20,
    "box": 28,
    "wild": 28,
}
"""Preset -> how many pictures, at least, it makes of one crop by `SEEDS`."""


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_seed_gives_the_same_pixels_in_any_order_and_others_give_others(preset):
    crop, augmentation, other = make_crop(), Augmentation(preset, SIZE), Augmentation(preset, SIZE)
    first = {seed: augmentation(crop, seed) for seed in SEEDS}
    for seed in reversed(SEEDS):
        np.testing.assert_array_equal(augmentation(crop, seed), first[seed])
        np.testing.assert_array_equal(other(crop, seed), first[seed])
    assert len({picture.tobytes() for picture in first.values()}) >= KINDS[preset]
    np.testing.assert_array_equal(crop, make_crop())  # the crop given is left as it was


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
def test_the_global_generators_are_neither_used_nor_moved(preset):
    context = everything_known(SIZE)
    augmentation = Augmentation(preset, SIZE)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    first = [augmentation(make_crop(), seed, context) for seed in SEEDS]
    np.random.seed(2)  # noqa: NPY002
    random.seed(2)
    states = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    for seed in SEEDS:
        np.testing.assert_array_equal(augmentation(make_crop(), seed, context), first[seed])
    np.testing.assert_array_equal(np.random.get_state()[1], states[0])  # noqa: NPY002
    assert random.getstate() == states[1]


def test_an_unknown_preset_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=f"{', '.join(PRESETS)}, found 'stronger'"):
        Augmentation("stronger", SIZE)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_says_what_it_needs_to_know(preset):
    augmentation = Augmentation(preset, SIZE)
    needs = preset in ("selim", "strong"), preset == "ntech"
    assert (augmentation.needs_landmarks, augmentation.needs_clip) == needs


ONE_COMPOSE = {
    "paper": [A.HorizontalFlip(p=0.5)],
    "standard": [
        A.HorizontalFlip(p=0.5),
        A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.3),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.3),
        A.OneOf([A.GaussNoise(std_range=(0.01, 0.04)), A.GaussianBlur(blur_limit=(3, 5))], p=0.2),
        A.ImageCompression(quality_range=(65, 80), p=0.3),
        A.ToGray(p=0.1),
    ],
    "light": [
        A.HorizontalFlip(p=0.5),
        A.Pad(padding=8, border_mode=cv2.BORDER_REFLECT_101),
        A.RandomCrop(height=SIZE, width=SIZE),
        A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=40, val_shift_limit=0, p=0.7),
        A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.7),
        A.CoarseDropout(
            num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), fill=0, p=0.3
        ),
    ],
}


@pytest.mark.parametrize("preset", ONE_COMPOSE)
def test_a_preset_that_moves_first_shows_what_one_compose_with_one_seed_shows(preset):
    """So the pixels of runs made before geometry had a seed of its own stay what they were."""
    augmentation, compose = Augmentation(preset, SIZE), A.Compose(ONE_COMPOSE[preset])
    for seed in range(100):
        compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        np.testing.assert_array_equal(augmentation(make_crop(), seed), compose(image=make_crop())["image"])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_geometry_follows_its_own_seed_whatever_the_other_seed_is(preset):
    """Of twelve ways to move the crop, the result resembles the one of its geometry seed most. A dark, erased or
    inverted draw may resemble another, so a few are let off."""
    size = 96
    augmentation, context, crop = Augmentation(preset, size), everything_known(size), detailed_crop(size)
    ways = [move(augmentation, crop, geometry) for geometry in range(12)]
    right = 0
    for geometry, way in enumerate(ways):
        for seed in range(100, 105):
            result = augmentation(crop, seed, context, geometry_seed=geometry)
            best = max(likeness(result, other) for other in ways)
            right += likeness(result, way) > best - 1e-9
    assert right >= (54 if preset == "ntech" else 58)


@pytest.mark.parametrize("preset", PRESETS)
def test_without_a_geometry_seed_the_seed_is_it(preset):
    augmentation, crop, context = Augmentation(preset, SIZE), detailed_crop(SIZE), everything_known(SIZE)
    for seed in SEEDS:
        expected = augmentation(crop, seed, context, geometry_seed=seed)
        np.testing.assert_array_equal(augmentation(crop, seed, context), expected)


@pytest.mark.parametrize("preset", ["paper", "light", "selim", "ntech", "strong", "box", "wild"])
def test_a_mask_is_moved_as_the_crop_is(preset):
    """A grey picture in three channels and its one-channel copy go the same way, to within interpolation's rounding."""
    augmentation = Augmentation(preset, 64)
    grey = detailed_crop(64)[..., 0]
    moved = [move(augmentation, grey, seed) for seed in range(20)]
    for seed, one in enumerate(moved):
        three = move(augmentation, np.repeat(grey[..., None], 3, axis=2), seed)
        assert np.abs(three[..., 0].astype(int) - one).max() <= 1
    assert len({one.tobytes() for one in moved}) > 1


@pytest.mark.parametrize("preset", ["wm", "selim", "ntech", "strong"])
def test_mirroring_and_pixel_changes_are_drawn_independently(preset):
    """With one sequence of numbers for both, crops would be changed only where they are mirrored, or never there."""
    augmentation, crop = Augmentation(preset, SIZE), detailed_crop(SIZE)
    mirrored, changed = [], []
    for seed in range(300):
        moved = move(augmentation, crop, seed)
        mirrored.append(likeness(moved, crop[:, ::-1]) > likeness(moved, crop))
        changed.append(not np.array_equal(augmentation(crop, seed), moved))
    mirrored, changed = np.array(mirrored), np.array(changed)
    assert abs(changed[mirrored].mean() - changed[~mirrored].mean()) < 0.17


def test_wm_leaves_half_of_the_crops_alone_and_mirrors_a_quarter():
    augmentation, crop = Augmentation("wm", SIZE), detailed_crop(SIZE)
    results = [augmentation(crop, seed) for seed in range(400)]
    alone = np.mean([np.array_equal(r, crop) or np.array_equal(r, crop[:, ::-1]) for r in results])
    mirrored = np.mean([likeness(r, crop[:, ::-1]) > likeness(r, crop) for r in results])
    # Half is left out; in the other half nothing is drawn with probability 0.8 * 0.8 * 0.8 * 0.4 * 0.9.
    assert abs(alone - (0.5 + 0.5 * 0.18)) < 0.08
    assert abs(mirrored - 0.25) < 0.07


def test_most_draws_of_strong_keep_the_fine_detail():
    """Where a forgery leaves its traces: what a blur of 1.5 pixels takes away, outside of what was made black. The
    picture's amplitudes fall as 1/frequency, as a photograph's do (Field 1987)."""
    size = 128
    augmentation, context = Augmentation("strong", size), everything_known(size)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))[..., None]
    spectrum = np.fft.fft2(np.random.default_rng(1).normal(size=(size, size, 3)), axes=(0, 1))
    picture = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / size), axes=(0, 1)).real
    crop = np.clip(128 + 45 * picture / picture.std(), 40, 215).astype(np.uint8)

    def detail(picture: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
        return grey - cv2.GaussianBlur(grey, (0, 0), 1.5)

    kept = []
    for seed in range(150):
        result = augmentation(crop, seed, context)
        seen = result.max(axis=2) > 20
        kept.append(np.corrcoef(detail(result)[seen], detail(move(augmentation, crop, seed))[seen])[0, 1])
    assert np.mean(np.array(kept) > 0.8) > 0.5
    assert np.mean(np.array(kept) > 0.5) > 0.9
    assert np.mean(np.array(kept) > 0.999) < 0.5, "and many are changed"


def test_the_policy_is_autoaugments_for_imagenet():
    """Against timm's own table: probabilities and magnitudes in its order."""
    from timm.data.auto_augment import auto_augment_policy_original

    expected = [
        [(operation.prob, operation.magnitude) for operation in row] for row in auto_augment_policy_original({})
    ]
    assert [[(p, magnitude) for _, p, magnitude in row] for row in POLICY] == expected


@pytest.mark.slow
def test_another_process_shows_the_same_pixels_and_the_import_asks_no_network():
    script = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise AssertionError('the import asked the network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "import multiattn.training.data.augment\n"
        "sys.path[:0] = sys.argv[1:]\nfrom test_augment import all_pixels; print(all_pixels())"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent)]
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    environment["PYTHONHASHSEED"] = "77"
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.strip() == all_pixels()


def all_pixels() -> str:
    """A digest of every preset's first draws."""
    digest = hashlib.sha256()
    for preset in PRESETS:
        augmentation = Augmentation(preset, 64)
        for seed in range(12):
            digest.update(augmentation(detailed_crop(64), seed, everything_known(64)).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("version", ["2.0.5", "2.0.8", "2.0.99", "2.0.5.post1"])
def test_versions_inside_the_bounds_are_taken(version):
    require_albumentations(version)


@pytest.mark.parametrize("version", ["1.4.24", "2.0.4", "2.1", "2.1.0", "3.0.0", "unknown", ""])
def test_versions_outside_the_bounds_are_refused_with_what_to_do(version):
    with pytest.raises(ValueError, match=rf"expected .* 2\.0\.5 and below 2\.1, found {version}.*pip install"):
        require_albumentations(version)


def test_the_bounds_are_those_of_the_requirements():
    line = re.search(r"^albumentations>=(\S+),<(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert line.groups() == (OLDEST, BELOW)
