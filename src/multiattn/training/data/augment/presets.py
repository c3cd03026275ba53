"""Augmentation presets by name, each with its source and how it departs from it.

A preset of others departs from its source in this too: crops come aligned and at the network's size, so nothing resizes
or pads them to it, and they are normalised later.
"""

from collections.abc import Callable

import albumentations as A
import cv2
import numpy as np

from multiattn.config import DataConfig
from multiattn.config.choices import DEGRADING_PRESETS
from multiattn.config.settings import registry
from multiattn.training.data.augment.degrade import degrading
from multiattn.training.data.augment.faces import black_out
from multiattn.training.data.augment.reencode import reencoding
from multiattn.training.data.augment.steps import CropContext, Draws, Step, moving, pixels, require_albumentations

NOTHING_KNOWN = CropContext()
PIXEL_STREAM = 1
"""Stream of the seed's numbers where steps that move and steps that do not take turns. With one sequence the second
kind's number of draws would decide where the first kind moves things; with the same sequence twice a crop would be
blurred only where it is mirrored."""


class Augmentation:
    """A preset as a function of (crop, seed): the same seed gives the same pixels in any process.

    It may need the landmarks or the clip of a `CropContext`, without which it does less. A preset that `degrades` takes
    crops at the side they are stored with, its strength from the context, and gives crops of one `geometry_seed` the
    same changes altogether: a pair must not be told apart by them.

    Raises:
        ValueError: no such preset, or a version of albumentations outside the bounds.
    """

    def __init__(self, preset: str, size: int) -> None:
        require_albumentations()
        if preset not in PRESETS:
            raise ValueError(f"augmentation: expected one of {', '.join(PRESETS)}, found {preset!r}.")
        self.preset, self.size, self.degrades = preset, size, preset in DEGRADING_PRESETS
        self.steps = PRESETS[preset](size)
        moves = [step.moves for step in self.steps]
        self._moves_first = moves == sorted(moves, reverse=True)
        self.needs_landmarks = any(step.needs_landmarks for step in self.steps)
        self.needs_clip = any(step.needs_clip for step in self.steps)

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        """Made anew in a worker that is not forked, as on macOS: the steps' functions cannot travel."""
        return type(self), (self.preset, self.size)

    def __call__(
        self, crop: np.ndarray, seed: int, context: CropContext = NOTHING_KNOWN, *, geometry_seed: int | None = None
    ) -> np.ndarray:
        """The crop, (H, W, 3) uint8 RGB, augmented; `crop` itself where nothing was drawn.

        Args:
            seed: 0 or more; decides everything but the geometry.
            geometry_seed: decides flip, shift, scale, rotation and random crop alone, so that two crops given the
                same one are moved alike; None is `seed`.
        """
        if self.degrades and geometry_seed is not None:
            seed = geometry_seed
        geometry = Draws(seed if geometry_seed is None else geometry_seed)
        own_geometry = geometry_seed is None or geometry_seed == seed
        others = geometry if own_geometry and self._moves_first else Draws(seed, PIXEL_STREAM)
        for step in self.steps:
            crop = step.change(crop, geometry if step.moves else others, context)
        return crop


SHIFT_PIXELS = 8
OLD_GAUSS_NOISE = (0.0124, 0.0277)
"""Standard deviations of `GaussNoise()` in the albumentations of 2020, whose variance was 10 to 50 grey levels."""


def _paper(size: int) -> list[Step]:
    """Flip only, as in the authors' FaceForensics++ recipe; the paper itself names none beside AGDA."""
    return [moving(A.HorizontalFlip(p=0.5))]


def _standard(size: int) -> list[Step]:
    """Colour, noise, blur, JPEG at quality 65 to 80 and grey: the kinds the authors' DFDC recipe names."""
    return [
        moving(A.HorizontalFlip(p=0.5)),
        pixels(
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.3),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.3),
            A.OneOf([A.GaussNoise(std_range=(0.01, 0.04)), A.GaussianBlur(blur_limit=(3, 5))], p=0.2),
            A.ImageCompression(quality_range=(65, 80), p=0.3),
            A.ToGray(p=0.1),
        ),
    ]


def _light(size: int) -> list[Step]:
    """Flip, shifts by whole pixels, colour and erased squares: ours, for small sets.

    Nothing here resamples or smooths, so noise and resolution, the traces a forgery leaves, survive.
    """
    return [
        moving(
            A.HorizontalFlip(p=0.5),
            A.Pad(padding=SHIFT_PIXELS, border_mode=cv2.BORDER_REFLECT_101),
            A.RandomCrop(height=size, width=size),
        ),
        pixels(
            A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=40, val_shift_limit=0, p=0.7),
            A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.7),
            A.CoarseDropout(
                num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), fill=0, p=0.3
            ),
        ),
    ]


