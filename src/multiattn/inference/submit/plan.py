"""The time budget: frames and models of the next video, so that all are predicted in time; no clock, no disk.

A level is a number of frames and of models. The plan starts with all of both. From each finished video it learns the
costs of decoding (the same at any level), of searching a frame for faces, and of a crop in a model, and projects the
end: the slower of extraction and classification, over the videos that are left. When that is late it takes the first
level that is in time, fewer frames first, then fewer models (the last ones of the order it is given). When a higher
level would be in time with some slack again, it goes back up. When even one more video would not be finished by the
stop, no more are started. The stop lies before the budget's end by the time a delivery may take.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from multiattn.runtime.processor import reserve_seconds
from multiattn.runtime.text_tables import counted, duration

FRAME_SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
"""Shares of the frames that a video may come down to; of 32 frames 32, 24, 16, 12, 8, 4."""
FEWEST_FRAMES = 4
MIN_OBSERVED = 3
"""Finished videos before the plan trusts what it measured."""
MEMORY_VIDEOS = 30
"""Older videos fade: a machine may become slower midway."""
SLACK = 0.85
"""Going up again needs this much of the time that is left, and no more."""
SETTLING_VIDEOS = 10
"""Finished videos between a change and going up again."""


@dataclass(frozen=True)
class Level:
    """Frames and models that a video is given."""

    frames: int
    models: int

    def __str__(self) -> str:
        return f"{counted(self.frames, 'frame')} x {counted(self.models, 'model')}"


@dataclass(frozen=True)
class PlanChange:
    """A change of the plan, in words."""

    minutes: float
    """Since the process started."""
    what: str
    why: str

    def __str__(self) -> str:
        return f"after {self.minutes:.1f} min: {self.what}, because {self.why}"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Time and work that a finished video took."""

    frames: int
    """Number asked for."""
    crops: float
    decode_seconds: float
    search_seconds: float
    """Detection, tracks, alignment and encoding, all in one worker."""
    crop_models: int
    """Crops times the models each went through."""
    classify_seconds: float
    """Seconds of one thread of the classifier."""


def levels_of(frames: int, models: int) -> tuple[Level, ...]:
    """All levels, from everything down to the fewest frames and one model."""
    least = min(FEWEST_FRAMES, frames)
    steps = dict.fromkeys(max(least, round(share * frames)) for share in FRAME_SHARES)
    return (*(Level(step, models) for step in steps), *(Level(min(steps), n) for n in range(models - 1, 0, -1)))


class Rates:
    """Mean costs of videos, the latest ones counting most."""

    def __init__(self) -> None:
        self.observed = 0
        self._sums: dict[str, float] = {}

    def add(self, costs: Costs) -> None:
        """Learn from a finished video."""
        self.observed += 1
        for name, value in {"videos": 1, **vars(costs)}.items():
            self._sums[name] = self._sums.get(name, 0.0) * (1 - 1 / MEMORY_VIDEOS) + value

    def extract_seconds(self, level: Level) -> float:
        """Seconds of one worker for one video."""
        return self._mean("decode_seconds", "videos") + self._mean("search_seconds", "frames") * level.frames

    def classify_seconds(self, level: Level) -> float:
        """Seconds of one thread of the classifier for one video."""
        crops = self._mean("crops", "frames") * level.frames
        return self._mean("classify_seconds", "crop_models") * crops * level.models

    def latency(self, level: Level) -> float:
        """Seconds of one video through both stages."""
        return self.extract_seconds(level) + self.classify_seconds(level)

    def _mean(self, what: str, of: str) -> float:
        return self._sums[what] / self._sums[of] if self._sums.get(of) else 0.0


