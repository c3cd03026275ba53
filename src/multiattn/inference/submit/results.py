"""Results of the videos of a submission, kept in a journal so that a killed run goes on where it was."""

import contextlib
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from multiattn.inference.submit.plan import Level
from multiattn.runtime.files import free_name
from multiattn.runtime.frame_folders import clip_fingerprint
from multiattn.runtime.journal import Journal
from multiattn.runtime.layout import SUBMISSION_JOURNAL

logger = logging.getLogger(__name__)

SEARCHED = ("ok", "no_face")
"""Statuses of videos that were decoded and searched."""

BY_USE = ("ok", "no_face", "unreadable", "failed")
"""Statuses of results, the best first."""

OF_MODEL = ("logits", "precisions", "distances", "reasons")
"""Fields of a result with an entry for each model."""


def file_fingerprint(path: Path) -> str:
    """`clip_fingerprint` of a video, empty where it cannot be read."""
    try:
        return clip_fingerprint(path)
    except OSError:
        return ""


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """Logits of one video's crops by one recipe, or the reason why there are none; plain types only."""

    video_id: str
    file: str
    """Fingerprint of its content; another content is another video."""
    status: str
    message: str = ""
    frames: int = 0
    """Number asked for."""
    crops: list[list[int]] = field(default_factory=list)
    """[frame_index, track] of each crop."""
    models: list[str] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)
    """`TrainedModel.fingerprint` of each model."""
    precisions: list[str] = field(default_factory=list)
    logits: list[list[float]] = field(default_factory=list)
    """(models, crops)."""
    distances: list[list[float]] = field(default_factory=list)
    """(models, crops), as in `frame_predictions`; no numbers for a model that does not measure them."""
    reasons: list[list[str]] = field(default_factory=list)
    """The same of the words for crops that lie outside."""
    again: bool = False
    """True where the file is unreadable by what may have been the machine's fault."""

    def __post_init__(self) -> None:
        for name in ("distances", "reasons"):  # an earlier version kept none
            if len(getattr(self, name)) != len(self.models):
                object.__setattr__(self, name, [[] for _ in self.models])

    def is_reduced(self, everything: Level) -> bool:
        """True where fewer frames or models were used than there are."""
        few_models = self.status == "ok" and len(self.models) < everything.models
        return few_models or (self.status in SEARCHED and self.frames < everything.frames)

    def surest_crop(self) -> list[int]:
        """[frame_index, track] of the crop whose mean logit is farthest from 0."""
        return self.crops[int(np.abs(np.mean(self.logits, axis=0)).argmax())]

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


def overall(results: Iterable[VideoResult], recipes: int = 1) -> tuple[str, str]:
    """Status and message of a video, by its results with at least one of so many recipes: the best status, and all that
    is said."""
    results = list(results)
    status = min((result.status for result in results), key=BY_USE.index)
    said = [result.message for result in results if result.message]
    said += [f"crops of {len(results)} of {recipes} recipes"] if len(results) < recipes else []
    return status, "; ".join(dict.fromkeys(said))


class ResultStore:
    """The results of one submission folder by one recipe, open for writing. Logits are kept, not probabilities: another
    scoring rule needs no new results.

    Args:
        work: what all results belong to, whatever the models, plain types.
        others: stores of other work in the same folder. The journal of this work is found by its first line; where
            there is none, it is the first file that is not theirs, and what lies there of other work is set aside.

    Attributes:
        results: video_id -> its results, those of earlier runs and of other models too, the latest last.
    """

    def __init__(self, folder: Path, work: dict[str, Any], others: Sequence["ResultStore"] = ()) -> None:
        path = folder / SUBMISSION_JOURNAL
        journals = (Journal(found, VideoResult) for found in sorted(folder.glob(f"{path.stem}*{path.suffix}")))
        free = free_name(path) if path in [other.journal.path for other in others] else path
        known = (journal for journal in journals if journal.work() == work)
        self.journal = next(known, None) or Journal(free, VideoResult)
        self.journal.claim(work)
        self._contents: dict[Path, str] = others[0]._contents if others else {}
        self.results: dict[str, list[VideoResult]] = {}
        for result in self.journal.records(skip_damaged=True):
            self.results.setdefault(result.video_id, []).append(result)
        self.journal.__enter__()
        self._warned = False

    def usable(
        self, paths: Mapping[str, Path], fingerprints: Mapping[str, str], precision: str
    ) -> dict[str, VideoResult]:
        """The most thorough result of each video (`paths`: video_id -> file) that is of this very file and of models as
        they are now (`VideoResult.of_models`); nothing where no video was decoded and searched: a machine may have
        failed at everything."""
        known = [video for video in paths if video in self.results]
        unread = [paths[video] for video in known if paths[video] not in self._contents]
        with ThreadPoolExecutor() as threads:  # once for all stores: files are read whole
            self._contents.update(zip(unread, threads.map(file_fingerprint, unread), strict=True))
        usable = {}
        for video in known:
            own = [it for it in self.results[video] if it.file == self._contents[paths[video]]]
            parts = [it.of_models(fingerprints, precision) for it in own if it.status != "failed"]
            ordered = sorted(filter(None, parts), key=lambda it: (it.status == "ok", len(it.models) * it.frames))
            if ordered:
                *others, best = ordered
                same = (it for it in reversed(others) if it.crops == best.crops)
                usable[video] = functools.reduce(VideoResult.joined, same, best)
        return usable if any(result.status in SEARCHED for result in usable.values()) else {}

    def add(self, result: VideoResult) -> None:
        """Keep a result. A disk without room costs the restart, not the submission."""
        try:
            self.journal.append(result)
        except OSError as error:
            if not self._warned:
                logger.warning("results cannot be kept (%s); a restart would do them again", error)
            self._warned = True

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        with contextlib.suppress(OSError):
            self.journal.sync()

    def close(self) -> None:
        self.sync()
        self.journal.__exit__()
