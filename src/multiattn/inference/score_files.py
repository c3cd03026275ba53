"""Plain folders and files of videos or pictures -> faces and P(fake), without tables of labels or folds.

A file or two are read in this process, which saves starting another and loading torch there; with more, each is read in
a process of its own, and one that makes the decoder crash costs its own row only.

Models of several recipes get faces folders of their own, of one pass over each file. The persons are those of the first
recipe; the tracks of another, which its own search may have numbered otherwise, are matched with them by their boxes. A
file's probability is of each experiment's own tracks, as in a submission.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from multiattn.datasets.manifest import (
    LIST_SUFFIXES,
    clips_below,
    folder_manifest,
    is_frame_folder,
    is_video_name,
    log_left_out,
    video_row,
)
from multiattn.inference.predictor import BATCH_SIZE, predict_faces
from multiattn.inference.recipe_folders import CROP, encode_apart, join_faces, join_statuses, write_folders
from multiattn.inference.runs import TrainedModel, group_by_recipe
from multiattn.inference.runtimes import load_network
from multiattn.inference.submit.extraction import TIME_LIMIT_SECONDS
from multiattn.runtime.devices import device_names
from multiattn.runtime.files import exclusive_folder, read_json, write_json
from multiattn.runtime.frame_folders import is_image_name
from multiattn.runtime.layout import BEST_WEIGHTS
from multiattn.runtime.tensor_files import read_metadata
from multiattn.runtime.text_tables import counted, printable, terminal_table
from multiattn.scoring.distances import NOT_MEASURED, Outside, crop_distances
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS, describe_losses
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import BOX, UNKNOWN, VIDEOS
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import FrameArray
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask, encode_crops, prediction_settings
from multiattn.video.extraction.faces_folder import extract_faces, read_faces_folder

SOURCE_FILE = "source.json"
DATASET = "file"
RECIPE_FOLDER = "recipe"
"""Beginning of the names, below a faces folder, of those of further recipes."""
FEW = 2
"""Up to so many files are read in this process."""
GAP = 1.5
"""Times the usual distance between a file's frames: further apart, a face was away between two of its crops."""


def extract_folder_faces(
    videos_dir: Path,
    faces: Path,
    recipe: CropRecipe,
    *,
    jobs: int | None,
    device: torch.device | Sequence[torch.device],
    filenames: Iterable[str] | None = None,
    weights: Path | None = None,
) -> pd.DataFrame:
    """Extract the faces of a folder's videos into a faces folder, but for those that are in it already.

    Args:
        recipe: of a model's crops; what takes labels, masks or originals is left out (`CropRecipe.for_prediction`).
        filenames: the videos to take; None takes all of the folder.
        weights: the weights file of the recipe's detector, where it needs one.

    Returns:
        The `videos` table (dataset `folder`).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no videos, a recipe of another program, a detector without its weights, or a faces folder that
            belongs to another folder of videos, whose clips may carry the same names.
    """
    settings = ExtractionSettings(recipe=recipe.for_prediction(), device=device_names(device), weights=weights)
    videos = folder_manifest(videos_dir, filenames)
    source = {"videos_dir": str(videos_dir.resolve())}
    path = faces / SOURCE_FILE
    with exclusive_folder(faces):
        if not path.is_file():
            write_json(path, source)
        elif read_json(path) != source:
            raise ValueError(
                f"{faces}: holds the faces of {read_json(path)['videos_dir']}, not of {source['videos_dir']}. "
                "Choose another --faces folder."
            )
    tasks = [VideoTask(video_id=row.video_id, path=videos_dir / row.path) for row in videos.itertuples()]
    extract_faces(videos, tasks, faces, settings, jobs=jobs, time_limit=TIME_LIMIT_SECONDS)
    return videos


