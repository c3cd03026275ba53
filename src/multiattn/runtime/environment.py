"""Versions, commit and machine of this process, for what a run records."""

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiattn.runtime.files import read_json
from multiattn.runtime.layout import BUNDLE_FILE

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "numpy", "pandas", "scikit-learn", "numba", "av")


def require_packages(use: str, extra: str, *packages: str) -> None:
    """Raise `ValueError` where a package of an extra is not installed that `use` needs."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        expected = f"package{'s' * (len(packages) > 1)} {' and '.join(packages)}"
        raise ValueError(
            f"{use}: expected the {expected}, found no {' and no '.join(missing)}. Run: pip install "
            f"'multiattn[{extra}]', or in a clone: pip install \".[{extra}]\""
        )


def git_commit() -> str:
    """Commit of the code that runs (`-dirty` when changed since), or `unknown` outside a git checkout and a bundle."""
    source = Path(__file__).resolve().parents[1]
    bundle = source.parents[1] / BUNDLE_FILE  # of what `multiattn bundle` made
    if bundle.is_file():
        return str(read_json(bundle)["commit"])
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def package_version() -> str:
    """Version of the code that runs, as the package itself has it."""
    return sys.modules[__name__.partition(".")[0]].__version__


def describe_machine(device: "torch.device") -> str:
    """Processor or GPU, cores, threads and torch's version."""
    import torch

    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{device_name(device)}{threads}, torch {torch.__version__}"


def device_name(device: "torch.device") -> str:
    """The GPU's name, or that of the processor, else of its architecture, with its cores."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{next(names, platform.machine())}, {os.cpu_count()} cores"


def describe_environment(device: "torch.device") -> dict[str, Any]:
    """Versions, commit, command and device of this process, for `environment.json`."""
    return {
        "commit": git_commit(),
        "version": package_version(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": device_name(device),
    }
