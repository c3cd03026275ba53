"""MTCNN's cascade and its networks.

The weights are the three files inside facenet-pytorch's wheel; nothing of its code runs. The cascade is our own, with
that package's thresholds, pyramid and rounding. Measured on one core, 640 pixels, eight frames of five real clips: 30
ms of CPU a frame against the package's 73, and the same faces. Departures from the package: images are averaged by
OpenCV instead of torch's adaptive pooling, and small pyramid levels are made of larger ones.

The networks are arranged so that an output depends on its image alone. A library of linear algebra sums in another
order for one row than for many, and for some shapes with two threads than with one. MTCNN cuts its boxes to whole
pixels between the networks, so such last bits moved logits by up to 0.1. With the shapes below the order stays the
same, as measured with one to four threads and 1 to 512 images on an AMD EPYC with AVX-512; on other processors outputs
stay within 1e-4. Pooling is the maximum of slices; torch's takes 1.2 to 10 times as long.
"""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from multiattn.runtime.files import file_digest, require_file
from multiattn.runtime.tensor_files import read_tensors
from multiattn.video.detectors.nms import batched_nms
from multiattn.video.detectors.registry import SMALLEST_FACE, Faces

CELL_PIXELS, CELL_STRIDE = 12, 2
"""Side of the first network's view of a face, and its step, in pixels of a pyramid level."""
PYRAMID_FACTOR = 0.709
"""Halves the area from level to level."""
REFINE_PIXELS, OUTPUT_PIXELS = 24, 48
PATCHES_A_PASS = 512
FILLED_CHANNELS = 16
CELL_VALUES = 5
"""Outputs of the first network a cell: a logit and four offsets."""
LEAST_PIXELS = 4096
"""Pixels of one pass of the first network: smaller levels of the pyramid are filled up with empty images."""
LEAST_PATCHES = 2
"""Patches of one pass at least: for one alone a convolution sums in another order."""
ROWS_A_STEP = 8
"""Linear layers are given multiples of it."""
STRIDE = 2
"""Step of all pooling here."""
WEIGHTS = {
    "pnet.pt": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    "rnet.pt": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "onet.pt": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
}
"""The networks' files, in the order of the cascade, and their SHA-256."""
State = dict[str, Tensor]


@dataclass(frozen=True)
class Effort:
    """Settings of one pass of the cascade."""

    min_face_pixels: int
    """Smallest face, in pixels of the searched copy."""
    proposal_threshold: float
    refine_threshold: float
    """Candidates with a lower score do not reach the second and the third network."""


FIRST_PASS = Effort(min_face_pixels=SMALLEST_FACE, proposal_threshold=0.6, refine_threshold=0.7)
THOROUGH_PASS = Effort(min_face_pixels=20, proposal_threshold=0.5, refine_threshold=0.6)


def read_weights(folder: Path | None = None) -> list[State]:
    """The state dicts of the three networks, from a folder or the installed package, which is not imported.

    Raises:
        FileNotFoundError: no such package, or a file is missing.
        ValueError: a file is another one.
    """
    if folder is None:
        package = importlib.util.find_spec("facenet_pytorch")
        if package is None:
            raise FileNotFoundError(
                "--detector mtcnn: expected the package facenet-pytorch, whose wheel holds the weights, found none. "
                f"Run `pip install --no-deps facenet-pytorch==2.5.3`, or name a folder with {', '.join(WEIGHTS)} by "
                "--weights."
            )
        folder = Path(package.submodule_search_locations[0]) / "data"
    for name, digest in WEIGHTS.items():
        require_file(folder / name)
        if (found := file_digest(folder / name)) != digest:
            raise ValueError(
                f"{folder / name}: expected the file of SHA-256 {digest[:16]}..., found {found[:16]}.... Take it from "
                "the wheel of facenet-pytorch 2.5.3."
            )
    return [read_tensors(folder / name) for name in WEIGHTS]


