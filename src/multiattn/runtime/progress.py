"""Log lines and progress bars on standard error."""

import logging
import sys
from typing import TYPE_CHECKING

from multiattn.runtime.text_tables import printable

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS, NOTEBOOK_INTERVAL_SECONDS = 60.0, 15.0


def setup_logging(level: int = logging.INFO) -> None:
    """Send `logging` to standard error, one plain line a record; standard output stays free for results."""
    handler = _LinesAboveBars(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("multiattn").setLevel(level)
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


def progress_bar(total: int, description: str, unit: str, *, initial: int = 0, disable: bool = False) -> "tqdm":
    """A progress bar with rate and time left, in a notebook drawn every 15 seconds; without a terminal, a log line a
    minute instead."""
    from tqdm import tqdm

    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial, "disable": disable}
    if "ipykernel" in sys.modules:
        pause = NOTEBOOK_INTERVAL_SECONDS
        return tqdm(**common, mininterval=pause, maxinterval=pause)
    if sys.stderr.isatty():
        return tqdm(**common, dynamic_ncols=True)
    pause = LOG_INTERVAL_SECONDS
    line = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"
    return tqdm(
        **common, file=_LogLines(), mininterval=pause, maxinterval=pause, delay=pause, leave=False, bar_format=line
    )
