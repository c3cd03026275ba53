"""Faces and folds -> runs/<experiment>/fold<k>; the same command continues a killed run.

    multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all
    torchrun --nproc-per-node 4 -m multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold 0

Every setting of the experiment is an option: `--optim.lr 1e-4`, `--data.batch-size 24`, `--precision fp32`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Inline, Positional, parse, results
from multiattn.config import Experiment
from multiattn.experiments import EXPERIMENTS, get_experiment
from multiattn.inference.out_of_fold import score_out_of_fold
from multiattn.runtime import pick_device
from multiattn.training.distributed import distributed
from multiattn.training.fold_runs import read_training_data, train_folds


def _options_class(default: Experiment) -> type:
    """The options, with the settings of the experiment that was named as defaults."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options of `multiattn train`."""

        experiment: Positional[str]
        """A function of experiments.py."""
        faces: Path
        """The faces folder of `multiattn faces`."""
        folds: Path
        """The folds CSV of `multiattn folds`."""
        fold: str = "0"
        """The fold that validates: a number, or `all` for one after the other."""
        runs: Path = Path("runs")
        """Runs are written to <runs>/<experiment>/fold<k>."""
        tiny: bool = False
        """The experiment's tiny variant: one epoch of a small network, for a look at data and settings."""
        device: str = "auto"
        """cpu, cuda or auto."""
        settings: Inline[Experiment] = dataclasses.field(default_factory=lambda: default)

    return Options


def main(argv: list[str]) -> None:
    """Run the stage."""
    # The experiment's name comes first: it decides the defaults of the other options, those `--help` shows.
    named = argv[0] if argv and not argv[0].startswith("-") else next(iter(EXPERIMENTS))
    default = get_experiment(named, tiny="--tiny" in argv)
    options = parse(_options_class(default), argv, stage="train", doc=__doc__)
    if options.experiment != named:
        raise ValueError(f"the experiment comes first: multiattn train {options.experiment} --faces ...")
    experiment = options.settings
    data = read_training_data(options.faces, options.folds)
    numbers = data.fold_numbers(options.fold)
    device = pick_device(options.device)
    with distributed(device) as ranks:
        runs = train_folds(experiment, data, numbers, options.runs, device=device, ranks=ranks)
    if ranks.is_main:
        results(score_out_of_fold(runs, unfinished="skip").describe())
