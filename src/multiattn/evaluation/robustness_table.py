"""The rows of a robustness report: figures of cells and means over cells, with intervals; and their tables in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multiattn.evaluation.measures import FRAME_CLIP, Answers, TextTable
from multiattn.runtime.layout import ROBUSTNESS_FILE
from multiattn.scoring.distances import CROP
from multiattn.scoring.metrics import Interval, auc_interval, compare_auc, log_losses, mean_interval, video_metrics

MOST_LOST = 0.02
"""AUC that a card lets a distortion cost without a word."""
PLAIN, IDENTITY, OF_CROPS, OF_VIDEOS, MEAN = "clean", "identity", "crops", "videos", "mean"
"""Kinds of rows: the crops as they are, a neutral level, distorted crops, distorted videos, a mean over such cells."""
DISTORTED = (OF_CROPS, OF_VIDEOS)
KEY = ("kind", "distortion", "level", "part", "num_real", "num_fake", "no_face", "outside")
"""`part` is empty for all videos; `no_face` counts videos that the prior answers; `outside` is the share of crops
outside the faces of the training."""
FIGURES = ("log_loss", "auc", "frame_log_loss", "frame_auc")


def _with_ends(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


OWN_COLUMNS = _with_ends(*FIGURES, *(f"{name}_change" for name in FIGURES))
"""`_change` is beside the crops as they are, of the same videos or frames."""
BESIDE_COLUMNS = (*(f"beside_{name}" for name in OWN_COLUMNS), *_with_ends(*(f"{name}_difference" for name in FIGURES)))
"""The figures of the runs beside, and the runs' less theirs."""
COLUMNS = (*KEY, *OWN_COLUMNS)

Scored = dict[str, pd.DataFrame]
"""Videos ("") and frames ("frame_") of a cell: label, probability, group and loss, by video_id or by crop."""


def scored(answers: Answers) -> Scored:
    """Labels, answers and losses of the videos and of the frames, each in a fixed order."""
    videos = answers.videos.set_index("video_id")[["label", "probability", "group"]]
    frames = answers.blended_frames().set_index(CROP)
    frames["group"] = videos["group"].reindex(frames.index.get_level_values("video_id")).to_numpy()
    found = {}
    for scale, table, clip in (("", videos, answers.rule.clip), ("frame_", frames, FRAME_CLIP)):
        given = table["label"].to_numpy(), table["probability"].to_numpy(dtype=np.float64)
        found[scale] = table.assign(loss=log_losses(*given, clip=clip) if len(table) else 0.0)
    return found


def cell_row(
    place: Mapping[str, str],
    over: Sequence[Sequence[Scored]],
    clean: Sequence[Scored] | None = None,
    *,
    videos: pd.Index | None = None,
) -> dict[str, Any]:
    """A row of `COLUMNS` and, of two sides, `BESIDE_COLUMNS`.

    Args:
        place: kind, distortion, level and part.
        over: of each side one cell, or all cells that a mean is over.
        clean: of each side the crops as they are.
        videos: the part's video_ids; None takes all.
    """

    def tables(cells: Sequence[Scored], scale: str) -> list[pd.DataFrame]:
        found = [cell[scale] for cell in cells]
        if videos is None:
            return found
        return [one[one.index.get_level_values("video_id").isin(videos)] for one in found]

    labels = tables(over[0], "")[0]["label"]
    row = {**place, "num_real": int((labels == 0).sum()), "num_fake": int((labels == 1).sum())}
    for scale in over[0][0]:
        for side, cells in enumerate(over):
            others = {} if clean is None else {"change": tables([clean[side]], scale)}
            if side == 0 and len(over) > 1:
                others["difference"] = tables(over[1], scale)
            figures = _figures(tables(cells, scale), others)
            row |= {f"{'beside_' * side}{scale}{name}": figure for name, figure in figures.items()}
    return row


def _figures(cells: Sequence[pd.DataFrame], others: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, float]:
    """Log loss and AUC with the ends of their intervals, as means over cells of the same videos or frames, and their
    paired differences from those of `others`. An AUC that is a mean has no interval; frames that are not those of the
    others, as of videos cut anew, have no difference."""
    first, single = cells[0], len(cells) == 1
    if first.empty:
        return {}
    labels, groups = first["label"].to_numpy(), first["group"].to_numpy()

    def answers(tables: Sequence[pd.DataFrame]) -> list[np.ndarray]:
        return [table["probability"].to_numpy(dtype=np.float64) for table in tables]

    def mean_auc(tables: Sequence[pd.DataFrame]) -> float:
        areas = [video_metrics(labels, one, clip=FRAME_CLIP).auc for one in answers(tables)]
        return float(np.array(areas, dtype=np.float64).mean())  # None, of one class, is NaN

    losses, unknown = np.mean([table["loss"] for table in cells], axis=0), Interval(np.nan, np.nan)
    interval = mean_interval(losses, groups)
    found = {
        "log_loss": (losses.mean(), Interval(max(interval.low, 0.0), interval.high)),
        "auc": (mean_auc(cells), auc_interval(labels, *answers(cells), groups) if single else unknown),
    }
    for name, tables in others.items():
        if not first.index.equals(tables[0].index):
            continue
        away = losses - np.mean([table["loss"] for table in tables], axis=0)
        area = mean_auc(cells) - mean_auc(tables), unknown
        found[f"log_loss_{name}"] = away.mean(), mean_interval(away, groups)
        found[f"auc_{name}"] = compare_auc(labels, *answers(cells), *answers(tables), groups) if single else area
    ends = {name: (value, of.low, of.high) for name, (value, of) in found.items()}
    return {column: figure for name in ends for column, figure in zip(_with_ends(name), ends[name], strict=True)}


