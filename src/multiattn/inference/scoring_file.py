"""`scoring.json`: the scoring rule of some runs, tuned on their out-of-fold predictions, kept, and chosen by commands.

The file holds `rule` and `tuned_on`, which are read back, and `report`, which is for people.
"""

import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from multiattn.config import from_json, to_json
from multiattn.config.choices import Tta
from multiattn.inference.outside import read_held_out, require_outside
from multiattn.inference.predictor import (
    PLACE,
    held_out_advice,
    last_epoch_losses,
    read_out_of_fold,
    score_out_of_fold,
)
from multiattn.inference.runs import TrainedModel
from multiattn.runtime import layout
from multiattn.runtime.files import file_digest, read_json, write_json
from multiattn.runtime.progress import progress_bar
from multiattn.scoring.ensembling import experiment_of
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import OUT_OF_FOLD

if TYPE_CHECKING:
    from multiattn.scoring.tuning import Tuned

logger = logging.getLogger(__name__)

UNTUNED = "none"
"""As `--scoring`: the untuned rule."""
LATER_SETTINGS = {"per_frame": False, "tta": "none", "held_out": None, "outside": []}
"""Settings that rules of earlier versions lack, as they had them."""


@dataclass(frozen=True, kw_only=True)
class ScoringFile:
    """The part of a `scoring.json` that is read back; the default is the untuned rule."""

    rule: ScoringRule = field(default_factory=ScoringRule)
    tuned_on: dict[str, dict[str, str]] = field(default_factory=dict)
    """`held_out_digests` when the rule was tuned; empty where that is not known."""


def default_scoring_path(runs: Sequence[Path]) -> Path:
    """The path `multiattn tune` writes to without `--out`: in the first experiment's folder, also when given a fold."""
    return layout.experiment_folder(runs[0]) / layout.SCORING_FILE


def held_out_digests(runs: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Experiment -> fold -> SHA-256 of its `oof.parquet`, which a rule is tuned on; folds without one are left out, and
    a fold's folder counts as its whole experiment.

    Raises:
        FileNotFoundError: no fold in a folder.
    """
    digests = {layout.experiment_name(folder): _fold_digests(folder) for folder in _experiment_folders(runs)}
    return {name: {fold: digest for fold, digest in digests[name].items() if digest} for name in sorted(digests)}


def read_scoring_file(path: Path) -> ScoringFile:
    """Read a `scoring.json`; raises `FileNotFoundError`, or `ValueError` where it is not a scoring rule."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no scoring rule here. Make it with `multiattn tune`.")
    values = read_json(path)
    rule, tuned_on = (values.get("rule"), values.get("tuned_on", {})) if isinstance(values, dict) else (values, {})
    kept = {"rule": LATER_SETTINGS | rule if isinstance(rule, dict) else rule, "tuned_on": tuned_on}
    try:
        return from_json(ScoringFile, kept, source="not a scoring rule", complete=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error} Make it again with `multiattn tune`.") from error


