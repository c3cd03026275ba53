"""One video -> its aligned crops: as files and rows of a faces folder, or encoded in memory, by several recipes."""

import errno
import functools
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from multiattn.runtime.files import atomic_path
from multiattn.runtime.frame_folders import clip_facts, clip_fingerprint
from multiattn.runtime.layout import crop_path, crops_folder
from multiattn.tables import UNKNOWN
from multiattn.video.crops.recipe import CropRecipe
from multiattn.video.decoding.frames import FrameArray, FrameReader, UnreadableVideoError, read_ahead
from multiattn.video.decoding.reencode import ClipEncoding, UnencodableVideoError, reencode_clip
from multiattn.video.detectors.registry import Detector, get_detector, load_detector, recipe_weights, require_weights
from multiattn.video.extraction.engine import describe_error, is_device_failure, is_out_of_memory
from multiattn.video.extraction.isolation import worker_number
from multiattn.video.extraction.policy import choose_faces, reuse_faces
from multiattn.video.extraction.scan import BATCH_FRAMES, FOUND_BY, FaceCrop, Scan, Scanner

logger = logging.getLogger(__name__)

NO_PLACE = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
"""Errors of a name, not of the machine: the crops of another video lie there."""
REENCODED_CLIP = ".clip.mp4"
"""Beside a video's crops while they are made."""


@dataclass(frozen=True, kw_only=True)
class ExtractionSettings:
    """The recipe of a run's crops, and what its detector needs."""

    recipe: CropRecipe
    device: str = "cpu"
    """For the detector: `cpu`, or GPUs as `cuda:0,cuda:1`, among which the worker processes of a machine take turns."""
    weights: Path | None = None
    """The detector's weights file, where it needs one, or the folder of its files."""
    read_ahead: bool = False
    """Decode in a thread beside the detector: where no other video is extracted on the same cores."""
    detector: type[Detector] = field(init=False)
    """The recipe's. It goes to worker processes with these settings, so they know one that was registered here."""

    def __post_init__(self) -> None:
        self.recipe.require_makeable()
        object.__setattr__(self, "detector", get_detector(self.recipe.detector))
        require_weights(self.detector, self.weights)
        if (found := recipe_weights(self.detector, self.weights)) != self.recipe.weights:
            raise ValueError(
                f"{self.weights}: expected the weights whose SHA-256 begins with {self.recipe.weights}, found {found}."
            )

    def load_detector(self) -> Detector:
        """The detector of this process, loaded once."""
        how = {"threshold": self.recipe.threshold, "weights": self.weights}
        return load_detector(self.detector, device=devices_of_worker(self.device)[0], **how)


def devices_of_worker(devices: str) -> list[str]:
    """The devices of `ExtractionSettings.device` in the order in which this process is to use them."""
    names = devices.split(",")
    if len(names) > 1:  # a cluster's worker may have fewer GPUs than the machine that sends the calls
        names = [name for name in names if (torch.device(name).index or 0) < torch.cuda.device_count()] or names
    own = worker_number() % len(names)
    return names[own:] + names[:own]


@functools.lru_cache
def on_device(settings: ExtractionSettings, device: str) -> ExtractionSettings:
    """The settings for one device; kept, for making them digests the detector's weights."""
    return settings if device == settings.device else replace(settings, device=device)


def extraction_settings(
    *, detector: str, weights: Path | None, threshold: float | None, device: str, **recipe: Any
) -> ExtractionSettings:
    """Make settings of options; the rest is fields of `CropRecipe`, and no threshold the detector's own.

    Raises:
        FileNotFoundError: no such weights file.
        ValueError: settings that do not fit each other.
    """
    made = CropRecipe(
        detector=detector,
        weights=recipe_weights(get_detector(detector), weights),
        threshold=get_detector(detector).default_threshold if threshold is None else threshold,
        **recipe,
    )
    return ExtractionSettings(recipe=made, device=device, weights=weights.resolve() if weights is not None else None)


