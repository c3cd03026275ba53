"""Faces in frames: boxes, scores and five landmarks in pixels of the full frame."""

import functools
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from facenet_pytorch import MTCNN

LONGEST_SIDE = 640
MIN_FACE_PIXELS = 32


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


class Detector(Protocol):
    """What extraction needs of a face detector."""

    def __call__(self, images: list[np.ndarray]) -> list[Faces]:
        """The faces of each of a video's frames; images are (H, W, 3) uint8 RGB of one size."""
        ...


class MtcnnDetector:
    """MTCNN of facenet-pytorch (Zhang et al. 2016), in batches, on a copy whose longest side is at most 640 pixels.

    Args:
        threshold: faces below this score are left out, in (0, 1).
        longest_side: bound on the copy that is searched, in pixels; smaller frames are not enlarged.
        device: where the three networks run.
    """

    def __init__(self, *, threshold: float, longest_side: int = LONGEST_SIDE, device: str = "cpu") -> None:
        self.threshold = threshold
        self.longest_side = longest_side
        self.networks = MTCNN(keep_all=True, min_face_size=MIN_FACE_PIXELS, device=device)

    def __call__(self, images: list[np.ndarray]) -> list[Faces]:
        if not images:
            return []
        height, width = images[0].shape[:2]
        scale = min(1.0, self.longest_side / max(height, width))
        size_wh = (round(width * scale), round(height * scale))
        if min(size_wh) < MIN_FACE_PIXELS:  # no pyramid level fits, which facenet-pytorch does not survive
            return [self._select(None, None, None, size_wh, size_wh)] * len(images)
        copies = (
            images if scale == 1 else [cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) for image in images]
        )
        found = self.networks.detect(np.stack(copies), landmarks=True)
        return [self._select(*faces, size_wh, (width, height)) for faces in zip(*found, strict=True)]

    def _select(self, boxes, scores, landmarks, found_wh, full_wh) -> Faces:
        if boxes is None:
            return Faces(np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2)))
        scale = np.array(full_wh, dtype=np.float64) / np.array(found_wh, dtype=np.float64)
        keep = np.flatnonzero(scores.astype(np.float64) >= self.threshold)
        keep = keep[np.argsort(-scores[keep].astype(np.float64), kind="stable")]
        return Faces(
            boxes_xyxy=boxes[keep].astype(np.float64) * np.tile(scale, 2),
            scores=np.clip(scores[keep].astype(np.float64), 0, 1),
            landmarks=landmarks[keep].astype(np.float64) * scale,
        )


DETECTORS = {"mtcnn": MtcnnDetector}


@functools.lru_cache(maxsize=1)
def load_detector(name: str, threshold: float, device: str) -> Detector:
    """The detector of this process, loaded once.

    Raises:
        ValueError: no detector of that name.
    """
    if name not in DETECTORS:
        raise ValueError(f"--detector: expected one of {', '.join(DETECTORS)}, found {name!r}.")
    return DETECTORS[name](threshold=threshold, device=device)
