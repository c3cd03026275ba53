"""Epochs of crops: each video's frames fresh, deterministic in (seed, epoch), the same for any number of ranks.

`EpochSampler` visits videos of both classes, `PairSampler` real crops beside the same face and frame of one of their
fakes (`find_pairs`); `RankBatches` cuts an epoch into the batches of each rank.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from multiattn.tables import BOX, FAKE, REAL

logger = logging.getLogger(__name__)

MAX_SEED = 2**31 - 1
# The first number after the seed: which of a sampler's independent sequences of random numbers.
VIDEOS, EPOCH, FRAMES, PAIRED_VIDEOS, PAIRED_EPOCH = 1, 2, 3, 4, 5


class Visit(NamedTuple):
    """A crop on its way into a batch: its row of the training table, and seeds of its augmentation."""

    row: int
    seed: int
    geometry_seed: int | None = None
    """The seed of all that moves its content; None is `seed`."""
    strength: float = 1.0
    """Factor on the strength of a preset that degrades."""


@dataclass(frozen=True)
class EpochDraw:
    """The crops of one epoch in the order they are visited, by all processes together: (S,) int64 each, as `Visit`."""

    rows: np.ndarray
    seeds: np.ndarray
    geometry_seeds: np.ndarray | None = None


class Sampler(Protocol):
    samples_per_epoch: int
    """Crops visited in one epoch, before padding to whole batches."""
    together: int
    """Number of consecutive visits that belong into one batch."""

    def draw(self, epoch: int) -> EpochDraw: ...


class FreshRows:
    """The rows of each video in an endless sequence of shuffled passes, handed out k = `frames_per_video` at a time.

    `video_of_row` (N,) int64 numbers the videos from 0 without gaps, here and in the samplers.
    """

    def __init__(self, video_of_row: np.ndarray, num_videos: int, *, frames_per_video: int, seed: int) -> None:
        self._order = np.argsort(video_of_row, kind="stable")
        self._starts = np.searchsorted(video_of_row[self._order], np.arange(num_videos + 1))
        self.counts = np.diff(self._starts)  # (V,) int64 rows of each video
        self.frames_per_video, self.seed = frames_per_video, seed

    def of_video(self, video: int) -> np.ndarray:
        """All rows of a video, in order."""
        return self._order[self._starts[video] : self._starts[video + 1]]

    def take(self, videos: np.ndarray, cycle: int) -> np.ndarray:
        """(len(videos), k) rows: of each video the k that follow those of its first `cycle` visits."""
        k = self.frames_per_video
        taken = np.empty((len(videos), k), dtype=np.int64)
        # The words default_rng((seed, FRAMES, video, number)) would make of them, one by one and slower.
        seed = [self.seed >> shift & 0xFFFFFFFF for shift in range(0, max(self.seed.bit_length(), 1), 32)]
        words = np.array([*seed, FRAMES, 0, 0], dtype=np.uint32)
        for place, video in enumerate(videos.tolist()):
            rows = self.of_video(video)
            first, end = cycle * k, (cycle + 1) * k
            while first < end:
                number, position = divmod(first, len(rows))
                words[-2:] = video, number
                generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
                part = generator.permutation(rows)[position : position + end - first]
                taken[place, k - (end - first) : k - (end - first) + len(part)] = part
                first += len(part)
        return taken


class EpochSampler:
    """Draws epochs over the crops of labelled videos.

    Each class is visited through an endless sequence of shuffled passes over its videos. An epoch takes the next
    `visits` of each class; a visit takes the next `frames_per_video` crops of its video's shuffled list, starting over
    at its end. So the classes' shares are exact, a class that is visited more often than it has videos repeats them (as
    the paper repeats real frames), and no epoch repeats a crop before its video is used up. Everything follows from
    (seed, epoch) alone: nothing needs to be saved to resume, and the number of processes changes nothing.

    Of the labels (V,) of the videos both must be there; the visits of an epoch are those of real and of fake videos.
    """

    together = 1

    def __init__(
        self, video_of_row: np.ndarray, labels: np.ndarray, *, frames_per_video: int, visits: tuple[int, int], seed: int
    ) -> None:
        self.fresh = FreshRows(video_of_row, len(labels), frames_per_video=frames_per_video, seed=seed)
        self.videos_of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
        require_both_classes(labels)
        self.visits = visits
        self.seed = seed

    @property
    def samples_per_epoch(self) -> int:
        return sum(self.visits) * self.fresh.frames_per_video

    def draw(self, epoch: int) -> EpochDraw:
        rows = []
        for label, (videos, visits) in enumerate(zip(self.videos_of_class, self.visits, strict=True)):
            for cycle, some in _next_videos(videos, visits, epoch, (self.seed, VIDEOS, label)):
                rows.append(self.fresh.take(some, cycle).reshape(-1))
        generator = np.random.default_rng((self.seed, EPOCH, epoch))
        shuffled = generator.permutation(np.concatenate(rows))
        return EpochDraw(shuffled, generator.integers(0, MAX_SEED, len(shuffled)))


def _next_videos(videos: np.ndarray, number: int, epoch: int, key: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """The next `number` visits of an epoch in the endless shuffled passes over videos: (pass, videos) of each pass."""
    visits = np.arange(epoch * number, (epoch + 1) * number)
    for cycle in np.unique(visits // len(videos)).tolist():
        order = np.random.default_rng((*key, cycle)).permutation(videos)
        yield cycle, order[visits[visits // len(videos) == cycle] % len(videos)]


def require_both_classes(labels: np.ndarray) -> None:
    counts = [int(np.sum(labels == label)) for label in (0, 1)]
    if not all(counts):
        raise ValueError(f"expected training videos of both classes, found {counts[0]} real and {counts[1]} fake.")


def balanced_visits(labels: np.ndarray, videos_per_class: int | None, *, blended: float = 0.0) -> tuple[int, int]:
    """Visits of real and of fake videos that show as many real crops as fakes; None takes the larger class once.

    The blended share of the visits of real crops, which show a fake made of them, takes the place of as many forged
    videos: real videos take 1 / (2 - 2 blended) of the epoch. At a half no forged video is left, as in the paper of
    self-blended images; above it the fakes outweigh.
    """
    number = videos_per_class or int(max(np.sum(labels == 0), np.sum(labels == 1)))
    real = 2 * number if blended >= 0.5 else round(number / (1 - blended))
    return real, 2 * number - real


class PairSampler:
    """Draws epochs of pairs: a real crop, then the crop of one of its fakes at the same frame and track.

    Real videos are visited through an endless sequence of shuffled passes, and hand out their crops as those of
    `EpochSampler` do. Each time a real crop comes, the next of its fakes comes with it, and crops of one video start
    with different ones. So no real crop returns before its video is used up, none returns with the same fake before it
    was shown with all of them, and every fake is reached.

    Args:
        pairs: (P, 2) int64 rows of the training table, real and fake; a real row may stand in many.
        visits: of real videos in an epoch; None takes as many as the larger side of the pairs has videos, real or fake.
    """

    together = 2

    def __init__(
        self, pairs: np.ndarray, video_of_row: np.ndarray, *, frames_per_video: int, visits: int | None, seed: int
    ) -> None:
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        self.fakes = pairs[:, 1]
        self.reals, self.first_fake, self.num_fakes = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        videos, video_of_real = np.unique(video_of_row[self.reals], return_inverse=True)
        self.fresh = FreshRows(video_of_real, len(videos), frames_per_video=frames_per_video, seed=seed)
        # The place of each real crop among those of its video.
        self.place = np.empty(len(self.reals), dtype=np.int64)
        counts = self.fresh.counts
        order = np.argsort(video_of_real, kind="stable")
        self.place[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.visits = visits or max(len(videos), len(np.unique(video_of_row[self.fakes])))
        self.seed = seed

    @property
    def samples_per_epoch(self) -> int:
        return 2 * self.visits * self.fresh.frames_per_video

    def draw(self, epoch: int) -> EpochDraw:
        k, counts, pairs = self.fresh.frames_per_video, self.fresh.counts, []
        for cycle, videos in _next_videos(np.arange(len(counts)), self.visits, epoch, (self.seed, PAIRED_VIDEOS)):
            crops = self.fresh.take(videos, cycle)  # (videos, k), numbers of real crops
            passes = (cycle * k + np.arange(k)) // counts[videos][:, None]
            turn = (passes + self.place[crops]) % self.num_fakes[crops]
            pairs.append(np.stack([self.reals[crops], self.fakes[self.first_fake[crops] + turn]], axis=2))
        generator = np.random.default_rng((self.seed, PAIRED_EPOCH, epoch))
        shuffled = generator.permutation(np.concatenate(pairs).reshape(-1, 2))
        geometry_seeds = np.repeat(generator.integers(0, MAX_SEED, len(shuffled)), 2)
        return EpochDraw(shuffled.reshape(-1), generator.integers(0, MAX_SEED, shuffled.size), geometry_seeds)


BOX_TOLERANCE = 0.01
"""Largest distance of a side of the fake's box from the real one's, as a share of the latter's longer side. Boxes that
were found anew in fakes lay 2 to 5 % off (embedded clips, MTCNN); reused ones do not differ at all."""


def find_pairs(
    folder: Path, training: pd.DataFrame, faces: pd.DataFrame, videos: pd.DataFrame, *, boxes_known: bool = True
) -> np.ndarray:
    """(P, 2) int64 rows of `FoldCrops.training`, real crops and fakes made of them, at one frame, track and place.

    Without `boxes_known`, where boxes do not say how crops lie in their frames, a pair is two crops of a source, at one
    frame and track where both have such, else in their order, and they need not coincide. It is an error where no
    original is known, or less than half of the crops whose original is are aligned with it.
    """
    video, names = pd.factorize(training["video_id"])
    label = training["label"].to_numpy()
    place = pd.Index(videos["video_id"]).get_indexer(names)
    named = pd.Index(names).get_indexer(videos["original"].to_numpy()[place])
    original = np.where(place >= 0, named, -1)  # (V,) the number of each video's original; -1 where there is none
    is_real = np.zeros(len(names), dtype=bool)
    is_real[video[label == REAL]] = True
    original[(original >= 0) & ~is_real[original]] = -1
    fakes = np.flatnonzero((label == FAKE) & (original[video] >= 0))
    num_fake_videos = len(np.unique(video[label == FAKE]))
    num_known = len(np.unique(video[fakes]))
    if num_known == 0:
        raise ValueError(
            f"{folder}: paired sampling needs the originals of fakes, and of {num_fake_videos} fake videos to train "
            "on none names a real one among them (column `original` of videos.csv). Index a data set that knows them, "
            "and cut its faces with `multiattn faces --reuse-original`; or train with --sampling balanced."
        )
    reals = np.flatnonzero(label == REAL)
    real_of_fake = _match(_keys(video[reals], training, reals), _keys(original[video[fakes]], training, fakes))
    if not boxes_known:
        _pair_in_order(real_of_fake, video[reals], video[fakes], original)
    found = real_of_fake >= 0
    pairs = np.stack([reals[real_of_fake[found]], fakes[found]], axis=1)
    if not boxes_known:
        logger.info(
            "paired sampling: %d pairs of %d real and %d fake videos, each two crops of a source, which need not "
            "coincide: where crops lay in their frames is not known; left out: %d fake crops at frames their original "
            "lacks, %d fake videos of no known original",
            len(pairs), len(np.unique(video[pairs[:, 0]])), len(np.unique(video[pairs[:, 1]])), (~found).sum(),
            num_fake_videos - num_known,
        )  # fmt: skip
        return pairs
    aligned = _same_place(pairs, training, faces)
    logger.info(
        "paired sampling: %d pairs of %d real and %d fake videos; left out: %d fake crops without one of their "
        "original at the same frame and track, %d whose box lies elsewhere, %d fake videos of no known original",
        aligned.sum(), len(np.unique(video[pairs[aligned, 0]])), len(np.unique(video[pairs[aligned, 1]])),
        (~found).sum(), (~aligned).sum(), num_fake_videos - num_known,
    )  # fmt: skip
    if 2 * aligned.sum() < len(fakes):
        raise ValueError(
            f"{folder}: paired sampling needs fakes cropped where their originals are, and of {len(fakes)} fake "
            f"crops with a known original {aligned.sum()} are: {(~found).sum()} have no crop of it at the same "
            f"frame and track, {(~aligned).sum()} have their box elsewhere. Cut the faces anew with "
            "`multiattn faces --reuse-original`, or train with --sampling balanced."
        )
    return pairs[aligned]


def _pair_in_order(
    real_of_fake: np.ndarray, video_of_real: np.ndarray, video_of_fake: np.ndarray, original: np.ndarray
) -> None:
    """Fill in the real crops of fake videos that have none at the frame and track of any of their crops: the first for
    their first, and so on, beginning anew where the original has fewer."""
    matched = np.unique(video_of_fake[real_of_fake >= 0])
    rows = np.flatnonzero(~np.isin(video_of_fake, matched))
    if len(rows) == 0:
        return
    rows = rows[np.argsort(video_of_fake[rows], kind="stable")]
    fake = video_of_fake[rows]
    place = np.arange(len(rows)) - np.searchsorted(fake, fake)  # of a crop among those of its video
    order = np.argsort(video_of_real, kind="stable")
    first = np.searchsorted(video_of_real[order], original[fake])
    count = np.searchsorted(video_of_real[order], original[fake], side="right") - first
    real_of_fake[rows] = order[first + place % count]


def _keys(video: np.ndarray, training: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """(N,) int64, equal for rows of one video (given by number), frame and track."""
    frame, track = training["frame_index"].to_numpy(), training["track"].to_numpy()
    return (video * (frame.max() + 1) + frame[rows]) * (track.max() + 1) + track[rows]


def _match(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(len(wanted),) the place of each wanted key among the known ones; -1 where it is not."""
    order = np.argsort(known, kind="stable")
    place = np.searchsorted(known, wanted, sorter=order)
    nearest = order[np.minimum(place, len(known) - 1)]
    return np.where(known[nearest] == wanted, nearest, -1)


