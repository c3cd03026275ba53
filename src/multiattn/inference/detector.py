"""From a clip to an answer in one call: trained runs with their crops, their scoring rule, and all that is said of a
file."""

import functools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from torch import nn

from multiattn.config import Precision
from multiattn.config.choices import Runtime, Tta
from multiattn.inference.predictor import BATCH_SIZE
from multiattn.inference.runs import TrainedModel, find_models, with_tta
from multiattn.inference.runtimes import with_runtime
from multiattn.inference.score_files import (
    ScoredFiles,
    describe_spans,
    find_files,
    score_files,
    training_names,
    training_notes,
)
from multiattn.inference.scoring_file import choose_scoring, require_rule_fits
from multiattn.runtime.devices import pick_device, runtime_precision
from multiattn.runtime.layout import named_run, packaged_run
from multiattn.scoring.answers import CANNOT_TELL, SOUND_NOTE, AnswerInWords, answer_in_words, find_doubts
from multiattn.scoring.distances import Outside
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import BOX
from multiattn.video.decoding.frames import FrameArray

Media: TypeAlias = str | Path | np.ndarray
"""A video, a picture, a folder of both, or frames in memory: (N, H, W, 3) uint8 RGB; (H, W, 3) is one frame."""
TABLE_COLUMNS = [
    *("level", "file", "track", "frame_index", "seconds", "spans", "probability", "answer"),
    *("frames", "frames_with_face", "crops"),
    *(*BOX, "score", "distance", "distance_reason", "status", "reason", "doubts"),
]
"""Columns of the table of answers; a cell is empty where its level has no such thing."""


@dataclass(frozen=True)
class FrameAnswer:
    """One face in one frame."""

    frame_index: int
    """The frame's place in the file, from 0."""
    seconds: float
    """Presentation time."""
    probability: float
    """P(fake) in [0, 1], the mean over the models, before the scoring rule."""
    box_xyxy: tuple[float, float, float, float]
    """The face, in pixels of the full frame."""
    score: float
    """The detector's, in [0, 1]: how sure it is of a face."""
    distance: float | None = None
    """From the faces of the training, the mean over the models: 0 is that of the median held-out one, 1 that of their
    99th percentile, beyond which a face lies outside. None where it was not measured."""
    distance_reason: str = ""
    """Words for a face that lies outside, where simple statistics tell: `blurred, small`."""


@dataclass(frozen=True)
class FaceAnswer:
    """One person: a face followed through a file."""

    track: int
    """Its number; 0 is the person seen most."""
    probability: float
    """P(fake) in [clip, 1 - clip] of the scoring rule, as if the face were alone in the file."""
    spans: tuple[tuple[float, float], ...]
    """Seconds of the first and the last frame of each time that it was there."""
    frames: tuple[FrameAnswer, ...]
    """In order; at least one."""


@dataclass(frozen=True)
class Coverage:
    """The part of a file that an answer comes from."""

    frames: int
    """Decoded, evenly spaced over the file."""
    frames_with_face: int
    crops: int
    """Faces that were predicted, of all persons together."""