def prediction_settings(
    recipes: Sequence[CropRecipe], *, devices: str, weights: Path | None
) -> list[ExtractionSettings]:
    """The settings of each recipe for videos of unknown labels, masks and originals (`CropRecipe.for_prediction`); of
    several recipes the weights file is for those whose detector needs one. `devices` as of `ExtractionSettings.device`.

    Raises:
        ValueError: a recipe of another program, a detector without its weights.
    """
    some_need_it = any(recipe.weights for recipe in recipes)
    return [
        ExtractionSettings(
            recipe=recipe.for_prediction(),
            device=devices,
            weights=weights if recipe.weights or not some_need_it else None,
        )
        for recipe in recipes
    ]


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """One video to extract."""

    video_id: str
    path: Path | FrameArray
    """Its file, or frames in memory, which only `find_crops` and `encode_crops` take."""
    label: int = UNKNOWN
    """As the `videos` table has it. The policy `forged-mask` leaves out a fake whose forged face no mask shows."""
    mask: Path | None = None
    """A fake's mask video: as the video, forged pixels bright on black."""
    original: str = ""
    """The video_id of a fake's original; like `original_path`, only where its boxes shall be reused."""
    original_path: Path | None = None
    fps: float | None = None
    """Frames a second of a folder of pictures, where it is known."""
    encoding: ClipEncoding | None = None
    """The way the clip is encoded again before its faces are sought, for `extract_video`; None takes it as it is."""


@dataclass(frozen=True)
class VideoFaces:
    """Result of one video in a faces folder; plain types only, so it can be kept as a line of JSON."""

    video_id: str
    status: str
    num_frames: int
    message: str
    rows: list[list[Any]]
    """Rows of `faces.parquet`, values in the order of its columns."""
    detected_frames: int = 0
    """Frames the detector searched, both passes counted; 0 where tracks were reused."""
    reused: bool = False
    """True where the crops lie where the original's do."""
    fingerprint: str = ""
    seen: list[list[int]] = field(default_factory=list)
    """As `VideoFingerprint` has them."""


@dataclass(frozen=True)
class EncodedCrops:
    """Result of one video, its crops in memory."""

    video_id: str
    status: str
    """`ok`, `no_face` or `unreadable`."""
    message: str
    num_frames: int
    crops: list[FaceCrop]
    """Sorted by frame and track."""
    decode_seconds: float
    search_seconds: float
    """Detection, tracks, alignment, encoding."""
    detected_frames: int = 0
    reused: bool = False


@dataclass(frozen=True)
class VideoFingerprint:
    """Identity of what a video's crops were made of."""

    video_id: str
    fingerprint: str
    """Size and digest of each file's content, or the error it gave, and what else the policy goes by."""
    seen: list[list[int]]
    """`clip_facts` of each file: while these stay, its content does."""


def task_files(task: VideoTask, recipe: CropRecipe) -> list[Path]:
    """The files that decide the crops of a video: itself, its mask, its original."""
    mask = task.mask if recipe.policy == "forged-mask" else None
    original = task.original_path if recipe.reuse_original else None
    return [path for path in (task.path, mask, original) if path is not None]


def fingerprint_of(task: VideoTask, recipe: CropRecipe) -> VideoFingerprint:
    """The fingerprint of a video as it is now; its files are read whole: milliseconds beside a second of decoding."""
    files = task_files(task, recipe)
    seen = [clip_facts(path) for path in files]  # before the content: a change between the two is found the next time
    parts = [_content(path) for path in files]
    parts += [f"label {task.label}"] if recipe.policy == "forged-mask" else []
    parts += [repr(task.encoding)] if task.encoding is not None else []
    return VideoFingerprint(task.video_id, "; ".join(parts), seen)


def _content(path: Path) -> str:
    try:
        return clip_fingerprint(path)
    except OSError as error:
        return type(error).__name__


