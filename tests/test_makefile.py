"""`make gpu` for a machine without a network: the wheels of a folder, and the interpreter that it is given."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")
FIND = """import json, sys
from importlib.util import find_spec
print(json.dumps([*(find_spec(name).origin for name in ("multiattn", "tqdm")), sys.argv[1:]]))
"""
"""Of two modules the files that would be imported, and the words of the command."""


def write_wheel(folder: Path) -> None:
    """A wheel of one module, which the interpreter has too, and which asks for a package that there is not."""
    notes = "tqdm-9999.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tqdm\nVersion: 9999\nRequires-Dist: is-on-no-index-at-all\n"
    about = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {"tqdm.py": "", f"{notes}/METADATA": metadata, f"{notes}/WHEEL": about}
    folder.mkdir()
    with zipfile.ZipFile(folder / "tqdm-9999-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{notes}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{notes}/RECORD"]))


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder with our sources, and a `python` that installs as ours does and says what a benchmark would import."""
    (tmp_path / "src").symlink_to(ROOT / "src")
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
if [ "$2" = pip ]; then exec {sys.executable} "$@"; fi
shift; exec {sys.executable} -c '{FIND}' "$@"
""")
    python.chmod(0o755)
    return tmp_path


def make_gpu(place: Path, *words: str) -> subprocess.CompletedProcess:
    """`make gpu` in this folder, where an index of packages cannot be reached."""
    others = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "WHEELS", "GPU_OPTIONS"}  # of a `make test` that runs this
    environment = {name: value for name, value in os.environ.items() if name not in others}
    environment |= {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}
    command = ["make", "--silent", "-C", place, "-f", ROOT / "Makefile", "gpu", "PY=./python", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def found(done: subprocess.CompletedProcess) -> tuple[str, str, list[str]]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_folders_wheels_come_before_the_interpreters_packages_and_need_no_network(place):
    write_wheel(place / "wheels")
    ours, of_wheel, words = found(make_gpu(place, "WHEELS=wheels", "GPU_OPTIONS=--batch-size 2"))
    assert (ours, of_wheel) == (f"{place}/src/multiattn/__init__.py", f"{place}/data/gpu/packages/tqdm.py")
    assert words == ["multiattn", "bench", "gpu", "--batch-size", "2"]
    _, own, words = found(make_gpu(place))
    assert not own.startswith(f"{place}/"), "those of an earlier call are for the interpreter it named"
    assert words == ["multiattn", "bench", "gpu"] and [path.name for path in place.glob("*venv*")] == []


def test_a_folder_without_wheels_ends_it(place):
    (place / "wheels").mkdir()
    done = make_gpu(place, "WHEELS=wheels")
    assert done.returncode != 0 and "wheels/*.whl" in done.stderr and "multiattn" not in done.stdout
