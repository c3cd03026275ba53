"""One video -> aligned crops on disk, the rows of `faces.parquet` and the row of `video_status.csv`."""

import itertools
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from multiattn.runtime import atomic_path
from multiattn.tables import FACES
from multiattn.video.align import align_crop
from multiattn.video.decode import Frame, FrameReader, UnreadableVideoError
from multiattn.video.detect import Detector, Faces, load_detector
from multiattn.video.recipe import CropRecipe
from multiattn.video.tracks import link_tracks

BATCH_FRAMES = 8


@dataclass(frozen=True)
class VideoFaces:
    """What one video gave; plain types only, so it can be kept as a line of JSON."""

    video_id: str
    status: str
    num_frames: int
    message: str
    rows: list[list[Any]]
    """Rows of `faces.parquet`, values in the order of its columns."""


@dataclass
class _Crop:
    frame_index: int
    seconds: float
    box_xyxy: np.ndarray
    score: float
    landmarks: np.ndarray
    jpeg: np.ndarray


def extract_video(path: Path, video_id: str, folder: Path, recipe: CropRecipe, device: str) -> VideoFaces:
    """Decode, detect, align, track and write the crops of one video below `folder/crops`.

    Any damage of the video ends in its status, never in an exception; errors of the machine (a full disk) do raise.
    """
    reader = FrameReader(path, recipe.num_frames)
    with _single_threaded():
        detector = load_detector(recipe.detector, recipe.threshold, device)
        try:
            crops_per_frame = _find_crops(reader, detector, recipe)
        except UnreadableVideoError as error:
            return VideoFaces(video_id, "unreadable", 0, str(error), [])
    tracks_per_frame = link_tracks([np.array([crop.box_xyxy for crop in crops]) for crops in crops_per_frame])
    rows = []
    for crops, tracks in zip(crops_per_frame, tracks_per_frame, strict=True):
        for crop, track in zip(crops, tracks.tolist(), strict=True):
            name = f"crops/{video_id}/{crop.frame_index:06d}_{track}.jpg"
            with atomic_path(folder / name, durable=False) as temporary:
                temporary.write_bytes(crop.jpeg.tobytes())
            rows.append(_row(video_id, crop, track, name))
    rows.sort(key=lambda row: (row[1], row[3]))
    return VideoFaces(video_id, "ok" if rows else "no_face", reader.num_frames, reader.message, rows)


def _find_crops(reader: FrameReader, detector: Detector, recipe: CropRecipe) -> list[list[_Crop]]:
    """The crops of each sampled frame; full frames are held for one batch only."""
    frames = iter(reader)
    crops_per_frame: list[list[_Crop]] = []
    while batch := list(itertools.islice(frames, BATCH_FRAMES)):
        # A stream may change its frame size midway; the detector takes one size at a time.
        for _, same_size in itertools.groupby(batch, key=lambda frame: frame.image.shape):
            run = list(same_size)
            for frame, faces in zip(run, detector([frame.image for frame in run]), strict=True):
                crops_per_frame.append(_crop_faces(frame, faces, recipe))
    return crops_per_frame


def _crop_faces(frame: Frame, faces: Faces, recipe: CropRecipe) -> list[_Crop]:
    settings = [cv2.IMWRITE_JPEG_QUALITY, recipe.jpeg_quality]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    crops = []
    for box, score, landmarks in zip(faces.boxes_xyxy, faces.scores, faces.landmarks, strict=True):
        image = align_crop(frame.image, landmarks, recipe.size)
        encoded, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
        if not encoded:
            raise RuntimeError(f"OpenCV could not encode a crop of {image.shape} as JPEG.")
        crops.append(_Crop(frame.index, frame.seconds, box, float(score), landmarks, jpeg))
    return crops


def _row(video_id: str, crop: _Crop, track: int, name: str) -> list[Any]:
    row = [video_id, crop.frame_index, crop.seconds, track, name, *crop.box_xyxy.tolist(), crop.score]
    row += crop.landmarks.ravel().tolist()
    if len(row) != len(FACES.columns):
        raise AssertionError(f"faces has {len(FACES.columns)} columns, this row {len(row)} values")
    return row


@contextmanager
def _single_threaded():
    """One thread for torch and OpenCV: the work is parallel over videos, and sums do not depend on the cores."""
    torch_threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(opencv_threads)
