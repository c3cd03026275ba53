"""Self-blended images: a fake made of one real crop, blended with a copy of itself.

Source: Shiohara and Yamasaki 2022 (arXiv:2204.08376), Section 3; numbers from their released settings.

    source, target = two copies of the crop, one of which, by a coin, changes in colour and in sharpness or resolution
    source, mask   = moved and scaled together, a little; the mask deformed, eroded and blurred
    fake           = mask * source + (1 - mask) * target

A network that tells such a fake from the target has learned what blending leaves, whatever made the face. So the real
crops it is shown beside them should be targets too: `blend_target`.
"""

from functools import cache

import albumentations as A
import cv2
import numpy as np

from multiattn.training.data.augment.faces import face_outline, polygon_mask
from multiattn.training.data.augment.steps import Draws, require_albumentations

COPY_STREAM, MASK_STREAM = 2, 3
FOREHEAD_PROBABILITY = 0.75
SHIFT_XY = (0.03, 0.015)
"""Largest shift of the source as a share of the side."""
SCALE = (0.95, 1 / 0.95)
"""Factor on the source's size, drawn for each side."""
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
LOWEST_SIDE = 64
"""A lower resolution keeps at least so many pixels a side."""
MASK_SIDE = 256
"""The mask is made at this size, so that its deformation and blur are shares of the face."""
ELASTIC_SIGMA, ELASTIC_ALPHA = 7.0, 50.0
KERNELS = range(5, 26, 2)
BLUR_SIGMAS = (5, 46)


def self_blend(crop: np.ndarray, landmarks: np.ndarray, seed: int) -> np.ndarray:
    """A fake from a real crop: its face under a moved copy of itself, one of both changed (Shiohara and Yamasaki 2022).

    Outside the mask it is `blend_target(crop, seed)`, which is the crop itself for half of the seeds. A face that lies
    outside the crop is an error.

    Departures: the mask is the hull of an outline estimated from five landmarks (`face_outline`), to the hairline or,
    with the published probability, to the brows, not of 81 landmarks of dlib. Hue, saturation and value shift by up to
    5, 15 and 15 steps: the released ±0.3 is less than one step of uint8 and changes nothing. A half or a quarter of the
    resolution, which they take of the video's, stops at 64 pixels. Deformation and erosion are measured at 256 pixels;
    the released ones at the video's own size and at a random size from 192 to 256. The crop comes aligned, and whether
    it is flipped, compressed or recoloured as a whole is the augmentation's business.
    """
    draws = Draws(seed, MASK_STREAM)
    target, source = _copies(crop, seed)
    matrix = _small_move(draws, crop.shape[1::-1])
    outline = face_outline(landmarks, forehead=draws.chance(FOREHEAD_PROBABILITY))
    mask = _soft_mask(cv2.convexHull(outline.astype(np.float32))[:, 0], matrix, crop.shape[1::-1], draws)
    source = cv2.warpAffine(source, matrix, crop.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101).astype(np.float32)
    blended = target + mask[..., None] * (source - target)
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)


def blend_target(crop: np.ndarray, seed: int) -> np.ndarray:
    """The real crop, (H, W, 3) uint8 RGB, that the fake of this seed is blended onto: for half of the seeds the crop
    itself, else the crop changed in colour and in sharpness or resolution.

    Shown such real crops, a network cannot take those changes themselves for a forgery.
    """
    return _copies(crop, seed)[0]


def _copies(crop: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Target and source: the crop and its changed copy, in the order of a coin."""
    draws = Draws(seed, COPY_STREAM)
    change_target = draws.chance(0.5)
    compose = _copy_changes(min(crop.shape[:2]))
    compose.set_random_state(draws.generator, draws.python)
    changed = compose(image=crop, force_apply=True)["image"]
    return (changed, crop) if change_target else (crop, changed)


@cache
def _copy_changes(side: int) -> A.Compose:
    """Colour always; then a lower resolution (of every second or fourth pixel) or sharpening."""
    require_albumentations()
    pair = {"downscale": cv2.INTER_NEAREST, "upscale": cv2.INTER_LINEAR}
    scales = [min(0.99, max(1 / n, LOWEST_SIDE / side)) for n in (2, 4)]
    lower = [A.Downscale(scale_range=(scale, scale), interpolation_pair=pair, p=0.25) for scale in scales]
    return A.Compose(
        [
            A.RGBShift(r_shift_limit=20, g_shift_limit=20, b_shift_limit=20, p=0.3),
            A.HueSaturationValue(hue_shift_limit=5, sat_shift_limit=15, val_shift_limit=15, p=1),
            A.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=1),
            A.OneOf([*lower, A.Sharpen(alpha=(0.2, 0.5), lightness=(0.5, 1.0), p=0.5)], p=1),
        ]
    )


def _small_move(draws: Draws, size_wh: tuple[int, int]) -> np.ndarray:
    """(2, 3): scale about the centre, and a shift."""
    sides = np.array(size_wh)
    scale = draws.generator.uniform(*SCALE, size=2)
    shift = draws.generator.uniform(-1, 1, size=2) * SHIFT_XY * sides
    center = (sides - 1) / 2
    return np.column_stack([np.diag(scale), center - scale * center + shift])


def _soft_mask(hull: np.ndarray, matrix: np.ndarray, size_wh: tuple[int, int], draws: Draws) -> np.ndarray:
    """(H, W) float32, 0 outside the face, the blend's ratio inside."""
    moved = hull @ matrix[:, :2].T + matrix[:, 2]
    factor = MASK_SIDE / np.array(size_wh)
    mask = polygon_mask((moved + 0.5) * factor - 0.5, (MASK_SIDE, MASK_SIDE)).astype(np.float32)
    # Every point moved by smooth noise, some pixels at most (Simard et al. 2003).
    noise = draws.generator.uniform(-1, 1, size=(2, *mask.shape)).astype(np.float32)
    shift_x, shift_y = (ELASTIC_ALPHA * cv2.GaussianBlur(field, (0, 0), ELASTIC_SIGMA) for field in noise)
    y, x = np.mgrid[:MASK_SIDE, :MASK_SIDE].astype(np.float32)
    mask = cv2.remap(mask, x + shift_x, y + shift_y, cv2.INTER_LINEAR)
    inner, outer = (int(draws.generator.choice(KERNELS)) for _ in range(2))
    eroded = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (inner, inner)))
    if not eroded.any():
        raise ValueError(f"self-blending: expected landmarks of a face inside the crop, found its hull at {hull}.")
    soft = cv2.GaussianBlur(eroded, (outer, outer), float(draws.generator.integers(*BLUR_SIGMAS)))
    ratio = float(draws.generator.choice(RATIOS))
    return ratio * cv2.resize(soft / soft.max(), size_wh, interpolation=cv2.INTER_LINEAR)
