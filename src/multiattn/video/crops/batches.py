"""A loader of crops whose workers hand over whole batches through memory that is used again and again.

Left to itself a worker takes new shared memory for every batch, and the system maps and clears each of its pages: for
12 crops of 380 pixels 3.7 ms, nearly as long as decoding them, against 0.1 ms into memory that is mapped already
(2 cores of an AMD EPYC, in a virtual machine). Here each worker owns a few places of the size of a batch; the main
process copies a batch out of its place as it arrives, and the place is free again.
"""

import itertools
import shutil
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, get_worker_info

from multiattn.runtime.signals import ending_signals_wait
from multiattn.video.crops.cache import SHARED_MEMORY
from multiattn.video.crops.images import settle_worker

PREFETCH = 3
"""Batches each worker makes ahead."""


class CropSource(Protocol):
    """What a loader reads from: `video.crop_images.CropImages`, or anything of the kind."""

    size: int

    def __len__(self) -> int: ...

    def fill(self, item: Any, out: np.ndarray) -> int | None:
        """Write the crop of an item of the sampler into `out`, (size, size, 3) uint8; returns its label, if it has
        one."""


def crop_loader(
    source: CropSource,
    *,
    num_workers: int,
    batch_size: int | None = None,
    batch_sampler: BatchSampler | None = None,
) -> DataLoader:
    """Batches (B, size, size, 3) uint8, and (B,) int64 labels where the source has them.

    Workers persist between epochs and use one thread each; batches lie in pinned memory where there is a GPU.

    Args:
        batch_size: crops in a batch, in order; or give a `batch_sampler`, with an attribute of this name.

    Raises:
        ValueError: not so much shared memory.
    """
    size = batch_size if batch_sampler is None else batch_sampler.batch_size
    places = _Places(num_workers, size, source.size) if num_workers and len(source) else None
    return _CropLoader(
        _Batches(source, places),
        batch_sampler=batch_sampler,
        batch_size=1 if batch_sampler is not None else batch_size,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=settle_worker,
        collate_fn=_as_it_is,
        # Torch's own would be drawn from by every loader that begins, more often without workers than with them; what
        # a training draws must not depend on that. Nothing here draws from this one.
        generator=torch.Generator(),
    )


class _CropLoader(DataLoader):
    """Its workers are never without an answer to SIGTERM: between their fork and `settle_worker` torch's own would let
    a signal to the whole job end them, and with them the training before it has saved."""

    def __iter__(self) -> Iterator[Any]:
        with ending_signals_wait():
            return super().__iter__()


def _as_it_is(batch: Any) -> Any:
    return batch


class _Places:
    """Room for the batches that are under way: `PREFETCH` of each worker, and a mark on those that are full."""

    def __init__(self, num_workers: int, batch_size: int, size: int) -> None:
        shape = (num_workers, PREFETCH, batch_size, size, size, 3)
        needed, free = int(np.prod(shape, dtype=np.int64)), shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise ValueError(
                f"--data.num-workers {num_workers}: batches of {batch_size} crops of {size} pixels on their way take "
                f"{needed / 1e9:.2f} GB of shared memory, and {SHARED_MEMORY} has {free / 1e9:.2f} GB left. Take fewer "
                "workers or smaller batches; a container gets more by its --shm-size."
            )
        self.pixels = torch.empty(shape, dtype=torch.uint8).share_memory_()
        self.is_full = torch.zeros(shape[:2], dtype=torch.uint8).share_memory_()
        self.number = next(_numbers)
        _places[self.number] = self

    def free_one(self, worker: int) -> int | None:
        """A place of this worker; None when all are full."""
        free = (self.is_full[worker] == 0).nonzero()
        return int(free[0]) if len(free) else None


_numbers = itertools.count()
_places: "weakref.WeakValueDictionary[int, _Places]" = weakref.WeakValueDictionary()
"""Of this process's loaders; the workers know theirs by number."""


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
        self.source = source
        self.places = places

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
