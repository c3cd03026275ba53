"""This process on a CPU: denormal numbers, the allocator, memory in use and free, time since its start."""

import contextlib
import ctypes
import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

TORCH_THREAD = "in torch"
"""Name of threads that may still compute when all is delivered: Python's own end would abort under them."""
WAIT_POLICY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Idle OpenMP threads sleep; those of libgomp, which torch's wheels bring, first check 1,000 times for new work."""
WAIT_SETTINGS = (*WAIT_POLICY, "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Variables of libgomp and of Intel's and LLVM's libraries by which a user sets a policy."""
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD, MALLOC_ARENA_MAX = -1, -3, -8
"""Parameters of glibc's `mallopt`, from its malloc.h."""
OBJECTS_APART = 50_000
CONTROL_GROUPS = Path("/sys/fs/cgroup")
RESERVE_SHARE, LEAST_RESERVE, MOST_RESERVE, MOST_RESERVE_SHARE = 0.02, 20.0, 300.0, 0.1
"""Share of a time budget, 2 %, its bounds of 20 and 300 s, and a tenth, which it never exceeds."""
_IMPORTED = time.monotonic()


def set_wait_policy() -> None:
    """Have idle OpenMP threads sleep instead of spinning, unless the user has set a policy.

    The environment is read when a library is loaded, so this comes before torch, scikit-learn and numba; processes that
    are started from here inherit it. Left alone, libgomp's threads spin for 300,000 rounds (several milliseconds) at
    the end of each parallel part, which keeps the working thread off cores that others want too. The demo's network, 2
    cores of an AMD EPYC (Zen 3), crops/s by default, with PASSIVE alone, and with 1,000 rounds: training on the quiet
    machine 133, 116, 133, beside 8 busy processes 8, 15, 15; prediction on the quiet machine 621, 568, 615.
    """
    if not any(name in os.environ for name in WAIT_SETTINGS):
        os.environ.update(WAIT_POLICY)


def collect_seldom() -> None:
    """Have Python search for garbage in cycles after 50,000 new objects, in place of 700.

    The import of torch and timm alone makes a million, and none of them is garbage. Processor seconds of a cold
    `multiattn score` on 2 cores of an AMD EPYC (Zen 4), medians of 3: 7.8 as Python starts, 6.4 with this and without
    the searches at its end (`gc.freeze` in `__main__`).
    """
    gc.set_threshold(OBJECTS_APART, *gc.get_threshold()[1:])


def tune_cpu() -> None:
    """Make this process fit for training and inference on a CPU; for the process, once.

    Denormal numbers count as zero: arithmetic with them is many times slower. And glibc keeps freed memory instead of
    handing it back: activations are freed and taken again every step, and each time all their pages would be mapped
    anew (measured: 2.7 of 6.4 s a step of EfficientNet-B4 went into that; 4.5 s without).
    """
    import torch

    torch.set_flush_denormal(True)
    _mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30)
    _mallopt(MALLOC_TRIM_THRESHOLD, (1 << 31) - 1)


def share_one_heap() -> None:
    """Let all threads take memory from one heap; before the first thread is started.

    By default glibc gives each thread a heap of its own, of which activations above 64 MB do not become part, so that
    their pages are mapped anew for every layer (`tune_cpu` says what that costs).
    """
    _mallopt(MALLOC_ARENA_MAX, 1)


def _mallopt(parameter: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # elsewhere than on glibc
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)


def usable_cores() -> int:
    """Cores this process may use, or its share of them where torchrun or `train --gpus` started several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def memory_in_use(device: "torch.device") -> int:
    """Bytes: allocated by tensors on a GPU, else resident in this process."""
    import torch

    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident_bytes("VmRSS:")


def peak_memory(device: "torch.device") -> int:
    """Bytes this process had at most: allocated on a GPU, else resident."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident_bytes("VmHWM:")


def _resident_bytes(line: str) -> int:
    """Read from Linux's process table, since `getrusage` would hand a child its parent's peak; elsewhere the peak by
    `getrusage`, and 0 on Windows."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        try:
            import resource
        except ImportError:
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next(int(entry.split()[1]) * 1024 for entry in status.splitlines() if entry.startswith(line))


def free_memory() -> int:
    """Bytes that processes on this machine may still take, within the limits of this one's control groups.

    What the system would give back of its file cache counts as free. Elsewhere than on Linux: all the memory there is.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for group in groups:  # `<number>:<controllers>:<path>`, of version 2 without controllers
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            root, *names = CONTROL_GROUPS, "memory.max", "memory.current", "inactive_file"
        else:
            root = CONTROL_GROUPS / controllers
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):  # a container sees its own group as the root
            with contextlib.suppress(OSError, ValueError, KeyError):  # no such group here; `max` is no limit
                limit, used = (int((folder / name).read_text(encoding="utf-8")) for name in names[:2])
                kinds = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
                free = min(free, limit - used + int(kinds[names[2]]))
    return max(0, free)


def reserve_seconds(budget: float) -> float:
    """Seconds of a time budget that are kept for what is left to do at its end."""
    return min(MOST_RESERVE_SHARE * budget, max(LEAST_RESERVE, min(MOST_RESERVE, RESERVE_SHARE * budget)))


def process_seconds() -> float:
    """Since this process started, by Linux's process table; elsewhere since this module was imported.

    In a notebook that is the notebook's kernel, so earlier cells count too.
    """
    since_import = time.monotonic() - _IMPORTED
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])  # field 22 of proc(5), counted after the name
        # Not /proc/uptime: a container may be shown its own there, while processes' starts count from the machine's.
        since_start = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return since_import
    # A start of 0 is a process table that does not know it; a start in the future one that counts by another clock.
    return max(since_start, since_import) if ticks else since_import
