"""Crops from disk to arrays, the same way for training, validation and prediction."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset


def read_crop(path: Path, size: int) -> np.ndarray:
    """(size, size, 3) uint8 RGB; a larger crop is averaged down.

    Raises:
        ValueError: not a readable image, not square, or smaller than `size`. Nothing is invented in its place.
    """
    content = path.read_bytes() if path.is_file() else b""
    # OpenCV fills what is missing of a JPEG that was cut off with grey, so its end marker is looked for first.
    whole = content.endswith(b"\xff\xd9") or not content.startswith(b"\xff\xd8")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB) if content and whole else None
    if image is None:
        raise ValueError(
            f"{path}: not a readable image. Delete the line of its video in video_status.csv of the faces folder, and "
            "run the same `multiattn faces` command again."
        )
    height, width = image.shape[:2]
    if height != width or height < size:
        raise ValueError(
            f"{path}: expected a square crop of at least {size} pixels, found {width}x{height}. "
            f"Make the faces with `multiattn faces --size {size}`."
        )
    return image if height == size else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


class CropImages(Dataset):
    """Crops by row: index -> (size, size, 3) uint8 tensor, RGB.

    Args:
        folder: the faces folder.
        names: paths below it. Kept as one array of bytes: worker processes share its memory, and millions of Python
            objects they would copy, each for itself, as soon as they touch them.
    """

    def __init__(self, folder: Path, names: pd.Series, size: int) -> None:
        self.folder = folder
        self.names = np.array([name.encode() for name in names], dtype="S")
        self.size = size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(read_crop(self.folder / self.names[index].decode(), self.size))


def use_one_thread(worker: int) -> None:
    """For the worker processes of a loader: OpenCV would start a thread for every core in each of them."""
    cv2.setNumThreads(0)
