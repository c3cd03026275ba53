"""Runs of an ablation -> a table: mean and spread over seeds beside the paper's figure and the difference."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from multiattn.evaluation.ablations import CELEB, HQ, LQ, Ablation, Cell, PaperColumn, name_data
from multiattn.evaluation.measures import single_model_figures
from multiattn.evaluation.run import predict_kept
from multiattn.inference.runs import find_models
from multiattn.runtime.layout import FOLDS_FILE, HELD_OUT_FILE, fold_folder
from multiattn.runtime.text_tables import counted, markdown_table, markdown_text
from multiattn.scoring.metrics import video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import FOLDS, FRAME_PREDICTIONS, REAL, UNKNOWN, VIDEOS
from multiattn.video.crops.recipe import CropRecipe, describe_difference, read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

Place = Literal["held-out", "cross"]
Figures = dict[tuple[Place, str], float]
"""(where, metric) -> value; metrics `accuracy` and `auc` are of frames and in per cent."""

DEMO_NOTE = "Demo figures: they show that every cell runs, they say nothing about the paper."
FRAME_METRICS = {"accuracy": "frame ACC %", "auc": "frame AUC %"}
VIDEO_METRICS = {
    "video_log_loss": "video log loss",
    "video_balanced_log_loss": "video balanced log loss",
    "video_auc": "video AUC",
}


@dataclass(frozen=True)
class CrossData:
    """Labelled crops of another data set, which nothing was trained on."""

    folder: Path
    name: str
    labels: pd.Series
    """video_id -> 0 or 1."""
    frames: pd.DataFrame
    """video_id, frame_index, track of every crop of a labelled video."""


def read_cross_data(folder: Path, recipe: CropRecipe, trained_on: pd.Series) -> CrossData:
    """Read a faces folder to test on, of crops as the runs' are made and of videos that are not in the folds.

    Raises:
        FileNotFoundError: not a faces folder.
        ValueError: crops made differently, videos that are in the folds, or not both classes.
    """
    if difference := describe_difference(recipe.for_prediction(), read_recipe(folder).for_prediction()):
        raise ValueError(f"--cross-faces {folder}: its crops differ from those trained on: {difference}.")
    faces, _, videos = read_faces_folder(folder)
    seen = sorted(set(videos["video_id"]) & set(trained_on))
    if seen:
        raise ValueError(
            f"--cross-faces {folder}: leak: {counted(len(seen), 'of its videos is', 'of its videos are')} "
            f"in the folds, {seen[0]} the first. "
            "Pass faces of videos that nothing is trained on."
        )
    labelled = videos[videos["label"] != UNKNOWN]
    frames = faces.loc[faces["video_id"].isin(labelled["video_id"]), ["video_id", "frame_index", "track"]]
    labels = labelled.set_index("video_id")["label"]
    classes = sorted(labels[frames["video_id"].unique()].unique().tolist())
    if classes != [0, 1]:
        raise ValueError(
            f"--cross-faces {folder}: expected crops of real (0) and fake (1) "
            f"videos, found labels {', '.join(map(str, classes)) or 'none'} in "
            f"{len(labelled)} labelled of {counted(len(videos), 'video')}. Labels come from `multiattn index`."
        )
    return CrossData(folder, name_data(labelled), labels, frames.reset_index(drop=True))


def measure_out_of_fold(runs: Path, folds: list[int]) -> Figures:
    """Frame and video metrics over the held-out videos of these folds together.

    Frames are those of `oof.parquet`; a video without a face counts at video level, with the prior.

    Raises:
        FileNotFoundError: a fold has no predictions yet.
    """
    rule = ScoringRule()
    frame_tables, video_tables = [], []
    for number in folds:
        folder = fold_folder(runs, number)
        table = FOLDS.read(folder / FOLDS_FILE)
        held_out = table[table["fold"] == number]
        predictions = FRAME_PREDICTIONS.read(folder / HELD_OUT_FILE)
        frame_tables.append(predictions.merge(held_out[["video_id", "label"]], on="video_id", validate="many_to_one"))
        videos = rule.score_videos(held_out["video_id"], predictions)
        video_tables.append(videos.assign(label=held_out["label"].to_numpy()))
    frames, videos = pd.concat(frame_tables), pd.concat(video_tables)
    figures = {name: 100 * figure for name, figure in single_model_figures(frames.assign(model="")).items()}
    metrics = video_metrics(videos["label"].to_numpy(), videos["probability"].to_numpy(), clip=rule.clip)
    figures |= {"video_log_loss": metrics.log_loss, "video_balanced_log_loss": metrics.balanced_log_loss}
    figures["video_auc"] = np.nan if metrics.auc is None else metrics.auc
    return {("held-out", metric): figure for metric, figure in figures.items()}


def measure_cross(runs: Path, folds: list[int], cross: CrossData, *, device: torch.device) -> Figures:
    """Frame metrics on other data: each fold's best checkpoint by itself, then the mean over folds.

    Blending the folds would measure an ensemble, which the paper's figure is not. The predictions are kept in the
    experiment's folder and taken from there as long as they are of the same checkpoints and crops.
    """
    models = [find_models(fold_folder(runs, number))[0] for number in folds]
    videos = cross.frames["video_id"].unique().tolist()
    path, precision = runs / f"cross_{cross.folder.resolve().name}.parquet", models[0].experiment.precision
    predictions = predict_kept(models, {cross.folder: videos}, path, device=device, precision=precision)
    figures = single_model_figures(predictions.assign(label=predictions["video_id"].map(cross.labels)))
    return {("cross", metric): 100 * figure for metric, figure in figures.items()}


@dataclass(frozen=True)
class Column:
    name: str
    source: tuple[Place, str] | None
    """Which of the figures fills it; None: not measured."""
    paper: PaperColumn | None = None
    decimals: int = 2


@dataclass
class AblationTable:
    """The figures measured so far; grows cell by cell."""

    ablation: Ablation
    held_out: str
    """Name of the data that are trained and validated on, of `name_data`."""
    cross: str | None = None
    """Name of the data that are tested on besides."""
    facts: tuple[str, ...] = ()
    """Lines for the page's head: data, folds, seeds, command."""
    figures: dict[str, list[Figures]] = field(default_factory=dict)
    """Cell's label -> figures of each seed."""
    failures: dict[str, list[str]] = field(default_factory=dict)
    """Cell's label -> messages of the seeds that failed."""

    def add(self, cell: Cell, figures: Figures) -> None:
        self.figures.setdefault(cell.label, []).append(figures)

    def fail(self, cell: Cell, message: str) -> None:
        self.failures.setdefault(cell.label, []).append(message)

    @property
    def columns(self) -> list[Column]:
        """The paper's columns, then what was measured besides.

        A tiny table fills the paper's columns with whatever data it was given, to show them; its page says so.
        """
        columns = [Column(paper.name, self._source(paper), paper) for paper in self.ablation.columns]
        filled = {column.source for column in columns}
        for place, data in (("held-out", self.held_out), ("cross", self.cross)):
            metrics = FRAME_METRICS | (VIDEO_METRICS if place == "held-out" else {})
            for metric, name in metrics.items() if data is not None else ():
                if (place, metric) not in filled:
                    decimals = 4 if metric in VIDEO_METRICS else 2
                    heading = f"held-out {name}" if place == "held-out" else f"{data} {name}"
                    columns.append(Column(heading, (place, metric), decimals=decimals))
        return columns

    def _source(self, paper: PaperColumn) -> tuple[Place, str] | None:
        if self.cross is not None and (paper.data == self.cross or (self.ablation.is_tiny and paper.data == CELEB)):
            return "cross", paper.metric
        held_out = HQ if self.ablation.is_tiny and self.held_out != LQ else self.held_out
        return ("held-out", paper.metric) if paper.data == held_out else None

    def rows(self) -> pd.DataFrame:
        """Long form: cell, run, status, column, mean, spread, num_seeds, paper, difference.

        `spread` is the standard deviation over seeds (n - 1 in the denominator), NaN for a single seed; `difference`
        is the mean minus the paper's figure. status: `measured`, `failed`, `quoted` or `pending`.
        """
        rows = []
        for cell in self.ablation.cells:
            seeds = self.figures.get(cell.label, [])
            status = "quoted" if cell.experiment is None else "measured" if seeds else "pending"
            status = "failed" if cell.label in self.failures else status
            for column in self.columns:
                values = np.array([figures[column.source] for figures in seeds if column.source in figures])
                paper = cell.paper.get(column.paper, np.nan) if column.paper is not None else np.nan
                mean = values.mean() if len(values) else np.nan
                rows.append(
                    {
                        "cell": cell.label,
                        "run": cell.experiment.name if cell.experiment is not None else "",
                        "status": status,
                        "column": column.name,
                        "mean": mean,
                        "spread": values.std(ddof=1) if len(values) > 1 else np.nan,
                        "num_seeds": len(values),
                        "paper": paper,
                        "difference": mean - paper,
                    }
                )
        return pd.DataFrame(rows)

    def wide(self) -> pd.DataFrame:
        """One row a cell; for each column its mean, `... sd`, `... n`, and where the paper has one `... paper` and
        `... difference`."""
        rows = self.rows()
        table = rows[["cell", "run", "status"]].drop_duplicates(ignore_index=True)
        for column in self.columns:
            part = rows[rows["column"] == column.name].reset_index(drop=True)
            names = {"": "mean", " sd": "spread", " n": "num_seeds"}
            names |= {" paper": "paper", " difference": "difference"} if column.paper is not None else {}
            table = table.assign(**{f"{column.name}{ending}": part[name] for ending, name in names.items()})
        return table

    @property
    def file_name(self) -> str:
        """Without its ending; a table of LQ data has a name of its own, beside that of HQ."""
        return self.ablation.name + ("_lq" if self.held_out == LQ else "")

    @property
    def title(self) -> str:
        """`Table 5: Number of attention maps`; a table of ours has no number."""
        prefix = f"Table {self.ablation.table}: " if self.ablation.table.isdigit() else ""
        return f"{prefix}{self.ablation.title}"

    def markdown(self) -> str:
        demo = f"**{DEMO_NOTE}**" if self.ablation.is_demo else ""
        failed = [f"**{label}** failed: {message}" for label, seeds in self.failures.items() for message in seeds]
        facts, failures, notes = (
            "\n".join(f"- {markdown_text(line)}" for line in of) for of in (self.facts, failed, self.notes())
        )
        parts = [f"# {self.title}", demo, facts, self._grid(), failures, notes]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _grid(self) -> str:
        header = ["cell"]
        for column in self.columns:
            header += [column.name, *(["paper", "difference"] if column.paper is not None else [])]
        lines, rows = [], self.rows().set_index(["cell", "column"])
        for cell in self.ablation.cells:
            words = [cell.label]
            for column in self.columns:
                row = rows.loc[(cell.label, column.name)]
                words.append(_measured(row, column))
                if column.paper is not None:
                    words.append("" if np.isnan(row["paper"]) else f"{row['paper']:.2f}")
                    words.append("" if np.isnan(row["difference"]) else f"{row['difference']:+.2f}")
            lines.append(words)
        return markdown_table(header, lines)

    def notes(self) -> list[str]:
        notes = [
            "Mean ± standard deviation over seeds, the number of seeds in brackets; difference = ours - paper. "
            "A run's epoch is the one with the lowest log loss on its held-out videos, the same that are measured here."
        ]
        if not self.ablation.columns:
            return notes
        notes.append(
            "The paper's figures are of frames, on the official test split; ours of frames of the held-out folds. "
            "Rows marked quoted stand as the paper prints them."
        )
        empty = sorted({column.paper.data for column in self.columns if column.paper and column.source is None})
        if empty:
            notes.append(
                f"Not measured: {', '.join(empty)}. FF++ HQ and LQ need a faces folder of c23 and c40 videos, "
                "Celeb-DF one of its own passed as `--cross-faces`."
            )
        if self.ablation.is_tiny:
            used = f"{self.held_out} in place of FF++" + (f", {self.cross} in place of {CELEB}" if self.cross else "")
            notes.append(
                f"The paper's columns are filled from other data ({used}) by untrained small networks after one epoch: "
                "they show the table and compare with nothing."
            )
        return notes


def _measured(row: pd.Series, column: Column) -> str:
    if np.isnan(row["mean"]):
        return {"quoted": "", "measured": "not measured"}.get(row["status"], row["status"])
    spread = "" if np.isnan(row["spread"]) else f" ± {row['spread']:.{column.decimals}f}"
    return f"{row['mean']:.{column.decimals}f}{spread} ({row['num_seeds']})"


def count_videos(videos: pd.DataFrame) -> str:
    """`150 videos (50 real)`."""
    return f"{counted(len(VIDEOS.validate(videos, 'videos')), 'video')} ({int((videos['label'] == REAL).sum())} real)"
