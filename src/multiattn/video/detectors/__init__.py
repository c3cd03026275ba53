"""Face detectors, a file each; the imports below register them."""

from multiattn.video.detectors import mtcnn, retinaface, yunet

__all__ = ["mtcnn", "retinaface", "yunet"]
