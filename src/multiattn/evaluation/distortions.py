"""Distortions of a face crop at rising levels, each with its source: what `multiattn robustness` predicts again.

A distortion is a function of (crop, level, random numbers); crops are (S, S, 3) uint8 RGB as they are stored, before
they are averaged down to the network's size. The same crop gets the same numbers in every run, so that runs compare.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from multiattn.training.data.augment.reencode import Encoding, reencode

Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Distortion:
    """One kind of distortion."""

    change: Change
    levels: tuple[float, ...]
    """The mildest first."""
    unit: str
    """The levels' unit, in words."""
    source: str = ""
    """Where the levels come from; empty: ours."""


def _moved(crop: np.ndarray, *, scale: float = 1.0, shift_xy: tuple[float, float] = (0, 0), degrees: float = 0):
    """The crop of a box that is turned, larger by `scale` and further right and below by `shift_xy` sides; beyond the
    picture its border is repeated."""
    side = len(crop)
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1 / scale)
    matrix[:, 2] -= np.array(shift_xy) * side / scale
    method = cv2.INTER_LINEAR if scale <= 1 else cv2.INTER_AREA
    return cv2.warpAffine(crop, matrix, (side, side), flags=method, borderMode=cv2.BORDER_REPLICATE)


def _shift(crop: np.ndarray, level: float, draws: np.random.Generator) -> np.ndarray:
    angle = draws.uniform(0, 2 * np.pi)
    return _moved(crop, shift_xy=(level * np.cos(angle), level * np.sin(angle)))


def _through(crop: np.ndarray, extension: str, setting: int, quality: float) -> np.ndarray:
    stored = cv2.imencode(extension, cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [setting, int(quality)])[1]
    return cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB)


def _smaller(crop: np.ndarray, side: float, _: np.random.Generator) -> np.ndarray:
    if side >= len(crop):
        return crop
    small = cv2.resize(crop, (int(side), int(side)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, crop.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _in_ycrcb(crop: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change` on (S, S, 3) float32 luma and chroma in [0, 1]."""
    planes = cv2.cvtColor(crop, cv2.COLOR_RGB2YCrCb).astype(np.float32) / 255
    return cv2.cvtColor(_as_bytes(change(planes)), cv2.COLOR_YCrCb2RGB)


def _as_bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


def _saturation(crop: np.ndarray, kept: float, _: np.random.Generator) -> np.ndarray:
    factors = np.array([1, kept, kept], np.float32)
    return _in_ycrcb(crop, lambda planes: (planes - 0.5) * factors + 0.5)


def _blocks(crop: np.ndarray, number: float, draws: np.random.Generator) -> np.ndarray:
    covered = crop.copy()
    for top, left in draws.integers(0, len(crop) - 8, size=(int(number), 2), endpoint=True):
        covered[top : top + 8, left : left + 8] = 128
    return covered


def _noise(crop: np.ndarray, variance: float, draws: np.random.Generator) -> np.ndarray:
    noise = draws.normal(0, np.sqrt(variance), crop.shape).astype(np.float32)
    return _in_ycrcb(crop, lambda planes: planes + noise)


def _blur(crop: np.ndarray, kernel: float, _: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(crop, (int(kernel), int(kernel)), kernel / 6)


def _messenger(crop: np.ndarray, side: float, draws: np.random.Generator) -> np.ndarray:
    return _through(_smaller(crop, side, draws), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 50)


DEEPER = "DeeperForensics-1.0 (Jiang et al. 2020), perturbation/add_distortion_to_video.py"
DISTORTIONS: dict[str, Distortion] = {
    "shift": Distortion(_shift, (0.05, 0.1, 0.15), "sides of the crop, in a random direction"),
    "larger box": Distortion(lambda crop, level, _: _moved(crop, scale=level), (1.05, 1.15, 1.3), "sides of the crop"),
    "smaller box": Distortion(lambda crop, level, _: _moved(crop, scale=level), (0.95, 0.85, 0.7), "sides of the crop"),
    "rotation": Distortion(
        lambda crop, level, draws: _moved(crop, degrees=level * draws.choice((-1, 1))), (5, 10, 20), "degrees"
    ),
    "flip": Distortion(lambda crop, *_: np.ascontiguousarray(crop[:, ::-1]), (1,), "mirrored"),
    "jpeg": Distortion(
        lambda crop, level, _: _through(crop, ".jpg", cv2.IMWRITE_JPEG_QUALITY, level),
        (95, 90, 70, 50, 30, 20),
        "quality",
    ),
    "webp": Distortion(
        lambda crop, level, _: _through(crop, ".webp", cv2.IMWRITE_WEBP_QUALITY, level), (80, 50, 20), "quality"
    ),
    "resolution": Distortion(_smaller, (112, 64, 32), "pixels, and up again"),
    "messenger": Distortion(_messenger, (160, 112), "pixels, up again, then JPEG 50"),
    "h264": Distortion(
        lambda crop, level, _: reencode([crop], Encoding(crf=int(level))), (23, 32, 40), "CRF, one frame"
    ),
    "gamma": Distortion(
        lambda crop, level, _: _as_bytes((crop / np.float32(255)) ** np.float32(level)), (0.6, 1.7, 2.5), "exponent"
    ),
    "saturation": Distortion(_saturation, (0.4, 0.3, 0.2, 0.1, 0.0), "share of the chroma kept", DEEPER),
    "contrast": Distortion(
        lambda crop, level, _: (crop * np.float32(level)).astype(np.uint8),
        (0.85, 0.725, 0.6, 0.475, 0.35),
        "factor on the pixels",
        DEEPER,
    ),
    "blocks": Distortion(_blocks, (16, 32, 48, 64, 80), "grey squares of 8 pixels", DEEPER),
    "noise": Distortion(_noise, (0.001, 0.002, 0.005, 0.01, 0.05), "variance in YCbCr of [0, 1]", DEEPER),
    "blur": Distortion(_blur, (7, 9, 13, 17, 21), "pixels of the Gaussian kernel, sigma a sixth", DEEPER),
    "downscaled": Distortion(
        lambda crop, level, _: _smaller(crop, len(crop) // level, _), (2, 3, 4, 5, 6), "times smaller, up again", DEEPER
    ),
}
"""Name -> distortion. DeeperForensics calls `downscaled` JPEG; of its blocks, which are for frames, a crop has as many
as a frame of 256 pixels."""


def distort(name: str, level: float, crop: np.ndarray, address: str) -> np.ndarray:
    """A crop under one distortion.

    Args:
        name: of `DISTORTIONS`.
        level: any, not only those listed.
        crop: (S, S, 3) uint8 RGB.
        address: the crop's name in its faces folder, which decides what is drawn.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    return DISTORTIONS[name].change(crop, level, np.random.default_rng([*name.encode(), *address.encode()]))
