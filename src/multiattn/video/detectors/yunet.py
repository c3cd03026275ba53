"""YuNet (Wu, Peng and Yu 2023, Machine Intelligence Research 20:656) as OpenCV runs it: small, on a CPU alone."""

from typing import Any

import numpy as np

from multiattn.runtime.files import require_file
from multiattn.video.detectors.registry import Detector, Faces, register_detector

MAX_OVERLAP = 0.3
"""Two faces with a larger IoU are one, of the better score; as the threshold 0.9 it is OpenCV's."""
MOST_CANDIDATES = 5000
LOG_LEVEL_ERROR = 2
"""OpenCV's number, which its fourth version does not name."""
NUM_VALUES = 15
"""A face's row: x, y, width, height, five landmarks, score."""


@register_detector
class YunetDetector(Detector):
    """Faces by `cv2.FaceDetectorYN`, one copy at a time, also where `--device` is a GPU.

    The landmarks come in the order of `Faces`: YuNet's "right eye" is the person's, on the image's left.
    """

    name = "yunet"
    default_threshold = 0.9
    thorough_threshold = 0.6
    weights_file = "face_detection_yunet_2023mar.onnx of OpenCV's model zoo (MIT licence, 233 kB)"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        import cv2

        require_file(self.weights)
        logging = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has the function at its top
        level = logging.setLogLevel(LOG_LEVEL_ERROR)  # not that its CPU is the only target
        try:
            self._network = cv2.FaceDetectorYN.create(
                str(self.weights), "", (32, 32), self.default_threshold, MAX_OVERLAP, MOST_CANDIDATES
            )
            self.search([np.zeros((32, 32, 3), np.uint8)], self.default_threshold, thorough=False)
        except cv2.error as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"{self.weights}: expected {self.weights_file}, found another file: {reason}") from error
        finally:
            logging.setLogLevel(level)

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """Run the network on each copy; as `Detector.search`."""
        self._network.setInputSize(copies[0].shape[1::-1])
        self._network.setScoreThreshold(threshold)
        return [self._faces(self._network.detect(np.ascontiguousarray(copy[..., ::-1]))[1]) for copy in copies]

    @staticmethod
    def _faces(rows: np.ndarray | None) -> Faces:
        """OpenCV's (N, 15) float32 rows, None without a face."""
        rows = np.zeros((0, NUM_VALUES)) if rows is None else rows.astype(np.float64)
        corners = np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], axis=1)
        return Faces(corners, rows[:, -1], rows[:, 4:-1].reshape(-1, 5, 2))
