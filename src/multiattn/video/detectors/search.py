"""What every detector shares: the faces it gives, the scaled copy it searches, how many copies go in one pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

LONGEST_SIDE = 640
"""Bound on the copy that the first pass searches, in pixels; smaller frames are not enlarged."""
THOROUGH_LONGEST_SIDE = 1920
"""Bound on the copy that the second pass searches, in pixels."""
ENLARGED_LONGEST_SIDE = 1280
"""The second pass enlarges frames below this, to at most twice their size."""
PIXELS_A_PASS = {"cpu": 2 * 640 * 640, "cuda": 16 * 640 * 640}
"""Bounds the memory of one pass through a network, whatever the size of the frames and the length of the batch.

On a CPU few frames at a time are faster: with 8 the first layers' results leave the cache, and malloc asks the system
for new pages each time (measured on MTCNN's first network: 7.6 ms a frame against 3.0).
"""


@dataclass(frozen=True)
class Faces:
    """The N faces of one frame, best score first."""

    boxes_xyxy: np.ndarray
    """(N, 4) float64, pixels of the full frame, exclusive right and bottom."""
    scores: np.ndarray
    """(N,) float64 in [0, 1]."""
    landmarks: np.ndarray
    """(N, 5, 2) float64 (x, y): the eye on the image's left, the other eye, nose, mouth corners left and right."""

    def __len__(self) -> int:
        return len(self.scores)


NO_FACES = Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))


def search_size(size_wh: tuple[int, int], *, thorough: bool, longest_side: int = LONGEST_SIDE) -> tuple[int, int]:
    """The size of the copy that is searched, (width, height) in whole pixels, at least 1 each.

    The first pass bounds the longest side by `longest_side`. The thorough pass takes frames of 1280 pixels and more
    as they are, up to 1920; it enlarges smaller ones, twofold where that stays within 1280.

    Args:
        size_wh: of the full frame.
        thorough: the cascade's second pass.
        longest_side: the first pass's bound.
    """
    longest = max(size_wh)
    if thorough:
        side = max(min(longest, THOROUGH_LONGEST_SIDE), min(2 * longest, ENLARGED_LONGEST_SIDE))
    else:
        side = min(longest, longest_side)
    return max(1, round(size_wh[0] * side / longest)), max(1, round(size_wh[1] * side / longest))


def search_copies(
    images: Sequence[np.ndarray],
    size_wh: tuple[int, int],
    search: Callable[[list[np.ndarray]], list[Faces]],
    device: torch.device,
) -> list[Faces]:
    """Search copies of `size_wh` in passes of bounded size; what is found, in pixels of the full frames.

    Args:
        images: (H, W, 3) uint8, all of one size.
        size_wh: of the copies.
        search: copies -> the faces of each, in pixels of the copy, in any order.
        device: where it runs, which decides how many copies go in one pass.
    """
    width, height = size_wh
    a_pass = max(1, PIXELS_A_PASS.get(device.type, PIXELS_A_PASS["cpu"]) // (width * height))
    found: list[Faces] = []
    for start in range(0, len(images), a_pass):
        batch = images[start : start + a_pass]
        found += search([resized(image, size_wh) for image in batch])
    scale = np.array(images[0].shape[1::-1] if len(images) else size_wh, dtype=np.float64) / np.array(size_wh)
    return [_enlarge(faces, scale) for faces in found]


def resized(image: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """The image at another size: averaged over areas when it shrinks, bilinear when it grows."""
    if image.shape[1::-1] == tuple(size_wh):
        return image
    shrinks = size_wh[0] < image.shape[1] or size_wh[1] < image.shape[0]
    return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _enlarge(faces: Faces, scale_xy: np.ndarray) -> Faces:
    order = np.argsort(-faces.scores, kind="stable")
    return Faces(
        boxes_xyxy=faces.boxes_xyxy[order].astype(np.float64) * np.tile(scale_xy, 2),
        scores=np.clip(faces.scores[order].astype(np.float64), 0, 1),
        landmarks=faces.landmarks[order].astype(np.float64) * scale_xy,
    )
