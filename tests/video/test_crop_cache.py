"""Crops kept decoded: what comes back, what counts as empty, who shares the file, and who removes it."""

import logging
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from multiattn.video.crops import cache as crop_cache
from multiattn.video.crops.cache import CropCache, open_cache, record_bytes
from multiattn.video.crops.recipe import CropRecipe, write_recipe

SIZE = 32


def crop_of(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path) -> CropCache:
    return CropCache(tmp_path / "cache", 8, SIZE)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A faces folder, and a place of the test's own in place of the shared memory."""
    monkeypatch.setattr(crop_cache, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    folder = tmp_path / "faces"
    write_recipe(CropRecipe(size=SIZE), folder)
    (folder / "faces.parquet").write_bytes(b"a table")
    return folder


def open_in(folder: Path, kind: str = "disk", **changes) -> CropCache:
    options = {"names_digest": "abc", "num_crops": 100, "size": SIZE, "gigabytes": 0.001}
    return open_cache(kind, folder, **options | changes)


@pytest.mark.parametrize("row", [0, 3, 7])
@pytest.mark.parametrize(
    "crop", [crop_of(1), np.zeros((SIZE, SIZE, 3), np.uint8), crop_of(2)[:, ::-1]], ids=["noise", "black", "mirrored"]
)
def test_what_was_put_comes_back(crop, row, cache):
    assert cache.get(row) is None
    cache.put(row, crop)
    found = cache.get(row)
    np.testing.assert_array_equal(found, crop)
    assert (found.dtype, found.shape) == (np.uint8, (SIZE, SIZE, 3))
    found[:] = 9  # a copy
    np.testing.assert_array_equal(cache.get(row), crop)
    assert [cache.get(other) is None for other in range(8)].count(False) == 1


def test_a_crop_beyond_the_end_is_not_kept_and_a_copy_sent_to_another_process_opens_the_same_file(cache):
    cache.put(8, crop_of(0))
    assert cache.get(8) is None
    assert cache.path.stat().st_size == 8 * record_bytes(SIZE)
    cache.put(1, crop_of(1))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache)).get(1), crop_of(1))


@pytest.mark.parametrize("written", [0, 1, 100, SIZE * SIZE * 3 - 1, SIZE * SIZE * 3], ids=str)
def test_half_a_crop_counts_as_none(written, cache):
    """The file as a kill in the middle of writing leaves it, over an empty place."""
    content = (crop_of(1).tobytes() + b"\0" * 4)[:written]
    with cache.path.open("r+b") as file:
        file.seek(2 * record_bytes(SIZE))
        file.write(content)
    assert cache.get(2) is None
    cache.put(2, crop_of(1))
    np.testing.assert_array_equal(cache.get(2), crop_of(1))