def find_crops(
    task: VideoTask, *settings: ExtractionSettings, original_rows: list[list[Any]] | None = None
) -> list[EncodedCrops]:
    """Decode, detect, align, track and encode the crops of one video, of each recipe as of that one alone; nothing is
    written.

    The video is decoded once for the frames of all recipes together, and searched once for those that find faces alike
    (`FOUND_BY`); the seconds of the results are equal shares. A damaged video is read by each recipe for itself: which
    frames are whole depends on which are decoded.

    With the original's rows of `faces.parquet` a fake is cropped where its original is, if `reuse_faces` finds the two
    alike; else, and without them, faces are detected. A video without a face in any searched frame is decoded again for
    the detector's second, thorough pass.
    """
    started = time.perf_counter()
    first, reason = settings[0].recipe, ""
    found: list[tuple[Scan, str]] = []
    wants = [(one.recipe.num_frames, one.recipe.fast_frames) for one in settings]
    reader = FrameReader(task.path, first.num_frames, fast_frames=first.fast_frames, fps=task.fps, also=wants)
    with single_threaded():
        try:
            if first.reuse_original and task.original_path is not None:
                scan, reason = reuse_faces(reader, task.path, task.original_path, original_rows, first)
                found = [(scan, "")] if scan is not None else []
            reused = bool(found)
            found = found or _search(reader, settings)
            chosen = [
                choose_faces(
                    scan, one.recipe.policy, label=task.label, mask=task.mask, num_frames=one.recipe.num_frames
                )
                for one, (scan, _) in zip(settings, found, strict=True)
            ]
        except UnreadableVideoError as error:
            if len(reader.frames_of) == 1:
                seconds = _shares(started, reader, settings)
                return [EncodedCrops(task.video_id, "unreadable", str(error), 0, [], *seconds)] * len(settings)
            chosen = None
    if len(reader.frames_of) > 1 and (reader.message or chosen is None):
        return [crops for one in settings for crops in find_crops(task, one)]
    kept_as = f"not cropped like the original: {reason}" if reason else ""
    return [
        EncodedCrops(
            task.video_id,
            "ok" if crops else "no_face",
            "; ".join(filter(None, (reader.message, kept_as, searched, note))),
            len(scan.frame_sizes_wh),
            crops,
            *_shares(started, reader, settings),
            detected_frames=scan.detected_frames,
            reused=reused,
        )
        for (scan, searched), (crops, note) in zip(found, chosen, strict=True)
    ]


def _shares(started: float, reader: FrameReader, settings: Sequence[ExtractionSettings]) -> tuple[float, float]:
    """Each recipe's seconds of decoding, and of the rest since the start."""
    search_seconds = max(0.0, time.perf_counter() - started - reader.seconds)
    return reader.seconds / len(settings), search_seconds / len(settings)


def _search(reader: FrameReader, settings: Sequence[ExtractionSettings]) -> list[tuple[Scan, str]]:
    """For each recipe the detector's pass, and where it finds nothing at all, the thorough one; and a note of the
    second."""
    found = [(scan, "") for scan in _scan(reader, settings)]
    empty = [place for place, (scan, _) in enumerate(found) if not scan.crops]
    again = _scan(reader, [settings[place] for place in empty], thorough=True) if empty else []
    for place, second in zip(empty, again, strict=True):
        second.detected_frames += found[place][0].detected_frames
        found[place] = (second, "faces found by the thorough pass only" if second.crops else "")
    return found


