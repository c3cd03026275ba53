"""The work that `faces` would do, without writing into the faces folder: videos, time, memory and disk."""

import shutil
import tempfile
import time
from pathlib import Path

import torch

from multiattn.runtime import layout
from multiattn.runtime.devices import default_jobs
from multiattn.runtime.files import standing_folder
from multiattn.runtime.processor import peak_memory
from multiattn.runtime.text_tables import counted, duration
from multiattn.tables import VIDEO_STATUS
from multiattn.video.crops.recipe import describe_difference, read_recipe
from multiattn.video.extraction.extract import ExtractionSettings, VideoTask, extract_video
from multiattn.video.extraction.faces_folder import faces_journal


def describe_extraction(
    tasks: list[VideoTask], folder: Path, settings: ExtractionSettings, *, jobs: int | None
) -> list[str]:
    """Counts of videos, and hours, memory and disk by one of them that is extracted into a temporary folder.

    Raises:
        ValueError: the folder was made with another recipe.
    """
    if (folder / layout.RECIPE_FILE).is_file() and (other := describe_difference(read_recipe(folder), settings.recipe)):
        raise ValueError(f"{folder}: was made with another recipe: {other}. `faces` would refuse it.")
    path, jobs = folder / layout.STATUS_FILE, jobs or default_jobs(settings.device)
    done = set(faces_journal(folder).places())
    done |= set(VIDEO_STATUS.read(path, allow_empty=True)["video_id"]) if path.is_file() else set()
    todo = [task for task in tasks if task.video_id not in done]
    lines = [
        f"{counted(len(tasks), 'video')}, {len(tasks) - len(todo)} done; {settings.recipe.num_frames} frames of each"
    ]
    if todo:
        seconds, size, crops = _try_one(todo[len(todo) // 2], settings)
        free = shutil.disk_usage(standing_folder(folder)).free
        needed = size * len(todo)
        lines += [
            f"time: {duration(seconds * len(todo) / jobs)} in {counted(jobs, 'process', 'processes')}, by one video "
            f"extracted here ({seconds:.2g} s, {counted(crops, 'crop')})",
            f"memory: {jobs * peak_memory(torch.device('cpu')) / 1e9:.1f} GB, by the same",
            f"disk: {needed / 1e9:.2f} GB, by the same, of {free / 1e9:.1f} GB free"
            + (": too little" * (needed > free)),
        ]
    lines.append(f"would write {folder} with {layout.FACES_FILE}, {layout.STATUS_FILE}, crops. Nothing was written.")
    return lines


def _try_one(task: VideoTask, settings: ExtractionSettings) -> tuple[float, int, int]:
    """Seconds of one video once the detector is loaded, bytes and number of its crops."""
    with tempfile.TemporaryDirectory() as name:
        extract_video(task, Path(name), settings)
        started = time.perf_counter()
        found = extract_video(task, Path(name), settings)
        seconds = time.perf_counter() - started
        return seconds, sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file()), len(found.rows)
