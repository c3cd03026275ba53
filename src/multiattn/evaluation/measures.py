"""Answers to the videos of a test, every figure of them, and the tables of a report: the paper's figures beside ours.

Three levels: `video`, the scoring rule's answers; `frame`, single crops by the mean of the models; `frame of single
models`, each model's crops by itself and then the mean over models, which is what papers print. Figures are measured
per data set, method, compression and number of faces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from multiattn.evaluation.ablations import CELEB, HQ, LQ, get_ablation, name_data
from multiattn.evaluation.selection import Extracted, Selection, Split
from multiattn.runtime.text_tables import counted, markdown_table, markdown_text
from multiattn.scoring.distances import CROP, OUTSIDE, Outside, crop_distances
from multiattn.scoring.metrics import MIN_GROUPS, NO_INTERVAL, Interval, metric_intervals, video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FAKE, REAL

ALL = "all videos"
SINGLE = "frame of single models"
COLUMNS = ("dataset", "by", "value", "level", "metric", "figure", "low", "high", "num_real", "num_fake")
MOST_FACES = 3
"""Videos with so many tracks or more are one group."""
FRAME_CLIP = 1e-6
NOT_MEASURED = (np.nan, np.nan, np.nan)
TABLES = ("2", "4")
PAPER_METHODS = {"Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures"}
"""Methods of FF++ as the paper has it; FaceShifter and DFD came later."""
TRAINED_ON = ("ffpp",)
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
    "frame balanced": ("frame", "balanced_log_loss"),
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
class Answers:
    """Answers to the videos of one data set."""

    name: str
    videos: pd.DataFrame
    """Columns of `videos`, and: group (what the bootstrap draws as a whole), status, message, num_frames, num_tracks,
    probability (of the scoring rule; its prior where there is no prediction), num_crops."""
    frames: pd.DataFrame
    """Every crop of every model: model, video_id, frame_index, track, probability, distance, distance_reason, label."""
    rule: ScoringRule

    def blended_frames(self) -> pd.DataFrame:
        """One row a crop: video_id, frame_index, track, label and the mean probability over the models that saw it."""
        key = ["video_id", "frame_index", "track"]
        return self.frames.groupby(key, as_index=False).agg(
            label=("label", "first"), probability=("probability", "mean")
        )


def outside_note(answers: Answers) -> str:
    """A line that says how many crops of a data set lie outside the faces of the training, and the AUC of crops on
    either side: where it is no worse outside, the distance does not part good answers from bad."""
    crops = crop_distances(answers.frames)
    outside = Outside.count(crops)
    words = f"{answers.name}: {outside.describe()}"
    frames = answers.blended_frames().merge(crops, on=CROP, validate="one_to_one")
    sides = {"inside": frames["distance"] <= OUTSIDE, "outside": frames["distance"] > OUTSIDE}
    aucs = []
    for name, chosen in sides.items():
        labels, probabilities = (frames.loc[chosen, column].to_numpy() for column in ("label", "probability"))
        if len(set(labels)) > 1:
            aucs.append(f"{video_metrics(labels, probabilities, clip=FRAME_CLIP).auc:.4f} {name}")
    return f"{words}; AUC of crops {', '.join(aucs)}." if len(aucs) == len(sides) else f"{words}."


def answer_videos(selection: Selection, extracted: Extracted, predictions: pd.DataFrame, rule: ScoringRule) -> list:
    """The `Answers` of every data set, by name.

    A video without predictions, be it without a face or unreadable, is answered with the prior and stays in the table.

    Args:
        predictions: a `frame_predictions` table of the selected videos.
    """
    answers = []
    for name, videos in selection.datasets.items():
        ids = videos["video_id"]
        mine = predictions[predictions["video_id"].isin(set(ids))]
        scored = rule.score_videos(ids, mine)
        tracks = mine.groupby("video_id")["track"].nunique()
        facts = extracted.statuses.drop(columns="num_crops")
        table = videos.merge(facts, on="video_id", how="left", validate="one_to_one").merge(scored, on="video_id")
        table["num_tracks"] = table["video_id"].map(tracks).fillna(0).astype("int64")
        table["group"] = table["original"].where(table["original"] != "", table["video_id"])
        columns = ["model", "video_id", "frame_index", "track", "probability", "distance", "distance_reason"]
        frames = mine[columns].merge(videos[["video_id", "label"]], on="video_id", validate="many_to_one")
        frames = frames.sort_values(columns[:4], ignore_index=True)
        answers.append(Answers(name, table, frames, rule))
    return answers


def measure(answers: Answers) -> pd.DataFrame:
    """Every metric of `VideoMetrics` for the data set and its parts, in the order of `COLUMNS`.

    `figure` is NaN where a metric needs both classes and one is missing; `low` and `high`, the 95 % interval over
    groups, are there for those of `metric_intervals`, of videos and frames, of 5 groups or more. `num_real` and
    `num_fake` count videos or crops. Coverage stands at level `coverage`: the numbers of videos by status, of decoded
    frames, of crops.
    """
    frames = answers.blended_frames()
    rows: list[dict[str, Any]] = []
    for by, value, videos in parts(answers.videos):
        place = {"dataset": answers.name, "by": by, "value": value}
        blended, single = (table[table["video_id"].isin(set(videos["video_id"]))] for table in (frames, answers.frames))
        groups = blended["video_id"].map(videos.set_index("video_id")["group"])
        rows += _with_intervals(videos, videos["group"], {**place, "level": "video"}, answers.rule.clip)
        if len(blended):
            rows += _with_intervals(blended, groups, {**place, "level": "frame"}, FRAME_CLIP)
            one_model = single[single["model"] == single["model"].iloc[0]]
            rows += _rows({**place, "level": SINGLE}, single_model_figures(single), one_model["label"])
        rows += _rows({**place, "level": "coverage"}, _coverage(videos), videos["label"])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def parts(videos: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(by, value, rows): all videos, then its methods, compressions and numbers of faces where there are several.

    A method's part holds its fakes and all real videos, as the field reports FF++; a number of faces is that of the
    tracks that were predicted, 0 for videos without any.
    """
    yield ALL, "", videos
    methods = sorted(set(videos.loc[videos["label"] == FAKE, "method"]) - {""})
    for method in methods if len(methods) > 1 else []:
        yield "method", method, videos[(videos["method"] == method) | (videos["label"] == REAL)]
    compressions = sorted(set(videos["compression"]))
    for compression in compressions if len(compressions) > 1 else []:
        yield "compression", compression or "none", videos[videos["compression"] == compression]
    faces = videos["num_tracks"].clip(upper=MOST_FACES)
    for number in sorted(set(faces)) if faces.nunique() > 1 else []:
        yield "faces", f"{number}{' or more' if number == MOST_FACES else ''}", videos[faces == number]


