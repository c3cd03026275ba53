"""Batches from workers: the same as from one process, in memory that is used again without anyone noticing."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

from multiattn.video.crops import batches as crop_batches
from multiattn.video.crops.batches import PREFETCH, crop_loader

SIZE = 32


class Numbers:
    """Crop i is full of i; it may have a label, take its time, or fail."""

    size = SIZE

    def __init__(self, count: int, *, labelled: bool = False, slow: int = -1, broken: int = -1) -> None:
        self.count, self.labelled, self.slow, self.broken = count, labelled, slow, broken

    def __len__(self) -> int:
        return self.count

    def fill(self, item: int, out: np.ndarray) -> int | None:
        if item == self.slow:
            time.sleep(0.3)
        if item == self.broken:
            raise ValueError(f"crop {item} is broken")
        out[...] = item
        return item % 2 if self.labelled else None


class EveryOther(NamedTuple):
    """A batch sampler, as `RankBatches` is one."""

    batch_size: int
    batches: int

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):
        for start in range(self.batches):
            yield list(range(start, start + 2 * self.batch_size, 2))


def values(batches) -> list[list[int]]:
    return [batch[:, 0, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 23])
def test_batches_come_in_order_and_the_last_one_is_what_is_left(count, num_workers):
    loader = crop_loader(Numbers(count), num_workers=num_workers, batch_size=4)
    expected = [list(range(start, min(start + 4, count))) for start in range(0, count, 4)]
    for _ in range(2):
        batches = list(loader)
        assert values(batches) == expected
        assert all(batch.dtype == torch.uint8 and batch.shape[1:] == (SIZE, SIZE, 3) for batch in batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_come_with_their_crops(num_workers):
    loader = crop_loader(Numbers(99, labelled=True), num_workers=num_workers, batch_sampler=EveryOther(3, 5))
    assert len(loader) == 5
    found = [(crops[:, 3, 5, 1].tolist(), labels) for crops, labels in loader]
    assert [crops for crops, _ in found] == [[i, i + 2, i + 4] for i in range(5)]
    assert [labels.tolist() for _, labels in found] == [[i % 2] * 3 for i in range(5)]
    assert all(labels.dtype == torch.int64 for _, labels in found)


def test_a_worker_that_lags_behind_keeps_the_order_and_the_pixels():
    loader = crop_loader(Numbers(64, slow=0), num_workers=2, batch_size=2)
    assert values(loader) == [[i, i + 1] for i in range(0, 64, 2)]


def test_batches_that_nobody_takes_do_not_fill_the_places():
    """Each epoch is left after one batch; what had been made ahead gives its place back."""
    loader = crop_loader(Numbers(60), num_workers=2, batch_size=2)
    for _ in range(2 * PREFETCH):
        assert values([next(iter(loader))]) == [[0, 1]]
    assert values(loader) == [[i, i + 1] for i in range(0, 60, 2)]
    assert not loader.dataset.places.is_full.any()


def test_more_batches_on_their_way_than_places_still_arrive(monkeypatch):
    loader = crop_loader(Numbers(40), num_workers=1, batch_size=2)
    loader.dataset.places.is_full[:] = 1  # as if all of them were taken for good
    assert values(loader) == [[i, i + 1] for i in range(0, 40, 2)]


def test_a_crop_that_cannot_be_read_ends_the_epoch_with_its_message():
    loader = crop_loader(Numbers(40, broken=9), num_workers=2, batch_size=2)
    with pytest.raises(ValueError, match="crop 9 is broken"):
        list(loader)


def test_workers_started_anew_find_the_places_too():
    """Not forked: they are handed a copy of the source."""
    loader = crop_loader(Numbers(10), num_workers=1, batch_size=2)
    loader.multiprocessing_context = "spawn"
    assert values(loader) == [[i, i + 1] for i in range(0, 10, 2)]


def test_too_little_shared_memory_is_said_with_what_to_do(monkeypatch):
    usage = crop_batches.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(crop_batches.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"--data\.num-workers 2: batches of 4 crops of 32 pixels .* --shm-size"):
        crop_loader(Numbers(8), num_workers=2, batch_size=4)
    crop_loader(Numbers(8), num_workers=0, batch_size=4)


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_workers_outlive_the_signal_that_asks_a_whole_job_to_end(name):
    """A scheduler sends it to every process; the training saves and ends its workers itself."""
    before = set(multiprocessing.active_children())
    loader = crop_loader(Numbers(80), num_workers=2, batch_size=2)
    batches = iter(loader)
    found = values([next(batches) for _ in range(3)])
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    assert found + values(batches) == [[i, i + 1] for i in range(0, 80, 2)]
    assert all(worker.is_alive() for worker in workers)


LEFT_EARLY = """
from test_crop_batches import Numbers
from multiattn.video.crops.batches import crop_loader

batches = iter(crop_loader(Numbers(80), num_workers=2, batch_size=2))
next(batches)
raise SystemExit(3)
"""


def test_a_process_that_ends_by_an_error_does_not_wait_for_its_workers():
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", LEFT_EARLY], env=environment, timeout=60, check=False)
    assert ended.returncode == 3


def test_a_signal_to_the_whole_job_does_not_end_a_worker_that_has_just_begun(monkeypatch):
    torchs_own = signal_handling._set_worker_signal_handlers

    def slowly() -> None:
        torchs_own()
        time.sleep(0.5)  # the worker is forked, and ours has not spoken yet

    monkeypatch.setattr(signal_handling, "_set_worker_signal_handlers", slowly)
    batches = iter(crop_loader(Numbers(7), batch_size=2, num_workers=2))
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in batches._workers)], check=True)
    assert values(batches) == [[0, 1], [2, 3], [4, 5], [6]]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "this process listens again"
