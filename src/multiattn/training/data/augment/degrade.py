"""Degradations of a crop by a strength: what codecs, messengers, cameras, the night and editors leave of a picture.

First changes by a given amount, which `multiattn robustness` measures with too; then `DEGRADATIONS`, which draw theirs.
Crops are (H, W, 3) uint8 RGB throughout; none is changed in place.
"""

import string
from collections.abc import Callable

import cv2
import numpy as np

from multiattn.training.data.augment.reencode import CODECS, Encoding, encoders, reencode
from multiattn.training.data.augment.steps import CropContext, Draws, Step

FILE_FORMATS = {"jpeg": (".jpg", cv2.IMWRITE_JPEG_QUALITY), "webp": (".webp", cv2.IMWRITE_WEBP_QUALITY)}
"""Name -> its extension and OpenCV's setting of its quality, 1 to 100."""
GREYS = np.arange(256, dtype=np.float32)[:, None, None] / np.float32(255)
"""The grey values, (256, 1, 1) float32: a change of them, (256, 1, 1 or 3), is a table of OpenCV's `LUT`."""


def through_file(crop: np.ndarray, file_format: str, quality: float) -> np.ndarray:
    """The crop as a file of one of `FILE_FORMATS` holds it; colours at half the resolution."""
    extension, setting = FILE_FORMATS[file_format]
    stored = cv2.imencode(extension, cv2.cvtColor(crop, cv2.COLOR_RGB2BGR), [setting, int(quality)])[1]
    return cv2.imdecode(stored, cv2.IMREAD_COLOR_RGB)


