"""The training of training.ipynb: found in a bundle of `multiattn bundle --training`, run as the command would."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from multiattn.command_line import ExperimentName, Inline, parse_experiment
from multiattn.config import Experiment
from multiattn.runtime import layout
from multiattn.runtime.kaggle import (
    KAGGLE_INPUT,
    KAGGLE_WORKING,
    SESSION_HOURS,
    from_environment,
    hours_from_environment,
    paths_from_environment,
    search,
)
from multiattn.runtime.processor import process_seconds
from multiattn.training.merging import merge_folds

BUDGET_HOURS = SESSION_HOURS - 0.5
"""Training ends after so many hours of the notebook: its last cells, and Kaggle's packing of the output, follow."""


@dataclass(frozen=True, kw_only=True)
class _Words:
    """The options of `multiattn train` that decide the settings, and that those of `MORE` may be: the notebook sets the
    others."""

    experiment: ExperimentName
    config: Path | None = None
    tiny: bool = False
    allow_changes: bool = False
    fit_batch: bool = False
    settings: Inline[Experiment]


@dataclass(frozen=True)
class NotebookTraining:
    """The training of a notebook."""

    bundle: Path
    runs: Path
    """The folder of runs it writes into."""
    experiment: Experiment
    fold: str
    """A number, or `all`."""
    more: tuple[str, ...]
    """Further options of `multiattn train`."""
    num_gpus: int

    @property
    def folder(self) -> Path:
        """The experiment's folder of runs."""
        return self.runs / self.experiment.name

    @property
    def faces(self) -> Path:
        return self.bundle / "faces"

    @property
    def folds(self) -> Path:
        return self.bundle / layout.FOLDS_FILE

    def hours_left(self) -> float:
        """Until training has to end; MULTIATTN_BUDGET_HOURS, 11.5 where it is not set, counts from the notebook's
        start."""
        return hours_from_environment(BUDGET_HOURS) - process_seconds() / 3600

    def train(self) -> int:
        """Train, over several GPUs by torchrun; prints its lines as they come, and returns the exit code."""
        launcher = [sys.executable, "-m"]
        if self.num_gpus > 1:
            launcher += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.num_gpus), "-m"]
        inputs = ["--faces", self.faces.name, "--folds", self.folds.name, "--runs", str(self.runs), "--fold", self.fold]
        inputs += ["--budget-hours", f"{max(0.01, self.hours_left()):.2f}"]
        return self._show([*launcher, "multiattn", "train", "--config", layout.EXPERIMENT_FILE, *inputs, *self.more])

    def tune(self, test_prior: float) -> int:
        """Tune the scoring rule on the folds that are there, for so large a share of fakes; as `train`."""
        words = ["multiattn", "tune", "--runs", str(self.folder), "--test-prior", str(test_prior)]
        return self._show([sys.executable, "-m", *words])

    def _show(self, command: list[str]) -> int:
        # In the bundle's folder: the paths of its files are then the same under every account, and so are the settings.
        code = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        place = {"cwd": self.bundle, "env": {**os.environ, "PYTHONPATH": os.pathsep.join(code)}}
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, **place, **piped) as process:
            for line in process.stdout:
                sys.stdout.write(line)
        return process.returncode


def find_training(bundle: Path, *, fold: str = "all", more: Sequence[str] = ()) -> NotebookTraining:
    """The training of a bundle, with the folds that an earlier version left copied to where it goes on.

    Runs of a bundle below /kaggle/input go to /kaggle/working/runs, of others into `runs` beside the bundle, which is
    in the mounted Drive where Colab keeps them (MULTIATTN_OUT is another folder). Earlier ones are those of the
    experiment's name below /kaggle/input (MULTIATTN_RUNS: folders of runs, with colons between); a fold that is there
    already is left as it is. So several attached versions are merged.

    Raises:
        FileNotFoundError: no runs where MULTIATTN_RUNS says.
        ValueError: as `merge_folds`.
        SystemExit: `more` has a word that `multiattn train` does not know, or an option that the notebook sets.
    """
    words = ["--config", str(bundle / layout.EXPERIMENT_FILE), *more]
    experiment = parse_experiment(_Words, words, stage="train", doc=None).settings
    home = KAGGLE_WORKING if bundle.is_relative_to(KAGGLE_INPUT) else bundle.parent
    runs = from_environment("OUT") or home / "runs"
    bundle, runs = bundle.resolve(), runs.resolve()
    named = [fold for source in paths_from_environment("RUNS") for fold in layout.folds_of_runs(source)]
    found = search(KAGGLE_INPUT, f"{experiment.name}/{layout.ANY_FOLD}/{layout.EXPERIMENT_FILE}")
    there = {path.name for path in layout.folds_below(runs / experiment.name)}
    earlier = [path for path in named or (path.parent for path in found) if path.name not in there]
    merge_folds([path for path in earlier if layout.experiment_name(path) == experiment.name], runs)
    return NotebookTraining(bundle, runs, experiment, fold, tuple(more), torch.cuda.device_count())
