"""Results of videos -> the `frame_predictions` table of a submission, in pieces: that of a million videos fits in no
memory."""

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from multiattn.inference.submit.results import VideoResult
from multiattn.runtime.files import atomic_path
from multiattn.scoring.aggregators import frame_predictions
from multiattn.tables import FRAME_PREDICTIONS


def frame_table(results: list[VideoResult], folds: dict[str, int] | None = None) -> pd.DataFrame:
    """The `frame_predictions` table of results with logits, models in the order of `folds` (model -> fold), videos by
    name within each; without `folds` what scores are made of, which has no distances and is not checked."""
    results = sorted((result for result in results if result.logits), key=lambda result: result.video_id)
    names = list(folds or dict.fromkeys(name for result in results for name in result.models))
    number_of, videos = pd.factorize(np.array([result.video_id for result in results], dtype=object))
    videos, tables = pd.Index(videos, dtype=str), []
    for name in names:
        chosen = [place for place, result in enumerate(results) if name in result.models]
        if not chosen:
            continue
        parts = [(results[place], results[place].models.index(name)) for place in chosen]
        places = np.concatenate([result.crops for result, _ in parts]).astype(np.int64)
        rows = np.repeat(number_of[chosen], [len(result.crops) for result, _ in parts])
        crops = {"frame_index": places[:, 0], "track": places[:, 1]}
        how_far = {}
        if folds is None:
            crops["video_id"] = pd.Categorical.from_codes(rows, videos)  # each name is text once
        else:
            crops["video_id"] = videos.take(rows)
            distances, reasons = zip(*(_how_far(result, row) for result, row in parts), strict=True)
            how_far = {"distances": np.concatenate(distances), "reasons": list(itertools.chain.from_iterable(reasons))}
        logits = np.concatenate([result.logits[row] for result, row in parts])
        fold = (folds or {}).get(name, 0)
        tables.append(frame_predictions(pd.DataFrame(crops), logits, model=name, fold=fold, **how_far))
    whole = pd.concat(tables, ignore_index=True) if tables else FRAME_PREDICTIONS.empty()
    return whole if folds is None else FRAME_PREDICTIONS.validate(whole, "frame predictions")


def _how_far(result: VideoResult, row: int) -> tuple[np.ndarray, Sequence[str]]:
    """Distance of each crop from the faces of a model's training, and the words for it."""
    number, measured, words = len(result.crops), result.distances[row], result.reasons[row]
    return measured if len(measured) else np.full(number, np.nan), words or [""] * number


def copy_frames(path: Path, out: Path) -> int:
    """Write a `frame_predictions.parquet` as another file, atomically, and in one of another ending in that form; the
    number of its rows."""
    if out.suffix != path.suffix:
        FRAME_PREDICTIONS.write(FRAME_PREDICTIONS.read(path), out)
    else:  # not read: in memory a row takes 200 bytes
        with atomic_path(out) as temporary:
            shutil.copyfile(path, temporary)
    return pyarrow.parquet.read_metadata(path).num_rows


class FrameFiles:
    """Rows of `frame_predictions` that come video after video and are written model after model; until then they lie in
    files without a name, which go with the process.

    Args:
        folder: in which these files lie.
        models: in the order of the table.
    """

    def __init__(self, folder: Path, models: Sequence[str]) -> None:
        self._folder, self._models = folder, models
        self._files: dict[str, tuple[IO[bytes], pyarrow.parquet.ParquetWriter]] = {}

    def add(self, table: pd.DataFrame) -> None:
        """Take the rows of the next videos, a sound table."""
        for model, rows in table.groupby("model", sort=False):
            piece = pyarrow.Table.from_pandas(rows, preserve_index=False)
            if model not in self._files:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (open until it is written)
                self._files[model] = file, pyarrow.parquet.ParquetWriter(file, piece.schema)
            self._files[model][1].write_table(piece)

    def write(self, path: Path) -> None:
        """Write all that was taken as one table, atomically; nothing can be added then."""
        if not self._files:
            FRAME_PREDICTIONS.write(FRAME_PREDICTIONS.empty(), path)
            return
        files = [self._files[model] for model in self._models if model in self._files]
        with atomic_path(path) as temporary, pyarrow.parquet.ParquetWriter(temporary, files[0][1].schema) as whole:
            for file, writer in files:
                writer.close()
                with file, pyarrow.parquet.ParquetFile(file) as pieces:
                    for number in range(pieces.num_row_groups):
                        whole.write_table(pieces.read_row_group(number))