@dataclass(frozen=True)
class ScoredFiles:
    """Scores of some files, of the faces in them, and of their crops."""

    files: pd.DataFrame
    """file (as it was named), video_id, probability (NaN without a face), faces (tracks), frames (decoded), crops,
    status (`ok`, `no_face`, `unreadable`) and reason, in the order given."""
    faces: pd.DataFrame
    """video_id, track, probability (by the scoring rule, as if the face were alone in its file), crops, and spans: a
    list of (first, last) seconds between which it was there. Sorted by the first two."""
    crops: pd.DataFrame
    """video_id, track, frame_index, seconds, crop (path below the faces folder), probability (mean over the models),
    x1, y1, x2, y2 (pixels of the full frame), score (the detector's), distance and distance_reason (of
    `crop_distances`), sorted by the first three. With several recipes a row is a face, as the first that found it cut
    it."""

    @property
    def first_crops(self) -> pd.DataFrame:
        """The rows of `crops` that the first recipe cut."""
        return self.crops[~self.crops["crop"].str.startswith(RECIPE_FOLDER)]

    @property
    def num_readable(self) -> int:
        """Files that gave frames, with or without a face."""
        return int((self.files["status"] != "unreadable").sum())

    def outside(self, video_id: str) -> Outside:
        """The crops of a file that lie outside the faces of the training."""
        return Outside.count(self.crops[self.crops["video_id"] == video_id])

    def outside_notes(self) -> list[str]:
        """Lines that say of which files the faces lie outside those of the training, or that it was not measured."""
        everything = Outside.count(self.crops)
        if not everything.measured:
            return [f"{NOT_MEASURED[0].upper()}{NOT_MEASURED[1:]}."] if everything.crops else []
        each = [(file.file, self.outside(file.video_id)) for file in self.files.itertuples()]
        notes = [f"{name}: {outside.describe()}." for name, outside in each if outside.is_unusual]
        return notes or [f"Of all files {everything.describe()}."]

    def describe(self) -> str:
        """The table for a terminal: a line a file, and below it one a face, unless it is a picture of one."""
        lines = [("file", "P(fake)", "faces", "frames", "crops", "seconds", "status", "reason")]
        for file in self.files.itertuples():
            probability = f"{file.probability:.4f}" if np.isfinite(file.probability) else "-"
            lines.append((file.file, probability, file.faces, file.frames, file.crops, "", file.status, file.reason))
            of_file = self.faces[self.faces["video_id"] == file.video_id]
            for face in of_file.itertuples() if (file.faces, file.frames) != (1, 1) else ():
                name = f"  face {face.track}"
                lines.append((name, f"{face.probability:.4f}", "", "", face.crops, describe_spans(face.spans), "", ""))
        return terminal_table(lines, right=range(1, 5))


def find_files(names: Sequence[Path], *, frame_folders: bool = False) -> list[Path]:
    """The files named, and the videos and pictures in the folders named, at any depth; each file once.

    A file that is named itself is taken whatever its extension. With `frame_folders` a folder of pictures is one clip,
    in place of each picture by itself.

    Raises:
        FileNotFoundError: nothing of that name; says how many.
        ValueError: a folder without a video or picture.
    """
    if not names:
        raise ValueError("expected videos or pictures to score, found none named: multiattn score clip.mp4 --runs RUN.")
    absent = [name for name in names if not os.path.lexists(name)]
    if absent:
        raise FileNotFoundError(
            f"{absent[0]}: no such file or folder ({len(absent)} of {len(names)} named are not there). Check the path."
        )
    files: dict[str, Path] = {}
    for name in names:
        below = [name]
        if name.is_dir() and not (below := _media_below(name, frame_folders)):
            wanted = (
                "videos, or folders of pictures with a number in each name" if frame_folders else "videos or pictures"
            )
            raise ValueError(f"{name}: expected {wanted} in this folder, found none.")
        for path in below:
            files.setdefault(os.path.realpath(path), path)  # of a link to itself too
    return list(files.values())


def _media_below(folder: Path, frame_folders: bool) -> list[Path]:
    if frame_folders:
        return [folder] if is_frame_folder(folder) else [folder / path for path in clips_below(folder)]
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()  # what is no file either gets its row
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    media = [path for path in paths if is_video_name(path.name) or is_image_name(path.name)]
    left_out = sorted(path for path in {*paths} - {*media} if not path.name.lower().endswith(LIST_SUFFIXES))
    log_left_out(folder, [printable(str(path.relative_to(folder))) for path in left_out])
    return media


