"""Parts of the face made black: the bands of its features and its halves, from five landmarks.

Source: the first place of DFDC (github.com/selimsef/dfdc_deepfake_challenge, classifier_dataset.py). A network that
cannot lean on one feature must look for traces in the others.
"""

import cv2
import numpy as np

from multiattn.training.augment.face_shape import face_outline, polygon_mask
from multiattn.training.augment.steps import CropContext, Draws, Step

FEATURES = ("eyes", "mouth", "nose", "none")
FEATURE_PROBABILITIES = (0.5, 0.25, 0.125, 0.125)
"""The published chain of coins: eyes, else mouth, else nose, else nothing."""
HALVES = ("upper", "lower", "left", "right")


def feature_mask(landmarks: np.ndarray, feature: str, size_wh: tuple[int, int]) -> np.ndarray:
    """The band over a feature: around the line from eye to eye, from mouth corner to mouth corner, or from the nose's
    tip to the point between the eyes.

    Args:
        landmarks: (5, 2) pixels (x, y).
        feature: one of `FEATURES`.

    Returns:
        (H, W) uint8, 1 in the band. Its half width is a quarter of the eyes' distance, for the mouth a third of that
        of its corners.

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


def half_face_mask(landmarks: np.ndarray, half: str, size_wh: tuple[int, int], *, forehead: bool = False) -> np.ndarray:
    """One half of the face, cut through the centre of its area, level or upright in the picture.

    Args:
        landmarks: (5, 2) pixels (x, y).
        half: one of `HALVES`.

    Returns:
        (H, W) uint8, 1 in the half.

    Departures: the published outline is the jaw and the brows of dlib's 68 landmarks; this is `face_outline`, an
    estimate from five.
    """
    mask = polygon_mask(face_outline(landmarks, forehead=forehead), size_wh)
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        return mask
    y, x = round(float(rows.mean())), round(float(columns.mean()))
    kept = {"upper": np.s_[y:], "lower": np.s_[:y], "left": np.s_[:, x:], "right": np.s_[:, :x]}
    mask[kept[half]] = 0
    return mask


def black_out(features: float, halves: float) -> Step:
    """A step that, where landmarks are known, makes a feature black, else half of the face.

    Args:
        features: probability that a feature is drawn (`FEATURE_PROBABILITIES`, which contain nothing).
        halves: probability of a random half where no feature is drawn.
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
