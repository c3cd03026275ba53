"""Runs and labelled faces predicted again under every distortion: what each costs, beside the crops as they are.

Predictions lie in `cells/` of the report's folder, a table a distortion and level, and are kept as those of `multiattn
evaluate` are: an interrupted command continues with the next cell, and another model costs its own predictions only.
Faces of distorted videos lie in `faces/`, a faces folder a cell, and continue video by video.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from multiattn.datasets.manifest import locate_videos, named_roots
from multiattn.evaluation.distortions import DISTORTIONS, VERSION, VIDEO_DISTORTIONS, crop_cells, distort
from multiattn.evaluation.measures import Answers, answer_videos
from multiattn.evaluation.robustness_table import (
    BESIDE_COLUMNS,
    COLUMNS,
    IDENTITY,
    MEAN,
    OF_CROPS,
    OF_VIDEOS,
    PLAIN,
    Scored,
    cell_row,
    scored,
)
from multiattn.evaluation.run import EvaluationInputs, check_leaks, checkpoint_digests, predict_kept
from multiattn.evaluation.selection import Extracted, Selection, find_faces, select_videos
from multiattn.inference.predictor import face_sides
from multiattn.inference.runs import TrainedModel, find_models, with_tta
from multiattn.inference.scoring_file import choose_scoring
from multiattn.model.distance import STATISTICS, pixel_statistics
from multiattn.runtime.crop_files import declared_root
from multiattn.runtime.devices import pick_device
from multiattn.runtime.layout import experiment_name, fold_folders
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.text_tables import counted
from multiattn.scoring.distances import Outside, crop_distances
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import VIDEOS
from multiattn.video.crops.images import CropImages
from multiattn.video.crops.landmarks import search_padded
from multiattn.video.crops.recipe import CropRecipe, cut_crop, read_recipe
from multiattn.video.decoding.reencode import ClipEncoding
from multiattn.video.detectors.registry import Detector, get_detector, load_detector
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.faces_folder import extract_faces

logger = logging.getLogger(__name__)

CLEAN, AGAIN, VIDEO_AGAIN = "as they are", "detected again", "video as it is"
CELLS_FOLDER, FACES_FOLDER = "cells", "faces"
PARTS = 3
"""Thirds of the crops, from the darkest to the brightest, and from the least to the most detail."""


@dataclass(frozen=True, kw_only=True)
class RobustnessInputs(EvaluationInputs):
    """Runs, the videos, and what is done to them."""

    beside: tuple[Path, ...] = ()
    """Other runs, measured on the same crops."""
    distortions: tuple[str, ...] = ()
    """Names of `DISTORTIONS` and `VIDEO_DISTORTIONS`, and `detected again`; empty takes all that are of crops."""
    on_videos: bool = False
    """Those of `VIDEO_DISTORTIONS` as well."""
    root: tuple[str, ...] = ()
    """Where the videos lie, as `datasets.manifest.named_roots` takes it."""
    weights: Path | None = None
    """The detector's weights file, where it needs one."""


@dataclass(frozen=True)
class Robustness:
    """Figures of every cell."""

    runs: str
    beside: str
    """Name of the runs beside; empty where there are none."""
    cells: pd.DataFrame
    """A row a cell, in the order of `COLUMNS` and, with runs beside, `BESIDE_COLUMNS`."""
    checkpoints: dict[str, str]
    """Digests of the runs' models."""
    warnings: tuple[str, ...]
    """Identity cells whose answers differ from those to the crops as they are."""


@dataclass(frozen=True)
class _Side:
    """Runs whose answers are blended."""

    name: str
    models: list[TrainedModel]
    rule: ScoringRule
    allowed: dict[str, set[str]]


@dataclass(frozen=True)
class _Cell:
    """One distortion at one level."""

    kind: str
    name: str
    level: str = ""
    change: Callable[[np.ndarray, str], np.ndarray] | None = None
    """Changes a crop; None for a cell of videos."""
    encoding: ClipEncoding | None = None

    @property
    def words(self) -> str:
        return f"{self.name} {self.level}".strip()

    def place(self, part: str = "") -> dict[str, str]:
        return {"kind": self.kind, "distortion": self.name, "level": self.level, "part": part}


