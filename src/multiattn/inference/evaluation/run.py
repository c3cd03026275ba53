"""Runs and labelled faces -> everything a report of a test says; the leak checks come before any work."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from multiattn.inference.evaluation.answers import (
    Answers,
    Extracted,
    Selection,
    Split,
    answer_videos,
    find_faces,
    select_videos,
)
from multiattn.inference.evaluation.choice import Choice, Criterion, choose_run
from multiattn.inference.evaluation.kept_predictions import predict_kept
from multiattn.inference.evaluation.measures import Figures, measure
from multiattn.inference.evaluation.paper_figures import compare_with_paper
from multiattn.inference.evaluation.tables import TextTable, dataset_tables, selection_notes, summary_table
from multiattn.inference.evaluation.unseen import (
    held_out_pairs,
    require_unseen,
    seen_originals,
    trained_datasets,
)
from multiattn.inference.runs import TrainedModel, find_models
from multiattn.inference.scoring_file import choose_scoring, experiment_name
from multiattn.runtime.devices import pick_device
from multiattn.tables import VIDEOS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """What is evaluated on what."""

    runs: tuple[Path, ...]
    """Experiments' folders, or single folds of them; their crops are made alike."""
    videos: Path
    faces: tuple[Path, ...]
    out: Path
    """Predictions are kept here."""
    split: Split = "test"
    scoring: str | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Evaluation:
    """Everything measured."""

    title: str
    selection: Selection
    extracted: Extracted
    answers: list[Answers]
    metrics: pd.DataFrame
    """Of `measures.measure`, all data sets."""
    summary: TextTable
    tables: dict[str, list[TextTable]]
    """Data set -> its tables."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def video_predictions(self) -> pd.DataFrame:
        """A `video_predictions` table of all data sets."""
        return pd.concat([one.videos for one in self.answers], ignore_index=True)

    def markdown(self) -> str:
        """The report without its pictures."""
        lines = [f"# {self.title}", ""]
        lines += [*(f"- **{warning}**" for warning in self.warnings), *(f"- {note}" for note in self.notes), ""]
        parts = ["\n".join(lines), self.summary.markdown()]
        for name, tables in self.tables.items():
            parts += [f"## {name}\n", *(table.markdown() for table in tables)]
        return "\n".join(parts)


def evaluate_runs(inputs: EvaluationInputs) -> Evaluation:
    """Measure the blend of all runs.

    Raises:
        FileNotFoundError: no runs, table or faces folder.
        ValueError: a leak, videos without faces extracted, or nothing to evaluate.
    """
    table = VIDEOS.read(inputs.videos)
    models = find_models(*inputs.runs)
    selection = select_videos(table, inputs.split)
    rule = choose_scoring(inputs.runs, inputs.scoring)
    allowed = _check_leaks(models, selection, table)
    selection, extracted = find_faces(selection, inputs.faces)
    predictions = _predict(inputs, models, extracted, allowed)
    return _evaluation(models, selection, extracted, answer_videos(selection, extracted, predictions, rule))


def choose_among(inputs: EvaluationInputs, criterion: Criterion) -> tuple[Choice, Evaluation]:
    """Measure every run by itself, each with its own scoring rule; the evaluation is that of the best one.

    Arguments and errors as `evaluate_runs` and `choose_run`.
    """
    table = VIDEOS.read(inputs.videos)
    models = find_models(*inputs.runs)
    selection = select_videos(table, inputs.split)
    by_run = {experiment_name(run): find_models(run) for run in inputs.runs}
    allowed: dict[str, set[str]] = {}
    rules = {}
    for run in inputs.runs:
        allowed |= _check_leaks(by_run[experiment_name(run)], selection, table)
        rules[experiment_name(run)] = choose_scoring([run], inputs.scoring)
    selection, extracted = find_faces(selection, inputs.faces)
    predictions = _predict(inputs, models, extracted, allowed)
    answers, measured = {}, {}
    for name, members in by_run.items():
        mine = predictions[predictions["model"].isin({model.name for model in members})]
        answers[name] = answer_videos(selection, extracted, mine, rules[name])
        measured[name] = pd.concat([measure(one) for one in answers[name]], ignore_index=True)
    choice = choose_run(measured, criterion)
    return choice, _evaluation(by_run[choice.best], selection, extracted, answers[choice.best])


def _check_leaks(models: Sequence[TrainedModel], selection: Selection, table: pd.DataFrame) -> dict[str, set[str]]:
    """Model -> the selected videos it may judge: all for a test, which must be new to every run; to choose, those it
    was not trained on."""
    videos = selection.videos
    if selection.split == "test":
        require_unseen(models, videos, table)
        return {model.name: set(videos["video_id"]) for model in models}
    require_unseen(models, videos.head(0), table)
    return held_out_pairs(models, videos)


def _predict(
    inputs: EvaluationInputs, models: list[TrainedModel], extracted: Extracted, allowed: dict[str, set[str]]
) -> pd.DataFrame:
    device = pick_device(inputs.device)
    folders = extracted.by_folder()
    logger.info(
        "%d models, %d crops of %d videos, on %s",
        len(models), len(extracted.faces), len(extracted.folder_of), device,
    )  # fmt: skip
    predictions = predict_kept(models, folders, inputs.out, device=device, precision=inputs.precision)
    pairs = [predictions[(predictions["model"] == model)] for model in allowed]
    kept = [rows[rows["video_id"].isin(videos)] for rows, videos in zip(pairs, allowed.values(), strict=True)]
    return pd.concat(kept, ignore_index=True)


def _evaluation(
    models: Sequence[TrainedModel], selection: Selection, extracted: Extracted, answers: list[Answers]
) -> Evaluation:
    trained = trained_datasets(models)
    metrics = pd.concat([measure(one) for one in answers], ignore_index=True)
    figures = Figures(metrics)
    tables = {}
    for one in answers:
        paper = compare_with_paper(one, trained=trained, split=selection.split, unsplit=one.name in selection.unsplit)
        tables[one.name] = dataset_tables(one, figures, paper)
    runs = sorted({model.name.split("/", 1)[0] for model in models})
    notes = [
        f"{len(models)} models of {', '.join(runs)}, trained on {', '.join(trained) or 'data nobody knows'}.",
        *selection_notes(selection),
    ]
    return Evaluation(
        title=f"Evaluation of {', '.join(runs)}",
        selection=selection,
        extracted=extracted,
        answers=answers,
        metrics=metrics,
        summary=summary_table(answers, figures),
        tables=tables,
        notes=tuple(notes),
        warnings=tuple(_warnings(models, selection, trained)),
    )


def _warnings(models: Sequence[TrainedModel], selection: Selection, trained: Sequence[str]) -> list[str]:
    said = []
    if imported := sorted(model.name for model in models if model.imported):
        said.append(f"What {', '.join(imported)} was trained on is not known: these videos may be among it.")
    if selection.split == "val":
        said.append(
            "Validation figures: videos in a run's folds are judged by the models that held them out, whose best "
            "checkpoints were chosen on them. They serve to choose among runs, not as a result."
        )
    if selection.split == "test" and (number := seen_originals(models, selection.videos)):
        said.append(f"{number} fakes are made from videos in the runs' folds: new clips of known scenes.")
    if both := sorted(set(trained) & set(selection.datasets)):
        said.append(f"Trained on other videos of {', '.join(both)}: for it this is no cross-data-set figure.")
    return said
