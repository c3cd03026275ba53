"""SIGTERM during training: finish the step, save, end. What schedulers send before they take a machine away."""

import contextlib
import logging
import signal
from collections.abc import Iterator

from multiattn.runtime.signals import ENDING_SIGNALS, first_signal_noted

logger = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM


class Interruption:
    """Whether this process was asked to end."""

    def __init__(self) -> None:
        self.asked = False

    def note(self, number: int) -> None:
        """A signal asks."""
        self.asked = True

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
    with first_signal_noted(ENDING_SIGNALS, interruption.note):
        yield interruption
