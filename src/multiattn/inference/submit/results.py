"""Results of the videos of a submission, kept in a journal so that a killed run goes on where it was."""

import contextlib
import functools
import logging
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multiattn.config import to_json
from multiattn.inference.submit.plan import Level
from multiattn.runtime.files import free_name
from multiattn.runtime.frame_folders import clip_facts, clip_fingerprint
from multiattn.runtime.journal import Journal
from multiattn.runtime.layout import SUBMISSION_JOURNAL
from multiattn.video.crops.recipe import CropRecipe

logger = logging.getLogger(__name__)

SEARCHED = ("ok", "no_face")
"""Statuses of videos that were decoded and searched."""

BY_USE = ("ok", "no_face", "unreadable", "failed")
"""Statuses of results, the best first."""

OF_MODEL = ("logits", "precisions", "distances", "reasons")
"""Fields of a result with an entry for each model."""

NUMBERS = ("logits", "distances")
"""Those that are numbers."""

FLOAT, INTEGER = np.dtype("<f8"), np.dtype("<i4")
RESULTS_VERSION = 2
"""Version of the results a folder keeps. Version 1 knew a file by its size alone."""
LINES_AT_ONCE, FILES_A_THREAD = 2048, 128
"""Bounds of a journal that is read: the lines in memory, and the videos that a thread looks at in one go."""


def file_fingerprint(path: Path) -> str:
    """`clip_fingerprint` of a video, empty where it cannot be read."""
    try:
        return clip_fingerprint(path)
    except OSError:
        return ""


def _text(numbers: np.ndarray) -> str:
    return b64encode(numbers.tobytes()).decode()


def _numbers(values: Any, kind: np.dtype) -> np.ndarray:
    if isinstance(values, str):
        values = np.frombuffer(b64decode(values), kind) if values else ()
    return np.asarray(values, kind)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoResult:
    """Logits of one video's crops by one recipe, or the reason why there are none.

    Numbers may be given as lists, as an earlier version kept them, or in base64 (`packed`).
    """

    video_id: str
    file: str
    """Fingerprint of its content; another content is another video."""
    status: str
    message: str = ""
    frames: int = 0
    """Number asked for."""
    crops: np.ndarray = ()
    """(crops, 2) int32: frame_index and track."""
    models: list[str] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)
    """`TrainedModel.fingerprint` of each model."""
    precisions: list[str] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    """(crops,) float64 of each model."""
    distances: list[np.ndarray] = field(default_factory=list)
    """The same as in `frame_predictions`; of no crops for a model that does not measure them."""
    reasons: list[list[str]] = field(default_factory=list)
    """Likewise the words for crops that lie outside; none where there are no words."""
    again: bool = False
    """True where the file is unreadable by what may have been the machine's fault."""
    seen: list[int] = field(default_factory=list)
    """`clip_facts` of the file before it was read: while these stay, its content does. An earlier version kept none."""

    def __post_init__(self) -> None:
        values = vars(self)  # of a frozen class, and of a million results
        for name in ("distances", "reasons"):  # an earlier version kept none
            if len(values[name]) != len(self.models):
                values[name] = [[] for _ in self.models]
        for name in NUMBERS:
            values[name] = [_numbers(row, FLOAT) for row in values[name]]
        values["crops"] = _numbers(self.crops, INTEGER).reshape(-1, 2)
        number = len(self.crops)
        if any(len(row) != number for row in self.logits) or any(
            len(row) not in (0, number) for row in (*self.distances, *self.reasons)
        ):
            raise ValueError(f"{self.video_id}: expected numbers of {number} crops, found others")
        if len({len(values[name]) for name in ("models", "fingerprints", *OF_MODEL)}) > 1:
            raise ValueError(f"{self.video_id}: expected values of each of {len(self.models)} models, found others")

    def packed(self) -> dict[str, Any]:
        """Its numbers as base64 of float64 and int32, as the journal keeps them: a tenth of the time of decimals,
        exact, and shorter."""
        return {name: list(map(_text, getattr(self, name))) for name in NUMBERS} | {"crops": _text(self.crops)}

    def is_reduced(self, everything: Level) -> bool:
        """True where fewer frames or models were used than there are."""
        return self.facts().is_reduced(everything)

    def facts(self) -> "Facts":
        """The part that stays in memory; equal ones are one object."""
        precisions = tuple(sorted(set(self.precisions)))
        return _one_of(Facts(self.status, self.message, self.frames, len(self.models), precisions, self.again))

    def surest_crop(self) -> list[int]:
        """[frame_index, track] of the crop whose mean logit is farthest from 0."""
        return self.crops[np.abs(np.mean(self.logits, axis=0)).argmax()].tolist()

    def is_of_crops(self, places: Any) -> bool:
        """True where its crops are those at these (crops, 2) frames and tracks, in this order."""
        return np.array_equal(self.crops, _numbers(places, INTEGER).reshape(-1, 2))

    def by_model(self) -> dict[str, tuple[Any, ...]]:
        """Model -> its values of `OF_MODEL`."""
        columns = (getattr(self, name) for name in OF_MODEL)
        return dict(zip(self.models, zip(*columns, strict=True), strict=True))

    def of_models(self, fingerprints: Mapping[str, str], precision: str) -> "VideoResult | None":
        """The part that models as they are now (name -> fingerprint) would give again, by their present names, in the
        precision asked for, `auto` being any; None where nothing is left."""
        rows = {
            name: row
            for name, wanted in fingerprints.items()
            for row, found in enumerate(self.fingerprints)
            if found == wanted and precision in ("auto", self.precisions[row])
        }
        if list(rows) == self.models and list(rows.values()) == list(range(len(rows))):  # as nearly always
            return self if rows or self.status != "ok" else None
        if self.status == "ok" and not rows:
            return None
        kept = {name: [getattr(self, name)[row] for row in rows.values()] for name in ("fingerprints", *OF_MODEL)}
        return replace(self, models=list(rows), **kept)

    def joined(self, other: "VideoResult") -> "VideoResult":
        """The same with those models of another result of the same crops that this one lacks."""
        more = [row for row, name in enumerate(other.models) if name not in self.models]
        columns = ("models", "fingerprints", *OF_MODEL)
        return replace(
            self, **{name: getattr(self, name) + [getattr(other, name)[row] for row in more] for name in columns}
        )


