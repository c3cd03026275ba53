"""albumentations, imported in one place: offline, and in a version whose transforms mean what the presets mean."""

import os
import re

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
import albumentations

OLDEST, BELOW = "2.0.5", "2.1"
"""The bounds of requirements.txt; a test compares them. Earlier versions name their arguments otherwise, and ignore
names they do not know, so a preset would change without a word."""


def require_albumentations(found: str = albumentations.__version__) -> None:
    """Refuse a version outside the bounds.

    Raises:
        ValueError: says which one was found and which are expected.
    """
    if not _numbers(OLDEST) <= _numbers(found) < _numbers(BELOW):
        raise ValueError(
            f"albumentations: expected a version from {OLDEST} and below {BELOW}, found {found}, whose transforms may "
            f'mean something else. Run `pip install "albumentations>={OLDEST},<{BELOW}"`, as requirements.txt says.'
        )


def _numbers(version: str) -> tuple[int, ...]:
    """`2.0.8.post1` -> (2, 0, 8): the release alone."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(number) for number in release[0].split(".")) if release else ()
