"""Face extraction as `multiattn faces` does it beside a straightforward loop: time, memory, and the faces found.

Both are timed from the start of their processes to the end, imports included. Beside them, alone and in one thread: the
stages of the extraction, and decoding plus detection by themselves.
"""

import cProfile
import pstats
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import av
import cv2
import numpy as np
import pandas as pd
import torch

from multiattn.bench.harness import Measured, find_videos, run_alone
from multiattn.bench.options import FacesBench
from multiattn.datasets.manifest import video_row
from multiattn.runtime.devices import pick_device
from multiattn.runtime.environment import describe_machine
from multiattn.runtime.files import file_digest
from multiattn.runtime.layout import FACES_FILE
from multiattn.runtime.text_tables import terminal_table
from multiattn.tables import FACES, UNKNOWN, VIDEOS
from multiattn.video.crops.recipe import CropRecipe, cut_crop
from multiattn.video.decoding.frames import (
    FrameReader,
    UnreadableVideoError,
    evenly_spaced_indices,
    probe_video,
    to_image,
)
from multiattn.video.detectors.registry import LONGEST_SIDE, SMALLEST_FACE, Detector
from multiattn.video.extraction.extract import (
    ExtractionSettings,
    VideoTask,
    extract_video,
    extraction_settings,
    single_threaded,
    write_crops,
)
from multiattn.video.extraction.faces_folder import extract_faces
from multiattn.video.extraction.isolation import end_processes
from multiattn.video.extraction.scan import BATCH_FRAMES, cut_face, pairwise_iou

FULL_HD = 1920
"""Longest side of the frames that the loop's detector sees, in pixels."""
DFDC_VIDEOS = 119_154
"""Training clips of DFDC."""
SMALLEST_SHARE = SMALLEST_FACE / LONGEST_SIDE
"""The smallest faces our first pass searches for, over the frame's longer side; the loop's full-size pass finds posters
on the wall too."""
MIN_IOU = 0.5
"""From here on two boxes show the same face."""

Boxes = dict[tuple[str, int], np.ndarray]
"""(video_id, frame_index) -> (N, 4) boxes in pixels of the full frame."""


def measure(options: FacesBench) -> list[str]:
    """Lines for a terminal: the stages of our extraction, both sides, and what they are measured by.

    Raises:
        ValueError: no videos, or one that cannot be read; the loop and the parts taken alone have no way to go on.
    """
    paths = find_videos(options.videos_dir)
    names = [path.relative_to(options.videos_dir).as_posix() for path in paths]
    videos = VIDEOS.validate(pd.DataFrame([video_row("folder", name, label=UNKNOWN) for name in names]), "videos")
    settings = extraction_settings(
        detector=options.detector,
        weights=options.weights,
        threshold=None,
        device=str(pick_device(options.device)),
        num_frames=options.num_frames,
        size=options.size,
    )
    tasks = [VideoTask(video_id=name, path=path) for name, path in zip(videos["video_id"], paths, strict=True)]
    longest_sides = {task.video_id: _longest_side(task.path) for task in tasks}
    for path in paths:
        file_digest(path)  # reads it, so that both sides find it in the system's memory
    ours = run_alone("ours", _run_ours, videos, tasks, settings, options.jobs)
    stages, cpu, parts = run_alone("stages", _run_stages, tasks, settings).result
    comparison = Comparison(
        num_videos=len(tasks),
        ours=ours,
        loop=run_alone("loop", _run_loop, tasks, settings),
        stages=stages,
        cpu_seconds=cpu,
        parts_cpu_seconds=parts,
        longest_sides=longest_sides,
    )
    return [
        f"{len(tasks)} videos, {options.num_frames} frames each, {options.detector}",
        describe_machine(torch.device(settings.device)),
        "",
        *comparison.table(),
    ]


@dataclass(frozen=True)
class Comparison:
    """Both sides, and what they are measured by."""

    num_videos: int
    ours: Measured[Boxes]
    loop: Measured[Boxes]
    stages: dict[str, float]  # seconds over all clips in one thread; `rest` is what no stage claims
    cpu_seconds: float  # of the same, without the start of a process
    parts_cpu_seconds: float  # of decoding up to the last wanted frame, plus detection, alone in one thread
    longest_sides: dict[str, int]  # video_id -> pixels of the longer side of its frames

    def recall(self, *, min_share: float = 0.0) -> float:
        """Share of the loop's faces that we have too, of those that are at least `min_share` of the longer sides."""
        reference = {}
        for (video, index), boxes in self.loop.result.items():
            sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
            reference[video, index] = boxes[sides >= min_share * self.longest_sides[video]]
        return shared_faces(reference, self.ours.result)

    def table(self) -> list[str]:
        total = sum(self.stages.values())
        stages = [(name, f"{spent:.2f}", f"{spent / total:.0%}") for name, spent in self.stages.items()]
        sides = [("", "wall, s", "CPU, s", "videos/s", "faces/s", "peak, GB", "faces", "hours for DFDC")]
        for name, side in (("ours", self.ours), ("loop", self.loop)):
            rate, num_faces = self.num_videos / side.seconds, sum(map(len, side.result.values()))
            seconds = f"{side.seconds:.1f}", f"{side.cpu_seconds:.1f}"
            rates = f"{rate:.2f}", f"{num_faces / side.seconds:.1f}"
            peak, hours = f"{side.peak_bytes / 1e9:.2f}", f"{DFDC_VIDEOS / rate / 3600:,.0f}"
            sides.append((name, *seconds, *rates, peak, num_faces, hours))
        return [
            *terminal_table([("stage, one thread", "seconds", "share"), *stages], right=(1, 2)).splitlines(),
            "",
            *terminal_table(sides, right=range(1, 8)).splitlines(),
            "",
            f"{self.loop.seconds / self.ours.seconds:.2f} times the loop's videos/s",
            f"{self.recall(min_share=SMALLEST_SHARE):.1%} of its faces that are at least {SMALLEST_SHARE:.0%} of the "
            f"frame's longer side, {self.recall():.1%} of all",
            f"{self.cpu_seconds / self.parts_cpu_seconds:.2f} times the CPU time of decoding and detection alone "
            f"({self.parts_cpu_seconds:.1f} s)",
        ]


