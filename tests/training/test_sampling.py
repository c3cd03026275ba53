"""Epochs: balanced, fresh, deterministic, and the same for any number of processes."""

import hashlib
import logging
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiattn.config import DataConfig
from multiattn.tables import BOX
from multiattn.training.data.sampling import (
    EpochSampler,
    PairSampler,
    RankBatches,
    Sampler,
    balanced_visits,
    find_pairs,
)


def make_table(crops_of_real, crops_of_fake, **_) -> tuple[np.ndarray, np.ndarray]:
    """The video of each row, scattered over the table as a real one's may be, and the label of each video."""
    counts = [*crops_of_real, *crops_of_fake]
    labels = np.array([0] * len(crops_of_real) + [1] * len(crops_of_fake))
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)), labels


def make_sampler(crops_of_real, crops_of_fake, *, frames=2, videos_per_class=None, seed=7) -> EpochSampler:
    """A sampler over videos with the given numbers of crops."""
    video_of_row, labels = make_table(crops_of_real, crops_of_fake)
    visits = balanced_visits(labels, videos_per_class)
    return EpochSampler(video_of_row, labels, frames_per_video=frames, visits=visits, seed=seed)


CASES = [
    pytest.param({"crops_of_real": [5], "crops_of_fake": [5]}, id="one video a class"),
    pytest.param({"crops_of_real": [1], "crops_of_fake": [1], "frames": 1}, id="one crop a class"),
    pytest.param({"crops_of_real": [4, 6], "crops_of_fake": [5] * 9}, id="few reals"),
    pytest.param({"crops_of_real": [7] * 8, "crops_of_fake": [3]}, id="one fake"),
    pytest.param({"crops_of_real": [1, 2, 3], "crops_of_fake": [4, 1, 9, 2], "frames": 5}, id="crops run short"),
    pytest.param({"crops_of_real": [8] * 5, "crops_of_fake": [8] * 7, "videos_per_class": 3}, id="part of the videos"),
    pytest.param({"crops_of_real": [8] * 2, "crops_of_fake": [8] * 3, "videos_per_class": 7}, id="videos repeat"),
]


def are_even(seen: Counter, keys: np.ndarray) -> bool:
    """True where none of these was seen more than once oftener than another."""
    counts = [seen[key] for key in keys.tolist()]
    return max(counts) - min(counts) <= 1


