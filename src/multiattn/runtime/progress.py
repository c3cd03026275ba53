"""Log lines and progress bars on standard error."""

import logging
import sys
import threading
from typing import TYPE_CHECKING, Self

from multiattn.runtime.text_tables import printable

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS, NOTEBOOK_INTERVAL_SECONDS = 60.0, 15.0


def setup_logging() -> None:
    """Send `logging` to standard error, one plain line a record; standard output stays free for results."""
    handler = _LinesAboveBars(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("multiattn").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a log file on a full disk must not print a traceback for each line


class _LinesAboveBars(logging.StreamHandler):
    """A progress bar on the same terminal makes way for a line, and is drawn again below it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm  # a fifth of a second, which `--help` has no use for

        try:
            tqdm.write(printable(self.format(record), keep="\n\t"), file=self.stream)
        except (OSError, ValueError):  # the stream is gone; logging must not end the work it tells of
            self.handleError(record)


class _LogLines:
    """A stand-in for a terminal: what tqdm writes becomes a log record."""

    def write(self, text: str) -> None:
        if line := text.strip():
            logger.info(line)

    def flush(self) -> None:
        pass


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0) -> "tqdm":
    """A progress bar with rate and time left, in a notebook drawn every 15 seconds; without a terminal, a log line a
    minute instead."""
    from tqdm import tqdm

    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial}
    if "ipykernel" in sys.modules:
        pause = NOTEBOOK_INTERVAL_SECONDS
        return tqdm(**common, mininterval=pause, maxinterval=pause)
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True)
    pause = LOG_INTERVAL_SECONDS
    line = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"
    common |= {"miniters": 1, "mininterval": pause, "maxinterval": pause, "delay": pause}  # by the clock alone
    return tqdm(**common, file=_LogLines(), leave=False, bar_format=line)


class WorkBar:
    """One progress bar over all folds that a command trains, in samples; a fold to come counts as much as the latest
    that began, one that ended no more than what it has done."""

    def __init__(self, name: str, folds: int) -> None:
        """Show nothing yet: how much there is to do is known when a fold begins."""
        self.name, self.folds = name, folds
        self._counts: dict[str, tuple[int, int]] = {}
        self._samples_to_come = 0
        self._bar, self._lock = None, threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def report(self, fold: str, done: int, samples: int, text: str = "") -> None:
        """Note where a fold stands: `done` of its `samples`, at first by an earlier command; from any thread."""
        with self._lock:
            earlier, is_first = self._counts.get(fold, (done, 0))[0], fold not in self._counts
            self._counts[fold], self._samples_to_come = (done, samples), samples
            if self._bar is None:
                name = fold if self.folds == 1 else f"{self.name}, {self.folds} folds"
                self._bar = progress_bar(self._total(), name, "samples", initial=done)
            elif is_first:
                bar = self._bar
                bar.n, bar.initial, bar.last_print_n = bar.n + done, bar.initial + done, bar.last_print_n + done
            self._bar.total = self._total()
            if text:
                self._bar.set_postfix_str(text if self.folds == 1 else f"{fold}, {text}", refresh=False)
            if done > earlier:
                self._bar.update(done - earlier)

    def end(self, fold: str) -> None:
        """Note that a fold ended, however, or was found finished."""
        with self._lock:
            done, _ = self._counts.get(fold, (0, 0))
            self._counts[fold] = done, done
            if self._bar is not None:
                self._bar.total = self._total()

    def _total(self) -> int:
        to_come = self.folds - len(self._counts)
        return sum(samples for _, samples in self._counts.values()) + to_come * self._samples_to_come
