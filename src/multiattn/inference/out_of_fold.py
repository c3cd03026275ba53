"""Out-of-fold scoring: every video judged by the one model that never saw it."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from multiattn.inference.runs import fold_folders
from multiattn.scoring.aggregation import Aggregator, aggregate_frames, complete_videos
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS, VideoMetrics, video_metrics
from multiattn.tables import FOLDS, FRAME_PREDICTIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OutOfFold:
    """Metrics over the videos of all finished folds together, and of each fold."""

    overall: VideoMetrics
    folds: pd.DataFrame
    """fold, log_loss, auc, accuracy, num_videos."""
    without_face: int
    """Videos that count with the prior."""

    def describe(self) -> str:
        """A small table for a terminal."""
        table = self.folds.to_string(index=False, float_format="%.4f")
        return (
            f"{table}\nout of fold: log loss {self.overall.log_loss:.4f} (constant 0.5: {CONSTANT_LOG_LOSS:.4f}), "
            f"AUC {self.overall.auc:.4f}, accuracy {self.overall.accuracy:.3f} over {self.overall.num_videos} videos, "
            f"{self.without_face} of them without a face"
        )


def score_out_of_fold(
    runs: Path, aggregator: Aggregator | None = None, *, unfinished: Literal["refuse", "skip"] = "refuse"
) -> OutOfFold:
    """Score the `oof.parquet` of every fold of an experiment with the aggregator that makes submissions.

    Args:
        unfinished: `skip` leaves out folds without predictions, which another process may still be training.

    Raises:
        FileNotFoundError: a fold has no predictions yet (with `skip`: none has).
        ValueError: the folds were made from different folds tables.
    """
    aggregator = aggregator or Aggregator()
    tables, rows = [], []
    kept: pd.DataFrame | None = None
    for folder in fold_folders(runs):
        if unfinished == "skip" and not (folder / "oof.parquet").is_file():
            logger.info("%s: no finished epoch yet, left out of the out-of-fold score", folder)
            continue
        folds = FOLDS.read(folder / "folds.csv")
        if kept is not None and not kept.equals(folds):
            raise ValueError(f"{folder / 'folds.csv'}: not the folds of the other runs in {runs}.")
        kept = folds
        predictions = FRAME_PREDICTIONS.read(folder / "oof.parquet", allow_empty=True)
        number = int(folder.name.removeprefix("fold"))
        held_out = folds[folds["fold"] == number]
        videos = complete_videos(held_out["video_id"], aggregate_frames(predictions, aggregator), aggregator)
        videos["label"] = held_out["label"].to_numpy()
        tables.append(videos)
        rows.append({"fold": number, **_metrics(videos, aggregator).as_dict()})
    if not tables:
        raise FileNotFoundError(f"{runs}: no fold has finished its first epoch.")
    everything = pd.concat(tables, ignore_index=True)
    without_face = int((everything["num_crops"] == 0).sum())
    return OutOfFold(_metrics(everything, aggregator), pd.DataFrame(rows), without_face)


def _metrics(videos: pd.DataFrame, aggregator: Aggregator) -> VideoMetrics:
    return video_metrics(videos["label"].to_numpy(), videos["probability"].to_numpy(), clip=aggregator.clip)
