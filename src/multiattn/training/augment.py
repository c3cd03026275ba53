"""Augmentation presets (albumentations), each with its source. Crops stay uint8 RGB of the same size."""

import os

import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations as A


def _none() -> list[A.BasicTransform]:
    return []


def _paper() -> list[A.BasicTransform]:
    """Flip only: what the authors' FaceForensics++ recipe does; the paper itself names none beside AGDA."""
    return [A.HorizontalFlip(p=0.5)]


def _standard() -> list[A.BasicTransform]:
    """Colour, noise, blur, JPEG at quality 65 to 80 and grey: the kinds the authors' DFDC recipe names."""
    return [
        A.HorizontalFlip(p=0.5),
        A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.3),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.3),
        A.OneOf([A.GaussNoise(std_range=(0.01, 0.04)), A.GaussianBlur(blur_limit=(3, 5))], p=0.2),
        A.ImageCompression(quality_range=(65, 80), p=0.3),
        A.ToGray(p=0.1),
    ]


PRESETS = {"none": _none, "paper": _paper, "standard": _standard}


class Augmentation:
    """A preset as a function of (crop, seed): the same seed gives the same pixels in any process."""

    def __init__(self, preset: str) -> None:
        transforms = PRESETS[preset]()
        self.pipeline = A.Compose(transforms) if transforms else None

    def __call__(self, crop: np.ndarray, seed: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> the same, augmented."""
        if self.pipeline is None:
            return crop
        self.pipeline.set_random_seed(seed)
        return self.pipeline(image=crop)["image"]
