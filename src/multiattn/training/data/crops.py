"""The crops one fold trains on and is validated on, and the loaders over them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

from multiattn.config import DataConfig
from multiattn.config.choices import DEGRADING_PRESETS
from multiattn.config.settings import registry
from multiattn.runtime.crop_files import declared_root, loose_names
from multiattn.runtime.text_tables import counted
from multiattn.tables import BOX, FAKE, LANDMARKS, REAL
from multiattn.training.data.augment import EARLIER_CROPS, Augmentation, CropContext, blend_target, self_blend
from multiattn.training.data.augment.faces import CropLandmarks
from multiattn.training.data.sampling import (
    EpochSampler,
    PairSampler,
    RankBatches,
    Sampler,
    Visit,
    balanced_visits,
    find_pairs,
    require_both_classes,
)
from multiattn.video.crops.cache import CropCache, open_cache
from multiattn.video.crops.images import CropImages, crop_loader, names_digest, shrink_crop, stored_side

logger = logging.getLogger(__name__)


FACE_COLUMNS = ("video_id", "frame_index", "track", "crop", *BOX, *LANDMARKS)
"""The columns of `faces.parquet` that training needs."""


@dataclass(frozen=True)
class FoldCrops:
    """The crops one fold trains on and those it is validated on."""

    folder: Path
    """The faces folder the crops' paths start from."""
    training: pd.DataFrame
    """video_id, frame_index, track and crop of `faces`, sorted by the table's key, with the columns `label` and `face`,
    the number of the row in `faces`."""
    validation: pd.DataFrame
    """The same for the held-out fold."""
    held_out: pd.DataFrame
    """Rows of the folds table of the held-out fold, those without a face included."""
    faces: pd.DataFrame | None = None
    """The whole `faces` table: boxes and landmarks, for pairs, presets and self-blending."""
    videos: pd.DataFrame | None = None
    """The `videos` table, which knows the originals of fakes."""

    def fingerprint(self) -> str:
        """Digest that changes when a crop is added, removed or moved between training and validation, and not when
        crops are packed."""
        return names_digest(loose_names(self.training["crop"]), ["|"], loose_names(self.validation["crop"]))


def split_crops(
    faces: pd.DataFrame,
    folds: pd.DataFrame,
    fold: int,
    folder: Path,
    *,
    validation_frames: int | None = None,
    videos: pd.DataFrame | None = None,
) -> FoldCrops:
    """Join faces and folds; of each held-out video the crops of `validation_frames` evenly spaced frames, or all.

    Raises:
        ValueError: training or validation has no crops, or one class only.
    """
    # By the number of each video: joining millions of names takes many times the memory.
    video_of_face, names = pd.factorize(faces["video_id"])
    place = pd.Index(folds["video_id"]).get_indexer(names)
    fold_of_video = np.where(place >= 0, folds["fold"].to_numpy()[place], -2) if len(folds) else np.empty(0, int)
    label_of_video = folds["label"].to_numpy()[place]

    def rows(of_video: np.ndarray) -> pd.DataFrame:
        kept = of_video[video_of_face]
        # Column by column and by a mask: by numbers, the text of all rows would be copied into one piece first.
        columns = {name: faces[name].array[kept] for name in ("video_id", "frame_index", "track", "crop")}
        columns |= {"label": label_of_video[video_of_face[kept]], "face": np.flatnonzero(kept)}
        return pd.DataFrame(columns, copy=False)

    training = rows((fold_of_video != fold) & (fold_of_video != -2))
    validation = rows(fold_of_video == fold)
    validation["video_id"] = validation["video_id"].astype(str)  # not as categories, most of which it does not have
    if validation_frames is not None:
        validation = _spread_frames(validation, validation_frames)
    for name, table in (("training", training), ("validation", validation)):
        classes = sorted(table["label"].unique().tolist())
        if classes != [0, 1]:
            raise ValueError(
                f"fold {fold}: expected {name} crops of real (0) and fake (1) "
                f"videos, found labels {', '.join(map(str, classes)) or 'none'} in "
                f"{counted(len(table), 'crop')} of {folder}. Do the folds and the faces belong together?"
            )
    return FoldCrops(folder, training, validation, folds[folds["fold"] == fold].reset_index(drop=True), faces, videos)