def _longest_side(path: Path) -> int:
    try:
        shape = probe_video(path)
    except UnreadableVideoError as error:
        raise ValueError(
            f"{path}: expected a video that can be read, found: {error}. Take it out and run again."
        ) from error
    return max(shape.width, shape.height)


def shared_faces(reference: Boxes, found: Boxes) -> float:
    """Share of the reference's boxes that have one of `found` in their frame with an IoU of `MIN_IOU`; 1 of none."""
    hits = total = 0
    for key, boxes in reference.items():
        iou = pairwise_iou(boxes, found.get(key, np.zeros((0, 4))))
        hits += int((iou.max(axis=1, initial=0) >= MIN_IOU).sum())
        total += len(boxes)
    return hits / total if total else 1.0


def _run_ours(videos: pd.DataFrame, tasks: list[VideoTask], settings: ExtractionSettings, jobs: int | None) -> Boxes:
    with tempfile.TemporaryDirectory() as folder:
        extract_faces(videos, tasks, Path(folder), settings, jobs=jobs)
        end_processes()  # the CPU time of processes that are still there is not counted
        faces = FACES.read(Path(folder) / FACES_FILE, allow_empty=True).groupby(["video_id", "frame_index"])
        return {key: rows[["x1", "y1", "x2", "y2"]].to_numpy() for key, rows in faces}


def _run_loop(tasks: list[VideoTask], settings: ExtractionSettings) -> Boxes:
    """The loop: OpenCV reads every frame, the detector sees one at a time, crops are written as found."""
    boxes: Boxes = {}
    detector = settings.detector(
        threshold=settings.recipe.threshold, weights=settings.weights, longest_side=FULL_HD, device=settings.device
    )
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            capture = cv2.VideoCapture(str(task.path))
            wanted = evenly_spaced_indices(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), settings.recipe.num_frames)
            index = 0
            while wanted and index <= wanted[-1]:
                ok, image = capture.read()
                if not ok:
                    break
                if index in wanted:
                    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                    boxes[task.video_id, index] = _write_crops(image, detector, settings.recipe, Path(folder), index)
                index += 1
            capture.release()
    return boxes


def _write_crops(image: np.ndarray, detector: Detector, recipe: CropRecipe, folder: Path, index: int) -> np.ndarray:
    faces = detector([image])[0]
    for number, (box, landmarks) in enumerate(zip(faces.boxes_xyxy, faces.landmarks, strict=True)):
        crop = cv2.cvtColor(cut_crop(image, recipe, box_xyxy=box, landmarks=landmarks), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / f"{index}_{number}.jpg"), crop, [cv2.IMWRITE_JPEG_QUALITY, recipe.jpeg_quality])
    return faces.boxes_xyxy


def _run_stages(tasks: list[VideoTask], settings: ExtractionSettings) -> tuple[dict[str, float], float, float]:
    """Seconds of each stage by Python's profiler, which costs such long calls next to nothing; the CPU seconds of all,
    and those of `_run_parts`."""
    detector = settings.load_detector()
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        started, cpu = time.perf_counter(), time.process_time()
        for task in tasks:
            profile.runcall(extract_video, task, Path(folder), settings)
        total, cpu = time.perf_counter() - started, time.process_time() - cpu
    spent = pstats.Stats(profile)
    convert, align = _cumulative(spent, to_image), _cumulative(spent, cut_crop)
    stages = {
        "decode": _cumulative(spent, FrameReader.__iter__) - convert,
        "convert": convert,
        "detect": _cumulative(spent, type(detector).__call__),
        "align": align,
        "encode": _cumulative(spent, cut_face) - align,
        "write": _cumulative(spent, write_crops),
    }
    return {**stages, "rest": total - sum(stages.values())}, cpu, _run_parts(tasks, settings)


def _cumulative(spent: pstats.Stats, function: FunctionType) -> float:
    code = function.__code__
    entry = spent.stats.get((code.co_filename, code.co_firstlineno, code.co_name))
    return entry[3] if entry else 0.0


def _run_parts(tasks: list[VideoTask], settings: ExtractionSettings) -> float:
    """CPU seconds of decoding every frame up to the last wanted one, and of detection in the wanted ones."""
    recipe = settings.recipe
    detector = settings.load_detector()
    spent = 0.0
    with single_threaded():
        for task in tasks:
            frames = list(FrameReader(task.path, recipe.num_frames))
            images = [frame.image for frame in frames]
            started = time.process_time()
            _decode_until(task.path, frames[-1].index)
            for start in range(0, len(images), BATCH_FRAMES):
                detector(images[start : start + BATCH_FRAMES])
            spent += time.process_time() - started
    return spent


def _decode_until(path: Path, last: int) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, _ in enumerate(container.decode(stream)):
            if index >= last:
                return
