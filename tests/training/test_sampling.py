"""Epochs: balanced, fresh, deterministic, and the same for any number of processes."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from multiattn.training.sampling import EpochSampler, RankBatches


def make_table(crops_of_real, crops_of_fake, **_) -> tuple[np.ndarray, np.ndarray]:
    """The video of each row, scattered over the table as a real one's may be, and the label of each video."""
    counts = [*crops_of_real, *crops_of_fake]
    labels = np.array([0] * len(crops_of_real) + [1] * len(crops_of_fake))
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)), labels


def make_sampler(crops_of_real, crops_of_fake, *, frames=2, videos_per_class=None, seed=7) -> EpochSampler:
    """A sampler over videos with the given numbers of crops."""
    video_of_row, labels = make_table(crops_of_real, crops_of_fake)
    return EpochSampler(video_of_row, labels, frames_per_video=frames, videos_per_class=videos_per_class, seed=seed)


CASES = [
    pytest.param({"crops_of_real": [5], "crops_of_fake": [5]}, id="one video a class"),
    pytest.param({"crops_of_real": [1], "crops_of_fake": [1], "frames": 1}, id="one crop a class"),
    pytest.param({"crops_of_real": [4, 6], "crops_of_fake": [5] * 9}, id="few reals"),
    pytest.param({"crops_of_real": [7] * 8, "crops_of_fake": [3]}, id="one fake"),
    pytest.param({"crops_of_real": [1, 2, 3], "crops_of_fake": [4, 1, 9, 2], "frames": 5}, id="crops run short"),
    pytest.param({"crops_of_real": [8] * 5, "crops_of_fake": [8] * 7, "videos_per_class": 3}, id="part of the videos"),
    pytest.param({"crops_of_real": [8] * 2, "crops_of_fake": [8] * 3, "videos_per_class": 7}, id="videos repeat"),
]


@pytest.mark.parametrize("case", CASES)
def test_classes_balance_exactly_and_every_visit_is_a_row(case):
    sampler, (video_of_row, labels_of_video) = make_sampler(**case), make_table(**case)
    larger = max(len(case["crops_of_real"]), len(case["crops_of_fake"]))
    for epoch in range(4):
        draw = sampler.draw(epoch)
        labels = labels_of_video[video_of_row[draw.rows]]
        expected = case.get("videos_per_class") or larger
        assert np.bincount(labels).tolist() == [expected * case.get("frames", 2)] * 2
        assert len(draw.rows) == len(draw.seeds) == sampler.samples_per_epoch


