"""Which crops an epoch visits: classes balanced, every video's frames fresh, deterministic in (seed, epoch)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_SEED = 2**31 - 1


@dataclass(frozen=True)
class EpochDraw:
    """The crops of one epoch in the order they are visited, by all processes together."""

    rows: np.ndarray
    """(S,) int64 rows of the training table."""
    seeds: np.ndarray
    """(S,) int64 seed of each visit's augmentation."""


class EpochSampler:
    """Draws epochs over the crops of labelled videos.

    Each class is visited through an endless sequence of shuffled passes over its videos. An epoch takes the next
    `videos_per_class` visits of each class; a visit takes the next `frames_per_video` crops of its video's shuffled
    list, starting over at its end. So classes balance exactly, the smaller class repeats (as the paper repeats real
    frames), and no epoch repeats a crop before its video is used up. Everything follows from (seed, epoch) alone:
    nothing needs to be saved to resume, and the number of processes changes nothing.

    Args:
        video_of_row: (N,) int64, the video of each row of the training table, numbered from 0 without gaps.
        labels: (V,) int64 label of each video, both classes present.
        videos_per_class: visits a class; None takes the larger class once.
    """

    def __init__(
        self,
        video_of_row: np.ndarray,
        labels: np.ndarray,
        *,
        frames_per_video: int,
        videos_per_class: int | None,
        seed: int,
    ) -> None:
        order = np.argsort(video_of_row, kind="stable")
        self.rows_of_video = np.split(order, np.searchsorted(video_of_row[order], np.arange(1, len(labels))))
        self.videos_of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
        if not all(map(len, self.videos_of_class)):
            counts = [len(videos) for videos in self.videos_of_class]
            raise ValueError(f"expected training videos of both classes, found {counts[0]} real and {counts[1]} fake.")
        self.frames_per_video = frames_per_video
        self.videos_per_class = videos_per_class or max(map(len, self.videos_of_class))
        self.seed = seed

    @property
    def samples_per_epoch(self) -> int:
        """Crops visited in one epoch, before padding to whole batches."""
        return 2 * self.videos_per_class * self.frames_per_video

    def draw(self, epoch: int) -> EpochDraw:
        """The crops of one epoch."""
        rows = []
        for label, videos in enumerate(self.videos_of_class):
            visits = np.arange(epoch * self.videos_per_class, (epoch + 1) * self.videos_per_class)
            for cycle in np.unique(visits // len(videos)):
                order = np.random.default_rng((self.seed, 1, label, cycle)).permutation(videos)
                positions = visits[visits // len(videos) == cycle] % len(videos)
                rows += [self._visit(int(video), int(cycle)) for video in order[positions]]
        generator = np.random.default_rng((self.seed, 2, epoch))
        shuffled = generator.permutation(np.concatenate(rows))
        return EpochDraw(shuffled, generator.integers(0, MAX_SEED, len(shuffled)))

    def _visit(self, video: int, cycle: int) -> np.ndarray:
        rows = self.rows_of_video[video]
        positions = np.arange(cycle * self.frames_per_video, (cycle + 1) * self.frames_per_video)
        passes, positions = positions // len(rows), positions % len(rows)
        shuffled = [
            np.random.default_rng((self.seed, 3, video, number)).permutation(rows) for number in np.unique(passes)
        ]
        return np.concatenate(
            [order[positions[passes == number]] for number, order in zip(np.unique(passes), shuffled, strict=True)]
        )


class RankBatches:
    """One rank's batches of an epoch, as a torch batch sampler of (row, seed) pairs.

    The epoch is cut into global batches of world_size * batch_size; rank r takes the r-th slice of each. The last
    global batch is filled up from the epoch's beginning, so no crop is dropped and all ranks take as many steps.
    """

    def __init__(self, sampler: EpochSampler, *, batch_size: int, rank: int, world_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.sampler.samples_per_epoch // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draw = self.sampler.draw(self.epoch)
        size = len(self) * self.batch_size * self.world_size
        visits = np.resize(np.arange(len(draw.rows)), size).reshape(len(self), self.world_size, self.batch_size)
        for positions in visits[:, self.rank]:
            yield list(zip(draw.rows[positions].tolist(), draw.seeds[positions].tolist(), strict=True))
