"""Face detectors: their base class, the bounded copies of frames they search, and the registry of those there are."""

import functools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from multiattn.runtime.devices import forbid_tf32
from multiattn.runtime.files import file_digest, require_file

DEFAULT_DETECTOR = "mtcnn"
LONGEST_SIDE = 640
"""Bound on the copy that the first pass searches, in pixels; smaller frames are not enlarged."""
SMALLEST_FACE = 32
"""Side of the smallest faces that the first pass is meant to find, in pixels of that copy."""
THOROUGH_LONGEST_SIDE = 1920
"""Bound on the copy that the second pass searches, in pixels."""
ENLARGED_LONGEST_SIDE = 1280
"""The second pass enlarges frames below this, to at most twice their size."""
PIXELS_A_PASS = {"cpu": 2 * 640 * 640, "cuda": 16 * 640 * 640}
"""Bounds the memory of one pass through a network, whatever the size of the frames and the length of the batch.

On a CPU few frames at a time are faster: with 8 the first layers' results leave the cache, and malloc asks the system
for new pages each time (measured on MTCNN's first network: 7.6 ms a frame against 3.0).
"""
DIGEST_DIGITS = 16


@dataclass(frozen=True)
class Faces:
    """The N faces of one frame, best score first."""

    boxes_xyxy: np.ndarray
    """(N, 4) float64, pixels of the full frame, exclusive right and bottom."""
    scores: np.ndarray
    """(N,) float64 in [0, 1]."""
    landmarks: np.ndarray
    """(N, 5, 2) float64 (x, y): the eye on the image's left, the other eye, nose, mouth corners left and right."""

    def __len__(self) -> int:
        return len(self.scores)


