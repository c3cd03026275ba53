"""The paper's ablation tables, cell by cell: trains what is missing, measures, compares.

    multiattn ablation 5 --faces data/faces/ffpp_c23 --folds folds/ffpp.csv --cross-faces data/faces/celebdf
    multiattn ablation demo --faces data/demo/faces --folds folds/demo.csv --fold all
    multiattn ablation 6 --tiny --faces data/demo/faces --folds folds/demo.csv

Runs go to <runs>/<cell>_seed<k>/fold<k>; tables that share a cell share its runs, and the same command continues a
killed ablation. After every cell the table is written anew: Markdown, CSV and PNG.
"""

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multiattn.command_line import Device, FoldsTable, Positional, parse, require_at_least, results
from multiattn.runtime.devices import pick_device
from multiattn.runtime.files import write_csv, write_text
from multiattn.runtime.progress import WorkBar

if TYPE_CHECKING:
    import torch

    from multiattn.evaluation.ablation_table import AblationTable, CrossData
    from multiattn.evaluation.ablations import Ablation, Cell
    from multiattn.training.engine.ranks import Ranks
    from multiattn.training.folds import TrainingData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options:
    table: Positional[str]
    """A table of the paper (1, 2, 4, 5 or 6), `demo` or `demo-training`."""
    faces: Path
    """The faces folder of `multiattn faces` to train on; its compression says which column is measured."""
    folds: FoldsTable
    fold: str = "0"
    """The fold that validates: a number, or `all`, whose held-out videos are then measured together."""
    seeds: int = 3
    """Runs of each cell, with the experiment's seed and those that follow it."""
    cross_faces: Path | None = None
    """A faces folder of labelled videos nothing is trained on, as Celeb-DF."""
    runs: Path = Path("runs/ablation")
    out: Path = Path("runs/ablation/tables")
    """The table goes to <out>/table_<table>.md, .csv and .png."""
    tiny: bool = False
    """Every cell on a small network, 64 px crops and one epoch: shows that it runs."""
    device: Device = "auto"


@dataclass(frozen=True)
class _Inputs:
    data: "TrainingData"
    numbers: list[int]
    cross: "CrossData | None"
    device: "torch.device"
    bar: WorkBar


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="ablation", doc=__doc__)
    from multiattn.evaluation.ablation_table import read_cross_data
    from multiattn.evaluation.ablations import get_ablation
    from multiattn.figures.comparisons import draw_ablation
    from multiattn.training.engine.ranks import distributed
    from multiattn.training.folds import read_training_data

    ablation = get_ablation(options.table, tiny=options.tiny)
    require_at_least(options, 1, "seeds")
    data = read_training_data(options.faces, options.folds)
    cross = read_cross_data(options.cross_faces, data.recipe, data.folds["video_id"]) if options.cross_faces else None
    numbers, cells = data.fold_numbers(options.fold), ablation.trained
    bar = WorkBar(f"ablation {options.table}", len(cells) * options.seeds * len(numbers))
    inputs = _Inputs(data, numbers, cross, pick_device(options.device), bar)
    table = _empty_table(options, ablation, inputs)
    out = options.out / table.file_name
    with bar, distributed(inputs.device) as ranks:
        for position, cell in enumerate(cells, start=1):
            for repetition in range(options.seeds):
                logger.info("cell %d of %d (%s), seed %d", position, len(cells), cell.label, repetition)
                _fill(table, cell, repetition, options, inputs, ranks)
            if ranks.is_main:
                write_text(out.with_suffix(".md"), table.markdown())
                write_csv(out.with_suffix(".csv"), table.wide())
                draw_ablation(table, out.with_suffix(".png"))
    if ranks.is_main:
        results(table.markdown(), f"written: {out}.md, .csv, .png")
    if table.failures:
        raise ValueError(f"{len(table.failures)} of {len(cells)} cells failed; the table says which and why.")


def _empty_table(options: Options, ablation: "Ablation", inputs: _Inputs) -> "AblationTable":
    from multiattn.evaluation.ablation_table import AblationTable, count_videos
    from multiattn.evaluation.ablations import name_data

    data, cross = inputs.data, inputs.cross
    used = data.videos[data.videos["video_id"].isin(data.folds["video_id"])]
    facts = [
        f"Trained and validated on {name_data(used)}: {count_videos(used)}, crops of {data.recipe.size} px; "
        f"held-out folds {', '.join(map(str, inputs.numbers))} of {len(data.fold_numbers('all'))}.",
        *([f"Tested on {cross.name} too: {len(cross.frames)} crops of {len(cross.labels)} videos."] if cross else []),
        f"Seeds {', '.join(str(ablation.trained[0].experiment.seed + number) for number in range(options.seeds))}.",
        f"`{_command(options)}`",
    ]
    return AblationTable(ablation, name_data(used), cross.name if cross else None, tuple(facts))


def _command(options: Options) -> str:
    """The command line that makes the table again; folders outside the working directory by their last name."""
    words = ["multiattn", "ablation", options.table]
    for name, value in (("faces", options.faces), ("folds", options.folds), ("cross-faces", options.cross_faces)):
        if value is not None:
            words += [f"--{name}", value.name if value.is_absolute() else str(value)]
    words += ["--fold", options.fold, "--seeds", str(options.seeds), *(["--tiny"] if options.tiny else [])]
    return shlex.join(words)


def _fill(
    table: "AblationTable", cell: "Cell", repetition: int, options: Options, inputs: _Inputs, ranks: "Ranks"
) -> None:
    """Train and measure one seed of a cell. A user's mistake is noted in the table, and the others go on."""
    from multiattn.evaluation.ablation_table import measure_cross, measure_out_of_fold
    from multiattn.evaluation.ablations import LQ, seeded
    from multiattn.inference.predictor import keep_out_of_fold
    from multiattn.training.folds import require_same_folds, train_folds

    try:
        experiment = seeded(cell.experiment, repetition)
        if table.held_out == LQ:  # the paper starts its models of LQ from those of HQ
            start = None if options.tiny else options.runs / experiment.name
            experiment = seeded(cell.experiment, repetition, suffix="_c40", start_from=start)
            if start is not None:
                require_same_folds(start, inputs.numbers, inputs.data.folds)
        place = {"device": inputs.device, "ranks": ranks, "bar": inputs.bar}
        train_folds(experiment, inputs.data, inputs.numbers, options.runs, **place)
        runs = options.runs / experiment.name
        if not ranks.is_main:
            return
        keep_out_of_fold(runs)
        figures = measure_out_of_fold(runs, inputs.numbers)
        if inputs.cross is not None:
            figures |= measure_cross(runs, inputs.numbers, inputs.cross, device=inputs.device)
        table.add(cell, figures)
    except (ValueError, FileNotFoundError) as error:
        if ranks.world_size > 1:  # the other ranks may wait for this one: torchrun ends them all
            raise
        logger.error("%s, seed %d: %s", cell.label, repetition, error)
        table.fail(cell, f"seed {repetition}: {error}")
