"""Faces and folds -> runs/<experiment>/fold<k>; the same command continues a killed run.

    multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all
    multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold all --gpus 0,1,2,3
    torchrun --nproc-per-node 4 -m multiattn train dfdc_b4 --faces data/faces/dfdc --folds folds/dfdc.csv --fold 0
    multiattn train mine.py:my_experiment --faces data/faces/dfdc --folds folds/dfdc.csv
    multiattn train --config runs/dfdc_b4/fold0/experiment.json --name again --faces FACES --folds FOLDS

Every setting of the experiment is an option: `--optim.lr 1e-4`, `--data.batch-size 24`, `--precision fp32`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multiattn.command_line import Device, ExperimentName, FacesFolder, FoldsTable, Inline, parse_experiment, results
from multiattn.config import Experiment
from multiattn.config.choices import Tracking
from multiattn.runtime.devices import num_ranks, pick_device
from multiattn.runtime.environment import require_packages
from multiattn.runtime.layout import HELD_OUT_FILE, folds_below
from multiattn.runtime.progress import WorkBar
from multiattn.runtime.text_tables import counted


@dataclass(frozen=True, kw_only=True)
class Options:
    experiment: ExperimentName
    config: Path | None = None
    """The experiment.json of a run, or the run's folder, to train by its settings in place of a named experiment's."""
    faces: FacesFolder
    folds: FoldsTable
    fold: str = "0"
    """The fold that validates: a number, or `all` for one after the other; finished ones are skipped."""
    gpus: str | None = None
    """Several folds at once, one on each of these GPUs: 0,1,2,3. `cpu,cpu` is two at once on a CPU."""
    runs: Path = Path("runs")
    """Runs are written to <runs>/<experiment>/fold<k>."""
    tiny: bool = False
    """The experiment's tiny variant: one epoch of a small network, to check data and settings."""
    device: Device = "auto"
    budget_hours: float | None = None
    """Hours the command may take, from its start: it saves its state and ends in time for what follows the training,
    leaves what does not fit to the same command another time, and says beforehand what that will be."""
    track: Tracking | None = None
    """Record the curves with Weights & Biases too, beside TensorBoard's: needs `pip install 'multiattn[wandb]'`."""
    dry_run: bool = False
    """Say what would be done, in which time and memory, and write nothing."""
    allow_changes: bool = False
    """Go on with a run that was begun with other settings; changes.json in the run folder notes which."""
    fit_batch: Annotated[bool, tyro.conf.Fixed, tyro.conf.Suppress] = False
    """Set by --data.batch-size auto."""
    settings: Inline[Experiment]

    def __post_init__(self) -> None:
        if self.budget_hours is not None and not self.budget_hours > 0:
            raise ValueError(f"--budget-hours: expected hours above 0, found {self.budget_hours}.")
        if self.track is not None:
            require_packages(f"--track {self.track}", self.track, self.track)


def main(argv: list[str]) -> None:
    options = parse_experiment(Options, argv, stage="train", doc=__doc__)
    from multiattn.inference.distances import keep_distances
    from multiattn.inference.predictor import keep_out_of_fold
    from multiattn.inference.runs import find_models
    from multiattn.training import folds as training
    from multiattn.training.engine.budget import Budget
    from multiattn.training.engine.ranks import distributed

    experiment = options.settings
    data = training.read_training_data(options.faces, options.folds)
    numbers = data.fold_numbers(options.fold)
    data.require_crops_for(experiment)
    if options.dry_run:
        from multiattn.training.dry_run import describe_plan

        places = len(training.parse_slots(options.gpus)) if options.gpus else 1
        device = pick_device("auto" if options.gpus else options.device)
        more = {"device": device, "places": places, "allow_changes": options.allow_changes}
        results(*describe_plan(experiment, data, numbers, options.runs / experiment.name, **more))
        return
    folder, outcomes, budget = options.runs / experiment.name, [], Budget(options.budget_hours)
    if options.gpus is not None:
        if num_ranks() > 1:
            raise ValueError("--gpus: starts processes of its own; leave it out under torchrun.")
        words = list(training.without_options(argv, ("--fold", "--gpus", "--device", "--budget-hours")))
        slots = training.parse_slots(options.gpus)
        outcomes = training.train_in_processes(words, numbers, slots, folder, experiment=experiment, budget=budget)
    else:
        device = pick_device(options.device)

        def finish(fold: Path) -> None:
            keep_distances(find_models(fold), options.faces, device=device)

        with distributed(device) as ranks, WorkBar(experiment.name, len(numbers)) as bar:
            rules = {"allow_changes": options.allow_changes, "keep_going": len(numbers) > 1 and ranks.world_size == 1}
            rules |= {
                "budget": budget,
                "fit_batch": options.fit_batch,
                "finish": finish,
                "is_tracked": options.track is not None,
            }
            outcomes = training.train_folds(
                experiment, data, numbers, options.runs, device=device, ranks=ranks, bar=bar, **rules
            )
        if not ranks.is_main:
            return
    results(training.describe_folds(experiment, folder, outcomes))
    failed = [outcome for outcome in outcomes if outcome.error]
    if folds_below(folder, HELD_OUT_FILE) and len(failed) < len(outcomes):
        results(keep_out_of_fold(folder).describe())
    if failed:
        raise ValueError(
            f"{len(failed)} of {counted(len(outcomes), 'fold')} failed; the same command tries them again."
        )
