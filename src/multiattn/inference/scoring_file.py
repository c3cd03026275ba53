"""`scoring.json`: where the tuned rule lies, and which rule a command uses.

The file holds `rule`, which is read back, and `report`, which is for people.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiattn.runtime import read_json, write_json
from multiattn.scoring.rule import ScoringRule

logger = logging.getLogger(__name__)

SCORING_FILE = "scoring.json"
UNTUNED = "none"
"""As `--scoring`: the rule that was never tuned."""


def default_scoring_path(runs: Sequence[Path]) -> Path:
    """Where `multiattn tune` writes without `--out`: in the folder of the first experiment, also when given a fold."""
    return _experiment_folder(runs[0]) / SCORING_FILE


def read_scoring(path: Path) -> ScoringRule:
    """Read a `scoring.json`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a scoring rule.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no scoring rule here. Make it with `multiattn tune`.")
    values = read_json(path)
    try:
        return ScoringRule.from_dict(values["rule"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}. Make it again with `multiattn tune`.") from error


def write_scoring(rule: ScoringRule, path: Path, report: dict[str, Any]) -> None:
    """Write a `scoring.json`.

    Args:
        report: what tuning compared, for people.
    """
    write_json(path, {"rule": rule.as_dict(), "report": report})


def choose_scoring(runs: Sequence[Path], scoring: str | Path | None) -> ScoringRule:
    """The rule a command uses.

    Args:
        runs: folders of experiments, or of folds, that make the predictions.
        scoring: a file; `none` for the untuned rule; None for the file of the first run, where it is there and was
            tuned for exactly these experiments, else the untuned rule.

    Raises:
        FileNotFoundError: a named file is not there.
        ValueError: a named file was tuned for other experiments, or is none.
    """
    if str(scoring) == UNTUNED:
        return ScoringRule()
    names = sorted({experiment_name(path) for path in runs})
    path = Path(scoring) if scoring is not None else default_scoring_path(runs)
    if scoring is None and not path.is_file():
        return ScoringRule()
    rule = read_scoring(path)
    if sorted(rule.experiments) in ([], names):
        logger.info("scoring rule of %s", path)
        return rule
    message = f"{path}: tuned for {', '.join(rule.experiments)}, not for {', '.join(names)}"
    if scoring is not None:
        raise ValueError(f"{message}. Run `multiattn tune --runs` with these runs, or pass --scoring {UNTUNED}.")
    logger.warning("%s: not used.", message)
    return ScoringRule()


def experiment_name(run: Path) -> str:
    """The name of the experiment that a folder, its own or that of one of its folds, belongs to."""
    return _experiment_folder(run).name


def _experiment_folder(run: Path) -> Path:
    run = Path(run)
    return run.parent if (run / "experiment.json").is_file() else run
