"""Crops read from real files: what comes out, and what is refused instead of invented."""

import hashlib
import io
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
from PIL import Image

from multiattn.video.crops import images as crop_images
from multiattn.video.crops.cache import CropCache
from multiattn.video.crops.images import CropImages, jpeg_size, names_digest, read_crop


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


@pytest.fixture(scope="module")
def face(tmp_path_factory) -> Path:
    """A photograph of a face, 380 pixels, as crops are stored."""
    path = tmp_path_factory.mktemp("face") / "a.jpg"
    Image.fromarray(skimage.data.astronaut()[:190, 130:320]).resize((380, 380), Image.Resampling.BICUBIC).save(
        path, quality=95, subsampling=0
    )
    return path


@pytest.mark.parametrize("size", [190, 126, 112, 95, 63, 48, 32])
def test_half_a_crop_or_less_is_decoded_smaller_and_looks_the_same(size, face):
    full = cv2.resize(cv2.imread(str(face), cv2.IMREAD_COLOR_RGB), (size, size), interpolation=cv2.INTER_AREA)
    difference = read_crop(face, size).astype(int) - full
    assert np.abs(difference).mean() < 1.6
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.2, "no channel is another's, none is brighter"
    shifted = np.roll(full, 1, axis=1).astype(int) - full
    assert np.abs(difference).mean() < np.abs(shifted).mean() / 3, "and nothing has moved"


@pytest.mark.parametrize("size", [380, 379, 256, 191, 189, 128])
def test_more_than_half_a_crop_or_barely_less_is_decoded_in_full(size, face):
    full = cv2.imread(str(face), cv2.IMREAD_COLOR_RGB)
    expected = full if size == 380 else cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(read_crop(face, size), expected)


@pytest.mark.parametrize(("stored", "size"), [(381, 120), (100, 20), (65, 32)])
def test_a_side_that_no_factor_divides_is_decoded_by_one_that_does(stored, size, tmp_path):
    """Half of an odd side would be half a pixel too wide."""
    Image.fromarray(smooth(stored)).save(tmp_path / "a.jpg", quality=95)
    full = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB)
    factor = 4 if stored == 100 else 1
    expected = cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)
    found = read_crop(tmp_path / "a.jpg", size)
    assert np.abs(found.astype(int) - expected).max() <= (0 if factor == 1 else 3)


@pytest.mark.parametrize(
    ("options", "size_wh"),
    [
        pytest.param({"format": "JPEG"}, (70, 40), id="baseline"),
        pytest.param({"format": "JPEG", "progressive": True}, (33, 65), id="progressive"),
        pytest.param({"format": "JPEG", "comment": b"\xff\xc0" * 50, "dpi": (72, 72)}, (1, 1), id="a comment first"),
        pytest.param({"format": "PNG"}, None, id="no jpeg"),
    ],
)
def test_the_size_of_a_jpeg_stands_in_its_header(options, size_wh):
    file = io.BytesIO()
    Image.new("RGB", size_wh or (8, 8)).save(file, **options)
    assert jpeg_size(file.getvalue()) == size_wh


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\xff\xd8text"], ids=str)
def test_a_header_without_a_size_has_none(content):
    assert jpeg_size(content) is None


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("names", [[], ["a"], ["a", "ä", "b/c"] * 3], ids=["none", "one", "many"])
@pytest.mark.parametrize("dtype", ["str", "object"])
def test_the_digest_of_names_is_that_of_their_lines(dtype, names, at_once, monkeypatch):
    monkeypatch.setattr(crop_images, "NAMES_AT_ONCE", at_once)
    series = pd.Series(names, dtype=dtype)
    for parts in ([series], [series, ["|"], series[1:]]):
        lines = [name for part in parts for name in part]
        assert names_digest(*parts) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_crop_in_the_cache_is_not_read_again(tmp_path):
    Image.fromarray(smooth(48)).save(tmp_path / "a.png")
    cache = CropCache(tmp_path / "cache", 5, 32)
    names = pd.Series(["missing.png", "a.png"])
    crops = CropImages(tmp_path, names, 32, cache=cache, cache_rows=np.array([0, 3]))
    first = crops.read(1)
    (tmp_path / "a.png").unlink()
    np.testing.assert_array_equal(crops.read(1), first)
    np.testing.assert_array_equal(first, cache.get(3))
    out = np.zeros((32, 32, 3), np.uint8)
    crops.fill(1, out)
    np.testing.assert_array_equal(out, first)
    with pytest.raises(ValueError, match=r"missing\.png"):
        crops.read(0)


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
