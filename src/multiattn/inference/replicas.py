"""The same networks on several devices: whoever is free computes, and one that fails leaves its work to the others."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch

from multiattn.runtime.processor import TORCH_THREAD
from multiattn.video.extraction.engine import describe_error, in_threads, is_device_failure, is_out_of_memory

logger = logging.getLogger(__name__)

Each = TypeVar("Each")


class Replicas(Generic[Each]):
    """The replica that each of some devices computes with. Safe for threads.

    Args:
        devices: at least one. One that fails while it loads, or has no room, is left out where another works.
        load: gives a device's replica.
    """

    def __init__(self, devices: Sequence[torch.device], load: Callable[[torch.device], Each]) -> None:
        self._replicas: list[tuple[torch.device, Each]] = []
        self._failed: set[Each] = set()
        self._lock = threading.Lock()
        for place, device in enumerate(devices):
            try:
                self._replicas.append((device, load(device)))
            except Exception as error:
                is_last = place == len(devices) - 1 and not self._replicas
                if is_last or not (is_device_failure(error) or is_out_of_memory(error)):
                    raise
                logger.warning("%s is left out: %s", device, describe_error(error))

    def __len__(self) -> int:
        return len(self._replicas)

    def __iter__(self) -> Iterator[Each]:
        return (replica for _, replica in self._replicas)

    def working(self, place: int) -> Each:
        """The replica of a place, or the next one where that was set aside."""
        ordered = [*self._replicas, *self._replicas][place % len(self) :]
        return next(replica for _, replica in ordered if replica not in self._failed)

    def set_aside(self, replica: Each, error: BaseException) -> bool:
        """Leave a device out from now on; False where it is the last one, which stays."""
        with self._lock:
            if len(self._failed | {replica}) == len(self):
                return False
            if replica not in self._failed:
                device = next(device for device, other in self._replicas if other is replica)
                logger.warning("%s is left out from here on: %s", device, describe_error(error))
                self._failed.add(replica)
            return True


def in_order(work: Iterable[Any], replicas: Replicas[Callable[[Any], Any]]) -> list[Any]:
    """The results of the replicas, functions that are equal but for their device, for each piece of work, in its order.

    A device that fails, or has no memory for a piece, leaves that and all others to the rest.

    Raises:
        Exception: what a replica raised, of the last device or that is not the device's fault.
    """
    if len(replicas) == 1:
        return [replicas.working(0)(piece) for piece in work]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(replicas)):
        free.put(place)

    def compute(number: int, piece: Any) -> tuple[int, str, Any]:
        place = free.get()
        try:
            while True:
                replica = replicas.working(place)
                try:
                    return number, "done", replica(piece)
                except Exception as error:
                    is_devices = is_device_failure(error) or is_out_of_memory(error)
                    if not (is_devices and replicas.set_aside(replica, error)):
                        raise
        finally:
            free.put(place)

    results = {}
    calls = ((compute, number, piece) for number, piece in enumerate(work))
    for number, kind, value in in_threads(calls, jobs=len(replicas), name=TORCH_THREAD):
        if kind == "raised":
            raise value
        results[number] = value
    return [results[number] for number in sorted(results)]
