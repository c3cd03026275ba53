"""What a visit of a crop shows: the crop, or a fake made of it, augmented by what is known about the face."""

from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.config import DataConfig
from multiattn.tables import FAKE, LANDMARKS, REAL
from multiattn.training.augment import (
    EARLIER_CROPS,
    Augmentation,
    CropContext,
    blend_target,
    crop_landmarks,
    self_blend,
)
from multiattn.training.sampling import Visit
from multiattn.video.crops.cache import CropCache
from multiattn.video.crops.images import CropImages
from multiattn.video.crops.recipe import read_recipe

BLEND_STREAM = 20
"""Of a visit's random numbers: whether it shows the crop blended with itself."""


class TrainingCrops(CropImages):
    """Crops with labels and augmentation, by visit.

    With `config.sbi` a visit of a real crop shows it blended with itself instead, with that probability, and its label
    is fake; all other crops are then changed as a whole as often as self-blended ones are. Everything follows from the
    visit alone.

    Args:
        folder: the faces folder.
        table: `FoldCrops.training`.
        faces: the whole `faces` table, where the preset or SBI needs landmarks.

    Raises:
        ValueError: landmarks are needed, and these crops have none or were cut by another program.
    """

    def __init__(
        self,
        folder: Path,
        table: pd.DataFrame,
        faces: pd.DataFrame | None,
        config: DataConfig,
        *,
        cache: CropCache | None = None,
    ) -> None:
        rows = table["face"].to_numpy() if cache is not None else None
        super().__init__(folder, table["crop"], config.image_size, cache=cache, cache_rows=rows)
        self.labels = table["label"].to_numpy().astype(np.int8)
        self.augmentation = Augmentation(config.augmentation, config.image_size)
        self.blended = config.sbi
        self.landmarks = self.stored_size = None
        if self.augmentation.needs_landmarks or self.blended > 0:
            option = f"--sbi {config.sbi}" if self.blended > 0 else f"--data.augmentation {config.augmentation}"
            self.stored_size = _stored_size(folder, option)
            self.landmarks = _landmarks(folder, table, faces, option)  # (N, 5, 2) float32, pixels of the full frame
        if self.augmentation.needs_clip:
            self.video = pd.factorize(table["video_id"])[0].astype(np.int32)
            self.track = table["track"].to_numpy().astype(np.int32)

    def fill(self, visit: Visit, out: np.ndarray) -> int:
        """Write what a visit shows into `out`, (size, size, 3) uint8 RGB; returns its label."""
        row, seed, geometry_seed = visit
        crop, label = self.read(row), int(self.labels[row])
        landmarks = None if self.landmarks is None else self._landmarks_of_crop(row)
        if label == REAL and self.blended > 0 and _draw(seed) < self.blended:
            crop, label = self_blend(crop, landmarks, seed), FAKE
        elif self.blended > 0:
            crop = blend_target(crop, seed)  # or whole-crop changes would be a mark of self-blended images alone
        clip = (lambda: [self.read(other) for other in self._earlier(row)]) if self.augmentation.needs_clip else None
        out[...] = self.augmentation(crop, seed, CropContext(landmarks, clip), geometry_seed=geometry_seed)
        return label

    def _landmarks_of_crop(self, row: int) -> np.ndarray:
        """(5, 2) float32 pixels of the crop at the size that is read."""
        stored = crop_landmarks(self.landmarks[row], self.stored_size)
        # Pixel centres: x + 0.5 grows with the side.
        return ((stored + 0.5) * (self.size / self.stored_size) - 0.5).astype(np.float32)

    def _earlier(self, row: int) -> list[int]:
        """Rows of the same face before this one, oldest first, as many as a clip may have."""
        rows, other = [], row - 1
        while other >= 0 and self.video[other] == self.video[row] and len(rows) < EARLIER_CROPS:
            if self.track[other] == self.track[row]:
                rows.insert(0, other)
            other -= 1
        return rows


def _draw(seed: int) -> float:
    return float(np.random.default_rng((seed, BLEND_STREAM)).random())


def _stored_size(folder: Path, option: str) -> int:
    """The side of the stored crops, if it is known where landmarks lie in them."""
    recipe = read_recipe(folder)
    if recipe.foreign:
        raise ValueError(
            f"{folder}: {option} needs the landmarks of every crop, and where they lie in crops that another program "
            f"cut is not known ({recipe.foreign}). Cut the faces with `multiattn faces`, or leave the option out."
        )
    return recipe.size


def _landmarks(folder: Path, table: pd.DataFrame, faces: pd.DataFrame | None, option: str) -> np.ndarray:
    """(N, 5, 2) float32 pixels of the full frame, of the table's rows."""
    if faces is None:
        raise ValueError(f"{folder}: {option} needs the landmarks of every crop, and the faces table was not given.")
    rows = table["face"].to_numpy()
    points = np.empty((len(rows), len(LANDMARKS)), dtype=np.float32)
    for place, name in enumerate(LANDMARKS):
        points[:, place] = faces[name].to_numpy()[rows]
    points = points.reshape(-1, 5, 2)
    missing = ~np.isfinite(points).all(axis=(1, 2)) | (points == points[:, :1]).all(axis=(1, 2))
    if missing.any():
        raise ValueError(
            f"{folder}: {option} needs the landmarks of every crop, and {missing.sum()} of {len(table)} have none; the "
            f"first: {table['crop'].iloc[int(missing.argmax())]}. Cut the faces with `multiattn faces`, or leave the "
            "option out."
        )
    return points
