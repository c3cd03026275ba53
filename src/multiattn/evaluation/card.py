"""The model card of a run: what it was made of, how well it answers, what it has not seen. Every figure is computed."""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from multiattn.config import Experiment, to_json
from multiattn.config.settings import differences
from multiattn.datasets.sources import DataSource, find_source
from multiattn.evaluation.robustness_table import (
    COLUMNS,
    DISTORTED,
    MOST_LOST,
    cell_name,
    read_robustness,
    robustness_tables,
    summary_words,
)
from multiattn.evaluation.run import checkpoint_digests
from multiattn.experiments import EXPERIMENTS, get_experiment, shrink
from multiattn.inference.predictor import read_out_of_fold
from multiattn.inference.runs import TrainedModel, find_models, folds_table, with_tta
from multiattn.inference.scoring_file import ScoringFile, find_scoring, tune_runs
from multiattn.model.backbone import settle_input
from multiattn.runtime import layout
from multiattn.runtime.environment import package_version
from multiattn.runtime.files import file_digest, read_json
from multiattn.runtime.paths import names_only
from multiattn.runtime.table_files import read_history
from multiattn.runtime.tensor_files import read_metadata
from multiattn.runtime.text_tables import markdown_table, markdown_text
from multiattn.scoring.metrics import Interval, metric_intervals, video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.scoring.tuning import EXACT, describe_rule
from multiattn.tables import FAKE, REAL, VIDEOS
from multiattn.training.engine.run_folder import SETTINGS_FREE_TO_CHANGE

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
"""A table of `multiattn evaluate`, beside its predictions."""
NOT_RECORDED = "not recorded"
MEASURED = {
    "auc": "AUC",
    "log_loss": "log loss",
    "balanced_log_loss": "balanced",
    "balanced_accuracy": "balanced accuracy",
    "calibration_error": "calibration error",
}
"""Metric -> its column."""
USE = """\
Meant for research on the detection of manipulated faces, for competitions, and to choose videos that a person then
looks at. What the tables say holds for data like theirs.

Not meant as evidence about a person or a video by itself, for decisions without a person, to identify anybody, for
sound, for pictures without a face, or as proof that something is authentic: a video without a sign of what the network
knows may have been made in a way it does not know. The share of fakes decides what a positive answer means: where one
video in a hundred is a fake, most of those above a threshold with 5 % false alarms are real."""
OR_VIEWS = ", or other views of the crops (--tta)"


def model_card(
    run: Path,
    *,
    evaluations: Sequence[Path] = (),
    videos: Path | None = None,
    sources: Mapping[str, str] | None = None,
    robustness: Path | None = None,
) -> str:
    """The card of one experiment, or of one of its folds, as Markdown without any absolute path.

    Args:
        evaluations: folders of `multiattn evaluate`, of these very weights.
        videos: the `videos` table its data were chosen from, for their splits and what was left out.
        sources: data set in the tables -> the published one it is taken from.
        robustness: a folder of `multiattn robustness`, of these very weights.

    Raises:
        FileNotFoundError: no run, a fold without a checkpoint, or no such evaluation or table.
        ValueError: an evaluation of other weights, a source of a data set that the run has none of, or a file of the
            run that holds something else.
    """
    table = None if videos is None else VIDEOS.read(videos)
    models, sources = find_models(run), sources or {}
    name, first = layout.experiment_name(run), models[0]
    folds = first.folds()
    known = {} if folds.empty else _known_sources(folds, sources)
    if strange := sorted(set(sources) - set(known)):
        raise ValueError(f"--source {strange[0]}: expected a data set of the run ({', '.join(known)}), found none.")
    scoring = find_scoring([run])
    models = with_tta(models, "none" if scoring is None else scoring[1].rule.tta)  # as evaluations go by the rule
    sections = [
        (f"# Model card: {name}", _summary(models)),
        ("## Data", _data(models, folds, known, table)),
        ("## Training", _training(models)),
        ("## Out of fold", _out_of_fold(run, models, scoring[1] if scoring is not None else None)),
        ("## Other data", _evaluations(models, evaluations)),
        ("## Distorted crops", _robustness(models, robustness)),
        ("## Not seen", _not_seen(first, known)),
        ("## Use", USE),
        (layout.DATA_TERMS, _licences(known)),
    ]
    return "\n".join(f"{title}\n\n{text}\n" for title, text in sections if text)


