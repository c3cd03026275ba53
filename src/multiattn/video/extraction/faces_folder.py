"""A faces folder (video/README.md names its files) and its restartable extraction.

A video is done when its line stands in the journal or its row in `video_status.csv`. Any process killed at any moment
loses the videos in flight; the next run does those only, and its tables equal those of an undisturbed run.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from multiattn.runtime import layout
from multiattn.runtime.crop_files import declared_root
from multiattn.runtime.devices import default_jobs
from multiattn.runtime.files import exclusive_folder
from multiattn.runtime.frame_folders import clip_facts
from multiattn.runtime.journal import Journal
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.text_tables import counted
from multiattn.tables import FACES, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import CropRecipe, describe_difference, read_recipe, write_recipe
from multiattn.video.extraction.engine import Backend, Engine, Outcome, open_backend
from multiattn.video.extraction.extract import (
    ExtractionSettings,
    VideoFaces,
    VideoFingerprint,
    VideoTask,
    fingerprint_of,
    remove_crops,
    task_files,
)
from multiattn.video.extraction.isolation import end_processes

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 200_000
TARGET = "multiattn.video.extraction.extract:extract_video"
MAX_DEATHS_IN_A_ROW = 20
"""With so many it is the machine and not the videos."""


def faces_journal(folder: Path) -> Journal[VideoFaces]:
    """The finished videos of a run that has not ended yet, in the order in which they finished."""
    return Journal(folder / layout.FACES_JOURNAL, VideoFaces)


def extract_faces(
    videos: pd.DataFrame,
    tasks: list[VideoTask],
    folder: Path,
    settings: ExtractionSettings,
    *,
    jobs: int | None,
    backend: Backend = "local",
    scheduler: str | None = None,
    time_limit: float | None = None,
) -> pd.DataFrame:
    """Extract the faces of every video that is not done yet, then write the tables.

    With `reuse_original`, videos that are others' originals come first, and a fake gets the rows of its original where
    that is one of the tasks and itself no fake of another. The detections it saved are logged at the end.

    Args:
        videos: a `videos` table; rows of an earlier run that are not in it stay in the folder's tables.
        tasks: one a row of `videos`.
        jobs: processes on this machine, each with one video at a time; None is `default_jobs`.
        backend: with `scheduler` as `open_backend`.
        time_limit: seconds a video may take; it is `unreadable` after them. None is no limit.

    Returns:
        The `video_status` table of the whole folder.

    Raises:
        ValueError: the folder was made with another recipe, another process is writing it, or there is no such cluster.
        RuntimeError: worker processes cannot start, or die one after the other.
    """
    jobs = default_jobs(settings.device) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, found {jobs}.")
    if time_limit is not None and not time_limit > 0:
        raise ValueError(f"--time-limit: expected seconds above 0, found {time_limit}.")
    if set(videos["video_id"].tolist()) != {task.video_id for task in tasks}:
        raise ValueError("expected one task for each row of the videos table, found others.")
    folder = folder.absolute()  # a cluster's workers run in folders of their own
    with exclusive_folder(folder):
        journal = faces_journal(folder)
        journal.repair()
        _keep_recipe(folder, settings.recipe)
        path = folder / layout.STATUS_FILE
        statuses = VIDEO_STATUS.read(path, allow_empty=True) if path.is_file() else VIDEO_STATUS.empty()
        in_journal = journal.places()
        done = in_journal.keys() | set(statuses["video_id"].tolist())
        fingerprints = Journal(folder / layout.FINGERPRINTS_FILE, VideoFingerprint)
        fingerprints.repair()
        for video_id in _changed([task for task in tasks if task.video_id in done], fingerprints, settings, jobs):
            done.discard(video_id)
            in_journal.pop(video_id, None)
        todo = [task for task in tasks if task.video_id not in done]
        if len(todo) < len(tasks):
            logger.info("%d of %s done already", len(tasks) - len(todo), counted(len(tasks), "video"))
        if todo:
            originals = _originals(tasks) if settings.recipe.reuse_original else {}
            rows = _OriginalRows(folder, journal, in_journal, originals)
            with open_backend(backend, jobs=min(jobs, len(todo)), scheduler=scheduler) as run:
                engine = Engine(run, TARGET, time_limit=time_limit, most_deaths=MAX_DEATHS_IN_A_ROW)
                _extract(todo, engine, settings, journal, rows, fingerprints)
            if settings.device != "cpu":
                end_processes()  # each holds a part of the GPU's memory
        _write_videos(videos, folder)
        if journal.path.is_file() or not path.is_file():
            statuses = _finish(statuses, folder, settings.recipe)
    return statuses


def _changed(
    done: list[VideoTask], fingerprints: Journal[VideoFingerprint], settings: ExtractionSettings, jobs: int
) -> list[str]:
    """The video_ids of those whose crops another file or label would give now; one that is gone keeps its crops.

    A file's content is read only where its size, times or number differ from when it was last read.
    """
    known = {record.video_id: record for record in fingerprints.records()}
    recipe = settings.recipe
    if unknown := sum(task.video_id not in known for task in done):
        number = counted(unknown, "video was", "videos were")
        logger.info("%s extracted by an earlier version: taken as unchanged", number)

    def look_again(task: VideoTask) -> VideoFingerprint | None:
        seen = known[task.video_id].seen
        same_label = recipe.policy != "forged-mask" or known[task.video_id].fingerprint.endswith(f"label {task.label}")
        files = task_files(task, recipe)
        if (same_label and [clip_facts(path) for path in files] == seen) or not all(map(Path.exists, files)):
            return None
        return fingerprint_of(task, recipe)

    with ThreadPoolExecutor(jobs) as threads:
        again = [found for found in threads.map(look_again, (t for t in done if t.video_id in known)) if found]
    changed = [new.video_id for new in again if new.fingerprint != known[new.video_id].fingerprint]
    if same := [new for new in again if new.fingerprint == known[new.video_id].fingerprint]:
        with fingerprints:
            for new in same:
                fingerprints.append(new)
    if changed:
        number = counted(len(changed), "video")
        logger.info("%s changed since the extraction: extracted again", number)
    return changed


def _originals(tasks: list[VideoTask]) -> dict[str, str]:
    """video_id of a fake -> that of its original, where the one can be cropped like the other."""
    by_id = {task.video_id: task for task in tasks}
    return {
        task.video_id: task.original
        for task in tasks
        if task.original_path is not None and task.original in by_id and by_id[task.original].original_path is None
    }


class _OriginalRows:
    """The rows of finished originals, read one by one: those of all of DFDC would take gigabytes.

    Attributes:
        places: video_id -> its line in the journal; grows as videos finish.
        originals: fake -> original.
    """

    def __init__(
        self, folder: Path, journal: Journal[VideoFaces], places: dict[str, int], originals: dict[str, str]
    ) -> None:
        self.folder, self.journal, self.places, self.originals = folder, journal, places, originals
        self._merged: dict[str, pd.DataFrame] = {}
        if originals and (folder / layout.FACES_FILE).is_file():
            faces = FACES.read(folder / layout.FACES_FILE, allow_empty=True)
            faces = faces[faces["video_id"].isin(set(originals.values()) - places.keys())]
            self._merged = dict(iter(faces.groupby("video_id", sort=False)))

    def of(self, task: VideoTask) -> list[list[Any]] | None:
        """The rows of a fake's original; None for a video that has none in this run."""
        original = self.originals.get(task.video_id)
        if original is None:
            return None
        if original in self.places:
            return self.journal.read_at(self.places[original]).rows
        merged = self._merged.get(original, FACES.empty())
        return [list(row) for row in merged.itertuples(index=False, name=None)]