@pytest.mark.parametrize("case", CASES)
def test_videos_of_a_class_are_visited_alike(case):
    """Through all epochs together no video is a visit ahead of another of its class by more than one."""
    frames = case.get("frames", 2)
    sampler, (video_of_row, labels) = make_sampler(**case), make_table(**case)
    visits = Counter()
    for epoch in range(6):
        crops = Counter(video_of_row[sampler.draw(epoch).rows].tolist())
        assert all(count % frames == 0 for count in crops.values())
        visits.update({video: count // frames for video, count in crops.items()})
        for label in (0, 1):
            counts = [visits[video] for video in np.flatnonzero(labels == label).tolist()]
            assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("case", CASES)
def test_no_crop_repeats_before_its_video_is_used_up(case):
    sampler = make_sampler(**case)
    seen = Counter()
    for epoch in range(8):
        seen.update(sampler.draw(epoch).rows.tolist())
        for rows in sampler.rows_of_video:
            counts = [seen[row] for row in rows.tolist()]
            assert max(counts) - min(counts) <= 1


def test_a_video_with_fewer_crops_than_asked_repeats_them():
    sampler = make_sampler([2], [3], frames=5)
    rows = Counter(sampler.draw(0).rows.tolist())
    assert sorted(rows[row] for row in sampler.rows_of_video[0].tolist()) == [2, 3]
    assert sorted(rows[row] for row in sampler.rows_of_video[1].tolist()) == [1, 2, 2]


def test_epochs_differ_in_crops_order_and_seeds():
    sampler = make_sampler([10] * 4, [10] * 4)
    first, second = sampler.draw(0), sampler.draw(1)
    assert set(first.rows.tolist()).isdisjoint(second.rows.tolist()), "fresh crops while there are any"
    assert not np.array_equal(first.seeds, second.seeds)
    video_of_row, _ = make_table([10] * 4, [10] * 4)
    videos = [video_of_row[draw.rows].tolist() for draw in (first, second)]
    assert videos[0] != videos[1]


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_follows_from_seed_and_number_alone(case):
    whole = make_sampler(**case)
    for epoch in range(3):
        whole.draw(epoch)
    resumed = make_sampler(**case).draw(3)
    straight = whole.draw(3)
    np.testing.assert_array_equal(straight.rows, resumed.rows)
    np.testing.assert_array_equal(straight.seeds, resumed.seeds)


def test_another_seed_gives_other_epochs():
    first, other = (make_sampler([10] * 4, [10] * 4, seed=seed).draw(0) for seed in (1, 2))
    assert first.rows.tolist() != other.rows.tolist()
    assert first.seeds.tolist() != other.seeds.tolist()


def test_classes_are_mixed_within_an_epoch():
    video_of_row, labels_of_video = make_table([10] * 50, [10] * 50)
    labels = labels_of_video[video_of_row[make_sampler([10] * 50, [10] * 50).draw(0).rows]]
    assert 0.3 < labels[: len(labels) // 2].mean() < 0.7


def batches(sampler: EpochSampler, *, batch_size: int, rank: int, world_size: int, epoch: int) -> list:
    loader = RankBatches(sampler, batch_size=batch_size, rank=rank, world_size=world_size)
    loader.epoch = epoch
    found = list(loader)
    assert len(found) == len(loader)
    assert all(len(batch) == batch_size for batch in found)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES)
def test_ranks_together_see_the_batches_one_process_sees(case, world_size):
    """Slices of the same global batches, so a step computes the same on any number of processes."""
    sampler = make_sampler(**case)
    for epoch in range(2):
        single = batches(sampler, batch_size=2 * world_size, rank=0, world_size=1, epoch=epoch)
        ranks = [
            batches(sampler, batch_size=2, rank=rank, world_size=world_size, epoch=epoch) for rank in range(world_size)
        ]
        assert [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)] == single


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (2, 1), (5, 1), (4, 3), (64, 2), (999, 1)])
def test_nothing_is_dropped_and_the_filling_comes_from_the_beginning(batch_size, world_size):
    sampler = make_sampler([4, 6, 2], [5] * 4, frames=3)
    draw = sampler.draw(0)
    visits = list(zip(draw.rows.tolist(), draw.seeds.tolist(), strict=True))
    ranks = [
        batches(sampler, batch_size=batch_size, rank=rank, world_size=world_size, epoch=0) for rank in range(world_size)
    ]
    flat = [visit for parts in zip(*ranks, strict=True) for batch in parts for visit in batch]
    assert len(flat) == -(-len(visits) // (batch_size * world_size)) * batch_size * world_size
    assert flat == (visits * (len(flat) // len(visits) + 1))[: len(flat)]


def test_batches_are_plain_numbers():
    (row, seed), *_ = next(iter(RankBatches(make_sampler([3], [3]), batch_size=2, rank=0, world_size=1)))
    assert (type(row), type(seed)) == (int, int)
    assert 0 <= seed < 2**31


@pytest.mark.parametrize(
    ("labels", "found"),
    [([], "0 real and 0"), ([0], "1 real and 0"), ([0, 0], "2 real and 0"), ([1, 1, 1], "0 real and 3")],
    ids=str,
)
def test_one_class_is_refused(labels, found):
    with pytest.raises(ValueError, match=f"expected training videos of both classes, found {found}"):
        EpochSampler(
            np.arange(len(labels)),
            np.array(labels, dtype=np.int64),
            frames_per_video=1,
            videos_per_class=None,
            seed=0,
        )