def _spread_frames(table: pd.DataFrame, num_frames: int) -> pd.DataFrame:
    """The crops of `num_frames` evenly spaced frames of each video (all of a video that has fewer)."""
    position = table.groupby("video_id")["frame_index"].rank(method="dense").astype("int64") - 1
    frames = position.groupby(table["video_id"]).transform("max") + 1
    # Frame i is kept when it is the first of one of num_frames equal pieces of the video's frames.
    kept = (position * num_frames) // frames != ((position - 1) * num_frames) // frames
    return table[kept].reset_index(drop=True)


BLEND_STREAM = 20
"""Stream of a visit's seed that decides if the crop is shown blended with itself."""


class TrainingCrops(CropImages):
    """Crops with labels and augmentation, by visit; what a visit shows follows from the visit alone.

    With `config.sbi` a visit of a real crop shows it blended with itself instead, with that probability, and its label
    is fake; all other crops are then changed as a whole as often as self-blended ones are.

    Crops whose landmarks are not known (none were found, or another program cut them) go without the steps that need
    them, and are never blended; a warning counts them.

    Raises:
        ValueError: crops shall be blended, and no real one has landmarks.
    """

    def __init__(
        self,
        folder: Path,
        table: pd.DataFrame,
        faces: pd.DataFrame | None,
        config: DataConfig,
        *,
        cache: CropCache | None = None,
    ) -> None:
        rows = table["face"].to_numpy() if cache is not None else None
        super().__init__(folder, table["crop"], config.image_size, cache=cache, cache_rows=rows)
        self.labels = table["label"].to_numpy().astype(np.int8)
        self.read_side = reading_side(folder, config)
        self.augmentation = Augmentation(config.augmentation, self.read_side)
        self.blended = config.sbi
        self.landmarks = None
        if self.augmentation.needs_landmarks or self.blended > 0:
            self.landmarks = CropLandmarks.of(folder, faces, table["face"].to_numpy())
            self._count_unknown(folder, config)
        if self.augmentation.needs_clip:
            self.video = pd.factorize(table["video_id"])[0].astype(np.int32)
            self.track = table["track"].to_numpy().astype(np.int32)

    def fill(self, visit: Visit, out: np.ndarray) -> int:
        """Write the crop that a visit shows into `out`, (size, size, 3) uint8 RGB; return its label."""
        row, seed, geometry_seed, strength = visit
        crop, label = self.read(row), int(self.labels[row])
        landmarks = None if self.landmarks is None else self.landmarks.at(row, self.read_side)
        can_blend = label == REAL and self.blended > 0 and landmarks is not None
        if can_blend and np.random.default_rng((seed, BLEND_STREAM)).random() < self.blended:
            crop, label = self_blend(crop, landmarks, seed), FAKE
        elif self.blended > 0:
            crop = blend_target(crop, seed)  # or whole-crop changes would be a mark of self-blended images alone
        clip = (lambda: [self.read(other) for other in self._earlier(row)]) if self.augmentation.needs_clip else None
        context = CropContext(landmarks, clip, strength)
        out[...] = shrink_crop(self.augmentation(crop, seed, context, geometry_seed=geometry_seed), self.size)
        return label

    def _count_unknown(self, folder: Path, config: DataConfig) -> None:
        unknown, is_real = ~self.landmarks.known, self.labels == REAL
        if self.blended > 0 and unknown[is_real].all():
            raise ValueError(
                f"{folder}: --sbi {config.sbi} blends real crops by their landmarks, and none of {is_real.sum()} has "
                "any that are known in the crop. Find them with `multiattn index crops --landmarks mtcnn`, cut the "
                "faces with `multiattn faces`, or leave the option out."
            )
        if unknown.any():
            steps = [f"--data.augmentation {config.augmentation}"] * self.augmentation.needs_landmarks
            steps += [f"--sbi {config.sbi}"] * (self.blended > 0)
            logger.warning(
                "%s: %d of %d training crops have no landmarks: they go without the steps of %s that need them; the "
                "first: %s", folder, unknown.sum(), len(unknown), " and ".join(steps), self.names[int(unknown.argmax())]
            )  # fmt: skip

    def _earlier(self, row: int) -> list[int]:
        """Rows of the same face before this one, oldest first, as many as a clip may have."""
        rows, other = [], row - 1
        while other >= 0 and self.video[other] == self.video[row] and len(rows) < EARLIER_CROPS:
            if self.track[other] == self.track[row]:
                rows.insert(0, other)
            other -= 1
        return rows


