"""What the worker process of `test_faults.py` does with one file; it imports nothing heavy."""

import json
from pathlib import Path

from multiattn.video.decoding.frames import FrameReader, UnreadableVideoError, probe_video


def decode(arguments: bytes) -> bytes:
    """Read a few frames of a file: {"frames": [(index, height, width)], "message", "unreadable", "probe"}."""
    values = json.loads(arguments)
    path = Path(values["path"])
    reader = FrameReader(path, values["num_frames"], fast_frames=values["fast_frames"])
    found = {"frames": [], "unreadable": "", "probe": ""}
    try:
        found["frames"] = [(frame.index, *frame.image.shape[:2]) for frame in reader]
    except UnreadableVideoError as error:
        found["unreadable"] = str(error)
    try:
        probe_video(path)
    except UnreadableVideoError as error:
        found["probe"] = str(error)
    return json.dumps({**found, "message": reader.message, "num_frames": reader.num_frames}).encode()