def _with_intervals(rows: pd.DataFrame, groups: pd.Series, place: dict[str, str], clip: float) -> list[dict[str, Any]]:
    answers = (rows["label"].to_numpy(), rows["probability"].to_numpy())
    figures = {
        name: value for name, value in asdict(video_metrics(*answers, clip=clip)).items() if name != "num_videos"
    }
    return _rows(place, figures, rows["label"], metric_intervals(*answers, groups.to_numpy(), clip=clip))


def _rows(
    place: dict[str, str],
    figures: Mapping[str, float | None],
    labels: pd.Series,
    intervals: Mapping[str, Interval] | None = None,
) -> list[dict[str, Any]]:
    """A row a figure, with the numbers of real and fake ones it is over."""
    counts = {"num_real": int((labels == REAL).sum()), "num_fake": int((labels == FAKE).sum())}
    rows = []
    for metric, figure in figures.items():
        interval = (intervals or {}).get(metric)
        low, high = (interval.low, interval.high) if interval is not None else (np.nan, np.nan)
        rows.append({**place, "metric": metric, "figure": _number(figure), "low": low, "high": high, **counts})
    return rows


def single_model_figures(frames: pd.DataFrame) -> dict[str, float]:
    """`accuracy` and `auc` (NaN with one class) of each model's crops by itself, then the mean over models.

    Args:
        frames: rows of `Answers.frames`, at least one.
    """
    of_models = [(rows["label"].to_numpy(), rows["probability"].to_numpy()) for _, rows in frames.groupby("model")]
    found = [video_metrics(*answers, clip=FRAME_CLIP) for answers in of_models]
    return {name: float(np.mean([_number(getattr(of, name)) for of in found])) for name in ("accuracy", "auc")}