def test_a_page_that_a_power_cut_lost_counts_as_no_crop(tmp_path):
    cache = CropCache(tmp_path / "cache", 2, 128)
    crop = np.random.default_rng(0).integers(1, 256, (128, 128, 3), dtype=np.uint8)
    cache.put(1, crop)
    start = -(-record_bytes(128) // 4096) * 4096
    with cache.path.open("r+b") as file:
        file.seek(start)
        file.write(b"\0" * 4096)
    assert cache.get(1) is None


def test_a_full_file_system_costs_the_cache_and_nothing_else(cache, monkeypatch, caplog):
    def refuse(*_) -> int:
        raise OSError(28, "No space left on device")

    cache.put(0, crop_of(0))
    monkeypatch.setattr(crop_cache.os, "pwrite", refuse)
    with caplog.at_level(logging.WARNING):
        for row in (1, 2, 3):
            cache.put(row, crop_of(row))
    assert cache.get(1) is None
    np.testing.assert_array_equal(cache.get(0), crop_of(0))
    (record,) = caplog.records
    assert "takes no more crops" in record.getMessage()
    assert "No space left" in record.getMessage()


def fill_and_read(cache: CropCache, rows: range, failures) -> None:
    for row in rows:
        crop = cache.get(row)
        if crop is None:
            cache.put(row, crop_of(row))
            crop = cache.get(row)
        if not np.array_equal(crop, crop_of(row)):
            failures.put(row)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_what_each_of_them_put(method, tmp_path):
    """Forked ones inherit the open file; others open it again by its name."""
    cache = CropCache(tmp_path / "cache", 40, SIZE)
    context = multiprocessing.get_context(method)
    failures = context.Queue()
    workers = [
        context.Process(target=fill_and_read, args=(cache, range(a, b), failures)) for a, b in ((0, 30), (9, 40))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert failures.empty()
    for row in range(40):
        np.testing.assert_array_equal(cache.get(row), crop_of(row))


def put_for_ever(path: Path) -> None:
    cache = CropCache(path, 4, 512)
    for row in range(10**9):
        cache.put(row % 4, np.full((512, 512, 3), row % 251, np.uint8))


def test_a_writer_that_is_killed_at_any_moment_leaves_whole_crops_only(tmp_path):
    for wait in (0.02, 0.05, 0.11):
        writer = multiprocessing.get_context("fork").Process(target=put_for_ever, args=(tmp_path / "cache",))
        writer.start()
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        cache = CropCache(tmp_path / "cache", 4, 512)
        for row in range(4):
            crop = cache.get(row)
            assert crop is None or len(np.unique(crop)) == 1


def test_a_cache_on_disk_is_there_again_the_next_time(folder):
    cache = open_in(folder)
    cache.put(5, crop_of(5))
    path = cache.path
    assert path.parent == folder / ".cache"
    del cache
    np.testing.assert_array_equal(open_in(folder).get(5), crop_of(5))
    assert open_in(folder).path == path


def test_a_cache_in_memory_goes_with_the_last_that_uses_it(folder, tmp_path):
    first, second = open_in(folder, "memory"), open_in(folder, "memory")
    assert first is second, "training and validation share one"
    path = first.path
    assert path.parent == tmp_path / "shm"
    del first
    assert path.exists()
    del second
    assert not path.exists()


def hold(folder: Path, shared_memory: Path, opened, release) -> None:
    crop_cache.SHARED_MEMORY = shared_memory
    crop_cache._in_use.clear()
    cache = open_in(folder, "memory")
    cache.put(1, crop_of(1))
    opened.set()
    release.wait()


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_a_cache_in_memory_outlives_one_of_two_processes(end, folder):
    """Ranks of one machine: the first to end leaves the file to the others; what a killed run left is taken over."""
    context = multiprocessing.get_context("fork")
    opened, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(folder, crop_cache.SHARED_MEMORY, opened, release))
    other.start()
    assert opened.wait(20)
    cache = open_in(folder, "memory")
    path = cache.path
    np.testing.assert_array_equal(cache.get(1), crop_of(1))
    del cache
    assert path.exists(), "the other one still uses it"
    if end == "is killed":
        os.kill(other.pid, signal.SIGKILL)
        other.join()
        np.testing.assert_array_equal(open_in(folder, "memory").get(1), crop_of(1))
    else:
        again = open_in(folder, "memory")
        release.set()
        other.join()
        assert again.path.exists()


def test_what_a_killed_run_left_in_memory_is_removed_by_any_other(folder):
    left = crop_cache.SHARED_MEMORY / f"multiattn-{os.getuid()}-0123-32.crops"
    others = crop_cache.SHARED_MEMORY / "another-users.crops"
    left.write_bytes(b"old")
    others.write_bytes(b"old")
    open_in(folder, "memory")
    assert not left.exists()
    assert others.exists()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"gigabytes": 0.0005}, True, id="less room"),
        pytest.param("recipe", False, id="the recipe"),
        pytest.param("table", False, id="the table written anew"),
        pytest.param({"names_digest": "other"}, False, id="other crops"),
        pytest.param({"size": 33}, False, id="another size"),
    ],
)
def test_other_crops_are_not_taken_for_these(change, same, folder):
    cache = open_in(folder)
    cache.put(2, crop_of(2))
    path = cache.path
    del cache
    if change == "recipe":
        write_recipe(CropRecipe(size=SIZE, jpeg_quality=90), folder)
    if change == "table":
        os.utime(folder / "faces.parquet", (1, 1))
    found = open_in(folder, **(change if isinstance(change, dict) else {})).get(2)
    assert (found is not None) == same
    kept = same or "size" in change
    assert path.exists() == kept, "crops that are gone leave nothing behind; another size may be wanted again"


@pytest.mark.parametrize(("gigabytes", "rows"), [(0.001, 100), (4 * 3076 / 1e9, 4), (4.9 * 3076 / 1e9, 4)], ids=str)
def test_the_first_crops_that_fit_are_kept_and_the_log_says_how_many(gigabytes, rows, folder, caplog):
    with caplog.at_level(logging.INFO):
        cache = open_in(folder, gigabytes=gigabytes)
    assert record_bytes(SIZE) == 3076
    assert cache.rows == rows
    expected = "cache: all 100 crops" if rows == 100 else "cache: the first 4 of 100 crops at 32 px"
    assert expected in caplog.text


def test_too_little_for_one_crop_is_refused(folder):
    with pytest.raises(ValueError, match=r"--data\.cache-gb 1e-06: expected room for a crop of 32 pixels"):
        open_in(folder, gigabytes=1e-6)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_no_room_is_said_before_anything_is_read(kind, folder, monkeypatch):
    monkeypatch.setattr(crop_cache, "_free_bytes", lambda *_: 50_000)
    with pytest.raises(ValueError, match=f"--data.cache {kind}: .* 0.0 GB more, .* room for 0.0 GB") as caught:
        open_in(folder, kind)
    assert "--data.cache-gb" in str(caught.value)
    assert "--shm-size" in str(caught.value)


def test_a_folder_that_may_not_be_written_is_said_to_be_one(folder, monkeypatch):
    def refuse(*_) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(crop_cache.os, "open", refuse)
    with pytest.raises(ValueError, match=r"--data\.cache disk: cannot write .*-32\.crops\. Take another --data\.cache"):
        open_in(folder)


def test_what_the_cache_holds_already_needs_no_new_room(folder, monkeypatch):
    cache = open_in(folder)
    for row in range(100):
        cache.put(row, crop_of(row))
    del cache
    monkeypatch.setattr(crop_cache, "_free_bytes", lambda *_: 10_000)
    assert open_in(folder).get(99) is not None


def test_free_room_in_memory_is_what_the_machine_has_left(folder):
    assert 0 < crop_cache._free_bytes("memory", folder) < 2**50
