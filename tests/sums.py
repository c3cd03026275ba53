"""Where sums of floats were seen to keep their order."""

import re
from pathlib import Path

import torch

from multiattn.runtime.environment import describe_machine


def machine_was_measured() -> bool:
    """True on the kind of processor that `multiattn.video.detectors.mtcnn` was measured on, AMD's family 26
    (Zen 5): libraries choose their loops and blocks, and so the order of sums, by it."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    family = re.search(r"cpu family\s*: (\d+)", facts)
    is_amd = "AMD" in describe_machine(torch.device("cpu")) and family is not None and family[1] == "26"
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"
