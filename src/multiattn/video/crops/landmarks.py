"""Five landmarks in crops that another program cut, found by a detector in each crop; restartable.

What was found stands in `landmarks.jsonl` of the faces folder, a line a crop, and is written into `faces.parquet` at
the end. A crop that is cut close to the face is searched with its border repeated on all sides: detectors look for
faces that lie in something.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from multiattn.runtime.crop_files import crops_root, read_stored
from multiattn.runtime.files import exclusive_folder
from multiattn.runtime.journal import Journal
from multiattn.runtime.layout import FACES_FILE, LANDMARKS_FILE
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FACES, LANDMARKS
from multiattn.video.crops.images import decode_crop
from multiattn.video.detectors.registry import Detector, Faces, load_detector, recipe_weights

logger = logging.getLogger(__name__)

PADDING = 0.25
"""Border around a crop, in its sides. Of 257 DFDC crops MTCNN found a face in all, in 247 of them at once."""
AT_ONCE = 32
"""Crops of one size that are searched together."""


@dataclass(frozen=True)
class CropPoints:
    """A crop's landmarks, a line of the journal."""

    crop: str
    """Its address."""
    points: list[float]
    """x and y of five points in pixels of the stored crop; empty where no face was found."""
    score: float


def find_landmarks(folder: Path, detector: type[Detector], *, weights: Path | None, device: str) -> tuple[int, int]:
    """Find the landmarks of all crops of a faces folder that declares its root, and write them into its table.

    The score of a crop becomes that of its face; where none is found it is 0, and so are the landmarks.

    Returns:
        How many crops have landmarks, and how many there are.

    Raises:
        ValueError: as `load_detector`; a crop that cannot be read, or another process is writing the folder.
    """
    loaded = load_detector(detector, threshold=detector.default_threshold, device=device, weights=weights)
    with exclusive_folder(folder):
        faces = FACES.read(folder / FACES_FILE)
        journal = Journal(folder / LANDMARKS_FILE, CropPoints)
        journal.claim({"detector": detector.name, "weights": recipe_weights(detector, weights), "padding": PADDING})
        done = journal.places()
        todo = faces.loc[~faces["crop"].isin(done), ["crop", "x2"]]
        if len(todo) < len(faces):
            logger.info("landmarks of %d of %d crops are known already", len(faces) - len(todo), len(faces))
        root = crops_root(folder)
        with journal, progress_bar(len(faces), "landmarks", "crops", initial=len(faces) - len(todo)) as bar:
            for names, side in _batches(todo):
                for name, found in zip(names, _search(loaded, root, names, side), strict=True):
                    journal.append(found_points(name, found, side))
                bar.update(len(names))
        found = {record.crop: record for record in journal.records()}
        records = [found[crop] for crop in faces["crop"]]
        points = [record.points or [0.0] * len(LANDMARKS) for record in records]
        faces = faces.assign(score=[record.score for record in records])
        faces[list(LANDMARKS)] = np.reshape(points, (-1, len(LANDMARKS)))
        FACES.write(faces, folder / FACES_FILE)
    return int((faces["score"] > 0).sum()), len(faces)


def _batches(crops: pd.DataFrame) -> Iterator[tuple[list[str], int]]:
    """Crops of one size, and their side."""
    for side, of_size in crops.groupby("x2"):
        names = of_size["crop"].tolist()
        for start in range(0, len(names), AT_ONCE):
            yield names[start : start + AT_ONCE], int(side)


def _search(detector: Detector, root: Path, names: list[str], side: int) -> list[Faces]:
    """The faces of each crop, in pixels of the padded crop."""
    crops = [decode_crop(read_stored(root / name), side, root / name) for name in names]
    return search_padded(detector, crops)[1]


def search_padded(detector: Detector, crops: list[np.ndarray]) -> tuple[list[np.ndarray], list[Faces]]:
    """Crops of one size with a border, and the faces in each; what the first pass finds nothing in is searched again.

    Args:
        crops: (S, S, 3) uint8 RGB.
    """
    pad = round(PADDING * len(crops[0]))
    images = [cv2.copyMakeBorder(crop, pad, pad, pad, pad, cv2.BORDER_REPLICATE) for crop in crops]
    found = detector(images)
    missed = [place for place, faces in enumerate(found) if not len(faces)]
    again = detector([images[place] for place in missed], thorough=True) if missed else []
    for place, faces in zip(missed, again, strict=True):
        found[place] = faces
    return images, found


def found_points(name: str, faces: Faces, side: int) -> CropPoints:
    """The landmarks of the surest face that the middle of the crop lies in, from those of the padded crop."""
    pad = round(PADDING * side)
    middle = pad + side / 2
    boxes = faces.boxes_xyxy
    inside = np.flatnonzero((boxes[:, :2] <= middle).all(axis=1) & (boxes[:, 2:] >= middle).all(axis=1))
    if len(inside) == 0:
        return CropPoints(name, [], 0.0)
    points = (faces.landmarks[inside[0]] - pad).ravel()
    return CropPoints(name, [round(float(value), 2) for value in points], float(faces.scores[inside[0]]))
