"""Non-maximum suppression by torchvision's compiled operator, without its Python package: that imports all its models
and torch's compiler, for 1.5 to 2 s in each process that detects faces."""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MOST_SHIFTED = {"cpu": 1000, "cuda": 25_000}
"""Up to so many boxes the groups are moved apart and searched at once; more are searched group by group."""


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The places of the boxes that no better one of their group overlaps by an IoU above the threshold, best first.

    Source: `torchvision.ops.batched_nms`, of which it gives the result. Departures: none.

    Args:
        boxes: (N, 4) float32, x1, y1, x2, y2, none of them below 0.
        scores: (N,) float32.
        groups: (N,) int64, such as the number of the image.

    Returns:
        (K,) int64.
    """
    nms = _operator()
    if len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    if len(boxes) <= MOST_SHIFTED.get(boxes.device.type, MOST_SHIFTED["cpu"]):
        return nms(boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None], scores, threshold)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for group in torch.unique(groups):
        places = torch.where(groups == group)[0]
        kept[places[nms(boxes[places], scores[places], threshold)]] = True
    places = torch.where(kept)[0]
    return places[scores[places].sort(descending=True)[1]]


@functools.cache
def _operator() -> Callable[[Tensor, Tensor, float], Tensor]:
    """torchvision's `nms`: (N, 4) boxes, (N,) scores and a threshold -> places kept, best first."""
    package = importlib.util.find_spec("torchvision")
    for folder in package.submodule_search_locations if package else ():
        for library in sorted(Path(folder).glob("_C*.so")):
            try:
                torch.ops.load_library(library)
                return torch.ops.torchvision.nms
            except (OSError, AttributeError):  # of another version; what the package makes of it is told below
                continue
    from torchvision.ops import nms

    return nms
