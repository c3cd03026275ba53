"""Sizes that headers name, of pictures written by Pillow."""

import io

import pytest
from PIL import Image

from multiattn.runtime.crop_files import picture_size

SIZES = [(1, 1), (37, 41), (300, 16)]


def encoded(kind: str, size_wh: tuple[int, int], mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size_wh).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("size_wh", SIZES, ids=str)
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        pytest.param("JPEG", "RGB", {}, id="JPEG"),
        pytest.param("JPEG", "L", {"progressive": True}, id="progressive JPEG"),
        pytest.param("PNG", "RGBA", {}, id="PNG"),
        pytest.param("WEBP", "RGB", {"quality": 50}, id="lossy WebP"),
        pytest.param("WEBP", "RGB", {"lossless": True}, id="lossless WebP"),
        pytest.param("WEBP", "RGB", {"icc_profile": b"x" * 128}, id="extended WebP"),
    ],
)
def test_the_size_is_the_one_that_was_written(kind, mode, options, size_wh):
    content = encoded(kind, size_wh, mode, **options)
    assert picture_size(content) == size_wh
    assert picture_size(content[:1000]) == size_wh
    assert picture_size(content[:12]) is None


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xd9", encoded("BMP", (4, 4))], ids=repr)
def test_what_is_none_of_these_has_no_size(content):
    assert picture_size(content) is None