def score_files(
    files: Sequence[Path | FrameArray],
    models: list[TrainedModel],
    rule: ScoringRule,
    faces: Path,
    *,
    device: torch.device,
    precision: str = "auto",
    batch_size: int = BATCH_SIZE,
    weights: Path | None = None,
    jobs: int | None = None,
    fps: float | None = None,
    loaded: dict[str, tuple[nn.Module, str]] | None = None,
) -> ScoredFiles:
    """Extract, predict and aggregate. A picture is a video of one frame, cut and stored as a video's crops are.

    Args:
        files: at least one. Beside frames in memory files are read in this process too.
        faces: a folder to extract to, empty or not there yet.
        weights: the weights file of the models' detector, where it needs one.
        batch_size, precision, loaded: as of `predict_faces`.
        jobs: processes where there are more than `FEW` files; None is one a core.
        fps: frames a second of arrays, and of folders of pictures among the files; None: not known, 0 seconds all.

    Raises:
        ValueError: a detector without its weights, or a recipe of another program.
    """
    groups = group_by_recipe(models)
    settings = prediction_settings(list(groups), devices=str(device), weights=weights)
    folders = [faces, *(faces / f"{RECIPE_FOLDER}{number}" for number in range(1, len(settings)))]
    # By number: two folders may hold files of one name, and a table does not take every name a file system does.
    rows = [video_row(DATASET, f"{number:05d}", label=UNKNOWN) for number in range(len(files))]
    videos = VIDEOS.validate(pd.DataFrame(rows), "files")
    in_memory = [isinstance(file, FrameArray) for file in files]
    places = [file if here else file.absolute() for file, here in zip(files, in_memory, strict=True)]
    tasks = [VideoTask(video_id=row["video_id"], path=path, fps=fps) for row, path in zip(rows, places, strict=True)]
    is_here = len(files) <= FEW or any(in_memory)
    with ThreadPoolExecutor(1) as loader:
        begun = {it.name: loader.submit(load_network, it, device) for it in models if it.name not in (loaded or {})}
        if len(settings) == 1 and not is_here:
            extract_faces(videos, tasks, faces, settings[0], jobs=jobs, time_limit=TIME_LIMIT_SECONDS)
        else:
            alone = [replace(one, read_ahead=True) for one in settings]
            found = (encode_crops(task, *alone) for task in tasks) if is_here else encode_apart(tasks, settings, jobs)
            write_folders(videos, found, folders, settings)
        how = {"device": device, "precision": precision, "batch_size": batch_size, "loaded": loaded, "begun": begun}
        predictions = [
            predict_faces(of_recipe, folder, **how) for folder, of_recipe in zip(folders, groups.values(), strict=True)
        ]
    tables = [read_faces_folder(folder)[:2] for folder in folders]
    videos = videos.assign(path=[printable(str(path)) for path in files])
    if len(folders) == 1:
        return _scored(videos, *tables[0], predictions[0], predictions[0], rule)
    found, matched = join_faces([of_recipe for of_recipe, _ in tables], folders, predictions)
    statuses = join_statuses([of_recipe for _, of_recipe in tables], found)
    return _scored(videos, found, statuses, pd.concat(predictions), matched, rule)


def _scored(
    videos: pd.DataFrame,
    faces: pd.DataFrame,
    statuses: pd.DataFrame,
    predictions: pd.DataFrame,
    matched: pd.DataFrame,
    rule: ScoringRule,
) -> ScoredFiles:
    """`matched` are the predictions with the tracks of `faces`; in the others each recipe's are its own."""
    means = matched.groupby(CROP, as_index=False)["probability"].mean()
    crops = faces[[*CROP, "seconds", "crop", *BOX, "score"]].merge(means, on=CROP, validate="one_to_one")
    crops = crops.merge(crop_distances(matched), on=CROP, validate="one_to_one")
    crops = crops.sort_values(CROP, ignore_index=True)
    scores = rule.score(predictions)[["video_id", "probability"]]
    table = videos[["path", "video_id"]].merge(statuses, on="video_id", validate="one_to_one")
    table = table.merge(scores, on="video_id", how="left")
    tracks = crops.groupby("video_id")["track"].nunique()
    table["faces"] = table["video_id"].map(tracks).fillna(0).astype("int64")
    table = table.rename(columns={"path": "file", "num_frames": "frames", "num_crops": "crops", "message": "reason"})
    columns = ["file", "video_id", "probability", "faces", "frames", "crops", "status", "reason"]
    return ScoredFiles(table[columns], _score_faces(crops, matched, rule), crops)


