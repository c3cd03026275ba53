"""Which crops of a file say most: those shown in a report, and those whose attention is looked at."""

from pathlib import Path

import pandas as pd
import torch

from multiattn.inference.attention_maps import FaceMaps, look_at
from multiattn.inference.runs import TrainedModel

EACH_SIDE = 4


def deciding_crops(crops: pd.DataFrame, each_side: int = EACH_SIDE) -> pd.DataFrame:
    """The crops of one file with the highest and the lowest P(fake), at most `each_side` of both; falling.

    Args:
        crops: rows of `ScoredFiles.crops` of one file.

    Returns:
        All rows of a file that has no more than twice as many. Equal ones in order of track and frame.
    """
    ordered = crops.sort_values(["probability", "track", "frame_index"], ascending=[False, True, True])
    if len(ordered) <= 2 * each_side:
        return ordered.reset_index(drop=True)
    return pd.concat([ordered.head(each_side), ordered.tail(each_side)], ignore_index=True)


def extreme_crops(crops: pd.DataFrame) -> pd.DataFrame:
    """Of every file the crop with the highest P(fake) and the one with the lowest; one where there is one."""
    of_files = [deciding_crops(rows, each_side=1) for _, rows in crops.groupby("video_id", sort=True)]
    return pd.concat(of_files, ignore_index=True) if of_files else crops.head(0)


def model_with_maps(models: list[TrainedModel]) -> TrainedModel | None:
    """The first that has attention maps; None where all are baselines."""
    return next((model for model in models if model.experiment.model.network != "baseline"), None)


def look_at_extremes(
    model: TrainedModel, faces: Path, shown: pd.DataFrame, *, device: torch.device, precision: str = "auto"
) -> list[FaceMaps]:
    """The maps of a model over some crops, in their order; [] for none."""
    if shown.empty:
        return []
    return look_at(model, faces, shown, shown.head(1), device=device, precision=precision)[0]
