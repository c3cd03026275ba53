"""Parts of a face in its crop, from five landmarks: its outline, and bands and halves of it, which can be made black.

Five points say nothing about jaw and brow. The outline is that of an average upright face, drawn in the frame of the
alignment template and carried to the landmarks by the similarity that carries the template there. It is an estimate:
good to about a twentieth of the crop's side for faces seen from the front, and narrowed on the far side, by where the
nose lies between the eyes, for faces that turn.

Source of the blackouts: the first place of DFDC (github.com/selimsef/dfdc_deepfake_challenge, classifier_dataset.py).
A network that cannot rely on one feature must use traces in the others.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from multiattn.runtime.crop_files import declared_root
from multiattn.tables import BOX, LANDMARKS
from multiattn.training.data.augment.steps import CropContext, Draws, Step
from multiattn.video.crops.recipe import TEMPLATE, CropRecipe, crop_landmarks, read_recipe, similarity_transform

# In units of the eyes' distance, from the point between the eyes, y down: the right half from the chin to the brow's
# middle and to the hairline's, after the proportions taught for drawing (the eyes' distance is 0.46 of the face's
# width; from the eyes to the chin it is 1.75 of it, to the brows 0.45, to the hairline 1.1).
_JAW = [(0.0, 1.75), (0.34, 1.70), (0.62, 1.46), (0.88, 1.05), (1.02, 0.55), (1.08, 0.0)]
_BROW = [(1.04, -0.30), (0.72, -0.47), (0.30, -0.46), (0.0, -0.42)]
_FOREHEAD = [(1.02, -0.38), (0.88, -0.72), (0.52, -1.00), (0.0, -1.10)]
_EYES = TEMPLATE[:2]
_TURN = 0.55
"""Share of its width that the far half loses when the nose's tip comes to lie under the far eye."""


@dataclass(frozen=True)
class CropLandmarks:
    """Landmarks of some crops of a faces folder."""

    points: np.ndarray
    """(N, 5, 2) float32 pixels of the frame, or of the stored crop where that is the frame of reference."""
    boxes: np.ndarray
    """(N, 4) float32, in the same pixels."""
    known: np.ndarray
    """(N,) bool, False where they are not known in the crop: none stored, or cut by another program."""
    recipe: CropRecipe | None
    """How the crops were cut from frames; None where each crop is its own frame of reference."""

    @classmethod
    def of(cls, folder: Path, faces: pd.DataFrame, rows: np.ndarray) -> "CropLandmarks":
        """Those of rows of the folder's `faces` table, of which the boxes and landmarks are needed."""
        recipe, in_crops = read_recipe(folder), declared_root(folder) is not None
        columns = [faces[name].to_numpy(dtype=np.float32)[rows] for name in (*LANDMARKS, *BOX)]
        points = np.stack(columns[: len(LANDMARKS)], axis=1).reshape(-1, 5, 2)
        known = np.isfinite(points).all(axis=(1, 2)) & (points != points[:, :1]).any(axis=(1, 2))
        known &= in_crops or not recipe.foreign
        return cls(points, np.stack(columns[len(LANDMARKS) :], axis=1), known, None if in_crops else recipe)

    def at(self, row: int, size: int) -> np.ndarray | None:
        """(5, 2) float32 pixels of a crop that is read at `size`; None where they are not known."""
        if not self.known[row]:
            return None
        points, box = self.points[row], self.boxes[row]
        if self.recipe is not None:
            return crop_landmarks(self.recipe, size, box_xyxy=box, landmarks=points)
        # Pixel centres: x + 0.5 grows with the side.
        return ((points + 0.5) * (size / box[2]) - 0.5).astype(np.float32)


