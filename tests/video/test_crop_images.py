"""Crops read from real files: what comes out, and what is refused instead of invented."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from multiattn.video.crop_images import CropImages, read_crop


def smooth(size: int) -> np.ndarray:
    """A colour gradient that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:size, :size] * (200 / size)
    return np.stack([x + 20, y + 20, (x + y) / 2], axis=2).astype(np.uint8)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 4)])
def test_a_crop_is_rgb_as_pil_reads_it(suffix, tolerance, tmp_path):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth(64)).save(path, quality=95)
    found = read_crop(path, 64)
    assert (found.shape, found.dtype) == ((64, 64, 3), np.uint8)
    assert np.abs(found.astype(int) - np.asarray(Image.open(path).convert("RGB")).astype(int)).max() <= tolerance


def test_a_larger_crop_is_averaged_down(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    by_hand = image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(read_crop(tmp_path / "a.png", 64) - by_hand).max() <= 0.5


@pytest.mark.parametrize(
    ("size_wh", "found"), [((63, 63), "63x63"), ((64, 80), "64x80"), ((80, 64), "80x64"), ((1, 1), "1x1")], ids=str
)
def test_a_crop_too_small_or_not_square_is_refused_with_the_command(size_wh, found, tmp_path):
    Image.new("RGB", size_wh).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"found {found}. Make the faces with `multiattn faces --size 64`") as caught:
        read_crop(tmp_path / "a.png", 64)
    assert str(tmp_path / "a.png") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0"], ids=["empty", "text", "start of a jpeg"])
def test_an_unreadable_crop_is_refused_with_its_path(content, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a readable image") as caught:
        read_crop(path, 64)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_crop_that_was_cut_off_is_refused_not_filled_up_with_grey(suffix, share, tmp_path):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="not a readable image"):
        read_crop(path, 64)


def test_a_crop_that_is_not_there_is_refused_with_its_path(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.jpg"):
        read_crop(tmp_path / "nothing.jpg", 64)


def test_the_data_set_gives_each_crop_by_its_number(tmp_path):
    paths = []
    for level in (10, 200):
        paths.append(tmp_path / f"{level}.png")
        Image.new("RGB", (32, 32), (level, 0, 0)).save(paths[-1])
    crops = CropImages(tmp_path, pd.Series([path.name for path in paths]), 32)
    assert len(crops) == 2
    assert [int(crops[index][0, 0, 0]) for index in range(2)] == [10, 200]
    assert tuple(crops[0].shape) == (32, 32, 3)


def test_an_empty_data_set_is_empty():
    assert len(CropImages(Path(), pd.Series(dtype=str), 32)) == 0
