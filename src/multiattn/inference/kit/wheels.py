"""Wheels of what an offline machine lacks: which packages, and how their files come into a folder."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS_FILE = "requirements.txt"
"""Beside the wheels: what `pip install --requirement` asks for."""
KAGGLE_HAS = {
    *("torch", "torchvision", "timm", "huggingface-hub", "safetensors", "numpy", "scipy", "pandas", "pyarrow"),
    *("scikit-learn", "scikit-image", "numba", "joblib", "opencv-python-headless", "matplotlib", "tqdm"),
    *("albumentations", "tensorboard", "nbformat", "nbclient", "ipykernel"),
}
"""Of requirements.txt, what Kaggle's image brings (OpenCV under another name), or inference does not need."""
FOR_DEVELOPERS = {"pytest", "pytest-xdist", "ruff", "dask"}
SMALL_DEPENDENCIES = ("docstring-parser>=0.16", "typeguard>=4", "typing-inspect>=0.6", "mypy-extensions")
"""What tyro and pandera need beside packages the image surely has; tens of kilobytes, and without them nothing runs."""
GLIBC_MINORS = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
"""Of 2.x: wheels for these or older ones run on the image (Ubuntu 22.04, glibc 2.35)."""


def package_name(requirement: str) -> str:
    """The normalised name of a requirement: `Facenet_PyTorch==2.5.3` -> `facenet-pytorch`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;@]", requirement.strip(), maxsplit=1)[0]).lower()


def read_requirements(path: Path) -> dict[str, str]:
    """Name -> requirement, of a requirements file; comments and empty lines aside."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {package_name(line): line for line in lines if line}


def default_packages(requirements: dict[str, str]) -> list[str]:
    """Requirements that Kaggle's image lacks and inference needs."""
    missing = set(requirements) - KAGGLE_HAS - FOR_DEVELOPERS
    return [*(line for name, line in requirements.items() if name in missing), *SMALL_DEPENDENCIES]


def with_bounds(packages: Sequence[str], requirements: dict[str, str]) -> list[str]:
    """Packages named without a version get the bounds of the requirements, where these name them."""
    return [requirements.get(package_name(word), word) if package_name(word) == word else word for word in packages]


def download_wheels(packages: Sequence[str], folder: Path, *, python: str) -> None:
    """Fetch the wheels of exactly these packages, their dependencies not, for a Linux machine (x86_64).

    Args:
        python: the version of Python they are for, such as 3.11.

    Raises:
        ValueError: no package index is reachable, or it has no wheel that fits; holds pip's own words.
    """
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"]
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    words += [
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        "--implementation",
        "cp",
        "--python-version",
        python,
    ]
    words += [word for platform in platforms for word in ("--platform", platform)]
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run([*words, *packages], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = " ".join(result.stderr.split())[-600:]
        raise ValueError(
            f"--download-wheels: pip could not fetch {', '.join(packages)} for Python {python}: {said}. Fetch them "
            "on a machine with a network and pass their folder as --wheels."
        )


def collect_wheels(packages: Sequence[str], source: Path, folder: Path) -> None:
    """Copy the wheels of these packages out of a folder of wheels; several builds of one are all copied.

    Raises:
        FileNotFoundError: a package has no wheel there; names all that are missing.
    """
    files: dict[str, list[Path]] = {}
    for path in sorted(source.glob("*.whl")):
        files.setdefault(package_name(path.name.split("-")[0]), []).append(path)
    missing = [word for word in packages if package_name(word) not in files]
    if missing:
        raise FileNotFoundError(
            f"{source}: no wheel of {', '.join(missing)}. Fetch them with "
            f"`pip download --no-deps --only-binary=:all: --dest {source} {' '.join(missing)}`, or name the packages "
            "that the image really lacks with --packages."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for word in packages:
        for path in files[package_name(word)]:
            shutil.copyfile(path, folder / path.name)


def list_requirements(packages: Sequence[str], folder: Path) -> Path:
    """Write what is to be installed beside the wheels; returns the file."""
    path = folder / REQUIREMENTS_FILE
    path.write_text("".join(f"{word}\n" for word in packages), encoding="utf-8")
    return path
