"""Runs and labelled faces predicted again under every distortion: what each costs, beside the crops as they are.

Predictions lie in `cells/` of the report's folder, a table a distortion and level, and are kept as those of `multiattn
evaluate` are: an interrupted command continues with the next cell, and another model costs its own predictions only.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from multiattn.evaluation.distortions import DISTORTIONS, distort
from multiattn.evaluation.measures import Answers, answer_videos
from multiattn.evaluation.run import EvaluationInputs, check_leaks, predict_kept
from multiattn.evaluation.selection import Extracted, find_faces, select_videos
from multiattn.inference.predictor import face_sides
from multiattn.inference.runs import find_models
from multiattn.inference.scoring_file import choose_scoring
from multiattn.model.distance import STATISTICS, pixel_statistics
from multiattn.runtime.devices import pick_device
from multiattn.runtime.text_tables import counted, markdown_table
from multiattn.scoring.distances import Outside, crop_distances
from multiattn.scoring.metrics import Interval, compare_auc, compare_log_loss, metric_intervals, video_metrics
from multiattn.tables import VIDEOS
from multiattn.video.crops.images import CropImages
from multiattn.video.crops.landmarks import search_padded
from multiattn.video.crops.recipe import CropRecipe, cut_crop, read_recipe
from multiattn.video.detectors.registry import Detector, get_detector, load_detector

logger = logging.getLogger(__name__)

CLEAN, AGAIN = "as they are", "detected again"
CELLS_FOLDER = "cells"
CLEAN_FILE = "as_they_are.parquet"
PARTS = 3
"""Thirds of the crops, from the darkest to the brightest, and from the least to the most detail."""
MOST_LOST = 0.02
"""AUC that a card lets a distortion cost without a word."""
COLUMNS = ("distortion", "level", "num_real", "num_fake", "log_loss", "log_loss_low", "log_loss_high", "auc", "auc_low",
           "auc_high", "log_loss_change", "log_loss_change_low", "log_loss_change_high", "auc_change", "auc_change_low",
           "auc_change_high", "outside")  # fmt: skip
FIGURE_COLUMNS = COLUMNS[4:]
"""`_change` is beside the crops as they are, NaN for parts of them; `outside` the share of crops outside the faces of
the training."""


@dataclass(frozen=True, kw_only=True)
class RobustnessInputs(EvaluationInputs):
    """Runs, the videos, and what is done to their crops."""

    distortions: tuple[str, ...] = ()
    """Names of `DISTORTIONS`, and `detected again`; empty takes all."""
    weights: Path | None = None
    """The detector's weights file, where it needs one."""


def measure_robustness(inputs: RobustnessInputs) -> pd.DataFrame:
    """A row a cell, in the order of `COLUMNS`: the crops as they are, their parts, and every distortion and level.

    Raises:
        FileNotFoundError: no runs, table or faces folder.
        ValueError: a leak, videos without faces extracted, nothing to evaluate, or no such distortion.
    """
    wanted = inputs.distortions or (*DISTORTIONS, AGAIN)
    if strange := sorted(set(wanted) - {*DISTORTIONS, AGAIN}):
        raise ValueError(f"--distortions: expected some of {', '.join((*DISTORTIONS, AGAIN))}, found {strange[0]!r}.")
    table, models = VIDEOS.read(inputs.videos), find_models(*inputs.runs)
    selection = select_videos(table, inputs.split)
    allowed = check_leaks(models, selection, table)
    selection, extracted = find_faces(selection, inputs.faces)
    rule = choose_scoring(inputs.runs, inputs.scoring)
    device = pick_device(inputs.device)
    loaded: dict = {}

    def answers(words: str, change: Callable | None) -> Answers:
        predictions = predict_kept(
            models, extracted.by_folder, inputs.out / CELLS_FOLDER / f"{words.replace(' ', '_')}.parquet",
            device=device, precision=inputs.precision, distortion=words, change=change, loaded=loaded,
        )  # fmt: skip
        mine = [rows[rows["video_id"].isin(allowed[model])] for model, rows in predictions.groupby("model")]
        found = answer_videos(selection, extracted, pd.concat([predictions.head(0), *mine], ignore_index=True), rule)
        joined = {name: pd.concat([getattr(one, name) for one in found]) for name in ("videos", "frames")}
        return Answers("", joined["videos"].sort_values("video_id", ignore_index=True), joined["frames"], rule)

    clean = answers(CLEAN, None)
    rows = [_row(CLEAN, "", clean), *_part_rows(clean, extracted)]
    for name, level, change in _cells(wanted, extracted, inputs):
        rows.append(_row(name, level, answers(f"{name} {level}".strip(), change), clean))
        logger.info("%s %s: log loss %.4f, AUC %.4f", name, level, rows[-1]["log_loss"], rows[-1]["auc"])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def describe_robustness(cells: pd.DataFrame) -> str:
    """The cells as a table in Markdown, and their means in words."""
    rows = []
    for row in cells.to_dict("records"):
        of = [_with_interval(row, name) for name in ("log_loss", "auc", "log_loss_change", "auc_change")]
        outside = "" if np.isnan(row["outside"]) else f"{row['outside']:.0%}"
        rows.append([f"{row['distortion']} {row['level']}".strip(), *of, outside])
    header = ["crops", "log loss", "AUC", "log loss, change", "AUC, change", "outside"]
    distorted = cells[cells["log_loss_change"].notna()]
    words = ""
    if len(distorted):
        words = (
            f"\n\nMean of {counted(len(distorted), 'distorted cell')}: log loss {distorted['log_loss'].mean():.4f}, "
            f"AUC {distorted['auc'].mean():.4f}. In brackets 95 % intervals over sources; changes are paired."
        )
    return f"{markdown_table(header, rows, padded=True)}{words}"