def through_size(
    crop: np.ndarray, side: float, *, down: int = cv2.INTER_AREA, up: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """The crop made smaller, to `side` pixels, and as large again; `crop` itself where it is no larger than that."""
    if side >= len(crop):
        return crop
    return cv2.resize(cv2.resize(crop, (int(side),) * 2, interpolation=down), crop.shape[1::-1], interpolation=up)


def with_saturation(crop: np.ndarray, factor: float) -> np.ndarray:
    """The crop with its chroma, in YCbCr, multiplied."""
    factors = np.array([1, factor, factor], np.float32)
    planes = cv2.LUT(cv2.cvtColor(crop, cv2.COLOR_RGB2YCrCb), as_bytes((GREYS - 0.5) * factors + 0.5))
    return cv2.cvtColor(planes, cv2.COLOR_YCrCb2RGB)


def with_curve(crop: np.ndarray, *, exponent: float = 1.0, factor: float | np.ndarray = 1.0) -> np.ndarray:
    """`factor * value ** exponent` of grey values in [0, 1]; the factor may be one for each colour."""
    return cv2.LUT(crop, as_bytes(GREYS ** np.float32(exponent) * np.broadcast_to(np.float32(factor), 3)))


def moving_blur(crop: np.ndarray, length: float, angle: float) -> np.ndarray:
    """The crop averaged along a line of `length` pixels at `angle` radians, as while a camera moves."""
    reach = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    offsets = np.linspace(-length / 2, length / 2, 4 * reach + 1)
    x, y = reach + offsets * np.cos(angle), reach + offsets * np.sin(angle)
    for right, below in ((0, 0), (0, 1), (1, 0), (1, 1)):  # each point shared by the four pixels around it
        column, row = np.floor(x).astype(int) + right, np.floor(y).astype(int) + below
        np.add.at(kernel, (row, column), np.maximum(0, 1 - abs(column - x)) * np.maximum(0, 1 - abs(row - y)))
    return cv2.filter2D(crop, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


def focus_blur(crop: np.ndarray, radius: float) -> np.ndarray:
    """The crop averaged over a disk, as by a lens that is out of focus; below half a pixel the crop as it is."""
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    kernel[reach, reach] = max(kernel[reach, reach], 0.5)
    return cv2.filter2D(crop, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101)


DISPLAY_GAMMA = 2.2


def sensor_noise(crop: np.ndarray, shot: float, read: float, numbers: np.random.Generator) -> np.ndarray:
    """The crop with a sensor's noise: in linear light, of 0 to 1, its variance is `shot * light + read`.

    Departures: light is the grey value to the power of 2.2; a camera's own curve, demosaicing and denoising are left
    out.
    """
    light = GREYS ** np.float32(DISPLAY_GAMMA)
    deviation = np.sqrt(shot * light + read)
    noise = numbers.standard_normal(crop.shape, dtype=np.float32)
    noisy = np.clip(cv2.LUT(crop, light) + cv2.LUT(crop, deviation) * noise, 0, 1)
    return as_bytes(cv2.pow(noisy, 1 / DISPLAY_GAMMA))


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Grey values of [0, 1], rounded and cut, as uint8."""
    return np.clip(values * 255 + 0.5, 0, 255).astype(np.uint8)


# Degradations: each draws first and then goes as far as the strength, so that the same numbers give the same kind of
# change at any strength, more of it the higher that is. At 0 nearly nothing is left to see, at 1 a face is recognised.

LOWEST_QUALITY, HIGHEST_QUALITY = 20, 98
SMALLEST_SIDE = 8
DOWN = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_NEAREST)
UP = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4, cv2.INTER_NEAREST)


def _files(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """One to three times through JPEG or WebP, down to quality 20, each time on another grid of blocks."""
    times = int(numbers.integers(1, 4))
    formats = numbers.choice(list(FILE_FORMATS), 3, p=(0.8, 0.2))
    shares, grids = numbers.uniform(0.7, 1, 3), numbers.integers(0, 8, (3, 2)).tolist()
    for file_format, share, (top, left) in list(zip(formats, shares, grids, strict=True))[:times]:
        quality = round(HIGHEST_QUALITY - share * strength * (HIGHEST_QUALITY - LOWEST_QUALITY))
        framed = cv2.copyMakeBorder(crop, top, 0, left, 0, cv2.BORDER_REPLICATE)
        crop = through_file(framed, str(file_format), quality)[top:, left:]
    return np.ascontiguousarray(crop)


def _video(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """A frame of H.264, H.265 or AV1, as the installed PyAV has them, over the useful range of rate factors."""
    codec = str(numbers.choice(encoders()))
    finest, coarsest = CODECS[codec].crf
    return reencode([crop], Encoding(codec=codec, crf=round(finest + strength * (coarsest - finest))))


def _resolution(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """Down to a quarter of the side and up again, each with a drawn kernel."""
    down, up = int(numbers.choice(DOWN)), int(numbers.choice(UP))
    return through_size(crop, max(SMALLEST_SIDE, round(len(crop) / 4**strength)), down=down, up=up)


def _messenger(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """Shrunk, down to 0.4 of the side, and stored at that size as JPEG of quality down to 30; then as large again."""
    side = min(len(crop), max(SMALLEST_SIDE, round(len(crop) / (1 + 1.5 * strength))))
    up = int(numbers.choice(UP[:3]))
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    small = through_file(small, "jpeg", round(90 - 60 * strength))
    return cv2.resize(small, crop.shape[1::-1], interpolation=up)


def _noise(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """Shot and read noise, related as those of phones' sensors: Brooks et al. 2019 (arXiv:1811.11127), whose
    highest shot noise is 0.012; here 0.03, for night scenes."""
    shot = 0.03 * strength**2
    read = np.exp(2.18 * np.log(shot) + 1.2) if shot > 0 else 0.0
    return sensor_noise(crop, shot, read, numbers)


def _motion(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """Blur along a line of up to 0.08 of the side."""
    return moving_blur(crop, 0.08 * len(crop) * strength, numbers.uniform(0, np.pi))


def _focus(crop: np.ndarray, strength: float, _: np.random.Generator) -> np.ndarray:
    """Blur over a disk of a radius up to 0.025 of the side."""
    return focus_blur(crop, 0.025 * len(crop) * strength)


def _light(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """Two thirds darker, down to half the light and a gamma of 2.2, as at night, less where it is dark already; else
    over-exposed."""
    if numbers.random() < 2 / 3:
        strength *= min(1.0, crop.mean() / 96)
        return with_curve(crop, exponent=1 + 1.2 * strength, factor=1 - 0.5 * strength)
    return with_curve(crop, exponent=1 / (1 + 0.7 * strength), factor=1 + 0.3 * strength)


def _colour(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """The white balance off by up to a fifth, and less colour down to none, or up to half as much again."""
    gains, is_pale = np.exp(0.2 * strength * numbers.uniform(-1, 1, 3)), numbers.random() < 0.7
    return with_saturation(with_curve(crop, factor=gains), 1 - strength if is_pale else 1 + strength / 2)


FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)
LETTERS = list(string.ascii_letters + string.digits + "#@!?&.-    ")


def _overlay(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> np.ndarray:
    """A line or two of text, one to three stickers, or the bars of a letter box; larger and less transparent with the
    strength."""
    covered = crop.copy()
    (_text, _stickers, _bars)[numbers.choice(3, p=(0.5, 0.3, 0.2))](covered, strength, numbers)
    opacity = np.sqrt(strength)
    return cv2.addWeighted(covered, opacity, crop, 1 - opacity, 0)


def _text(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> None:
    side, font = len(crop), int(numbers.choice(FONTS))
    colour = (255,) * 3 if numbers.random() < 0.6 else tuple(numbers.integers(0, 256, 3).tolist())
    rim = (0,) * 3 if sum(colour) > 380 else (255,) * 3
    left, bottom = numbers.uniform(0, 0.5), numbers.uniform(0.15, 0.95)
    scale = side * (0.05 + 0.07 * strength) / 22  # the fonts' capitals are 22 pixels high
    for number in range(int(numbers.integers(1, 3))):
        line = "".join(numbers.choice(LETTERS, int(numbers.integers(3, 15))))
        place = int(left * side), int((bottom + 1.6 * number * 22 * scale / side) * side)
        for shade, width in ((rim, 3), (colour, 1)):
            cv2.putText(crop, line, place, font, scale, shade, max(1, round(width * scale * 1.5)), cv2.LINE_AA)


def _stickers(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> None:
    side = len(crop)
    for _ in range(int(numbers.integers(1, 4))):
        x, y = (int(value) for value in numbers.uniform(0, side, 2))
        radius = max(1, round(side * (0.04 + 0.1 * strength) * numbers.uniform(0.6, 1)))
        colour = tuple(numbers.integers(0, 256, 3).tolist())
        if numbers.random() < 0.5:  # a smiling face
            cv2.circle(crop, (x, y), radius, (255, 205, 60), -1, cv2.LINE_AA)
            for eye in (-1, 1):
                cv2.circle(crop, (x + eye * radius // 3, y - radius // 4), radius // 7, (60, 40, 20), -1, cv2.LINE_AA)
            thickness = max(1, radius // 8)
            cv2.ellipse(crop, (x, y), (radius // 2,) * 2, 0, 20, 160, (60, 40, 20), thickness, cv2.LINE_AA)
        else:
            width = int(radius * numbers.uniform(1, 2))
            cv2.rectangle(crop, (x - width, y - radius // 2), (x + width, y + radius // 2), colour, -1, cv2.LINE_AA)


def _bars(crop: np.ndarray, strength: float, numbers: np.random.Generator) -> None:
    thickness = round(0.15 * len(crop) * strength)
    picture = crop if numbers.random() < 0.7 else crop.transpose(1, 0, 2)
    sides = numbers.choice(3, p=(0.25, 0.25, 0.5))  # a crop often reaches into one of the bars only
    if sides != 0:
        picture[:thickness] = 0
    if sides != 1:
        picture[len(crop) - thickness :] = 0


Degradation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
DEGRADATIONS: dict[str, tuple[Degradation, float]] = {
    "files": (_files, 5),
    "video": (_video, 2),
    "resolution": (_resolution, 4),
    "messenger": (_messenger, 3),
    "noise": (_noise, 3),
    "motion": (_motion, 2),
    "focus": (_focus, 2),
    "light": (_light, 3),
    "colour": (_colour, 3),
    "overlay": (_overlay, 2),
}
"""Name -> (crop, strength of 0 to 1, numbers) -> crop; and how often it is drawn beside the others."""
NUMBERS = (0.35, 0.35, 0.2, 0.1)
"""Shares of crops that pass one, two, three and four of them."""


def degrading(probability: float) -> Step:
    """A step that passes a crop through one to four different degradations in a drawn order, each of a strength drawn
    from a Beta distribution (1.2, 1.8), its mean 0.4, times that of the context."""
    weights = np.array([weight for _, weight in DEGRADATIONS.values()], dtype=float)
    if not encoders():
        weights[list(DEGRADATIONS).index("video")] = 0
    weights /= weights.sum()

    def change(crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        numbers = draws.generator
        if not draws.chance(probability) or context.strength == 0:
            return crop
        count = 1 + int(numbers.choice(len(NUMBERS), p=NUMBERS))
        for name in numbers.choice(list(DEGRADATIONS), count, replace=False, p=weights):
            degrade, _ = DEGRADATIONS[str(name)]
            crop = degrade(crop, context.strength * numbers.beta(1.2, 1.8), numbers)
        return crop

    return Step(change)
