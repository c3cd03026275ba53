"""Crops from disk to arrays and batches, the same way for training, validation and prediction.

The loader's workers hand over whole batches through memory that is used again and again. Left to itself a worker takes
new shared memory for every batch, and the system maps and clears each of its pages, which takes nearly as long as
decoding (video/README.md has figures). Here each worker owns a few places of the size of a batch; the main process
copies a batch out of its place as it arrives, and the place is free again.
"""

import hashlib
import itertools
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, get_worker_info

from multiattn.runtime.crop_files import crops_root, jpeg_size, loose_name, read_stored
from multiattn.runtime.layout import RECIPE_FILE
from multiattn.runtime.processor import usable_cores
from multiattn.runtime.signals import ending_signals_wait, leave_signals_to_parent
from multiattn.video.crops.cache import SHARED_MEMORY, CropCache
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.decoding.pictures import MAX_PIXELS, decode_picture

# A decoder asked for half the size skips the fine half of each block's frequencies. OpenCV takes the factor from these
# flags and the colours from IMREAD_COLOR_RGB, whatever the names of the former mean.
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8}
NAMES_AT_ONCE = 1 << 18
PREFETCH = 3
"""Batches each worker makes ahead."""


def read_crop(path: Path, size: int, least: int = 0) -> np.ndarray:
    """(size, size, 3) uint8 RGB; a larger crop is averaged down.

    A JPEG whose half, quarter or eighth side is `size`, or at least half as much again, is decoded at the smallest of
    these and averaged from there: half to three quarters of the time, and 0.2 to 0.7 of 255 (mean over faces of 380
    pixels) from a full decoding averaged down. Any other is decoded in full.

    Args:
        path: the crop's address, joined to the root of its faces folder's crops (`runtime/crop_files.py`).
        least: pixels that its side has at least.

    Raises:
        ValueError: not a readable image, not square, or smaller than `size` or `least`. Nothing is invented in its
            place.
    """
    return decode_crop(read_stored(path), size, path, least)


def decode_crop(content: bytes, size: int, source: Path | str, least: int = 0) -> np.ndarray:
    """`read_crop` of a file's content.

    Args:
        source: what an error names.
    """
    # OpenCV fills what is missing of a JPEG that was cut off with grey, so its end marker is checked first.
    whole = content.endswith(b"\xff\xd9") or not content.startswith(b"\xff\xd8")
    stored_wh = jpeg_size(content)
    is_square = stored_wh is not None and stored_wh[0] == stored_wh[1]
    flags = cv2.IMREAD_COLOR_RGB | _REDUCED.get(_decoding_factor(stored_wh[0], size) if is_square else 1, 0)
    if stored_wh is not None and stored_wh[0] * stored_wh[1] <= MAX_PIXELS:  # known: no second look at the header
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if whole else None
    else:
        image = decode_picture(content, flags, str(source))
    if image is None:
        raise ValueError(
            f"{source}: not a readable image. If `multiattn faces` cut it, delete the line of its video in "
            "video_status.csv of the faces folder and run the same command again; else mend it, or take it out of its "
            "list, and run `multiattn index` again."
        )
    width, height = stored_wh or image.shape[1::-1]
    least = max(size, least)
    if height != width or height < least:
        raise ValueError(
            f"{source}: expected a square crop of at least {least} pixels, found {width}x{height}. "
            f"Make the faces with `multiattn faces --size {least}`, or index changed pictures again."
        )
    return shrink_crop(image, size)


