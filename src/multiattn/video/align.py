"""Aligned face crops: a similarity transform from five landmarks to one template."""

import cv2
import numpy as np

# ArcFace's five points on 112 x 112 pixels (Deng et al. 2019), the template most face recognisers align to.
_ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_MARGIN = 1.3
# Shrunk about the centre so that forehead, chin and the blending border of a swapped face lie inside the crop;
# in units of the crop's side: eyes at about (0.38, 0.47) and (0.62, 0.47), mouth corners at y = 0.75.
TEMPLATE = (_ARCFACE_112 / 112 - 0.5) / TEMPLATE_MARGIN + 0.5
TEMPLATE_NAME = f"arcface-5-point, margin {TEMPLATE_MARGIN}"
INTERPOLATION_NAME = "bilinear, averaged first below half size, border repeated"
"""What `align_crop` does, for the crop recipe."""


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift that bring `source` closest to `target` (least squares).

    Source: Umeyama 1991, solved in closed form for the plane: with points as complex numbers, target = a source + b.

    Args:
        source: (K, 2) points (x, y), K >= 2, not all equal.
        target: (K, 2) points.

    Returns:
        (2, 3) float64 matrix for column vectors (x, y, 1). Mirrored landmarks are not mirrored back.

    Raises:
        ValueError: all source points are equal.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    z = source[:, 0] + 1j * source[:, 1]
    w = target[:, 0] + 1j * target[:, 1]
    z_mean, w_mean = z.mean(), w.mean()
    spread = np.sum(np.abs(z - z_mean) ** 2)
    if spread == 0:
        raise ValueError(f"expected landmarks that differ, found {source.tolist()}.")
    a = np.sum(np.conj(z - z_mean) * (w - w_mean)) / spread
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_crop(image: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """The face, upright and centred, eyes on one line.

    Args:
        image: (H, W, 3) uint8.
        landmarks: (5, 2) pixels of the image.
        size: side of the crop in pixels.

    Returns:
        (size, size, 3) uint8; what lies outside the image repeats its border.
    """
    matrix = similarity_transform(landmarks, TEMPLATE * size)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        # Bilinear sampling at a third of the size would skip pixels and alias; average them first.
        shrink = 2 * scale
        height, width = image.shape[:2]
        small_wh = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        factor = np.array(small_wh) / (width, height)
        image = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA)
        # Pixel centres: x_small + 0.5 = (x + 0.5) * factor.
        matrix = similarity_transform((landmarks + 0.5) * factor - 0.5, TEMPLATE * size)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
