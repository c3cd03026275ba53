"""Faces folders of several recipes, of one pass over each file, and what they hold as the faces of one."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from multiattn.inference.submit.extraction import TARGET, TIME_LIMIT_SECONDS
from multiattn.inference.submit.results import overall
from multiattn.runtime.devices import default_jobs
from multiattn.runtime.layout import FACES_FILE, STATUS_FILE, VIDEOS_FILE
from multiattn.runtime.progress import progress_bar
from multiattn.tables import FACES, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import write_recipe
from multiattn.video.extraction.engine import Engine, in_threads
from multiattn.video.extraction.extract import EncodedCrops, ExtractionSettings, VideoTask, write_crops
from multiattn.video.extraction.isolation import end_processes
from multiattn.video.extraction.scan import match_tracks

CROP = ["video_id", "track", "frame_index"]
"""Columns that name a crop."""


def encode_apart(
    tasks: list[VideoTask], settings: Sequence[ExtractionSettings], jobs: int | None
) -> Iterator[list[EncodedCrops]]:
    """Each file's crops by each recipe, from processes of their own, in any order."""
    jobs = min(len(tasks), default_jobs(settings[0].device) if jobs is None else jobs)
    engine = Engine(partial(in_threads, jobs=jobs), TARGET, time_limit=TIME_LIMIT_SECONDS)
    is_done = False
    try:
        with progress_bar(len(tasks), "faces", "videos") as bar:
            for outcome in engine.outcomes((task, (task, *settings)) for task in tasks):
                if outcome.kind == "raised":
                    raise outcome.value
                if outcome.kind != "again":
                    lost = EncodedCrops(outcome.task.video_id, "unreadable", str(outcome.value), 0, [], 0.0, 0.0)
                    yield outcome.value if outcome.kind == "done" else [lost] * len(settings)
                    bar.update()
        is_done = True
    finally:
        if not is_done or settings[0].device != "cpu":
            end_processes()  # at work on what nobody waits for, or with a part of the GPU's memory


def write_folders(
    videos: pd.DataFrame,
    found: Iterable[list[EncodedCrops]],
    folders: Sequence[Path],
    settings: Sequence[ExtractionSettings],
) -> None:
    """Make a finished faces folder of each recipe, as `extract_faces` does."""
    rows, facts = [[] for _ in folders], [[] for _ in folders]
    for results in found:
        for it, folder, of_faces, of_videos in zip(results, folders, rows, facts, strict=True):
            of_faces += write_crops(it.crops, it.video_id, folder)
            of_videos.append((it.video_id, it.status, it.num_frames, len(it.crops), it.message))
    for one, folder, of_faces, of_videos in zip(settings, folders, rows, facts, strict=True):
        write_recipe(one.recipe, folder)
        faces = pd.DataFrame(of_faces, columns=list(FACES.columns)) if of_faces else FACES.empty()
        FACES.write(faces.sort_values(list(FACES.key)), folder / FACES_FILE)
        VIDEO_STATUS.write(pd.DataFrame(sorted(of_videos), columns=list(VIDEO_STATUS.columns)), folder / STATUS_FILE)
        VIDEOS.write(videos, folder / VIDEOS_FILE)


def join_faces(
    faces: Sequence[pd.DataFrame], folders: Sequence[Path], predictions: Sequence[pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `faces` of all recipes as one table, each face of a frame as the first recipe that found it cut it, and the
    frame predictions of all; tracks are the persons of the first recipe. Paths are below the first folder, in which the
    others lie."""
    joined, matched = faces[0], [predictions[0]]
    for folder, own, of_recipe in zip(folders[1:], faces[1:], predictions[1:], strict=True):
        persons = {
            (video, track): person
            for video, rows in own.groupby("video_id")
            for track, person in match_tracks(joined[joined["video_id"] == video], rows).items()
        }
        own = own.assign(crop=[f"{folder.name}/{path}" for path in own["crop"]])
        joined = pd.concat([joined, _renumbered(own, persons)]).drop_duplicates(CROP, ignore_index=True)
        matched.append(_renumbered(of_recipe, persons))
    return joined, pd.concat(matched)


def _renumbered(table: pd.DataFrame, persons: dict[tuple[str, int], int]) -> pd.DataFrame:
    tracks = [persons[place] for place in zip(table["video_id"], table["track"], strict=True)]
    return table.assign(track=np.array(tracks, dtype=np.int64))


def join_statuses(statuses: Sequence[pd.DataFrame], faces: pd.DataFrame) -> pd.DataFrame:
    """The `video_status` tables of all recipes as one, of the faces of `join_faces`."""
    rows = []
    for video, them in pd.concat(statuses).groupby("video_id", sort=True):
        crops = faces[faces["video_id"] == video]
        status, message = overall(them.itertuples())
        # At other frames each, the frames with a face may be more than those that one recipe saw.
        rows.append((video, status, max(them["num_frames"].max(), crops["frame_index"].nunique()), len(crops), message))
    return pd.DataFrame(rows, columns=list(VIDEO_STATUS.columns))
