"""Faces in frames: boxes, scores and five landmarks in pixels of the full frame."""

import functools
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from multiattn.runtime.files import file_digest
from multiattn.video.detectors.mtcnn import FIRST_PASS, MtcnnDetector
from multiattn.video.detectors.retinaface import load_retinaface, select_faces
from multiattn.video.detectors.search import LONGEST_SIDE, Faces, search_copies, search_size

__all__ = [
    "DEFAULT_THRESHOLDS",
    "Detector",
    "Faces",
    "MtcnnDetector",
    "RetinaFaceDetector",
    "load_detector",
    "weights_digest",
]

RETINAFACE_THRESHOLD = 0.7
"""Measured with MobileNet-0.25 on 224 real frames: the lowest true face, a blurred one, scores 0.75, the next 0.90; the
best of the rest 0.51."""
RETINAFACE_THOROUGH_THRESHOLD = 0.5
DEFAULT_THRESHOLDS = {"mtcnn": FIRST_PASS.threshold, "retinaface": RETINAFACE_THRESHOLD}
"""Detector -> the score from which a face is one, unless told otherwise."""
DIGEST_DIGITS = 16
MEAN_BGR = (104.0, 117.0, 123.0)
"""What RetinaFace's weights were trained to see as zero."""


class Detector(Protocol):
    """What extraction needs of a face detector."""

    def __call__(self, images: list[np.ndarray], *, thorough: bool = False) -> list[Faces]:
        """The faces of each of a video's frames, their true scores with them.

        Args:
            images: (H, W, 3) uint8 RGB of one size.
            thorough: the cascade's second pass, for a video in which the first found nothing: a larger copy and a
                lower threshold (`face_search.search_size`; each detector says its threshold).
        """
        ...


class RetinaFaceDetector:
    """Faces by RetinaFace (Deng et al. 2020), in batches, on copies of bounded size; half precision on a GPU.

    Args:
        weights: a state dict, MobileNet-0.25 or ResNet-50 (`retinaface.load_retinaface`, which also says what raises).
        threshold: faces below this score are left out, in (0, 1); the thorough pass also takes those from 0.5.
        longest_side: bound on the copy that is searched, in pixels; smaller frames are not enlarged.
        device: where the network runs.
    """

    def __init__(
        self,
        weights: Path,
        *,
        threshold: float = RETINAFACE_THRESHOLD,
        longest_side: int = LONGEST_SIDE,
        device: str = "cpu",
    ) -> None:
        self.threshold = threshold
        self.longest_side = longest_side
        self.device = torch.device(device)
        self.network = load_retinaface(weights).to(self.device, memory_format=torch.channels_last)
        self.mean = torch.tensor(MEAN_BGR, device=self.device)

    def __call__(self, images: list[np.ndarray], *, thorough: bool = False) -> list[Faces]:
        if not images:
            return []
        size_wh = search_size(images[0].shape[1::-1], thorough=thorough, longest_side=self.longest_side)
        threshold = min(self.threshold, RETINAFACE_THOROUGH_THRESHOLD) if thorough else self.threshold
        with torch.inference_mode():
            return search_copies(images, size_wh, lambda copies: self._search(copies, threshold), self.device)

    def _search(self, copies: list[np.ndarray], threshold: float) -> list[Faces]:
        height, width = copies[0].shape[:2]
        bgr = torch.from_numpy(np.stack([cv2.cvtColor(copy, cv2.COLOR_RGB2BGR) for copy in copies])).to(self.device)
        # A row at a time, which is twice as fast as subtracting three numbers at a time.
        pixels = bgr.flatten(2).float().sub_(self.mean.repeat(width)).unflatten(2, (width, 3)).permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.device.type == "cuda"):
            answers = self.network(pixels)
        found = [values.cpu().numpy() for values in select_faces(*answers, (width, height), threshold)]
        image_index, boxes, scores, landmarks = found
        mine = [image_index == index for index in range(len(copies))]
        return [Faces(boxes[rows], scores[rows], landmarks[rows]) for rows in mine]


@functools.lru_cache(maxsize=2)
def load_detector(name: str, *, threshold: float, device: str, weights: Path | None = None) -> Detector:
    """The detector of this process, loaded once.

    Args:
        name: "mtcnn", whose weights come with its package, or "retinaface".
        threshold: lowest score of a face in the first pass.
        device: where it runs, in torch's words.
        weights: RetinaFace's state dict.

    Raises:
        FileNotFoundError: no such weights file.
        ValueError: no detector of that name; weights where none belong, or none where some do, or not RetinaFace's.
    """
    if name not in DEFAULT_THRESHOLDS:
        raise ValueError(f"--detector: expected one of {', '.join(DEFAULT_THRESHOLDS)}, found {name!r}.")
    if name == "retinaface":
        if weights is None:
            raise ValueError(
                "--detector retinaface: expected its weights, found none. Pass --weights FILE with a state dict of "
                "RetinaFace (MobileNet-0.25 or ResNet-50, .pth or .safetensors), or take --detector mtcnn, which "
                "brings its own."
            )
        return RetinaFaceDetector(Path(weights), threshold=threshold, device=device)
    if weights is not None:
        raise ValueError(
            f"--weights: --detector {name} brings its own, found {weights}. Leave it out, or add --detector retinaface."
        )
    return MtcnnDetector(threshold=threshold, device=device)


def weights_digest(path: Path) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a weights file, which tell its contents apart in a recipe.

    Raises:
        FileNotFoundError: no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file.")
    return file_digest(path)[:DIGEST_DIGITS]
