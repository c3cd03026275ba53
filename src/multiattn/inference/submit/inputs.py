"""Inputs of a submission run, given by name or found by the notebook; the first answer, and a submission held against
its sample, without torch."""

import csv
import functools
import io
import logging
import os
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from multiattn.command_line import (
    DetectorWeights,
    Devices,
    Jobs,
    Outside,
    PredictPrecision,
    RuleTta,
    RuntimeName,
    Scoring,
)
from multiattn.config.choices import Runtime
from multiattn.config.settings import require, require_at_least
from multiattn.datasets.manifest import clips_below
from multiattn.inference.outside import named_files
from multiattn.runtime import layout
from multiattn.runtime.devices import pick_devices, runtime_precision
from multiattn.runtime.files import read_json, write_text
from multiattn.runtime.kaggle import (
    COLAB_CONTENT,
    KAGGLE_INPUT,
    KAGGLE_WORKING,
    SEARCH_DEPTH,
    from_environment,
    hours_from_environment,
    paths_from_environment,
    search,
)
from multiattn.runtime.text_tables import counted
from multiattn.scoring import DEFAULT_PRIOR
from multiattn.tables import SAMPLE
from multiattn.video.extraction.engine import Backend

if TYPE_CHECKING:
    import pandas as pd

    from multiattn.scoring.rule import ScoringRule

logger = logging.getLogger(__name__)

KAGGLE_HOURS = 9.0


@dataclass(frozen=True, kw_only=True)
class SubmitInputs:
    """Options of `multiattn submit`, and of the notebook: sources of a submission, where it goes, in what time."""

    runs: tuple[Path, ...]
    """runs/<experiment>, or several, or single folds of them; their predictions are blended. A packaged run goes by its
    name, dfdc_lite."""
    videos_dir: Path
    """The folder of test videos."""
    sample_submission: Path | None = None
    """The competition's sample: its rows, in its order, are answered (default: every video of the folder and of those
    below it, sorted by path, in the same form)."""
    out: Path
    """The submission folder, submissions/NAME."""
    scoring: Scoring = None
    outside: Outside = ()
    tta: RuleTta = None
    device: Devices = "auto"
    precision: PredictPrecision = "auto"
    runtime: RuntimeName = "torch"
    jobs: Jobs = None
    budget_hours: float | None = None
    """Deliver within so many hours of this process's start: with fewer frames, then fewer models, then priors, as the
    time goes (default: no limit)."""
    write_seconds: float = 30.0
    """Between two writings of the submission."""
    weights: DetectorWeights = None
    backend: Backend = "local"
    """Where videos are predicted: this machine, or a dask or ray cluster that sees the same files at the same paths."""
    scheduler: str | None = None
    """The cluster's address: tcp://HOST:8786 for dask; ray finds the cluster of this machine by itself."""

    def __post_init__(self) -> None:
        require(self.budget_hours is None or self.budget_hours > 0, self, "budget_hours", "hours above 0")
        require(self.write_seconds > 0, self, "write_seconds", "seconds above 0")
        require_at_least(self, 1, "jobs")
        is_here = self.backend == "local"
        require(not is_here or self.scheduler is None, self, "scheduler", "none beside --backend local")
        expected = "tcp://HOST:8786 beside --backend dask (start one: dask scheduler)"
        require(self.backend != "dask" or self.scheduler is not None, self, "scheduler", expected)
        require(is_here or self.budget_hours is None, self, "budget_hours", f"none beside --backend {self.backend}")
        computes_there = is_here or self.runtime == "torch" or self.device == "cpu"  # else every worker would fail
        require(computes_there, self, "device", f"cpu beside --runtime {self.runtime} on a cluster")
        object.__setattr__(self, "precision", runtime_precision(self.runtime, self.precision))
        object.__setattr__(self, "runs", tuple(map(layout.named_run, self.runs)))

    @functools.cached_property
    def videos(self) -> list[str]:
        """Paths below the folder of all clips in it, sorted; what is answered without a sample.

        Raises:
            FileNotFoundError: no such folder, or no clip in it.
        """
        if found := clips_below(self.videos_dir):
            return found
        raise FileNotFoundError(f"{self.videos_dir}: expected a folder of videos, found none.")

    @functools.cached_property
    def sample(self) -> "pd.DataFrame":
        """The rows to answer."""
        if self.sample_submission is not None:
            return SAMPLE.read(self.sample_submission)
        import pandas as pd

        return SAMPLE.validate(pd.DataFrame({"filename": self.videos}), self.videos_dir)

    @functools.cached_property
    def outside_files(self) -> dict[str, Path]:
        """Outside model -> the file of its answers."""
        return named_files(self.outside, "--outside")

    @functools.cached_property
    def rule(self) -> "ScoringRule":
        from multiattn.inference.scoring_file import choose_scoring  # with torch, which takes seconds

        return choose_scoring(self.runs, self.scoring, self.tta, tuple(self.outside_files))