def _summary(models: Sequence[TrainedModel]) -> str:
    experiment, config = models[0].experiment, models[0].experiment.model
    network = f"plain {config.backbone}" if config.network == "baseline" else (
        f"multi-attention network (arXiv:2103.02406) on {config.backbone}, {config.num_maps} maps"
    )  # fmt: skip
    start = "untrained weights" if not (config.pretrained or config.weights) else "timm's weights"
    if config.weights:
        start = f"the weights {PurePath(config.weights).name}"
    if experiment.start_from:
        start = f"the run {PurePath(experiment.start_from).name}"
    recipe = {name: value for name, value in to_json(models[0].recipe).items() if value not in ("", None)}
    return (
        f"{_count(len(models), 'network')} ({_folds(models)}): {network}, from {start}; face crops of "
        f"{experiment.data.image_size} px in, P(fake) of each out. Made by `multiattn card` "
        f"of version {package_version()}.\n\nCrops: {_listed(recipe)}."
    )


def _data(
    models: Sequence[TrainedModel],
    folds: pd.DataFrame,
    known: dict[str, DataSource | None],
    videos: pd.DataFrame | None,
) -> str:
    first = models[0]
    if folds.empty:
        return (
            "An imported checkpoint: which videos it was trained on is not known." if first.imported else NOT_RECORDED
        )
    lines = [
        f"- {name}: {source.title}; {source.terms}." if source is not None
        else f"- {name}: where it comes from is not known to the command."
        for name, source in known.items()
    ]  # fmt: skip
    table = folds.assign(dataset=_datasets(folds), part=folds["video_id"].map(_part), split="")
    only = np.where(table["label_source"] != "", "pseudo-labelled training", "training only")
    table["used"] = np.where(table["fold"] < 0, only, "fold " + table["fold"].astype(str))
    if videos is not None:
        of_table = videos[videos["dataset"].isin(known) & videos["label"].isin((REAL, FAKE))]
        used = of_table["video_id"].map(table.set_index("video_id")["used"]).fillna("not used")
        table = of_table[["video_id", "dataset", "part", "split", "label"]].assign(used=used)
    keys = ["dataset", "split", "part"] if videos is not None else ["dataset", "part"]
    rows = []
    for key, of_part in table.groupby(keys, sort=False):
        used = ", ".join(sorted(set(of_part["used"])))
        rows.append([*key, int((of_part["label"] == REAL).sum()), int((of_part["label"] == FAKE).sum()), used])
    rows.sort(key=lambda row: [(len(str(cell)), str(cell)) for cell in row[: len(keys)]])
    total = [int((folds["label"] == label).sum()) for label in (REAL, FAKE)]
    rows.append(["in the folds", *[""] * (len(keys) - 1), *total, _count(folds["fold"].nunique(), "fold")])
    digest = file_digest(folds_table(first.path))
    note = (
        f"{_count(len(folds), 'video')} in {_count(folds['group'].nunique(), 'group')} that never span folds. Trained: "
        f"{_folds(models)}, each on all other folds and validated on its own. SHA-256 of the list (folds.csv): "
        f"`{digest}`."
    )
    return "\n".join([*lines, "", markdown_table([*keys, "real", "fake", "validates"], rows, padded=True), "", note])


