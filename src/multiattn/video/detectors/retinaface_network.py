"""RetinaFace's network (arXiv:1905.00641): body, feature pyramid, context heads, three predictions an anchor.

The context heads are those of SSH (arXiv:1708.03979). Modules carry the names of the widely used PyTorch state dicts,
in the two layouts that are in circulation, so those files load strictly.
"""

import functools
import itertools
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from multiattn.runtime.tensor_files import in_dtype_of, read_tensors, state_problems
from multiattn.video.detectors.nms import batched_nms
from multiattn.video.detectors.registry import Faces

MEAN_BGR = (104.0, 117.0, 123.0)
"""Subtracted from the pixels, as where the weights were trained."""
STRIDES = (8, 16, 32)
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))
"""Sides in pixels of the two square anchors of each cell, by stride."""
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
"""The network was trained on offsets divided by these."""
MAX_OVERLAP = 0.4
"""Two faces with a larger IoU are one, of the better score."""
ANCHORS_A_CELL = 2
LAYOUTS = {"body.stage1.0.0.weight": "MobileNet-0.25", "body.layer1.0.conv1.weight": "ResNet-50"}
"""A tensor that only this layout has -> its name."""
MOST_LISTED = 8
PORTRAIT_LANDMARKS = ((203.5, 101.0), (246.5, 103.5), (225.0, 128.0), (204.0, 139.5), (243.0, 141.0))
"""Landmarks of scikit-image's portrait, in pixels of its 512 x 512."""
PORTRAIT_SIDES = (128, 512)
"""Sizes at which its face of 85 pixels meets the anchors of 32 to 128."""
SURE, ANCHOR_TOLERANCE = 0.9, 0.2
"""Probability of an anchor that counts; share by which its side may be missed."""


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, slope: float | None = 0.1
) -> list[nn.Module]:
    """Convolution, batch normalisation and a leaky ReLU, which `slope=None` leaves out."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return layers if slope is None else [*layers, nn.LeakyReLU(slope, inplace=True)]


def _separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*_convolution(inputs, inputs, 3, stride, groups=inputs), *_convolution(inputs, outputs, 1))


class MobileNetBody(nn.Module):
    """MobileNet v1 (arXiv:1704.04861) of a quarter of the width: features of strides 8, 16 and 32."""

    channels = (64, 128, 256)

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(
            nn.Sequential(*_convolution(3, 8, 3, 2)),
            _separable(8, 16),
            _separable(16, 32, 2),
            _separable(32, 32),
            _separable(32, 64, 2),
            _separable(64, 64),
        )
        self.stage2 = nn.Sequential(_separable(64, 128, 2), *[_separable(128, 128) for _ in range(5)])
        self.stage3 = nn.Sequential(_separable(128, 256, 2), _separable(256, 256))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features of 64, 128 and 256 channels."""
        stride8 = self.stage1(images)
        stride16 = self.stage2(stride8)
        return [stride8, stride16, self.stage3(stride16)]