@dataclass(frozen=True)
class Answer:
    """The answer for one file, or for frames in memory."""

    file: str
    """As it was named; of frames in memory their number and size."""
    probability: float | None
    """P(fake) in [clip, 1 - clip] of the scoring rule; None without a face."""
    status: Literal["ok", "no_face", "unreadable"]
    reason: str
    """A remark of the decoder or the search; of an unreadable file why it is so."""
    doubts: tuple[str, ...]
    """Reasons to trust the answer less."""
    coverage: Coverage
    faces: tuple[FaceAnswer, ...]
    """By track."""
    in_words: AnswerInWords
    """`looks manipulated`, `no sign found` or `cannot tell`, beside the videos held out of the training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DeepfakeDetector:
    """Trained runs, ready to answer for files and frames; their networks are loaded once, by the first prediction.

    >>> from multiattn import DeepfakeDetector
    >>> detector = DeepfakeDetector.load("runs/dfdc_b4", device="cpu")
    >>> answer = detector.predict("clip.mp4")
    >>> 0 < answer.probability < 1
    True
    >>> [(face.track, face.probability == answer.probability, len(face.frames)) for face in answer.faces]
    [(0, True, 4)]
    >>> answer.coverage
    Coverage(frames=4, frames_with_face=4, crops=4)
    >>> import numpy as np
    >>> blank, again = detector.predict([np.zeros((8, 90, 160, 3), np.uint8), "clip.mp4"])
    >>> blank.file, blank.status, blank.probability
    ('8 frames of 160x90', 'no_face', None)
    >>> again == answer
    True
    """

    models: list[TrainedModel]
    rule: ScoringRule
    device: torch.device
    precision: Precision
    batch_size: int
    weights: Path | None
    jobs: int | None
    _loaded: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        *runs: str | Path,
        scoring: str | Path | None = None,
        tta: Tta | None = None,
        device: str = "auto",
        precision: Precision = "auto",
        runtime: Runtime = "torch",
        batch_size: int = BATCH_SIZE,
        weights: str | Path | None = None,
        jobs: int | None = None,
    ) -> "DeepfakeDetector":
        """All folds of some runs, with the recipes of their crops and their scoring rule.

        Args:
            runs: folders of experiments, `runs/<experiment>`, or of single folds, which are faster; or the name of a
                packaged run. Without any the packaged `dfdc_lite`.
            scoring: a `scoring.json` of `multiattn tune`; `none` for plain means; None for the one in a run's folder
                that was tuned for these runs, else plain means.
            tta: views of each crop whose logits are averaged: `flip`, `scales`, `flip+scales` or `none`; None for those
                the rule was tuned on, beside which no others are taken.
            device: `cpu`, `cuda`, `cuda:N` or `auto`.
            precision: `fp32`, `bf16`, `fp16` or `auto`: half precision on a GPU; on a CPU fp32, or bf16 where the
                processor has it, a short trial is faster and P(fake) stays within 0.002.
            runtime: `torch`, or on a CPU `onnxruntime`, for which each network is exported once: the same answers to
                1e-4, sooner.
            batch_size: crops that a network takes at once, at least 1; larger ones take more memory.
            weights: the weights file of the detector that the runs' faces were found with, where it needs one.
            jobs: processes that read files, where there are more than two; None is one a core.

        Raises:
            FileNotFoundError: no such run, none packaged, or a fold without a checkpoint.
            ValueError: a scoring rule of other runs, a device that is not there, another precision, or less than one
                crop or process.
        """
        if precision not in get_args(Precision):
            raise ValueError(f"precision: expected {', '.join(get_args(Precision))}, found {precision!r}.")
        if runtime not in get_args(Runtime):
            raise ValueError(f"runtime: expected {' or '.join(get_args(Runtime))}, found {runtime!r}.")
        precision = runtime_precision(runtime, precision)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 crop, found {batch_size}.")
        if jobs is not None and jobs < 1:
            raise ValueError(f"--jobs: expected at least 1, found {jobs}.")
        folders = tuple(map(named_run, runs)) or (packaged_run(),)
        models, rule = find_models(*folders, any_recipes=True), choose_scoring(folders, scoring, tta)
        require_rule_fits(rule, models)
        device = pick_device(device)
        models = with_runtime(with_tta(models, rule.tta), runtime, device)
        weights = None if weights is None else Path(weights)
        how = {"precision": precision, "batch_size": batch_size, "weights": weights, "jobs": jobs}
        return cls(models=models, rule=rule, device=device, **how)

    @functools.cached_property
    def notes(self) -> list[str]:
        """Lines, one an experiment, that say what the runs were trained on, and their out-of-fold log loss, as it was
        when they were first asked for."""
        return training_notes(self.models)

    @functools.cached_property
    def training_names(self) -> dict[str, dict[str, str]]:
        """`training_names` of the models: a data set's tables are read once, not with every file."""
        return training_names(self.models)

    def predict(self, media: Media | Sequence[Media], *, fps: float | None = None) -> Answer | list[Answer]:
        """The answer for a video, a picture or frames in memory; a list of them for a list, or for a folder.

        The numbers are those of `multiattn score`, and but for rounding (1e-6) those of `multiattn submit`.

        Args:
            media: a path, an array as of `Media`, or a list of them. A folder stands for all videos and pictures below
                it. Frames in memory are taken as those of a video are: of N as many, evenly spaced, as the runs' recipe
                has.
            fps: frames a second of arrays and of folders of pictures, each of which is one clip then, in place of each
                picture by itself. None: the frames of an array have 0 seconds all.

        Returns:
            In the order given; what cannot be read has an answer of status `unreadable`.

        Raises:
            FileNotFoundError: no such file or folder.
            ValueError: neither a path nor an array, a folder without videos or pictures, an array of another dtype or
                shape, `fps` of 0 or less, or a detector without its weights.
        """
        if fps is not None and not 0 < fps < np.inf:
            raise ValueError(f"fps: expected frames a second above 0, found {fps}.")
        is_list = isinstance(media, Iterable) and not isinstance(media, str | Path | np.ndarray)
        files: list[Path | FrameArray] = []
        for one in media if is_list else [media]:
            if isinstance(one, np.ndarray):
                files.append(FrameArray(one))
            elif isinstance(one, str | os.PathLike):
                files += find_files([Path(one)], frame_folders=fps is not None)
            else:
                found = f"{type(one).__name__}{' in a list' * is_list}"
                raise ValueError(f"media: expected a path, an array of frames or a list of them, found {found}.")
        if not files:
            return []
        with tempfile.TemporaryDirectory(prefix="multiattn_") as folder:
            answers = self.answers(files, self.score(files, Path(folder) / "faces", fps=fps))
        is_list = is_list or (isinstance(media, str | Path) and files != [Path(media)])
        return answers if is_list else answers[0]

    def network_in_memory(self, model: TrainedModel) -> nn.Module | None:
        """The network that answered for a model, with attention maps; None before, or where onnxruntime has it."""
        return self._loaded[model.name][0] if model.runtime == "torch" and model.name in self._loaded else None

    def score(self, files: Sequence[Path | FrameArray], faces: Path, *, fps: float | None = None) -> ScoredFiles:
        """The answers as tables, and the crops in a faces folder, which is empty or not there yet."""
        how = {"device": self.device, "precision": self.precision, "batch_size": self.batch_size}
        how |= {"weights": self.weights, "jobs": self.jobs, "loaded": self._loaded}
        return score_files(files, self.models, self.rule, faces, fps=fps, **how)

    def answers(self, files: Sequence[Path | FrameArray], scored: ScoredFiles) -> list[Answer]:
        """The answers of these files' tables, in their order."""
        faces = dict(iter(scored.faces.groupby("video_id")))
        crops = dict(iter(scored.crops.groupby(["video_id", "track"])))
        answers = []
        for file, row in zip(files, scored.files.itertuples(), strict=True):
            of_file = [
                _face(face, crops[row.video_id, face.track])
                for face in faces.get(row.video_id, scored.faces.head(0)).itertuples()
            ]
            seen = {frame.frame_index for face in of_file for frame in face.frames}
            answers.append(
                Answer(
                    file=row.file,
                    probability=float(row.probability) if np.isfinite(row.probability) else None,
                    status=row.status,
                    reason=row.reason,
                    doubts=tuple(_doubts(file, row, scored.outside(row.video_id), self.training_names)),
                    coverage=Coverage(int(row.frames), len(seen), int(row.crops)),
                    faces=tuple(of_file),
                    in_words=self._in_words(row, of_file),
                )
            )
        return answers

    def _in_words(self, row: Any, faces: Sequence[FaceAnswer]) -> AnswerInWords:
        """The answer in words for a row of `ScoredFiles.files` and its faces."""
        if row.status == "unreadable":
            return AnswerInWords(CANNOT_TELL, ("the file could not be read",), "")
        frames = [frame for face in faces for frame in face.frames]
        largest: dict[int, float] = {}
        for frame in frames:
            x1, y1, x2, y2 = frame.box_xyxy
            largest[frame.frame_index] = max(x2 - x1, y2 - y1, largest.get(frame.frame_index, 0.0))
        # Beyond 1, the 99th percentile of held-out training faces, a face lies outside.
        unlike = [frame.distance > 1 for frame in frames if frame.distance is not None]
        share = float(np.mean(unlike)) if unlike else None
        sides = np.array(list(largest.values()))
        doubts = find_doubts(sides, num_frames=int(row.frames), unlike=share) if frames else []
        return answer_in_words(float(row.probability), self.rule.held_out, doubts)

    def in_words(self, answers: Sequence[Answer]) -> list[str]:
        """A line a file, then what the thresholds rest on, and what was not examined."""
        lines = [
            f"{answer.file}: {answer.in_words}" + (f" ({answer.in_words.beside})" if answer.in_words.beside else "")
            for answer in answers
        ]
        if self.rule.held_out is not None:
            lines.append(f"{self.rule.held_out.describe()}.")
        return [*lines, SOUND_NOTE] if any(answer.coverage.frames > 1 for answer in answers) else lines


