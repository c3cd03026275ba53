"""Pictures as videos of one frame."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import FrameReader, UnreadableVideoError
from multiattn.video.extraction import extract as still_image
from multiattn.video.extraction.extract import StillImage, is_image_name, open_frames, read_image

RAMP = np.stack(np.meshgrid(np.arange(60), np.arange(40)), axis=-1).astype(np.uint8)
PICTURE = np.concatenate([RAMP * 4, np.full((40, 60, 1), 200, np.uint8)], axis=-1)  # (40, 60, 3) RGB


@pytest.mark.parametrize(
    ("name", "is_image"),
    [
        ("a.jpg", True),
        ("a.JPEG", True),
        ("a.b.png", True),
        (".hidden.png", False),
        ("a.mp4", False),
        ("png", False),
        ("", False),
    ],
)
def test_a_picture_is_told_by_its_name(name, is_image):
    assert is_image_name(name) == is_image


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_a_picture_is_read_as_it_was_written(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(PICTURE).save(path)
    reader = StillImage(path)
    (frame,) = list(reader)
    assert (frame.index, frame.seconds, reader.num_frames, reader.message) == (0, 0.0, 1, "")
    np.testing.assert_array_equal(frame.image, PICTURE)


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_grey_transparent_and_deep_pictures_become_rgb(tmp_path, mode):
    path = tmp_path / "picture.png"
    if mode == "I;16":
        cv2.imwrite(str(path), PICTURE[..., 0].astype(np.uint16) << 8)
    else:
        Image.fromarray(PICTURE).convert(mode).save(path)
    image = read_image(path)
    assert (image.shape, image.dtype) == ((40, 60, 3), np.uint8)
    if mode == "RGBA":
        np.testing.assert_array_equal(image, PICTURE)


def test_a_picture_lying_on_its_side_is_turned_upright(tmp_path):
    """EXIF orientation 6: the top row of what is stored is the right side of the picture."""
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(path, exif=exif, quality=100, subsampling=0)
    image = read_image(path)
    assert image.shape == (60, 40, 3)
    assert np.abs(image.astype(int) - np.rot90(PICTURE, -1)).mean() < 3


@pytest.mark.parametrize(
    "content", [pytest.param(b"", id="empty"), pytest.param(b"no picture", id="text"), pytest.param(None, id="absent")]
)
def test_what_is_no_picture_is_unreadable(tmp_path, content):
    path = tmp_path / "picture.jpg"
    if content is not None:
        path.write_bytes(content)
    reader = StillImage(path)
    with pytest.raises(UnreadableVideoError):
        list(reader)
    assert reader.num_frames == 0


def test_a_picture_beyond_the_bound_is_unreadable(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    monkeypatch.setattr(still_image, "MAX_PIXELS", 40 * 60 - 1)
    with pytest.raises(UnreadableVideoError, match="60x40"):
        read_image(path)


def test_the_name_decides_who_reads():
    recipe = CropRecipe(num_frames=5)
    assert isinstance(open_frames(Path("a.webp"), recipe), StillImage)
    reader = open_frames(Path("a.mp4"), recipe)
    assert isinstance(reader, FrameReader)
    assert reader.wanted == 5
