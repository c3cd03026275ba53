"""The making of crops: alignment to a template or a plain square around a box, and the recipe stored with them.

`faces.json` holds one `CropRecipe`. Version 1 (no key `version`: num_frames, size, detector, threshold, jpeg_quality,
template) was written when there was nothing but today's defaults, so it is read as those. A recipe may be
foreign: crops that another program cut, which one can train on and predict, but which `multiattn faces` cannot make.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import cv2
import numpy as np

from multiattn.config import from_json, to_json
from multiattn.config.choices import Alignment, FacePolicy
from multiattn.config.settings import require
from multiattn.runtime.crop_files import ROOT_KEY
from multiattn.runtime.files import read_json, write_json
from multiattn.runtime.layout import RECIPE_FILE
from multiattn.video.detectors.registry import DEFAULT_DETECTOR, detector_names, get_detector, require_weights

# ArcFace's five points on 112 x 112 pixels (Deng et al. 2019), the template most face recognisers align to.
_ARCFACE_112 = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
TEMPLATE_MARGIN = 1.3
# Shrunk about the centre so that forehead, chin and the blending border of a swapped face lie inside the crop;
# in units of the crop's side: eyes at about (0.38, 0.47) and (0.62, 0.47), mouth corners at y = 0.75.
TEMPLATE = (_ARCFACE_112 / 112 - 0.5) / TEMPLATE_MARGIN + 0.5
TEMPLATE_NAME = f"arcface-5-point, margin {TEMPLATE_MARGIN}"
INTERPOLATION_NAME = "bilinear, averaged first below half size, border repeated"
"""The sampling of `align_crop` and `cut_crop`, as the recipe names it."""
_CORNERS = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
MARGINS, MAX_SHIFT = (0.5, 4.0), 0.5
"""Bounds of `margin` and `shift`: beyond them a square holds no whole face, or hardly anything but background."""


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, uniform scale and shift that bring (K, 2) points closest to others (least squares).

    Source: Umeyama 1991, solved in closed form for the plane: with points as complex numbers, target = a source + b.

    Returns:
        (2, 3) float64 matrix for column vectors (x, y, 1). Mirrored landmarks are not mirrored back.

    Raises:
        ValueError: all source points are equal.
    """
    z, w = (points[:, 0] + 1j * points[:, 1] for points in (np.asarray(source, float), np.asarray(target, float)))
    z_mean, w_mean = z.mean(), w.mean()
    spread = np.sum(np.abs(z - z_mean) ** 2)
    if spread == 0:
        raise ValueError(f"expected landmarks that differ, found {np.asarray(source).tolist()}.")
    a = np.sum(np.conj(z - z_mean) * (w - w_mean)) / spread
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def align_crop(image: np.ndarray, landmarks: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) uint8 and (5, 2) pixels of it -> (size, size, 3): the face, upright and centred, eyes on one line.

    What lies outside the image repeats its border.
    """
    return _warp(image, landmarks, TEMPLATE * size, size)


def _warp(image: np.ndarray, source: np.ndarray, target: np.ndarray, size: int) -> np.ndarray:
    """The crop in which `source`, (K, 2) pixels of the image, lie at `target`."""
    matrix = similarity_transform(source, target)
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    if scale < 0.5:
        # Bilinear sampling at a third of the size would skip pixels and alias; average them first.
        shrink = 2 * scale
        height, width = image.shape[:2]
        small_wh = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        factor = np.array(small_wh) / (width, height)
        image = cv2.resize(image, small_wh, interpolation=cv2.INTER_AREA)
        # Pixel centres: x_small + 0.5 = (x + 0.5) * factor.
        matrix = similarity_transform((source + 0.5) * factor - 0.5, target)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


VERSION = 2
MAX_DETECT_EVERY = 16
"""Full frames that wait for the next detection: 100 MB of 1080p."""

COUNTED_APART = ("version", "num_frames", "reuse_original", "fast_frames")
"""Settings that decide which frames there are and what the work costs, but no pixel of a crop."""


@dataclass(frozen=True, kw_only=True)
class CropRecipe:
    """Everything that decides which crops a video gives and what their pixels are."""

    version: int = VERSION
    """Raised whenever equal settings begin to mean other pixels."""
    num_frames: int = 32
    """Evenly spaced frames of each video; a shorter video gives all of its frames once."""
    size: int = 380
    """Side of the square crops in pixels."""
    detector: str = DEFAULT_DETECTOR
    """A name of `video/detectors`; any other is foreign."""
    weights: str = ""
    """The first 16 hex digits of the SHA-256 of the detector's weights file; empty for one that needs none."""
    threshold: float = 0.9
    """Faces with a lower detection score are left out. Only where a video shows no face at all, a second pass has a
    lower threshold of its own."""
    detect_every: int = 1
    """Faces are detected in every k-th sampled frame, the first and the last; boxes and landmarks between are linear in
    time along a track."""
    policy: FacePolicy = "all-tracks"
    """Which faces of a video are kept; see `policy.py`."""
    reuse_original: bool = False
    """Fakes are cropped where their original's faces are, if size and frame count allow."""
    fast_frames: bool = False
    """The reference frame nearest to a wanted frame may stand for it."""
    jpeg_quality: int = 95
    """Quality of the stored crops: baseline JPEG, 4:4:4, so chroma keeps its resolution."""
    alignment: Alignment = "template"
    """The way to cut: landmarks brought to `template`, or an upright square around the detector's box."""
    margin: float = TEMPLATE_MARGIN
    """Side of the square, in longer sides of the box; the template has its own."""
    shift: float = 0.0
    """Distance of the square's centre below the box's, in sides of the square."""
    template: str = TEMPLATE_NAME
    """Where the landmarks come to lie in the crop, with the margin around the face; of aligned crops only."""
    interpolation: str = INTERPOLATION_NAME
    """Sampling of a crop's pixels from the frame's."""

    def __post_init__(self) -> None:
        policies, alignments = get_args(FacePolicy), get_args(Alignment)
        plain = self.alignment == "box"
        require(self.version == VERSION, self, "version", str(VERSION))
        for name, holds, expected in (
            ("num_frames", self.num_frames >= 1, "at least 1"),
            ("size", 32 <= self.size <= 4096, "32 to 4096 pixels"),
            ("threshold", 0 < self.threshold < 1, "a score between 0 and 1"),
            ("detect_every", 1 <= self.detect_every <= MAX_DETECT_EVERY, f"1 to {MAX_DETECT_EVERY}"),
            ("policy", self.policy in policies, f"one of {', '.join(policies)}"),
            ("jpeg_quality", 1 <= self.jpeg_quality <= 100, "1 to 100"),
            ("alignment", self.alignment in alignments, f"one of {', '.join(alignments)}"),
            ("margin", MARGINS[0] <= self.margin <= MARGINS[1], f"{MARGINS[0]} to {MARGINS[1]} sides of the box"),
            ("shift", abs(self.shift) <= MAX_SHIFT, f"{-MAX_SHIFT} to {MAX_SHIFT} sides of the square"),
            ("margin", plain or self.margin == TEMPLATE_MARGIN, f"{TEMPLATE_MARGIN} without --alignment box"),
            ("shift", plain or self.shift == 0, "0 without --alignment box"),
        ):
            if not holds:
                raise ValueError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(self, name)!r}.")
        if self.detector in detector_names():
            require_weights(get_detector(self.detector), self.weights)

    @property
    def foreign(self) -> str:
        """The settings that this code cannot follow, as text; empty for a recipe that `multiattn faces` can make."""
        known = {"detector": detector_names(), "template": (TEMPLATE_NAME,), "interpolation": (INTERPOLATION_NAME,)}
        return "; ".join(
            f"{name}: expected {' or '.join(map(repr, names))}, found {getattr(self, name)!r}"
            for name, names in known.items()
            if getattr(self, name) not in names and not (name == "template" and self.alignment == "box")
        )

    def require_makeable(self) -> None:
        """Raise `ValueError` for a foreign recipe, after which no crops can be cut."""
        if self.foreign:
            raise ValueError(
                f"these crops were cut by another program ({self.foreign}), and `multiattn faces` cannot cut more of "
                "them. Cut the videos there and index them, or train on faces made here."
            )

    def for_prediction(self) -> "CropRecipe":
        """The recipe for videos of unknown labels, masks and originals: all tracks for `forged-mask`, which
        does that to every video that is not a known fake, and no reuse."""
        policy = "all-tracks" if self.policy == "forged-mask" else self.policy
        return dataclasses.replace(self, policy=policy, reuse_original=False)


