"""The three networks of MTCNN, with facenet-pytorch's weights, so arranged that an answer depends on its image alone.

A library of linear algebra sums in another order for one row than for many, and for some shapes with two threads than
with one. MTCNN cuts its boxes to whole pixels between the networks, and a crop is sampled at thirty-seconds of a pixel:
such last bits moved logits by up to 0.1. With the shapes below the order stays the same, as measured with one to four
threads and 1 to 512 images on an AMD EPYC with AVX-512. The tests ask for the same bits on that kind of processor, and
for answers within 1e-4 on others, whose libraries choose other loops.

Pooling is the maximum of slices; torch's takes 1.2 to 10 times as long.
"""

import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from torch import Tensor, nn
from torch.nn import functional

FILLED_CHANNELS = 16
ANSWERS = 5
LEAST_PIXELS = 4096
"""That the first network sees at a time: smaller levels of the pyramid are filled up with empty images."""
LEAST_PATCHES = 2
"""One patch alone takes another way through a convolution."""
ROWS_A_STEP = 8
"""Linear layers see multiples of it."""
STRIDE = 2
"""Of all pooling here."""


class ProposalNetwork(nn.Module):
    """The first network, calculated for speed on a CPU; equal to the package's up to rounding.

    - The first layer's 10 channels are filled up with zeros to 16, which fit vector registers (measured: 16 against
      8 ms for the first convolution, activation and pooling of 8 images of 240 × 135).
    - The two last layers are one: a face's logit, the difference of the package's two, and four offsets a cell, filled
      up to 16 channels, for fewer of which the sums depend on the number of threads.
    """

    def __init__(self, network: PNet) -> None:
        super().__init__()
        first, second, face, offsets = network.conv1, network.conv2, network.conv4_1, network.conv4_2
        self.first = nn.Conv2d(first.in_channels, FILLED_CHANNELS, kernel_size=3)
        self.first_slopes = nn.PReLU(FILLED_CHANNELS)
        self.pool = LargestPixel(2)
        self.second = nn.Conv2d(FILLED_CHANNELS, second.out_channels, kernel_size=3)
        self.rest = nn.Sequential(network.prelu2, network.conv3, network.prelu3)
        self.answers = nn.Conv2d(face.in_channels, FILLED_CHANNELS, kernel_size=1)
        filled = FILLED_CHANNELS - first.out_channels
        with torch.no_grad():
            self.first.weight.copy_(functional.pad(first.weight, (0, 0, 0, 0, 0, 0, 0, filled)))
            self.first.bias.copy_(functional.pad(first.bias, (0, filled)))
            self.first_slopes.weight.copy_(functional.pad(network.prelu1.weight, (0, filled)))
            self.second.weight.copy_(functional.pad(second.weight, (0, 0, 0, 0, 0, filled)))
            self.second.bias.copy_(second.bias)
            self.answers.weight.zero_()[:ANSWERS] = torch.cat([face.weight[1:] - face.weight[:1], offsets.weight])
            self.answers.bias.zero_()[:ANSWERS] = torch.cat([face.bias[1:] - face.bias[:1], offsets.bias])

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], H and W even -> (B, 5, H / 2 - 5, W / 2 - 5)."""
        count = len(images)
        images = _filled(images, -(-LEAST_PIXELS // images[0, 0].numel()))
        features = self.first_slopes(self.first(images))
        features = self.pool(features)
        return self.answers(self.rest(self.second(features)))[:count, :ANSWERS]


class LargestPixel(nn.Module):
    """`nn.MaxPool2d(side, stride=2, ceil_mode=True)`, bit by bit, for a side of 3, or of 2 where H and W are even."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W'), a last window that is cut off included."""
        return _pooled_along(_pooled_along(features, 2, self.side), 3, self.side)


def _pooled_along(features: Tensor, axis: int, side: int) -> Tensor:
    def every_second(start: int) -> Tensor:
        return features[(slice(None),) * axis + (slice(start, None, STRIDE),)]

    outputs = -(-(features.shape[axis] - side) // STRIDE) + 1
    largest = torch.maximum(*(every_second(start).narrow(axis, 0, outputs) for start in (0, 1)))
    if side == 3:
        third = every_second(2)  # the last window may lack it
        whole = largest.narrow(axis, 0, third.shape[axis])
        torch.maximum(whole, third, out=whole)
    return largest


class PatchNetwork(nn.Module):
    """The second or third network on any number of patches; equal to the package's up to rounding."""

    def __init__(self, network: RNet | ONet) -> None:
        super().__init__()
        parts = [network.conv1, network.prelu1, LargestPixel(3), network.conv2, network.prelu2, LargestPixel(3)]
        parts += [network.conv3, network.prelu3]
        if isinstance(network, ONet):
            parts += [LargestPixel(2), network.conv4, network.prelu4]
            dense, slopes = network.dense5, network.prelu5
            face, others = network.dense6_1, [network.dense6_2, network.dense6_3]
        else:
            dense, slopes = network.dense4, network.prelu4
            face, others = network.dense5_1, [network.dense5_2]
        self.features = nn.Sequential(*parts)
        self.dense = nn.Sequential(dense, slopes)
        self.face, self.others = face, nn.ModuleList(others)

    def forward(self, patches: Tensor) -> list[Tensor]:
        """(N, 3, side, side) in [-1, 1], N >= 1 -> (N,) probability of a face, (N, 4) offsets and, from the third
        network, (N, 10) landmarks."""
        count = len(patches)
        features = self.features(_filled(patches, LEAST_PATCHES))
        features = features.permute(0, 3, 2, 1).flatten(1)[:count]
        dense = self.dense(_filled(features, -(-count // ROWS_A_STEP) * ROWS_A_STEP))
        answers = [functional.softmax(self.face(dense), dim=1)[:, 1], *(head(dense) for head in self.others)]
        return [answer[:count] for answer in answers]


def _filled(rows: Tensor, count: int) -> Tensor:
    """At least `count` rows, those that lack being zero."""
    if len(rows) >= count:
        return rows
    filled = functional.pad(rows, (0, 0) * (rows.dim() - 1) + (0, count - len(rows)))
    return filled.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else filled
