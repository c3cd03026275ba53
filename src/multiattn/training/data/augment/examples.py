"""Crops of a faces folder through a preset or self-blending, many draws of each, to be looked at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.tables import FAKE, LANDMARKS, REAL
from multiattn.training.data.augment.faces import crop_landmarks, face_outline
from multiattn.training.data.augment.presets import Augmentation
from multiattn.training.data.augment.self_blend import blend_target, self_blend
from multiattn.training.data.augment.steps import EARLIER_CROPS, CropContext
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder


@dataclass(frozen=True)
class Example:
    """A crop and what was made of it."""

    kind: str
    """`real`, or the manipulation method."""
    video: str
    frame: int
    crop: np.ndarray
    """(size, size, 3) uint8 RGB."""
    landmarks: np.ndarray | None
    """(5, 2) pixels of the crop, where they are known."""
    outline: np.ndarray | None
    """(K, 2) pixels, the outline estimated from them."""
    draws: list[np.ndarray]
    """(size, size, 3) uint8 RGB each."""
    differences: list[np.ndarray]
    """(size, size) float32 each, of a self-blended image to the real crop it was blended onto, mean of the colours;
    empty for a preset."""


@dataclass(frozen=True)
class FolderCrops:
    """The crops that examples are made of: from the middle of different videos, real and fake ones in turn."""

    folder: Path
    size: int
    rows: pd.DataFrame
    """Rows of `faces`, with the column `kind`."""
    faces: pd.DataFrame
    """The whole `faces` table."""
    aligned: bool
    """Whether the crops were cut to our template, so that landmarks of the frame can be carried into them."""

    @classmethod
    def of(cls, folder: Path, *, count: int, size: int | None = None, real_only: bool = False) -> "FolderCrops":
        """Choose crops.

        Args:
            count: how many, from as many videos; fewer where the folder has fewer.
            size: side in pixels; None is the folder's own.
            real_only: real ones only.

        Raises:
            FileNotFoundError: not a finished faces folder.
            ValueError: no crop of a labelled video in it.
        """
        recipe = read_recipe(folder)
        faces, _, videos = read_faces_folder(folder)
        known = videos[videos["label"] == REAL] if real_only else videos[videos["label"].isin((REAL, FAKE))]
        known = known[known["video_id"].isin(faces["video_id"])].sort_values("video_id", ignore_index=True)
        if known.empty:
            what = "real" if real_only else "labelled"
            raise ValueError(f"{folder}: expected crops of {what} videos, found none among {len(faces)} crops.")
        turn = known.groupby("label").cumcount()
        chosen = known.assign(turn=turn).sort_values(["turn", "label"], kind="stable").head(count)
        rows = pd.concat([_middle_row(faces, video) for video in chosen["video_id"]])
        kinds = chosen["method"].where(chosen["method"] != "", "fake").where(chosen["label"] == FAKE, "real")
        rows = rows.assign(kind=kinds.to_numpy()).sort_values(["kind"], key=lambda kind: kind != "real", kind="stable")
        return cls(Path(folder), size or recipe.size, rows, faces, not recipe.foreign)

    def through_preset(self, preset: str, *, draws: int, seed: int = 0) -> list[Example]:
        """Draws of a preset, row by row."""
        augmentation = Augmentation(preset, self.size)
        return [
            self._example(row, lambda crop, seed, row=row: augmentation(crop, seed, self._context(row)), draws, seed)
            for row in self.rows.itertuples()
        ]

    def self_blended(self, *, draws: int, seed: int = 0) -> list[Example]:
        """Self-blended images, row by row.

        Raises:
            ValueError: the folder's landmarks are not known in its crops.
        """
        examples = []
        for row in self.rows.itertuples():
            landmarks = self._landmarks(row)
            if landmarks is None:
                raise ValueError(f"{self.folder}: self-blending needs landmarks, which {row.crop} does not have.")
            examples.append(
                self._example(
                    row,
                    lambda crop, seed, landmarks=landmarks: self_blend(crop, landmarks, seed),
                    draws,
                    seed,
                    target=blend_target,
                )
            )
        return examples

    def _example(
        self,
        row,
        draw: Callable[[np.ndarray, int], np.ndarray],
        draws: int,
        seed: int,
        target: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ) -> Example:
        crop = read_crop(self.folder / row.crop, self.size)
        seeds = np.random.default_rng((seed, row.Index)).integers(0, 2**31 - 1, draws).tolist()
        pictures = [draw(crop, each) for each in seeds]
        differences = []
        if target is not None:
            pairs = [(picture, target(crop, each)) for picture, each in zip(pictures, seeds, strict=True)]
            differences = [np.abs(a.astype(np.float32) - b).mean(axis=2) for a, b in pairs]
        landmarks = self._landmarks(row)
        outline = None if landmarks is None else face_outline(landmarks)
        return Example(row.kind, row.video_id, row.frame_index, crop, landmarks, outline, pictures, differences)

    def _landmarks(self, row) -> np.ndarray | None:
        points = np.array([getattr(row, name) for name in LANDMARKS]).reshape(5, 2)
        return crop_landmarks(points, self.size) if self.aligned and np.ptp(points) > 0 else None

    def _context(self, row) -> CropContext:
        track = self.faces[(self.faces["video_id"] == row.video_id) & (self.faces["track"] == row.track)]
        before = track[track["frame_index"] < row.frame_index].sort_values("frame_index")["crop"].tail(EARLIER_CROPS)
        return CropContext(
            landmarks=self._landmarks(row),
            clip=lambda: [read_crop(self.folder / name, self.size) for name in before],
        )


def _middle_row(faces: pd.DataFrame, video: str) -> pd.DataFrame:
    """The row in the middle of the video's longest track."""
    rows = faces[faces["video_id"] == video]
    track = rows["track"].value_counts(sort=False).sort_index().idxmax()
    rows = rows[rows["track"] == track].sort_values("frame_index")
    return rows.iloc[[len(rows) // 2]]
