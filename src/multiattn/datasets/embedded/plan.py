"""Who plays in which clip: the embedded data set before a single pixel is drawn."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from multiattn.datasets.embedded.clips import FRAME_RATE
from multiattn.datasets.embedded.forgery import RECIPES

_TEST_GROUP = 1000
_ACTORS, _NAMES, _TAKES, _FILES = range(4)  # independent random streams of one seed


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """One video file. `part` is -1 for test clips; `source_id`, `original` and `recipe` are empty for real clips."""

    filename: str
    part: int
    label: int  # fake = 1, real = 0
    target_id: str  # the actor whose clip it is
    source_id: str  # the actor whose face was put in
    original: str  # file name of the clip that was forged
    recipe: str
    num_frames: int
    crf: int  # H.264 quality, lower is better
    take_seed: tuple[int, ...]  # shared by a fake and its original
    forgery_seed: tuple[int, ...]
    defect: Literal["", "truncated", "faceless"] = ""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """Every clip of the set, and the seed of every actor."""

    seed: int
    clips: tuple[PlannedClip, ...]
    actor_seeds: dict[str, tuple[int, ...]]

    @property
    def training(self) -> tuple[PlannedClip, ...]:
        """The clips of the training parts."""
        return tuple(clip for clip in self.clips if clip.part >= 0)

    @property
    def test(self) -> tuple[PlannedClip, ...]:
        """The clips of test_videos, the two defective ones included."""
        return tuple(clip for clip in self.clips if clip.part < 0)


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    parts: int
    actors_a_part: int
    test_actors: int
    takes_a_test_actor: int
    seconds: tuple[float, float]


_FULL = _Sizes(parts=5, actors_a_part=10, test_actors=9, takes_a_test_actor=2, seconds=(2.0, 2.5))
_SMALL = _Sizes(parts=2, actors_a_part=2, test_actors=2, takes_a_test_actor=1, seconds=(1.0, 1.0))


class _Writer:
    """Adds clips one by one; names, lengths and qualities come from streams of their own."""

    def __init__(self, seed: int, sizes: _Sizes) -> None:
        self.seed, self.sizes = seed, sizes
        self.clips: list[PlannedClip] = []
        self._names = np.random.default_rng((seed, _NAMES))
        self._used: set[str] = set()

    def _filename(self) -> str:
        while True:
            name = "".join(self._names.choice(list("abcdefghijklmnopqrstuvwxyz"), 10)) + ".mp4"
            if name not in self._used:
                self._used.add(name)
                return name

    def add(
        self, part: int, take_seed: tuple[int, ...], target: str, source: str = "", original: str = "", recipe: str = ""
    ) -> str:
        """Appends a clip and returns its file name; the length follows from the take, so a fake is as long."""
        seconds = np.random.default_rng((*take_seed, 2)).uniform(*self.sizes.seconds)
        own_seed = (self.seed, _FILES, len(self.clips))
        self.clips.append(
            PlannedClip(
                filename=self._filename(),
                part=part,
                label=int(bool(recipe)),
                target_id=target,
                source_id=source,
                original=original,
                recipe=recipe,
                num_frames=round(float(seconds) * FRAME_RATE),
                crf=int(np.random.default_rng((*own_seed, 0)).integers(17, 22)),
                take_seed=take_seed,
                forgery_seed=(*own_seed, 1),
            )
        )
        return self.clips[-1].filename


def _plan_group(writer: _Writer, part: int, actors: list[str], takes: int, fakes_a_take: int) -> None:
    """Real clips of every actor, each forged with the faces of the group's other actors, recipes in turn."""
    group = part if part >= 0 else _TEST_GROUP
    turn = max(part, 0)
    for take in range(takes):
        for place, target in enumerate(actors):
            take_seed = (writer.seed, _TAKES, group, take, place)
            original = writer.add(part, take_seed, target)
            for step in range(fakes_a_take):
                others = len(actors) - 1
                source = actors[(place + 1 + (take + step) % others) % len(actors)]
                writer.add(part, take_seed, target, source, original, RECIPES[turn % len(RECIPES)])
                turn += 1


def plan_demo(seed: int = 7, small: bool = False) -> DemoPlan:
    """The clips of the embedded data set for a seed, in a fixed order.

    Args:
        seed: a non-negative integer; every name, actor and clip follows from it.
        small: the miniature for tests: 12 training clips of one second and 4 test clips.

    Returns:
        The plan. Full: 5 parts of 10 real and 20 fake clips with 10 actors each, and 18 real and 18 fake test clips
        with 9 actors of their own. The first fake test clip is truncated, the last real one shows no face.
    """
    sizes = _SMALL if small else _FULL
    writer = _Writer(seed, sizes)
    actor_seeds: dict[str, tuple[int, ...]] = {}

    def cast(group: int, prefix: str, count: int) -> list[str]:
        names = [f"{prefix}_actor{index}" for index in range(count)]
        actor_seeds.update({name: (seed, _ACTORS, group, index) for index, name in enumerate(names)})
        return names

    for part in range(sizes.parts):
        _plan_group(writer, part, cast(part, f"part{part}", sizes.actors_a_part), takes=1, fakes_a_take=2)
    test_actors = cast(_TEST_GROUP, "test", sizes.test_actors)
    _plan_group(writer, -1, test_actors, takes=sizes.takes_a_test_actor, fakes_a_take=1)
    return DemoPlan(seed=seed, clips=tuple(_with_defects(writer.clips)), actor_seeds=actor_seeds)


def _with_defects(clips: list[PlannedClip]) -> list[PlannedClip]:
    truncated = next(i for i, clip in enumerate(clips) if clip.part < 0 and clip.label == 1)
    faceless = max(i for i, clip in enumerate(clips) if clip.part < 0 and clip.label == 0)
    out = list(clips)
    for index, defect in ((truncated, "truncated"), (faceless, "faceless")):
        out[index] = replace(out[index], defect=defect)
    return out
