"""Crops of real files: what comes out, what is refused; and batches from workers, the same as from one process."""

import hashlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from PIL import Image
from torch.utils.data._utils import signal_handling

from multiattn.runtime.crop_files import jpeg_size
from multiattn.video.crops import images
from multiattn.video.crops.cache import CropCache
from multiattn.video.crops.images import PREFETCH, CropImages, crop_loader, names_digest, read_crop


def smooth(size: int) -> np.ndarray:
    """A colour gradient that JPEG keeps nearly as it is."""
    y, x = np.mgrid[:size, :size] * (200 / size)
    return np.stack([x + 20, y + 20, (x + y) / 2], axis=2).astype(np.uint8)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".jpg", 4)])
def test_a_crop_is_rgb_as_pil_reads_it(suffix, tolerance, tmp_path):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(smooth(64)).save(path, quality=95)
    found = read_crop(path, 64)
    assert (found.shape, found.dtype) == ((64, 64, 3), np.uint8)
    assert np.abs(found.astype(int) - np.asarray(Image.open(path).convert("RGB")).astype(int)).max() <= tolerance


def test_a_larger_crop_is_averaged_down(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    by_hand = image.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(read_crop(tmp_path / "a.png", 64) - by_hand).max() <= 0.5


@pytest.mark.parametrize(
    ("size_wh", "found"), [((63, 63), "63x63"), ((64, 80), "64x80"), ((80, 64), "80x64"), ((1, 1), "1x1")], ids=str
)
def test_a_crop_too_small_or_not_square_is_refused_with_the_command(size_wh, found, tmp_path):
    Image.new("RGB", size_wh).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"found {found}. Make the faces with `multiattn faces --size 64`") as caught:
        read_crop(tmp_path / "a.png", 64)
    assert str(tmp_path / "a.png") in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [None, b"", b"text", b"\xff\xd8\xff\xe0", b"a FIFO"],
    ids=["not there", "empty", "text", "start of a jpeg", "FIFO"],
)
def test_an_unreadable_crop_is_refused_with_its_path(content, tmp_path):
    if content == b"a FIFO":
        os.mkfifo(tmp_path / "a.jpg")
    elif content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/a.jpg: not a readable image"):
        read_crop(tmp_path / "a.jpg", 64)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_crop_that_was_cut_off_is_refused_not_filled_up_with_grey(suffix, share, tmp_path):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="not a readable image"):
        read_crop(path, 64)


@pytest.fixture(scope="module")
def face(tmp_path_factory) -> Path:
    """A photograph of a face, 380 pixels, as crops are stored."""
    path = tmp_path_factory.mktemp("face") / "a.jpg"
    Image.fromarray(skimage.data.astronaut()[:190, 130:320]).resize((380, 380), Image.Resampling.BICUBIC).save(
        path, quality=95, subsampling=0
    )
    return path


@pytest.mark.parametrize("size", [190, 126, 112, 95, 63, 48, 32])
def test_half_a_crop_or_less_is_decoded_smaller_and_looks_the_same(size, face):
    full = cv2.resize(cv2.imread(str(face), cv2.IMREAD_COLOR_RGB), (size, size), interpolation=cv2.INTER_AREA)
    difference = read_crop(face, size).astype(int) - full
    assert np.abs(difference).mean() < 1.6
    assert np.abs(difference.mean(axis=(0, 1))).max() < 0.2, "no channel is another's, none is brighter"
    shifted = np.roll(full, 1, axis=1).astype(int) - full
    assert np.abs(difference).mean() < np.abs(shifted).mean() / 3, "and nothing has moved"


@pytest.mark.parametrize("size", [380, 379, 256, 191, 189, 128])
def test_more_than_half_a_crop_or_barely_less_is_decoded_in_full(size, face):
    full = cv2.imread(str(face), cv2.IMREAD_COLOR_RGB)
    expected = full if size == 380 else cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(read_crop(face, size), expected)


@pytest.mark.parametrize(("stored", "size"), [(381, 120), (100, 20), (65, 32)])
def test_a_side_that_no_factor_divides_is_decoded_by_one_that_does(stored, size, tmp_path):
    """Half of an odd side would be half a pixel too wide."""
    Image.fromarray(smooth(stored)).save(tmp_path / "a.jpg", quality=95)
    full = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB)
    factor = 4 if stored == 100 else 1
    expected = cv2.resize(full, (size, size), interpolation=cv2.INTER_AREA)
    found = read_crop(tmp_path / "a.jpg", size)
    assert np.abs(found.astype(int) - expected).max() <= (0 if factor == 1 else 3)


