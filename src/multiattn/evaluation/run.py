"""Runs and labelled faces to all that a report of a test says; leaks are found before any work.

Frame predictions are kept in the report's folder, written after each model, and beside them, in
frame_predictions.json, their basis: SHA-256 of every checkpoint and of the faces, precision and device.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from multiattn.config.choices import Criterion, Tta
from multiattn.evaluation.measures import (
    ALL,
    Answers,
    Figures,
    TextTable,
    answer_videos,
    compare_with_paper,
    dataset_tables,
    measure,
    outside_note,
    selection_notes,
    summary_table,
)
from multiattn.evaluation.selection import (
    Extracted,
    Selection,
    Split,
    find_faces,
    held_out_pairs,
    require_unseen,
    seen_originals,
    select_videos,
    trained_datasets,
)
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import TrainedModel, find_models, with_tta
from multiattn.inference.scoring_file import choose_scoring
from multiattn.model.precision import known_precision
from multiattn.runtime import layout
from multiattn.runtime.devices import as_devices, device_names, pick_devices
from multiattn.runtime.files import exclusive_folder, file_digest, read_json, write_json
from multiattn.runtime.text_tables import counted, markdown_text
from multiattn.tables import FRAME_PREDICTIONS, VIDEOS, left_out_lines
from multiattn.video.crops.images import names_digest

logger = logging.getLogger(__name__)

CHOICE_COLUMNS = ("log_loss", "balanced_log_loss", "auc")


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """Runs, and the labelled videos they are evaluated on."""

    runs: tuple[Path, ...]
    """Experiments' folders, or single folds of them; their crops are made alike."""
    videos: Path
    faces: tuple[Path, ...]
    out: Path
    """Predictions are kept here."""
    split: Split = "test"
    scoring: str | None = None
    tta: Tta | None = None
    device: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Evaluation:
    title: str
    selection: Selection
    extracted: Extracted
    answers: list[Answers]
    metrics: pd.DataFrame
    """Figures of all data sets, as `measures.measure` has them."""
    summary: TextTable
    tables: dict[str, list[TextTable]]
    """Data set -> its tables."""
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    def video_predictions(self) -> pd.DataFrame:
        """A `video_predictions` table of all data sets."""
        return pd.concat([one.videos for one in self.answers], ignore_index=True)

    def markdown(self) -> str:
        lines = [f"# {markdown_text(self.title)}", ""]
        lines += [f"- **{markdown_text(warning)}**" for warning in self.warnings]
        lines += [*(f"- {markdown_text(note)}" for note in self.notes), ""]
        parts = ["\n".join(lines), self.summary.markdown()]
        for name, tables in self.tables.items():
            parts += [f"## {markdown_text(name)}\n", *(table.markdown() for table in tables)]
        return "\n".join(parts)


@dataclass(frozen=True)
class Choice:
    """The best of several runs."""

    best: str
    table: pd.DataFrame
    """run, log_loss, balanced_log_loss, auc (means over data sets, NaN where one class is missing), num_datasets; the
    best first."""
    criterion: Criterion

    def describe(self) -> str:
        words = self.table.to_string(index=False, float_format="%.4f")
        return f"{words}\nchosen by {self.criterion} of videos: {self.best}"


def evaluate_runs(inputs: EvaluationInputs, *, choose: Criterion | None = None) -> tuple[Evaluation, Choice | None]:
    """Measure the blend of all runs; with `choose` every run by itself, each with its own scoring rule: the evaluation
    of the best run then, and the choice.

    Raises:
        FileNotFoundError: no runs, table or faces folder.
        ValueError: a leak, videos without faces extracted, or nothing to evaluate; as `choose_run`.
    """
    table = VIDEOS.read(inputs.videos)
    find_models(*inputs.runs)  # refuses runs of different crops, or of one name
    selection = select_videos(table, inputs.split)
    blends = [inputs.runs] if choose is None else [(run,) for run in inputs.runs]
    rules = [choose_scoring(runs, inputs.scoring, inputs.tta) for runs in blends]
    members = [with_tta(find_models(*runs), rule.tta) for runs, rule in zip(blends, rules, strict=True)]
    allowed: dict[str, set[str]] = {}
    for of_blend in members:
        allowed |= check_leaks(of_blend, selection, table)
    selection, extracted = find_faces(selection, inputs.faces)
    predictions = _predict(inputs, [model for of in members for model in of], extracted, allowed)
    answers = []
    for of_blend, rule in zip(members, rules, strict=True):
        mine = predictions[predictions["model"].isin({model.name for model in of_blend})]
        answers.append(answer_videos(selection, extracted, mine, rule))
    best, choice = 0, None
    if choose is not None:
        names = [layout.experiment_name(run) for run in inputs.runs]
        measured = [pd.concat([measure(one) for one in of_run], ignore_index=True) for of_run in answers]
        choice = choose_run(dict(zip(names, measured, strict=True)), choose)
        best = names.index(choice.best)
    evaluation = _evaluation(members[best], selection, extracted, answers[best])
    left_out = left_out_lines(table, inputs.videos)
    return replace(evaluation, warnings=(*evaluation.warnings, *left_out)), choice


