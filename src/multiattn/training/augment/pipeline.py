"""A preset as a function of crop and seeds."""

import numpy as np

from multiattn.training.augment.library import require_albumentations
from multiattn.training.augment.presets import PRESETS
from multiattn.training.augment.steps import CropContext, Draws

NOTHING_KNOWN = CropContext()
PIXEL_STREAM = 1
"""Of the seed's numbers, where steps that move and steps that do not take turns. With one sequence the second kind's
number of draws would decide where the first kind moves things; with the same sequence twice a crop would be blurred
only where it is mirrored."""


class Augmentation:
    """A preset as a function of (crop, seed): the same seed gives the same pixels in any process.

    Args:
        preset: a name in `PRESETS`.
        size: side of the crops in pixels.

    Raises:
        ValueError: no such preset, or a version of albumentations outside the bounds.
    """

    def __init__(self, preset: str, size: int) -> None:
        require_albumentations()
        if preset not in PRESETS:
            raise ValueError(f"augmentation: expected one of {', '.join(PRESETS)}, found {preset!r}.")
        self.steps = PRESETS[preset](size)
        moves = [step.moves for step in self.steps]
        self._moves_first = moves == sorted(moves, reverse=True)

    @property
    def needs_landmarks(self) -> bool:
        """Whether it does less without `CropContext.landmarks`."""
        return any(step.needs_landmarks for step in self.steps)

    @property
    def needs_clip(self) -> bool:
        """Whether it does less without `CropContext.clip`."""
        return any(step.needs_clip for step in self.steps)

    def __call__(
        self,
        crop: np.ndarray,
        seed: int,
        context: CropContext = NOTHING_KNOWN,
        *,
        geometry_seed: int | None = None,
    ) -> np.ndarray:
        """The crop, augmented.

        Args:
            crop: (H, W, 3) uint8 RGB; left as it is.
            seed: 0 or more; decides everything but the geometry.
            geometry_seed: decides flip, shift, scale, rotation and random crop alone, so that two crops given the
                same one are moved alike; None is `seed`.

        Returns:
            (H, W, 3) uint8 RGB; `crop` itself where nothing was drawn.
        """
        geometry = Draws(seed if geometry_seed is None else geometry_seed)
        own_geometry = geometry_seed is None or geometry_seed == seed
        others = geometry if own_geometry and self._moves_first else Draws(seed, PIXEL_STREAM)
        for step in self.steps:
            crop = step.change(crop, geometry if step.moves else others, context)
        return crop

    def move(self, picture: np.ndarray, geometry_seed: int) -> np.ndarray:
        """Another picture of the same size, such as a mask (H, W) uint8 or a crop, moved as `geometry_seed` moves."""
        geometry = Draws(geometry_seed)
        for step in self.steps:
            if step.moves:
                picture = step.change(picture, geometry, NOTHING_KNOWN)
        return picture