class ResNetBody(nn.Module):
    """torchvision's ResNet-50 (arXiv:1512.03385) without its classifier: features of strides 8, 16 and 32."""

    channels = (512, 1024, 2048)

    def __init__(self) -> None:
        super().__init__()
        import torchvision  # seconds, for this body alone

        for name, module in torchvision.models.resnet50(weights=None).named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> features of 512, 1024 and 2048 channels."""
        features = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        stride8 = self.layer2(features)
        stride16 = self.layer3(stride8)
        return [stride8, stride16, self.layer4(stride16)]


class FeaturePyramid(nn.Module):
    """Each stride's features plus those of all coarser strides, all of one width (arXiv:1612.03144)."""

    def __init__(self, channels: tuple[int, int, int], width: int, slope: float) -> None:
        super().__init__()
        for level, inputs in enumerate(channels, start=1):
            self.add_module(f"output{level}", nn.Sequential(*_convolution(inputs, width, 1, slope=slope)))
        self.merge1 = nn.Sequential(*_convolution(width, width, 3, slope=slope))
        self.merge2 = nn.Sequential(*_convolution(width, width, 3, slope=slope))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Features of strides 8, 16 and 32 -> as many of `width` channels."""
        fine, middle, coarse = self.output1(features[0]), self.output2(features[1]), self.output3(features[2])
        middle = self.merge2(middle + functional.interpolate(coarse, size=middle.shape[-2:], mode="nearest"))
        fine = self.merge1(fine + functional.interpolate(middle, size=fine.shape[-2:], mode="nearest"))
        return [fine, middle, coarse]


class ContextHead(nn.Module):
    """Three receptive fields (3, 5 and 7 pixels, the larger ones by stacked 3 × 3) side by side, as in SSH."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        quarter = width // 4
        self.conv3X3 = nn.Sequential(*_convolution(width, width // 2, 3, slope=None))
        self.conv5X5_1 = nn.Sequential(*_convolution(width, quarter, 3, slope=slope))
        self.conv5X5_2 = nn.Sequential(*_convolution(quarter, quarter, 3, slope=None))
        self.conv7X7_2 = nn.Sequential(*_convolution(quarter, quarter, 3, slope=slope))
        self.conv7x7_3 = nn.Sequential(*_convolution(quarter, quarter, 3, slope=None))

    def forward(self, features: Tensor) -> Tensor:
        """(B, width, h, w) -> the same shape."""
        narrow = self.conv5X5_1(features)
        fields = [self.conv3X3(features), self.conv5X5_2(narrow), self.conv7x7_3(self.conv7X7_2(narrow))]
        return functional.relu(torch.cat(fields, dim=1))


class PredictionHead(nn.Module):
    """`values` numbers for each of the two anchors of each cell."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, ANCHORS_A_CELL * values, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h * w * 2, values), row by row, the smaller anchor of a cell first."""
        return self.conv1x1(features).permute(0, 2, 3, 1).reshape(features.shape[0], -1, self.values)


class RetinaFace(nn.Module):
    """Images to predictions for each anchor, which `select_faces` decodes; of one of `LAYOUTS`.

    Departures: none in inference.
    """

    def __init__(self, layout: str) -> None:
        super().__init__()
        width = {"MobileNet-0.25": 64, "ResNet-50": 256}[layout]
        slope = 0.1 if width <= 64 else 0.0  # a plain ReLU in the wide pyramid, as those weights were trained
        self.body = MobileNetBody() if layout == "MobileNet-0.25" else ResNetBody()
        self.fpn = FeaturePyramid(self.body.channels, width, slope)
        self.ssh1, self.ssh2, self.ssh3 = (ContextHead(width, slope) for _ in range(3))
        self.ClassHead = nn.ModuleList(PredictionHead(width, 2) for _ in range(3))
        self.BboxHead = nn.ModuleList(PredictionHead(width, 4) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(PredictionHead(width, 10) for _ in range(3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) BGR minus (104, 117, 123), in [-123, 151] -> logits of A anchors, boxes and landmarks.

        Returns:
            (B, A, 2) background and face, before the softmax; (B, A, 4) and (B, A, 10) offsets from the anchors.
            A counts strides 8, 16, 32 in turn.
        """
        levels = self.fpn(self.body(images))
        contexts = [head(level) for head, level in zip((self.ssh1, self.ssh2, self.ssh3), levels, strict=True)]
        return tuple(
            torch.cat([head(context) for head, context in zip(heads, contexts, strict=True)], dim=1)
            for heads in (self.ClassHead, self.BboxHead, self.LandmarkHead)
        )


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


def require_own_anchors(network: RetinaFace, path: Path) -> None:
    """Refuse weights that were trained on other anchors: their tensors are the same, their boxes of wrong sizes.

    Of each anchor that sees the face of a portrait, the side on which its offsets lead to the known landmarks is
    calculated (least squares); the median of each kind of anchor must be the side it has here.
    """
    from skimage.data import astronaut  # comes with the package

    portrait, ratios = astronaut(), {}
    for side in PORTRAIT_SIDES:
        size_wh = (side, side)
        logits, _, offsets = _predict(network, [cv2.resize(portrait, size_wh, interpolation=cv2.INTER_AREA)])
        seen = torch.softmax(logits[0].float(), dim=1)[:, 1] > SURE
        chosen, offsets = anchors(size_wh, str(logits.device))[seen], offsets[0, seen].float().reshape(-1, 5, 2)
        landmarks = torch.tensor(PORTRAIT_LANDMARKS, device=logits.device) * (side / portrait.shape[0])
        way = ((landmarks - chosen[:, None, :2]) * offsets).sum((1, 2))
        for assumed, found in zip(chosen[:, 2].tolist(), (way / offsets.square().sum((1, 2))).tolist(), strict=True):
            ratios.setdefault(assumed, []).append(found / CENTRE_VARIANCE / assumed)
    found = {assumed: float(np.median(values)) for assumed, values in sorted(ratios.items())}
    if not found or any(abs(ratio - 1) > ANCHOR_TOLERANCE for ratio in found.values()):
        sides = ", ".join(f"{side:g} as {side * ratio:.0f}" for side, ratio in found.items()) or "no face at all"
        raise ValueError(
            f"{path}: expected RetinaFace weights trained on anchors of {', '.join(map(str, sum(ANCHOR_SIDES, ())))} "
            f"pixels; a portrait shows them as others ({sides}). Take a file trained on these."
        )


def find_faces(network: RetinaFace, copies: list[np.ndarray], threshold: float) -> list[Faces]:
    """The faces of each of (H, W, 3) uint8 RGB copies of one size, in one pass of the network."""
    predictions = _predict(network, copies)
    found = [values.cpu().numpy() for values in select_faces(*predictions, copies[0].shape[1::-1], threshold)]
    return [Faces(*(values[found[0] == index] for values in found[1:])) for index in range(len(copies))]


def _predict(network: RetinaFace, copies: list[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """The network's predictions for (H, W, 3) uint8 RGB copies of one size."""
    width, device = copies[0].shape[1], next(network.parameters()).device
    bgr = torch.from_numpy(np.stack([cv2.cvtColor(copy, cv2.COLOR_RGB2BGR) for copy in copies])).to(device)
    # A row at a time, which is twice as fast as subtracting three numbers at a time.
    mean = torch.tensor(MEAN_BGR, device=device).repeat(width)
    pixels = bgr.flatten(2).float().sub_(mean).unflatten(2, (width, 3)).permute(0, 3, 1, 2)
    with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):
        return network(pixels)


def select_faces(
    logits: Tensor, box_offsets: Tensor, landmark_offsets: Tensor, size_wh: tuple[int, int], threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The faces of a batch, from the network's predictions, on its device.

    Only anchors that reach the threshold are decoded; suppression runs over the whole batch at once.

    Args:
        size_wh: size of the searched images.

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


def load_retinaface(path: Path, device: torch.device) -> RetinaFace:
    """The network of a weights file, ready to predict: layout inferred, normalisation folded into the convolutions.

    The file is a state dict (.pth, or .safetensors), names with or without `module.`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not RetinaFace's tensors: unreadable, or some missing, unexpected or of another shape.
    """
    state = {
        name.removeprefix("module."): tensor
        for name, tensor in read_tensors(path).items()
        if not name.endswith("num_batches_tracked")
    }
    layouts = [layout for name, layout in LAYOUTS.items() if name in state]
    if len(layouts) != 1:
        raise ValueError(
            f"{path}: not RetinaFace weights: expected a state dict with one of the tensors {', '.join(LAYOUTS)} "
            f"(MobileNet-0.25, ResNet-50), found {', '.join(sorted(state)[:MOST_LISTED]) or 'no tensor'}."
        )
    with torch.device("meta"):  # no time for random numbers that the file replaces
        network = RetinaFace(layouts[0])
    expected = network.state_dict()
    if problems := state_problems(expected, state, counters=False):
        raise ValueError(f"{path}: these are not the weights of RetinaFace with {layouts[0]}: {'; '.join(problems)}.")
    state = {name: in_dtype_of(expected[name], tensor) for name, tensor in state.items()}
    network.load_state_dict(state, strict=False, assign=True)  # what differs was settled above; counters stay unset
    network = network.eval().requires_grad_(False)
    fold_normalisation(network)
    return network.to(device, memory_format=torch.channels_last)


def fold_normalisation(module: nn.Module) -> None:
    """Multiply every batch normalisation into the convolution registered just before it; equal up to rounding.

    In this network and in torchvision's ResNet the order of registration is the order of calculation.
    """
    children = list(module.named_children())
    for (name, layer), (next_name, next_layer) in itertools.pairwise(children):
        if isinstance(layer, nn.Conv2d) and isinstance(next_layer, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(layer, next_layer))
            setattr(module, next_name, nn.Identity())
    for _, child in children:
        fold_normalisation(child)