def write_first_answer(inputs: SubmitInputs) -> None:
    """Write a submission of the prior 0.5 in each row to answer, where no submission lies yet: a process killed in
    the seconds of torch's import leaves one already. What is no sample is left to `run_submit`, which says why.

    Raises:
        FileNotFoundError: neither a sample nor a video in the folder.
    """
    out, sample = inputs.out, inputs.sample_submission
    path, names = out / layout.SUBMISSION_FILE, inputs.videos if sample is None else []
    try:
        if path.exists():
            return
        if sample is not None:
            with sample.open(newline="", encoding="utf-8-sig") as file:
                names = [row["filename"] for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError):
        return
    if not names or not all(names) or len(set(names)) < len(names):
        return
    (out / layout.CARD_FILE).unlink(missing_ok=True)  # of answers that are gone
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("filename", "label"), *((name, DEFAULT_PRIOR) for name in names)])
    write_text(path, text.getvalue())


def require_rows(submission: "pd.DataFrame", sample: "pd.DataFrame", source: Path) -> None:
    """Raise `ValueError` where the rows are not the sample's, each once and in its order."""
    expected, found = sample["filename"].tolist(), submission["filename"].tolist()
    if expected != found:
        missing = sorted(set(expected) - set(found))[:3]
        added = sorted(set(found) - set(expected))[:3]
        raise ValueError(
            f"{source}: expected the sample's {len(expected)} rows in its order, found {len(found)}; "
            f"missing {', '.join(map(repr, missing)) or 'none'}, added {', '.join(map(repr, added)) or 'none'}."
        )


def describe_submission(submission: "pd.DataFrame", *, fits_sample: bool) -> str:
    """A sound submission in words, with what a careful eye would stop at."""
    labels, sample = submission["label"], ", as the sample has them" if fits_sample else ""
    words = f"{counted(len(labels), 'row')}{sample}; P(fake) from {labels.min():.4g} to {labels.max():.4g}"
    value, count = next(iter(Counter(labels).most_common(1)))
    if count > 1:
        words += f", {count} of them {value:g}"
    if count == len(labels) > 1:
        words += ". All rows are alike: it answers nothing"
    elif labels.isin([0, 1]).any():
        words += ". A wrong answer of exactly 0 or 1 costs as much as log loss allows: clip them"
    return f"{words}."