def face_outline(landmarks: np.ndarray, *, forehead: bool = True) -> np.ndarray:
    """The outline of a face up to hairline or brows: (K, 2) float64 pixels, a polygon that may leave the picture.

    Landmarks, here and below: (5, 2) pixels (x, y) of the left eye, right eye, nose, left and right mouth corner, as
    seen in the picture.
    """
    half = np.array(_JAW + (_FOREHEAD if forehead else _BROW))
    template = np.concatenate([half, half[-2:0:-1] * (-1, 1)])
    distance = np.linalg.norm(_EYES[1] - _EYES[0])
    matrix = similarity_transform(TEMPLATE, landmarks)
    # -1 to 1: where the nose's tip lies between the eyes, along the line between them; 0 is the middle.
    left, right, nose = np.asarray(landmarks[:3], dtype=np.float64)
    line = right - left
    turn = float(np.clip(2 * np.dot(nose - left, line) / max(np.dot(line, line), 1e-9) - 1, -1, 1))
    template[:, 0] *= np.where(template[:, 0] > 0, 1 - _TURN * max(turn, 0), 1 + _TURN * min(turn, 0))
    return (template * distance + _EYES.mean(axis=0)) @ matrix[:, :2].T + matrix[:, 2]


def polygon_mask(outline: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8, 1 inside the polygon and 0 outside."""
    mask = np.zeros(size_wh[::-1], dtype=np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask


FEATURES = ("eyes", "mouth", "nose", "none")
FEATURE_PROBABILITIES = (0.5, 0.25, 0.125, 0.125)
"""The published chain of coins: eyes, else mouth, else nose, else nothing."""
HALVES = ("upper", "lower", "left", "right")


def feature_mask(landmarks: np.ndarray, feature: str, size_wh: tuple[int, int]) -> np.ndarray:
    """The band over one of `FEATURES`, (H, W) uint8: around the line from eye to eye, mouth corner to mouth corner, or
    from the nose's tip to the point between the eyes.

    Its half width is a quarter of the eyes' distance, for the mouth a third of that of its corners.

    Departures: the band has round ends; the published one, dilated by a cross, has pointed ones.
    """
    left_eye, right_eye, nose, left_mouth, right_mouth = np.asarray(landmarks, dtype=np.float64)
    eyes, mouth = np.linalg.norm(right_eye - left_eye), np.linalg.norm(right_mouth - left_mouth)
    mask = np.zeros(size_wh[::-1], dtype=np.uint8)
    lines = {
        "eyes": (left_eye, right_eye, eyes / 4),
        "mouth": (left_mouth, right_mouth, mouth / 3),
        "nose": (nose, (left_eye + right_eye) / 2, eyes / 4),
    }
    if feature in lines:
        start, end, half_width = lines[feature]
        points = [tuple(int(value) for value in np.round(point)) for point in (start, end)]
        cv2.line(mask, *points, color=1, thickness=max(1, round(2 * half_width)))
    return mask


def half_face_mask(landmarks: np.ndarray, half: str, size_wh: tuple[int, int]) -> np.ndarray:
    """One of `HALVES` of the face, (H, W) uint8, cut through the centre of its area, level or upright in the picture.

    Departures: the published outline is the jaw and the brows of dlib's 68 landmarks; this is `face_outline`, an
    estimate from five.
    """
    mask = polygon_mask(face_outline(landmarks, forehead=False), size_wh)
    if not mask.any():
        return mask
    y, x = (round(float(places.mean())) for places in np.nonzero(mask))
    kept = {"upper": np.s_[y:], "lower": np.s_[:y], "left": np.s_[:, x:], "right": np.s_[:, :x]}
    mask[kept[half]] = 0
    return mask


def black_out(features: float, halves: float) -> Step:
    """A step that, where landmarks are known, makes a feature black, else half of the face.

    The probabilities are those that a feature is drawn (`FEATURE_PROBABILITIES`, which contain nothing), and of a
    random half where none is drawn.
    """

    def change(crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        if context.landmarks is None:
            return crop
        size_wh = crop.shape[1::-1]
        if draws.chance(features):
            feature = str(draws.generator.choice(FEATURES, p=FEATURE_PROBABILITIES))
            mask = feature_mask(context.landmarks, feature, size_wh)
        elif draws.chance(halves):
            mask = half_face_mask(context.landmarks, str(draws.generator.choice(HALVES)), size_wh)
        else:
            return crop
        return np.where(mask[..., None] > 0, np.uint8(0), crop)

    return Step(change, needs_landmarks=True)
