"""MTCNN (Zhang et al. 2016, arXiv:1604.02878): three networks, each of which sees fewer candidates more closely."""

from typing import Any

import numpy as np

from multiattn.video.detectors.registry import Detector, Faces, register_detector


@register_detector
class MtcnnDetector(Detector):
    """Faces by MTCNN, in batches, on copies of bounded size; arguments as `Detector`, what raises as `Cascade`."""

    name = "mtcnn"
    default_threshold = 0.9
    thorough_threshold = 0.8
    """Measured on 56 real frames without their heads: 18 false faces, of them 10 portraits on a wall; 0.7 gives 30."""
    weights_folder = "pnet.pt, rnet.pt and onet.pt of the wheel of facenet-pytorch 2.5.3"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        from multiattn.video.detectors.mtcnn_cascade import Cascade  # torch, which naming a detector does not need

        self._cascade = Cascade(self.weights, self.device)

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """Run the cascade; as `Detector.search`."""
        return self._cascade.search(copies, threshold, thorough=thorough)
