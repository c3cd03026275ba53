"""Work of the isolated processes in the tests beside this file, which goes wrong as ordered; imports little."""

import os
import re
import signal
import sys
import time
from pathlib import Path

from multiattn.video.extraction.isolation import worker_number


def obey(order: str) -> str:
    """Do what the first word says with the rest of the order."""
    word, _, value = order.partition(" ")
    if word == "echo":
        return value * 1000
    if word == "pid":
        return str(os.getpid())
    if word == "number":
        time.sleep(float(value))
        return str(worker_number())
    if word == "print":
        sys.stdout.write("this must not get between the answers\n")
        sys.stdout.flush()
        os.write(1, b"nor this of a library in C\n")
        return "printed"
    if word == "raise":
        raise FileNotFoundError(value)
    if word == "signal":
        os.kill(os.getpid(), int(value))
    if word == "exit":
        os._exit(int(value))
    if word == "sleep":
        time.sleep(float(value))
    return ""


def extract(name: str) -> str:
    """A stand-in for extraction that gives the video's name back, unless the name wants something else."""
    if name == "full-disk":
        raise OSError(28, "No space left on device")
    if name == "short-of-memory":
        raise MemoryError
    if name == "hangs":
        time.sleep(300)
    if name.startswith("kills-always"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if once := re.search(r"kills-once@(.+?)@", name):
        mark = Path(once[1])
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return name


def decode(path: Path, num_frames: int, fast_frames: bool) -> dict:
    """Read a few frames of a file: {"frames": [(index, height, width)], "message", "unreadable", "probe"}."""
    from multiattn.video.decoding.frames import FrameReader, UnreadableVideoError, probe_video

    reader = FrameReader(path, num_frames, fast_frames=fast_frames)
    found = {"frames": [], "unreadable": "", "probe": ""}
    try:
        found["frames"] = [(frame.index, *frame.image.shape[:2]) for frame in reader]
    except UnreadableVideoError as error:
        found["unreadable"] = str(error)
    try:
        probe_video(path)
    except UnreadableVideoError as error:
        found["probe"] = str(error)
    return {**found, "message": reader.message, "num_frames": reader.num_frames}