@pytest.mark.parametrize(
    ("options", "size_wh"),
    [
        pytest.param({"format": "JPEG"}, (70, 40), id="baseline"),
        pytest.param({"format": "JPEG", "progressive": True}, (33, 65), id="progressive"),
        pytest.param({"format": "JPEG", "comment": b"\xff\xc0" * 50, "dpi": (72, 72)}, (1, 1), id="a comment first"),
        pytest.param({"format": "PNG"}, None, id="no jpeg"),
    ],
)
def test_the_size_of_a_jpeg_stands_in_its_header(options, size_wh):
    file = io.BytesIO()
    Image.new("RGB", size_wh or (8, 8)).save(file, **options)
    assert jpeg_size(file.getvalue()) == size_wh
    for content in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\xff\xd8text"):
        assert jpeg_size(content) is None


@pytest.mark.parametrize("at_once", [1, 2, 100])
@pytest.mark.parametrize("names", [[], ["a"], ["a", "ä", "b/c"] * 3], ids=["none", "one", "many"])
@pytest.mark.parametrize("dtype", ["str", "object"])
def test_the_digest_of_names_is_that_of_their_lines(dtype, names, at_once, monkeypatch):
    monkeypatch.setattr(images, "NAMES_AT_ONCE", at_once)
    series = pd.Series(names, dtype=dtype)
    for parts in ([series], [series, ["|"], series[1:]]):
        lines = [name for part in parts for name in part]
        assert names_digest(*parts) == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_a_crop_in_the_cache_is_not_read_again(tmp_path):
    Image.fromarray(smooth(48)).save(tmp_path / "a.png")
    cache = CropCache(tmp_path / "cache", 5, 32)
    names = pd.Series(["missing.png", "a.png"])
    crops = CropImages(tmp_path, names, 32, cache=cache, cache_rows=np.array([0, 3]))
    first = crops.read(1)
    (tmp_path / "a.png").unlink()
    np.testing.assert_array_equal(crops.read(1), first)
    np.testing.assert_array_equal(first, cache.get(3))
    out = np.zeros((32, 32, 3), np.uint8)
    crops.fill(1, out)
    np.testing.assert_array_equal(out, first)
    with pytest.raises(ValueError, match=r"missing\.png"):
        crops.read(0)


def test_the_data_set_gives_each_crop_by_its_number(tmp_path):
    for level in (10, 200):
        Image.new("RGB", (32, 32), (level, 0, 0)).save(tmp_path / f"{level}.png")
    crops = CropImages(tmp_path, pd.Series(["10.png", "200.png"]), 32)
    assert len(crops) == 2 and len(CropImages(Path(), pd.Series(dtype=str), 32)) == 0
    assert [int(crops[index][0, 0, 0]) for index in range(2)] == [10, 200]
    assert tuple(crops[0].shape) == (32, 32, 3)


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


@pytest.mark.parametrize(("num_workers", "method"), [(0, None), (2, "fork")])
def test_workers_are_forked_also_where_python_would_start_them_anew(num_workers, method):
    """As Python 3.14 does: a table of millions of crops would be copied to each."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        loader = crop_loader(Numbers(10), num_workers=num_workers, batch_size=2)
        context = loader.multiprocessing_context
        assert method == (context and context.get_start_method())
        assert values(loader) == [[i, i + 1] for i in range(0, 10, 2)]
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_workers_started_anew_find_the_places_too():
    """Not forked: they are handed a copy of the source."""
    loader = crop_loader(Numbers(10), num_workers=1, batch_size=2)
    loader.multiprocessing_context = "spawn"
    assert values(loader) == [[i, i + 1] for i in range(0, 10, 2)]


def test_too_little_shared_memory_is_said_with_what_to_do(monkeypatch):
    usage = images.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(images.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"--data\.num-workers 2: batches of 4 crops of 32 pixels .* --shm-size"):
        crop_loader(Numbers(8), num_workers=2, batch_size=4)
    crop_loader(Numbers(8), num_workers=0, batch_size=4)
    monkeypatch.setattr(images, "SHARED_MEMORY", Path("/no shared memory, as on macOS"))
    crop_loader(Numbers(4), num_workers=1, batch_size=2)


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
from test_crop_images import Numbers
from multiattn.video.crops.images import crop_loader

batches = iter(crop_loader(Numbers(80), num_workers=2, batch_size=2))
next(batches)
raise SystemExit(3)
"""


def test_a_process_that_ends_by_an_error_does_not_wait_for_its_workers():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
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