@dataclass
class Plan:
    """Decides the level of each video. Safe for threads."""

    num_videos: int
    levels: Sequence[Level]
    """Levels to choose from, the most thorough first."""
    workers: int
    """Processes that extract."""
    classifiers: int
    """Threads that classify."""
    elapsed: Callable[[], float]
    """Seconds since the budget began."""
    budget: float
    """Seconds; infinite without a limit."""
    rates: Rates = field(default_factory=Rates)
    """Costs known by now."""
    changes: list[PlanChange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reserve = reserve_seconds(self.budget)
        self._unstarted, self._in_flight = self.num_videos, 0
        self._index = self._changed_at = 0
        self._stopped = False
        self._lock = threading.RLock()

    @property
    def level(self) -> Level:
        return self.levels[self._index]

    @property
    def seconds_left(self) -> float:
        endless = self.budget == float("inf")  # each look at the clock reads the process table
        return self.budget if endless else self.budget - self.reserve - self.elapsed()

    @property
    def out_of_time(self) -> bool:
        """True when whatever is not finished has to be left."""
        return self.seconds_left <= 0

    @property
    def has_time(self) -> bool:
        """True when at least one video can be finished, as far as the costs are known."""
        return self.seconds_left > self.rates.latency(self.level)

    def start(self) -> Level | None:
        """Count a video as started and return its level; None: start no more."""
        with self._lock:
            if not self._stopped:
                self._adapt()
            if self._stopped:
                return None
            self._unstarted -= 1
            self._in_flight += 1
            return self.level

    def finish(self, costs: Costs | None) -> None:
        """Count a started video as done; without costs where they are not known, as after a crash."""
        with self._lock:
            self._in_flight -= 1
            if costs is not None:
                self.rates.add(costs)

    def projected_seconds(self, level: Level | None = None) -> float | None:
        """Seconds until all videos are predicted at a level, the current one by default; None while none is known."""
        with self._lock:
            if self.rates.observed < MIN_OBSERVED:
                return None
            level = level or self.level
            a_video = self.seconds_a_video(level)
            latency = self.rates.latency(level)
            # Those in flight are half done on average. What is started last goes through both stages one by one.
            return a_video * (self._unstarted + self._in_flight / 2) + (latency if self._unstarted else latency / 2)

    def seconds_a_video(self, level: Level) -> float:
        """Seconds between one finished video and the next."""
        rates = self.rates
        return max(rates.extract_seconds(level) / self.workers, rates.classify_seconds(level) / self.classifiers)

    def _adapt(self) -> None:
        left = self.seconds_left
        if self.rates.observed < MIN_OBSERVED:
            if left <= 0:
                self._stop("the time is over", left)
            return
        projected = self.projected_seconds()
        if projected > left:
            fitting = (index for index in range(self._index, len(self.levels)) if self._fits(index, left))
            self._change(next(fitting, len(self.levels) - 1), projected, left)
        elif self._index and self.rates.observed - self._changed_at >= SETTLING_VIDEOS:
            fitting = (index for index in range(self._index) if self._fits(index, SLACK * left))
            self._change(next(fitting, self._index), projected, left)
        waiting = self._in_flight * self.seconds_a_video(self.level)
        if max(waiting, self.rates.latency(self.level)) > left and not self._fits(self._index, left):
            self._stop("another would not be finished in time", left)

    def _fits(self, index: int, left: float) -> bool:
        return self.projected_seconds(self.levels[index]) <= left

    def _change(self, index: int, projected: float, left: float) -> None:
        if index == self._index:
            return
        before, self._index = self.level, index
        self._changed_at = self.rates.observed
        until = f"would be done in {duration(projected)} with {before}, and {duration(left)} are left"
        self._note(f"{self.level} instead of {before}", f"the {counted(self._unstarted, 'video')} not begun {until}")

    def _stop(self, why: str, left: float) -> None:
        self._stopped = True
        why = f"{why}: {duration(max(0.0, left))} are left"
        self._note(f"no more videos are begun; {self._unstarted} keep the answer they have, or the prior", why)

    def _note(self, what: str, why: str) -> None:
        self.changes.append(PlanChange(round(self.elapsed() / 60, 2), what, why))
