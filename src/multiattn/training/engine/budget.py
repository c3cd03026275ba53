"""The hours that a training command may take: how much of them is left, and which folds fit into them."""

import heapq
import logging
import math
from dataclasses import dataclass, field

from multiattn.runtime.processor import process_seconds, reserve_seconds
from multiattn.runtime.text_tables import duration

logger = logging.getLogger(__name__)


class OutOfTimeError(Exception):
    """The budget does not reach for what comes next; the state before it is saved."""


@dataclass
class Budget:
    """Hours that a command may take, counted from the start of its process; without `hours` as long as it takes.

    Each of several ranks has one, and the main rank's decides.
    """

    hours: float | None = None
    places: int = 1
    """Folds that are trained at once."""
    num_epochs: int = 0
    """Epochs of a whole fold."""
    epochs_left: dict[int, float] = field(default_factory=dict)
    """Epochs of each fold that is not finished, in the order they are begun."""
    save_seconds: float = 0.0
    validation_seconds: float = 0.0
    """Seconds of the longest saved state and the longest validation of this process."""
    has_worked: bool = False
    """True once this process has trained an update or validated."""
    has_stopped: bool = False
    """True once a fold was stopped for want of time."""
    _said: object = None

    @property
    def seconds_left(self) -> float:
        """Seconds until a state has to be saved, so that the reserve is left for what follows the training."""
        if self.hours is None:
            return math.inf
        seconds = 3600 * self.hours
        return seconds - reserve_seconds(seconds) - self.save_seconds - process_seconds()

    @property
    def is_over(self) -> bool:
        """True where no further fold is to be begun."""
        return self.has_stopped or self.seconds_left <= 0

    def how_far(self, fold: int) -> str:
        """`after 7.3 of 20 epochs`, or `not reached`; empty for a fold that was finished by earlier commands."""
        if fold not in self.epochs_left:
            return ""
        done = self.num_epochs - self.epochs_left[fold]
        return f"after {done:.3g} of {self.num_epochs} epochs" if done else "not reached"

    def forecast(self, seconds_an_epoch: float) -> None:
        """Log which folds will be finished, stopped on their way and not reached; nothing where it says so already.

        Args:
            seconds_an_epoch: with its validations.
        """
        if self.hours is None:
            return
        left, free, needed = max(0.0, self.seconds_left), [0.0] * self.places, 0.0
        finished, stopped, later = [], [], []
        for fold, epochs in list(self.epochs_left.items()):
            begin = heapq.heappop(free)
            end = begin + epochs * seconds_an_epoch
            heapq.heappush(free, end)
            (finished if end <= left else stopped if begin < left else later).append(fold)
            needed += max(0.0, end - max(begin, left))
        if self._said == (finished, stopped, later):
            return
        self._said = finished, stopped, later
        ends = {"will be finished": finished, "will be stopped on the way": stopped, "will not be reached": later}
        words = [f"{name_folds(numbers)} {end}" for end, numbers in ends.items() if numbers]
        words += [f"what does not fit takes {duration(needed)} more"] if needed else []
        # `train --gpus` reads the seconds from the logs of its folds.
        logger.info(
            "plan: an epoch takes %.1f s with its validations; of the budget of %g hours %s are left for training: %s",
            *(seconds_an_epoch, self.hours, duration(left), "; ".join(words) or "no fold is left"),
        )


def name_folds(numbers: list[int]) -> str:
    """`fold 2`, or `folds 0, 1`."""
    return ("fold " if len(numbers) == 1 else "folds ") + ", ".join(map(str, numbers))