def _wm(size: int) -> list[Step]:
    """Second place of DFDC, by the paper's first author (github.com/cuihaoleo/kaggle-dfdc, strong_transform.py): half
    of the crops pass noise, blur, hue, brightness or sharpness or relief, and sepia, each with its own probability.

    Departures: the flip, inside the published half, is drawn apart with the same probability, 0.25.
    """
    noise = [A.GaussNoise(std_range=(0.01, 0.05), per_channel=False), A.GaussNoise(std_range=OLD_GAUSS_NOISE)]
    blur = [
        A.MotionBlur(blur_limit=(3, 7), p=0.25),
        A.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.8, 1.4), p=0.5),
        A.Blur(blur_limit=3, p=0.25),
    ]
    light = [
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0),
        A.Sharpen(alpha=(0.2, 0.5), lightness=(0.5, 1.0)),
        A.Emboss(alpha=(0.2, 0.5), strength=(0.2, 0.7)),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2),
    ]
    block = [
        A.OneOf(noise, p=0.2),
        A.OneOf(blur, p=0.2),
        A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20, p=0.2),
        A.OneOf(light, p=0.6),
        A.ToSepia(p=0.1),
    ]
    return [moving(A.HorizontalFlip(p=0.25)), pixels(A.Sequential(block, p=0.5))]


def _selim(size: int) -> list[Step]:
    """First place of DFDC (github.com/selimsef/dfdc_deepfake_challenge, train_classifier.py): a feature or half of the
    face black, JPEG at quality 60 to 100, noise, blur, flip, resampling, colour, grey, shift, scale and rotation.

    Departures: features and halves from five landmarks, see `black_out`; the third blackout, of quadrants, needs
    difference masks of real and fake and is left out. The published resize to the network's size, with one of three
    pairs of kernels, becomes a way through 0.5 to 1 of it in half of the crops.
    """
    kernels = [(cv2.INTER_AREA, cv2.INTER_CUBIC), (cv2.INTER_AREA, cv2.INTER_LINEAR), (cv2.INTER_LINEAR,) * 2]
    resampled = [
        A.Downscale(scale_range=(0.5, 1.0), interpolation_pair={"downscale": down, "upscale": up})
        for down, up in kernels
    ]
    colour = [
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2),
        A.FancyPCA(alpha=0.1),
        A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20),
    ]
    return [
        black_out(features=0.7, halves=0.2),
        pixels(
            A.ImageCompression(quality_range=(60, 100), p=0.5),
            A.GaussNoise(std_range=OLD_GAUSS_NOISE, p=0.1),
            A.GaussianBlur(blur_limit=3, sigma_limit=(0.8, 0.8), p=0.05),
        ),
        moving(A.HorizontalFlip(p=0.5)),
        pixels(A.OneOf(resampled, p=0.5), A.OneOf(colour, p=0.7), A.ToGray(p=0.2)),
        moving(_shift_scale_rotate(shift=0.1, scale=(0.8, 1.2), degrees=10, border=cv2.BORDER_CONSTANT, p=0.5)),
    ]


def _ntech(size: int) -> list[Step]:
    """Third place of DFDC (github.com/NTech-Lab/deepfake-detection-challenge, the frame model with random erasing):
    re-encoding with H.264, flip, random crop, AutoAugment, a random erased rectangle.

    Departures: the clip is this crop and up to three earlier ones of the faces folder, aligned and further apart than
    its 50 consecutive frames in one box. The random crop of 192 of 224 pixels in width is a square window of 6/7 of
    the side, scaled back. AutoAugment as `policy_pixels` says. The erased rectangle holds uniform noise, not normal.
    """
    window = round(size * 192 / 224)
    return [
        reencoding(0.5),
        moving(
            A.HorizontalFlip(p=0.5),
            A.RandomSizedCrop(min_max_height=(window, window), size=(size, size)),
            *policy_geometry(0.5),
        ),
        pixels(policy_pixels(0.5), A.Erasing(scale=(0.02, 1 / 3), ratio=(0.3, 3.3), fill="random", p=0.2)),
    ]


