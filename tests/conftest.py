"""Parts the tests share: the real clips where they are, and one small pipeline made once for the whole run.

The process that deals tests out to the others reads this file as well, so torch is imported where it is needed.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pipeline import Pipeline

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two test processes share two cores, and sums stay fixed
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"  # no bf16: that of two busy processes is faster by chance, or not
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SOURCE = str(Path(__file__).resolve().parents[1] / "src")  # for the processes that tests start, before what is given
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCE, os.environ.get("PYTHONPATH", "")]))
os.fsync = lambda _: None  # no test cuts the power, and a disk takes 5 to 30 ms for each of a hundred calls a training
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores, at most 4: many tests wait for processes that they have started."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collections of garbage pass by the tests and the modules that they import."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is built."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def shared() -> Path:
    """`../shared/data`: real clips and lists."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture
def thread_setter() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads, for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Build a folder once for all processes of the test run: the first to come builds, the others wait."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    from multiattn.runtime.files import exclusive_folder

    def build(name: str, make: Callable[[Path], None]) -> Path:
        folder, mark = base / name, base / f"{name}.built"
        with exclusive_folder(base / f"{name}.lock", patience_seconds=300):
            if not mark.exists():
                make(folder)
                mark.touch()
        return folder

    return build


@pytest.fixture(scope="session")
def small_dataset(build_once: Callable) -> Path:
    """The miniature of the embedded data set, as an official DFDC tree."""
    from multiattn.datasets.embedded import build_demo_dataset

    return build_once("small_dataset", lambda folder: build_demo_dataset(folder, jobs=1, small=True))


@pytest.fixture(scope="session")
def pipeline(build_once: Callable, small_dataset: Path) -> "Pipeline":
    """Index, faces, folds and trained tiny runs of the miniature."""
    from pipeline import FACES_OPTIONS, Pipeline, run

    def paths(folder: Path) -> Pipeline:
        tables = folder / "videos.csv", folder / "faces", folder / "folds" / "demo.csv"
        return Pipeline(small_dataset, *tables, folder / "runs")

    def make(folder: Path) -> None:
        made = paths(folder)
        run("index", "dfdc", "--root", made.dataset, "--out", made.videos)
        run("faces", "--videos", made.videos, "--out", made.faces, *FACES_OPTIONS, "--jobs", 1)
        run("folds", "--videos", made.videos, "--out", made.folds, "--num-folds", 2)
        run(*made.training(made.runs, "--fold", "all"))

    return paths(build_once("pipeline", make))


@pytest.fixture(scope="session")
def box_run(pipeline: "Pipeline", build_once: Callable) -> Path:
    """The tiny runs' networks as an experiment of another recipe, on larger squares around the boxes of fewer frames,
    with its own out-of-fold predictions of the same folds."""
    from pipeline import make_box_run

    return build_once("box_runs", lambda folder: make_box_run(pipeline, folder)) / "demo_box"


@pytest.fixture(scope="session")
def submission(pipeline: "Pipeline", build_once: Callable) -> Path:
    """The submission folder of the miniature's test clips."""
    return build_once("submissions", lambda folder: pipeline.submit(folder / "tiny")) / "tiny"


@pytest.fixture(autouse=True)
def logging_as_before():
    """`main` takes over the root logger, as a command may; the next test gets it back."""
    root, package = logging.getLogger(), logging.getLogger("multiattn")
    before = root.handlers[:], root.level, package.level
    yield
    root.handlers[:], level, package_level = before
    root.setLevel(level)
    package.setLevel(package_level)
