"""A test's figures as tables of words, for Markdown and for a page alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from multiattn.inference.evaluation.answers import Answers, Selection
from multiattn.inference.evaluation.measures import ALL, SINGLE, Figures
from multiattn.inference.evaluation.paper_figures import PaperComparison

NONE = "none"
"""Stands where a metric needs both classes and one is missing."""
VIDEO_COLUMNS = {
    "log loss": ("video", "log_loss"),
    "balanced": ("video", "balanced_log_loss"),
    "AUC": ("video", "auc"),
    "AP": ("video", "average_precision"),
    "EER": ("video", "eer"),
    "accuracy": ("video", "accuracy"),
    "Brier": ("video", "brier"),
    "ECE": ("video", "calibration_error"),
}
FRAME_COLUMNS = {
    "frame log loss": ("frame", "log_loss"),
    "frame AUC": ("frame", "auc"),
    "frame accuracy": ("frame", "accuracy"),
    "single models' frame AUC": (SINGLE, "auc"),
    "single models' frame accuracy": (SINGLE, "accuracy"),
}
COVERAGE_COLUMNS = {
    "videos": "n_videos",
    "no face": "n_no_face",
    "unreadable": "n_unreadable",
    "frames": "n_frames",
    "crops": "n_crops",
}


@dataclass(frozen=True)
class TextTable:
    """A table of finished words."""

    title: str
    rows: pd.DataFrame
    """Text in every cell; the first column names the row."""
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Title, table, notes."""
        head = [str(name) for name in self.rows]
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(map(str, row))} |" for row in self.rows.itertuples(index=False)]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"### {self.title}", "", *lines, *notes]) + "\n"


def dataset_tables(answers: Answers, figures: Figures, paper: Sequence[PaperComparison]) -> list[TextTable]:
    """Videos, frames, coverage, and the paper's tables where they apply."""
    places = figures.places(answers.name)

    def rows(columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
        table = [
            {
                "part": _part(by, value),
                **{name: _figure(figures.of(answers.name, by, value, *column)) for name, column in columns.items()},
            }
            for by, value in places
        ]
        return pd.DataFrame(table)

    coverage = rows({name: ("coverage", metric) for name, metric in COVERAGE_COLUMNS.items()})
    coverage = coverage.map(lambda text: text.removesuffix(".0000"))
    models = len(answers.models)
    notes = [
        f"By the scoring rule: {_rule(answers)}. Log loss is natural, probabilities clipped to "
        f"[{answers.rule.clip:g}, {1 - answers.rule.clip:g}].",
        "In brackets the 95 % interval of the bootstrap over originals with their fakes.",
        f"Videos without a face and unreadable ones count with the prior {answers.rule.prior:g}.",
        "A method's row holds its fakes and all real videos; faces are the tracks that were judged.",
    ]
    frame_notes = [f"Every crop once, by the mean of {models} models; single models: each by itself, then their mean."]
    return [
        TextTable("Videos", rows(VIDEO_COLUMNS), tuple(notes)),
        TextTable("Frames", rows(FRAME_COLUMNS), tuple(frame_notes)),
        TextTable("Coverage", coverage),
        *(paper_table(comparison) for comparison in paper),
    ]


def paper_table(comparison: PaperComparison) -> TextTable:
    """Our frame figures beside what the paper prints for the same data."""
    lines = [("measured here", "", comparison.accuracy, comparison.auc)]
    lines += [(row.method, row.table, row.accuracy, row.auc) for row in comparison.rows]
    table = pd.DataFrame(
        [
            {
                "method": method,
                "where": where,
                "frame ACC %": "" if np.isnan(accuracy) else f"{accuracy:.2f}",
                "frame AUC %": "" if np.isnan(auc) else f"{auc:.2f}",
            }
            for method, where, accuracy, auc in lines
        ]
    )
    departures = [f"Not the paper's protocol: {words}." for words in comparison.departures]
    return TextTable(f"{comparison.data}, beside arXiv:2103.02406", table, tuple(departures))


def summary_table(answers: Sequence[Answers], figures: Figures) -> TextTable:
    """One row a data set."""
    rows = []
    for one in answers:
        of = {
            name: figures.of(one.name, ALL, "", *column)
            for name, column in {**VIDEO_COLUMNS, **FRAME_COLUMNS}.items()
            if name in ("log loss", "AUC", "accuracy", "frame AUC", "frame accuracy")
        }
        cells = {name: _figure(found) for name, found in of.items()}
        faceless = int((one.videos["num_crops"] == 0).sum())
        rows.append({"data set": one.name, "videos": str(len(one.videos)), "without a face": str(faceless), **cells})
    return TextTable("Data sets", pd.DataFrame(rows))


def selection_notes(selection: Selection) -> list[str]:
    """What a reader must know of which videos were taken."""
    notes = [f"Split {selection.split}."]
    if selection.unsplit:
        notes.append(f"Without any split in the table, so all videos were taken: {', '.join(selection.unsplit)}.")
    notes += [f"Left out: {name}: {why}." for name, why in selection.left_out.items()]
    notes += [f"{name}: {count} videos without a label do not count." for name, count in selection.unlabelled.items()]
    return notes


def _part(by: str, value: str) -> str:
    return by if by == ALL else f"{by} {value}"


def _figure(found: tuple[float, float, float]) -> str:
    figure, low, high = found
    if np.isnan(figure):
        return NONE
    return f"{figure:.4f}" if np.isnan(low) else f"{figure:.4f} [{low:.4f}, {high:.4f}]"


def _rule(answers: Answers) -> str:
    rule = answers.rule
    tuned = f"tuned for {', '.join(rule.experiments)}" if rule.experiments else "untuned"
    return f"{tuned}, frames {rule.aggregator.frames}, tracks {rule.aggregator.tracks}"
