"""MTCNN (Zhang et al. 2016, arXiv:1604.02878): three small networks, each of which looks closer at fewer candidates.

The networks and their weights are facenet-pytorch's; the cascade around them is our own, with the package's thresholds,
pyramid and rounding. Measured on one core, 640 pixels, eight frames of five real clips: 30 ms of CPU a frame against
the package's 73, and the same faces. It also survives candidates outside the image, over which the package stumbles.
Departures from the package: images are averaged by OpenCV instead of torch's adaptive pooling, and small pyramid levels
are made of larger ones.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from torch import Tensor
from torchvision.ops import batched_nms

from multiattn.video.face_search import LONGEST_SIDE, Faces, search_copies, search_size
from multiattn.video.mtcnn_networks import PatchNetwork, ProposalNetwork

CELL_PIXELS, CELL_STRIDE = 12, 2
"""What the first network sees of a face, and its step, in pixels of a pyramid level."""
PYRAMID_FACTOR = 0.709
"""Halves the area from level to level."""
REFINE_PIXELS, OUTPUT_PIXELS = 24, 48
PATCHES_A_PASS = 512


@dataclass(frozen=True)
class Effort:
    """How hard one pass of the detector looks."""

    min_face_pixels: int
    """Smallest face, in pixels of the searched copy."""
    proposal_threshold: float
    refine_threshold: float
    """Candidates with a lower score do not reach the second and the third network."""
    threshold: float
    """Lowest score of a face."""


FIRST_PASS = Effort(min_face_pixels=32, proposal_threshold=0.6, refine_threshold=0.7, threshold=0.9)
THOROUGH_PASS = Effort(min_face_pixels=20, proposal_threshold=0.5, refine_threshold=0.6, threshold=0.8)
"""Measured on 56 real frames without their heads: 18 false faces, of them 10 portraits on a wall; 0.7 gives 30."""


class MtcnnDetector:
    """Faces by MTCNN, in batches, on copies of bounded size.

    Args:
        threshold: faces below this score are left out, in (0, 1); the thorough pass also takes those from 0.8.
        longest_side: bound on the copy that is searched, in pixels; smaller frames are not enlarged.
        device: where the three networks run.
    """

    def __init__(
        self, *, threshold: float = FIRST_PASS.threshold, longest_side: int = LONGEST_SIDE, device: str = "cpu"
    ) -> None:
        self.longest_side = longest_side
        self.device = torch.device(device)
        self.first_pass = replace(FIRST_PASS, threshold=threshold)
        self.thorough_pass = replace(THOROUGH_PASS, threshold=min(threshold, THOROUGH_PASS.threshold))
        # Channels innermost in memory: measured on a CPU, up to three times as fast.
        self.proposal_network, self.refine_network, self.output_network = (
            network.eval().to(self.device, memory_format=torch.channels_last)
            for network in (ProposalNetwork(PNet()), PatchNetwork(RNet()), PatchNetwork(ONet()))
        )

    def __call__(self, images: list[np.ndarray], *, thorough: bool = False) -> list[Faces]:
        if not images:
            return []
        size_wh = search_size(images[0].shape[1::-1], thorough=thorough, longest_side=self.longest_side)
        effort = self.thorough_pass if thorough else self.first_pass
        with torch.inference_mode():
            return search_copies(images, size_wh, lambda copies: self._search(copies, effort), self.device)

    def _search(self, copies: list[np.ndarray], effort: Effort) -> list[Faces]:
        candidates = self._propose(copies, effort)
        candidates = self._refine(copies, candidates, effort)
        candidates, landmarks = self._decide(copies, candidates, effort)
        found = []
        for index in range(len(copies)):
            mine = np.flatnonzero(candidates.image_index == index)
            mine = mine[_without_nested(candidates.boxes_xyxy[mine], candidates.scores[mine])]
            found.append(Faces(candidates.boxes_xyxy[mine], candidates.scores[mine], landmarks[mine]))
        return found

    def _propose(self, copies: list[np.ndarray], effort: Effort) -> "Candidates":
        """Every cell of every pyramid level that may be a face."""
        logit_threshold = math.log(effort.proposal_threshold / (1 - effort.proposal_threshold))
        levels, offsets = [], []
        for scale, level in pyramid(copies, effort.min_face_pixels):
            answers = self.proposal_network(self._to_input(level))
            cells = torch.nonzero(answers[:, 0] >= logit_threshold)
            chosen = answers[cells[:, 0], :, cells[:, 1], cells[:, 2]].cpu()
            cells = cells.cpu()
            corners = cells[:, [2, 1]] * CELL_STRIDE + 1
            boxes = torch.floor(torch.cat([corners, corners + CELL_PIXELS - 1], dim=1).float() / scale)
            scores = torch.sigmoid(chosen[:, 0])
            keep = batched_nms(boxes, scores, cells[:, 0], 0.5)
            levels.append(Candidates(cells[keep, 0].numpy(), boxes[keep].numpy(), scores[keep].numpy()))
            offsets.append(chosen[keep, 1:].numpy())
        if not levels:
            return Candidates.none()
        candidates, offsets = Candidates.joined(levels), np.concatenate(offsets)
        keep = candidates.without_overlap()
        candidates, offsets = candidates[keep], offsets[keep]
        sides = candidates.boxes_xyxy[:, 2:] - candidates.boxes_xyxy[:, :2]
        return candidates.moved(candidates.boxes_xyxy + offsets * np.tile(sides, 2)).squared()

    def _refine(self, copies: list[np.ndarray], candidates: "Candidates", effort: Effort) -> "Candidates":
        candidates, patches = cut_patches(copies, candidates, REFINE_PIXELS)
        if not len(candidates):
            return candidates
        scores, offsets = self._run(self.refine_network, patches)
        keep = scores > effort.refine_threshold
        candidates, offsets = candidates.rescored(scores)[keep], offsets[keep]
        keep = candidates.without_overlap()
        candidates, offsets = candidates[keep], offsets[keep]
        return candidates.moved(candidates.boxes_xyxy + offsets * np.tile(candidates.sides(), 2)).squared()

    def _decide(
        self, copies: list[np.ndarray], candidates: "Candidates", effort: Effort
    ) -> tuple["Candidates", np.ndarray]:
        candidates, patches = cut_patches(copies, candidates, OUTPUT_PIXELS)
        if not len(candidates):
            return candidates, np.zeros((0, 5, 2), dtype=np.float32)
        scores, offsets, points = self._run(self.output_network, patches)
        keep = scores >= effort.threshold
        candidates, offsets, points = candidates.rescored(scores)[keep], offsets[keep], points[keep]
        # The network gives five x, then five y, in fractions of its patch.
        landmarks = points.reshape(-1, 2, 5).transpose(0, 2, 1) * candidates.sides()[:, None]
        landmarks += candidates.boxes_xyxy[:, None, :2] - 1
        return candidates.moved(candidates.boxes_xyxy + offsets * np.tile(candidates.sides(), 2)), landmarks

    def _run(self, network: PatchNetwork, patches: np.ndarray) -> list[np.ndarray]:
        passes = [
            network(self._to_input(patches[start : start + PATCHES_A_PASS]))
            for start in range(0, len(patches), PATCHES_A_PASS)
        ]
        return [torch.cat(outputs).cpu().numpy() for outputs in zip(*passes, strict=True)]

    def _to_input(self, images: np.ndarray) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], its channels innermost in memory."""
        return (torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() - 127.5) * (1 / 128)


