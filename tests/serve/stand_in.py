"""A worker that examines nothing: it answers at once, later or never, or as a file's name says."""

import json
import threading
from pathlib import Path

from multiattn.serve.workers import PICTURES_FOLDER, REPORT_FILE, RESULT_FILE, Clip, ExaminationError

MODEL = {
    "models": [{"name": "stand_in/fold0", "fingerprint": "0" * 16, "sha256": "0" * 64}],
    "notes": ["stand_in: trained on nothing."],
    "answers": ["looks manipulated", "no sign found", "cannot tell"],
    "thresholds": {"looks manipulated": 0.774, "no sign found": 0.208},
    "thresholds_rest_on": "measured on nothing",
    "cards": ["# Card"],
    "device": "cpu",
}
"""As `describe_model` has it."""
# The smallest picture that browsers show: a grey pixel.
PICTURE = bytes.fromhex(
    "ffd8ffdb004300" + "01" * 64 + "ffc0000b080001000101011100ffc40014000100000000000000000000000000000009"
    "ffc40014100100000000000000000000000000000000ffda0008010100003f0054ffd9"
)


def answer(name: str, probability: float = 0.91, *, faces: int = 2) -> dict:
    """A result as `RESULT_FILE` has it: a clip of six frames, or without faces a picture of nobody."""
    words = {"answer": "looks manipulated", "reasons": [], "beside": "of held-out real faces of dfdc 2% score higher"}
    nobody = {"answer": "cannot tell", "reasons": ["no face was found"], "beside": ""}
    tracks = [
        {
            "track": track,
            "probability": probability - 0.3 * track,
            "spans": [[0.0, 2.5]],
            "frames": [
                {"frame_index": 10 * n, "seconds": n / 2, "probability": probability - 0.3 * track - 0.05 * (n % 2)}
                for n in range(6)
            ],
        }
        for track in range(faces)
    ]
    crops = [
        {"file": f"crop_{n}.jpg", "track": 0, "frame_index": n, "seconds": n / 2, "probability": probability}
        for n in range(3 if faces else 0)
    ]
    rows = [
        {"model": "stand_in/fold0", "probability": probability, "files": [f"attention_0_{n}.jpg" for n in range(3)]}
    ]
    return {
        "runs": ["stand_in/fold0"],
        "notes": MODEL["notes"],
        "files": [
            {
                "file": name,
                "probability": probability if faces else None,
                "status": "ok" if faces else "no_face",
                "reason": "",
                "doubts": ["2 of 6 crops lie outside the faces of the training"] if faces else [],
                "coverage": {"frames": 6, "frames_with_face": 6 * bool(faces), "crops": 6 * faces},
                "faces": tracks,
                "in_words": words if faces else nobody,
            }
        ],
        "record": {
            "file": {"name": name, "bytes": 4, "sha256": "ab" * 32},
            "models": MODEL["models"],
            "version": "0",
            "date": "2026-01-02T03:04:05+00:00",
            "not_examined": ["Sound was not examined."],
        },
        "pictures": {"deciding": crops, "attention": rows if faces else []},
    }


class StandIn:
    """A `Worker`: waits for `free`, fails for names with `broken`, finds nobody in those with `wall`.

    Attributes:
        seen: the clips it was given, with the files' contents.
        killed: how often it was ended.
    """

    model = MODEL

    def __init__(self) -> None:
        self.free, self.alive, self.seen, self.killed = threading.Event(), True, [], 0
        self.free.set()
        self._ended = threading.Event()

    def examine(self, clip: Clip, seconds: float) -> None:
        self.seen.append((clip, clip.path.read_bytes()))
        waited = 0.0
        while not self.free.wait(0.01):
            waited += 0.01
            if self._ended.is_set():
                raise ExaminationError("it was killed")
            if waited > seconds:
                raise ExaminationError(f"it took longer than {seconds:g} s and was ended.")
        if "broken" in clip.name:
            raise ExaminationError("the process that examined it ended (SIGSEGV).")
        (clip.folder / PICTURES_FOLDER).mkdir()
        found = answer(clip.name, faces=0 if "wall" in clip.name else 2)
        for picture in found["pictures"]["deciding"]:
            (clip.folder / PICTURES_FOLDER / picture["file"]).write_bytes(PICTURE)
        for row in found["pictures"]["attention"]:
            for file in row["files"]:
                (clip.folder / PICTURES_FOLDER / file).write_bytes(PICTURE)
        Path(clip.folder / REPORT_FILE).write_text("<!doctype html><title>report</title>")
        (clip.folder / RESULT_FILE).write_text(json.dumps(found))

    def kill(self) -> None:
        self.killed += 1
        self.alive = False
        self._ended.set()
