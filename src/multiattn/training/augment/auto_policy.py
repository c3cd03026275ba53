"""The policy that AutoAugment found for ImageNet, as albumentations' transforms.

Source: Cubuk et al. 2019 (arXiv:1805.09501), with magnitudes read and varied as timm's `original-mstd0.5` does, which
the third place of DFDC trained with.

Departures: shears and rotations are drawn apart from the rest (with the probability they have in the whole policy),
because they follow the geometry's seed; a magnitude's normal spread of 0.5 is a uniform one of as much; sharpness is
albumentations' sharpening kernel.
"""

from multiattn.training.augment.library import albumentations as A

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