@dataclass(frozen=True)
class Candidates:
    """N boxes of a batch that may be faces."""

    image_index: np.ndarray
    """(N,) int64."""
    boxes_xyxy: np.ndarray
    """(N, 4) float32, pixels of the searched copy; as in the package, right and bottom count as inside."""
    scores: np.ndarray
    """(N,) float32, of the last network that looked."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: np.ndarray) -> "Candidates":
        return Candidates(self.image_index[keep], self.boxes_xyxy[keep], self.scores[keep])

    @classmethod
    def none(cls) -> "Candidates":
        return cls(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    @classmethod
    def joined(cls, parts: list["Candidates"]) -> "Candidates":
        names = ("image_index", "boxes_xyxy", "scores")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def moved(self, boxes_xyxy: np.ndarray) -> "Candidates":
        return replace(self, boxes_xyxy=boxes_xyxy)

    def rescored(self, scores: np.ndarray) -> "Candidates":
        return replace(self, scores=scores)

    def sides(self) -> np.ndarray:
        """(N, 2) width and height."""
        return self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2] + 1

    def squared(self) -> "Candidates":
        """Each box as the square of its longer side about the same centre."""
        top_left, size = self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2]
        side = size.max(axis=1, keepdims=True)
        corner = top_left + (size - side) / 2
        return self.moved(np.concatenate([corner, corner + side], axis=1))

    def without_overlap(self) -> np.ndarray:
        """Indices of those that overlap no better one of their image by an IoU above 0.7, best first."""
        boxes, scores, index = map(torch.from_numpy, (self.boxes_xyxy, self.scores, self.image_index))
        return batched_nms(boxes, scores, index, 0.7).numpy()


def pyramid(copies: Sequence[np.ndarray], min_face_pixels: int) -> Iterator[tuple[float, np.ndarray]]:
    """Scales at which a face of `min_face_pixels` and larger ones fill the first network's view, and the images there.

    The two largest levels are made of the copies, each other one of the level two above, which is of twice its size:
    about a third of the time of making all of the copies, and the same faces.

    Returns:
        Pairs of scale and (B, H, W, 3) uint8; where H or W is odd, the last row or column is there twice, since the
        network goes by twos.
    """
    height, width = copies[0].shape[:2]
    scale = CELL_PIXELS / min_face_pixels
    above: list[Sequence[np.ndarray]] = [copies, copies]
    while min(height, width) * scale >= CELL_PIXELS:
        size_wh = (int(width * scale + 1), int(height * scale + 1))
        level = np.stack([cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA) for image in above.pop(0)])
        above.append(level)
        yield scale, np.pad(level, ((0, 0), (0, size_wh[1] % 2), (0, size_wh[0] % 2), (0, 0)), mode="edge")
        scale *= PYRAMID_FACTOR


def cut_patches(copies: Sequence[np.ndarray], candidates: Candidates, side: int) -> tuple[Candidates, np.ndarray]:
    """What the candidates show, clipped to their image and resized to (N, side, side, 3) uint8.

    Candidates without a pixel inside their image are dropped (the package stumbles over them).
    """
    height, width = copies[0].shape[:2]
    corners = np.trunc(candidates.boxes_xyxy).astype(np.int64)
    left, top = (np.maximum(corners[:, axis] - 1, 0) for axis in (0, 1))
    right, bottom = np.minimum(corners[:, 2], width), np.minimum(corners[:, 3], height)
    inside = np.flatnonzero((right > left) & (bottom > top))
    patches = np.empty((len(inside), side, side, 3), np.uint8)
    for patch, number in zip(patches, inside, strict=True):
        image = copies[candidates.image_index[number]]
        shown = image[top[number] : bottom[number], left[number] : right[number]]
        cv2.resize(shown, (side, side), dst=patch, interpolation=cv2.INTER_AREA)
    return candidates[inside], patches


def _without_nested(boxes_xyxy: np.ndarray, scores: np.ndarray) -> list[int]:
    """Indices of the boxes of which no better box shares more than 70 % of the smaller of the two, best first."""
    kept: list[int] = []
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] + 1
    for candidate in np.argsort(-scores, kind="stable").tolist():
        others = boxes_xyxy[kept]
        top_left = np.maximum(boxes_xyxy[candidate, :2], others[:, :2])
        shared = np.maximum(np.minimum(boxes_xyxy[candidate, 2:], others[:, 2:]) - top_left + 1, 0).prod(axis=1)
        if (shared <= 0.7 * np.minimum(sizes[candidate].prod(), sizes[kept].prod(axis=1))).all():
            kept.append(candidate)
    return kept
