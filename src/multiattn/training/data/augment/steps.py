"""What a preset is made of: steps that change a crop, each drawing from its own kind of random numbers.

The policy that AutoAugment found for ImageNet, as albumentations' transforms.

Source: Cubuk et al. 2019 (arXiv:1805.09501), with magnitudes read and varied as timm's `original-mstd0.5` does, which
the third place of DFDC trained with.

Departures: shears and rotations are drawn apart from the rest (with the probability they have in the whole policy),
because they follow the geometry's seed; a magnitude's normal spread of 0.5 is a uniform one of as much; sharpness is
albumentations' sharpening kernel.

A crop as a video codec leaves it: the clip around it encoded with H.264 and decoded again, in memory.

Source: the third place of DFDC (github.com/NTech-Lab/deepfake-detection-challenge, TrackTransform), with its ranges.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np

from multiattn.training.data.augment.library import albumentations as A

EARLIER_CROPS = 3
"""A clip for re-encoding is the crop and at most so many before it; more earlier ones need not be read."""


@dataclass(frozen=True)
class CropContext:
    """What some presets know about a crop beside its pixels."""

    landmarks: np.ndarray | None = None
    """(5, 2) float32 pixels (x, y) of the crop, in the order of faces.parquet; None where they are not known."""
    clip: Callable[[], list[np.ndarray]] | None = None
    """Reads the crops of the same face before this one, oldest first, of its size; the last `EARLIER_CROPS` of them
    are enough. Called only where a draw asks for it. None where there are none."""


class Draws:
    """The random numbers of one crop for steps of one kind, as albumentations wants them.

    Args:
        seed: 0 or more.
        stream: which of the independent sequences of this seed.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        seed = int(seed)
        self.generator = np.random.default_rng((seed, stream) if stream else seed)
        self.python = random.Random(f"{seed}/{stream}" if stream else seed)
        # A Compose spends one number on its own probability. Ours are told to run, so that a preset in two of them
        # draws what it drew in one.
        self.python.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.generator.random() < probability)


@dataclass(frozen=True)
class Step:
    """One change of a crop."""

    change: Callable[[np.ndarray, Draws, CropContext], np.ndarray]
    """((H, W, 3) uint8 RGB, draws, context) -> the same, changed; the array given stays as it is."""
    moves: bool = False
    """Whether it moves the picture's content, and so draws from the geometry's numbers."""
    needs_landmarks: bool = False
    needs_clip: bool = False


def pixels(*transforms: A.BasicTransform | A.BaseCompose) -> Step:
    """albumentations' transforms that leave everything where it is."""
    return Step(_Composed(transforms))


def moving(*transforms: A.BasicTransform | A.BaseCompose) -> Step:
    """albumentations' transforms that move the picture's content."""
    return Step(_Composed(transforms), moves=True)


class _Composed:
    def __init__(self, transforms: tuple[A.BasicTransform | A.BaseCompose, ...]) -> None:
        self.compose = A.Compose(list(transforms))

    def __call__(self, crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        # Not set_random_seed: it gives every transform the same seed, and with it the same draws.
        self.compose.set_random_state(draws.generator, draws.python)
        return self.compose(image=crop, force_apply=True)["image"]


POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)
"""Rows of (operation, probability, magnitude of 10); a draw takes one row."""
GEOMETRIC = ("Rotate", "ShearX")
MAGNITUDE_SPREAD = 0.5


def policy_pixels(probability: float) -> A.OneOf:
    """One row of the policy, but for its geometry, with this probability."""
    rows = [[_pixel_transform(*operation) for operation in row if operation[0] not in GEOMETRIC] for row in POLICY]
    return A.OneOf([A.Sequential(row, p=1) for row in rows], p=probability)


def policy_geometry(probability: float) -> list[A.BasicTransform]:
    """The policy's rotations (up to 28.5 degrees) and shears (up to 0.165), as often as the policy has them."""
    share = {
        name: probability * sum(p for row in POLICY for operation, p, _ in row if operation == name) / len(POLICY)
        for name in GEOMETRIC
    }
    shear = 9.4  # degrees: the arc tangent of 0.165
    return [
        A.Affine(rotate=(-28.5, 28.5), p=share["Rotate"]),
        A.Affine(shear={"x": (-shear, shear), "y": (0, 0)}, p=share["ShearX"]),
    ]


