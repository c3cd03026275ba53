"""The training table of one fold: crops with labels, from a faces folder and folds; and the loaders over it."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from multiattn.config import DataConfig
from multiattn.training.augment import Augmentation
from multiattn.training.sampling import EpochSampler, RankBatches
from multiattn.video.crop_images import CropImages, use_one_thread


@dataclass(frozen=True)
class FoldCrops:
    """The crops one fold trains on and those it is validated on."""

    folder: Path
    """The faces folder the crops' paths start from."""
    training: pd.DataFrame
    """Rows of `faces.parquet` with a column `label`, sorted by the table's key."""
    validation: pd.DataFrame
    """The same for the held-out fold."""
    held_out: pd.DataFrame
    """Rows of the folds table of the held-out fold, those without a face included."""

    def fingerprint(self) -> str:
        """Changes when a crop is added, removed or moved between training and validation."""
        names = itertools.chain(self.training["crop"], ["|"], self.validation["crop"])
        return hashlib.sha256("\n".join(names).encode()).hexdigest()


def split_crops(
    faces: pd.DataFrame, folds: pd.DataFrame, fold: int, folder: Path, *, validation_frames: int | None = None
) -> FoldCrops:
    """Join faces and folds.

    Args:
        validation_frames: evenly spaced frames of each held-out video; None takes all of them.

    Raises:
        ValueError: no such fold, or a part of it has no crops, or one class only.
    """
    present = sorted(set(folds["fold"]) - {-1})
    if fold not in present:
        raise ValueError(f"--fold {fold}: no such fold; folds present: {present}, or all.")
    columns = ["video_id", "frame_index", "track", "crop"]  # of millions of crops, no more than is needed
    joined = faces[columns].merge(folds[["video_id", "label", "fold"]], on="video_id")
    training = joined[joined["fold"] != fold].drop(columns="fold").reset_index(drop=True)
    validation = joined[joined["fold"] == fold].drop(columns="fold").reset_index(drop=True)
    if validation_frames is not None:
        validation = _spread_frames(validation, validation_frames)
    for name, table in (("training", training), ("validation", validation)):
        classes = sorted(table["label"].unique().tolist())
        if classes != [0, 1]:
            raise ValueError(
                f"fold {fold}: expected {name} crops of real (0) and fake (1) videos, found labels {classes} in "
                f"{len(table)} crops of {folder}. Do the folds and the faces belong together?"
            )
    return FoldCrops(folder, training, validation, folds[folds["fold"] == fold].reset_index(drop=True))


def _spread_frames(table: pd.DataFrame, num_frames: int) -> pd.DataFrame:
    """The crops of `num_frames` evenly spaced frames of each video (all of a video that has fewer)."""
    position = table.groupby("video_id")["frame_index"].rank(method="dense").astype("int64") - 1
    frames = position.groupby(table["video_id"]).transform("max") + 1
    # Frame i is kept when it is the first of one of num_frames equal pieces of the video's frames.
    kept = (position * num_frames) // frames != ((position - 1) * num_frames) // frames
    return table[kept].reset_index(drop=True)


class TrainingCrops(CropImages):
    """Crops with labels and augmentation: (row, seed) -> ((H, W, 3) uint8 RGB, label)."""

    def __init__(
        self, folder: Path, names: pd.Series, size: int, labels: np.ndarray, augmentation: Augmentation
    ) -> None:
        super().__init__(folder, names, size)
        self.labels = labels
        self.augmentation = augmentation

    def __getitem__(self, index: tuple[int, int]) -> tuple[torch.Tensor, int]:
        row, seed = index
        crop = self.augmentation(super().__getitem__(row).numpy(), seed)
        return torch.from_numpy(np.ascontiguousarray(crop)), int(self.labels[row])


def training_loader(crops: FoldCrops, config: DataConfig, *, seed: int, rank: int, world_size: int) -> DataLoader:
    """Batches of one rank: (B, H, W, 3) uint8 and (B,) int64. Set `loader.batch_sampler.epoch` before each epoch."""
    table = crops.training
    video_of_row, videos = pd.factorize(table["video_id"])
    labels = table.groupby("video_id")["label"].first().loc[videos].to_numpy()
    sampler = EpochSampler(
        video_of_row,
        labels,
        frames_per_video=config.frames_per_video,
        videos_per_class=config.videos_per_class,
        seed=seed,
    )
    dataset = TrainingCrops(
        crops.folder,
        table["crop"],
        config.image_size,
        table["label"].to_numpy(),
        Augmentation(config.augmentation, config.image_size),
    )
    return DataLoader(
        dataset,
        batch_sampler=RankBatches(sampler, batch_size=config.batch_size, rank=rank, world_size=world_size),
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=use_one_thread,
    )


def validation_loader(crops: FoldCrops, config: DataConfig, *, rank: int, world_size: int) -> DataLoader:
    """Batches of every world_size-th validation crop, starting at `rank`, in order."""
    names = crops.validation["crop"].iloc[rank::world_size]
    dataset = CropImages(crops.folder, names, config.image_size)
    return DataLoader(
        dataset,
        batch_size=2 * config.batch_size,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=use_one_thread,
    )
