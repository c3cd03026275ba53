"""Distortions of a face crop at rising levels, each with its source, for `multiattn robustness` to predict again.

A distortion is a function of (crop, level, random numbers); crops are (S, S, 3) uint8 RGB as they are stored, before
they are averaged down to the network's size. The same crop gets the same numbers in every run, so that runs compare.
"""

import math
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from multiattn.training.data.augment.degrade import as_bytes, through_file, through_size, with_curve
from multiattn.training.data.augment.reencode import Encoding, reencode
from multiattn.video.crops.images import moved_crop
from multiattn.video.decoding.reencode import ClipEncoding

Change = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
VERSION = 2
"""Raised whenever an equal level begins to mean other pixels."""


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
    neutral: float = math.nan
    """The level that leaves every pixel as it is, predicted once more to prove the way there; NaN where none is."""


def _shift(crop: np.ndarray, level: float, draws: np.random.Generator) -> np.ndarray:
    angle = draws.uniform(0, 2 * np.pi)
    return moved_crop(crop, shift_xy=(level * np.cos(angle), level * np.sin(angle)))


def _in_ycrcb(crop: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change` on (S, S, 3) float32 luma and chroma, grey at 0.5, in [0, 1]."""
    planes = cv2.cvtColor(crop / np.float32(255), cv2.COLOR_RGB2YCrCb)
    return as_bytes(cv2.cvtColor(change(planes), cv2.COLOR_YCrCb2RGB))


def _saturation(crop: np.ndarray, kept: float, _: np.random.Generator) -> np.ndarray:
    factors = np.array([1, kept, kept], np.float32)
    return _in_ycrcb(crop, lambda planes: (planes - 0.5) * factors + 0.5)


def _blocks(crop: np.ndarray, number: float, draws: np.random.Generator) -> np.ndarray:
    covered = crop.copy()
    for top, left in draws.integers(0, len(crop) - 8, size=(int(number), 2), endpoint=True):
        covered[top : top + 8, left : left + 8] = 128
    return covered


def _noise(crop: np.ndarray, variance: float, draws: np.random.Generator) -> np.ndarray:
    deviation = np.sqrt(variance) * 255 / VIDEO_RANGE
    noise = (draws.normal(size=crop.shape) * deviation).astype(np.float32)
    return _in_ycrcb(crop, lambda planes: planes + noise)


def _blur(crop: np.ndarray, kernel: float, _: np.random.Generator) -> np.ndarray:
    return cv2.GaussianBlur(crop, (int(kernel), int(kernel)), kernel / 6)


def _messenger(crop: np.ndarray, side: float, _: np.random.Generator) -> np.ndarray:
    return through_file(through_size(crop, side), "jpeg", 50)


def _screenshot(crop: np.ndarray, scale: float, _: np.random.Generator) -> np.ndarray:
    """The crop as a display shows it, saved without loss and uploaded: scaled to the display, its gamma and warmer
    white, eight bits, then JPEG 80 at that size, and back to the crop's side."""
    shown = cv2.resize(crop, (round(scale * len(crop)),) * 2) / np.float32(255)
    shown = as_bytes(shown ** np.float32(1.1) * np.array([1, 0.98, 0.94], np.float32))
    return cv2.resize(through_file(shown, "jpeg", 80), crop.shape[1::-1], interpolation=cv2.INTER_AREA)


VIDEO_RANGE = np.array([219, 224, 224])
"""Steps of luma and chroma in the YCbCr that DeeperForensics adds its noise to; ours have 255."""
DEEPER = "DeeperForensics-1.0 (Jiang et al. 2020), perturbation/add_distortion_to_video.py"
GEND = "GenD (yermandy/GenD, src/exp), among others"
DISTORTIONS: dict[str, Distortion] = {
    "shift": Distortion(_shift, (0.05, 0.1, 0.15), "sides of the crop, in a random direction", neutral=0),
    "larger box": Distortion(
        lambda crop, level, _: moved_crop(crop, scale=level), (1.05, 1.15, 1.3), "sides of the crop"
    ),
    "smaller box": Distortion(
        lambda crop, level, _: moved_crop(crop, scale=level), (0.95, 0.85, 0.7), "sides of the crop"
    ),
    "rotation": Distortion(
        lambda crop, level, draws: moved_crop(crop, degrees=level * draws.choice((-1, 1))), (5, 10, 20), "degrees"
    ),
    "flip": Distortion(lambda crop, *_: np.ascontiguousarray(crop[:, ::-1]), (1,), "mirrored"),
    "jpeg": Distortion(
        lambda crop, level, _: through_file(crop, "jpeg", level),
        (90, 80, 60, 40, 20, 10),
        "quality",
        GEND,
    ),
    "webp": Distortion(lambda crop, level, _: through_file(crop, "webp", level), (80, 50, 20), "quality"),
    "resolution": Distortion(
        lambda crop, level, _: through_size(crop, level),
        (224, 112, 64, 32),
        "pixels, and up again",
        GEND,
        neutral=math.inf,
    ),
    "messenger": Distortion(_messenger, (160, 112), "pixels, up again, then JPEG 50"),
    "screenshot": Distortion(_screenshot, (1.25, 0.8, 0.5), "times as large on the screen"),
    "h264": Distortion(
        lambda crop, level, _: reencode([crop], Encoding(crf=int(level))),
        (23, 30, 32, 35, 38, 40),
        "CRF, a clip of one frame; from 30 on DeeperForensics' video compression",
        DEEPER,
    ),
    "gamma": Distortion(
        lambda crop, level, _: with_curve(crop, exponent=level),
        (0.6, 1.7, 2.5),
        "exponent",
        neutral=1,
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
        lambda crop, level, _: through_size(crop, len(crop) // level, down=cv2.INTER_LINEAR),
        (2, 3, 4, 5, 6),
        "times smaller, bilinear, and up again",
        DEEPER,
    ),
}
"""Name -> distortion. DeeperForensics calls `downscaled` JPEG; of its blocks, which are for frames, a crop has as many
as a frame of 256 pixels."""
VIDEO_DISTORTIONS: dict[str, tuple[Callable[[float], ClipEncoding], tuple[float, ...], str]] = {
    "video h264": (lambda level: ClipEncoding(crf=int(level)), (23, 32, 40), "CRF"),
    "video size": (lambda level: ClipEncoding(18, int(level)), (640, 320, 160), "pixels of the longer side; CRF 18"),
}
"""Name -> (encoding of a level, levels, unit): done to the videos themselves, whose faces are then found and cut."""


def crop_cells(names: Container[str], side: int) -> Iterator[tuple[str, float, bool]]:
    """(name, level, whether it leaves every pixel) of the distortions `names`: the neutral levels first.

    Args:
        side: of the crops as they are stored, in pixels; a `resolution` that is no smaller changes nothing.
    """
    chosen = {name: one for name, one in DISTORTIONS.items() if name in names}
    for name, one in chosen.items():
        if not math.isnan(one.neutral):
            yield name, min(one.neutral, side), True
    for name, one in chosen.items():
        yield from ((name, level, False) for level in one.levels if name != "resolution" or level < side)


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