class Detector(ABC):
    """Base class of face detectors, each of which implements `search`.

    Args:
        threshold: faces below this score are left out, in (0, 1); None is the detector's default.
        weights: the weights file, of a detector that needs one, or the folder of its files.
        longest_side: bound on the copy that the first pass searches, in pixels.
    """

    name: ClassVar[str]
    """As `--detector` and the crop recipe name it."""
    default_threshold: ClassVar[float]
    thorough_threshold: ClassVar[float]
    """The second pass also takes faces from this score on."""
    weights_file: ClassVar[str] = ""
    """Contents of the weights file it needs, as text; empty for a detector that needs none."""
    weights_folder: ClassVar[str] = ""
    """Contents of the folder that --weights may name, of a detector that else finds its files by itself."""

    def __init__(
        self,
        *,
        threshold: float | None = None,
        weights: Path | None = None,
        longest_side: int = LONGEST_SIDE,
        device: str = "cpu",
    ) -> None:
        import torch

        self.threshold = self.default_threshold if threshold is None else threshold
        self.weights, self.longest_side, self.device = weights, longest_side, torch.device(device)
        forbid_tf32()  # in a process that extracts, nothing else has

    def __call__(self, images: list[np.ndarray], *, thorough: bool = False) -> list[Faces]:
        """Detect the faces of each of a video's frames, with their true scores, in pixels of the full frame.

        Args:
            images: (H, W, 3) uint8 RGB of one size.
            thorough: the second pass, for a video in which the first found nothing: a larger copy (`search_size`) and
                a lower threshold.
        """
        import torch

        if not images:
            return []
        frame_wh = images[0].shape[1::-1]
        size_wh = search_size(frame_wh, thorough=thorough, longest_side=self.longest_side)
        a_pass = max(1, PIXELS_A_PASS.get(self.device.type, PIXELS_A_PASS["cpu"]) // (size_wh[0] * size_wh[1]))
        threshold = min(self.threshold, self.thorough_threshold) if thorough else self.threshold
        found: list[Faces] = []
        with torch.inference_mode():
            for start in range(0, len(images), a_pass):
                copies = [_resized(image, size_wh) for image in images[start : start + a_pass]]
                found += self.search(copies, threshold, thorough=thorough)
        scale = np.array(frame_wh, dtype=np.float64) / size_wh
        return [_enlarge(faces, scale) for faces in found]

    def check(self) -> None:  # noqa: B027 (most have nothing to check)
        """Raise `ValueError` for weights that load and yet are others; called once, when the detector is loaded."""

    @abstractmethod
    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """The faces of each of (H, W, 3) uint8 RGB copies of one size, in pixels of the copy, in any order."""


def search_size(size_wh: tuple[int, int], *, thorough: bool, longest_side: int = LONGEST_SIDE) -> tuple[int, int]:
    """The (width, height) of the copy of a frame that is searched, in whole pixels, at least 1 each.

    The first pass bounds the longest side by `longest_side`. The thorough pass takes frames of 1280 pixels and more
    as they are, up to 1920; it enlarges smaller ones, twofold where that stays within 1280.
    """
    longest = max(size_wh)
    if thorough:
        side = max(min(longest, THOROUGH_LONGEST_SIDE), min(2 * longest, ENLARGED_LONGEST_SIDE))
    else:
        side = min(longest, longest_side)
    return max(1, round(size_wh[0] * side / longest)), max(1, round(size_wh[1] * side / longest))


def _resized(image: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """The image at another size: averaged over areas when it shrinks, bilinear when it grows."""
    if image.shape[1::-1] == size_wh:
        return image
    import cv2

    shrinks = size_wh[0] < image.shape[1] or size_wh[1] < image.shape[0]
    return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _enlarge(faces: Faces, scale_xy: np.ndarray) -> Faces:
    order = np.argsort(-faces.scores, kind="stable")
    return Faces(
        boxes_xyxy=faces.boxes_xyxy[order].astype(np.float64) * np.tile(scale_xy, 2),
        scores=np.clip(faces.scores[order].astype(np.float64), 0, 1),
        landmarks=faces.landmarks[order].astype(np.float64) * scale_xy,
    )


_detectors: dict[str, type[Detector]] = {}
DetectorClass = TypeVar("DetectorClass", bound=type[Detector])


def register_detector(detector: DetectorClass) -> DetectorClass:
    """Make a detector known by its `name` to the options, the crop recipe and the extraction; usable as a decorator.

    Raises:
        ValueError: another detector has this name, or worker processes could not import the class.
    """
    if _detectors.setdefault(detector.name, detector) is not detector:
        raise ValueError(f"detector {detector.name!r}: expected a new name, found that of {_detectors[detector.name]}.")
    if detector.__module__ == "__main__":
        del _detectors[detector.name]
        raise ValueError(
            f"detector {detector.name!r}: expected a class of a module that worker processes can import, found one of "
            "__main__. Move it into a file of its own, and import that."
        )
    return detector


def detector_names() -> tuple[str, ...]:
    """The names of all detectors there are."""
    return tuple(_detectors)


def get_detector(name: str, option: str = "--detector") -> type[Detector]:
    """The detector's class; an error names the option.

    Raises:
        ValueError: no detector of that name.
    """
    if name not in _detectors:
        raise ValueError(f"{option}: expected one of {', '.join(_detectors)}, found {name!r}.")
    return _detectors[name]


def require_weights(detector: type[Detector], weights: Path | str | None) -> None:
    """Raise `ValueError` for a weights file (or its digest) where none belongs, and for none where one does."""
    is_folder = bool(weights and detector.weights_folder) and Path(weights).is_dir()
    if weights and not detector.weights_file and not is_folder:
        folder = f", or name a folder with {detector.weights_folder}" if detector.weights_folder else ""
        raise ValueError(
            f"--weights: the detector {detector.name} needs no weights file, found {weights}. Leave it out{folder}."
        )
    if detector.weights_file and not weights:
        others = [other.name for other in _detectors.values() if not other.weights_file]
        raise ValueError(
            f"--weights: the detector {detector.name} needs its weights file, found none. Pass --weights FILE with "
            f"{detector.weights_file}, or take a detector without one ({', '.join(others)})."
        )


@functools.lru_cache(maxsize=8)
def load_detector(detector: type[Detector], *, threshold: float, device: str, weights: Path | None = None) -> Detector:
    """The detector of this process, loaded once.

    Raises:
        FileNotFoundError: no such weights file.
        ValueError: not the weights of this detector; weights where none belong, or none where some do.
    """
    require_weights(detector, weights)
    loaded = detector(threshold=threshold, device=device, weights=weights)
    loaded.check()
    return loaded


def recipe_weights(detector: type[Detector], weights: Path | None) -> str:
    """The weights as the crop recipe names them: their digest, of a detector that needs a file; else empty."""
    return weights_digest(weights) if detector.weights_file and weights is not None else ""


def weights_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a weights file, which tell its contents apart in a recipe.

    Raises:
        FileNotFoundError: no such file.
    """
    require_file(path)
    return file_digest(path)[:DIGEST_DIGITS]