class Facts(NamedTuple):
    """A result as a run of a million videos has it in memory, without the numbers of its crops."""

    status: str
    message: str
    frames: int
    models: int
    """Number of them."""
    precisions: tuple[str, ...]
    again: bool

    def is_reduced(self, everything: Level) -> bool:
        """True where fewer frames or models were used than there are."""
        few_models = self.status == "ok" and self.models < everything.models
        return few_models or (self.status in SEARCHED and self.frames < everything.frames)


@functools.lru_cache(100_000)
def _one_of(facts: Facts) -> Facts:
    return facts


def overall(results: Iterable[VideoResult | Facts], recipes: int = 1) -> tuple[str, str]:
    """Status and message of a video, by its results with at least one of so many recipes: the best status, and all that
    is said."""
    results = list(results)
    status = min((result.status for result in results), key=BY_USE.index)
    said = [result.message for result in results if result.message]
    said += [f"crops of {len(results)} of {recipes} recipes"] if len(results) < recipes else []
    return status, "; ".join(dict.fromkeys(said))


def results_work(recipe: CropRecipe) -> dict[str, Any]:
    """All that results of a recipe belong to, whatever the models, in plain types: the first line of their journal."""
    return {"version": RESULTS_VERSION, "crops": to_json(recipe)}


def results_journals(folder: Path) -> list[Journal[VideoResult]]:
    """The journals of a submission folder, one a recipe, by name; none where there is no folder."""
    stem, suffix = SUBMISSION_JOURNAL.split(".")
    return [_journal(path) for path in sorted(folder.glob(f"{stem}*.{suffix}"))]


def _journal(path: Path) -> Journal[VideoResult]:
    return Journal(path, VideoResult, VideoResult.packed)


