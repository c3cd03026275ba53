"""Augmentation presets (albumentations), each with its source. Crops stay uint8 RGB of the same size."""

import os
import random

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A

SHIFT_PIXELS = 8


def _none(size: int) -> list[A.BasicTransform]:
    return []


def _paper(size: int) -> list[A.BasicTransform]:
    """Flip only: what the authors' FaceForensics++ recipe does; the paper itself names none beside AGDA."""
    return [A.HorizontalFlip(p=0.5)]


def _standard(size: int) -> list[A.BasicTransform]:
    """Colour, noise, blur, JPEG at quality 65 to 80 and grey: the kinds the authors' DFDC recipe names."""
    return [
        A.HorizontalFlip(p=0.5),
        A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.3),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.3),
        A.OneOf([A.GaussNoise(std_range=(0.01, 0.04)), A.GaussianBlur(blur_limit=(3, 5))], p=0.2),
        A.ImageCompression(quality_range=(65, 80), p=0.3),
        A.ToGray(p=0.1),
    ]


def _light(size: int) -> list[A.BasicTransform]:
    """Flip, shifts by whole pixels, colour and erased squares: ours, for small sets.

    Nothing here resamples or smooths, so noise and resolution, the traces a forgery leaves, survive.
    """
    return [
        A.HorizontalFlip(p=0.5),
        A.Pad(padding=SHIFT_PIXELS, border_mode=cv2.BORDER_REFLECT_101),
        A.RandomCrop(height=size, width=size),
        A.HueSaturationValue(hue_shift_limit=20, sat_shift_limit=40, val_shift_limit=0, p=0.7),
        A.RandomBrightnessContrast(brightness_limit=0.25, contrast_limit=0.25, p=0.7),
        A.CoarseDropout(
            num_holes_range=(1, 2), hole_height_range=(0.1, 0.3), hole_width_range=(0.1, 0.3), fill=0, p=0.3
        ),
    ]


PRESETS = {"none": _none, "paper": _paper, "standard": _standard, "light": _light}


class Augmentation:
    """A preset as a function of (crop, seed): the same seed gives the same pixels in any process."""

    def __init__(self, preset: str, size: int) -> None:
        transforms = PRESETS[preset](size)
        self.pipeline = A.Compose(transforms) if transforms else None

    def __call__(self, crop: np.ndarray, seed: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> the same, augmented."""
        if self.pipeline is None:
            return crop
        # Not set_random_seed: it gives every transform the same seed, and with it the same draws.
        self.pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return self.pipeline(image=crop)["image"]
