"""Faces of a plain folder of videos, kept in a faces folder so that a killed run continues."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from multiattn.datasets.manifest import folder_manifest
from multiattn.runtime.files import read_json, write_json
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask
from multiattn.video.extraction.faces_folder import extract_faces

SOURCE_FILE = "source.json"
TIME_LIMIT_SECONDS = 600.0
"""A video. A 10 s clip takes seconds; a decoder that hangs must not cost a notebook its nine hours."""


def extract_folder_faces(
    videos_dir: Path,
    faces: Path,
    recipe: CropRecipe,
    *,
    jobs: int | None,
    device: torch.device,
    filenames: Iterable[str] | None = None,
    weights: Path | None = None,
) -> pd.DataFrame:
    """Extract what is not extracted yet.

    Args:
        recipe: how a model's crops were made; here without what takes labels, masks or originals
            (`CropRecipe.for_prediction`).
        filenames: the videos to take; None takes all of the folder.
        weights: the weights file of the recipe's detector; mtcnn needs none.

    Returns:
        The `videos` table (dataset `folder`).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no videos, a recipe of another program, a detector without its weights, or a faces folder that
            belongs to another folder of videos, whose clips may carry the same names.
    """
    settings = ExtractionSettings(recipe=recipe.for_prediction(), device=str(device), weights=weights)
    videos = folder_manifest(videos_dir, filenames)
    source = {"videos_dir": str(videos_dir.resolve())}
    path = faces / SOURCE_FILE
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