def _strong(size: int) -> list[Step]:
    """Our own, by the evidence: no single feature, codec or resolution shall be worth relying on, and the traces of a
    forgery shall stay in most views.

    - A feature black (0.22) or half of the face (0.075): the first place's; Das et al. 2021 (arXiv:2102.09603) measured
      15 to 35 % less log loss with cut-outs by landmarks than with other ones. Less often than there (0.61 and 0.06),
      for trainings shorter than its 100,000 steps.
    - Flip (0.5): all five winners. Shift, scale and rotation (0.3): the first place's, half as wide; it resamples.
    - Colour (0.5), grey (0.1), noise or blur, mild (0.15), a lower resolution and back (0.15), H.264 of one frame at
      CRF 18 to 32 (0.15), JPEG at quality 40 to 95 (0.35): what DFDC's test videos went through (Dolhansky et al. 2020,
      arXiv:2006.07397: brightness, contrast, grey, noise, blur, resolution, encoding quality), and some of which every
      winner trained with. Resolution and codecs come last, as on a video's way to its audience.
    """
    colour = [
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2),
        A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=25, val_shift_limit=10),
        A.RandomGamma(gamma_limit=(80, 125)),
    ]
    mild = [
        A.GaussNoise(std_range=(0.008, 0.03)),
        A.GaussianBlur(blur_limit=(3, 5), sigma_limit=(0.4, 1.1)),
        A.MotionBlur(blur_limit=(3, 5)),
    ]
    pair = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
    # Not below 96 and 160 pixels: less of a small crop would leave no face, and far more of the codec than a video has.
    lowest, lowest_encoded = min(0.9, max(0.5, 96 / size)), min(1.0, max(0.6, 160 / size))
    return [
        black_out(features=0.25, halves=0.1),
        moving(
            A.HorizontalFlip(p=0.5),
            _shift_scale_rotate(shift=0.05, scale=(0.9, 1.1), degrees=8, border=cv2.BORDER_REFLECT_101, p=0.3),
        ),
        pixels(
            A.OneOf(colour, p=0.5),
            A.ToGray(p=0.1),
            A.OneOf(mild, p=0.15),
            A.Downscale(scale_range=(lowest, 0.9), interpolation_pair=pair, p=0.15),
        ),
        reencoding(0.15, alone=True, crf=(18, 32), scale=(lowest_encoded, 1.0)),
        pixels(A.ImageCompression(quality_range=(40, 95), p=0.35)),
    ]


def _box(size: int) -> list[Step]:
    """Our own, for crops cut by a box alone, so that another detector's box or an uncompressed frame is nothing new:
    scale within 15 %, shift 10 %, rotation 10 degrees (0.8), flip, colour, grey, noise or blur, a lower resolution and
    back, JPEG at quality 40 to 95 (0.6).
    """
    pair = {"downscale": cv2.INTER_AREA, "upscale": cv2.INTER_LINEAR}
    mild = [A.GaussNoise(std_range=(0.008, 0.03)), A.GaussianBlur(blur_limit=(3, 5), sigma_limit=(0.4, 1.1))]
    return [
        _box_moves(),
        pixels(
            A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.3),
            A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.3),
            A.ToGray(p=0.1),
            A.OneOf(mild, p=0.2),
            A.Downscale(scale_range=(0.5, 0.9), interpolation_pair=pair, p=0.15),
            A.ImageCompression(quality_range=(40, 95), p=0.6),
        ),
    ]


def _box_moves() -> Step:
    limits = {"shift": 0.1, "scale": (0.85, 1.15), "degrees": 10, "border": cv2.BORDER_REFLECT_101}
    return moving(A.HorizontalFlip(p=0.5), _shift_scale_rotate(**limits, p=0.8))


def _wild(size: int) -> list[Step]:
    """Our own, for videos as they are met: re-encoded, forwarded, filmed by night. The moves of `box` in every crop;
    then nothing more in 30 % of them, and in the others one to four of `DEGRADATIONS` in a drawn order.

    Sources: the DeeperForensics-1.0 benchmark (Jiang et al. 2020, arXiv:2001.03024) for saturation, contrast, noise,
    blur, resolution and codec; the generator of the NTIRE 2026 robust detection challenge (arXiv:2506.05119) for the
    drawn order and text; the MSU challenge beside it for a disk's blur, one to three kinds a crop, and strengths that
    favour the mild; its fourth place (arXiv:2604.25889) for chains of JPEG and strengths of a Beta distribution; the
    third place of DFDC for re-encoding, alike for a real crop and its fake; Brooks et al. 2019 (arXiv:1811.11127) for
    the sensor's noise. All numbers are ours.
    """
    return [_box_moves(), degrading(0.7)]


def _shift_scale_rotate(
    *, shift: float, scale: tuple[float, float], degrees: float, border: int, p: float
) -> A.BasicTransform:
    """albumentations' `ShiftScaleRotate`, which warns that it is now `Affine`."""
    shifts, angles = (-shift, shift), (-degrees, degrees)
    return A.Affine(translate_percent=shifts, scale=scale, rotate=angles, keep_ratio=True, border_mode=border, p=p)


# AutoAugment's policy for ImageNet as albumentations' transforms (Cubuk et al. 2019, arXiv:1805.09501), with magnitudes
# read and varied as timm's `original-mstd0.5` does, which the third place of DFDC trained with. Departures: shears and
# rotations are drawn apart from the rest (with the probability they have in the whole policy), because they follow the
# geometry's seed; a magnitude's normal spread of 0.5 is a uniform one of as much; sharpness is albumentations'
# sharpening kernel.
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
    factor, kept = (1.8 * low + 0.1, 1.8 * high + 0.1), (1.0, 1.0)
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


PRESETS: dict[str, Callable[[int], list[Step]]] = registry(
    DataConfig,
    "augmentation",
    {
        "none": lambda _: [],
        "paper": _paper,
        "light": _light,
        "standard": _standard,
        "wm": _wm,
        "selim": _selim,
        "ntech": _ntech,
        "strong": _strong,
        "box": _box,
        "wild": _wild,
    },
)
"""Name -> the steps for crops of a size. The names stand in `DataConfig.augmentation`."""