def _coverage(videos: pd.DataFrame) -> dict[str, float]:
    counts = videos["status"].value_counts()
    return {
        "n_videos": len(videos),
        **{f"n_{status}": int(counts.get(status, 0)) for status in ("ok", "no_face", "unreadable")},
        "n_frames": int(videos["num_frames"].sum()),
        "n_crops": int(videos["num_crops"].sum()),
    }


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


class Figures:
    """Figures of a table of `measure`, by their place in it."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._rows = {
            (row.dataset, row.by, row.value, row.level, row.metric): (row.figure, row.low, row.high)
            for row in table.itertuples(index=False)
        }

    def of(self, dataset: str, by: str, value: str, level: str, metric: str) -> tuple[float, float, float]:
        """Figure, low and high; NaN where it is not measured."""
        return self._rows.get((dataset, by, value, level, metric), NOT_MEASURED)

    def places(self, dataset: str) -> list[tuple[str, str]]:
        """(by, value) of a data set, in the order measured."""
        return list(dict.fromkeys((by, value) for name, by, value, *_ in self._rows if name == dataset))


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


@dataclass(frozen=True)
class TextTable:
    """A table of finished words."""

    title: str
    rows: pd.DataFrame
    """Text in every cell; the first column names the row."""
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Title, table, notes."""
        table = markdown_table(list(self.rows), self.rows.itertuples(index=False))
        notes = ["", *(f"- {markdown_text(note)}" for note in self.notes)] if self.notes else []
        return "\n".join([f"### {markdown_text(self.title)}", "", table, *notes]) + "\n"


