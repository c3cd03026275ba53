"""Where a face lies in its crop, from five landmarks: the outline with or without the forehead, and masks of it.

Five points say nothing about jaw and brow. The outline is that of an average upright face, drawn in the frame of the
alignment template and carried to the landmarks by the similarity that carries the template there. It is an estimate:
good to about a twentieth of the crop's side for faces that look ahead, and narrowed on the far side, by where the nose
lies between the eyes, for faces that turn.
"""

import cv2
import numpy as np

from multiattn.video.crops.recipe import TEMPLATE, similarity_transform

LANDMARKS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")
"""Their order; left and right as seen in the picture."""

# In units of the eyes' distance, from the point between the eyes, y down: the right half from the chin to the brow's
# middle and to the hairline's, after the proportions taught for drawing (the eyes' distance is 0.46 of the face's
# width; from the eyes to the chin it is 1.75 of it, to the brows 0.45, to the hairline 1.1).
_JAW = [(0.0, 1.75), (0.34, 1.70), (0.62, 1.46), (0.88, 1.05), (1.02, 0.55), (1.08, 0.0)]
_BROW = [(1.04, -0.30), (0.72, -0.47), (0.30, -0.46), (0.0, -0.42)]
_FOREHEAD = [(1.02, -0.38), (0.88, -0.72), (0.52, -1.00), (0.0, -1.10)]
_EYES = TEMPLATE[:2]
_TURN = 0.55
"""How much of its width the far half loses when the nose's tip comes to lie under the far eye."""


def crop_landmarks(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Where landmarks of a frame come to lie in its aligned crop.

    Args:
        landmarks: (5, 2) pixels (x, y) of the frame, `lm0x` to `lm4y` of faces.parquet.
        size: side of the crop, as `video.align.align_crop` was given it.

    Returns:
        (5, 2) float32 pixels of the crop.

    Departures: `align_crop` averages frames of large faces before it fits the similarity; the difference is below a
    hundredth of a pixel.
    """
    matrix = similarity_transform(landmarks, TEMPLATE * size)
    return (np.asarray(landmarks, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def face_outline(landmarks: np.ndarray, *, forehead: bool = True) -> np.ndarray:
    """The outline of a face.

    Args:
        landmarks: (5, 2) pixels (x, y), in the order of `LANDMARKS`.
        forehead: up to the hairline; else up to the brows.

    Returns:
        (K, 2) float64 pixels, a closed polygon; it may leave the picture.
    """
    half = np.array(_JAW + (_FOREHEAD if forehead else _BROW))
    right, left = half.copy(), half[-2:0:-1] * (-1, 1)
    template = np.concatenate([right, left])
    distance = np.linalg.norm(_EYES[1] - _EYES[0])
    matrix = similarity_transform(TEMPLATE, landmarks)
    turn = _turn(landmarks)
    template[:, 0] *= np.where(template[:, 0] > 0, 1 - _TURN * max(turn, 0), 1 + _TURN * min(turn, 0))
    return (template * distance + _EYES.mean(axis=0)) @ matrix[:, :2].T + matrix[:, 2]


def _turn(landmarks: np.ndarray) -> float:
    """-1 to 1: where the nose's tip lies between the eyes, along the line between them; 0 is the middle."""
    left, right, nose = np.asarray(landmarks[:3], dtype=np.float64)
    line = right - left
    return float(np.clip(2 * np.dot(nose - left, line) / max(np.dot(line, line), 1e-9) - 1, -1, 1))


def polygon_mask(outline: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 1 inside the polygon and 0 outside."""
    mask = np.zeros(size_wh[::-1], dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask
