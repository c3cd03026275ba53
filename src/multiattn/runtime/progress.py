"""Log lines and progress bars on standard error."""

import logging
import sys

from tqdm import tqdm

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 15.0


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
