"""The precision to compute in: what `auto` becomes on a device, tried on the network where that needs a trial."""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from multiattn.config import Experiment
from multiattn.model.network import fake_logit, make_network
from multiattn.model.predict import normalize_crops
from multiattn.runtime.devices import autocast

BF16_FLAGS = ("amx_bf16", "avx512_bf16")
"""Processor flags of bfloat16 arithmetic; without one, torch computes bf16 by way of float32, which is slower."""
BOUNDS_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Values of ONEDNN_MAX_CPU_ISA, which bounds the instructions of torch's kernels."""
LEAST_GAIN = 1.1
"""bf16 must be this many times as fast as float32: less may be noise of the trial."""
LARGEST_CHANGE = 2e-3
"""Largest change of P(fake) by bf16 against float32 that prediction accepts."""
TRIAL_CROPS, TRIAL_SECONDS, TRIAL_ROUNDS = 16, 1.0, 3
"""Crops of a trial's batch at most; no round begins after so many seconds; rounds at most."""


@dataclass(frozen=True)
class Precision:
    """A precision (`bf16`, `fp16`, `fp32` or `apex-O1`), and the reason it was taken."""

    name: str
    reason: str


@dataclass(frozen=True)
class Trial:
    """One batch computed in float32 and in bf16 on this processor: seconds of the fastest round."""

    seconds_fp32: float
    seconds_bf16: float
    change: float = 0.0
    """The largest change of a P(fake) by bf16; 0 in training, where nothing is delivered."""


def resolve_precision(precision: str, device: torch.device, trial: Callable[[], Trial] | None = None) -> Precision:
    """Turn `auto` into what suits the device: bf16, fp16 on GPUs without bf16; float32 or bf16 on a CPU.

    The trial is run only on a CPU that has bf16; without one, a CPU computes in float32.
    """
    if precision != "auto":
        return Precision(precision, "asked for")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16", "the GPU has bf16 arithmetic")
        return Precision("fp16", "the GPU has no bf16 arithmetic")
    if trial is None:
        return Precision("fp32", "float32 on a CPU")
    if not has_bf16():
        return Precision("fp32", f"torch has no bf16 arithmetic here ({' or '.join(BF16_FLAGS)})")
    found = trial()
    times = f"{1000 * found.seconds_bf16:.3g} ms a batch in bf16, {1000 * found.seconds_fp32:.3g} ms in float32"
    if not found.change <= LARGEST_CHANGE:
        return Precision("fp32", f"bf16 changes P(fake) by up to {found.change:.1e}, more than {LARGEST_CHANGE:g}")
    if not found.seconds_bf16 * LEAST_GAIN <= found.seconds_fp32:
        return Precision("fp32", f"bf16 is not faster on this processor: {times}")
    return Precision("bf16", f"{', '.join(flag for flag in BF16_FLAGS if flag in processor_flags())}: {times}")


def training_precision(experiment: Experiment, device: torch.device, *, recorded: str | None = None) -> Precision:
    """The precision an experiment trains in: that `recorded` by the run it continues, where this processor has it."""
    is_possible = recorded == "fp32" or (recorded == "bf16" and has_bf16())
    if experiment.precision == "auto" and device.type == "cpu" and is_possible:
        return Precision(recorded, "the run was begun with it")
    return resolve_precision(experiment.precision, device, lambda: try_training(experiment))


def known_precision(precision: str, device: torch.device) -> str:
    """The precision of predictions as far as it is known before a network is tried: `auto` on a CPU with bf16."""
    is_open = precision == "auto" and device.type == "cpu" and has_bf16()
    return precision if is_open else resolve_precision(precision, device).name


def try_training(experiment: Experiment) -> Trial:
    """Time forward and backward of the experiment's network on noise; draws nothing from the global generator."""
    with torch.random.fork_rng(devices=[]):
        network = make_network(experiment.model, load_weights=False).train()
        size, count = experiment.data.image_size, min(experiment.data.batch_size, TRIAL_CROPS)
        crops = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)

        def compute(precision: str) -> None:
            network.zero_grad()
            with autocast(precision, torch.device("cpu")):
                logits = network(normalize_crops(crops)).logits
            logits.float().square().sum().backward()

        return Trial(*_fastest(compute))


def try_prediction(network: nn.Module, crops: Tensor) -> Trial:
    """Time the prediction of these crops on the CPU, and compare its answers."""
    answers: dict[str, Tensor] = {}
    was_training = network.training
    network.eval()

    def compute(precision: str) -> None:
        with autocast(precision, torch.device("cpu")):
            logits = network(normalize_crops(crops)).logits
        answers[precision] = fake_logit(logits.float()).double().sigmoid()

    def change() -> float:
        return float((answers["bf16"] - answers["fp32"]).abs().max())

    with torch.inference_mode():
        seconds = _fastest(compute, is_decided=lambda: not change() <= LARGEST_CHANGE)
    network.train(was_training)
    return Trial(*seconds, change=change())


def _fastest(compute: Callable[[str], None], is_decided: Callable[[], bool] = lambda: False) -> tuple[float, float]:
    """Seconds of the fastest round in float32 and in bf16, taking turns after a first round that warms up; of the first
    one where nothing else is needed to decide."""
    began, rounds = time.perf_counter(), []
    while len(rounds) <= TRIAL_ROUNDS and (len(rounds) < 2 or time.perf_counter() - began < TRIAL_SECONDS):
        times = []
        for precision in ("fp32", "bf16"):
            start = time.perf_counter()
            compute(precision)
            times.append(time.perf_counter() - start)
        rounds.append(times)
        if is_decided():
            break
    fp32, bf16 = (min(times) for times in zip(*(rounds[1:] or rounds), strict=True))
    return fp32, bf16


def has_bf16() -> bool:
    return not processor_flags().isdisjoint(BF16_FLAGS)


@functools.cache
def processor_flags() -> frozenset[str]:
    """Flags of the first processor in /proc/cpuinfo, without those that ONEDNN_MAX_CPU_ISA keeps torch from; empty
    where there is no such file or line."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    line = next((line for line in lines if line.startswith("flags")), "")
    is_bound = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in BOUNDS_WITHOUT_BF16
    return frozenset(line.partition(":")[2].split()).difference(BF16_FLAGS if is_bound else ())
