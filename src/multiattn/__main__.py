"""`multiattn <stage>` = `python -m multiattn <stage>`: dispatch, and errors without a traceback."""

import ast
import gc
import importlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import NoReturn

from multiattn import __version__
from multiattn.stages import STAGES

KNOWN_FAILURES = {
    "OutOfMemoryError": "The GPU's memory is full; what is finished is kept. Take smaller batches (train: "
    "--data.batch-size auto) or fewer processes (faces, predict, score, submit: --jobs).",
    "TerminatedWorkerError": "A worker process died (out of memory, or a decoder that crashed); finished videos are "
    "kept. Run the same command again with fewer --jobs.",
    "SystematicFailureError": "",
}
"""Errors of torch, joblib and submit that need no traceback -> what to do about them, beside their message; by name, so
that nothing is imported for them."""
READER_GONE = 141
"""Exit code where what reads the output has ended, as a shell gives it (128 + SIGPIPE)."""


def command() -> NoReturn:
    """`main` as a process of its own, which ends whatever threads are still at work."""
    from multiattn.runtime.processor import TORCH_THREAD, collect_seldom, set_wait_policy

    set_wait_policy()
    collect_seldom()
    threading.excepthook = _thread_ended
    if sys.stdout is None:  # whoever started this closed it: what is printed goes nowhere
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
    try:
        code = main()
    except SystemExit as error:
        if not isinstance(error.code, int | None):
            raise
        code = error.code or 0
    code = _write("", is_told=code != 0) or code
    if any(thread.name == TORCH_THREAD for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    gc.freeze()  # all that was imported is not searched for garbage once more
    sys.exit(code)


def main(argv: list[str] | None = None) -> int:
    """Run one stage; returns the exit code: 0, 2 after a message about a mistake of the user, 130 after Ctrl-C, or
    `READER_GONE`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help", "--version"):
        return _write(f"multiattn {__version__}\n" if argv[:1] == ["--version"] else _usage())
    stage = argv[0].replace("-", "_")
    if stage not in STAGES:
        from multiattn.config.settings import did_you_mean

        sys.stderr.write(f"multiattn: no stage {argv[0]!r}.{did_you_mean(stage, STAGES)}\n{_usage()}")
        return 2
    from multiattn.runtime.progress import setup_logging

    setup_logging()
    try:
        importlib.import_module(f"multiattn.stages.{stage}").main(argv[1:])
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _write("\n") == READER_GONE:  # and no worker's pipe
            return READER_GONE
        is_known = isinstance(error, ValueError | OSError) or type(error).__name__ in KNOWN_FAILURES
        if not is_known or os.environ.get("MULTIATTN_DEBUG"):
            raise
        advice = KNOWN_FAILURES.get(type(error).__name__, "(MULTIATTN_DEBUG=1 shows where it was raised)")
        logging.getLogger("multiattn").error("error: %s", f"{_describe(error)}\n{advice}".rstrip())
        return 2
    except KeyboardInterrupt:
        logging.getLogger("multiattn").error("interrupted; the same command continues where it was")
        return 130
    return 0


def _write(text: str, *, is_told: bool = False) -> int:
    """0; or, after which all further output is dropped, `READER_GONE`, or 2 where there is no room for it, which is
    said unless it `is_told`."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return READER_GONE
        if not is_told:
            sys.stderr.write(f"error: {_describe(error)}\n")
        return 2
    return 0


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """A line for an error of the operating system, such as a full disk, which whoever waits for the thread raises."""
    if isinstance(ended.exc_value, OSError) and not os.environ.get("MULTIATTN_DEBUG"):
        logging.getLogger("multiattn").warning("%s", _describe(ended.exc_value))
    else:
        threading.__excepthook__(ended)


def _describe(error: Exception) -> str:
    """The message; for an error of the operating system, also what became of the output."""
    if isinstance(error, FileNotFoundError) and error.errno is not None:
        return f"{error.filename}: expected a file or folder, found none."
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}{error.strerror}. Earlier output is untouched; check free space and permissions, then run again."
        )
    return str(error)


def _usage() -> str:
    """One line a stage: the first line of its docstring, read without importing it."""
    lines = ["usage: multiattn <stage> [options]      (multiattn <stage> --help for its options; --version)", ""]
    for stage in STAGES:
        source = Path(__file__).parent / "stages" / f"{stage}.py"
        doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {stage.replace('_', '-'):<18} {doc.splitlines()[0] if doc else ''}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command()
