"""Where everything is that a submission needs, as it is named or as the notebook finds it."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from multiattn.inference.scoring_file import choose_scoring
from multiattn.scoring.rule import ScoringRule

logger = logging.getLogger(__name__)

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
SEARCH_DEPTH = 6


@dataclass(frozen=True, kw_only=True)
class KernelInputs:
    """Where everything is that a submission needs."""

    runs: tuple[Path, ...]
    """Experiments' folders with fold0, fold1, ..., or single folds of them; their crops are made alike."""
    videos_dir: Path
    """The test videos, directly in this folder."""
    sample_submission: Path
    """The competition's sample: its rows, in its order, are answered."""
    out: Path
    """The submission folder."""
    faces: Path
    """Faces of the test videos are kept here, so that a killed kernel continues."""
    rule: ScoringRule = field(default_factory=ScoringRule)
    """Frame predictions -> probabilities."""
    device: str = "auto"
    precision: str = "auto"
    jobs: int | None = None
    weights: Path | None = None
    """The weights file of the detector the runs' faces were found with; mtcnn needs none."""


def find_inputs(root: Path | None = None) -> KernelInputs:
    """What the notebook needs, found below `/kaggle/input` or, elsewhere, in the repository's `runs` and `data`.

    Each of the environment variables MULTIATTN_RUNS, MULTIATTN_VIDEOS_DIR, MULTIATTN_SAMPLE_SUBMISSION, MULTIATTN_OUT
    and MULTIATTN_FACES decides its path instead of the search. Without them: the first folder with trained folds, the
    first folder named test_videos, and the sample_submission.csv beside it or else the first one. MULTIATTN_WEIGHTS is
    the detector's weights file, where the runs' faces were found with one that needs it.

    Args:
        root: the repository; by default the working directory.

    Raises:
        FileNotFoundError: something was not found; says what and where it was looked for.
    """
    on_kaggle = KAGGLE_INPUT.is_dir()
    root = root or Path.cwd()
    # Not below /kaggle/working, where every crop would become an output of the notebook.
    faces = (Path("/tmp") if on_kaggle else root / "data") / "faces"
    runs = _from_environment("RUNS") or _first(
        sorted({path.parent.parent for path in _search(root / "runs", "fold*/best.safetensors", on_kaggle)}),
        "trained runs (fold*/best.safetensors)",
        root / "runs",
    )
    videos = _from_environment("VIDEOS_DIR") or _first(
        _search(root / "data", "test_videos", on_kaggle), "folder test_videos", root / "data"
    )
    samples = _search(root / "data", "sample_submission.csv", on_kaggle)
    samples = [path for path in samples if path.parent == videos.parent] or samples
    sample = _from_environment("SAMPLE_SUBMISSION") or _first(samples, "sample_submission.csv", root / "data")
    return KernelInputs(
        runs=(runs,),
        videos_dir=videos,
        sample_submission=sample,
        out=_from_environment("OUT") or (KAGGLE_WORKING if on_kaggle else root / "submissions" / runs.name),
        faces=_from_environment("FACES") or faces / f"{runs.name}_test",
        rule=choose_scoring([runs], os.environ.get("MULTIATTN_SCORING") or None),
        weights=_from_environment("WEIGHTS"),
    )


def _search(folder: Path, pattern: str, on_kaggle: bool) -> list[Path]:
    """Matches a few levels down. Not `**`: a faces folder may hold millions of crops."""
    folder = KAGGLE_INPUT if on_kaggle else folder
    return [path for depth in range(SEARCH_DEPTH) for path in sorted(folder.glob("*/" * depth + pattern))]


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(f"MULTIATTN_{name}")
    return Path(value) if value else None


def _first(found: list[Path], what: str, folder: Path) -> Path:
    if not found:
        place = KAGGLE_INPUT if KAGGLE_INPUT.is_dir() else folder
        raise FileNotFoundError(f"{place}: expected {what} at most {SEARCH_DEPTH} levels down, found none.")
    if len(found) > 1:
        logger.warning("several candidates for %s, taking the first: %s", what, ", ".join(map(str, found[:3])))
    return found[0]
