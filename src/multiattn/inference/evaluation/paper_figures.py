"""The paper's printed figures beside a test's own, and in what the test departs from the paper's protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from multiattn.ablations import CELEB, HQ, LQ, get_ablation
from multiattn.inference.ablation import name_data
from multiattn.inference.evaluation.answers import Answers, Split
from multiattn.inference.evaluation.measures import single_model_figures
from multiattn.tables import FAKE

TABLES = ("2", "4")
PAPER_METHODS = {"Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures"}
"""Of FF++ as the paper has it; FaceShifter and DFD came later."""
TRAINED_ON = ("ffpp",)


@dataclass(frozen=True)
class PaperRow:
    """A row of one of the paper's tables, as far as it is about one set of data."""

    table: str
    method: str
    accuracy: float
    """Per cent of frames; NaN where the table has none."""
    auc: float


@dataclass(frozen=True)
class PaperComparison:
    """A data set the paper has, or one compression of it."""

    data: str
    """`FF++ HQ`, `FF++ LQ` or `Celeb-DF`."""
    accuracy: float
    """Ours, in per cent of frames: each model by itself, then the mean over models."""
    auc: float
    rows: tuple[PaperRow, ...]
    departures: tuple[str, ...]
    """In what ours was measured otherwise; empty where there is nothing known."""


def compare_with_paper(
    answers: Answers, *, trained: Sequence[str], split: Split, unsplit: bool
) -> list[PaperComparison]:
    """The parts of a data set that the paper's Tables 2 and 4 have figures of; [] for any other data.

    Args:
        trained: names of the data sets the runs were trained on.
        split: what was evaluated.
        unsplit: whether the data set names no split, so that all of it was taken.
    """
    found = []
    for _, videos in answers.videos.groupby("compression", sort=True):
        data = name_data(videos)
        frames = answers.frames[answers.frames["video_id"].isin(set(videos["video_id"]))]
        if data not in (HQ, LQ, CELEB) or frames.empty:
            continue
        figures = single_model_figures(frames)
        num_models = frames["model"].nunique()
        departures = _departures(data, videos, num_models, trained=trained, split=split, unsplit=unsplit)
        found.append(
            PaperComparison(data, 100 * figures["accuracy"], 100 * figures["auc"], paper_rows(data), tuple(departures))
        )
    return found


def paper_rows(data: str) -> tuple[PaperRow, ...]:
    """What Tables 2 and 4 of arXiv:2103.02406 print for `FF++ HQ`, `FF++ LQ` or `Celeb-DF`."""
    rows = []
    for table in TABLES:
        for cell in get_ablation(table).cells:
            figures = {column.metric: value for column, value in cell.paper.items() if column.data == data}
            if figures:
                accuracy, auc = (figures.get(metric, float("nan")) for metric in ("accuracy", "auc"))
                rows.append(PaperRow(f"Table {table}", cell.label, accuracy, auc))
    return tuple(rows)


def _departures(
    data: str, videos: pd.DataFrame, num_models: int, *, trained: Sequence[str], split: Split, unsplit: bool
) -> list[str]:
    said = []
    if split != "test":
        said.append(f"measured on split {split}, the paper's figures are of the test split")
    elif unsplit:
        said.append("the table names no split, so all videos were taken instead of the official test split")
    if tuple(trained) != TRAINED_ON:
        names = ", ".join(trained) or "data nobody knows (imported)"
        said.append(f"trained on {names}, the paper's models on FF++")
    if num_models > 1:
        said.append(f"the mean over {num_models} models, each by itself; the paper's figure is of one model")
    methods = set(videos.loc[videos["label"] == FAKE, "method"])
    if data != CELEB and methods != PAPER_METHODS:
        said.append(f"fakes of {', '.join(sorted(methods)) or 'no method'}, the paper's of the four first methods")
    if without := int((videos["num_crops"] == 0).sum()):
        said.append(f"{without} videos without a face have no frames that could count")
    return said
