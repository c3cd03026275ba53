"""One pass over a video's sampled frames: detect, link boxes into tracks, interpolate, cut crops.

Full frames are the only large thing here (6 MB each of 1080p), so a crop is cut and encoded as soon as its place is
known. Between two searched frames up to `detect_every` - 1 frames wait in memory for the second one: decoding a video
twice instead would cost what searching fewer frames saves.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from multiattn.video.crops.recipe import CropRecipe, cut_crop
from multiattn.video.decoding.frames import Frame
from multiattn.video.detectors.registry import Detector, Faces

MIN_IOU = 0.3
MAX_GAP_FRAMES = 2
LEAST_FRAMES_WITH_FACES = 5
SHORT_SHARE, SHORT_FRAMES = 0.1, 2
BATCH_FRAMES = 8
"""Sampled frames in flight at once, the waiting ones not counted."""
MIN_LANDMARK_SPREAD = 1.0
"""Pixels; landmarks closer together fix no scale, and such a face is left out."""


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
    """The pairs (row, column) of (N, K) values of largest sum, N and K at least 1."""
    if 1 in iou.shape:
        return [np.unravel_index(iou.argmax(), iou.shape)]
    from scipy.optimize import linear_sum_assignment  # a second, which clips of one person do without

    return zip(*linear_sum_assignment(iou, maximize=True), strict=True)


def rank_tracks(lengths: list[int]) -> np.ndarray:
    """The final number of every track: by length, longest first, ties by first appearance. Track 0 is the person seen
    most."""
    return np.argsort(np.argsort(-np.array(lengths, dtype=np.int64), kind="stable"))


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
    """The crops of every face of the sampled frames, with final track numbers and without spurious tracks; with
    `thorough` by the detector's second, slower pass.

    The detector searches the first frame, every `detect_every`-th after it and the last. Where it found a track in two
    such frames in a row, the track has a row in each frame between them too: box, landmarks and score linear in the
    frames' times. A gap of at most 2 searched frames keeps the track's number, but gets no rows, since the face was
    most likely hidden or turned away.

    Raises:
        UnreadableVideoError: as the frames' reader does.
    """
    scan, linker = Scan(), TrackLinker()
    detections: dict[int, list[float]] = {}
    frames_with_faces = 0
    previous: _Seen | None = None
    waiting: list[Frame] = []
    keyed = _keyed(frames, recipe.detect_every)
    while batch := list(itertools.islice(keyed, BATCH_FRAMES)):
        scan.frame_sizes_wh.update({frame.index: frame.image.shape[1::-1] for frame, _ in batch})
        found = iter(list(_detect([frame for frame, is_key in batch if is_key], detector, thorough)))
        while batch:  # each frame is let go of: the next batch does not come on top of this one
            frame, is_key = batch.pop(0)
            if not is_key:
                waiting.append(frame)
                continue
            faces = next(found)
            seen = _Seen(frame.index, frame.seconds, frame.image.shape, faces, linker.link(faces.boxes_xyxy).tolist())
            for between in waiting:
                scan.crops += _cut(between, *_interpolate(previous, seen, between), recipe)
            scan.crops += _cut(frame, faces, seen.tracks, recipe)
            for track, score in zip(seen.tracks, faces.scores.tolist(), strict=True):
                detections.setdefault(track, []).append(score)
            scan.detected_frames += 1
            frames_with_faces += len(faces) > 0
            previous, waiting = seen, []
    spurious = spurious_tracks(detections, frames_with_faces=frames_with_faces, threshold=recipe.threshold)
    scan.crops = _number([crop for crop in scan.crops if crop.track not in spurious], linker.lengths, spurious)
    return scan


def _keyed(frames: Iterable[Frame], every: int) -> Iterator[tuple[Frame, bool]]:
    """Each frame, and True where it is searched. Only when no other follows is it known as the last: a damaged file
    ends early."""
    waiting: Frame | None = None
    position = -1
    for frame in frames:
        if waiting is not None:
            yield waiting, position % every == 0
        waiting, position = frame, position + 1
    if waiting is not None:
        yield waiting, True


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