@pytest.mark.parametrize("case", CASES)
def test_classes_balance_exactly_their_videos_come_alike_and_no_crop_before_its_video_is_used_up(case):
    sampler, (video_of_row, labels) = make_sampler(**case), make_table(**case)
    number = case.get("videos_per_class") or max(len(case["crops_of_real"]), len(case["crops_of_fake"]))
    frames, visits, seen = case.get("frames", 2), Counter(), Counter()
    for epoch in range(8):
        draw = sampler.draw(epoch)
        assert len(draw.rows) == len(draw.seeds) == sampler.samples_per_epoch
        videos = video_of_row[draw.rows]
        assert np.bincount(labels[videos]).tolist() == [number * frames] * 2
        assert not (np.bincount(videos) % frames).any()
        visits.update(videos.tolist())
        seen.update(draw.rows.tolist())
        for label in (0, 1):
            alike = Counter({video: count // frames for video, count in visits.items()})
            assert are_even(alike, np.flatnonzero(labels == label))
        assert all(are_even(seen, np.flatnonzero(video_of_row == video)) for video in range(len(labels)))


def test_a_video_with_fewer_crops_than_asked_repeats_them():
    sampler = make_sampler([2], [3], frames=5)
    rows = Counter(sampler.draw(0).rows.tolist())
    assert sorted(rows[row] for row in sampler.fresh.of_video(0).tolist()) == [2, 3]
    assert sorted(rows[row] for row in sampler.fresh.of_video(1).tolist()) == [1, 2, 2]


def test_epochs_differ_in_crops_order_and_seeds():
    sampler, (video_of_row, _) = make_sampler([10] * 4, [10] * 4), make_table([10] * 4, [10] * 4)
    first, second = sampler.draw(0), sampler.draw(1)
    assert set(first.rows.tolist()).isdisjoint(second.rows.tolist()), "fresh crops while there are any"
    assert not np.array_equal(first.seeds, second.seeds)
    assert video_of_row[first.rows].tolist() != video_of_row[second.rows].tolist()
    other = make_sampler([10] * 4, [10] * 4, seed=8).draw(0)
    assert first.rows.tolist() != other.rows.tolist() and first.seeds.tolist() != other.seeds.tolist()


@pytest.mark.parametrize("case", CASES)
def test_an_epoch_follows_from_seed_and_number_alone(case):
    whole = make_sampler(**case)
    for epoch in range(3):
        whole.draw(epoch)
    resumed = make_sampler(**case).draw(3)
    straight = whole.draw(3)
    np.testing.assert_array_equal(straight.rows, resumed.rows)
    np.testing.assert_array_equal(straight.seeds, resumed.seeds)


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
    visits = [(row, seed, None, 1.0) for row, seed in zip(draw.rows.tolist(), draw.seeds.tolist(), strict=True)]
    ranks = [
        batches(sampler, batch_size=batch_size, rank=rank, world_size=world_size, epoch=0) for rank in range(world_size)
    ]
    flat = [visit for parts in zip(*ranks, strict=True) for batch in parts for visit in batch]
    assert len(flat) == -(-len(visits) // (batch_size * world_size)) * batch_size * world_size
    assert flat == (visits * (len(flat) // len(visits) + 1))[: len(flat)]


def test_batches_are_plain_numbers():
    row, seed, *others = next(iter(RankBatches(make_sampler([3], [3]), batch_size=2, rank=0, world_size=1)))[0]
    assert (type(row), type(seed), others) == (int, int, [None, 1.0])
    assert 0 <= seed < 2**31


@pytest.mark.parametrize(
    ("labels", "found"),
    [([], "0 real and 0"), ([0], "1 real and 0"), ([0, 0], "2 real and 0"), ([1, 1, 1], "0 real and 3")],
    ids=str,
)
def test_one_class_is_refused(labels, found):
    with pytest.raises(ValueError, match=f"expected training videos of both classes, found {found}"):
        EpochSampler(np.arange(len(labels)), np.array(labels, dtype=int), frames_per_video=1, visits=(1, 1), seed=0)


@pytest.mark.parametrize(
    ("real", "fake", "frames", "per_class", "seed", "rows", "seeds", "digest"),
    [
        ([4, 6], [5] * 9, 2, None, 7, [18, 31, 6, 53, 29, 49], [1939277107, 1838556411], "0a057637f3919963"),
        ([1, 2, 3], [4, 1, 9, 2], 5, None, 7, [9, 21, 20, 3, 16, 0], [695395584, 1237131771], "29839ab5a732d19e"),
        ([8] * 5, [8] * 7, 2, 3, 7, [23, 88, 51, 33, 9, 30], [497888389, 1519706429], "35cdb00955bef786"),
        ([10] * 4, [10] * 4, 2, None, 2**40 + 3, [28, 68, 54, 40, 39, 69], [45485206, 1594529814], "5d13c3081fd8f60a"),
        ([3], [70, 2], 4, 5, 0, [39, 27, 29, 43, 39, 35], [545250438, 1309516495], "8f385c283b344a36"),
    ],
)
def test_epochs_are_those_the_published_figures_were_trained_on(
    real, fake, frames, per_class, seed, rows, seeds, digest
):
    """Recorded from the first version of the sampler: the rows and seeds of epoch 3, and a digest of six epochs."""
    sampler = make_sampler(real, fake, frames=frames, videos_per_class=per_class, seed=seed)
    found = hashlib.sha256()
    for epoch in range(6):
        draw = sampler.draw(epoch)
        found.update(draw.rows.astype("<i8").tobytes() + draw.seeds.astype("<i8").tobytes())
    assert sampler.draw(3).rows[:6].tolist() == rows
    assert sampler.draw(3).seeds[:2].tolist() == seeds
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("blended", "real", "fake"), [(0.0, 60, 60), (0.25, 80, 40), (0.4, 100, 20), (0.5, 120, 0), (0.9, 120, 0)], ids=str
)
def test_more_real_visits_make_up_for_those_that_are_shown_as_fakes(blended, real, fake):
    """Real crops shown as they are: real * (1 - blended), half of the epoch as long as there are fakes to take away."""
    labels = np.array([0] * 7 + [1] * 60)
    assert balanced_visits(labels, None, blended=blended) == (real, fake)
    sampler = EpochSampler(np.arange(67), labels, frames_per_video=1, visits=(real, fake), seed=7)
    assert np.bincount(labels[sampler.draw(0).rows], minlength=2).tolist() == [real, fake]


def test_every_video_comes_once_an_epoch_where_each_class_has_as_many_visits_as_videos():
    video_of_row, labels = make_table([4, 9, 1], [5] * 8)
    sampler = EpochSampler(video_of_row, labels, frames_per_video=3, visits=(3, 8), seed=7)
    draws = [sampler.draw(epoch) for epoch in range(4)]
    for draw in draws:
        assert np.bincount(video_of_row[draw.rows]).tolist() == [3] * 11
    seen = Counter(chain.from_iterable(draw.rows.tolist() for draw in draws))
    assert all(are_even(seen, sampler.fresh.of_video(video)) for video in range(11))
    assert draws[0].rows.tolist() != draws[1].rows.tolist()


def make_pairs(fakes_of_real: list[int], *, frames=6, lost=0.0) -> tuple[np.ndarray, np.ndarray]:
    """(pairs, video of each row): real videos with so many fakes, all of as many frames; a share of the pairs lost."""
    pairs, video_of_row, generator = [], [], np.random.default_rng(0)
    for fakes in fakes_of_real:
        real = len(video_of_row)
        video_of_row += [max(video_of_row, default=-1) + 1] * frames
        for _ in range(fakes):
            fake = len(video_of_row)
            video_of_row += [video_of_row[-1] + 1] * frames
            pairs += [(real + frame, fake + frame) for frame in range(frames) if generator.random() >= lost]
    return generator.permutation(np.array(pairs)), np.array(video_of_row)


PAIR_CASES = [
    pytest.param({"fakes_of_real": [1]}, {}, id="one pair of videos"),
    pytest.param({"fakes_of_real": [1], "frames": 1}, {"frames_per_video": 3}, id="one pair of crops"),
    pytest.param({"fakes_of_real": [3, 1, 5]}, {}, id="several fakes"),
    pytest.param({"fakes_of_real": [3, 0, 4], "lost": 0.3}, {}, id="pairs lost, a real without fakes"),
    pytest.param({"fakes_of_real": [2, 2, 2, 2]}, {"visits": 3}, id="part of the videos"),
    pytest.param({"fakes_of_real": [2, 4], "frames": 3}, {"visits": 9, "frames_per_video": 4}, id="videos repeat"),
]


def make_pair_sampler(table: dict, options: dict) -> PairSampler:
    pairs, video_of_row = make_pairs(**table)
    return PairSampler(pairs, video_of_row, **{"frames_per_video": 2, "visits": None, "seed": 7} | options)


@pytest.mark.parametrize(("table", "options"), PAIR_CASES)
def test_visits_come_in_pairs_that_move_alike_of_fresh_crops_of_each_real_video_in_turn(table, options):
    sampler, (pairs, video_of_row) = make_pair_sampler(table, options), make_pairs(**table)
    known, reals = set(map(tuple, pairs.tolist())), np.unique(pairs[:, 0])
    videos, visits, seen = np.unique(video_of_row[reals]), Counter(), Counter()
    for epoch in range(6):
        draw = sampler.draw(epoch)
        assert len(draw.rows) == len(draw.seeds) == len(draw.geometry_seeds) == sampler.samples_per_epoch
        assert set(zip(draw.rows[::2].tolist(), draw.rows[1::2].tolist(), strict=True)) <= known
        np.testing.assert_array_equal(draw.geometry_seeds[::2], draw.geometry_seeds[1::2])
        assert len(set(draw.seeds.tolist())) == len(draw.seeds), "pixels of their own"
        assert len(set(draw.geometry_seeds.tolist())) == len(draw.rows) // 2
        seen.update(draw.rows[::2].tolist())
        visits.update(video_of_row[draw.rows[::2]].tolist())
        alike = {video: count // sampler.fresh.frames_per_video for video, count in visits.items()}
        assert are_even(Counter(alike), videos)
        assert all(are_even(seen, reals[video_of_row[reals] == video]) for video in videos)


@pytest.mark.parametrize(("table", "options"), PAIR_CASES)
def test_every_pair_is_reached_and_none_is_ahead_of_another_of_its_real_crop(table, options):
    sampler, (pairs, _) = make_pair_sampler(table, options), make_pairs(**table)
    seen, epochs = Counter(), 0
    while len(seen) < len(pairs) and epochs < 200:
        draw = sampler.draw(epochs)
        seen.update(zip(draw.rows[::2].tolist(), draw.rows[1::2].tolist(), strict=True))
        epochs += 1
        for row in np.unique(pairs[:, 0]).tolist():
            counts = [seen[pair] for pair in map(tuple, pairs[pairs[:, 0] == row].tolist())]
            assert max(counts) - min(counts) <= 1
    assert len(seen) == len(pairs)


def test_an_epoch_of_pairs_is_as_long_as_the_larger_class_has_videos():
    assert make_pair_sampler({"fakes_of_real": [3, 1, 5]}, {}).visits == 9
    assert make_pair_sampler({"fakes_of_real": [1, 1]}, {}).visits == 2
    assert make_pair_sampler({"fakes_of_real": [1, 1]}, {"visits": 7}).samples_per_epoch == 2 * 7 * 2


def test_epochs_of_pairs_differ_and_follow_from_seed_and_number_alone():
    table = {"fakes_of_real": [3, 1, 5]}
    one, same, other = (make_pair_sampler(table, {"seed": seed}) for seed in (7, 7, 8))
    one.draw(0)
    np.testing.assert_array_equal(one.draw(2).rows, same.draw(2).rows)
    np.testing.assert_array_equal(one.draw(2).geometry_seeds, same.draw(2).geometry_seeds)
    assert one.draw(2).rows.tolist() != one.draw(3).rows.tolist()
    assert one.draw(2).rows.tolist() != other.draw(2).rows.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [2, 4, 6, 50])
def test_no_pair_is_parted_by_a_batch_or_a_rank(batch_size, world_size):
    sampler, (pairs, _) = make_pair_sampler({"fakes_of_real": [3, 1, 5]}, {}), make_pairs([3, 1, 5])
    known = set(map(tuple, pairs.tolist()))
    for rank in range(world_size):
        for batch in batches(sampler, batch_size=batch_size, rank=rank, world_size=world_size, epoch=1):
            for real, fake in zip(batch[::2], batch[1::2], strict=True):
                assert (real.row, fake.row) in known
                assert real.geometry_seed == fake.geometry_seed
                assert real.seed != fake.seed


def test_an_odd_batch_of_pairs_is_refused():
    with pytest.raises(ValueError, match=r"--data\.batch-size: expected an even number .* found 5"):
        RankBatches(make_pair_sampler({"fakes_of_real": [1]}, {}), batch_size=5, rank=0, world_size=1)


@pytest.mark.parametrize("first", [0, 1, 4, 5])
@pytest.mark.parametrize(
    "sampler",
    [make_sampler([4, 6, 2], [5] * 4, frames=3), make_pair_sampler({"fakes_of_real": [3, 1, 2]}, {})],
    ids=["balanced", "paired"],
)
def test_a_run_that_continues_inside_an_epoch_gets_the_batches_that_are_left(sampler, first):
    strength = DataConfig(augmentation="wild", strength_epochs=9.0).strength_after
    batches = RankBatches(sampler, batch_size=4, rank=1, world_size=2, strength=strength)
    batches.epoch = 3
    whole = list(batches)
    rising = [{visit.strength for visit in batch} for batch in whole]
    assert rising == [{(3 + number / len(whole)) / 9} for number in range(len(whole))]
    batches.first_batch = min(first, len(whole))
    assert list(batches) == whole[first:]
    assert len(batches) == len(whole), "the epoch is as long as it was"
    batches.first_batch, batches.epoch = 0, 3
    assert list(batches) == whole


def balanced(video_of_row: np.ndarray, labels: np.ndarray) -> Sampler:
    visits = balanced_visits(labels, None)
    return EpochSampler(video_of_row, labels, frames_per_video=2, visits=visits, seed=7)


def paired(video_of_row: np.ndarray, labels: np.ndarray) -> Sampler:
    crops = np.bincount(video_of_row)[0]
    reals = np.flatnonzero(labels[video_of_row] == 0)
    pairs = np.stack([reals, reals + crops], axis=1)  # the video after a real one is its fake
    return PairSampler(pairs, video_of_row, frames_per_video=2, visits=None, seed=7)


@pytest.mark.parametrize("make", [balanced, paired], ids=lambda make: make.__name__)
def test_an_epoch_over_a_tenth_of_dfdc_is_drawn_in_a_fraction_of_a_second(make):
    """11,915 videos of 32 crops, a real one in six: 0.12 s of CPU time on 2 cores of an AMD EPYC; the limit leaves
    room for a slower core."""
    videos = 11_915
    labels = (np.arange(videos) % 6 != 0).astype(np.int64)
    labels[-1] = 1
    sampler = make(np.repeat(np.arange(videos), 32), labels)
    started = time.process_time()
    draw = sampler.draw(3)
    assert time.process_time() - started < 2
    assert len(draw.rows) == sampler.samples_per_epoch > 7_000


FOLDER = Path("faces")
SIDE = 200.0


def make_pair_tables(*rows: tuple, originals: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """`training`, `faces` and `videos` of rows (video, frame, track[, shift of the box in pixels]); r... is real."""
    rows = [(*row, 0.0)[:4] for row in rows]
    training = pd.DataFrame([row[:3] for row in rows], columns=["video_id", "frame_index", "track"])
    training["label"] = [int(video[0] == "f") for video in training["video_id"]]
    training["face"] = np.arange(len(rows))[::-1]  # rows of the whole table are others than those of the training's
    boxes = [(100 + shift, 50, 100 + shift + SIDE, 50 + SIDE / 2) for *_, shift in rows]
    faces = pd.DataFrame(boxes[::-1], columns=list(BOX), dtype="float32")
    names = sorted(set(training["video_id"]) | set(originals))
    return training, faces, pd.DataFrame({"video_id": names, "original": [originals.get(name, "") for name in names]})


@pytest.mark.parametrize(
    ("rows", "originals", "expected"),
    [
        pytest.param([("r", 3, 0), ("f", 3, 0)], {"f": "r"}, [(0, 1)], id="one pair"),
        pytest.param(
            [("r", 0, 0), ("r", 9, 0), ("f1", 0, 0), ("f1", 9, 0), ("f2", 9, 0)],
            {"f1": "r", "f2": "r"},
            [(0, 2), (1, 3), (1, 4)],
            id="several fakes of one real crop",
        ),
        pytest.param(
            [("r", 0, 0), ("r", 0, 1), ("f", 0, 0), ("f", 0, 1)], {"f": "r"}, [(0, 2), (1, 3)], id="two tracks"
        ),
        pytest.param(
            [("r", 0, 0), ("r", 1, 0), ("f", 0, 0), ("f", 1, 0), ("f", 2, 0)],
            {"f": "r"},
            [(0, 2), (1, 3)],
            id="a frame the real one lacks",
        ),
        pytest.param(
            [("f", 0, 0), ("f2", 0, 0), ("r", 0, 0), ("r2", 0, 0)],
            {"f": "r2", "f2": "r"},
            [(2, 1), (3, 0)],
            id="fakes before reals, crosswise",
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0), ("f2", 0, 0), ("f3", 0, 0)],
            {"f": "r", "f2": "elsewhere", "f3": ""},
            [(0, 1)],
            id="originals that are not trained on",
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0), ("f2", 0, 0)], {"f": "r", "f2": "f"}, [(0, 1)], id="a fake is no original"
        ),
        pytest.param(
            [("r", 0, 0), ("r", 1, 0), ("f", 0, 0, 2.0), ("f", 1, 0, 2.1)], {"f": "r"}, [(0, 2)], id="1 % of the side"
        ),
    ],
)
def test_pairs_are_crops_of_one_frame_and_track_cut_at_one_place(rows, originals, expected):
    found = find_pairs(FOLDER, *make_pair_tables(*rows, originals=originals))
    assert sorted(map(tuple, found.tolist())) == sorted(expected)


@pytest.mark.parametrize(
    ("rows", "originals", "expected"),
    [
        pytest.param([("r", 0, 0), ("f", 0, 0, 9.0)], {"f": "r"}, [(0, 1)], id="one crop each, wherever its box"),
        pytest.param([("r", 12, 0), ("f", 30, 1)], {"f": "r"}, [(0, 1)], id="other frames"),
        pytest.param(
            [("f", 5, 0), ("f", 6, 0), ("f", 7, 0), ("r", 1, 0), ("r", 2, 0)],
            {"f": "r"},
            [(3, 0), (4, 1), (3, 2)],
            id="in their order, beginning anew",
        ),
        pytest.param(
            [("r", 1, 0), ("r", 2, 0), ("f", 2, 0), ("f", 3, 0), ("f2", 9, 0)],
            {"f": "r", "f2": "r"},
            [(1, 2), (0, 4)],
            id="by frames where a video has such",
        ),
    ],
)
def test_where_boxes_say_nothing_a_pair_is_two_crops_of_a_source_and_the_log_says_so(rows, originals, expected, caplog):
    with caplog.at_level(logging.INFO):
        found = find_pairs(FOLDER, *make_pair_tables(*rows, originals=originals), boxes_known=False)
    assert sorted(map(tuple, found.tolist())) == sorted(expected)
    assert "each two crops of a source, which need not coincide" in caplog.text


def test_what_is_left_out_is_counted_in_one_line(caplog):
    tables = make_pair_tables(
        ("r", 0, 0), ("r", 1, 0), ("f", 0, 0), ("f", 1, 0), ("f2", 0, 0), ("f2", 1, 0, 9.0), ("f2", 2, 0), ("f3", 0, 0),
        originals={"f": "r", "f2": "r"},
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        find_pairs(FOLDER, *tables)
    (record,) = caplog.records
    assert record.getMessage() == (
        "paired sampling: 3 pairs of 1 real and 2 fake videos; left out: 1 fake crops without one of their original at "
        "the same frame and track, 1 whose box lies elsewhere, 1 fake videos of no known original"
    )


@pytest.mark.parametrize(
    ("rows", "originals", "message"),
    [
        pytest.param([], {}, "of 0 fake videos to train on none", id="nothing"),
        pytest.param([("r", 0, 0), ("f", 0, 0)], {}, "of 1 fake videos to train on none names a real", id="unknown"),
        pytest.param([("r", 0, 0), ("f", 0, 0)], {"f": "r2"}, "of 1 fake videos", id="of a video outside the training"),
        pytest.param(
            [("r", 0, 0), ("f", 1, 0)], {"f": "r"}, "of 1 fake crops .* 0 are: 1 have no crop", id="other frames"
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0, 5.0)], {"f": "r"}, "0 are: 0 have no crop .* 1 have their box", id="other boxes"
        ),
        pytest.param(
            [("r", 0, 0), ("f", 0, 0), ("f", 1, 0), ("f", 2, 0)], {"f": "r"}, "of 3 fake crops .* 1 are", id="a third"
        ),
    ],
)
def test_faces_that_are_not_aligned_are_refused_with_the_command_that_aligns_them(rows, originals, message):
    with pytest.raises(ValueError, match=message) as caught:
        find_pairs(FOLDER, *make_pair_tables(*rows, originals=originals))
    assert "multiattn faces --reuse-original" in str(caught.value)
    assert "--sampling balanced" in str(caught.value)