def _face(face: Any, crops: pd.DataFrame) -> FaceAnswer:
    """A row of `ScoredFiles.faces` and its crops."""
    frames = [
        FrameAnswer(
            frame_index=int(crop.frame_index),
            seconds=float(crop.seconds),
            probability=float(crop.probability),
            box_xyxy=tuple(float(getattr(crop, name)) for name in BOX),
            score=float(crop.score),
            distance=None if np.isnan(crop.distance) else float(crop.distance),
            distance_reason=crop.distance_reason,
        )
        for crop in crops.itertuples()
    ]
    spans = tuple((float(first), float(last)) for first, last in face.spans)
    return FaceAnswer(int(face.track), float(face.probability), spans, tuple(frames))


def _doubts(file: Path | FrameArray, row: Any, outside: Outside, known: dict[str, dict[str, str]]) -> Iterator[str]:
    """Reasons to trust a row of `ScoredFiles.files` less."""
    if row.status == "ok" and row.reason:
        yield row.reason
    if row.status == "ok" and (outside.is_unusual or not outside.measured):
        yield outside.describe()
    for name, videos in known.items() if isinstance(file, Path) else ():
        if file.stem in videos:
            yield f"{name} has seen {videos[file.stem]} in its training, by the name"


def answers_json(detector: DeepfakeDetector, answers: Sequence[Answer]) -> dict[str, Any]:
    """All of some answers as plain types: `files` holds the fields of each `Answer`."""
    made_by = {"runs": [model.name for model in detector.models], "notes": detector.notes}
    return {**made_by, "files": [asdict(answer) for answer in answers]}


def answers_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """`TABLE_COLUMNS` of some answers: a row a file, a face and a frame, by their `level`."""
    rows: list[dict[str, Any]] = []
    for answer in answers:
        of_file, facts = {"file": answer.file}, {"status": answer.status, "reason": answer.reason}
        facts |= {"answer": str(answer.in_words), "doubts": "; ".join(answer.doubts)}
        rows.append({"level": "file", **of_file, "probability": answer.probability, **asdict(answer.coverage), **facts})
        for face in answer.faces:
            of_face = {**of_file, "track": face.track}
            spans = {"spans": describe_spans(face.spans), "crops": len(face.frames)}
            rows.append({"level": "face", **of_face, "probability": face.probability, **spans})
            for frame in face.frames:
                box = dict(zip(BOX, frame.box_xyxy, strict=True))
                rows.append({"level": "frame", **of_face, **asdict(frame), **box})
    table = pd.DataFrame(rows, columns=TABLE_COLUMNS)
    return table.astype(dict.fromkeys(("track", "frame_index", *(one.name for one in fields(Coverage))), "Int64"))
