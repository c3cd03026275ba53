"""RetinaFace (Deng et al. 2020, arXiv:1905.00641): one network, which predicts faces and landmarks for each anchor."""

from typing import Any

import numpy as np

from multiattn.video.detectors.registry import Detector, Faces, register_detector


@register_detector
class RetinaFaceDetector(Detector):
    """Faces by RetinaFace, in batches, on copies of bounded size; half precision on a GPU."""

    name = "retinaface"
    default_threshold = 0.7
    """Measured with MobileNet-0.25 on 224 real frames: the lowest true face, a blurred one, scores 0.75, the next 0.90;
    the best of the rest 0.51."""
    thorough_threshold = 0.5
    weights_file = "a state dict of RetinaFace (MobileNet-0.25 or ResNet-50, .pth or .safetensors)"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        from multiattn.video.detectors import retinaface_network  # torch, which naming a detector does not need

        self._code = retinaface_network
        self.network = self._code.load_retinaface(self.weights, self.device)

    def check(self) -> None:
        """Refuse weights of other anchors; as `Detector.check`."""
        self._code.require_own_anchors(self.network, self.weights)

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """Run the network once; as `Detector.search`."""
        return self._code.find_faces(self.network, copies, threshold)
