"""Where sums of floats were seen to keep their order."""

import torch

from multiattn.runtime import describe_machine


def machine_was_measured() -> bool:
    """Whether this is the kind of processor that `multiattn.video.mtcnn_networks` was measured on: libraries choose
    their loops, and so the order of sums, by it."""
    return "AMD" in describe_machine(torch.device("cpu")) and torch.backends.cpu.get_cpu_capability() == "AVX512"