def find_inputs(root: Path | None = None) -> SubmitInputs:
    """Inputs of the notebook: a bundle's runs, or the first below `root`'s `runs`; of a bundle without runs, those that
    training.ipynb left, on Kaggle attached, elsewhere beside the bundle. Its other inputs are found below
    `/kaggle/input`, beside a bundle on Colab below `/content`, elsewhere in `root`'s `data`.

    Of a bundle all runs are taken, for its rule was tuned for all; of the others the first folder named test_videos,
    one with a sample_submission.csv beside it before others; on Kaggle, and with a bundle, it must be the only one.
    Environment variables override the search (README.md, On Kaggle). `root` is the bundle, or the repository; by
    default the working directory.

    Raises:
        FileNotFoundError: something was not found; says what, and where it was searched for.
        ValueError: called by a notebook of an earlier version, or several candidates.
    """
    root = root or Path.cwd()
    if root == KAGGLE_INPUT:
        raise ValueError("this notebook is older than the code beside it: take the inference.ipynb of the same bundle.")
    is_bundle = (root / layout.BUNDLE_FILE).is_file()
    on_colab = is_bundle and root.is_relative_to(COLAB_CONTENT)
    on_kaggle = KAGGLE_INPUT.is_dir() and not on_colab
    home, only = root.parent if is_bundle else root, is_bundle or on_kaggle
    attached = KAGGLE_INPUT if on_kaggle else home / "runs"
    runs = root / "runs"
    runs = paths_from_environment("RUNS") or _find_runs(runs if runs.is_dir() else attached, only)
    data = COLAB_CONTENT if on_colab else KAGGLE_INPUT if on_kaggle else root / "data"
    folders, samples = search(data, "test_videos"), search(data, "sample_submission.csv")
    folders = [path for path in folders if path.with_name("sample_submission.csv") in samples] or folders
    videos = from_environment("VIDEOS_DIR") or _first(folders, "folder test_videos", data, "VIDEOS_DIR", only)
    samples = [path for path in samples if path.parent == videos.parent] or samples
    named = from_environment("SAMPLE_SUBMISSION")
    sample = named or _first(samples, "sample_submission.csv", data, "SAMPLE_SUBMISSION", only)
    return SubmitInputs(
        runs=runs,
        videos_dir=videos,
        sample_submission=sample,
        out=from_environment("OUT") or (KAGGLE_WORKING if on_kaggle else home / "submissions" / runs[0].name),
        scoring=os.environ.get("MULTIATTN_SCORING") or None,
        weights=from_environment("WEIGHTS") or _bundled_weights(runs[0]),
        runtime=_bundled_runtime(runs[0]),
        budget_hours=hours_from_environment(KAGGLE_HOURS),
    )


def _find_runs(folder: Path, only: bool) -> tuple[Path, ...]:
    """The first experiment below a folder, which must be the only one where `only`; of a bundle's `runs` all of them,
    the one that brings the scoring rule first."""
    found = sorted({path.parent.parent for path in search(folder, f"{layout.ANY_FOLD}/{layout.BEST_WEIGHTS}")})
    if found and (folder.parent / layout.BUNDLE_FILE).is_file():
        return tuple(sorted(found, key=lambda run: not (run / layout.SCORING_FILE).is_file()))
    return (_first(found, f"trained runs ({layout.ANY_FOLD}/{layout.BEST_WEIGHTS})", folder, "RUNS", only),)


def _bundled_weights(run: Path) -> Path | None:
    """The detector's weights file of the bundle a run lies in, if it is one and has one."""
    bundle = run.parent.parent
    return next(iter(sorted((bundle / "weights").glob("*"))), None) if (bundle / layout.BUNDLE_FILE).is_file() else None


def _bundled_runtime(run: Path) -> Runtime:
    """The library for which the bundle that a run lies in brings networks, on a machine that has it and no GPU."""
    path = run.parent.parent / layout.BUNDLE_FILE
    runtime = read_json(path).get("runtime", "torch") if path.is_file() else "torch"
    if runtime == "torch" or pick_devices("auto")[0].type != "cpu":
        return "torch"
    if find_spec(runtime) is None:
        logger.warning("%s is not installed here: torch predicts instead", runtime)
        return "torch"
    return runtime


def _first(found: list[Path], what: str, folder: Path, variable: str, only: bool) -> Path:
    names, remedy = ", ".join(map(str, found[:3])), f"Name yours by MULTIATTN_{variable}."
    if not found:
        raise FileNotFoundError(f"{folder}: expected {what} at most {SEARCH_DEPTH} levels down, found none. {remedy}")
    if len(found) > 1 and only:  # whoever made a data set, or shares a folder, may have put one there
        raise ValueError(f"{folder}: expected one {what}, found {names}. {remedy}")
    if len(found) > 1:
        logger.warning("several candidates for %s, taking the first: %s", what, names)
    return found[0]
