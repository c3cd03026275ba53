"""The devices to compute on, the context of a precision, and seeds."""

import os
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from multiattn.runtime.environment import require_packages

if TYPE_CHECKING:
    import torch


EXPORT_SECONDS = 1800.0
"""Time to export networks for another runtime: that a process waits for another one which does, or a server for its
first process. A large network takes a minute."""


def num_ranks() -> int:
    """Processes of this command that torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (libraries underneath draw from the global generator)
    torch.manual_seed(seed)


def pick_device(name: str = "auto") -> "torch.device":
    """The device to compute on; a GPU also becomes torch's current one.

    Args:
        name: `cpu`; `cuda`, the GPU of this process (`LOCAL_RANK` under torchrun, else the first); `cuda:N`; or `auto`,
            `cuda` where there is one and else `cpu`.

    Raises:
        ValueError: no such device, or one GPU by number for all processes of a torchrun job.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"--device: expected cpu, cuda, cuda:N or auto, found {name!r}.")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device found on this machine. Use --device cpu or --device auto.")
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        elif num_ranks() > 1:
            raise ValueError(f"--device {name}: every process of a torchrun job takes its own GPU. Use --device cuda.")
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices.")
        torch.cuda.set_device(device)
        forbid_tf32()
    return device


def forbid_tf32() -> None:
    """Have GPUs compute float32 with its 24 significant bits, for this process.

    Left alone, torch's convolutions round their inputs to the 11 bits of TF32, and so do matrix products where
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set, as in NVIDIA's images; the answers in float32 would not be a CPU's.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def pick_devices(name: str = "auto") -> "tuple[torch.device, ...]":
    """The devices to compute on, each with networks of its own; the first also becomes torch's current one.

    Args:
        name: as of `pick_device`, but `cuda` and `auto` are all GPUs of this machine (under torchrun that of this
            process), and several may be named, as `cuda:0,cuda:1`.

    Raises:
        ValueError: as `pick_device`; one twice, or several that are not GPUs by number.
    """
    import torch

    names = name.split(",")
    if len(names) > 1 and not (all(re.fullmatch(r"cuda:\d+", one) for one in names) and len({*names}) == len(names)):
        raise ValueError(f"--device {name}: expected GPUs by number, each once, as cuda:0,cuda:1.")
    devices = tuple(pick_device(one) for one in reversed(names))[::-1]  # the last to be picked is the current one
    if devices[0].type == "cpu" or name not in ("auto", "cuda") or num_ranks() > 1:
        return devices
    return tuple(torch.device("cuda", number) for number in range(torch.cuda.device_count()))


def as_devices(device: "torch.device | Sequence[torch.device]") -> "tuple[torch.device, ...]":
    """One device or several, as a tuple."""
    return tuple(device) if isinstance(device, Sequence) else (device,)


def device_names(device: "torch.device | Sequence[torch.device]") -> str:
    """`cuda:0,cuda:1`, as `pick_devices` takes them."""
    return ",".join(map(str, as_devices(device)))


def default_jobs(devices: str) -> int:
    """Processes that decode and detect: every core; at most 4 a GPU, since each holds a CUDA context there."""
    cores = os.cpu_count() or 1
    return cores if devices.startswith("cpu") else min(cores, 4 * len(devices.split(",")))


def runtime_precision(runtime: str, precision: str) -> str:
    """The precision to ask for with a runtime, before anything heavy is imported: onnxruntime computes in float32.

    Raises:
        ValueError: another precision with it, or a package that is not installed.
    """
    if runtime == "torch":
        return precision
    if precision not in ("auto", "fp32"):
        raise ValueError(f"--runtime {runtime}: expected --precision fp32 or auto beside it, found {precision}.")
    require_packages(f"--runtime {runtime}", "onnx", runtime)
    return "fp32"


def require_exporter(*more: str) -> None:
    """Raise `ValueError` where a package is missing that writes ONNX files, or one of `more`."""
    require_packages("writing ONNX files", "onnx", "onnx", "onnxscript", *more)


def autocast(precision: str, device: "torch.device") -> "torch.autocast":
    """The autocast context of a resolved precision; a no-op for fp32, and for apex, which patches torch itself."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