def read_robustness(folder: Path) -> pd.DataFrame:
    """The cells that `multiattn robustness` wrote into a folder.

    Raises:
        FileNotFoundError: none there.
        ValueError: a table of an earlier version.
    """
    path = folder / ROBUSTNESS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {path.name} here. Run `multiattn robustness --out`.")
    numbers = dict.fromkeys((*KEY[4:], *OWN_COLUMNS, *BESIDE_COLUMNS), "")
    cells = pd.read_csv(path, keep_default_na=False, na_values=numbers, dtype={"level": str})
    if tuple(cells.columns[: len(COLUMNS)]) != COLUMNS:
        raise ValueError(f"{path}: of an earlier version. Run the same `multiattn robustness` command again.")
    return cells


def cell_name(row: Mapping[str, Any]) -> str:
    """`jpeg 20`, of a row."""
    return f"{row['distortion']} {row['level']}".strip()


def robustness_tables(cells: pd.DataFrame, beside: str = "") -> list[TextTable]:
    """The cells, the same beside other runs of this name, and the parts, in words."""
    whole = cells[cells["part"] == ""].to_dict("records")

    def table(title: str, columns: Mapping[str, str], note: str) -> TextTable:
        words = {header: [_words(row, name) for row in whole] for header, name in columns.items()}
        return TextTable(title, pd.DataFrame({"crops": [cell_name(row) for row in whole], **words}), (note,))

    columns = {
        "log loss": "log_loss", "change": "log_loss_change", "AUC": "auc", "change of AUC": "auc_change",
        "frame log loss": "frame_log_loss", "frame change": "frame_log_loss_change", "outside": "outside",
        "no face": "no_face",
    }  # fmt: skip
    tables = [table("Cells", columns, "In brackets 95 % intervals over sources; changes are paired.")]
    if beside:
        columns = {
            "log loss": "log_loss", "beside": "beside_log_loss", "difference": "log_loss_difference",
            "AUC": "auc", "AUC beside": "beside_auc", "difference of AUC": "auc_difference",
        }  # fmt: skip
        tables.append(table(f"Beside {beside}", columns, "Differences are paired; of log loss, below 0 is better."))
    parts, rows = cells[cells["part"] != ""], []
    for name, of_part in parts.groupby("part", sort=False):
        plain, mean = (of_part[of_part["kind"] == kind].tail(1).to_dict("records") for kind in (PLAIN, MEAN))
        mean = mean[0] if mean else {}
        losses = [_words(plain[0], "log_loss"), _words(mean, "log_loss"), _words(mean, "log_loss_change")]
        counts = str(plain[0]["num_real"] + plain[0]["num_fake"])
        rows.append([name, counts, *losses, _words(plain[0], "auc"), _words(mean, "auc")])
    header = ["part", "videos", "log loss", "distorted", "change", "AUC", "distorted AUC"]
    note = "Thirds of the videos as they are; distorted: the mean over the cells that the last row above is over."
    return [*tables, TextTable("Parts", pd.DataFrame(rows, columns=header), (note,))]


def summary_words(cells: pd.DataFrame) -> str:
    """The mean over the distorted cells in a sentence; empty where there are none."""
    means = cells[(cells["kind"] == MEAN) & (cells["part"] == "")].tail(1).to_dict("records")
    if not means:
        return ""
    row = means[0]
    auc = f", AUC {_words(row, 'auc')}" if _words(row, "auc") else ""  # unknown of one class
    words = f"{cell_name(row).capitalize()}: log loss {_words(row, 'log_loss')}{auc}; "
    words += f"{_words(row, 'log_loss_change')} of log loss beside the crops as they are."
    if other := _words(row, "beside_log_loss"):
        words += f" The runs beside: log loss {other}, a difference of {_words(row, 'log_loss_difference')}."
    return words


def _words(row: Mapping[str, Any], name: str) -> str:
    """A figure of a row, with its interval; empty where it is not measured."""
    if pd.isna(row.get(name)):
        return ""
    if name in KEY:
        return f"{row[name]:.0%}" if name == "outside" else f"{row[name]:.0f}"
    sign = "+" if name.endswith(("change", "difference")) else ""
    return Interval.of(row[f"{name}_low"], row[f"{name}_high"]).beside(row[name], sign=sign)