def _same_place(pairs: np.ndarray, training: pd.DataFrame, faces: pd.DataFrame) -> np.ndarray:
    """(P,) bool, True where the boxes of a pair agree."""
    boxes = faces[list(BOX)].to_numpy(dtype=np.float32)
    face = training["face"].to_numpy()
    real, fake = boxes[face[pairs[:, 0]]], boxes[face[pairs[:, 1]]]
    side = np.maximum(real[:, 2] - real[:, 0], real[:, 3] - real[:, 1])
    return np.abs(real - fake).max(axis=1, initial=0) <= BOX_TOLERANCE * side


class RankBatches:
    """One rank's batches of an epoch, as a torch batch sampler of visits.

    The epoch is cut into global batches of world_size * batch_size; rank r takes the r-th slice of each. The last
    global batch is filled up from the epoch's beginning, so no crop is dropped, all ranks take as many steps, and what
    is repeated is less than a global batch. Set `epoch` before an epoch, and `first_batch` to leave out those that a
    run has seen already: they are not read, and the others stay what they were.

    Args:
        strength: of the presets' degradations by the number of epochs done; None is always 1.

    Raises:
        ValueError: a batch size that would part visits that belong together.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        strength: Callable[[float], float] | None = None,
    ) -> None:
        if batch_size % sampler.together:
            raise ValueError(
                f"--data.batch-size: expected an even number with --sampling paired, found {batch_size}: a pair "
                "belongs into one batch."
            )
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.world_size, self.strength = rank, world_size, strength
        self.epoch = self.first_batch = 0

    def __len__(self) -> int:
        """Batches of the whole epoch."""
        return -(-self.sampler.samples_per_epoch // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Visit]]:
        draw = self.sampler.draw(self.epoch)
        drawn = [column for column in (draw.rows, draw.seeds, draw.geometry_seeds) if column is not None]
        size = len(self) * self.batch_size * self.world_size
        visits = np.resize(np.arange(len(draw.rows)), size).reshape(len(self), self.world_size, self.batch_size)
        for number in range(self.first_batch, len(self)):
            columns = [column[visits[number, self.rank]].tolist() for column in drawn]
            strength = 1.0 if self.strength is None else self.strength(self.epoch + number / len(self))
            yield [Visit(*values)._replace(strength=strength) for values in zip(*columns, strict=True)]