def write_scoring(
    rule: ScoringRule, path: Path, report: dict[str, Any], tuned_on: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Write a `scoring.json`; `report` is for people, `tuned_on` the `held_out_digests` before the rule was tuned."""
    write_json(path, {"rule": to_json(rule), **({"tuned_on": tuned_on} if tuned_on else {}), "report": report})


def choose_scoring(
    runs: Sequence[Path], scoring: str | Path | None, tta: Tta | None = None, outside: Sequence[str] = ()
) -> ScoringRule:
    """As `choose_scoring_file`, the rule alone, for predictions with these views of each crop; None takes the rule's.

    Raises:
        ValueError: also other views than a tuned rule's, whose calibration, thresholds and figures are of its own.
    """
    rule = choose_scoring_file(runs, scoring, outside).rule
    if tta not in (None, *get_args(Tta)):
        raise ValueError(f"tta: expected one of {', '.join(get_args(Tta))}, found {tta!r}.")
    if tta in (None, rule.tta):
        return rule
    if rule.experiments or rule.out_of_fold is not None:
        tune = f"tune one for it (`{_tune_command(runs)} --tta {tta}`), " if _can_be_tuned(runs) else ""
        raise ValueError(
            f"--tta {tta}: the scoring rule was tuned on predictions with --tta {rule.tta}. Leave the option out, "
            f"{tune}or pass --scoring {UNTUNED}."
        )
    return replace(rule, tta=tta)


def choose_scoring_file(runs: Sequence[Path], scoring: str | Path | None, outside: Sequence[str] = ()) -> ScoringFile:
    """The rule a command uses; logs which it is, and warns where the runs hold other out-of-fold predictions by now
    than it was tuned on. A bundle's runs hold none.

    Args:
        runs: folders of experiments, or of folds.
        scoring: a file; `none` for the untuned rule; None for `find_scoring`, else the untuned rule.
        outside: outside models whose answers there are.

    Raises:
        FileNotFoundError: a named file is not there.
        ValueError: a named file was tuned for other experiments, or is none; as `find_scoring` and `require_outside`.
    """
    if str(scoring) == UNTUNED:
        require_outside((), outside, f"--scoring {UNTUNED}")
        logger.info("scoring rule: plain means, as asked for")
        return ScoringFile()
    if scoring is None:
        found = find_scoring(runs)
        if found is None:
            require_outside((), outside, f"{default_scoring_path(runs)}: no such scoring rule")
            way = f"; `{_tune_command(runs)}` makes one" if _can_be_tuned(runs) else ""
            logger.info("no %s for these runs: plain means%s", layout.SCORING_FILE, way)
            return ScoringFile()
        path, chosen = found
    else:
        path = Path(scoring)
        chosen = read_scoring_file(path)
        if not _fits(chosen.rule, runs):
            raise ValueError(
                f"{path}: {_tuned_for(chosen.rule, runs)}. Run `multiattn tune --runs` with these runs, or pass "
                f"--scoring {UNTUNED}."
            )
    require_outside(chosen.rule.outside, outside, path)
    logger.info("scoring rule of %s", path)
    _warn_of_changes(path, chosen, runs)
    return chosen


def _can_be_tuned(runs: Sequence[Path]) -> bool:
    """True of runs with out-of-fold predictions, which those of a bundle and of the package lack."""
    return all(layout.folds_below(folder, layout.HELD_OUT_FILE) for folder in _experiment_folders(runs))


def find_scoring(runs: Sequence[Path]) -> tuple[Path, ScoringFile] | None:
    """Path and content of the `scoring.json` in the folder of one of the runs that was tuned for exactly these
    experiments, or None; of two with different rules that of the run given first, with a warning.

    Raises:
        ValueError: none fits, and one is no scoring rule.
    """
    fitting, others, faults = [], [], []
    for path in (folder / layout.SCORING_FILE for folder in _experiment_folders(runs)):
        if not path.is_file():
            continue
        try:
            file = read_scoring_file(path)
        except ValueError as error:
            faults.append(error)
        else:
            (fitting if _fits(file.rule, runs) else others).append((path, file))
    if not fitting:
        if faults:
            raise faults[0]
        for path, file in others:
            logger.warning("%s: %s: not used.", path, _tuned_for(file.rule, runs))
        return None
    for fault in faults:
        logger.warning("not used: %s", fault)
    path, file = fitting[0]
    if different := [str(other) for other, one in fitting[1:] if one.rule != file.rule]:
        logger.warning(
            "%s and %s hold different rules for these runs: that of the run given first is used. Name another with "
            "--scoring FILE.",
            path, ", ".join(different),
        )  # fmt: skip
    return path, file


def require_rule_fits(rule: ScoringRule, models: Sequence[TrainedModel]) -> None:
    """Raise `ValueError` where the rule has no weight for a model's experiment: before the work, not after it."""
    experiments = sorted({experiment_of(model.name) for model in models})
    rule.answer(np.full((1, len(experiments)), 0.5), experiments)


def _experiment_folders(runs: Sequence[Path]) -> list[Path]:
    """Each once, in the order given."""
    return list(dict.fromkeys(layout.experiment_folder(run) for run in runs))


def _fits(rule: ScoringRule, runs: Sequence[Path]) -> bool:
    return sorted(rule.experiments) in ([], _names(runs))


def _tuned_for(rule: ScoringRule, runs: Sequence[Path]) -> str:
    return f"tuned for {', '.join(rule.experiments)}, not for {', '.join(_names(runs))}"


def _names(runs: Sequence[Path]) -> list[str]:
    return sorted({layout.experiment_name(run) for run in runs})


def _fold_digests(folder: Path) -> dict[str, str]:
    """Fold -> SHA-256 of its predictions, empty where it has none."""
    files = {fold.name: fold / layout.HELD_OUT_FILE for fold in layout.fold_folders(folder)}
    return {name: file_digest(path) if path.is_file() else "" for name, path in files.items()}


def _warn_of_changes(path: Path, chosen: ScoringFile, runs: Sequence[Path]) -> None:
    """Name the experiments that hold other out-of-fold predictions than those the rule was tuned on."""
    for folder in _experiment_folders(runs):
        then = chosen.tuned_on.get(layout.experiment_name(folder))
        if then is None or not layout.folds_below(folder, layout.HELD_OUT_FILE):
            continue
        if changes := _changes(then, _fold_digests(folder)):
            logger.warning(
                "%s: the out-of-fold predictions of %s are not those it was tuned on (%s): its rule and figures are of "
                "older ones. Run `%s` again.",
                path, layout.experiment_name(folder), changes, _tune_command(runs, path, chosen.rule),
            )  # fmt: skip


def _changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words; folds that are there without predictions are not compared."""
    changed = {
        "replaced": [fold for fold in now if now[fold] and then.get(fold, now[fold]) != now[fold]],
        "added": [fold for fold in now if fold not in then],
        "gone": [fold for fold in then if fold not in now],
    }
    return "; ".join(f"{', '.join(folds)} {what}" for what, folds in changed.items() if folds)


def _tune_command(runs: Sequence[Path], path: Path | None = None, rule: ScoringRule | None = None) -> str:
    """The command that tunes a rule for these runs, into `path` and for the share of fakes stated for `rule`."""
    folders = _experiment_folders(runs)
    words = ["multiattn", "tune", "--runs", *map(str, folders)]
    stated = None if rule is None else (rule.out_of_fold or {}).get("test_prior")
    if rule is not None and rule.prior_shift is not None:
        stated = rule.prior_shift.test
    if stated is not None:
        words += ["--test-prior", str(stated)]
    words += [word for name in (rule.outside if rule is not None else ()) for word in ("--outside", f"{name}=OOF.csv")]
    if path is not None and path != default_scoring_path(folders):
        words += ["--out", str(path)]
    return shlex.join(words)


def tune_runs(
    runs: Sequence[Path],
    *,
    outside: Mapping[str, Path] | None = None,
    test_prior: float | None = None,
    calibration: str | None = None,
    tta: Tta | None = None,
    seed: int = 0,
) -> "Tuned":
    """Tune the rule of some experiments on their `oof.parquet`, and beside it on what `predict_held_out` kept with
    other views. A test split is in no folds table (`datasets/folds.py`), and predictions of any other video are
    refused.

    Args:
        runs: folders of experiments of one folds table.
        outside: name -> `out-of-fold` table of an outside model.
        tta: the predictions with these views alone; None compares all that there are.
        test_prior, calibration, seed: as of `tune`.
    """
    names = Counter(layout.experiment_name(path) for path in runs)
    if twice := [name for name, number in names.items() if number > 1]:
        raise ValueError(
            f"--runs: expected experiments of different names, found {', '.join(twice)} more than once; their weights "
            "could not be kept apart. Name each experiment's folder once, not its folds; rename one of two."
        )
    held_out = read_out_of_fold(*map(Path, runs), tta=tta or "none")
    others = read_held_out(outside, held_out.videos, f"the folds of {runs[0]}") if outside else None
    tables = {tta or "none": held_out.predictions}
    for other in get_args(Tta) if tta is None else ():
        if other not in tables and _have_views(runs, other):
            tables[other] = read_out_of_fold(*map(Path, runs), tta=other).predictions
            if not tables[other][["model", *PLACE]].equals(held_out.predictions[["model", *PLACE]]):
                raise ValueError(
                    f"{runs[0]}: expected in {layout.held_out_file(other)} the crops of {layout.HELD_OUT_FILE}, found "
                    f"others. Delete it. {held_out_advice(runs[0], other)}"
                )
    from multiattn.scoring.tuning import num_steps, tune  # scipy, which who answers by a rule has no use for

    with progress_bar(num_steps(held_out.videos, len(tables)), "tune", "steps") as progress:
        tuned = tune(
            tables,
            held_out.videos,
            outside=others,
            last_epoch=held_out.last_epoch,
            test_prior=test_prior,
            calibration=calibration,
            seed=seed,
            advance=progress.update,
        )
    if held_out.last_epoch is None:
        tuned.report["last_epoch_noted"] = last_epoch_losses(runs, held_out, ScoringRule())
    return tuned


def read_answers_out_of_fold(
    runs: Sequence[Path], scoring: str | Path | None, rule: ScoringRule
) -> pd.DataFrame | None:
    """The answers to held-out videos of the rule that `choose_scoring` took for these runs, an `out-of-fold` table:
    those that `multiattn tune` kept, or those of an untuned rule. None where neither is there, as in a bundle."""
    if rule.out_of_fold is None:
        return score_out_of_fold(*runs, rule=rule).videos if _can_be_tuned(runs) else None
    found = None if scoring is not None else find_scoring(runs)
    path = layout.tuned_held_out_file(found[0] if found is not None else Path(str(scoring)))
    return OUT_OF_FOLD.read(path) if path.is_file() else None


def _have_views(runs: Sequence[Path], tta: Tta) -> bool:
    """True where every fold has out-of-fold predictions with these views; says so where only some have."""
    folders = [folder for run in runs for folder in layout.fold_folders(run)]
    lacking = [folder for folder in folders if not (folder / layout.held_out_file(tta)).is_file()]
    if lacking and len(lacking) < len(folders):
        first = layout.experiment_folder(lacking[0])
        logger.warning(
            "--tta %s is not compared: %s has no %s. %s",
            tta, lacking[0], layout.held_out_file(tta), held_out_advice(first, tta),
        )  # fmt: skip
    return not lacking