def _training(models: Sequence[TrainedModel]) -> str:
    first = models[0]
    environment = names_only(_read_object(first.path / layout.ENVIRONMENT_FILE))
    command = _command(environment.get("command") or [])
    given = _read_object(first.path / layout.INPUTS_FILE)
    commit, version = environment.get("commit", "unknown"), environment.get("version")
    code = f"multiattn {version}" if version else NOT_RECORDED
    precision = environment.get("precision", {}).get("name", NOT_RECORDED)
    libraries = environment.get("libraries", {})
    facts = {
        "command": f"`{shlex.join(command)}`" if command else NOT_RECORDED,
        "code": f"commit `{commit}`" if commit != "unknown" else code,
        "seed": first.experiment.seed,
        "processor": f"{environment.get('device', NOT_RECORDED)}, {precision}",
        "with": _listed({"Python": environment.get("python", NOT_RECORDED), **libraries}),
        "global batch": given.get("global_batch", NOT_RECORDED),
        "digest of the crops": f"`{given.get('crops', NOT_RECORDED)}`",
    }
    rows = [[name, value] for name, value in facts.items()]
    base, changed = _changes(first.experiment, command)
    settings = f"Settings as {base} has them."
    if changed:
        cells = [[name, str(names_only(ours)), str(names_only(theirs))] for name, (ours, theirs) in changed.items()]
        settings = (
            f"Settings that differ from {base}:\n\n{markdown_table(['setting', 'here', 'there'], cells, padded=True)}"
        )
    header = ["fold", "epochs", "chosen epoch", "candidate", "minutes", "familiar faces", "SHA-256 of the weights"]
    of_folds = markdown_table(header, [_fold_row(model) for model in models], padded=True)
    return f"{markdown_table(['', ''], rows)}\n\n{settings}\n\n{of_folds}"


def _read_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where there is none."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, as `multiattn train` writes it, found {type(values).__name__}.")
    return values


def _fold_row(model: TrainedModel) -> list[str]:
    notes = read_metadata(model.path / layout.BEST_WEIGHTS)
    epochs, minutes = NOT_RECORDED, NOT_RECORDED
    if (path := model.path / layout.EPOCHS_FILE).is_file():
        history = read_history(path, ("epoch", "seconds"))
        epochs, minutes = f"{history['epochs_done'].iloc[-1]:g}", f"{history['seconds'].sum() / 60:.1f}"
    familiar = "not measured"
    if (path := model.path / layout.DISTANCE_FILE).is_file():
        fitted = read_metadata(path)
        familiar = f"{fitted.get('training_crops')} training and {fitted.get('held_out_crops')} held-out crops"
    chosen = str(int(notes["epoch"]) + 1) if "epoch" in notes else NOT_RECORDED
    digest = f"`{file_digest(model.path / layout.BEST_WEIGHTS)}`"
    return [model.path.name, epochs, chosen, notes.get("candidate", NOT_RECORDED), minutes, familiar, digest]


def _command(words: Sequence[str]) -> list[str]:
    """The command without absolute paths, also those behind `--option=`."""
    shown = [f"{name}{equals}{names_only(value)}" if equals else name for name, equals, value in
             (word.partition("=") for word in words)]  # fmt: skip
    return ["multiattn", *shown[1:]] if words else []