def measure_robustness(inputs: RobustnessInputs) -> Robustness:
    """The crops as they are, their parts, every distortion and level, and the means over these.

    Raises:
        FileNotFoundError: no runs, table or faces folder, or a video to distort that is not there.
        ValueError: a leak, videos without faces extracted, nothing to evaluate, or no such distortion.
    """
    sweep, plain = _Sweep(inputs), _Cell(PLAIN, CLEAN, change=_as_stored)
    cells = sweep.cells()
    answers = sweep.answers(plain)
    clean = [scored(side) for side in answers]
    parts = dict(_parts(answers[0], sweep.extracted))
    rows = [cell_row(plain.place(), [[side] for side in clean]) | _faces(answers[0])]
    rows += [cell_row(plain.place(part), [[side] for side in clean], videos=ids) for part, ids in parts.items()]
    measured: dict[str, list[list[Scored]]] = {IDENTITY: [], OF_VIDEOS: [], OF_CROPS: []}
    warnings = []
    with progress_bar(len(cells), "robustness", "cells") as bar:
        for cell in cells:
            answers = sweep.answers(cell)
            found = [scored(side) for side in answers]
            row = cell_row(cell.place(), [[side] for side in found], clean) | _faces(answers[0])
            rows.append(row)
            logger.info("%s: log loss %.4f, AUC %.4f", cell.words, row["log_loss"], row["auc"])
            if cell.kind == IDENTITY and not all(map(_same_answers, found, clean)):
                warnings.append(
                    f"{cell.words}: expected the very answers that the crops as they are get, found others (log loss "
                    f"{row['log_loss_change']:+.1e}). On {sweep.device} equal crops do not get equal answers, and no "
                    "figure here is more exact than that."
                )
                logger.warning(warnings[-1])
            measured[cell.kind].append([{"": side[""]} for side in found])  # frames of all cells might be gigabytes
            bar.update()
    for kind in (OF_VIDEOS, OF_CROPS):
        if measured[kind]:
            mean = _Cell(MEAN, f"mean of {counted(len(measured[kind]), 'cell')} of distorted {kind}")
            over = list(zip(*measured[kind], strict=True))
            rows += [cell_row(mean.place(part), over, clean, videos=ids) for part, ids in {**parts, "": None}.items()]
    return Robustness(
        sweep.sides[0].name,
        sweep.sides[1].name if inputs.beside else "",
        pd.DataFrame(rows).reindex(columns=[*COLUMNS, *(BESIDE_COLUMNS if inputs.beside else ())]),
        checkpoint_digests(sweep.sides[0].models),
        tuple(warnings),
    )


def _as_stored(crop: np.ndarray, address: str = "") -> np.ndarray:
    """The crop, read in full as every distorted one is, where a plain prediction may decode a smaller one."""
    return crop


def _same_answers(one: Scored, other: Scored) -> bool:
    return all(np.array_equal(one[scale]["probability"], other[scale]["probability"]) for scale in other)


def _faces(answers: Answers) -> dict[str, float]:
    """`no_face` and `outside` of a row."""
    without = int((answers.videos["status"] != "ok").sum())
    return {"no_face": without, "outside": Outside.count(crop_distances(answers.frames)).share}


