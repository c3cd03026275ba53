"""The clip that costs least: how far from 0 and 1 probabilities are kept."""

import numpy as np

from multiattn.scoring.aggregation import DEFAULT_CLIP

CLIP_RANGE = 1e-4, 0.2
PSEUDO_VIDEOS = 100.0
"""What is known beforehand: as if so many videos lay beyond any clip, DEFAULT_CLIP of them on the wrong side."""


def fit_clip(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    pseudo_videos: float = PSEUDO_VIDEOS,
    pseudo_wrong: float = DEFAULT_CLIP,
) -> float:
    """The clip in CLIP_RANGE of the least log loss on held-out videos, drawn towards DEFAULT_CLIP where they are few.

    Minimised is L(c) + k (-w ln c - (1 - w) ln(1 - c)), L the summed log loss of probabilities moved into [c, 1 - c],
    k the pseudo videos and w the share of them that is wrong. Where all n held-out videos are right and certain that
    is c = k w / (n + k): 0.005 for 100 videos, 1e-4 for 10,000. Without videos it is w.

    Exact: with the videos in the order of m = min(p, 1 - p), between two neighbours the same W wrong and R right
    ones are clipped, and there c = (W + k w) / (W + R + k) is the one minimum, or the nearer end of the interval.

    Args:
        labels: (N,) of 0 and 1.
        probabilities: (N,) P(fake) in [0, 1], not clipped, of videos that no part of the rule was fitted on.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    says_fake = probabilities > 0.5
    margin = np.minimum(probabilities, 1 - probabilities)
    # At exactly 0.5 no clip below 0.5 reaches a video, whichever side it counts on.
    order = np.argsort(margin, kind="stable")
    margin, right = margin[order], (says_fake == (np.asarray(labels) == 1))[order]
    edges = np.concatenate([[0.0], margin, [0.5]])
    wrong_clipped = np.concatenate([[0], np.cumsum(~right)]) + pseudo_videos * pseudo_wrong
    right_clipped = np.concatenate([[0], np.cumsum(right)]) + pseudo_videos * (1 - pseudo_wrong)
    floor = np.maximum(margin, np.finfo(np.float64).tiny)
    own = np.where(right, -np.log1p(-margin), -np.log(floor))
    own_beyond = np.concatenate([np.cumsum(own[::-1])[::-1], [0.0]])

    low, high = np.maximum(edges[:-1], CLIP_RANGE[0]), np.minimum(edges[1:], CLIP_RANGE[1])
    inside = low <= high
    low, high, wrong, right = low[inside], high[inside], wrong_clipped[inside], right_clipped[inside]
    clips = np.clip(wrong / (wrong + right), low, high)
    costs = own_beyond[inside] - wrong * np.log(clips) - right * np.log1p(-clips)
    return float(clips[np.argmin(costs)])