class ResultStore:
    """The results of one submission folder by one recipe, open for writing. Logits are kept, not probabilities: another
    scoring rule needs no new results.

    Args:
        work: `results_work` of the recipe.
        others: stores of other work in the same folder. The journal of this work is found by its first line; where
            there is none, it is the first file that is not theirs, and what lies there of other work is set aside.

    Attributes:
        kept: video_id -> facts of its result, found by `use` or added, and where the rest is: places of
            its lines in the journal, or the result itself where the disk did not take it (`read`).
        unused: video_ids with results of faces of which none is usable.
    """

    def __init__(self, folder: Path, work: dict[str, Any], others: Sequence["ResultStore"] = ()) -> None:
        path = folder / SUBMISSION_JOURNAL
        free = free_name(path) if path in [other.journal.path for other in others] else path
        known = (journal for journal in results_journals(folder) if journal.work() == work)
        self.journal = next(known, None) or _journal(free)
        self.journal.claim(work)
        self._contents: dict[str, str] = others[0]._contents if others else {}
        self.kept: dict[str, tuple[Facts, int | tuple[int, ...] | VideoResult]] = {}
        self.unused: set[str] = set()
        self._earlier = self.journal.path.stat().st_size
        self._asked: tuple[Mapping[str, str], str] = ({}, "auto")
        self.journal.__enter__()
        self._warned = False

    def use(self, paths: Mapping[str, str | Path], fingerprints: Mapping[str, str], precision: str) -> None:
        """Fill `kept` with the most thorough result of each video (`paths`: video_id -> file) that is of this very file
        and of models as they are now (`VideoResult.of_models`); several lines of a video may go together. With nothing
        where no video was decoded and searched: a machine may have failed at everything."""
        self._asked = fingerprints, precision
        kept: dict[str, tuple[Facts, int | tuple[int, ...]]] = {}
        several: set[str] = set()
        for place, result in self._of_these_files(paths):
            video, part = result.video_id, result.of_models(fingerprints, precision)
            if part is None or result.status == "failed":
                if result.status == "ok":
                    self.unused.add(video)
            elif video in kept:
                facts, where = kept[video]
                kept[video] = facts, (*(where if video in several else (where,)), place)
                several.add(video)
            else:
                kept[video] = part.facts(), place
        for video in several:
            where = kept[video][1]
            kept[video] = self._joined(where).facts(), where
        self.unused -= kept.keys()
        if any(facts.status in SEARCHED for facts, _ in kept.values()):
            self.kept = {video: kept[video] for video in paths if video in kept}  # whose names are there once then

    def _of_these_files(self, paths: Mapping[str, str | Path]) -> Iterator[tuple[int, VideoResult]]:
        """Place and result of each line that is of a video's present file. A file is read only where its facts are not
        those of the result."""

        def are_same(lines: Sequence[tuple[int, VideoResult]]) -> list[bool]:
            return [self._is_of(result, str(paths[result.video_id])) for _, result in lines]

        lines = (line for line in self.journal.placed_records(skip_damaged=True) if line[1].video_id in paths)
        with ThreadPoolExecutor() as threads:  # a network's file system answers many at a time
            while some := list(islice(lines, LINES_AT_ONCE)):
                parts = [some[start : start + FILES_A_THREAD] for start in range(0, len(some), FILES_A_THREAD)]
                for part, same in zip(parts, threads.map(are_same, parts), strict=True):
                    for line, is_same in zip(part, same, strict=True):
                        if is_same:
                            yield line
                        elif line[1].status == "ok":
                            self.unused.add(line[1].video_id)

    def _is_of(self, result: VideoResult, path: str) -> bool:
        if result.seen and result.seen == clip_facts(path):
            return True
        if path not in self._contents:  # once for all stores
            self._contents[path] = file_fingerprint(Path(path))
        return result.file == self._contents[path]

    def _joined(self, places: int | tuple[int, ...]) -> VideoResult:
        """One result of the lines of a video: the most thorough one, with what others of the same crops add."""
        parts = [
            it.of_models(*self._asked) if place < self._earlier else it
            for place in ((places,) if isinstance(places, int) else places)
            for it in [self.journal.read_at(place)]
        ]
        *others, best = sorted(parts, key=lambda it: (it.status == "ok", len(it.models) * it.frames))
        return functools.reduce(VideoResult.joined, (it for it in reversed(others) if it.is_of_crops(best.crops)), best)

    def read(self, video: str) -> VideoResult:
        """The whole result of a video in `kept`."""
        where = self.kept[video][1]
        return where if isinstance(where, VideoResult) else self._joined(where)

    def add(self, result: VideoResult) -> None:
        """Keep a result in place of the video's former one. A disk without room costs the restart, not the
        submission."""
        where: int | VideoResult = result
        try:
            where = self.journal.append(result)
        except OSError as error:
            if not self._warned:
                logger.warning("results cannot be kept (%s); a restart would do them again", error)
            self._warned = True
        self.kept[result.video_id] = result.facts(), where

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        with contextlib.suppress(OSError):
            self.journal.sync()

    def close(self) -> None:
        self.sync()
        self.journal.__exit__()
