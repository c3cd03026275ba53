"""When this process began, and whether it was asked to end."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from multiattn.runtime.signals import ENDING_SIGNALS, first_signal_noted

SIGNALS = (signal.SIGINT, *ENDING_SIGNALS)
_IMPORTED = time.monotonic()


def process_seconds() -> float:
    """Since this process started, by Linux's process table; elsewhere since this module was imported.

    In a notebook that is the notebook's kernel, so cells before the submission count too.
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


class Interruption:
    """Which signal asked this process to end, if one did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def note(self, number: int) -> None:
        """A signal asks."""
        self.signal = number

    def end(self) -> None:
        """End as the signal would have ended the process.

        Raises:
            KeyboardInterrupt: for Ctrl-C, or a notebook's stop button.
            SystemExit: for the others.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextlib.contextmanager
def listening() -> Iterator[Interruption]:
    """Take note of the signals instead of dying of them inside the block; a second one acts as ever."""
    interruption = Interruption()
    with first_signal_noted(SIGNALS, interruption.note):
        yield interruption
