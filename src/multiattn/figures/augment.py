"""Contact sheets of augmentation: crops of a faces folder, and what the network is shown of them, draw by draw."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multiattn.figures.page import InchPage
from multiattn.inference.attention_maps import middle_crops, video_types
from multiattn.runtime.crop_files import crops_root
from multiattn.tables import FAKE, REAL
from multiattn.training.data.augment.faces import CropLandmarks, face_outline
from multiattn.training.data.augment.presets import Augmentation
from multiattn.training.data.augment.self_blend import blend_target, self_blend
from multiattn.training.data.augment.steps import EARLIER_CROPS, CropContext
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

DPI = 150
CELL, GAP, LABEL, MARGIN = 1.5, 0.04, 1.15, 0.12
"""In inches: at 150 dots an inch a cell shows 225 pixels."""
LINE, TITLE, HEADS = 0.16, 0.34, 0.24
DIFFERENCE_CELL = 0.75
DIFFERENCE_GAIN = 4
"""A difference of a quarter of the grey levels is white."""
MARKS = "#00d0ff"


@dataclass(frozen=True)
class SheetRow:
    """One crop and its draws."""

    kind: str
    """`real`, or the manipulation method."""
    video: str
    frame: int
    crop: np.ndarray
    """(H, W, 3) uint8 RGB."""
    draws: list[np.ndarray]
    """(H, W, 3) uint8 RGB each."""
    differences: list[np.ndarray]
    """(H, W) float32, one a draw, shown below them: of a self-blended image to the real crop it was blended onto, mean
    of the colours; empty for a preset."""
    landmarks: np.ndarray | None = None
    """(5, 2) pixels of the crop, where they are known; marked in the first column with the outline they give."""


@dataclass(frozen=True)
class FolderCrops:
    """The crops a sheet shows: from the middle of different videos, real and fake ones in turn."""

    folder: Path
    size: int
    rows: pd.DataFrame
    """Rows of `faces`, with the column `kind`."""
    faces: pd.DataFrame
    landmarks: CropLandmarks

    @classmethod
    def of(cls, folder: Path, *, count: int, size: int | None = None, real_only: bool = False) -> "FolderCrops":
        """Crops of `count` videos, fewer where the folder has fewer; `size` in pixels, None for the folder's own.

        Raises:
            FileNotFoundError: not a finished faces folder.
            ValueError: no crop of a labelled video in it, or smaller crops.
        """
        recipe = read_recipe(folder)
        faces, _, videos = read_faces_folder(folder)
        known = videos[videos["label"] == REAL] if real_only else videos[videos["label"].isin((REAL, FAKE))]
        known = known[known["video_id"].isin(faces["video_id"])].sort_values("video_id", ignore_index=True)
        if known.empty:
            what = "real" if real_only else "labelled"
            advice = "Leave sbi out of --presets." if real_only else "Labels come from `multiattn index`."
            raise ValueError(
                f"{folder}: expected crops of {what} videos, found none among {len(faces)} crops. {advice}"
            )
        if size is not None and size > recipe.size:
            raise ValueError(
                f"--size: expected at most {recipe.size}, the side of the crops in {folder}, found {size}."
            )
        turn = known.groupby("label").cumcount()
        chosen = known.assign(turn=turn).sort_values(["turn", "label"], kind="stable").head(count)
        rows = pd.concat([middle_crops(faces[faces["video_id"] == video]) for video in chosen["video_id"]])
        kinds = video_types(chosen).to_numpy()
        rows = rows.assign(kind=kinds).sort_values(["kind"], key=lambda kind: kind != "real", kind="stable")
        landmarks = CropLandmarks.of(folder, rows, np.arange(len(rows)))
        return cls(Path(folder), size or recipe.size, rows, faces, landmarks)

    def through_preset(self, preset: str, *, draws: int, seed: int = 0, strength: float = 1.0) -> list[SheetRow]:
        augmentation = Augmentation(preset, self.size)
        return [
            self._sheet_row(row, partial(augmentation, context=self._context(row, strength)), draws, seed)
            for row in self.rows.itertuples()
        ]

    def self_blended(self, *, draws: int, seed: int = 0) -> list[SheetRow]:
        known = [(row, landmarks) for row in self.rows.itertuples() if (landmarks := self._landmarks(row)) is not None]
        if not known:
            first = self.rows["crop"].iloc[0]
            raise ValueError(
                f"{self.folder}: self-blending needs landmarks, which {first} does not have, nor any other of "
                f"{len(self.rows)} crops. Leave sbi out of --presets."
            )
        return [
            self._sheet_row(row, partial(self_blend, landmarks=landmarks), draws, seed, target=blend_target)
            for row, landmarks in known
        ]

    def _sheet_row(
        self, row: Any, draw: Callable[..., np.ndarray], draws: int, seed: int, target: Callable | None = None
    ) -> SheetRow:
        crop = self._read(row.crop)
        seeds = np.random.default_rng((seed, row.Index)).integers(0, 2**31 - 1, draws).tolist()
        pictures = [draw(crop, seed=each) for each in seeds]
        differences = []
        if target is not None:
            pairs = [(picture, target(crop, each)) for picture, each in zip(pictures, seeds, strict=True)]
            differences = [np.abs(a.astype(np.float32) - b).mean(axis=2) for a, b in pairs]
        return SheetRow(row.kind, row.video_id, row.frame_index, crop, pictures, differences, self._landmarks(row))

    def _landmarks(self, row: Any) -> np.ndarray | None:
        return self.landmarks.at(self.rows.index.get_loc(row.Index), self.size)

    def _context(self, row: Any, strength: float) -> CropContext:
        track = self.faces[(self.faces["video_id"] == row.video_id) & (self.faces["track"] == row.track)]
        before = track[track["frame_index"] < row.frame_index].sort_values("frame_index")["crop"].tail(EARLIER_CROPS)
        return CropContext(
            landmarks=self._landmarks(row),
            clip=lambda: [self._read(name) for name in before],
            strength=strength,
        )

    def _read(self, name: str) -> np.ndarray:
        return read_crop(crops_root(self.folder) / name, self.size)


def augmentations_figure(rows: list[SheetRow], title: str, *, note: str = "") -> Figure:
    """A row for each crop: the original, then its draws, as many in each row; below them their differences, if any.
    `note` is a paragraph under the title."""
    columns = 1 + len(rows[0].draws)
    width = 2 * MARGIN + LABEL + columns * (CELL + GAP)
    words = textwrap.wrap(" ".join(note.split()), round(17 * (width - 2 * MARGIN)))
    top = MARGIN + TITLE + LINE * len(words) + HEADS
    heights = [CELL + GAP + (DIFFERENCE_CELL + GAP if row.differences else 0) for row in rows]
    height = top + sum(heights) + MARGIN
    page = InchPage(width, height, dpi=DPI)
    page.text(MARGIN, MARGIN, title, size=12, weight="bold", va="top")
    for number, line in enumerate(words):
        page.text(MARGIN, MARGIN + TITLE + LINE * number, line, size=8, va="top", color="0.3")
    for column in range(columns):
        head = "original" if column == 0 else str(column)
        page.text(_column(column) + CELL / 2, top - 0.06, head, size=9, ha="center", va="bottom")
    for row, row_height in zip(rows, heights, strict=True):
        _draw_row(page, row, top)
        top += row_height
    return page.figure


def _column(number: int) -> float:
    """The left edge of a column, in inches."""
    return MARGIN + LABEL + number * (CELL + GAP)


def _draw_row(page: InchPage, row: SheetRow, top: float) -> None:
    name = row.video.rsplit("/", 1)[-1]
    page.text(MARGIN, top + CELL / 2 - 0.04, textwrap.shorten(row.kind, 16, placeholder="…"), weight="bold", size=9)
    page.text(MARGIN, top + CELL / 2 + 0.04, f"{name[-18:]}\nframe {row.frame}", size=7, va="top", color="0.35")
    axes = page.image(_column(0), top, CELL, row.crop)
    if row.landmarks is not None:
        outline = face_outline(row.landmarks)
        axes.plot(*row.landmarks.T, "o", markersize=2.2, color=MARKS, markeredgewidth=0)
        axes.plot(*np.vstack([outline, outline[:1]]).T, color=MARKS, linewidth=0.8)
        axes.set(xlim=(-0.5, row.crop.shape[1] - 0.5), ylim=(row.crop.shape[0] - 0.5, -0.5))
    for column, picture in enumerate(row.draws, start=1):
        page.image(_column(column), top, CELL, picture)
    for column, difference in enumerate(row.differences, start=1):
        x = _column(column) + (CELL - DIFFERENCE_CELL) / 2
        scaled = np.clip(DIFFERENCE_GAIN * difference / 255, 0, 1)
        page.image(x, top + CELL + GAP, DIFFERENCE_CELL, scaled, cmap="gray", vmin=0, vmax=1)
    if row.differences:
        words = f"difference\nx {DIFFERENCE_GAIN}"
        page.text(_column(0) + CELL, top + CELL + GAP + DIFFERENCE_CELL / 2, words, size=7, ha="right", va="center")