def _pixel_transform(name: str, probability: float, magnitude: int) -> A.BasicTransform:
    low, high = (min(max(magnitude + sign * MAGNITUDE_SPREAD, 0), 10) / 10 for sign in (-1, 1))
    factor = (1.8 * low + 0.1, 1.8 * high + 0.1)
    kept = (1.0, 1.0)
    transforms = {
        "Posterize": lambda p: A.Posterize(num_bits=(int(4 * low) + 4, int(4 * high) + 4), p=p),
        "Solarize": lambda p: A.Solarize(threshold_range=(low, high), p=p),
        "AutoContrast": lambda p: A.AutoContrast(method="pil", p=p),
        "Equalize": lambda p: A.Equalize(mode="pil", p=p),
        "Invert": lambda p: A.InvertImg(p=p),
        "Color": lambda p: A.ColorJitter(brightness=kept, contrast=kept, saturation=factor, hue=(0, 0), p=p),
        "Contrast": lambda p: A.ColorJitter(brightness=kept, contrast=factor, saturation=kept, hue=(0, 0), p=p),
        "Sharpness": lambda p: A.Sharpen(alpha=(factor[0] - 1, factor[1] - 1), lightness=kept, p=p),
    }
    return transforms[name](probability)


SOURCE_FPS = 30
FPS = (15, 29)
SCALE = (0.25, 1.0)
CRF = (17, 39)
"""Constant rate factor of x264: 17 is nearly without loss, 39 blocky; 23 is the encoder's default."""
TUNES = ("film", "animation", "grain", "stillimage", "fastdecode", "zerolatency")
PRESET = "veryfast"
"""Of x264. `medium`, its default and the source's, took 1.8 times as long for a clip of four crops at 380 px."""


@dataclass(frozen=True)
class Encoding:
    """How a clip is encoded."""

    fps: int = SOURCE_FPS
    scale: float = 1.0
    """Of the sides, before encoding; the result is scaled back."""
    crf: int = 23
    tune: str = "film"

    @classmethod
    def draw(cls, draws: Draws, *, crf: tuple[int, int] = CRF, scale: tuple[float, float] = SCALE) -> "Encoding":
        """Another frame rate and another scale with probability 0.5 each; ranges include both ends."""
        numbers = draws.generator
        return cls(
            fps=int(numbers.integers(FPS[0], FPS[1] + 1)) if draws.chance(0.5) else SOURCE_FPS,
            scale=float(numbers.uniform(*scale)) if draws.chance(0.5) else 1.0,
            crf=int(numbers.integers(crf[0], crf[1] + 1)),
            tune=str(numbers.choice(TUNES)),
        )


def reencode(clip: list[np.ndarray], encoding: Encoding) -> np.ndarray:
    """The last frame of a clip after H.264.

    Args:
        clip: (H, W, 3) uint8 RGB frames of one size, oldest first, at least one.

    Returns:
        (H, W, 3) uint8 RGB. One thread encodes, so the same clip gives the same pixels every time.

    Departures: a frame rate below `SOURCE_FPS` leaves earlier frames out, as ffmpeg's filter does, but never the last.
    """
    height, width = clip[-1].shape[:2]
    small_wh = tuple(max(16, 2 * round(encoding.scale * side / 2)) for side in (width, height))  # even: 4:2:0
    step = SOURCE_FPS / encoding.fps
    kept = [len(clip) - 1 - round(number * step) for number in range(len(clip))]
    frames = [_resized(clip[position], small_wh) for position in reversed(kept) if position >= 0]
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height = small_wh
    encoder.pix_fmt = "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(encoding.fps), Fraction(1, encoding.fps)
    encoder.options = {"crf": str(encoding.crf), "tune": encoding.tune, "preset": PRESET, "threads": "1"}
    packets = []
    for time, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
        picture.pts = time
        packets += encoder.encode(picture)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoded = [picture for packet in packets for picture in decoder.decode(packet)] + decoder.decode(None)
    return _resized(decoded[-1].to_ndarray(format="rgb24"), (width, height))


def _resized(frame: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    if frame.shape[1::-1] == size_wh:
        return np.ascontiguousarray(frame)
    smaller = size_wh[0] < frame.shape[1]
    return cv2.resize(frame, size_wh, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def reencoding(probability: float) -> Step:
    """A step that re-encodes the clip of the earlier crops and this one, or this one alone where there are none."""

    def change(crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        if not draws.chance(probability):
            return crop
        encoding = Encoding.draw(draws)
        earlier = context.clip()[-EARLIER_CROPS:] if context.clip is not None else []
        return reencode([*earlier, crop], encoding)

    return Step(change, needs_clip=True)


def reencoding_alone(probability: float, *, crf: tuple[int, int], scale: tuple[float, float]) -> Step:
    """A step that encodes the crop as a clip of one frame: the codec's blocks without its prediction over time, at a
    third of the cost."""

    def change(crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        if not draws.chance(probability):
            return crop
        return reencode([crop], Encoding.draw(draws, crf=crf, scale=scale))

    return Step(change)