class _Sweep:
    """The inputs, checked, and the answers to one cell after the other."""

    def __init__(self, inputs: RobustnessInputs) -> None:
        names = (*DISTORTIONS, AGAIN, *VIDEO_DISTORTIONS)
        self.inputs = inputs
        self.wanted = {*(inputs.distortions or (*DISTORTIONS, AGAIN)), *(VIDEO_DISTORTIONS if inputs.on_videos else ())}
        if strange := sorted(self.wanted - set(names)):
            raise ValueError(f"--distortions: expected some of {', '.join(names)}, found {strange[0]!r}.")
        table = VIDEOS.read(inputs.videos)
        folds = (fold for run in (*inputs.runs, *inputs.beside) for fold in fold_folders(run))
        self.models = find_models(*{fold.resolve(): fold for fold in folds}.values())  # the two sides may share some
        selection, self.sides = select_videos(table, inputs.split), []
        for runs in filter(None, (inputs.runs, inputs.beside)):
            name = " + ".join(dict.fromkeys(map(experiment_name, runs)))
            rule = choose_scoring(runs, inputs.scoring, inputs.tta)
            models = with_tta(find_models(*runs), rule.tta)
            self.sides.append(_Side(name, models, rule, check_leaks(models, selection, table)))
        views = {model.name: model for side in self.sides for model in side.models}
        self.models = [views[model.name] for model in self.models]
        for model in (model for side in self.sides for model in side.models):
            if model.tta != views[model.name].tta:
                raise ValueError(
                    f"{model.name}: expected equal views of its crops on both sides, found --tta {model.tta} and "
                    f"{views[model.name].tta}. Pass --scoring none, and --tta if both shall take views."
                )
        self.selection, self.extracted = find_faces(selection, inputs.faces)
        if self.extracted.faces.empty:
            number = counted(len(self.selection.videos), "video")
            raise ValueError(
                f"--faces: expected a face in at least one of {number}, found none. "
                "Pass the folder with these videos, or look into its video_status.csv."
            )
        self.recipes = [read_recipe(folder) for folder in self.extracted.by_folder]
        self.device, self._loaded = pick_device(inputs.device), {}
        self.paths = {} if self.wanted.isdisjoint(VIDEO_DISTORTIONS) else self._video_paths()

    def _video_paths(self) -> dict[str, Path]:
        """video_id -> its file."""
        if self.recipes[0].foreign or any(declared_root(folder) for folder in self.extracted.by_folder):
            raise ValueError(
                "expected faces of `multiattn faces` to distort the videos themselves, found crops that another "
                "program cut. Leave out --on-videos, or cut faces of these videos first."
            )
        videos = self.selection.videos
        roots = named_roots(self.inputs.root, sorted(videos["dataset"].unique()))
        return locate_videos(videos, self.inputs.videos, roots=roots)

    def cells(self) -> list[_Cell]:
        """All cells but the crops as they are: the identities first, and videos last."""
        cells = [
            _Cell(IDENTITY if same else OF_CROPS, name, f"{level:g}", partial(distort, name, level))
            for name, level, same in crop_cells(self.wanted, max(recipe.size for recipe in self.recipes))
        ]
        if AGAIN in self.wanted and self.recipes[0].foreign:
            logger.warning(
                "%s: left out, for how these crops were cut is not known (%s)", AGAIN, self.recipes[0].foreign
            )
        elif AGAIN in self.wanted:
            # On the CPU: the loader's workers, which call it, are forked from a process that may use a GPU.
            found_by, threshold = get_detector(self.recipes[0].detector), self.recipes[0].threshold
            detector = load_detector(found_by, threshold=threshold, device="cpu", weights=self.inputs.weights)
            cells.append(_Cell(OF_CROPS, AGAIN, change=partial(detect_again, detector, self.recipes[0])))
        # Faces that were cut by masks or originals are cut otherwise here, where a video is all there is.
        if self.paths and all(recipe == self.recipes[0].for_prediction() for recipe in self.recipes):
            cells.append(_Cell(IDENTITY, VIDEO_AGAIN))
        for name, (encoding, levels, _) in VIDEO_DISTORTIONS.items():
            chosen = levels if name in self.wanted else ()
            cells += [_Cell(OF_VIDEOS, name, f"{level:g}", encoding=encoding(level)) for level in chosen]
        return cells

    def answers(self, cell: _Cell) -> list[Answers]:
        """The answers of each side, of all data sets together."""
        selection, extracted, file = self.selection, self.extracted, cell.words.replace(" ", "_")
        if cell.change is None:
            selection, extracted = self._extract(cell.encoding, self.inputs.out / FACES_FOLDER / file)
        predictions = predict_kept(
            self.models, extracted.by_folder, self.inputs.out / CELLS_FOLDER / f"{file}.parquet",
            device=self.device, precision=self.inputs.precision, distortion=f"{cell.words}, version {VERSION}",
            change=cell.change or _as_stored, loaded=self._loaded, keep_others=True,
        )  # fmt: skip
        answers = []
        for side in self.sides:
            by_model = predictions.groupby("model")
            mine = [rows[rows["video_id"].isin(side.allowed[m])] for m, rows in by_model if m in side.allowed]
            mine = pd.concat([predictions.head(0), *mine], ignore_index=True)
            found = answer_videos(selection, extracted, mine, side.rule)
            videos, frames = (pd.concat([getattr(one, name) for one in found]) for name in ("videos", "frames"))
            answers.append(Answers("", videos.sort_values("video_id", ignore_index=True), frames, side.rule))
        return answers

    def _extract(self, encoding: ClipEncoding | None, folder: Path) -> tuple[Selection, Extracted]:
        """The faces of the re-encoded videos, cut as those of the faces folder are, but without masks or originals."""
        recipe, videos = self.recipes[0].for_prediction(), self.selection.videos
        settings = ExtractionSettings(recipe=recipe, device=str(self.device), weights=self.inputs.weights)
        labels = dict(zip(videos["video_id"], videos["label"].tolist(), strict=True))
        tasks = [
            VideoTask(video_id=video, path=path.absolute(), label=labels[video], encoding=encoding)
            for video, path in self.paths.items()
        ]
        extract_faces(videos, tasks, folder, settings, jobs=None)
        return find_faces(self.selection, (folder,))


def detect_again(detector: Detector, recipe: CropRecipe, crop: np.ndarray, address: str = "") -> np.ndarray:
    """The crop that the recipe cuts around the largest face found in a crop with a border; the crop where none is."""
    (frame,), (faces,) = search_padded(detector, [crop])
    if not len(faces):
        return crop
    boxes = faces.boxes_xyxy
    largest = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    return cut_crop(frame, recipe, box_xyxy=boxes[largest], landmarks=faces.landmarks[largest])


def _parts(clean: Answers, extracted: Extracted) -> Iterator[tuple[str, pd.Index]]:
    """Words and video_ids of thirds of the videos: of their brightness, and of their faces' size, or where another
    program cut them and left that unknown, of their detail."""
    videos = pd.Index(clean.videos["video_id"])
    facts = _facts(extracted).reindex(videos)
    for name in facts.columns:
        ranks = facts[name].rank(method="first", pct=True)
        for part in range(PARTS):
            inside = (ranks > part / PARTS) & (ranks <= (part + 1) / PARTS)
            if inside.any():
                low, high = facts.loc[inside, name].min(), facts.loc[inside, name].max()
                yield f"{name} {low:.3g} to {high:.3g}", videos[inside.to_numpy()]


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
