"""Smooth changes of shape: sums of Gaussian bumps, written as backward displacements for `cv2.remap`.

A displacement field says where a pixel of the new picture looks in the old one, relative to itself. Scaling around a
centre by a factor > 1 therefore has a negative sign here. Amplitudes stay well below the bumps' widths, so no field
folds over itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Bump:
    """One local change around `centre`, fading as a Gaussian with standard deviations `width` (x, y) in pixels.

    `shift` moves the content (pixels), `grow` enlarges it ((x, y), 0.1 is ten per cent larger).
    """

    centre: tuple[float, float]
    width: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)
    grow: tuple[float, float] = (0.0, 0.0)


def displacement(x: np.ndarray, y: np.ndarray, bumps: Sequence[Bump]) -> tuple[np.ndarray, np.ndarray]:
    """The backward displacement (dx, dy), in pixels and of the shape of `x`, of all bumps together."""
    dx, dy = np.zeros_like(x), np.zeros_like(y)
    for bump in bumps:
        u, v = x - bump.centre[0], y - bump.centre[1]
        weight = np.exp(-0.5 * ((u / bump.width[0]) ** 2 + (v / bump.width[1]) ** 2))
        dx -= weight * (bump.shift[0] + bump.grow[0] * u)
        dy -= weight * (bump.shift[1] + bump.grow[1] * v)
    return dx, dy


def random_field(rng: np.random.Generator, size_wh: tuple[int, int], cells: int, amplitude: float) -> np.ndarray:
    """A smooth random (H, W, 2) float32 field: `cells` x `cells` normal values, cubically enlarged."""
    coarse = rng.normal(0, amplitude, (cells, cells, 2)).astype(np.float32)
    return cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear values of an (H, W, 2) float32 field at (N, 2) points (x, y): (N, 2) float64."""
    x, y = (points[:, i].astype(np.float32)[None] for i in (0, 1))
    return cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0].astype(np.float64)


def invert_at(backward_map: np.ndarray, points: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Where points of the old picture came to lie in the new one, by fixed-point iteration.

    Args:
        backward_map: (H, W, 2) float32, old coordinates for every new pixel; locally close to a scaled identity.
        points: (N, 2) old coordinates.
        start: (N, 2) first guess in new coordinates.

    Returns:
        (N, 2) float64 new coordinates, within 0.05 pixel for the fields of this package.
    """
    found = start.astype(np.float64)
    for _ in range(40):
        step_x = sample(backward_map, found + (1, 0)) - sample(backward_map, found - (1, 0))
        step_y = sample(backward_map, found + (0, 1)) - sample(backward_map, found - (0, 1))
        jacobian = np.stack([step_x, step_y], axis=-1) / 2
        error = points - sample(backward_map, found)
        found = found + 0.7 * np.linalg.solve(jacobian, error[..., None])[..., 0]
    return found


def fit_affine(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) float64 affine matrix that brings (N, 2) source points nearest to target points (least squares)."""
    design = np.column_stack([source, np.ones(len(source))])
    return np.linalg.lstsq(design, target, rcond=None)[0].T