def _changes(experiment: Experiment, command: Sequence[str]) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The experiment a run is compared with, in words, and the settings with another value."""
    named = command[2] if command[1:2] == ["train"] and len(command) > 2 else experiment.name
    names = (named, experiment.name, experiment.name.removesuffix("_tiny"))
    base = Experiment(name=experiment.name)
    words = "the paper's settings (an experiment that the package does not have)"
    if known := next((name for name in names if name in EXPERIMENTS), None):
        base, words = get_experiment(known), f"`{known}`"
        if "--tiny" in command or experiment.name.endswith("_tiny"):
            base, words = shrink(base), f"{words} with `--tiny`"
    base = replace(base, model=settle_input(base.model))
    changed = differences(to_json(experiment), to_json(base))
    return words, {name: of for name, of in changed.items() if name not in ("name", *SETTINGS_FREE_TO_CHANGE)}


def _out_of_fold(run: Path, models: Sequence[TrainedModel], scoring: ScoringFile | None) -> str:
    """Figures of held-out videos; where their predictions are not there, those that the scoring rule brings."""
    rule = scoring.rule if scoring is not None else ScoringRule()
    said = [f"Scoring rule: {describe_rule(rule)}." if scoring is not None else "Untuned: plain means."]
    if rule.held_out is not None:
        said.append(f"Answers in words: {rule.held_out.describe()}.")
    if not all((model.path / layout.HELD_OUT_FILE).is_file() for model in models):
        if rule.out_of_fold is not None:
            figures = {name: f"{value:.4f}" for name, value in rule.out_of_fold.items() if value is not None}
            said.insert(0, f"The predictions are not here; as the rule was tuned: {_listed(figures)}.")
        else:
            said.insert(0, "Not known: no out-of-fold predictions here.")
        return "\n\n".join(said)
    held_out = read_out_of_fold(run)
    videos = held_out.videos.sort_values("video_id", ignore_index=True)
    rows = {"constant 0.5": np.full(len(videos), 0.5)}
    for name, predictions in (("untuned", held_out.predictions), ("untuned, last epoch", held_out.last_epoch)):
        if predictions is not None:
            rows[name] = ScoringRule().score_videos(videos["video_id"], predictions)["probability"].to_numpy()
    if scoring is not None and len(scoring.tuned_on.get(layout.experiment_name(run), models)) != len(models):
        said.append("The rule was tuned on more folds than this card is of: its own figures are not shown.")
    elif scoring is not None:
        stated = (rule.out_of_fold or {}).get("test_prior")
        kept = {name: getattr(rule, name) for name in ("out_of_fold", "held_out", "per_frame")}
        for calibration, tta in product((None, rule.calibration.method), (None, rule.tta)):  # chosen, or asked for
            try:
                tuned = tune_runs([run], test_prior=stated, calibration=calibration, tta=tta)
            except (FileNotFoundError, ValueError):  # no such predictions, or too few videos, by now
                continue
            if replace(tuned.rule, **kept) == rule:  # an earlier version kept less
                rows["by the rule, held out of its tuning"] = tuned.videos[tuned.taken].to_numpy()
                break
        else:
            said.append("The rule was tuned by another version or on other predictions: its own figures are not shown.")
    labels, groups = videos["label"].to_numpy(), videos["group"].to_numpy()
    table = [[name, *_measured(labels, of, groups)] for name, of in rows.items()]
    note = (
        f"{_count(len(videos), 'held-out video')} ({int(labels.sum())} fake), each answered by the model that never "
        f"saw it; in brackets 95 % intervals over {_count(len(set(groups)), 'group')}. The epoch was chosen on these "
        "videos, but for the last one. A calibration error has no interval: of resamples it is only larger."
    )
    return "\n\n".join([markdown_table(["", *MEASURED.values()], table, padded=True), note, *said])


def _measured(labels: np.ndarray, answers: np.ndarray, groups: np.ndarray) -> list[str]:
    """Cells of `MEASURED`; empty where a figure needs both classes."""
    figures, intervals = (
        video_metrics(labels, answers, clip=EXACT),
        metric_intervals(labels, answers, groups, clip=EXACT),
    )
    return [_cell(getattr(figures, name), intervals.get(name)) for name in MEASURED]


def _cell(figure: float | None, interval: Interval | None) -> str:
    if figure is None or np.isnan(figure):
        return ""
    return f"{figure:.4f}" if interval is None else interval.beside(figure)


def _evaluations(models: Sequence[TrainedModel], folders: Sequence[Path]) -> str:
    """The video figures of `multiattn evaluate` on other data, part by part."""
    weights = set(checkpoint_digests(models).values())
    rows = []
    for folder in folders:
        basis, path = (folder / layout.PREDICTIONS_FILE).with_suffix(".json"), folder / METRICS_FILE
        if not basis.is_file() or not path.is_file():
            raise FileNotFoundError(f"{folder}: no {path.name} and {basis.name} here. Run `multiattn evaluate --out`.")
        if set(read_json(basis)["checkpoints"].values()) != weights:
            raise ValueError(
                f"{folder}: an evaluation of other weights{OR_VIEWS}. Run `multiattn evaluate` on this run again."
            )
        figures = pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(("figure", "low", "high"), ""))
        figures = figures[figures["level"] == "video"]
        for (dataset, by, value), part in figures.groupby(["dataset", "by", "value"], sort=False):
            cells = {row.metric: _cell(row.figure, Interval.of(row.low, row.high)) for row in part.itertuples()}
            counts = part[["num_real", "num_fake"]].iloc[0]
            rows.append([dataset, f"{by} {value}".strip(), *counts, *(cells.get(name, "") for name in MEASURED)])
    if not rows:
        return ""
    return markdown_table(["data set", "part", "real", "fake", *MEASURED.values()], rows, padded=True)


def _robustness(models: Sequence[TrainedModel], folder: Path | None) -> str:
    """The cells of `multiattn robustness`, and which of them cost more AUC than a card passes over."""
    if folder is None:
        return ""
    cells = read_robustness(folder)[list(COLUMNS)]  # without those of runs beside
    basis = (folder / layout.ROBUSTNESS_FILE).with_suffix(".json")
    if not basis.is_file():
        raise FileNotFoundError(f"{folder}: no {basis.name} here. Run `multiattn robustness --out` again.")
    if read_json(basis)["checkpoints"] != checkpoint_digests(models):
        raise ValueError(f"{folder}: of other weights{OR_VIEWS}. Run `multiattn robustness` on this run again.")
    worse = cells[cells["kind"].isin(DISTORTED) & (cells["auc_change"] < -MOST_LOST)]
    lost = ", ".join(map(cell_name, worse.to_dict("records")))
    note = f"More than {MOST_LOST} of AUC is lost by: {lost}." if lost else f"None costs more than {MOST_LOST} of AUC."
    return "\n".join([*(table.markdown() for table in robustness_tables(cells)), f"{note}\n", summary_words(cells)])


def _not_seen(first: TrainedModel, known: dict[str, DataSource | None]) -> str:
    sources = [source for source in known.values() if source is not None]
    lines = ["Sound, and whatever lies outside the face crop."]
    if newest := max((source.year for source in sources), default=0):
        lines.append(f"Fakes made since {newest + 1}: the newest training data are of {newest}.")
    if sources:
        people = dict.fromkeys(source.people for source in sources)
        lines.append(f"People: {'; '.join(people)}. So there is no figure of fairness between groups of people.")
    if len(sources) < len(known) or not known:
        lines.append("Of data whose source is not known to the command it is not known what they lack.")
    if first.experiment.name.startswith("demo") or first.experiment.name.endswith("_tiny"):
        lines.append("Real faces: this run is to try the program out.")
    return "\n".join(f"- {line}" for line in lines)


def _licences(known: dict[str, DataSource | None]) -> str:
    lines = [f"- {markdown_text(name)}: {source.terms}" for name, source in known.items() if source is not None]
    unknown = [name for name, source in known.items() if source is None]
    lines += [f"- {', '.join(unknown)}: not known to the command"] if unknown or not known else []
    return "\n".join([*lines, "", "The project's licence covers its code, not the data, and claims no rights in them."])


def _known_sources(folds: pd.DataFrame, names: Mapping[str, str]) -> dict[str, DataSource | None]:
    """Data set -> its source, of all in a `folds` table."""
    of_datasets = dict(iter(folds["video_id"].groupby(_datasets(folds))))
    return {name: find_source(names.get(name, name), ids) for name, ids in of_datasets.items()}


def _datasets(folds: pd.DataFrame) -> pd.Series:
    return folds["video_id"].str.partition("/")[0]


def _part(video_id: str) -> str:
    """The first folder below the data set, which is the part where it has parts."""
    below = video_id.split("/")[1:-1]
    return below[0] if below else ""


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _folds(models: Sequence[TrainedModel]) -> str:
    return ", ".join(model.path.name for model in models)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
