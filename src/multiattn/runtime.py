"""What every stage needs from the machine: logging, progress, atomic files, locks, seeds, device, precision.

Torch is imported inside the functions that need it, so stages without a network start at once.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Libraries underneath ask tqdm for its notebook widget and warn where Jupyter lacks it; our bars are plain text.
warnings.filterwarnings("ignore", message="IProgress not found")

LOG_INTERVAL_SECONDS = 15.0
TORCH_THREAD = "in torch"
"""Name of threads that may still compute when all is delivered: Python's own end would abort under them."""
WAIT_POLICY = "OMP_WAIT_POLICY"
MALLOC_TRIM_THRESHOLD, MALLOC_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`, from its malloc.h."""
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What asks a process to end. SIGUSR1 too: `sbatch --signal=USR1@90` sends it ahead of the end of a job's time."""
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "numpy", "pandas", "scikit-learn", "numba", "av")


def setup_logging(level: int = logging.INFO) -> None:
    """Send `logging` to standard error, one plain line a record; standard output stays free for results."""
    handler = _LinesAboveBars(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("multiattn").setLevel(level)


class _LinesAboveBars(logging.StreamHandler):
    """A progress bar on the same terminal makes way for a line, and is drawn again below it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=self.stream)
        except (OSError, ValueError):  # the stream is gone; logging must not end the work it tells of
            self.handleError(record)


class _LogLines:
    """A stand-in for a terminal: what tqdm writes becomes a log record."""

    def write(self, text: str) -> None:
        if line := text.strip():
            logger.info(line)

    def flush(self) -> None:
        pass


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0, disable: bool = False) -> tqdm:
    """A progress bar with rate and time left; without a terminal, a log line every 15 seconds instead."""
    in_notebook = "ipykernel" in sys.modules
    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial, "disable": disable}
    if sys.stderr.isatty() or in_notebook:
        return tqdm(**common, dynamic_ncols=not in_notebook)
    return tqdm(
        **common,
        file=_LogLines(),
        mininterval=LOG_INTERVAL_SECONDS,
        maxinterval=LOG_INTERVAL_SECONDS,
        bar_format="{desc}: {n_fmt}/{total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}",
        delay=LOG_INTERVAL_SECONDS,
        leave=False,
    )


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well.

    Whoever reads `path` sees the old file or the whole new one. When the block raises, or the process is killed,
    the old file is left as it was.

    Args:
        durable: also survive a power cut (fsync); not worth its time for millions of crops that can be made again.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes it private; a result is for everyone the umask allows
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Read from Linux's process table: Python can only read it by setting it, which other threads would notice."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1], 8) for line in status.splitlines() if line.startswith("Umask:"))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON; the message names the file, line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected a JSON file, found something else: {error}.") from error


@contextlib.contextmanager
def exclusive_folder(folder: Path, *, patience_seconds: float = 20.0) -> Iterator[None]:
    """Hold a folder for one writing process at a time; the lock goes with the process, however it ends.

    Raises:
        ValueError: another process still holds the folder after `patience_seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"{folder}: another process is writing here. Wait for it, stop it, or choose another folder."
                    ) from None
                time.sleep(0.2)
        yield


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
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device: expected cpu, cuda, cuda:N or auto, found {name!r}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device found on this machine. Use --device cpu or --device auto.")
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"--device {name}: every process of a torchrun job takes its own GPU. Use --device cuda.")
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices.")
        torch.cuda.set_device(device)
    return device


def default_jobs(device: str) -> int:
    """Processes that decode and detect: every core; on a GPU at most 4, since each holds a CUDA context there."""
    cores = os.cpu_count() or 1
    return cores if device == "cpu" else min(cores, 4)


def resolve_precision(precision: str, device: "torch.device") -> str:
    """Turn `auto` into what suits the device: bf16, fp16 on GPUs without bf16, fp32 on a CPU."""
    import torch

    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def autocast(precision: str, device: "torch.device") -> "torch.autocast":
    """The autocast context of a resolved precision; a no-op for fp32, and for apex, which patches torch itself."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def waiting_threads_sleep() -> bool:
    """Whether OMP_WAIT_POLICY=PASSIVE was set before the start: idle OpenMP threads sleep instead of spinning.

    On cores that are also wanted by others, spinning threads keep the working ones from running: a training step of
    EfficientNet-B4 with our kernels, on 2 cores beside one busy process, took 50 s, and 7 s beside two with this
    setting. On quiet cores spinning is the faster (bf16: 0.9 s against 1.1 s).
    """
    return os.environ.get(WAIT_POLICY, "").upper() == "PASSIVE"


def tune_cpu() -> None:
    """Make this process fit for training and inference on a CPU; for the process, once.

    Denormal numbers count as zero: arithmetic with them is many times slower. And glibc keeps freed memory instead of
    handing it back: activations are freed and taken again every step, and each time all their pages would be mapped
    anew (measured: 2.7 of 6.4 s a step of EfficientNet-B4 went into that; 4.5 s without). Elsewhere than on glibc the
    second part does nothing.
    """
    import torch

    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(MALLOC_MMAP_THRESHOLD, 1 << 30)
        mallopt(MALLOC_TRIM_THRESHOLD, (1 << 31) - 1)


@contextlib.contextmanager
def first_signal_noted(numbers: Iterable[int], note: Callable[[int], None]) -> Iterator[None]:
    """Inside the block the first of these signals calls `note` with its number instead of what it does; a second one
    acts as ever. Outside the main thread, the only one that Python delivers signals to, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: object) -> None:
        note(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ending_signals_wait() -> Iterator[None]:
    """Signals that ask this thread to end arrive after the block. A process forked inside it has them blocked from its
    first instruction on, until it has said what they are to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """For worker processes: end when the parent asks, and not with the rest of the job.

    A scheduler signals all processes of a job, and a worker that died of it would take its parent's work with it
    before that has saved. But a parent that ends, by an error say, asks its workers by the same SIGTERM and waits for
    them, for ever if they ignored it.
    """
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    threading.Thread(target=_end_when_parent_asks, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_asks(parent: int) -> None:
    while signal.sigwaitinfo(ENDING_SIGNALS).si_pid != parent:
        pass
    os._exit(0)


def memory_in_use(device: "torch.device") -> int:
    """Bytes: allocated by tensors on a GPU, else resident in this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def git_commit() -> str:
    """Commit of the code that runs (`-dirty` when changed since), or `unknown` outside a git checkout and a bundle."""
    source = Path(__file__).resolve().parent
    bundle = source.parents[1] / "bundle.json"  # of what `multiattn bundle` made
    if bundle.is_file():
        return str(read_json(bundle)["commit"])
    command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def describe_machine(device: "torch.device") -> str:
    """Processor or GPU, cores, threads and torch's version."""
    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    names = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":", 1)[1].strip() for line in names if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def describe_environment(device: "torch.device") -> dict[str, Any]:
    """Versions, commit, command and device of this process, for `environment.json`."""
    import torch

    return {
        "commit": git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {os.cpu_count()} cores",
    }
