"""Boxes of one person linked over the frames of a video that the detector looked at."""

import numpy as np
from scipy.optimize import linear_sum_assignment

MIN_IOU = 0.3
MAX_GAP_FRAMES = 2
JUDGED_FRAMES = 5
SHORT_SHARE, SHORT_FRAMES = 0.1, 2


def pairwise_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of (N, 4) and (K, 4) boxes -> (N, K) in [0, 1]; 0 where both are empty."""
    return paired_iou(first_xyxy[:, None], second_xyxy[None])


def paired_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4), each with its partner -> (...) in [0, 1]; 0 where both are empty."""
    size_wh = np.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    size_wh = size_wh - np.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    intersection = np.prod(np.clip(size_wh, 0, None), axis=-1)
    union = box_areas(first_xyxy) + box_areas(second_xyxy) - intersection
    return np.divide(intersection, union, out=np.zeros(intersection.shape), where=union > 0)


def box_areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(..., 4) boxes -> (...) square pixels; 0 where a box is empty or its corners are swapped."""
    return np.prod(np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0, None), axis=-1)


class TrackLinker:
    """Links the boxes of one frame after another.

    Each frame's boxes are assigned to the live tracks so that the summed IoU with each track's latest box is largest
    (Hungarian algorithm); a pair below IoU 0.3 does not link. A box left over opens a track; a track without a box
    in more than 2 frames in a row ends.

    Attributes:
        lengths: boxes of every track so far; a track's number is its place here.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._frame = -1
        self._latest: dict[int, tuple[int, np.ndarray]] = {}  # live track -> (frame it was last seen in, its box there)

    def link(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """The tracks of the next frame's boxes: (N, 4) -> (N,) int64, numbered by first appearance."""
        self._frame += 1
        oldest = self._frame - MAX_GAP_FRAMES - 1
        self._latest = {track: seen for track, seen in self._latest.items() if seen[0] >= oldest}
        numbers = np.full(len(boxes_xyxy), -1, dtype=np.int64)
        if self._latest and len(boxes_xyxy):
            live = list(self._latest)
            iou = pairwise_iou(np.stack([self._latest[track][1] for track in live]), boxes_xyxy)
            for row, column in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
                if iou[row, column] >= MIN_IOU:
                    numbers[column] = live[row]
        for index in np.flatnonzero(numbers < 0):
            numbers[index] = len(self.lengths)
            self.lengths.append(0)
        for track, box in zip(numbers.tolist(), boxes_xyxy, strict=True):
            self._latest[track] = (self._frame, box)
            self.lengths[track] += 1
        return numbers


def rank_tracks(lengths: list[int]) -> np.ndarray:
    """The final number of every track: by length, longest first, ties by first appearance. Track 0 is the person seen
    most."""
    order = np.argsort(-np.array(lengths, dtype=np.int64), kind="stable")
    rank = np.empty(len(lengths), dtype=np.int64)
    rank[order] = np.arange(len(lengths))
    return rank


def spurious_tracks(
    scores_per_track: dict[int, list[float]], *, frames_with_faces: int, threshold: float
) -> frozenset[int]:
    """The tracks that are most likely no face: seen seldom, and never with a good score.

    A track is spurious when all of this holds:
      - the detector found faces in at least 5 frames of the video (in fewer, being seen once says nothing);
      - the track has a box in fewer than max(2, 10 % of those frames);
      - its best score lies below the middle between the detector's threshold and 1;
      - it is not the longest track (the first of several), so a video with faces always keeps one.
    A face that passes through the picture is short too, but a detector is sure of it in at least one frame. With
    MTCNN's default threshold of 0.9 the middle is 0.95.

    Args:
        scores_per_track: the detection scores of every track, without interpolated ones.
        frames_with_faces: how many frames the detector found a face in.
        threshold: the score a detection needs.
    """
    if frames_with_faces < JUDGED_FRAMES:
        return frozenset()
    longest = max(scores_per_track, key=lambda track: (len(scores_per_track[track]), -track))
    least = max(SHORT_FRAMES, SHORT_SHARE * frames_with_faces)
    return frozenset(
        track
        for track, scores in scores_per_track.items()
        if track != longest and len(scores) < least and max(scores) < (threshold + 1) / 2
    )
