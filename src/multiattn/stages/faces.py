"""Videos -> aligned face crops, faces.parquet and video_status.csv; restartable.

multiattn faces --videos data/videos.csv --out data/faces/dfdc --num-frames 32 --size 380 --jobs 16
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from multiattn.command_line import parse, results
from multiattn.datasets.manifest import locate_videos
from multiattn.runtime import pick_device
from multiattn.tables import VIDEOS
from multiattn.video.faces_folder import extract_faces
from multiattn.video.recipe import CropRecipe


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `multiattn faces`."""

    videos: Path
    """The videos.csv of `multiattn index`."""
    out: Path
    """The faces folder."""
    splits: tuple[Literal["train", "val", "test"], ...] = ()
    """Only videos of these splits, as `--splits train val` (default: all, those without a split too)."""
    root: tuple[str, ...] = ()
    """Overrides the roots kept in videos.json: DIR where the table holds one data set, else NAME=DIR for each."""
    num_frames: int = 32
    """Evenly spaced frames of each video."""
    size: int = 380
    """Side of the square crops in pixels."""
    detector: Literal["mtcnn"] = "mtcnn"
    threshold: float = 0.9
    """Every face with at least this detection score is kept."""
    jobs: int | None = None
    """Processes, each with one video at a time (default: one a core, on a GPU at most 4)."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parse(Options, argv, stage="faces", doc=__doc__)
    videos = VIDEOS.read(options.videos)
    if options.splits:
        videos = videos[videos["split"].isin(options.splits)].reset_index(drop=True)
        if videos.empty:
            raise ValueError(f"{options.videos}: no video of split {' or '.join(options.splits)}.")
    recipe = CropRecipe(
        num_frames=options.num_frames, size=options.size, detector=options.detector, threshold=options.threshold
    )
    located = locate_videos(videos, options.videos, roots=_roots(options.root, videos))
    device = str(pick_device(options.device))
    statuses = extract_faces(videos, located, options.out, recipe, jobs=options.jobs, device=device)
    counts = statuses["status"].value_counts()
    results(
        f"{len(statuses)} videos, {statuses['num_crops'].sum()} crops in {options.out}: "
        + ", ".join(f"{counts.get(status, 0)} {status}" for status in ("ok", "no_face", "unreadable"))
    )


def _roots(words: tuple[str, ...], videos: pd.DataFrame) -> dict[str, Path]:
    datasets = sorted(videos["dataset"].unique())
    if len(words) == 1 and "=" not in words[0] and len(datasets) == 1:
        return {datasets[0]: Path(words[0])}
    roots = dict(word.partition("=")[::2] for word in words)
    if set(roots) - set(datasets):
        raise ValueError(f"--root: expected NAME=DIR with NAME of {', '.join(datasets)}, found {' '.join(words)}.")
    return {name: Path(folder) for name, folder in roots.items()}
