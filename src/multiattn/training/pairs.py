"""Which fake crop shows the same face and frame as which real one, for paired sampling."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.tables import BOX, FAKE, REAL

logger = logging.getLogger(__name__)

BOX_TOLERANCE = 0.01
"""Of the longer side of the real face's box: how far a side of the fake's may lie from it. Boxes that were found anew
in fakes lay 2 to 5 % off (embedded clips, MTCNN); reused ones do not differ at all."""


def find_pairs(
    folder: Path, training: pd.DataFrame, faces: pd.DataFrame | None, videos: pd.DataFrame | None
) -> np.ndarray:
    """Rows of real crops and of the fakes made of them, at one frame and track, with boxes in one place.

    Args:
        folder: the faces folder, for messages.
        training: `FoldCrops.training`.
        faces: the `faces` table with its boxes.
        videos: the `videos` table, which names the originals.

    Returns:
        (P, 2) int64 rows of `training`, real and fake.

    Raises:
        ValueError: no original is known, or less than half of the crops whose original is are aligned with it.
    """
    video, names = pd.factorize(training["video_id"])
    label = training["label"].to_numpy()
    original = _original_of(names, videos)
    is_real = np.zeros(len(names), dtype=bool)
    is_real[video[label == REAL]] = True
    original[(original >= 0) & ~is_real[original]] = -1
    fakes = np.flatnonzero((label == FAKE) & (original[video] >= 0))
    num_fake_videos = len(np.unique(video[label == FAKE]))
    num_known = len(np.unique(video[fakes]))
    if num_known == 0:
        raise ValueError(
            f"{folder}: --sampling paired needs the originals of fakes, and of {num_fake_videos} fake videos to train "
            "on none names a real one among them (column `original` of videos.csv). Index a data set that knows them, "
            "and cut its faces with `multiattn faces --reuse-original`; or take --sampling balanced."
        )
    reals = np.flatnonzero(label == REAL)
    real_of_fake = _match(_keys(video[reals], training, reals), _keys(original[video[fakes]], training, fakes))
    found = real_of_fake >= 0
    pairs = np.stack([reals[real_of_fake[found]], fakes[found]], axis=1)
    aligned = _same_place(pairs, training, faces)
    logger.info(
        "paired sampling: %d pairs of %d real and %d fake videos; left out: %d fake crops without one of their "
        "original at the same frame and track, %d whose box lies elsewhere, %d fake videos of no known original",
        aligned.sum(), len(np.unique(video[pairs[aligned, 0]])), len(np.unique(video[pairs[aligned, 1]])),
        (~found).sum(), (~aligned).sum(), num_fake_videos - num_known,
    )  # fmt: skip
    if 2 * aligned.sum() < len(fakes):
        raise ValueError(
            f"{folder}: --sampling paired needs fakes cropped where their originals are, and of {len(fakes)} fake "
            f"crops with a known original {aligned.sum()} are: {(~found).sum()} have no crop of it at the same "
            f"frame and track, {(~aligned).sum()} have their box elsewhere. Cut the faces anew with "
            "`multiattn faces --reuse-original`, or take --sampling balanced."
        )
    return pairs[aligned]


def _original_of(names: pd.Index, videos: pd.DataFrame | None) -> np.ndarray:
    """(V,) the number of each video's original among the names; -1 where there is none."""
    if videos is None:
        return np.full(len(names), -1)
    place = pd.Index(videos["video_id"]).get_indexer(names)
    named = pd.Index(names).get_indexer(videos["original"].to_numpy()[place])
    return np.where(place >= 0, named, -1)


def _keys(video: np.ndarray, training: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """(N,) int64, equal for rows of one video (given by number), frame and track."""
    frame, track = training["frame_index"].to_numpy(), training["track"].to_numpy()
    return (video * (frame.max() + 1) + frame[rows]) * (track.max() + 1) + track[rows]


def _match(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(len(wanted),) the place of each wanted key among the known ones; -1 where it is not."""
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, wanted, sorter=order)
    nearest = order[np.minimum(place, len(known) - 1)]
    return np.where(known[nearest] == wanted, nearest, -1)


def _same_place(pairs: np.ndarray, training: pd.DataFrame, faces: pd.DataFrame) -> np.ndarray:
    """(P,) whether the boxes of a pair agree."""
    boxes = faces[list(BOX)].to_numpy(dtype=np.float32)
    face = training["face"].to_numpy()
    real, fake = boxes[face[pairs[:, 0]]], boxes[face[pairs[:, 1]]]
    side = np.maximum(real[:, 2] - real[:, 0], real[:, 3] - real[:, 1])
    return np.abs(real - fake).max(axis=1, initial=0) <= BOX_TOLERANCE * side
