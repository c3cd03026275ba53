"""Signals that ask a process to end, for parents and their workers."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)

ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that ask a process to end. SIGUSR1: `sbatch --signal=USR1@90` sends it ahead of the end of a job's time."""
EXIT_CODE = 128 + signal.SIGTERM


class Interruption:
    """The first signal that asked this process to end, if one did."""

    def __init__(self) -> None:
        self.asked = False
        self.signal: int | None = None

    def exit_if_asked(self) -> None:
        """End here, where what is on disk is whole.

        Raises:
            KeyboardInterrupt: for Ctrl-C, or a notebook's stop button.
            SystemExit: for the others, with the exit code of a process that SIGTERM ended.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked:
            logger.warning("stopped as asked; what is finished is saved, and the same command continues from it.")
            raise SystemExit(EXIT_CODE)


@contextlib.contextmanager
def listening(*more: int) -> Iterator[Interruption]:
    """Note the first of `ENDING_SIGNALS` and these further ones inside the block instead of dying of it; a second one
    acts as ever. Outside the main thread, the only one that Python delivers signals to, nothing changes."""
    interruption = Interruption()
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (*ENDING_SIGNALS, *more)} if is_main else {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        interruption.asked, interruption.signal = True, number
        restore()

    for number in before:
        signal.signal(number, handle)
    try:
        yield interruption
    finally:
        restore()


@contextlib.contextmanager
def ending_signals_wait() -> Iterator[None]:
    """Signals that ask this thread to end arrive after the block. A process forked inside it has them blocked from its
    first instruction on, until it has said what they are to do."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which forks no process either
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent() -> None:
    """For worker processes: end when the parent asks, and not with the rest of the job.

    A scheduler signals all processes of a job, and a worker that died of it would take its parent's work with it
    before that has saved. But a parent that ends, by an error say, asks its workers by the same SIGTERM and waits for
    them, for ever if they ignored it. On macOS and Windows a process cannot tell who asks, and ends whoever it is.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    threading.Thread(target=_end_when_parent_asks, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_asks(parent: int) -> None:
    while signal.sigwaitinfo(ENDING_SIGNALS).si_pid != parent:
        pass
    os._exit(0)
