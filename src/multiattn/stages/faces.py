"""Videos -> face crops, faces.parquet and video_status.csv; restartable.

multiattn faces --videos data/videos.csv --out data/faces/dfdc --num-frames 32 --size 380 --jobs 16 --reuse-original
multiattn faces --videos data/videos.csv --out data/faces/dfdc --backend dask --scheduler tcp://head:8786
multiattn faces --out data/faces/dfdc --pack
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

from multiattn.command_line import Devices, Jobs, NameOf, parse, results
from multiattn.config.choices import Alignment, FacePolicy, SplitName
from multiattn.config.settings import require
from multiattn.runtime.devices import device_names, pick_devices
from multiattn.runtime.text_tables import counted
from multiattn.video.detectors.registry import DEFAULT_DETECTOR, detector_names
from multiattn.video.extraction.engine import Backend

if TYPE_CHECKING:
    import pandas as pd

    from multiattn.video.crops.recipe import CropRecipe
    from multiattn.video.extraction.extract import VideoTask


@dataclass(frozen=True, kw_only=True)
class Options:
    out: Path
    """The faces folder."""
    videos: Path | None = None
    """The videos.csv of `multiattn index`; only --pack of a finished folder goes without."""
    pack: bool = False
    """Move the crops into tar shards when all videos are done; every command reads them there."""
    splits: tuple[SplitName, ...] = ()
    """Only videos of these splits, as `--splits train val` (default: all, those without a split too)."""
    root: tuple[str, ...] = ()
    """Overrides the roots kept in videos.json: DIR where the table holds one data set, else NAME=DIR for each."""
    num_frames: int = 32
    """Evenly spaced frames of each video."""
    size: int = 380
    """Side of the square crops in pixels."""
    alignment: Alignment = "template"
    """The way to cut: the landmarks brought to a template, or an upright square around the detector's box."""
    margin: float = 1.3
    """Side of the square, in longer sides of the box; the template's own is 1.3."""
    shift: float = 0.0
    """Distance of the square's centre below the box's, in sides of the square."""
    detector: Annotated[str, NameOf(detector_names)] = DEFAULT_DETECTOR
    weights: Path | None = None
    """The detector's weights file, where it needs one."""
    threshold: float | None = None
    """Every face with at least this detection score is kept (default: the detector's own)."""
    detect_every: int = 1
    """Detect in every k-th sampled frame only; boxes and landmarks between are interpolated along tracks."""
    policy: FacePolicy = "all-tracks"
    """Which faces of a video are kept; forged-mask: of a fake only those its mask video marks (FF++, DFD)."""
    reuse_original: bool = False
    """Crop fakes where their originals' faces are, if size and frame count are equal: aligned pairs, less detection."""
    fps: float | None = None
    """Frames a second of clips that are folders of pictures (default: not known, and all at second 0)."""
    fast_frames: bool = False
    """Take the nearest reference frame for a wanted one where that spares decoding."""
    jobs: Jobs = None
    backend: Backend = "local"
    """Where videos are extracted: this machine, or a dask or ray cluster that sees the same files at the same paths."""
    scheduler: str | None = None
    """The cluster's address: tcp://HOST:8786 for dask; ray finds the cluster of this machine by itself."""
    time_limit: float = 600.0
    """Seconds a video may take; then it is `unreadable`."""
    device: Devices = "auto"
    dry_run: bool = False
    """Say what would be done, in which time, memory and disk, and write nothing; without --pack."""

    def __post_init__(self) -> None:
        require(self.fps is None or self.fps > 0, self, "fps", "frames a second above 0")


def main(argv: list[str]) -> None:
    options = parse(Options, argv, stage="faces", doc=__doc__)
    if options.videos is not None:
        _extract(options)
    elif not options.pack:
        raise ValueError(
            "--videos: expected the videos.csv of `multiattn index`, found none; only --pack goes without."
        )
    if options.pack and not options.dry_run:
        from multiattn.video.extraction.packing import pack_crops

        packed, shards = pack_crops(options.out)
        results(f"{counted(packed, 'crop')} packed; {options.out} has {counted(shards, 'shard')}.")


def _extract(options: Options) -> None:
    from multiattn.datasets.manifest import locate_videos, named_roots
    from multiattn.tables import VIDEOS, left_out_lines
    from multiattn.video.extraction.extract import extraction_settings
    from multiattn.video.extraction.faces_folder import extract_faces

    videos = VIDEOS.read(options.videos)
    unnameable = left_out_lines(videos, options.videos)
    if options.splits:
        videos = videos[videos["split"].isin(options.splits)].reset_index(drop=True)
        if videos.empty:
            raise ValueError(f"{options.videos}: no video of split {' or '.join(options.splits)}.")
    names = ("detector", "weights", "threshold", "num_frames", "size", "alignment", "margin", "shift", "detect_every")
    given = {name: getattr(options, name) for name in (*names, "policy", "reuse_original", "fast_frames")}
    settings = extraction_settings(device=device_names(pick_devices(options.device)), **given)
    located = locate_videos(videos, options.videos, roots=named_roots(options.root, sorted(videos["dataset"].unique())))
    tasks = _tasks(videos, located, settings.recipe, options.fps)
    if options.dry_run:
        from multiattn.video.extraction.dry_run import describe_extraction

        results(*describe_extraction(tasks, options.out, settings, jobs=options.jobs))
        return
    statuses = extract_faces(
        videos, tasks, options.out, settings,
        jobs=options.jobs, backend=options.backend, scheduler=options.scheduler, time_limit=options.time_limit,
    )  # fmt: skip
    counts = statuses["status"].value_counts()
    results(
        f"{counted(len(statuses), 'video')}, {counted(statuses['num_crops'].sum(), 'crop')} in {options.out}: "
        + ", ".join(f"{counts.get(status, 0)} {status}" for status in ("ok", "no_face", "unreadable"))
    )
    if left_out := int(statuses["message"].str.contains("left out: ", regex=False).sum()):
        results(
            f"{counted(left_out, 'fake has', 'fakes have')} faces, but "
            "none that a mask marks; video_status.csv says why (no_face)."
        )
    if unnameable:
        results(*unnameable)


def _tasks(
    videos: "pd.DataFrame", located: dict[str, Path], recipe: "CropRecipe", fps: float | None
) -> "list[VideoTask]":
    from multiattn.datasets.ffpp import mask_of
    from multiattn.tables import FAKE
    from multiattn.video.extraction.extract import VideoTask

    tasks = []
    names = ("video_id", "dataset", "path", "label", "original")
    # As lists: pandas hands out single values of a column ten times slower.
    for video_id, dataset, path, label, original in zip(*(videos[name].tolist() for name in names), strict=True):
        video = located[video_id].absolute()
        mask = None
        if recipe.policy == "forged-mask" and label == FAKE and (name := mask_of(dataset, path)):
            mask = video.parents[len(PurePosixPath(path).parts) - 1] / name
            mask = mask if mask.is_file() else None
        reuse = recipe.reuse_original and label == FAKE and original in located
        tasks.append(
            VideoTask(
                video_id=video_id, path=video, label=label, mask=mask, fps=fps,
                original=original if reuse else "", original_path=located[original].absolute() if reuse else None,
            )
        )  # fmt: skip
    return tasks
