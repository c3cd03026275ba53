"""A faces folder and its restartable extraction.

    FACES/faces.json         the recipe
    FACES/crops/<video_id>/  the crops
    FACES/journal.jsonl      finished videos of a run that has not ended yet, one line each
    FACES/faces.parquet, video_status.csv, videos.csv   the tables, written when a run ends

A video is done when its line stands in the journal or its row in `video_status.csv`. A process killed at any moment
loses the videos in flight; the next run does those only, and its tables equal those of an undisturbed run.
"""

import contextlib
import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import joblib
import pandas as pd

from multiattn.runtime import default_jobs, exclusive_folder, progress_bar
from multiattn.tables import FACES, VIDEO_STATUS, VIDEOS
from multiattn.video.extract import VideoFaces, extract_video
from multiattn.video.recipe import RECIPE_FILE, CropRecipe, read_recipe, write_recipe

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
ROWS_AT_ONCE = 200_000


def extract_faces(
    videos: pd.DataFrame, located: dict[str, Path], folder: Path, recipe: CropRecipe, *, jobs: int | None, device: str
) -> pd.DataFrame:
    """Extract the faces of every video that is not done yet, then write the tables.

    Args:
        videos: a `videos` table; rows of an earlier run that are not in it stay in the folder's tables.
        located: video_id -> file.
        jobs: processes, each with one video at a time; None is `runtime.default_jobs`.
        device: `cpu` or `cuda`, for the detector.

    Returns:
        The `video_status` table of the whole folder.

    Raises:
        ValueError: the folder was made with another recipe, or another process is writing it.
    """
    jobs = default_jobs(device) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"--jobs: expected at least 1, found {jobs}.")
    with exclusive_folder(folder):
        _keep_recipe(folder, recipe)
        _mend_journal(folder)
        statuses = _read_statuses(folder)
        done = set(statuses["video_id"]) | {result.video_id for result in _read_journal(folder)}
        todo = [video for video in videos["video_id"] if video not in done]
        if len(todo) < len(videos):
            logger.info("%d of %d videos are done already", len(videos) - len(todo), len(videos))
        if todo:
            _run(todo, located, folder, recipe, jobs=jobs, device=device)
        _write_videos(videos, folder)
        if (folder / JOURNAL).is_file() or not (folder / "video_status.csv").is_file():
            statuses = _finish(statuses, folder)
    return statuses


def _run(
    todo: list[str],
    located: dict[str, Path],
    folder: Path,
    recipe: CropRecipe,
    *,
    jobs: int,
    device: str,
) -> None:
    counts: Counter[str] = Counter()
    tasks = (joblib.delayed(extract_video)(located[video], video, folder, recipe, device) for video in todo)
    parallel = joblib.Parallel(n_jobs=min(jobs, len(todo)), return_as="generator_unordered", batch_size=1)
    watched = progress_bar(len(todo), "faces", "videos")
    with _worker_environment(), watched as bar, (folder / JOURNAL).open("a") as file:
        for result in parallel(tasks):
            file.write(json.dumps(asdict(result), separators=(",", ":")) + "\n")
            file.flush()
            counts[result.status] += 1
            bar.set_postfix(counts, refresh=False)
            bar.update()


@contextlib.contextmanager
def _worker_environment() -> Iterator[None]:
    """Variables that joblib's workers inherit when they start.

    MTCNN meets a new batch size with nearly every video, and oneDNN's cache of compiled sizes would grow by hundreds of
    megabytes a worker, until joblib takes it for a leak and restarts the worker.
    """
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    before = os.environ.get(name)
    os.environ.setdefault(name, "16")
    try:
        with warnings.catch_warnings():
            # What growth is left ends in a fresh worker now and then. No video is lost, so nobody needs to read of it.
            warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
            yield
    finally:
        if before is None:
            del os.environ[name]


