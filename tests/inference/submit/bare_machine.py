"""A machine as bare as Kaggle's: an environment of a few packages, and inputs mounted read-only below /kaggle."""

import contextlib
import fcntl
import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BARE = (
    *("numpy", "pandas", "torch", "nbclient", "nbformat", "ipykernel"),
    *("torchvision", "opencv-python-headless", "pyarrow", "matplotlib", "scikit-learn", "scipy", "numba", "joblib"),
)
"""What the environment has from the start, as Kaggle's has it, with all they depend on: to download the wheels of these
and to install them takes a minute, and shows nothing that smaller ones do not."""
NEEDED = ("av", "facenet-pytorch", "tyro", "pandera", "timm", "safetensors", "tqdm", "huggingface-hub")
"""What inference imports beside; neither albumentations nor tensorboard."""
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
source, executed = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
try:
    NotebookClient(notebook, timeout=None, kernel_name="python3", extra_arguments=["--log-level=ERROR"]).execute()
finally:
    nbformat.write(notebook, executed)
"""
"""Arguments: a notebook, and where its executed copy goes."""


def with_dependencies(names: tuple[str, ...]) -> dict[str, importlib.metadata.Distribution]:
    """The installed distributions of these names and of all they depend on, by normalised name."""
    found, todo = {}, [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        wanted = (Requirement(line) for line in found[name].requires or ())
        todo += [canonicalize_name(one.name) for one in wanted if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def packages_to_bundle() -> list[str]:
    """`name==version` of everything inference needs and the bare environment lacks."""
    missing = with_dependencies(NEEDED).keys() - with_dependencies(BARE).keys()
    return [f"{name}=={importlib.metadata.version(name)}" for name in sorted(missing)]


def make_bare_environment(folder: Path) -> Path:
    """A fresh virtual environment with pip and `BARE`, linked from this one; returns its interpreter.

    Links, since installing torch again would take minutes and gigabytes.
    """
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    for distribution in with_dependencies(BARE).values():
        tops = {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return python


@contextlib.contextmanager
def kaggle_command(inputs: dict[str, Path], working: Path) -> Iterator[list[str] | None]:
    """The beginning of a command that sees `inputs` read-only below /kaggle/input, and runs in /kaggle/working.

    In a mount namespace of its own: outside of the command there is nothing but an empty folder /kaggle, which is gone
    when the last block of any test ends. None where this user may not make one.
    """
    with (Path(tempfile.gettempdir()) / "multiattn_test_kaggle.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield _mounting(inputs, working)
        with contextlib.suppress(OSError):  # to remove the folder would take it away from under the others' mounts
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Path("/kaggle").rmdir()


def _mounting(inputs: dict[str, Path], working: Path) -> list[str] | None:
    lines = ["set -e", "mkdir -p /kaggle", "mount -t tmpfs tmpfs /kaggle", "mkdir -p /kaggle/working"]
    for name, folder in inputs.items():
        place = f"/kaggle/input/{name}"
        lines += [f"mkdir -p '{place}'", f"mount --bind '{folder}' '{place}'", f"mount -o remount,ro,bind '{place}'"]
        lines += [f"if touch '{place}/written' 2>/dev/null; then exit 77; fi"]
    lines += [f"mount --bind '{working}' /kaggle/working", "cd /kaggle/working"]
    if shutil.which("unshare") is None:
        return None
    command = ["unshare", "--mount", "bash", "-c", "\n".join([*lines, 'exec "$@"']), "bash"]
    tried = subprocess.run([*command, sys.executable, "-c", ""], capture_output=True, check=False)
    return command if tried.returncode == 0 else None