def shrink_crop(crop: np.ndarray, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of a square crop at least as large, averaged over areas; `crop` itself where it is."""
    return crop if len(crop) == size else cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA)


def moved_crop(
    crop: np.ndarray, *, scale: float = 1.0, shift_xy: tuple[float, float] = (0, 0), degrees: float = 0
) -> np.ndarray:
    """The crop of a box that is turned, larger by `scale` and further right and below by `shift_xy` sides, (S, S, 3)
    uint8; beyond the picture its border is repeated."""
    side = len(crop)
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), degrees, 1 / scale)
    matrix[:, 2] -= np.array(shift_xy) * side / scale
    method = cv2.INTER_LINEAR if scale <= 1 else cv2.INTER_AREA
    return cv2.warpAffine(crop, matrix, (side, side), flags=method, borderMode=cv2.BORDER_REPLICATE)


def stored_side(folder: Path, size: int) -> int:
    """Side of a faces folder's crops in pixels; `size` where no recipe says it."""
    return read_recipe(folder).size if (folder / RECIPE_FILE).is_file() else size


def _decoding_factor(stored: int, size: int) -> int:
    """8, 4, 2 or 1: the largest that divides the stored side into `size` itself or into half as much again at
    least, from where averaging does not blur."""
    sides = {factor: stored // factor for factor in (8, 4, 2) if stored % factor == 0}
    return next((factor for factor, side in sides.items() if side == size or 2 * side >= 3 * size), 1)


def names_digest(*names: pd.Series | list[str]) -> str:
    """SHA-256 of all names, one a line, in hex: of millions in a fraction of a second and without a copy of them."""
    digest, separator = hashlib.sha256(), b""
    for part in names:
        for start in range(0, len(part), NAMES_AT_ONCE):
            lines = pa.array(part[start : start + NAMES_AT_ONCE], type=pa.string(), from_pandas=True)
            lines = lines.combine_chunks() if isinstance(lines, pa.ChunkedArray) else lines
            digest.update(separator)
            digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")[0].as_buffer())
            separator = b"\n"
    return digest.hexdigest()


class CropImages(Dataset):
    """Crops by row: index -> (size, size, 3) uint8 tensor, RGB.

    Args:
        folder: the faces folder.
        names: addresses of its crops; kept in one piece of memory, since of millions of Python objects each worker
            would get copies of its own as soon as it touches them.
        cache_rows: (N,) int, the number by which the cache knows each row.
        change: (crop at its stored side, address) -> crop, before it is averaged down; of a packed crop the path that
            it had before, so that what is drawn by it stays.
    """

    read_side: int
    """Side at which crops are read, and cached: `size`, unless a subclass averages them down later."""

    def __init__(
        self,
        folder: Path,
        names: pd.Series,
        size: int,
        *,
        cache: CropCache | None = None,
        cache_rows: np.ndarray | None = None,
        change: Callable[[np.ndarray, str], np.ndarray] | None = None,
    ) -> None:
        self.root, self.size, self.cache, self.cache_rows = crops_root(folder), size, cache, cache_rows
        self.change = change
        self.least = stored_side(folder, size)
        self.read_side = size
        self.names = pa.array(names, type=pa.large_string(), from_pandas=True)
        if isinstance(self.names, pa.ChunkedArray):
            self.names = self.names.combine_chunks()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self.read(index))

    def read(self, index: int) -> np.ndarray:
        """(read_side, read_side, 3) uint8 RGB, from the cache or from its file; an array of its own."""
        crop = None if self.cache is None else self.cache.get(int(self.cache_rows[index]))
        if crop is None and self.change is not None:
            address = self.names[index].as_py()
            changed = self.change(read_crop(self.root / address, self.least), loose_name(address))
            crop = shrink_crop(changed, self.size)
        elif crop is None:
            crop = read_crop(self.root / self.names[index].as_py(), self.read_side, self.least)
            if self.cache is not None:
                self.cache.put(int(self.cache_rows[index]), crop)
        return crop

    def fill(self, index: int, out: np.ndarray) -> None:
        """Write the crop of a row into `out`, (size, size, 3) uint8."""
        out[...] = self.read(index)


class CropSource(Protocol):
    """Source of a loader, as `CropImages` is one."""

    size: int

    def __len__(self) -> int: ...

    def fill(self, item: Any, out: np.ndarray) -> int | None:
        """Write the crop of a sampler's item into `out`, (size, size, 3) uint8; returns its label, if it has one."""


def crop_loader(
    source: CropSource, *, num_workers: int, batch_size: int | None = None, batch_sampler: BatchSampler | None = None
) -> DataLoader:
    """Batches (B, size, size, 3) uint8, and (B,) int64 labels where the source has them.

    Workers persist between epochs and use one thread each; batches lie in pinned memory where there is a GPU.

    Args:
        num_workers: at most; there are never more than this process has cores.
        batch_size: crops in a batch, in order; or give a `batch_sampler`, with an attribute of this name.

    Raises:
        ValueError: not so much shared memory.
    """
    num_workers = min(num_workers, usable_cores())
    size = batch_size if batch_sampler is None else batch_sampler.batch_size
    places = _Places(num_workers, size, source.size) if num_workers and len(source) else None
    return _CropLoader(
        _Batches(source, places),
        batch_sampler=batch_sampler,
        batch_size=1 if batch_sampler is not None else batch_size,
        num_workers=num_workers,
        multiprocessing_context=start_method(num_workers),
        prefetch_factor=PREFETCH if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=settle_worker,
        collate_fn=_as_it_is,
        # Torch's own would be drawn from by every loader that begins, more often without workers than with them; what
        # a training draws must not depend on that. Nothing here draws from this one.
        generator=torch.Generator(),
    )


def start_method(num_workers: int) -> str | None:
    """How a loader's workers begin: forked on Linux, where Python 3.14 would hand each a copy of the table of crops;
    elsewhere, and without workers, as Python has it."""
    return "fork" if num_workers and sys.platform == "linux" else None


class _CropLoader(DataLoader):
    """No signal to the whole job ends its workers between their fork and `settle_worker`, as it would with torch's own,
    and with them the training before it has saved."""

    def __iter__(self) -> Iterator[Any]:
        with ending_signals_wait():
            return super().__iter__()


def _as_it_is(batch: Any) -> Any:
    return batch


def require_shared_memory(needed: int, what: str) -> None:
    """Refuse batches that take more bytes on their way from the workers than /dev/shm has left: beyond it a process
    dies of SIGBUS without a word. Docker gives it 64 MB."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed  # Linux has one
    if needed > free:
        raise ValueError(
            f"{what} on their way take {needed / 1e9:.2f} GB of shared memory, and {SHARED_MEMORY} has "
            f"{free / 1e9:.2f} GB left. Take fewer workers or smaller batches; a container gets more by its --shm-size."
        )


class _Places:
    """Room for the batches that are under way: `PREFETCH` of each worker, and a mark on those that are full."""

    def __init__(self, num_workers: int, batch_size: int, size: int) -> None:
        shape = (num_workers, PREFETCH, batch_size, size, size, 3)
        what = f"--data.num-workers {num_workers}: batches of {batch_size} crops of {size} pixels"
        require_shared_memory(int(np.prod(shape, dtype=np.int64)), what)
        self.pixels = torch.empty(shape, dtype=torch.uint8).share_memory_()
        self.is_full = torch.zeros(shape[:2], dtype=torch.uint8).share_memory_()
        self.number = next(_numbers)
        _places[self.number] = self

    def free_one(self, worker: int) -> int | None:
        """A place of this worker; None when all are full."""
        return next((place for place in range(PREFETCH) if not self.is_full[worker, place]), None)


_numbers = itertools.count()
_places: "weakref.WeakValueDictionary[int, _Places]" = weakref.WeakValueDictionary()
"""Places of this process's loaders; the workers know theirs by number."""


class _InPlace:
    """A batch in a worker's place. On its way to the main process it becomes the batch itself."""

    def __init__(self, places: _Places, worker: int, place: int, labels: list[int | None]) -> None:
        self.address = (places.number, worker, place)
        self.labels = labels
        places.is_full[worker, place] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _collect, (*self.address, self.labels)


def _collect(number: int, worker: int, place: int, labels: list[int | None]) -> Tensor | tuple[Tensor, Tensor]:
    places = _places[number]
    crops = places.pixels[worker, place, : len(labels)].clone()
    places.is_full[worker, place] = 0
    return _with_labels(crops, labels)


def _with_labels(crops: Tensor, labels: list[int | None]) -> Tensor | tuple[Tensor, Tensor]:
    return crops if labels[0] is None else (crops, torch.tensor(labels, dtype=torch.int64))


class _Batches(Dataset):
    """Lists of items -> batches."""

    def __init__(self, source: CropSource, places: _Places | None) -> None:
        self.source, self.places = source, places

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, items: Sequence[Any]) -> Any:
        worker = get_worker_info()
        place = self.places.free_one(worker.id) if worker is not None and self.places is not None else None
        if place is None:
            crops = torch.empty((len(items), self.source.size, self.source.size, 3), dtype=torch.uint8)
        else:
            crops = self.places.pixels[worker.id, place, : len(items)]
        labels = [self.source.fill(item, out) for item, out in zip(items, crops.numpy(), strict=True)]
        return _with_labels(crops, labels) if place is None else _InPlace(self.places, worker.id, place, labels)


def settle_worker(worker: int) -> None:
    """Settle a worker process of a loader: one thread (OpenCV would start one for every core), and no end of its own
    when the job is asked to end."""
    cv2.setNumThreads(0)
    leave_signals_to_parent()