def _scan(reader: FrameReader, settings: Sequence[ExtractionSettings], *, thorough: bool = False) -> list[Scan]:
    """One pass of the reader, searched once for all recipes that find faces alike."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for place, one in enumerate(settings):
        alike.setdefault(tuple(getattr(one.recipe, name) for name in FOUND_BY), []).append(place)
    scanners = []
    for places in alike.values():
        recipes = [settings[place].recipe for place in places]
        scanner = Scanner(settings[places[0]].load_detector(), recipes, thorough=thorough)
        scanners.append((scanner, (recipes[0].num_frames, recipes[0].fast_frames)))
    frames = read_ahead(reader, BATCH_FRAMES) if settings[0].read_ahead else reader
    for frame in frames:
        for scanner, want in scanners:
            if frame.index in reader.frames_of[want]:
                scanner.add(frame)
    scans = [scan for scanner, _ in scanners for scan in scanner.finish()]
    order = [place for places in alike.values() for place in places]
    return [scan for _, scan in sorted(zip(order, scans, strict=True), key=lambda pair: pair[0])]


@contextmanager
def single_threaded():
    """One thread for torch and OpenCV: the work is parallel over videos, and sums do not depend on the cores."""
    torch_threads, opencv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(opencv_threads)


_failed: set[str] = set()
"""GPUs that gave this process an error after which they answer no more."""


def encode_crops(task: VideoTask, *settings: ExtractionSettings) -> list[EncodedCrops]:
    """`find_crops`; where a GPU fails or has no memory left, on the next one, at last on the CPU. Other errors of the
    machine raise."""
    for device in devices_of_worker(settings[0].device):
        if device in _failed:
            continue
        try:
            return find_crops(task, *(on_device(one, device) for one in settings))
        except Exception as error:
            if device == "cpu" or not (is_device_failure(error) or is_out_of_memory(error)):
                raise
            if is_device_failure(error):
                logger.warning("%s finds no more faces in this process: %s", device, describe_error(error))
                _failed.add(device)
    return find_crops(task, *(on_device(one, "cpu") for one in settings))


def extract_video(
    task: VideoTask, folder: Path, settings: ExtractionSettings, original_rows: list[list[Any]] | None = None
) -> VideoFaces:
    """Find the crops of one video (`find_crops`) and write them below `folder/crops/<video_id>`.

    Damage of the video ends in its status, never in an exception, and so does a name that leaves its crops no place;
    errors of the machine (a full disk) do raise. Crops of an earlier attempt, finished or killed, are removed.
    """
    remove_crops(folder, task.video_id)
    made_of = fingerprint_of(task, settings.recipe)
    try:
        with _reencoded(task, folder) as read:
            (found,) = find_crops(read, settings, original_rows=original_rows)
    except UnencodableVideoError as error:
        facts = {"fingerprint": made_of.fingerprint, "seen": made_of.seen}
        return VideoFaces(task.video_id, "unreadable", 0, str(error), [], **facts)
    status, message = found.status, found.message
    try:
        rows = write_crops(found.crops, task.video_id, folder)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        remove_crops(folder, task.video_id)
        status, message, rows = "unreadable", f"no place for its crops, {error.strerror}: rename it", []
    return VideoFaces(
        task.video_id, status, found.num_frames, message, rows, found.detected_frames, found.reused,
        made_of.fingerprint, made_of.seen,
    )  # fmt: skip


@contextmanager
def _reencoded(task: VideoTask, folder: Path) -> Iterator[VideoTask]:
    """The task with its clip encoded again, which is gone afterwards; as it is without an `encoding`, or where no frame
    can be decoded or the clip has no place, which `extract_video` then says."""
    if task.encoding is None:
        yield task
        return
    path = crops_folder(folder, task.video_id) / REENCODED_CLIP
    try:
        with suppress(UnreadableVideoError, FileExistsError, NotADirectoryError), single_threaded():
            path.parent.mkdir(parents=True, exist_ok=True)
            reencode_clip(task.path, path, task.encoding, fps=task.fps)
            task = replace(task, path=path, fps=None)
        yield task
    finally:
        with suppress(NotADirectoryError):
            path.unlink(missing_ok=True)


def remove_crops(faces: Path, video_id: str) -> None:
    """Remove the crops of one video, unfinished ones and a re-encoded clip too, and nothing else: videos may lie below
    its folder.

    Raises:
        ValueError: its folder is none of the faces folder's; see `crops_folder`.
    """
    folder = crops_folder(faces, video_id)
    for path in folder.glob("*.jpg") if folder.is_dir() else ():
        if re.fullmatch(r"\d{6,}_\d+\.jpg|\.\d{6,}_\d+\.jpg\..+", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
    if folder.is_dir():
        (folder / REENCODED_CLIP).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_crops(crops: list[FaceCrop], video_id: str, folder: Path) -> list[list[Any]]:
    """Write the crops below `folder/crops/<video_id>`; their rows of `faces.parquet`."""
    rows = []
    crops_folder(folder, video_id)
    for crop in crops:
        name = crop_path(video_id, crop.frame_index, crop.track)
        with atomic_path(folder / name, durable=False) as temporary:
            temporary.write_bytes(crop.jpeg)
        place = [*crop.box_xyxy.tolist(), crop.score, *crop.landmarks.ravel().tolist()]
        rows.append([video_id, crop.frame_index, crop.seconds, crop.track, name, *place])
    return rows