class Cascade:
    """The three networks on a device, one after the other."""

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        self.device = device
        proposal, refine, output = read_weights(weights)
        networks = ProposalNetwork(proposal), PatchNetwork(refine), PatchNetwork(output)
        # Channels innermost in memory: measured on a CPU, up to three times as fast.
        self.proposal_network, self.refine_network, self.output_network = (
            network.eval().to(device, memory_format=torch.channels_last) for network in networks
        )

    def search(self, copies: list[np.ndarray], threshold: float, *, thorough: bool) -> list[Faces]:
        """As `Detector.search`."""
        effort = THOROUGH_PASS if thorough else FIRST_PASS
        candidates = self._refine(copies, self._propose(copies, effort), effort)
        candidates, landmarks = self._decide(copies, candidates, threshold)
        found = []
        for index in range(len(copies)):
            mine = np.flatnonzero(candidates.image_index == index)
            mine = mine[_without_nested(candidates.boxes_xyxy[mine], candidates.scores[mine])]
            found.append(Faces(candidates.boxes_xyxy[mine], candidates.scores[mine], landmarks[mine]))
        return found

    def _propose(self, copies: list[np.ndarray], effort: Effort) -> "Candidates":
        """Propose every cell of every pyramid level that may be a face."""
        logit_threshold = math.log(effort.proposal_threshold / (1 - effort.proposal_threshold))
        levels = [Candidates(np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))]
        offsets = [np.zeros((0, 4), np.float32)]
        for scale, level in pyramid(copies, effort.min_face_pixels):
            outputs = self.proposal_network(self._to_input(level))
            cells = torch.nonzero(outputs[:, 0] >= logit_threshold)
            chosen = outputs[cells[:, 0], :, cells[:, 1], cells[:, 2]].cpu()
            cells = cells.cpu()
            corners = cells[:, [2, 1]] * CELL_STRIDE + 1
            boxes = torch.floor(torch.cat([corners, corners + CELL_PIXELS - 1], dim=1).float() / scale)
            scores = torch.sigmoid(chosen[:, 0])
            keep = batched_nms(boxes, scores, cells[:, 0], 0.5)
            levels.append(Candidates(cells[keep, 0].numpy(), boxes[keep].numpy(), scores[keep].numpy()))
            offsets.append(chosen[keep, 1:].numpy())
        candidates = Candidates(*map(np.concatenate, zip(*(vars(level).values() for level in levels), strict=True)))
        return candidates.merged(np.concatenate(offsets), side_of_one_pixel=0)

    def _refine(self, copies: list[np.ndarray], candidates: "Candidates", effort: Effort) -> "Candidates":
        candidates, patches = cut_patches(copies, candidates, REFINE_PIXELS)
        if not len(candidates):
            return candidates
        scores, offsets = self._run(self.refine_network, patches)
        keep = scores > effort.refine_threshold
        return replace(candidates, scores=scores)[keep].merged(offsets[keep])

    def _decide(
        self, copies: list[np.ndarray], candidates: "Candidates", threshold: float
    ) -> tuple["Candidates", np.ndarray]:
        candidates, patches = cut_patches(copies, candidates, OUTPUT_PIXELS)
        if not len(candidates):
            return candidates, np.zeros((0, 5, 2), dtype=np.float32)
        scores, offsets, points = self._run(self.output_network, patches)
        keep = scores >= threshold
        candidates, offsets, points = replace(candidates, scores=scores)[keep], offsets[keep], points[keep]
        # The network gives five x, then five y, in fractions of its patch.
        landmarks = points.reshape(-1, 2, 5).transpose(0, 2, 1) * candidates.sides()[:, None]
        landmarks += candidates.boxes_xyxy[:, None, :2] - 1
        return candidates.moved(offsets), landmarks

    def _run(self, network: nn.Module, patches: np.ndarray) -> list[np.ndarray]:
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
    """(N,) float32, of the last network that saw them."""

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, keep: np.ndarray) -> "Candidates":
        return Candidates(self.image_index[keep], self.boxes_xyxy[keep], self.scores[keep])

    def sides(self, side_of_one_pixel: int = 1) -> np.ndarray:
        """(N, 2) width and height."""
        return self.boxes_xyxy[:, 2:] - self.boxes_xyxy[:, :2] + side_of_one_pixel

    def moved(self, offsets: np.ndarray, side_of_one_pixel: int = 1) -> "Candidates":
        """Their corners moved by (N, 4) offsets in units of their sides."""
        return replace(self, boxes_xyxy=self.boxes_xyxy + offsets * np.tile(self.sides(side_of_one_pixel), 2))

    def merged(self, offsets: np.ndarray, side_of_one_pixel: int = 1) -> "Candidates":
        """Those that overlap no better one of their image by an IoU above 0.7, best first, moved by their offsets; each
        as the square of its longer side about the same centre."""
        boxes, scores, index = map(torch.from_numpy, (self.boxes_xyxy, self.scores, self.image_index))
        keep = batched_nms(boxes, scores, index, 0.7).numpy()
        moved = self[keep].moved(offsets[keep], side_of_one_pixel)
        size = moved.sides(0)
        side = size.max(axis=1, keepdims=True)
        corner = moved.boxes_xyxy[:, :2] + (size - side) / 2
        return replace(moved, boxes_xyxy=np.concatenate([corner, corner + side], axis=1))


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
    """The pixels of the candidates, clipped to their image and resized to (N, side, side, 3) uint8.

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


class ProposalNetwork(nn.Module):
    """The first network, calculated for speed on a CPU; equal to the package's up to rounding.

    - The first layer's 10 channels are filled up with zeros to 16, which fit vector registers (measured: 16 against
      8 ms for the first convolution, activation and pooling of 8 images of 240 × 135).
    - The two last layers are one: a face's logit, the difference of the package's two, and four offsets a cell, filled
      up to 16 channels, for fewer of which the sums depend on the number of threads.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        first, second, face, offsets = (_layer(state, name) for name in ("conv1", "conv2", "conv4_1", "conv4_2"))
        self.first = nn.Conv2d(first.in_channels, FILLED_CHANNELS, kernel_size=3)
        self.first_slopes = nn.PReLU(FILLED_CHANNELS)
        self.pool = LargestPixel(2)
        self.second = nn.Conv2d(FILLED_CHANNELS, second.out_channels, kernel_size=3)
        self.rest = nn.Sequential(*(_layer(state, name) for name in ("prelu2", "conv3", "prelu3")))
        self.heads = nn.Conv2d(face.in_channels, FILLED_CHANNELS, kernel_size=1)
        filled = FILLED_CHANNELS - first.out_channels
        with torch.no_grad():
            self.first.weight.copy_(functional.pad(first.weight, (0, 0, 0, 0, 0, 0, 0, filled)))
            self.first.bias.copy_(functional.pad(first.bias, (0, filled)))
            self.first_slopes.weight.copy_(functional.pad(state["prelu1.weight"], (0, filled)))
            self.second.weight.copy_(functional.pad(second.weight, (0, 0, 0, 0, 0, filled)))
            self.second.bias.copy_(second.bias)
            self.heads.weight.zero_()[:CELL_VALUES] = torch.cat([face.weight[1:] - face.weight[:1], offsets.weight])
            self.heads.bias.zero_()[:CELL_VALUES] = torch.cat([face.bias[1:] - face.bias[:1], offsets.bias])

    def forward(self, images: Tensor) -> Tensor:
        """Classify the cells of images: (B, 3, H, W) in [-1, 1], H and W even -> (B, 5, H / 2 - 5, W / 2 - 5)."""
        count = len(images)
        images = _filled(images, -(-LEAST_PIXELS // images[0, 0].numel()))
        features = self.pool(self.first_slopes(self.first(images)))
        return self.heads(self.rest(self.second(features)))[:count, :CELL_VALUES]


class LargestPixel(nn.Module):
    """`nn.MaxPool2d(side, stride=2, ceil_mode=True)`, bit by bit, for a side of 3, or of 2 where H and W are even."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W'), a last window that is cut off included."""
        for axis in (2, 3):
            rows = [features[(slice(None),) * axis + (slice(start, None, STRIDE),)] for start in range(self.side)]
            outputs = -(-(features.shape[axis] - self.side) // STRIDE) + 1
            features = torch.maximum(*(row.narrow(axis, 0, outputs) for row in rows[:2]))
            for third in rows[2:]:  # the last window may lack it
                whole = features.narrow(axis, 0, third.shape[axis])
                torch.maximum(whole, third, out=whole)
        return features


class PatchNetwork(nn.Module):
    """The second or third network on any number of patches; equal to the package's up to rounding."""

    def __init__(self, state: State) -> None:
        super().__init__()
        is_third = "conv4.weight" in state
        names = ["conv1", "prelu1", 3, "conv2", "prelu2", 3, "conv3", "prelu3", *([2, "conv4", "prelu4"] * is_third)]
        parts = [LargestPixel(name) if isinstance(name, int) else _layer(state, name) for name in names]
        self.features = nn.Sequential(*parts)
        dense, heads = (("dense5", "prelu5"), "dense6_") if is_third else (("dense4", "prelu4"), "dense5_")
        self.dense = nn.Sequential(*(_layer(state, name) for name in dense))
        self.face = _layer(state, f"{heads}1")
        self.others = nn.ModuleList(_layer(state, f"{heads}{number}") for number in ((2, 3) if is_third else (2,)))

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Classify patches: (N, 3, side, side) in [-1, 1], N >= 1 -> (N,) probability of a face, (N, 4) offsets and,
        from the third network, (N, 10) landmarks."""
        count = len(patches)
        features = self.features(_filled(patches, LEAST_PATCHES))
        features = features.permute(0, 3, 2, 1).flatten(1)[:count]
        dense = self.dense(_filled(features, -(-count // ROWS_A_STEP) * ROWS_A_STEP))
        outputs = [functional.softmax(self.face(dense), dim=1)[:, 1], *(head(dense) for head in self.others)]
        return [output[:count] for output in outputs]


def _layer(state: State, name: str) -> nn.Module:
    """The convolution, linear layer or slopes whose tensors have this name."""
    values = {part: state[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.{part}" in state}
    outputs, *inputs = values["weight"].shape
    if not inputs:
        layer = nn.PReLU(outputs)
    else:
        layer = nn.Conv2d(inputs[0], outputs, tuple(inputs[1:])) if inputs[1:] else nn.Linear(inputs[0], outputs)
    layer.load_state_dict(values)
    return layer


def _filled(rows: Tensor, count: int) -> Tensor:
    """At least `count` rows, those that lack being zero."""
    if len(rows) >= count:
        return rows
    filled = functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, count - len(rows)))
    return filled.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else filled