def cut_crop(image: np.ndarray, recipe: CropRecipe, *, box_xyxy: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A face of an (H, W, 3) uint8 image as the recipe cuts it: (size, size, 3).

    What lies outside the image repeats its border. Landmarks that are all in one place, and a box without an extent,
    raise `ValueError`.
    """
    return _warp(image, *_anchors(recipe, box_xyxy, landmarks), recipe.size)


def crop_transform(recipe: CropRecipe, *, box_xyxy: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The (2, 3) float64 matrix that carries pixels (x, y, 1) of a frame into the crop that `cut_crop` makes.

    Pixel 0 is the centre of the first one, so the edges of a box lie half a pixel before the pixels they begin with.

    Departures: `cut_crop` averages frames of large faces before it fits; the difference is below 0.01 pixels.
    """
    return similarity_transform(*_anchors(recipe, box_xyxy, landmarks))


def crop_landmarks(recipe: CropRecipe, size: int, *, box_xyxy: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The (5, 2) float32 pixels where a frame's landmarks come to lie in its crop, read at `size`; see `cut_crop`."""
    matrix = crop_transform(recipe, box_xyxy=box_xyxy, landmarks=landmarks)
    stored = np.asarray(landmarks, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]
    # Pixel centres: x + 0.5 grows with the side.
    return ((stored + 0.5) * (size / recipe.size) - 0.5).astype(np.float32)


def box_square(box_xyxy: np.ndarray, *, margin: float, shift: float) -> np.ndarray:
    """The (4,) float64 square of `margin` longer sides of a box, its centre `shift` of its own side below the box's.

    Raises:
        ValueError: a box without an extent.
    """
    left, top, right, bottom = np.asarray(box_xyxy, dtype=np.float64)
    side = margin * max(right - left, bottom - top)
    if not side > 0:
        raise ValueError(f"expected a box with an extent, found {np.asarray(box_xyxy).tolist()}.")
    x, y = (left + right) / 2, (top + bottom) / 2 + shift * side
    return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])