def _with_interval(row: dict, name: str) -> str:
    sign = "+" if name.endswith("change") else ""
    if np.isnan(row[name]):
        return ""
    return Interval.of(row[f"{name}_low"], row[f"{name}_high"]).beside(row[name], sign=sign)


def _cells(
    wanted: Sequence[str], extracted: Extracted, inputs: RobustnessInputs
) -> Iterator[tuple[str, str, Callable]]:
    """(distortion, level, change) of each cell."""
    for name in (name for name in DISTORTIONS if name in wanted):
        for level in DISTORTIONS[name].levels:
            yield name, f"{level:g}", partial(distort, name, level)
    if AGAIN not in wanted:
        return
    recipe = read_recipe(next(iter(extracted.by_folder)))
    if recipe.foreign:
        logger.warning("%s: left out, for how these crops were cut is not known (%s)", AGAIN, recipe.foreign)
        return
    detector = load_detector(
        # On the CPU: the loader's workers, which call it, are forked from a process that may use a GPU.
        get_detector(recipe.detector),
        threshold=recipe.threshold,
        device="cpu",
        weights=inputs.weights,
    )
    yield AGAIN, "", partial(detect_again, detector, recipe)


def detect_again(detector: Detector, recipe: CropRecipe, crop: np.ndarray, address: str = "") -> np.ndarray:
    """The crop that the recipe cuts around the largest face found in a crop with a border; the crop where none is."""
    (frame,), (faces,) = search_padded(detector, [crop])
    if not len(faces):
        return crop
    boxes = faces.boxes_xyxy
    largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    return cut_crop(frame, recipe, box_xyxy=boxes[largest], landmarks=faces.landmarks[largest])


def _row(name: str, level: str, answers: Answers, clean: Answers | None = None) -> dict:
    videos = answers.videos
    labels, given, groups = (videos[column].to_numpy() for column in ("label", "probability", "group"))
    clip = answers.rule.clip
    figures, outside = video_metrics(labels, given, clip=clip), Outside.count(crop_distances(answers.frames))
    row = {
        "distortion": name, "level": level, "num_real": int((labels == 0).sum()), "num_fake": int((labels == 1).sum()),
        "log_loss": figures.log_loss, "auc": np.nan if figures.auc is None else figures.auc, "outside": outside.share,
    }  # fmt: skip
    intervals = metric_intervals(labels, given, groups, clip=clip)
    if clean is not None:
        before = clean.videos["probability"].to_numpy()
        loss = compare_log_loss(labels, given, before, groups, clip=clip)
        row["log_loss_change"], intervals["log_loss_change"] = loss.difference, loss.interval
        row["auc_change"], intervals["auc_change"] = compare_auc(labels, given, before, groups)
    for figure in {*intervals} & {*row}:
        interval = intervals[figure]
        row |= {f"{figure}_low": interval.low, f"{figure}_high": interval.high}
    return dict.fromkeys(COLUMNS, np.nan) | row


def _part_rows(clean: Answers, extracted: Extracted) -> Iterator[dict]:
    """The crops as they are in thirds of their videos' brightness, and of their faces' size, or where another program
    cut them and left that unknown, of their detail."""
    videos = clean.videos.set_index("video_id")
    facts = _facts(extracted).reindex(videos.index)
    for name in facts.columns:
        ranks = facts[name].rank(method="first", pct=True)
        for part in range(PARTS):
            inside = (ranks > part / PARTS) & (ranks <= (part + 1) / PARTS)
            if not inside.any():
                continue
            low, high = facts.loc[inside, name].min(), facts.loc[inside, name].max()
            frames = clean.frames[clean.frames["video_id"].isin(set(videos.index[inside]))]
            of_part = Answers("", videos[inside].reset_index(), frames, clean.rule)
            yield _row(f"{name} {low:.3g} to {high:.3g}", "", of_part)


def _facts(extracted: Extracted) -> pd.DataFrame:
    """A video's mean brightness in [0, 255], and the side of its faces in pixels or, where unknown, their detail."""
    tables = []
    names = list(STATISTICS)
    brightness, sharpness = names.index("brightness"), names.index("sharpness")
    for folder, faces in extracted.faces.groupby("folder"):
        recipe = read_recipe(Path(folder))
        crops = CropImages(Path(folder), faces["crop"], recipe.size)
        batches = (crops[row][None] for row in range(len(crops)))
        seen = torch.cat([pixel_statistics(batch) for batch in batches]).numpy()
        sides = face_sides(faces, Path(folder))
        size = {"detail": seen[:, sharpness]} if np.isnan(sides).any() else {"face size": sides}
        tables.append(faces[["video_id"]].assign(brightness=seen[:, brightness], **size))
    return pd.concat(tables).groupby("video_id").mean()
