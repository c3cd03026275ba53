"""Checks of this machine and installation, one table of them: what is there, what is wrong, and what to do about it."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from multiattn.experiments import DEFAULT_EXPERIMENT, get_experiment
from multiattn.runtime.processor import CONTROL_GROUPS, free_memory, usable_cores
from multiattn.runtime.text_tables import counted

CODECS = {
    "H.264": ("libx264", "h264"),
    "HEVC": ("libx265", "hevc"),
    "VP9": ("libvpx-vp9", "vp9"),
    "AV1": ("libsvtav1", "libdav1d"),
}
"""Video codec -> FFmpeg's encoder and decoder of it. `--data.augmentation wild` encodes with all but VP9."""
SHARED_MEMORY = Path("/dev/shm")
BATCHES_AHEAD = 3
"""Batches that each of a loader's workers has ready."""
LEAST_DISK, LEAST_MEMORY, LEAST_FILES = 1e9, 4e9, 1024
SMI_SECONDS = 10
ROOMY_DISK = 20e9
"""Below it 32 crops of 380 pixels of 17,000 videos have no room."""


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    state: Literal["ok", "note", "wrong"]
    what: str
    advice: str = ""


def versions() -> Iterator[Finding]:
    """Python and each required package against the installed metadata's ranges; extras where they are there."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        own = importlib.metadata.distribution("multiattn")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("note", "multiattn is not installed, so ranges are not known", "pip install -e . in the clone")
        return
    python = own.metadata["Requires-Python"]
    fits = platform.python_version() in SpecifierSet(python, prereleases=True)
    yield Finding(
        "ok" if fits else "wrong", f"Python {platform.python_version()} ({python})", "" if fits else "take another"
    )
    fine = []
    for requirement in map(Requirement, own.requires or ()):
        is_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if not is_extra:
                yield Finding("wrong", f"{requirement.name} is missing", f"pip install '{requirement}'")
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fine.append(f"{requirement.name} {version}")
        else:
            what = f"{requirement.name} {version} is not in {requirement.specifier}"
            yield Finding(
                "note" if is_extra else "wrong", what, f"pip install '{requirement.name}{requirement.specifier}'"
            )
    yield Finding("ok", f"{counted(len(fine), 'package')} in range: {', '.join(fine[:3])}, ...")


def devices() -> Iterator[Finding]:
    """GPUs by NVIDIA's tool; only where there are some is torch, which takes seconds, asked if it can use them."""
    names = "name,memory.total,driver_version,compute_cap"
    command = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        said, listed = "" if isinstance(error, OSError) else f"no answer in {SMI_SECONDS} s", []
    else:
        listed = [line.rsplit(",", 3) for line in run.stdout.splitlines() if line.count(",") >= 3]
        said = "" if listed else " ".join(f"{run.stdout} {run.stderr}".split())[:160]
    if said:
        yield Finding("note", f"nvidia-smi: {said}", "where there is a GPU, mend or renew its driver")
    if not listed:
        yield Finding("note", "no NVIDIA GPU: everything runs on the CPU", "training takes a GPU for more than tries")
        return
    import torch

    can_use = torch.cuda.is_available()
    advice = "" if can_use else f"torch {torch.__version__} cannot use it: take a CUDA build that the driver supports"
    for parts in listed:
        name, memory, driver, capability = (part.strip() for part in parts)
        half = "half precision not known"
        if re.fullmatch(r"\d+(\.\d+)?", capability):  # `[N/A]` of some
            found = float(capability)
            half = "bf16 and fp16" if found >= 8 else "fp16" if found >= 5.3 else "no half precision"
        yield Finding("ok" if can_use else "wrong", f"{name}, {memory}, driver {driver}, {half}", advice)


def codecs() -> Iterator[Finding]:
    """Five small frames encoded and decoded again by each codec."""
    for name, (encoder, decoder) in CODECS.items():
        try:
            number = _frames_after(encoder, decoder)
        except (ValueError, OSError) as error:  # PyAV's errors are of these
            yield Finding(
                "wrong", f"{name}: {error}", "pip install --force-reinstall av, whose wheel has FFmpeg inside"
            )
        else:
            state = "ok" if number == 5 else "wrong"
            yield Finding(state, f"{name}: {number} of 5 frames encoded ({encoder}) and decoded ({decoder})")


