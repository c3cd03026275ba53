"""One pass over a video's sampled frames: detect, link boxes into tracks, interpolate, cut crops by each recipe.

Full frames are the only large thing here (6 MB each of 1080p), so a crop is cut and encoded as soon as its place is
known. Between two searched frames up to `detect_every` - 1 frames wait in memory for the second one: decoding a video
twice instead would cost what searching fewer frames saves.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from multiattn.tables import BOX
from multiattn.video.crops.recipe import CropRecipe, cut_crop
from multiattn.video.decoding.frames import Frame
from multiattn.video.detectors.registry import Detector, Faces

if TYPE_CHECKING:
    import pandas as pd

MIN_IOU = 0.3
MAX_GAP_FRAMES = 2
LEAST_FRAMES_WITH_FACES = 5
SHORT_SHARE, SHORT_FRAMES = 0.1, 2
BATCH_FRAMES = 8
"""Sampled frames in flight at once, the waiting ones not counted."""
MIN_LANDMARK_SPREAD = 1.0
"""Pixels; landmarks closer together fix no scale, and such a face is left out."""
FOUND_BY = ("detector", "weights", "threshold", "detect_every", "num_frames", "fast_frames")
"""Settings of a recipe that decide where its faces are; the others decide how they are cut and which are kept."""


def pairwise_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of (N, 4) and (K, 4) boxes -> (N, K) in [0, 1]; 0 where both are empty."""
    return paired_iou(first_xyxy[:, None], second_xyxy[None])


def paired_iou(first_xyxy: np.ndarray, second_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4), each with its partner -> (...) in [0, 1]; 0 where both are empty."""
    bottom_right = np.minimum(first_xyxy[..., 2:], second_xyxy[..., 2:])
    size_wh = bottom_right - np.maximum(first_xyxy[..., :2], second_xyxy[..., :2])
    intersection = np.prod(np.clip(size_wh, 0, None), axis=-1)
    union = box_areas(first_xyxy) + box_areas(second_xyxy) - intersection
    return np.divide(intersection, union, out=np.zeros(intersection.shape), where=union > 0)


def box_areas(boxes_xyxy: np.ndarray) -> np.ndarray:
    """(..., 4) boxes -> (...) square pixels; 0 where a box is empty or its corners are swapped."""
    return np.prod(np.clip(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 0, None), axis=-1)


class TrackLinker:
    """Links the boxes of one frame after another.

    Each frame's boxes are assigned to the live tracks so that the summed IoU with each track's latest box is largest
    (Hungarian algorithm); a pair below IoU 0.3 does not link. A box left over opens a track; a track without a box
    in more than 2 frames in a row ends.

    Attributes:
        lengths: boxes of every track so far; a track's number is its place here.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._frame = -1
        self._latest: dict[int, tuple[int, np.ndarray]] = {}  # live track -> (frame it was last seen in, its box there)

    def link(self, boxes_xyxy: np.ndarray) -> np.ndarray:
        """The tracks of the next frame's boxes: (N, 4) -> (N,) int64, numbered by first appearance."""
        self._frame += 1
        oldest = self._frame - MAX_GAP_FRAMES - 1
        self._latest = {track: seen for track, seen in self._latest.items() if seen[0] >= oldest}
        numbers = np.full(len(boxes_xyxy), -1, dtype=np.int64)
        if self._latest and len(boxes_xyxy):
            live = list(self._latest)
            iou = pairwise_iou(np.stack([self._latest[track][1] for track in live]), boxes_xyxy)
            for row, column in _assign(iou):
                if iou[row, column] >= MIN_IOU:
                    numbers[column] = live[row]
        for index in np.flatnonzero(numbers < 0):
            numbers[index] = len(self.lengths)
            self.lengths.append(0)
        for track, box in zip(numbers.tolist(), boxes_xyxy, strict=True):
            self._latest[track] = (self._frame, box)
            self.lengths[track] += 1
        return numbers