def check_leaks(models: Sequence[TrainedModel], selection: Selection, table: pd.DataFrame) -> dict[str, set[str]]:
    """Model -> the selected videos it may predict: all for a test, which must be new to every run; to choose, those it
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
    devices = pick_devices(inputs.device)
    crops, videos = len(extracted.faces), len(extracted.statuses)
    found = counted(len(models), "model"), counted(crops, "crop"), counted(videos, "video")
    logger.info("%s, %s of %s, on %s", *found, device_names(devices))
    path = inputs.out / layout.PREDICTIONS_FILE
    predictions = predict_kept(models, extracted.by_folder, path, device=devices, precision=inputs.precision)
    by_model = predictions.groupby("model")
    kept = [rows[rows["video_id"].isin(allowed[model])] for model, rows in by_model if model in allowed]
    return pd.concat([predictions.head(0), *kept], ignore_index=True)


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
    runs = ", ".join(sorted({model.name.split("/", 1)[0] for model in models}))
    first = f"{counted(len(models), 'model')} of {runs}, trained on {', '.join(trained) or 'data nobody knows'}."
    if models[0].tta != "none":
        first += f" Logits are means over views of each crop ({models[0].tta})."
    return Evaluation(
        title=f"Evaluation of {runs}",
        selection=selection,
        extracted=extracted,
        answers=answers,
        metrics=metrics,
        summary=summary_table(answers, figures),
        tables=tables,
        notes=(first, *selection_notes(selection), *map(outside_note, answers)),
        warnings=tuple(_warnings(models, selection, trained)),
    )


def _warnings(models: Sequence[TrainedModel], selection: Selection, trained: Sequence[str]) -> list[str]:
    said = []
    if imported := sorted(model.name for model in models if model.imported):
        said.append(f"What {', '.join(imported)} was trained on is not known: these videos may be among it.")
    if selection.split == "val":
        said.append(
            "Validation figures: videos in a run's folds are predicted by the models that held them out, whose best "
            "checkpoints were chosen on them. They serve to choose among runs, not as a result."
        )
    if selection.split == "test" and (number := seen_originals(models, selection.videos)):
        said.append(
            f"{counted(number, 'fake is', 'fakes are')} made from videos in the runs' folds: new clips of known scenes."
        )
    if both := sorted(set(trained) & set(selection.datasets)):
        said.append(f"Trained on other videos of {', '.join(both)}: for it this is no cross-data-set figure.")
    return said


def choose_run(measured: dict[str, pd.DataFrame], criterion: Criterion) -> Choice:
    """The run with the lowest log loss or the highest AUC of videos, as a mean over data sets; equals by name.

    `measured` is run -> its table of `measures.measure`, all of the same data sets.

    Raises:
        ValueError: AUC where a data set has one class only.
    """
    rows = []
    for run, figures in measured.items():
        of_videos = figures[(figures["by"] == ALL) & (figures["level"] == "video")]
        of = {name: of_videos.loc[of_videos["metric"] == name, "figure"] for name in CHOICE_COLUMNS}
        means = {name: figures.mean(skipna=False) for name, figures in of.items()}
        rows.append({"run": run, **means, "num_datasets": len(of["log_loss"])})
    table = pd.DataFrame(rows)
    if table[criterion].isna().any():
        raise ValueError(f"--choose {criterion}: a data set has one class only. Choose by log_loss.")
    order = table.sort_values([criterion, "run"], ascending=[criterion == "log_loss", True], ignore_index=True)
    return Choice(order["run"].iloc[0], order, criterion)


def require_choosable(runs: Sequence[Path], split: str, criterion: Criterion) -> None:
    """Refuse a choice on a test split, or among fewer than two experiments."""
    if split != "val":
        raise ValueError(
            f"--choose {criterion} --split {split}: a test split never selects anything: what was chosen on it seems "
            "better than it is. Choose with --split val, then evaluate the chosen run on the test split."
        )
    names = sorted({layout.experiment_name(run) for run in runs})
    if len(names) < max(2, len(runs)):
        raise ValueError(
            f"--choose {criterion}: expected two experiments or more to choose among, each once, found "
            f"{', '.join(names)} in {len(runs)} --runs."
        )


def predict_kept(
    models: Sequence[TrainedModel],
    folders: dict[Path, list[str]],
    path: Path,
    *,
    device: torch.device | Sequence[torch.device],
    precision: str,
    distortion: str = "",
    keep_others: bool = False,
    **how: Any,
) -> pd.DataFrame:
    """The predictions of some videos, faces folder -> video_ids there, none in two of them; taken from the
    `frame_predictions` table at `path`, with their basis beside it, as far as they are those asked for.

    Args:
        distortion: what happens to the crops before, in words; part of the basis.
        keep_others: leave predictions of other models in the table; else it holds those asked for alone.
        how: further arguments of `predict_faces`; with `loaded` all models are predicted before any is written.

    Raises:
        ValueError: crops that were not made the way a model's were, or another process holds the folder.
    """
    first = as_devices(device)[0]
    known = known_precision(precision, first)
    basis = {"faces": faces_digest(folders), "precision": known, "device": first.type}
    basis |= {"distortion": distortion} if distortion else {}
    checkpoints = checkpoint_digests(models)
    with exclusive_folder(path.parent):  # of two at once, the table of one would stand beside the basis of the other
        kept, kept_checkpoints = _read_kept(path, basis)
        others = kept[~kept["model"].isin(checkpoints)] if keep_others else kept.head(0)
        digests = {name: kept_checkpoints[name] for name in others["model"].unique()}
        same = {name for name, digest in checkpoints.items() if kept_checkpoints.get(name) == digest}
        if same:
            logger.info("%s: predictions of %d of %s are kept", path, len(same), counted(len(models), "model"))
        tables = [kept[kept["model"].isin(same)]]
        missing = [model for model in models if model.name not in same]
        for together in [missing] if missing and how.get("loaded") is not None else [[model] for model in missing]:
            for folder, videos in folders.items():
                how_made = {"device": device, "precision": precision, "video_ids": videos, **how}
                tables.append(predict_faces(together, folder, **how_made))
            same |= {model.name for model in together}
            done = digests | {name: digest for name, digest in checkpoints.items() if name in same}
            _write(pd.concat([others, *tables], ignore_index=True), path, {**basis, "checkpoints": done})
        return pd.concat(tables, ignore_index=True)


def checkpoint_digests(models: Sequence[TrainedModel]) -> dict[str, str]:
    """Model -> what its predictions depend on: SHA-256 of its weights and, where it has one, of its distance, and its
    views of each crop."""
    digests = {}
    for model in models:
        files = [model.path / name for name in (layout.BEST_WEIGHTS, layout.DISTANCE_FILE)]
        parts = [file_digest(file) for file in files if file.is_file()] + [model.tta] * (model.tta != "none")
        digests[model.name] = " ".join(parts)
    return digests


def faces_digest(folders: dict[Path, list[str]]) -> str:
    """SHA-256, in hex, of which crops are predicted: recipes, tables of faces and video_ids, in whatever order."""
    parts = []
    for folder, videos in folders.items():
        files = [file_digest(folder / name) for name in (layout.RECIPE_FILE, layout.FACES_FILE)]
        parts.append("".join([*files, names_digest(sorted(videos))]))
    return names_digest(sorted(parts))


def _read_kept(path: Path, basis: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Predictions kept of these faces, and digests of their checkpoints; empty where the basis is another."""
    facts_path = path.with_suffix(".json")
    if not path.is_file() or not facts_path.is_file():
        return FRAME_PREDICTIONS.empty(), {}
    facts = read_json(facts_path)
    checkpoints = facts.pop("checkpoints", {})
    if basis["precision"] == "auto":  # open until a network is tried: predictions of either precision serve
        basis = {**basis, "precision": facts.get("precision")}
    if facts != basis:
        logger.info("%s: of other faces, videos or precision, so everything is predicted anew", path)
        return FRAME_PREDICTIONS.empty(), {}
    return FRAME_PREDICTIONS.read(path, allow_empty=True), checkpoints


def _write(predictions: pd.DataFrame, path: Path, facts: dict[str, Any]) -> None:
    # Between the two writes a kill must not leave facts that promise more than the table holds.
    path.with_suffix(".json").unlink(missing_ok=True)
    FRAME_PREDICTIONS.write(predictions, path)
    write_json(path.with_suffix(".json"), facts)
