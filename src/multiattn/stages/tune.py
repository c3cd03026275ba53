"""Out-of-fold predictions of runs -> scoring.json: aggregator, ensemble, calibration and clip, fitted nested.

multiattn tune --runs runs/dfdc_b4_seed0 runs/dfdc_b4_seed1 runs/dfdc_b5
multiattn tune --runs runs/dfdc_b4 --outside theirs=their_oof.csv
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

from multiattn.command_line import Named, parse, results
from multiattn.config.choices import Tta
from multiattn.runtime.layout import DIGESTS_FILE, experiment_name, tuned_held_out_file


@dataclass(frozen=True, kw_only=True)
class Options:
    runs: tuple[Path, ...]
    """runs/<experiment>, one or several, of the same folds; the groups of a single fold are dealt into parts."""
    out: Path | None = None
    """The scoring.json to write (default: in the folder of the first run)."""
    outside: Named = ()
    """NAME=OOF.csv: an outside model's out-of-fold table (video_id,fold,label,probability) of the same folds, blended
    beside the runs; once for each. The rule then needs its answers at test time."""
    test_prior: float | None = None
    """The share of fakes expected at test time, where it is another than in training: 0.5 for DFDC's test sets."""
    calibration: str | None = None
    """Take this one (default: the one that is better beyond its error, which few groups cannot show)."""
    tta: Tta | None = None
    """Take these views of each crop without comparing; `none` leaves out the others (default: those whose out-of-fold
    predictions `multiattn predict --held-out` has made are compared)."""
    seed: int = 0
    """Seed of the bootstraps that decide whether a gain is beyond its error."""


def _doc() -> str:
    """The docstring, and the names of all that is compared, those registered from outside too."""
    from multiattn.scoring.aggregators import RECIPES
    from multiattn.scoring.calibration import CALIBRATORS
    from multiattn.scoring.ensembling import ensemble_candidates

    compared = {"aggregators": RECIPES, "ensembles": ensemble_candidates(), "calibrations": CALIBRATORS}
    lines = [textwrap.wrap(f"{kind}: {', '.join(names)}", 96) for kind, names in compared.items()]
    return "\n    ".join([f"{__doc__}\nCompared are", *(line for wrapped in lines for line in wrapped)])


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="tune", doc=_doc)
    from multiattn.inference.outside import named_files

    outside = named_files(options.outside, "--outside", taken=[experiment_name(run) for run in options.runs])
    from multiattn.inference.scoring_file import default_scoring_path, held_out_digests, tune_runs, write_scoring
    from multiattn.scoring.tuning import closing_line, describe_tuning
    from multiattn.tables import OUT_OF_FOLD

    path = options.out or default_scoring_path(options.runs)
    if (path.parent / DIGESTS_FILE).is_file():
        raise ValueError(f"{path.parent}: expected a run of your own, found one that stays as it is. Name --out FILE.")
    tuned_on = held_out_digests(options.runs)  # before they are read: what changes meanwhile is noticed later
    how = {"outside": outside, "test_prior": options.test_prior, "calibration": options.calibration, "tta": options.tta}
    tuned = tune_runs(options.runs, **how, seed=options.seed)
    OUT_OF_FOLD.write(tuned.out_of_fold(), tuned_held_out_file(path))
    write_scoring(tuned.rule, path, tuned.report, tuned_on)
    closing = closing_line(tuned.report)
    results(describe_tuning(tuned.rule, tuned.report), f"{path} written", *([closing] if closing else []))