def _assign(iou: np.ndarray) -> Iterable[tuple[int, int]]:
    """The pairs (row, column) of (N, K) values of largest sum."""
    if 0 in iou.shape:
        return []
    if 1 in iou.shape:
        return [np.unravel_index(iou.argmax(), iou.shape)]
    from scipy.optimize import linear_sum_assignment  # a second, which clips of one person do without

    return zip(*linear_sum_assignment(iou, maximize=True), strict=True)


def rank_tracks(lengths: list[int]) -> np.ndarray:
    """The final number of every track: by length, longest first, ties by first appearance. Track 0 is the person seen
    most."""
    return np.argsort(np.argsort(-np.array(lengths, dtype=np.int64), kind="stable"))


def match_tracks(first: "pd.DataFrame", second: "pd.DataFrame") -> dict[int, int]:
    """Tracks of one video as another search found them (`second`) -> the tracks of `first` that are the same persons;
    those that are nobody's get numbers after them.

    A box is compared with that of the nearest frame, at most as far away as the frames of `first` are from each other.
    Tracks are paired so that the summed mean IoU of their boxes is largest; a pair below IoU 0.3 is none.

    Args:
        first, second: rows of one video's `faces`; either may be empty.
    """
    step = np.diff(np.unique(first["frame_index"])).min(initial=np.iinfo(np.int64).max)
    by_track = [dict(iter(faces.groupby("track", sort=True))) for faces in (first, second)]
    iou = np.zeros((len(by_track[0]), len(by_track[1])))
    for (row, mine), (column, other) in itertools.product(*(enumerate(tracks.values()) for tracks in by_track)):
        away = np.abs(other["frame_index"].to_numpy()[:, None] - mine["frame_index"].to_numpy())
        nearest, near = away.argmin(axis=1), away.min(axis=1) <= step
        boxes = (faces[list(BOX)].to_numpy(dtype=np.float64) for faces in (mine.iloc[nearest[near]], other[near]))
        iou[row, column] = paired_iou(*boxes).mean() if near.any() else 0.0
    names = [list(tracks) for tracks in by_track]
    found = {names[1][column]: names[0][row] for row, column in _assign(iou) if iou[row, column] >= MIN_IOU}
    free = itertools.count(max(names[0], default=-1) + 1)
    return {track: found[track] if track in found else next(free) for track in names[1]}


def spurious_tracks(
    scores_per_track: dict[int, list[float]], *, frames_with_faces: int, threshold: float
) -> frozenset[int]:
    """The tracks that are most likely no face: detected seldom, and never with a good score.

    Where the detector found faces in at least 5 frames (in fewer, being seen once means nothing), a track is spurious
    if it has a box in fewer than max(2, 10 % of those frames), and its best score lies below the middle between the
    threshold and 1: of a face that passes by, a detector is sure at least once. The longest track always stays.
    Scores are those of detections, without interpolated ones.
    """
    if frames_with_faces < LEAST_FRAMES_WITH_FACES:
        return frozenset()
    longest = max(scores_per_track, key=lambda track: (len(scores_per_track[track]), -track))
    least = max(SHORT_FRAMES, SHORT_SHARE * frames_with_faces)
    return frozenset(
        track
        for track, scores in scores_per_track.items()
        if track != longest and len(scores) < least and max(scores) < (threshold + 1) / 2
    )


@dataclass(frozen=True)
class FaceCrop:
    """One face of one sampled frame and its encoded crop."""

    frame_index: int
    seconds: float
    track: int
    box_xyxy: np.ndarray
    """(4,) float64, pixels of the full frame."""
    score: float
    landmarks: np.ndarray
    """(5, 2) float64, pixels of the full frame."""
    jpeg: bytes


