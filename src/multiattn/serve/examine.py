"""One file -> the answer as JSON, the report and its pictures: the work of the processes of `workers.py`."""

import functools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np

from multiattn.datasets.embedded.actors import load_portrait
from multiattn.figures.attention import RunMaps
from multiattn.figures.score import attention_of, report_page
from multiattn.inference.attention_maps import deciding_crops
from multiattn.inference.detector import Answer, DeepfakeDetector, answers_json
from multiattn.inference.score_files import ScoredFiles, seen_notes
from multiattn.runtime.crop_files import read_stored
from multiattn.runtime.environment import package_version
from multiattn.runtime.files import file_digest, require_plain_file, write_json, write_text
from multiattn.runtime.layout import BEST_WEIGHTS, MODEL_CARD_FILE, experiment_folder
from multiattn.runtime.text_tables import duration, printable
from multiattn.scoring.answers import MANIPULATED, NO_SIGN, SOUND_NOTE, AnswerName
from multiattn.serve.workers import (
    FACES_FOLDER,
    PICTURES_FOLDER,
    REPORT_FILE,
    RESULT_FILE,
    Clip,
    DetectorOptions,
    ExaminationError,
)
from multiattn.video.decoding.frames import clip_seconds

MAP_QUALITY = 88


def examine(options: DetectorOptions, clip: Clip | None) -> dict[str, Any] | None:
    """Write the answer for a clip into its folder; without one, load the detector and return `describe_model`.

    Raises:
        ExaminationError: a clip that is too long, or that changed meanwhile.
        FileNotFoundError, ValueError: as `DeepfakeDetector.load`.
    """
    detector, model = _loaded(options)
    if clip is None:
        return model
    length = clip_seconds(clip.path)
    if length is not None and length > clip.max_seconds:
        raise ExaminationError(f"it is {duration(length)} long, {duration(clip.max_seconds)} at most are examined.")
    _write_answer(detector, model, clip)
    return None


@functools.lru_cache(1)
def _loaded(options: DetectorOptions) -> tuple[DeepfakeDetector, dict[str, Any]]:
    """A detector with its networks in memory, and what was said of it then: its files may change while it serves."""
    how = {"tta": options.tta, "device": options.device, "precision": options.precision, "runtime": options.runtime}
    detector = DeepfakeDetector.load(*options.runs, scoring=options.scoring, weights=options.weights, **how)
    model = describe_model(detector)
    detector.predict(load_portrait().rgb)  # a face: without one no network is kept
    return detector, model


def describe_model(detector: DeepfakeDetector) -> dict[str, Any]:
    """The detector and what it knows, as plain types: models with their digests, notes, answers, thresholds, cards."""
    held_out = detector.rule.held_out
    said = {MANIPULATED: held_out.manipulated_from, NO_SIGN: held_out.no_sign_until} if held_out is not None else {}
    experiments = dict.fromkeys(experiment_folder(model.path) for model in detector.models)
    cards = [folder / MODEL_CARD_FILE for folder in experiments]
    return {
        "models": [
            {"name": model.name, "fingerprint": model.fingerprint(), "sha256": file_digest(model.path / BEST_WEIGHTS)}
            for model in detector.models
        ],
        "notes": detector.notes,
        "answers": list(get_args(AnswerName)),
        "thresholds": said,
        "thresholds_rest_on": held_out.describe() if held_out is not None else "",
        "cards": [card.read_text(encoding="utf-8") for card in cards if card.is_file()],
        "device": str(detector.device),
    }


def _write_answer(detector: DeepfakeDetector, model: dict[str, Any], clip: Clip) -> None:
    faces, name = clip.folder / FACES_FOLDER, printable(clip.name)
    before = _identity(clip.path)
    digest = file_digest(clip.path)
    scored = detector.score([clip.path], faces)
    if _identity(clip.path) != before:
        raise ExaminationError("the file changed while it was examined: its digest would be of another. Send it again.")
    scored = replace(scored, files=scored.files.assign(file=[name]))
    named = [Path(clip.name)]
    (answer,) = detector.answers(named, scored)
    record = {
        "file": {"name": name, "bytes": before[0], "sha256": digest},
        "models": model["models"],
        "version": package_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "not_examined": not_examined(answer),
    }
    notes = [*detector.in_words([answer]), *detector.notes, *seen_notes(detector.training_names, named)]
    notes += [*scored.outside_notes(), *record["not_examined"], *_record_lines(record)]
    notes = list(dict.fromkeys(notes))
    maps = attention_of(scored, detector, faces)
    write_text(clip.folder / REPORT_FILE, report_page(scored, detector, faces, notes, maps))
    pictures = _write_pictures(scored, faces, maps, clip.folder / PICTURES_FOLDER)
    result = {**answers_json(detector, [answer]), "record": record, "pictures": pictures}
    write_json(clip.folder / RESULT_FILE, result)


def _identity(path: Path) -> tuple[int, int, int]:
    """A file's size, and what changes with its content.

    Raises:
        ExaminationError: it is gone, or a link now: a path below the root was looked at before it waited.
    """
    try:
        require_plain_file(path)
        real, found = path.resolve(), path.stat()
    except OSError as error:
        raise ExaminationError("the file is no longer there, or cannot be read.") from error
    if real != path:
        raise ExaminationError("the file is no longer where it was: a link has taken its place.")
    return found.st_size, found.st_mtime_ns, found.st_ino


def not_examined(answer: Answer) -> list[str]:
    """Lines that say which parts of a file the answer does not come from."""
    lines = ["Nothing but faces was examined, neither the rest of the frame nor the file's metadata."]
    if answer.coverage.frames > 1:
        lines.insert(0, SOUND_NOTE)
        lines.append(f"Of the frames {answer.coverage.frames} were examined, evenly spaced over the file.")
    return lines


def _record_lines(record: dict[str, Any]) -> list[str]:
    """Lines for the report, from which file and models can be told again."""
    models = [
        f"Model {it['name']}: fingerprint {it['fingerprint']}, weights {it['sha256']}." for it in record["models"]
    ]
    file = f"File: {record['file']['bytes']:,} bytes, SHA-256 {record['file']['sha256']}."
    return [file, *models, f"Examined on {record['date']} by multiattn {record['version']}."]


def _write_pictures(scored: ScoredFiles, faces: Path, maps: RunMaps | None, folder: Path) -> dict[str, Any]:
    """Write the crops that decided, most fake first, and attention over the most and the least fake; returns lists of
    them with their files."""
    folder.mkdir()
    deciding = []
    for number, crop in enumerate(deciding_crops(scored.crops).itertuples()):
        file = f"crop_{number}.jpg"
        (folder / file).write_bytes(read_stored(faces / crop.crop))
        facts = {"track": int(crop.track), "frame_index": int(crop.frame_index), "seconds": float(crop.seconds)}
        deciding.append({"file": file, **facts, "probability": float(crop.probability)})
    attention = []
    for place, face in enumerate(maps.faces if maps is not None else ()):
        overlays = [face.crop, *maps.pictures(place, "run")]
        files = [f"attention_{place}_{number}.jpg" for number in range(len(overlays))]
        _write_jpegs(overlays, [folder / file for file in files])
        attention.append({"model": maps.label, "probability": float(face.probability), "files": files})
    return {"deciding": deciding, "attention": attention}


def _write_jpegs(pictures: Sequence[np.ndarray], paths: Sequence[Path]) -> None:
    for picture, path in zip(pictures, paths, strict=True):
        quality = [cv2.IMWRITE_JPEG_QUALITY, MAP_QUALITY]
        path.write_bytes(cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), quality)[1].tobytes())
