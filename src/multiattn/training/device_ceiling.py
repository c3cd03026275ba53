"""What a device can do at best, and how much of it a training step asks for: the two sides of a share of the peak."""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from multiattn.config import Experiment
from multiattn.model.describe import describe_network
from multiattn.model.network import make_network

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square matrices: large enough to count, small enough to take a moment."""
REPEATS = 5
FORWARDS = 3
"""What forward and backward of a product cost in forwards: the gradients of both its factors are products too."""


def measured_ceiling(device: torch.device, precision: str) -> float:
    """Floating point operations a second of a product of two large square matrices, the fastest of a few.

    Taken as `torch.mm` and as a point-wise convolution, whichever is faster: on a CPU they are two libraries' work, and
    on AMD's processors the first of them does without AVX-512 in float32.

    Args:
        precision: bf16, fp16 or fp32; float32 as torch computes it by default.
    """
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(DTYPES[precision]) for _ in range(2))
    image = left.view(1, side // 32, 32, side).permute(0, 3, 1, 2)  # (1, C, H, W), channels last in memory
    kernel = right[:, :, None, None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        seconds = min(
            _fastest(lambda: left @ right, device),
            _fastest(lambda: F.conv2d(image, kernel), device),
        )
    return 2 * side**3 / seconds


def _fastest(product: Callable[[], Tensor], device: torch.device) -> float:
    taken = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        product()
        wait_for(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def wait_for(device: torch.device) -> None:
    """Until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def network_flops(experiment: Experiment, work: str, batch_size: int) -> int:
    """Floating point operations of the network's convolutions and matrix products; a multiply-add counts as two.

    An eval forward counts them once. A training step does three times, and twice that with an AGDA pass: the forward
    and the two products of its backward, of the experiment's last phase. Losses, normalisations, activations, AGDA's
    blur and the optimiser are not counted. Nor does torch's own counter serve for a backward pass: it takes the
    gradient of a depthwise kernel for that of a dense one.
    """
    with torch.device("meta"):
        network = make_network(experiment.model, load_weights=False)
    forward = describe_network(network, experiment.data.image_size).total.flops * batch_size
    if work == "infer":
        return forward
    several = experiment.model.network == "multi-attention" and experiment.model.num_maps > 1
    twice = several and experiment.agda.mode != "none" and experiment.schedule[-1].agda
    return FORWARDS * forward * (2 if twice else 1)