@dataclass
class Scan:
    """Result of a pass over a video."""

    crops: list[FaceCrop] = field(default_factory=list)
    frame_sizes_wh: dict[int, tuple[int, int]] = field(default_factory=dict)
    """frame_index -> upright width and height, of every sampled frame."""
    detected_frames: int = 0


@dataclass(frozen=True)
class _Seen:
    """A searched frame, without its pixels."""

    index: int
    seconds: float
    shape: tuple[int, ...]
    faces: Faces
    tracks: list[int]
    """Provisional, as the linker counts them."""


def scan_faces(frames: Iterable[Frame], detector: Detector, recipe: CropRecipe, *, thorough: bool = False) -> Scan:
    """The crops of every face of the sampled frames, as `Scanner` finds them.

    Raises:
        UnreadableVideoError: as the frames' reader does.
    """
    scanner = Scanner(detector, [recipe], thorough=thorough)
    for frame in frames:
        scanner.add(frame)
    return scanner.finish()[0]


class Scanner:
    """Crops of every face of the frames it is given, with final track numbers and without spurious tracks, cut by each
    of several recipes that find faces alike; with `thorough` by the detector's second, slower pass.

    The detector searches the first frame, every `detect_every`-th after it and the last. Where it found a track in two
    such frames in a row, the track has a row in each frame between them too: box, landmarks and score linear in the
    frames' times. A gap of at most 2 searched frames keeps the track's number, but gets no rows, since the face was
    most likely hidden or turned away.

    Args:
        recipes: at least one, equal in all of `FOUND_BY`.
    """

    def __init__(self, detector: Detector, recipes: Sequence[CropRecipe], *, thorough: bool = False) -> None:
        self._detector, self._recipes, self._thorough = detector, recipes, thorough
        self._scans, self._linker = [Scan() for _ in recipes], TrackLinker()
        self._detections: dict[int, list[float]] = {}
        self._taken = self._frames_with_faces = 0
        self._coming: list[Frame] = []
        self._previous: _Seen | None = None
        self._waiting: list[Frame] = []

    def add(self, frame: Frame) -> None:
        """Take the next frame. It is searched later: only when no other follows is it known as the last, for a damaged
        file ends early."""
        self._coming.append(frame)
        if len(self._coming) > BATCH_FRAMES:
            self._search(BATCH_FRAMES)

    def finish(self) -> list[Scan]:
        """The result of each recipe, when there are no more frames."""
        self._search(len(self._coming), to_the_end=True)
        threshold = self._recipes[0].threshold
        spurious = spurious_tracks(self._detections, frames_with_faces=self._frames_with_faces, threshold=threshold)
        for scan in self._scans:
            kept = [crop for crop in scan.crops if crop.track not in spurious]
            scan.crops = _number(kept, self._linker.lengths, spurious)
        return self._scans

    def _search(self, number: int, *, to_the_end: bool = False) -> None:
        batch, self._coming = self._coming[:number], self._coming[number:]
        every, first = self._recipes[0].detect_every, self._taken
        is_key = [(first + place) % every == 0 or (to_the_end and place == number - 1) for place in range(number)]
        self._taken += number
        for scan in self._scans:
            scan.frame_sizes_wh.update({frame.index: frame.image.shape[1::-1] for frame in batch})
        searched = [frame for frame, key in zip(batch, is_key, strict=True) if key]
        found = iter(list(_detect(searched, self._detector, self._thorough)))
        del searched
        for key in is_key:
            frame = batch.pop(0)  # each is let go of: the next batch does not come on top of this one
            if key:
                self._cut_to(frame, next(found))
            else:
                self._waiting.append(frame)

    def _cut_to(self, frame: Frame, faces: Faces) -> None:
        """Cut the faces of a searched frame, and of those that waited for it."""
        tracks = self._linker.link(faces.boxes_xyxy).tolist()
        seen = _Seen(frame.index, frame.seconds, frame.image.shape, faces, tracks)
        places = [(between, *_interpolate(self._previous, seen, between)) for between in self._waiting]
        for scan, recipe in zip(self._scans, self._recipes, strict=True):
            for one, of_frame, numbers in [*places, (frame, faces, tracks)]:
                scan.crops += _cut(one, of_frame, numbers, recipe)
            scan.detected_frames += 1
        for track, score in zip(tracks, faces.scores.tolist(), strict=True):
            self._detections.setdefault(track, []).append(score)
        self._frames_with_faces += len(faces) > 0
        self._previous, self._waiting = seen, []


