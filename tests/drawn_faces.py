"""Faces that need no network: bright squares on black, a detector of bright squares, and clips that show them; and
faces folders of any table."""

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd

from multiattn.tables import FACES, VIDEO_STATUS, VIDEOS
from multiattn.video.crops.recipe import TEMPLATE, CropRecipe, write_recipe
from multiattn.video.decoding.frames import Frame
from multiattn.video.detectors.registry import Faces

SIZE_WH = (160, 96)
FPS = 25
Square = tuple[int, int, int, float]
"""Left, top, side, score."""


def draw(squares: Iterable[Square], *, size_wh: tuple[int, int] = SIZE_WH, mark: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: squares whose brightness is their score; `mark` (at most 40) is the darkness between them."""
    image = np.full((*size_wh[::-1], 3), mark, dtype=np.uint8)
    for left, top, side, score in squares:
        image[top : top + side, left : left + side] = round(255 * score)
    return image


def frames_of(
    squares_of: Callable[[int], list[Square]], count: int, *, seconds: Callable[[int], float] = lambda n: n / FPS
) -> list[Frame]:
    """Frames 0, 10, 20, ... of a video; the n-th is marked n."""
    return [Frame(index=10 * n, seconds=seconds(n), image=draw(squares_of(n), mark=n)) for n in range(count)]


def landmarks_of(left: float, top: float, side: float) -> np.ndarray:
    """(5, 2): the square itself is the crop."""
    return TEMPLATE * side + (left, top)


class SquareDetector:
    """Finds squares of brightness 0.9 and more, thoroughly of 0.5 and more.

    Attributes:
        searched: the marks of all images it was given, first pass and thorough pass.
    """

    def __init__(self) -> None:
        self.searched: dict[bool, list[int]] = {False: [], True: []}

    def __call__(self, images: list[np.ndarray], *, thorough: bool = False) -> list[Faces]:
        assert len({image.shape for image in images}) == 1, "one size at a time"
        self.searched[thorough] += [int(image.min()) for image in images]
        return [self._find(image[..., 0], 0.5 if thorough else 0.9) for image in images]

    def _find(self, grey: np.ndarray, threshold: float) -> Faces:
        _, labels, statistics, _ = cv2.connectedComponentsWithStats((grey > 100).astype(np.uint8))
        squares = []
        for number, (left, top, width, height, _) in enumerate(statistics[1:].tolist(), start=1):
            score = float(np.median(grey[labels == number])) / 255
            if score >= threshold - 0.002:  # brightness is a whole number
                squares.append((left, top, width, height, score))
        squares.sort(key=lambda square: -square[-1])
        boxes = [(left, top, left + width, top + height) for left, top, width, height, _ in squares]
        return Faces(
            boxes_xyxy=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            scores=np.array([square[-1] for square in squares], dtype=np.float64),
            landmarks=np.array([landmarks_of(s[0], s[1], s[2]) for s in squares]).reshape(-1, 5, 2),
        )


def write_clip(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    codec: str = "libx264rgb",
    pixels: str = "rgb24",
    encoder: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    pts: list[int] | None = None,
) -> Path:
    """A clip of exactly these images, coded without loss unless `encoder` says otherwise; `pts` in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = list(images)
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=FPS)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pixels
        stream.options = {"qp": "0", "g": "5"} if encoder is None else encoder
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[index], Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_faces_folder(
    folder: Path,
    faces: pd.DataFrame,
    labels: dict[str, int],
    recipe: CropRecipe,
    *,
    methods: dict[str, str] | None = None,
    without: dict[str, tuple[str, str]] | None = None,
) -> Path:
    """A finished faces folder but for its crops, of the videos in `labels`, in their order.

    Args:
        without: status and message of videos without faces.
    """
    FACES.write(faces, folder / "faces.parquet")
    counts = faces["video_id"].value_counts()
    rows = [
        (video, *(("ok", recipe.num_frames, counts[video], "") if video in counts else (status, 0, 0, message)))
        for video in labels
        for status, message in [(without or {}).get(video, ("no_face", ""))]
    ]
    VIDEO_STATUS.write(pd.DataFrame(rows, columns=list(VIDEO_STATUS.columns)), folder / "video_status.csv")
    videos = pd.DataFrame(dict.fromkeys(VIDEOS.columns, ""), index=range(len(labels)))
    videos = videos.assign(video_id=list(labels), label=list(labels.values()), dataset="set")
    videos = videos.assign(path=videos["video_id"] + ".mp4", method=videos["video_id"].map(methods or {}).fillna(""))
    VIDEOS.write(videos, folder / "videos.csv")
    write_recipe(recipe, folder)
    return folder
