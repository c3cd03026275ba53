"""A miniature of the demo, and how a test runs a stage."""

from dataclasses import dataclass
from pathlib import Path

from multiattn.__main__ import main

FACES_OPTIONS = ("--num-frames", "4", "--size", "64", "--splits", "train")


@dataclass(frozen=True)
class Pipeline:
    """A miniature of the demo, walked from clips to trained folds by the stages themselves."""

    dataset: Path
    videos: Path
    faces: Path
    folds: Path
    runs: Path

    @property
    def experiment(self) -> Path:
        """The trained runs."""
        return self.runs / "demo_tiny"


def run(*words: object) -> None:
    """Run a stage as a user would, in this process; it must succeed."""
    assert main([str(word) for word in words]) == 0, f"multiattn {' '.join(map(str, words))} failed"