def _detect(frames: list[Frame], detector: Detector, thorough: bool) -> Iterator[Faces]:
    # A stream may change its frame size midway; the detector takes one size at a time.
    for _, same_size in itertools.groupby(frames, key=lambda frame: frame.image.shape):
        yield from map(_usable, detector([frame.image for frame in same_size], thorough=thorough))


def _usable(faces: Faces) -> Faces:
    """Leave out the faces that cannot be cut."""
    spread = np.ptp(faces.landmarks, axis=1).max(axis=1, initial=0)  # (N,)
    fits = np.isfinite(faces.landmarks).all(axis=(1, 2)) & (spread >= MIN_LANDMARK_SPREAD)
    return _pick(faces, fits & np.isfinite(faces.boxes_xyxy).all(axis=1) & (box_areas(faces.boxes_xyxy) > 0))


def _pick(faces: Faces, rows: np.ndarray) -> Faces:
    return Faces(*(values[rows] for values in vars(faces).values()))


def _interpolate(before: _Seen, after: _Seen, frame: Frame) -> tuple[Faces, list[int]]:
    """The faces of a frame between two searched ones, and their tracks."""
    same_size = before.shape == frame.image.shape == after.shape  # pixels of one size are no places in another
    tracks = [track for track in before.tracks if same_size and track in after.tracks]
    first, last = (
        _pick(seen.faces, np.array([seen.tracks.index(track) for track in tracks], dtype=np.int64))
        for seen in (before, after)
    )
    if before.seconds < frame.seconds < after.seconds:
        weight = (frame.seconds - before.seconds) / (after.seconds - before.seconds)
    else:  # a stream without times
        weight = (frame.index - before.index) / (after.index - before.index)
    pairs = zip(vars(first).values(), vars(last).values(), strict=True)
    return Faces(*((1 - weight) * old + weight * new for old, new in pairs)), tracks


def _cut(frame: Frame, faces: Faces, tracks: list[int], recipe: CropRecipe) -> list[FaceCrop]:
    rows = zip(tracks, faces.boxes_xyxy, faces.scores.tolist(), faces.landmarks, strict=True)
    return [
        cut_face(frame, recipe, track=track, box_xyxy=box, score=score, landmarks=landmarks)
        for track, box, score, landmarks in rows
    ]


def cut_face(
    frame: Frame, recipe: CropRecipe, *, track: int, box_xyxy: np.ndarray, score: float, landmarks: np.ndarray
) -> FaceCrop:
    """Cut a face of a frame and encode its crop."""
    image = cut_crop(frame.image, recipe, box_xyxy=box_xyxy, landmarks=landmarks)
    settings = [cv2.IMWRITE_JPEG_QUALITY, recipe.jpeg_quality]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    encoded, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not encoded:
        raise RuntimeError(f"OpenCV could not encode a crop of {image.shape} as JPEG.")
    return FaceCrop(frame.index, frame.seconds, track, box_xyxy, score, landmarks, jpeg.tobytes())


def _number(crops: list[FaceCrop], detections: list[int], spurious: frozenset[int]) -> list[FaceCrop]:
    """Final track numbers: by detections, ties by first appearance; the spurious ones come last and have no crops."""
    rank = rank_tracks([0 if track in spurious else count for track, count in enumerate(detections)]).tolist()
    return sorted((replace(crop, track=rank[crop.track]) for crop in crops), key=lambda c: (c.frame_index, c.track))
