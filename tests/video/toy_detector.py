"""A detector from outside the package, as a user writes one: it takes the middle of every picture for a face."""

import time

import numpy as np

from multiattn.video.crops.recipe import TEMPLATE
from multiattn.video.detectors.registry import Detector, Faces


class ToyDetector(Detector):
    """One face a frame."""

    name = "toy"
    default_threshold = 0.6
    thorough_threshold = 0.3

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """The middle half of each copy, surer than it must be."""
        height, width = copies[0].shape[:2]
        box = np.array([[width, height, 3 * width, 3 * height]]) / 4
        return [Faces(box, np.array([(threshold + 1) / 2]), TEMPLATE[None] * box[0, :2] * 2 + box[0, :2])] * len(copies)


class HungryDetector(ToyDetector):
    """The same, if it had weights."""

    name = "hungry"
    weights_file = "anything"


class SleepyDetector(ToyDetector):
    """The same; it never comes back from a black frame."""

    name = "sleepy"

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """As `ToyDetector`, unless it falls asleep."""
        if not max(copy.max() for copy in copies):
            time.sleep(300)
        return super().search(copies, threshold, thorough=thorough)