def _videos(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The number of each row's video, (N,), and the label of each video, (V,)."""
    video_of_row, names = pd.factorize(table["video_id"])
    labels = np.empty(len(names), dtype=np.int64)
    labels[video_of_row] = table["label"].to_numpy()
    return video_of_row, labels


def _by_class(crops: FoldCrops, config: DataConfig, seed: int) -> Sampler:
    """As many visits of real videos as of fake ones; with `weighted` every video once."""
    video_of_row, labels = _videos(crops.training)
    if config.sampling == "weighted":  # `class_weights` make up for what the classes lack
        visits = int(np.sum(labels == REAL)), int(np.sum(labels == FAKE))
    else:
        visits = balanced_visits(labels, config.videos_per_class, blended=config.sbi)
    return EpochSampler(video_of_row, labels, frames_per_video=config.frames_per_video, visits=visits, seed=seed)


def _paired(crops: FoldCrops, config: DataConfig, seed: int) -> Sampler:
    """A real crop and the same frame and face of one of its fakes side by side."""
    boxes_known = declared_root(crops.folder) is None
    pairs = find_pairs(crops.folder, crops.training, crops.faces, crops.videos, boxes_known=boxes_known)
    number = {"frames_per_video": config.frames_per_video, "visits": config.videos_per_class}
    return PairSampler(pairs, _videos(crops.training)[0], **number, seed=seed)


SAMPLINGS: dict[str, Callable[[FoldCrops, DataConfig, int], Sampler]] = registry(
    DataConfig, "sampling", {"balanced": _by_class, "paired": _paired, "weighted": _by_class}
)
"""Name -> the sampler of a fold's epochs. The names stand in `DataConfig.sampling`."""


def class_weights(crops: FoldCrops, config: DataConfig) -> tuple[float, float] | None:
    """Weights of real and of fake visits in the cross entropy; None unless the sampling is `weighted`.

    Each is 1 / (2 share), by the share that its label has of an epoch's visits (real crops shown as self-blended fakes
    count as fakes), so the classes weigh alike and the mean weight of a visit is 1.
    """
    if config.sampling != "weighted":
        return None
    _, labels = _videos(crops.training)
    require_both_classes(labels)
    real = float(np.mean(labels == 0)) * (1 - config.sbi)
    return 1 / (2 * real), 1 / (2 * (1 - real))


def training_loader(crops: FoldCrops, config: DataConfig, *, seed: int, rank: int, world_size: int) -> DataLoader:
    """Batches of one rank: (B, H, W, 3) uint8 and (B,) int64 labels.

    Set `loader.batch_sampler.epoch` before each epoch, and `loader.batch_sampler.first_batch` to begin inside of it.

    Raises:
        ValueError: crops that the sampling, the preset or SBI cannot work with, or no space for the cache.
    """
    cache = _cache(crops, config, reading_side(crops.folder, config))
    dataset = TrainingCrops(crops.folder, crops.training, crops.faces, config, cache=cache)
    sampler = SAMPLINGS[config.sampling](crops, config, seed)
    batches = RankBatches(
        sampler, batch_size=config.batch_size, rank=rank, world_size=world_size, strength=config.strength_after
    )
    return crop_loader(dataset, batch_sampler=batches, num_workers=config.num_workers)


def validation_loader(crops: FoldCrops, config: DataConfig, *, rank: int, world_size: int) -> DataLoader:
    """Batches of every world_size-th validation crop, starting at `rank`, in order: (B, H, W, 3) uint8."""
    table = crops.validation.iloc[rank::world_size]
    # A folder has one cache, which may hold the larger crops that training reads.
    shared = reading_side(crops.folder, config) == config.image_size
    cache = _cache(crops, config, config.image_size) if shared else None
    rows = table["face"].to_numpy() if cache is not None else None
    dataset = CropImages(crops.folder, table["crop"], config.image_size, cache=cache, cache_rows=rows)
    return crop_loader(dataset, batch_size=2 * config.batch_size, num_workers=config.num_workers)


def reading_side(folder: Path, config: DataConfig) -> int:
    """Side in pixels at which training crops are read: as they are stored, where the preset degrades them."""
    if config.augmentation not in DEGRADING_PRESETS:
        return config.image_size
    return max(config.image_size, stored_side(folder, config.image_size))  # smaller ones are refused when read


def _cache(crops: FoldCrops, config: DataConfig, size: int) -> CropCache | None:
    """One of the whole folder: folds that are trained at the same time share it, and on disk all that ever are."""
    if config.cache == "none":
        return None
    digest, count = names_digest(crops.faces["crop"]), len(crops.faces)
    kept = {"num_crops": count, "size": size, "gigabytes": config.cache_gb}
    return open_cache(config.cache, crops.folder, names_digest=digest, **kept)
