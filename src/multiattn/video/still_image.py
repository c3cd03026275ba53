"""A picture as a video of one frame, so that everything after the decoder treats both alike."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from multiattn.video.decode import MAX_PIXELS, Frame, FrameReader, UnreadableVideoError
from multiattn.video.recipe import CropRecipe

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


def is_image_name(name: str) -> bool:
    """Whether a file of this name is a picture: by its extension, in any case; hidden files are none."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")


class StillImage:
    """Iterates over the one frame of a picture; the attributes are those of `FrameReader`.

    Raises:
        UnreadableVideoError: while iterating, when the picture cannot be decoded or is larger than `MAX_PIXELS`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.num_frames = 0
        self.message = ""

    def __iter__(self) -> Iterator[Frame]:
        self.num_frames = 0
        image = read_image(self.path)
        self.num_frames = 1
        yield Frame(index=0, seconds=0.0, image=image)


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, upright as its EXIF says; transparency is dropped, sixteen bits become eight.

    Raises:
        UnreadableVideoError: no such file, not a picture OpenCV reads, or one of more than `MAX_PIXELS`.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if content.size else None
    except (OSError, cv2.error) as error:  # cv2: a header that declares more pixels than OpenCV's own bound
        words = error.strerror if isinstance(error, OSError) else error.err
        raise UnreadableVideoError(f"{type(error).__name__}: {words}") from error
    if image is None:
        raise UnreadableVideoError("not a readable picture")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise UnreadableVideoError(f"a picture of {image.shape[1]}x{image.shape[0]}")
    return image


def open_frames(path: Path, recipe: CropRecipe) -> FrameReader | StillImage:
    """What the frames of a file come from: the picture itself, or the recipe's frames of a video."""
    if is_image_name(path.name):
        return StillImage(path)
    return FrameReader(path, recipe.num_frames, fast_frames=recipe.fast_frames)
