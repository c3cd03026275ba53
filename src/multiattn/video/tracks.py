"""Boxes of one person linked over the sampled frames of a video."""

import numpy as np
from scipy.optimize import linear_sum_assignment

MIN_IOU = 0.3
MAX_GAP_FRAMES = 2


def pairwise_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of (N, 4) and (K, 4) boxes -> (N, K) in [0, 1]; 0 where both are empty."""
    first, second = first_xyxy[:, None], second_xyxy[None]  # (N, 1, 4), (1, K, 4)
    size_wh = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.prod(np.clip(size_wh, 0, None), axis=-1)
    union = _area(first) + _area(second) - intersection
    return np.divide(intersection, union, out=np.zeros(intersection.shape), where=union > 0)


def _area(boxes_xyxy: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0, None), axis=-1)


def link_tracks(boxes_per_frame: list[np.ndarray]) -> list[np.ndarray]:
    """The track number of every box of every sampled frame.

    Each frame's boxes are assigned to the live tracks so that the summed IoU with each track's latest box is largest
    (Hungarian algorithm); a pair below IoU 0.3 does not link. A box left over opens a track; a track without a box
    in more than 2 sampled frames in a row ends. Tracks are numbered by length, longest first, ties by first
    appearance, so track 0 is the person seen most.

    Args:
        boxes_per_frame: (N_f, 4) boxes of each sampled frame, in time order.

    Returns:
        (N_f,) int64 track numbers of each frame.
    """
    latest: dict[int, tuple[int, np.ndarray]] = {}  # live track -> (frame it was last seen in, its box there)
    lengths: list[int] = []
    assigned: list[np.ndarray] = []
    for frame, boxes in enumerate(boxes_per_frame):
        latest = {track: seen for track, seen in latest.items() if frame - seen[0] <= MAX_GAP_FRAMES + 1}
        numbers = np.full(len(boxes), -1, dtype=np.int64)
        if latest and len(boxes):
            live = list(latest)
            iou = pairwise_iou(np.stack([latest[track][1] for track in live]), boxes)
            for row, column in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
                if iou[row, column] >= MIN_IOU:
                    numbers[column] = live[row]
        for index in np.flatnonzero(numbers < 0):
            numbers[index] = len(lengths)
            lengths.append(0)
        for track, box in zip(numbers, boxes, strict=True):
            latest[int(track)] = (frame, box)
            lengths[track] += 1
        assigned.append(numbers)
    order = np.argsort(-np.array(lengths, dtype=np.int64), kind="stable")
    rank = np.empty(len(lengths), dtype=np.int64)
    rank[order] = np.arange(len(lengths))
    return [rank[numbers] for numbers in assigned]
