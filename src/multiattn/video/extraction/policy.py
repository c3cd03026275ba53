"""Choice of the faces of a video: by policy, the same at training and at inference, or as its original's.

`all-tracks`   every track.
`largest`      the track of the largest median box, among those at least half as long as the longest, so that nobody who
               passes close to the camera displaces the speaker. Ties: the lower number.
`forged-mask`  of a fake, the tracks that its mask video marks as forged; of any other video, every track. In Google's
               DFD several people share a picture and one of them is forged; the label is wrong for the others.

A fake whose forged face is not known (no mask, a mask that cannot be read, is black, or marks no face) keeps no face
under `forged-mask` and ends as `no_face` with a message: the label "fake" on a face that may be genuine is worse than a
video less.
"""

from pathlib import Path
from typing import Any

import numpy as np

from multiattn.tables import FACES, FAKE, LANDMARKS
from multiattn.video.crops.recipe import CropRecipe, FacePolicy
from multiattn.video.decoding.frames import Frame, FrameReader, UnreadableVideoError, probe_video
from multiattn.video.extraction.scan import FaceCrop, Scan, box_areas, cut_face

MIN_LENGTH_SHARE = 0.5
FORGED_LEVEL = 16
"""A mask's pixel is forged above this, of 255 in any channel: coded video rings a few levels around bright areas."""
MIN_FORGED_SHARE = 0.05
"""A track is forged only where the mask covers this share of its boxes. A swapped face covers a third or more."""
SHARE_OF_THE_MOST_FORGED = 0.5
"""Several faces of one video may be forged: a track counts with this share of the most covered track's share."""
MAX_FRAME_SHIFT = 5
"""A mask of another length is sampled at other frames; one within so many of a sampled frame is taken for it."""


def choose_faces(
    scan: Scan, policy: FacePolicy, *, label: int, mask: Path | None, num_frames: int
) -> tuple[list[FaceCrop], str]:
    """The crops that a policy keeps of `num_frames` sampled frames, their track numbers unchanged, and the reason when
    it kept none; only a known fake is left out for want of a mask video."""

    def of_tracks(tracks: set[int]) -> list[FaceCrop]:
        return [crop for crop in scan.crops if crop.track in tracks]

    if policy == "all-tracks" or not scan.crops:
        return scan.crops, ""
    if policy == "largest":
        return of_tracks({largest_track(scan.crops)}), ""
    if mask is None:
        no_mask = "left out: a fake without a mask, so --policy forged-mask does not know its forged face"
        return ([], no_mask) if label == FAKE else (scan.crops, "")
    try:
        shares = forged_shares(scan, mask, num_frames)
    except UnreadableVideoError as error:
        return [], f"left out: its mask cannot be read: {error}"
    if not shares:
        return [], "left out: its mask is black in every sampled frame with a face"
    most = max(shares.values())
    if most < MIN_FORGED_SHARE:
        return [], f"left out: its mask marks no face, at most {most:.1%} of one"
    return of_tracks({track for track, share in shares.items() if share >= SHARE_OF_THE_MOST_FORGED * most}), ""


def largest_track(crops: list[FaceCrop]) -> int:
    """The track with the largest median box area, among those with at least half as many rows as the longest."""
    areas: dict[int, list[float]] = {}
    for crop in crops:
        areas.setdefault(crop.track, []).append(float(box_areas(crop.box_xyxy)))
    least = MIN_LENGTH_SHARE * max(map(len, areas.values()))
    long_enough = [track for track in sorted(areas) if len(areas[track]) >= least]
    return max(long_enough, key=lambda track: np.median(areas[track]))


def forged_shares(scan: Scan, mask: Path, num_frames: int) -> dict[int, float]:
    """The share of each track's box area that the mask marks as forged, over the frames where it marks anything.

    The mask may have another size than the video; boxes are scaled. Frames are matched by index. A track without a
    matched frame is missing, so it is empty for a black mask.

    Raises:
        UnreadableVideoError: the mask.
    """
    frames = np.array(sorted(scan.frame_sizes_wh))
    pixels: dict[int, np.ndarray] = {}  # track -> forged pixels and all
    for frame in FrameReader(mask, num_frames):
        nearest = int(frames[np.abs(frames - frame.index).argmin()])
        if abs(nearest - frame.index) > MAX_FRAME_SHIFT:
            continue
        marked = frame.image.max(axis=2) > FORGED_LEVEL  # (H, W)
        for crop in [one for one in scan.crops if one.frame_index == nearest and marked.any()]:
            inside = marked[_pixels(crop.box_xyxy, scan.frame_sizes_wh[nearest], frame)]
            pixels[crop.track] = pixels.get(crop.track, 0) + np.array([inside.sum(), inside.size])
    return {track: float(forged / area) for track, (forged, area) in pixels.items() if area}


def _pixels(box_xyxy: np.ndarray, size_wh: tuple[int, int], mask: Frame) -> tuple[slice, slice]:
    """The mask's rows and columns under a box of a frame of another size; cut to the mask."""
    height, width = mask.image.shape[:2]
    scale = np.array([width, height], dtype=np.float64) / size_wh
    left, top, right, bottom = np.round(box_xyxy * np.tile(scale, 2)).astype(int)
    return slice(max(0, top), max(0, bottom)), slice(max(0, left), max(0, right))


def reuse_faces(
    reader: FrameReader, path: Path, original_path: Path, original_rows: list[list[Any]] | None, recipe: CropRecipe
) -> tuple[Scan | None, str]:
    """Crop the faces of a fake in the places, tracks and scores of its original's.

    The two must have one upright size and one number of frames, and every frame in which the original shows a face
    must be among the fake's sampled frames (up to where a damaged fake ends). The crops then align pixel by pixel.

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
    rows_per_frame: dict[int, list[dict[str, Any]]] = {}
    for row in (dict(zip(FACES.columns, values, strict=True)) for values in original_rows):
        rows_per_frame.setdefault(row["frame_index"], []).append(row)
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


def _place(row: dict[str, Any]) -> dict[str, Any]:
    """Track, box, score and landmarks of a row, bit by bit."""
    box = np.array([row[name] for name in ("x1", "y1", "x2", "y2")], dtype=np.float64)
    landmarks = np.array([row[name] for name in LANDMARKS], dtype=np.float64).reshape(5, 2)
    return {"track": row["track"], "box_xyxy": box, "score": row["score"], "landmarks": landmarks}
