"""SIGTERM during training: finish the step, save, end. What schedulers send before they take a machine away."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from multiattn.runtime import ENDING_SIGNALS

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM


class Interruption:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False

    def exit_if_asked(self) -> None:
        """End here, where the state on disk is whole.

        Raises:
            SystemExit: with the exit code of a process that SIGTERM ended.
        """
        if self.asked:
            logger.warning("stopped as asked; the state is saved, and the same command continues from it.")
            raise SystemExit(EXIT_CODE)


@contextlib.contextmanager
def listening() -> Iterator[Interruption]:
    """Take note of the signals instead of dying of them, inside the block; a second one ends the process at once."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption  # Python delivers signals to the main thread, and lets only that one ask for them
        return

    def note(number: int, frame: object) -> None:
        if interruption.asked:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        interruption.asked = True

    before = {number: signal.signal(number, note) for number in ENDING_SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
