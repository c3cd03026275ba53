"""A fake cropped where its original's faces are: no detection, and crops that align pixel by pixel."""

from pathlib import Path
from typing import Any

import numpy as np

from multiattn.tables import FACES, LANDMARKS
from multiattn.video.decode import FrameReader, UnreadableVideoError, probe_video
from multiattn.video.recipe import CropRecipe
from multiattn.video.scan import Scan, cut_face

_COLUMN = {name: place for place, name in enumerate(FACES.columns)}


def reuse_faces(
    reader: FrameReader, path: Path, original_path: Path, original_rows: list[list[Any]] | None, recipe: CropRecipe
) -> tuple[Scan | None, str]:
    """The faces of a fake in the places, tracks and scores of its original's.

    The two must have one upright size and one number of frames, and every frame in which the original shows a face
    must be among the fake's sampled frames (up to where a damaged fake ends). The landmarks are the original's, so the
    crops are cut by the identical transform.

    Returns:
        The fake's crops, or None and the reason why its faces must be detected anew.

    Raises:
        UnreadableVideoError: the fake.
    """
    if not original_rows:
        return None, "the original shows no face"
    fake = probe_video(path)
    try:
        original = probe_video(original_path)
    except UnreadableVideoError as error:
        return None, f"the original cannot be read: {error}"
    if (fake.width, fake.height) != (original.width, original.height):
        return None, f"{fake.width}x{fake.height}, the original {original.width}x{original.height}"
    if fake.total_frames != original.total_frames:
        return None, f"{fake.total_frames} frames, the original {original.total_frames}"
    rows_per_frame: dict[int, list[list[Any]]] = {}
    for row in original_rows:
        rows_per_frame.setdefault(row[_COLUMN["frame_index"]], []).append(row)
    scan = Scan()
    for frame in reader:
        size_wh = frame.image.shape[1::-1]
        if size_wh != (fake.width, fake.height):
            return None, f"its frame {frame.index} is {size_wh[0]}x{size_wh[1]}"
        scan.frame_sizes_wh[frame.index] = size_wh
        for row in rows_per_frame.get(frame.index, []):
            scan.crops.append(cut_face(frame, recipe, **_place(row)))
    end = max(scan.frame_sizes_wh) if reader.message else max(rows_per_frame)
    if absent := sorted(index for index in rows_per_frame if index <= end and index not in scan.frame_sizes_wh):
        return None, f"frame {absent[0]} was sampled of the original only"
    if not scan.crops:
        return None, "the original shows no face in the frames that could be read"
    return scan, ""


def _place(row: list[Any]) -> dict[str, Any]:
    """Track, box, score and landmarks of a row, bit by bit."""
    return {
        "track": row[_COLUMN["track"]],
        "box_xyxy": np.array([row[_COLUMN[name]] for name in ("x1", "y1", "x2", "y2")], dtype=np.float64),
        "score": row[_COLUMN["score"]],
        "landmarks": np.array([row[_COLUMN[name]] for name in LANDMARKS], dtype=np.float64).reshape(5, 2),
    }