def _score_faces(crops: pd.DataFrame, predictions: pd.DataFrame, rule: ScoringRule) -> pd.DataFrame:
    """Each face by itself: to the rule it is a video with one track."""
    alone = predictions.assign(video_id=face_ids(predictions), track=0)
    probabilities = rule.score(alone).set_index("video_id")["probability"]
    rows = []
    for video, of_file in crops.groupby("video_id", sort=True):
        step = usual_step(of_file)
        for track, of_face in of_file.groupby("track", sort=True):
            spans = [(piece["seconds"].iloc[0], piece["seconds"].iloc[-1]) for piece in unbroken(of_face, step)]
            rows.append((video, track, len(of_face), spans))
    table = pd.DataFrame(rows, columns=["video_id", "track", "crops", "spans"])
    return table.assign(probability=face_ids(table).map(probabilities).astype("float64"))


def face_ids(table: pd.DataFrame) -> pd.Series:
    """A name of each row's face, of its video_id and track."""
    return table["video_id"] + "/" + table["track"].astype(str)


def usual_step(crops: pd.DataFrame) -> float:
    """Seconds between a file's frames, their median; NaN of a single one."""
    return float(crops["seconds"].drop_duplicates().sort_values().diff().median())


def unbroken(crops: pd.DataFrame, step: float) -> Iterator[pd.DataFrame]:
    """The crops of one face in time, in pieces between which it was away; `step` is `usual_step` of the file."""
    crops = crops.sort_values(["seconds", "frame_index"])
    for _, piece in crops.groupby((crops["seconds"].diff() > GAP * step).cumsum(), sort=True):
        yield piece


def describe_spans(spans: Sequence[tuple[float, float]]) -> str:
    """`0.2 to 3.1, 5.0`: seconds of the first and the last frame of each span."""
    return ", ".join(f"{first:.1f} to {last:.1f}" if last > first else f"{first:.1f}" for first, last in spans)


def training_notes(models: Sequence[TrainedModel]) -> list[str]:
    """Lines, one an experiment, that say what its models know: data sets, number of videos, held-out log loss."""
    return [_training_note(name, of_name) for name, of_name in _by_experiment(models).items()]


def _training_note(name: str, models: list[TrainedModel]) -> str:
    if models[0].imported:
        return f"{name}: imported; its training videos and its loss on others are not known here."
    folds = models[0].folds()
    datasets = ", ".join(sorted({video.split("/", 1)[0] for video in folds["video_id"]})) or "an unknown data set"
    trained = set().union(*(model.trained_videos() for model in models[:2]))  # two folds leave no video out
    made = (
        f"trained on {counted(len(trained), 'video')} of {datasets}" if trained else "its training videos are not known"
    )
    if models[0].experiment.name.startswith("demo") or models[0].experiment.name.endswith("_tiny"):
        made += " to try the program out: it knows nothing about real faces"
    kept = [read_metadata(model.path / BEST_WEIGHTS) for model in models]
    loss, balanced = (
        np.mean([float(of.get(f"validation_{name}", "nan")) for of in kept])
        for name in ("log_loss", "balanced_log_loss")
    )
    if np.isnan(loss):
        return f"{name}: {made}; its out-of-fold log loss is not known."
    words = describe_losses(loss, balanced)
    return f"{name}: {made}; out-of-fold log loss {words}, constant 0.5: {CONSTANT_LOG_LOSS:.4f}."


def seen_notes(names: Mapping[str, Mapping[str, str]], files: Sequence[Path | FrameArray]) -> list[str]:
    """Warnings of files whose name a training video of the models bears, by `training_names`; a line an experiment."""
    notes = []
    for name, known in names.items():
        if seen := [path for path in files if isinstance(path, Path) and path.stem in known]:
            more = f" and {len(seen) - 3} more" if len(seen) > 3 else ""
            words = ", ".join(f"{path.name} ({known[path.stem]})" for path in seen[:3])
            notes.append(f"{name} has seen in its training, by the name: {words}{more}. Its score there says little.")
    return notes


def training_names(models: Sequence[TrainedModel]) -> dict[str, dict[str, str]]:
    """Experiment -> name of a training video's file, without its ending -> the video's id."""
    names = {}
    for name, of_name in _by_experiment(models).items():
        names[name] = {Path(video).name: video for model in of_name[:2] for video in model.trained_videos()}
    return names


def _by_experiment(models: Sequence[TrainedModel]) -> dict[str, list[TrainedModel]]:
    found: dict[str, list[TrainedModel]] = {}
    for model in models:
        found.setdefault(model.name.split("/", 1)[0], []).append(model)
    return found