def _frames_after(encoder: str, decoder: str) -> int:
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 describes itself on the terminal otherwise
    import av

    av.logging.set_level(av.logging.PANIC)
    writer = av.CodecContext.create(encoder, "w")
    writer.width = writer.height = 64
    writer.pix_fmt, writer.time_base, writer.framerate = "yuv420p", Fraction(1, 25), 25
    writer.options = {"x265-params": "log-level=none", "svtav1-params": "lp=1"} if encoder != "libx264" else {}
    packets = []
    for number in range(5):
        frame = av.VideoFrame(64, 64, "yuv420p")
        frame.pts = number
        packets += writer.encode(frame)
    reader = av.CodecContext.create(decoder, "r")
    return sum(len(reader.decode(packet)) for packet in [*packets, *writer.encode(None), None])


def shared_memory() -> Iterator[Finding]:
    """Room that the batches of the default experiment take on their way from the workers, beside what is left."""
    if not SHARED_MEMORY.is_dir():
        return
    data = get_experiment(DEFAULT_EXPERIMENT).data
    workers = min(data.num_workers, usable_cores())
    needed = workers * BATCHES_AHEAD * data.batch_size * 3 * data.image_size**2
    free = shutil.disk_usage(SHARED_MEMORY).free
    what = f"{free / 1e9:.2f} GB free; {DEFAULT_EXPERIMENT} with {counted(workers, 'worker')} takes {needed / 1e9:.2f}"
    advice = "" if free >= needed else "docker run --shm-size 2g, or train with --data.num-workers 0"
    yield Finding("ok" if free >= needed else "wrong", what, advice)


def memory() -> Iterator[Finding]:
    free = free_memory()
    is_enough = free >= LEAST_MEMORY
    yield Finding("ok" if is_enough else "note", f"{free / 1e9:.1f} GB free", "" if is_enough else "take fewer --jobs")


def disk() -> Iterator[Finding]:
    folders = []
    for what, find in {"working": Path.cwd, "temporary": tempfile.gettempdir}.items():
        try:
            folders.append(Path(find()))
        except OSError as error:  # removed, or none that can be written
            yield Finding("wrong", f"no {what} folder ({error.strerror})", "cd elsewhere, make room, or set TMPDIR")
    for folder in dict.fromkeys(folders):
        free = shutil.disk_usage(folder).free
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            yield Finding("wrong", f"{folder}: cannot write ({error.strerror})", "work elsewhere, or set TMPDIR")
            continue
        state = "wrong" if free < LEAST_DISK else "note" if free < ROOMY_DISK else "ok"
        yield Finding(
            state, f"{folder}: {free / 1e9:.1f} GB free", "" if state == "ok" else "make room for crops and runs"
        )


def open_files() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = soft >= LEAST_FILES or soft == resource.RLIM_INFINITY
    yield Finding("ok" if is_enough else "wrong", f"{soft} open files of {hard}", "" if is_enough else "ulimit -n 4096")


def cores() -> Iterator[Finding]:
    """Cores this process may use, beside the share of them that its control group grants."""
    usable, share = usable_cores(), _granted_cores()
    what = f"{usable} of {os.cpu_count()} usable"
    if share is not None and share < usable:
        yield Finding("note", f"{what}, of which a control group grants {share:g}", f"--jobs {max(1, round(share))}")
    else:
        yield Finding("ok", what)


def _granted_cores() -> float | None:
    """The least quota of this process's control groups, in cores; None without one."""
    try:
        paths = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    quotas = []
    for _, controllers, path in paths:
        root, names = CONTROL_GROUPS, ("cpu.max",)
        if controllers:
            root, names = CONTROL_GROUPS / controllers, ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            files = [folder / name for name in names]
            words = " ".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
            if found := re.fullmatch(r"\s*(\d+)\s+(\d+)\s*", words):
                quotas.append(int(found[1]) / int(found[2]))
    return min(quotas, default=None)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": versions,
    "devices": devices,
    "codecs": codecs,
    "shared memory": shared_memory,
    "memory": memory,
    "disk": disk,
    "open files": open_files,
    "cores": cores,
}
"""All checks, in the order of the report."""
