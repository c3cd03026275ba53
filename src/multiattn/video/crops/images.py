"""Crops from disk to arrays, the same way for training, validation and prediction."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from multiattn.runtime.signals import leave_signals_to_parent
from multiattn.video.crops.cache import CropCache

# A decoder asked for half the size skips the fine half of each block's frequencies. OpenCV takes the factor from these
# flags and the colours from IMREAD_COLOR_RGB, whatever the names of the former say.
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
NAMES_AT_ONCE = 1 << 18
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of a JPEG that are followed by its size."""


def read_crop(path: Path, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB; a larger crop is averaged down.

    A JPEG whose half, quarter or eighth side is `size`, or at least half as much again, is decoded at the smallest of
    these and averaged from there: half to three quarters of the time, and 0.2 to 0.7 of 255 (mean over faces of 380
    pixels) from a full decoding averaged down. Any other is decoded in full.

    Raises:
        ValueError: not a readable image, not square, or smaller than `size`. Nothing is invented in its place.
    """
    return decode_crop(_content(path), size, path)


def decode_crop(content: bytes, size: int, source: Path | str) -> np.ndarray:
    """`read_crop` of a file's content.

    Args:
        source: what an error names.
    """
    # OpenCV fills what is missing of a JPEG that was cut off with grey, so its end marker is looked for first.
    whole = content.endswith(b"\xff\xd9") or not content.startswith(b"\xff\xd8")
    stored_wh = jpeg_size(content)
    is_square = stored_wh is not None and stored_wh[0] == stored_wh[1]
    flags = cv2.IMREAD_COLOR_RGB | _REDUCED.get(_decoding_factor(stored_wh[0], size) if is_square else 1, 0)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content and whole else None
    if image is None:
        raise ValueError(
            f"{source}: not a readable image. Delete the line of its video in video_status.csv of the faces folder, "
            "and run the same `multiattn faces` command again."
        )
    height, width = image.shape[:2]
    if height != width or height < size:
        raise ValueError(
            f"{source}: expected a square crop of at least {size} pixels, found {width}x{height}. "
            f"Make the faces with `multiattn faces --size {size}`."
        )
    return image if height == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _decoding_factor(stored: int, size: int) -> int:
    """8, 4, 2 or 1: the largest that divides the stored side into `size` itself or into half as much again at
    least, from where averaging does not blur."""
    sides = {factor: stored // factor for factor in (8, 4, 2) if stored % factor == 0}
    return next((factor for factor, side in sides.items() if side == size or 2 * side >= 3 * size), 1)


def _content(path: Path) -> bytes:
    """Empty where there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return b""


def jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG's header names; None where it is no JPEG or has no such header."""
    if not content.startswith(b"\xff\xd8"):
        return None
    place = 2
    while place + 9 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker in _JPEG_FRAMES:
            height, width = (int.from_bytes(content[place + i : place + i + 2], "big") for i in (5, 7))
            return width, height
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return None


def names_digest(*names: pd.Series | list[str]) -> str:
    """SHA-256 of all names, one a line, in hex: of millions in a fraction of a second and without a copy of them."""
    digest, is_first = hashlib.sha256(), True
    for part in names:
        for start in range(0, len(part), NAMES_AT_ONCE):
            words = pa.array(part[start : start + NAMES_AT_ONCE], type=pa.string(), from_pandas=True)
            words = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else words
            text = pc.binary_join(pa.ListArray.from_arrays([0, len(words)], words), "\n")[0].as_buffer()
            digest.update(text if is_first else b"\n")
            if not is_first:
                digest.update(text)
            is_first = False
    return digest.hexdigest()


class CropImages(Dataset):
    """Crops by row: index -> (size, size, 3) uint8 tensor, RGB.

    Args:
        folder: the faces folder.
        names: paths below it. Kept in one piece of memory that worker processes share: of millions of Python objects
            each would get copies of its own, as soon as it touches them.
        cache: where decoded crops are kept.
        cache_rows: (N,) int, the number by which the cache knows each row.
    """

    def __init__(
        self,
        folder: Path,
        names: pd.Series,
        size: int,
        *,
        cache: CropCache | None = None,
        cache_rows: np.ndarray | None = None,
    ) -> None:
        self.folder = folder
        self.names = pa.array(names, type=pa.large_string(), from_pandas=True)
        if isinstance(self.names, pa.ChunkedArray):
            self.names = self.names.combine_chunks()
        self.size = size
        self.cache = cache
        self.cache_rows = cache_rows

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.read(index))

    def read(self, index: int) -> np.ndarray:
        """(size, size, 3) uint8 RGB, from the cache or from its file; an array of its own."""
        if self.cache is None:
            return read_crop(self._path(index), self.size)
        row = int(self.cache_rows[index])
        crop = self.cache.get(row)
        if crop is None:
            crop = read_crop(self._path(index), self.size)
            self.cache.put(row, crop)
        return crop

    def fill(self, index: int, out: np.ndarray) -> None:
        """Write the crop of a row into `out`, (size, size, 3) uint8."""
        out[...] = self.read(index)

    def _path(self, index: int) -> Path:
        return self.folder / self.names[index].as_py()


def settle_worker(worker: int) -> None:
    """For the worker processes of a loader: one thread each (OpenCV would start one for every core), and no end of
    their own when the job is asked to end."""
    cv2.setNumThreads(0)
    leave_signals_to_parent()