def _keep_recipe(folder: Path, recipe: CropRecipe) -> None:
    if not (folder / RECIPE_FILE).is_file():
        write_recipe(recipe, folder)
        return
    kept = read_recipe(folder)
    if kept != recipe:
        raise ValueError(
            f"{folder / RECIPE_FILE}: this folder was made with {kept}, asked for {recipe}. "
            "Choose another --out, or pass the same settings to continue."
        )


def _mend_journal(folder: Path) -> None:
    """Cut off the line that a kill left unfinished; its video is done again. A journal without lines goes."""
    path = folder / JOURNAL
    if not path.is_file():
        return
    whole = 0
    with path.open("rb") as file:
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, whole)
    if whole == 0:
        path.unlink()


def _read_journal(folder: Path) -> Iterator[VideoFaces]:
    """Finished videos of a run that has not ended yet, one by one: all of DFDC would take gigabytes."""
    path = folder / JOURNAL
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield VideoFaces(**json.loads(line))
            except (json.JSONDecodeError, TypeError) as error:
                raise ValueError(
                    f"{path}: line {number} is damaged ({error}). Delete that line and run again."
                ) from error


def _read_statuses(folder: Path) -> pd.DataFrame:
    path = folder / "video_status.csv"
    return VIDEO_STATUS.read(path, allow_empty=True) if path.is_file() else VIDEO_STATUS.empty()


def _write_videos(videos: pd.DataFrame, folder: Path) -> None:
    """Keep the folder's copy of the videos table up to date: labels and splits may have been indexed anew."""
    path = folder / "videos.csv"
    if path.is_file():
        earlier = VIDEOS.read(path)
        others = earlier[~earlier["video_id"].isin(set(videos["video_id"]))]
        merged = pd.concat([others, videos], ignore_index=True).sort_values("video_id", ignore_index=True)
        if merged.equals(earlier):
            return
        videos = merged
    VIDEOS.write(videos.sort_values("video_id", ignore_index=True), path)


def _finish(statuses: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Merge the journal into the tables. `video_status.csv` comes last: only its rows make a video done."""
    tables, rows, new = [FACES.empty()], [], []
    for result in _read_journal(folder):
        rows += result.rows
        new.append((result.video_id, result.status, result.num_frames, len(result.rows), result.message))
        if len(rows) > ROWS_AT_ONCE:  # typed columns take a tenth of what lists of Python objects take
            tables.append(pd.DataFrame(rows, columns=list(FACES.columns)))
            rows = []
    tables.append(pd.DataFrame(rows, columns=list(FACES.columns)) if rows else FACES.empty())
    added = {row[0] for row in new}
    if (folder / "faces.parquet").is_file():
        earlier = FACES.read(folder / "faces.parquet", allow_empty=True)
        tables.insert(0, earlier[~earlier["video_id"].isin(added)])
    faces = pd.concat(tables, ignore_index=True).sort_values(list(FACES.key), ignore_index=True)
    FACES.write(faces, folder / "faces.parquet")
    latest = pd.DataFrame(new, columns=list(VIDEO_STATUS.columns)) if new else VIDEO_STATUS.empty()
    statuses = pd.concat([statuses[~statuses["video_id"].isin(added)], latest], ignore_index=True)
    statuses = VIDEO_STATUS.validate(statuses.sort_values("video_id", ignore_index=True), folder / "video_status.csv")
    VIDEO_STATUS.write(statuses, folder / "video_status.csv")
    (folder / JOURNAL).unlink(missing_ok=True)
    return statuses


def read_faces_folder(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The `faces`, `video_status` and `videos` tables of a finished faces folder.

    Raises:
        FileNotFoundError: not a faces folder, or its extraction has not ended.
        ValueError: an interrupted run left videos in the journal.
    """
    read_recipe(folder)
    if (folder / JOURNAL).is_file():
        raise ValueError(f"{folder}: the extraction was interrupted. Run the same `multiattn faces` command again.")
    faces = FACES.read(folder / "faces.parquet", allow_empty=True)
    statuses = VIDEO_STATUS.read(folder / "video_status.csv")
    return faces, statuses, VIDEOS.read(folder / "videos.csv")
