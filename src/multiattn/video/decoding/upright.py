"""The display matrix of a video: how a player turns and mirrors its frames."""

import math

import cv2
import numpy as np

TOLERANCE = 1.0
"""Degrees within which an angle counts as a quarter turn, as in FFmpeg."""


def turned_upright(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The frame as FFmpeg's autorotation shows it.

    Quarter turns and mirroring move pixels; any other angle turns the picture about its centre within its own bounds.
    A matrix without an angle, of zeros for example, changes nothing, and so does scaling.

    Args:
        image: (H, W, 3) uint8.
        matrix: (3, 3) int32, `a b u; c d v; x y w` of ISO/IEC 14496-12.

    Returns:
        (H, W, 3) or (W, H, 3) uint8, contiguous.
    """
    (a, b), (c, d) = (matrix[:2, :2] / 65536).tolist()
    if not (math.hypot(a, c) and math.hypot(b, d)):
        return image
    angle = math.degrees(math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))) % 360
    quarters = round(angle / 90)
    if abs(angle - 90 * quarters) >= TOLERANCE:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1)
        return cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR)
    if quarters % 2:
        is_mirrored = c > 0 if quarters == 1 else c < 0
        image = image.swapaxes(0, 1)  # mirrored along the diagonal; a turn mirrors once more
        if quarters == 1:
            image = image if is_mirrored else image[:, ::-1]
        else:
            image = image[::-1, ::-1] if is_mirrored else image[::-1]
    else:
        image = image[:, ::-1] if quarters == 2 and a < 0 else image
        image = image[::-1] if d < 0 else image
    return np.ascontiguousarray(image)
