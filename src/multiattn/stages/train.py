"""Faces and folds -> runs/<experiment>/fold<k>; the same command continues a killed run.

    multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all
    torchrun --nproc-per-node 4 -m multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold 0

Every setting of the experiment is an option: `--optim.lr 1e-4`, `--data.batch-size 24`, `--precision fp32`.
"""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Inline, Positional, parse, results
from multiattn.config import Experiment
from multiattn.datasets.folds import read_folds
from multiattn.experiments import EXPERIMENTS, get_experiment
from multiattn.inference.out_of_fold import score_out_of_fold
from multiattn.runtime import exclusive_folder, pick_device
from multiattn.training.crops import split_crops
from multiattn.training.distributed import distributed, wait_for_all
from multiattn.training.loop import train_fold
from multiattn.training.run_folder import RunFolder
from multiattn.video.faces_folder import read_faces_folder
from multiattn.video.recipe import read_recipe


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
    recipe = read_recipe(options.faces)
    faces, _, videos = read_faces_folder(options.faces)
    folds = read_folds(options.folds, videos=videos)
    numbers = sorted(set(folds["fold"]) - {-1}) if options.fold == "all" else [_fold_number(options.fold)]
    device = pick_device(options.device)
    with distributed(device) as ranks:
        for number in numbers:
            crops = split_crops(
                faces, folds, number, options.faces, validation_frames=experiment.data.validation_frames
            )
            run = RunFolder(options.runs / experiment.name / f"fold{number}", number)
            with exclusive_folder(run.path) if ranks.is_main else contextlib.nullcontext():
                if ranks.is_main:
                    run.begin(experiment, recipe, crops, folds, device=device, world_size=ranks.world_size)
                wait_for_all(ranks)
                train_fold(experiment, crops, run, device=device, ranks=ranks)
    if ranks.is_main:
        results(score_out_of_fold(options.runs / experiment.name, unfinished="skip").describe())


def _fold_number(text: str) -> int:
    if not text.isdigit():
        raise ValueError(f"--fold: expected a number or `all`, found {text!r}.")
    return int(text)
