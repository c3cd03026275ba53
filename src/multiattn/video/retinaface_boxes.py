"""RetinaFace's anchors, and from what the network says about each of them to faces."""

import functools
import math

import torch
from torch import Tensor
from torchvision.ops import batched_nms

STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
"""Sides in pixels of the two square anchors of each cell, by stride."""
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""The network was trained on offsets divided by these."""
MAX_OVERLAP = 0.4
"""Of two faces with a larger IoU the lower score is dropped."""


@functools.lru_cache(maxsize=16)
def anchors(size_wh: tuple[int, int], device: str = "cpu") -> Tensor:
    """(A, 3) float32: centre x, centre y and side of every anchor, in pixels of the searched image.

    Strides in turn, cells row by row, the smaller anchor of a cell first. A stride covers the whole image, so its last
    cells may reach over the edge. Kept for each size and device: a data set has few.
    """
    levels = []
    for stride, sides in zip(STRIDES, ANCHOR_SIDES, strict=True):
        columns, rows = (math.ceil(length / stride) for length in size_wh)
        y, x, side = torch.meshgrid(
            (torch.arange(rows) + 0.5) * stride,
            (torch.arange(columns) + 0.5) * stride,
            torch.tensor(sides, dtype=torch.float32),
            indexing="ij",
        )
        levels.append(torch.stack([x, y, side], dim=-1).reshape(-1, 3))
    return torch.cat(levels).to(device)


def decode_boxes(offsets: Tensor, chosen_anchors: Tensor) -> Tensor:
    """(N, 4) offsets (centre, then logarithm of the size) and (N, 3) anchors -> (N, 4) x1, y1, x2, y2 in pixels."""
    centres, sides = chosen_anchors[:, :2], chosen_anchors[:, 2:]
    centres = centres + offsets[:, :2] * CENTRE_VARIANCE * sides
    half_sizes = sides * torch.exp(offsets[:, 2:] * SIZE_VARIANCE) / 2
    return torch.cat([centres - half_sizes, centres + half_sizes], dim=1)


def decode_landmarks(offsets: Tensor, chosen_anchors: Tensor) -> Tensor:
    """(N, 10) offsets (x, y of five points) and (N, 3) anchors -> (N, 5, 2) in pixels."""
    centres, sides = chosen_anchors[:, None, :2], chosen_anchors[:, None, 2:]
    return centres + offsets.reshape(-1, 5, 2) * CENTRE_VARIANCE * sides


def select_faces(
    logits: Tensor, box_offsets: Tensor, landmark_offsets: Tensor, size_wh: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The faces of a batch, from what the network says, on the network's device.

    Only anchors that reach the threshold are decoded; suppression runs over the whole batch at once.

    Args:
        logits: (B, A, 2) background and face.
        box_offsets: (B, A, 4).
        landmark_offsets: (B, A, 10).
        size_wh: of the searched images.
        threshold: lowest probability of a face.

    Returns:
        Of N faces, best first: (N,) index of the image, (N, 4) boxes, (N,) probabilities, (N, 5, 2) landmarks.
    """
    probabilities = torch.softmax(logits.float(), dim=2)[:, :, 1]
    image_index, anchor_index = torch.nonzero(probabilities >= threshold, as_tuple=True)
    chosen = anchors(size_wh, str(logits.device))[anchor_index]
    scores = probabilities[image_index, anchor_index]
    boxes = decode_boxes(box_offsets[image_index, anchor_index].float(), chosen)
    landmarks = decode_landmarks(landmark_offsets[image_index, anchor_index].float(), chosen)
    keep = batched_nms(boxes, scores, image_index, MAX_OVERLAP)
    return image_index[keep], boxes[keep], scores[keep], landmarks[keep]