def _extract(
    todo: list[VideoTask],
    engine: Engine,
    settings: ExtractionSettings,
    journal: Journal[VideoFaces],
    rows: _OriginalRows,
    fingerprints: Journal[VideoFingerprint],
) -> None:
    """Run the tasks, originals first, and keep each result in the journal as soon as it is there."""
    counts: Counter[str] = Counter()
    try:
        with progress_bar(len(todo), "faces", "videos") as bar, fingerprints, journal:
            for is_fake in (False, True):
                tasks = (task for task in todo if (task.video_id in rows.originals) == is_fake)
                calls = ((task, (task, rows.folder, settings, rows.of(task))) for task in tasks)
                with contextlib.closing(engine.outcomes(calls)) as outcomes:
                    for outcome in outcomes:
                        if outcome.kind == "again":
                            continue
                        result = _result(outcome, rows.folder, settings.recipe)
                        fingerprints.append(VideoFingerprint(result.video_id, result.fingerprint, result.seen))
                        rows.places[result.video_id] = journal.append(result)
                        counts[result.status] += 1
                        bar.set_postfix(counts, refresh=False)
                        bar.update()
    except BaseException:
        end_processes()
        raise


def _result(outcome: Outcome, folder: Path, recipe: CropRecipe) -> VideoFaces:
    """The outcome of a video; one that ended its process or took too long is unreadable, and an error is raised."""
    if outcome.kind == "raised":
        raise outcome.value
    if outcome.kind == "done":
        return outcome.value
    remove_crops(folder, outcome.task.video_id)
    made_of = fingerprint_of(outcome.task, recipe)
    facts = {"fingerprint": made_of.fingerprint, "seen": made_of.seen}
    return VideoFaces(outcome.task.video_id, "unreadable", 0, outcome.value, [], **facts)


