"""Steps that presets are made of: changes of a crop, each drawing from its own kind of random numbers."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import albumentations as A
import numpy as np

OLDEST, BELOW = "2.0.5", "2.1"
"""The bounds of requirements.txt for albumentations; a test compares them. Earlier versions name their arguments
otherwise, and ignore names they do not know, so a preset would change without a word."""
EARLIER_CROPS = 3
"""A clip for re-encoding is the crop and at most so many before it; more earlier ones need not be read."""


@dataclass(frozen=True)
class CropContext:
    """Knowledge about a crop beside its pixels, which some presets use."""

    landmarks: np.ndarray | None = None
    """(5, 2) float32 pixels (x, y) of the crop, in the order of faces.parquet; None where they are not known."""
    clip: Callable[[], list[np.ndarray]] | None = None
    """Reads the crops of the same face before this one, oldest first, of its size; the last `EARLIER_CROPS` of them
    are enough. Called only where a draw asks for it. None where there are none."""
    strength: float = 1.0
    """Factor, 0 to 1, on the strength that a degradation draws."""


class Draws:
    """The random numbers of one crop for steps of one kind, as albumentations wants them.

    A seed, 0 or more, has independent sequences by the number of their stream.
    """

    def __init__(self, seed: int, stream: int = 0) -> None:
        seed = int(seed)
        self.generator = np.random.default_rng((seed, stream) if stream else seed)
        self.python = random.Random(f"{seed}/{stream}" if stream else seed)
        # A Compose spends one number on its own probability. Ours always run, so that a preset in two of them
        # draws what it drew in one.
        self.python.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.generator.random() < probability)


@dataclass(frozen=True)
class Step:
    """One change of a crop."""

    change: Callable[[np.ndarray, Draws, CropContext], np.ndarray]
    """((H, W, 3) uint8 RGB, draws, context) -> the same, changed; the array given stays as it is."""
    moves: bool = False
    """True for a step that moves the picture's content, and so draws from the geometry's numbers."""
    needs_landmarks: bool = False
    needs_clip: bool = False


def pixels(*transforms: A.BasicTransform | A.BaseCompose, moves: bool = False) -> Step:
    """A step of albumentations' transforms that leave everything where it is."""
    compose = A.Compose(list(transforms))

    def change(crop: np.ndarray, draws: Draws, context: CropContext) -> np.ndarray:
        # Not set_random_seed: it gives every transform the same seed, and with it the same draws.
        compose.set_random_state(draws.generator, draws.python)
        return compose(image=crop, force_apply=True)["image"]

    return Step(change, moves=moves)


def moving(*transforms: A.BasicTransform | A.BaseCompose) -> Step:
    """A step of albumentations' transforms that move the picture's content."""
    return pixels(*transforms, moves=True)


def require_albumentations(found: str = A.__version__) -> None:
    """Refuse a version of albumentations outside the bounds."""
    oldest, below, version = (_release(text) for text in (OLDEST, BELOW, found))
    if not oldest <= version < below:
        raise ValueError(
            f"albumentations: expected a version from {OLDEST} and below {BELOW}, found {found}, whose transforms may "
            f'mean something else. Run `pip install "albumentations>={OLDEST},<{BELOW}"`, as requirements.txt says.'
        )


def _release(version: str) -> tuple[int, ...]:
    """`2.0.8.post1` -> (2, 0, 8)."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()