def _anchors(recipe: CropRecipe, box_xyxy: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the frame, and where the crop has them: (K, 2) each, pixels by their centres."""
    if recipe.alignment == "template":
        return landmarks, TEMPLATE * recipe.size
    square = box_square(box_xyxy, margin=recipe.margin, shift=recipe.shift)
    return square[:2] + _CORNERS * (square[2] - square[0]) - 0.5, _CORNERS * recipe.size - 0.5


def read_recipe(folder: Path) -> CropRecipe:
    """The recipe of a faces folder or a run folder, of this version or an earlier one; it may be foreign.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: not a recipe, or one of a newer version.
    """
    path = Path(folder) / RECIPE_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not a faces folder. Make it with `multiattn faces`.")
    return read_recipe_file(path)


def read_recipe_file(path: Path) -> CropRecipe:
    """The recipe of a `faces.json`, wherever it lies; settings that it lacks have their defaults.

    Raises:
        ValueError: as `read_recipe`.
    """
    values = read_json(path)
    if isinstance(values, dict):
        version = values.get("version", 1)
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise ValueError(f"{path}: version: expected a whole number from 1, found {version!r}.")
        if version > VERSION:
            raise ValueError(
                f"{path}: a crop recipe of version {version}, and this code knows versions up to {VERSION}. "
                "Use the multiattn that made the faces, or a newer one."
            )
        values = {**values, "version": VERSION}
        values.pop(ROOT_KEY, None)  # where the crops lie is no part of how they were made
    return from_json(CropRecipe, values, source=str(path))


def write_recipe(recipe: CropRecipe, folder: Path) -> None:
    """Store the recipe in a faces folder or a run folder."""
    write_json(Path(folder) / RECIPE_FILE, to_json(recipe))


def describe_difference(expected: CropRecipe, found: CropRecipe, *, everything: bool = False) -> str:
    """`size: expected 380, found 224; ...`, empty when faces and pixels are made alike.

    `num_frames`, `reuse_original` and `fast_frames` are not compared: they change which frames there are and what the
    work costs, not how a face of a frame is found and cut. To compare what a model was trained on with what it shall
    predict, give both `for_prediction()`. With `everything` they are compared too.
    """
    left_out = () if everything else COUNTED_APART
    if expected.alignment == found.alignment == "box":
        left_out = (*left_out, "template")
    names = [field.name for field in dataclasses.fields(CropRecipe) if field.name not in left_out]
    pairs = [(name, getattr(expected, name), getattr(found, name)) for name in names]
    return "; ".join(f"{name}: expected {mine}, found {other}" for name, mine, other in pairs if mine != other)