def _keep_recipe(folder: Path, recipe: CropRecipe) -> None:
    if (root := declared_root(folder)) is not None:
        raise ValueError(f"{folder}: this faces folder has the crops of {root}. Choose another folder for new ones.")
    begun = [faces_journal(folder).path, folder / layout.STATUS_FILE, folder / layout.CROPS_FOLDER]
    if not (folder / layout.RECIPE_FILE).is_file() or not any(path.exists() for path in begun):
        write_recipe(recipe, folder)  # also over that of a run which ended before its first video
        return
    if difference := describe_difference(read_recipe(folder), recipe, everything=True):
        raise ValueError(
            f"{folder / layout.RECIPE_FILE}: this folder was made with other settings: {difference}. "
            "Choose another faces folder, or pass the same settings to continue."
        )


def _write_videos(videos: pd.DataFrame, folder: Path) -> None:
    """Keep the folder's copy of the videos table up to date: labels and splits may have been indexed anew."""
    path = folder / layout.VIDEOS_FILE
    videos = videos.sort_values("video_id", ignore_index=True)
    if path.is_file():
        earlier = VIDEOS.read(path)
        others = earlier[~earlier["video_id"].isin(videos["video_id"])]
        videos = pd.concat([others, videos], ignore_index=True).sort_values("video_id", ignore_index=True)
        if videos.equals(earlier):
            return
    VIDEOS.write(videos, path)


def _finish(statuses: pd.DataFrame, folder: Path, recipe: CropRecipe) -> pd.DataFrame:
    """Merge the journal into the tables. `video_status.csv` comes last: only its rows make a video done."""
    journal = faces_journal(folder)
    tables, rows, new, reuse = [FACES.empty()], [], [], Counter()
    for place in journal.places().values():  # of a video that was extracted twice the later result
        result = journal.read_at(place)
        rows += result.rows
        new.append((result.video_id, result.status, result.num_frames, len(result.rows), result.message))
        reuse["videos"] += result.reused
        # Of so many sampled frames the detector would have searched every k-th from the first on, and the last.
        reuse["saved"] += -(-(result.num_frames - 1) // recipe.detect_every) + 1 if result.reused else 0
        reuse["searched"] += result.detected_frames
        if len(rows) > ROWS_AT_ONCE:  # typed columns take a tenth of what lists of Python objects take
            tables.append(pd.DataFrame(rows, columns=list(FACES.columns)))
            rows = []
    tables += [pd.DataFrame(rows, columns=list(FACES.columns))] if rows else []
    added = {row[0] for row in new}
    if (folder / layout.FACES_FILE).is_file():
        earlier = FACES.read(folder / layout.FACES_FILE, allow_empty=True)
        tables.insert(0, earlier[~earlier["video_id"].isin(added)])
    faces = pd.concat(tables, ignore_index=True).sort_values(list(FACES.key), ignore_index=True)
    FACES.write(faces, folder / layout.FACES_FILE)
    latest = pd.DataFrame(new, columns=list(VIDEO_STATUS.columns)) if new else VIDEO_STATUS.empty()
    statuses = pd.concat([statuses[~statuses["video_id"].isin(added)], latest], ignore_index=True)
    statuses = VIDEO_STATUS.validate(statuses.sort_values("video_id", ignore_index=True), folder / layout.STATUS_FILE)
    VIDEO_STATUS.write(statuses, folder / layout.STATUS_FILE)
    journal.path.unlink(missing_ok=True)  # its videos stand in the tables
    if recipe.reuse_original and new:
        total = reuse["searched"] + reuse["saved"]
        logger.info(
            "%d of %d videos were cropped where their originals are: the detector searched %d frames instead of %d, "
            "%.0f %% less",
            reuse["videos"], len(new), reuse["searched"], total, 100 * reuse["saved"] / max(1, total),
        )  # fmt: skip
    return statuses


def read_faces_folder(
    folder: Path, *, columns: Sequence[str] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The `faces`, `video_status` and `videos` tables of a finished faces folder.

    Args:
        columns: of `faces`, for folders of millions of crops; see `Table.read_columns`.

    Raises:
        FileNotFoundError: not a faces folder, or its extraction has not ended.
        ValueError: an interrupted run left videos in the journal.
    """
    read_recipe(folder)
    if faces_journal(folder).path.is_file():
        raise ValueError(f"{folder}: the extraction was interrupted. Run the same `multiattn faces` command again.")
    path = folder / layout.FACES_FILE
    faces = FACES.read(path, allow_empty=True) if columns is None else FACES.read_columns(path, columns)
    statuses = VIDEO_STATUS.read(folder / layout.STATUS_FILE)
    return faces, statuses, VIDEOS.read(folder / layout.VIDEOS_FILE)