def dataset_tables(answers: Answers, figures: Figures, paper: Sequence[PaperComparison]) -> list[TextTable]:
    """Videos, frames, coverage, and the paper's tables where they apply."""
    places = figures.places(answers.name)

    def rows(columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
        parts = pd.Series([by if by == ALL else f"{by} {value}" for by, value in places], name="part")
        cells = {
            name: [_figure(*figures.of(answers.name, *place, *column)) for place in places]
            for name, column in columns.items()
        }
        return pd.DataFrame({"part": parts, **cells})

    coverage = rows({name: ("coverage", metric) for name, metric in COVERAGE_COLUMNS.items()})
    coverage = coverage.map(lambda text: text.removesuffix(".0000"))
    rule, models = answers.rule, answers.frames["model"].nunique()
    tuned = f"tuned for {', '.join(rule.experiments)}" if rule.experiments else "untuned"
    notes = [
        f"By the scoring rule: {tuned}, frames {rule.aggregator.frames}, tracks {rule.aggregator.tracks}. Log loss is "
        f"natural, probabilities clipped to [{rule.clip:g}, {1 - rule.clip:g}].",
        _interval_note(answers.videos),
        f"Videos without a face and unreadable ones count with the prior {rule.prior:g}.",
        "A method's row holds its fakes and all real videos; faces are the tracks that were predicted.",
    ]
    frame_notes = [
        f"Every crop once, by the mean of {counted(models, 'model')}; single models: each by itself, then their mean."
    ]
    return [
        TextTable("Videos", rows(VIDEO_COLUMNS), tuple(notes)),
        TextTable("Frames", rows(FRAME_COLUMNS), tuple(frame_notes)),
        TextTable("Coverage", coverage),
        *(paper_table(comparison) for comparison in paper),
    ]


def paper_table(comparison: PaperComparison) -> TextTable:
    """Our frame figures beside what the paper prints for the same data."""
    lines = [PaperRow("", "measured here", comparison.accuracy, comparison.auc), *comparison.rows]
    cells = [
        (row.method, row.table, *("" if np.isnan(figure) else f"{figure:.2f}" for figure in (row.accuracy, row.auc)))
        for row in lines
    ]
    table = pd.DataFrame(cells, columns=["method", "where", "frame ACC %", "frame AUC %"])
    departures = [f"Not the paper's protocol: {words}." for words in comparison.departures]
    return TextTable(f"{comparison.data}, beside arXiv:2103.02406", table, tuple(departures))


def summary_table(answers: Sequence[Answers], figures: Figures) -> TextTable:
    """One row a data set."""
    names = ("log loss", "balanced", "AUC", "accuracy", "frame AUC", "frame accuracy")
    rows = []
    for one in answers:
        columns = {name: (VIDEO_COLUMNS | FRAME_COLUMNS)[name] for name in names}
        cells = {name: _figure(*figures.of(one.name, ALL, "", *column)) for name, column in columns.items()}
        faceless = int((one.videos["num_crops"] == 0).sum())
        rows.append({"data set": one.name, "videos": str(len(one.videos)), "without a face": str(faceless), **cells})
    return TextTable("Data sets", pd.DataFrame(rows))


def selection_notes(selection: Selection) -> list[str]:
    """Notes on which videos were taken and which left out."""
    notes = [f"Split {selection.split}."]
    if selection.unsplit:
        notes.append(f"Without any split in the table, so all videos were taken: {', '.join(selection.unsplit)}.")
    notes += [f"Left out: {name}: {why}." for name, why in selection.left_out.items()]
    notes += [
        f"{name}: {counted(count, 'video without a label does', 'videos without a label do')} not count."
        for name, count in selection.unlabelled.items()
    ]
    return notes


def _interval_note(videos: pd.DataFrame) -> str:
    """Which videos the intervals take for alike."""
    named, groups = videos["original"] != "", videos["group"].nunique()
    if groups < MIN_GROUPS:
        return f"No intervals: {NO_INTERVAL} of videos that are alike (found {groups})."
    if not named.any():
        return (
            "In brackets the 95 % interval, over single videos: the table names no originals. Where several videos are "
            "of one original or one person it is too narrow."
        )
    alone = int((~named & (videos["label"] == FAKE)).sum())
    without = (
        f"; {counted(alone, 'fake without an original counts alone', 'fakes without originals count alone')}"
        if alone
        else ""
    )
    return (
        "In brackets the 95 % interval, over "
        f"{counted(groups, 'original with its fakes', 'originals with their fakes')}{without}."
    )


def _figure(figure: float, low: float, high: float) -> str:
    return NONE if np.isnan(figure) else Interval.of(low, high).beside(figure)


def compare_with_paper(
    answers: Answers, *, trained: Sequence[str], split: Split, unsplit: bool
) -> list[PaperComparison]:
    """Parts of a data set that the paper's Tables 2 and 4 have figures of; [] for any other data.

    Args:
        trained: names of the data sets the runs were trained on.
        split: the one evaluated.
        unsplit: the data set names no split, so that all of it was taken.
    """
    found = []
    for _, videos in answers.videos.groupby("compression", sort=True):
        data = name_data(videos)
        frames = answers.frames[answers.frames["video_id"].isin(set(videos["video_id"]))]
        if data not in (HQ, LQ, CELEB) or frames.empty:
            continue
        said = []
        if split != "test":
            said.append(f"measured on split {split}, the paper's figures are of the test split")
        elif unsplit:
            said.append("the table names no split, so all videos were taken instead of the official test split")
        if tuple(trained) != TRAINED_ON:
            names = ", ".join(trained) or "data nobody knows (imported)"
            said.append(f"trained on {names}, the paper's models on FF++")
        if (num_models := frames["model"].nunique()) > 1:
            said.append(f"the mean over {num_models} models, each by itself; the paper's figure is of one model")
        methods = set(videos.loc[videos["label"] == FAKE, "method"])
        if data != CELEB and methods != PAPER_METHODS:
            said.append(f"fakes of {', '.join(sorted(methods)) or 'no method'}, the paper's of the four first methods")
        if without := int((videos["num_crops"] == 0).sum()):
            said.append(
                f"{counted(without, 'video without a face has', 'videos without a face have')} "
                "no frames that could count"
            )
        accuracy, auc = (100 * figure for figure in single_model_figures(frames).values())
        found.append(PaperComparison(data, accuracy, auc, paper_rows(data), tuple(said)))
    return found


def paper_rows(data: str) -> tuple[PaperRow, ...]:
    """Rows that Tables 2 and 4 of arXiv:2103.02406 print for `FF++ HQ`, `FF++ LQ` or `Celeb-DF`."""
    rows = []
    for table in TABLES:
        for cell in get_ablation(table).cells:
            figures = {column.metric: value for column, value in cell.paper.items() if column.data == data}
            if figures:
                accuracy, auc = (figures.get(metric, float("nan")) for metric in ("accuracy", "auc"))
                rows.append(PaperRow(f"Table {table}", cell.label, accuracy, auc))
    return tuple(rows)
