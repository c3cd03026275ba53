"""Faces of a plain folder of videos, kept in a faces folder so that a killed run continues."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from multiattn.datasets.manifest import folder_manifest
from multiattn.runtime import read_json, write_json
from multiattn.video.faces_folder import extract_faces
from multiattn.video.recipe import CropRecipe

SOURCE_FILE = "source.json"


def extract_folder_faces(
    videos_dir: Path,
    faces: Path,
    recipe: CropRecipe,
    *,
    jobs: int | None,
    device: torch.device,
    filenames: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Extract what is not extracted yet.

    Args:
        filenames: the videos to take; None takes all of the folder.

    Returns:
        The `videos` table (dataset `folder`).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no videos, or the faces folder belongs to another folder of videos, whose clips may carry the
            same names.
    """
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
    located = {row.video_id: videos_dir / row.path for row in videos.itertuples()}
    extract_faces(videos, located, faces, recipe, jobs=jobs, device=str(device))
    return videos
