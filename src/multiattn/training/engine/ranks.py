"""Ranks of a `torchrun` job: joining, gathering, and deciding together. One process without torchrun is rank 0 of 1.

Numbers of the loop travel between the processors (gloo), never between the devices, so asking the other ranks makes no
rank wait for its GPU.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from multiattn.runtime.devices import num_ranks

PATIENCE = timedelta(hours=1)
"""Longest wait for the other ranks; one that has died does not cost it: torchrun notices, and ends the others."""
CONTINUE, SAVE, PAUSE, STOP = range(4)
"""Requests that a rank can make after a step; the larger is the stronger. PAUSE: the command's hours are over."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the job."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for rank 0, which writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def distributed(device: torch.device) -> Iterator[Ranks]:
    """Join the process group torchrun describes (NCCL between GPUs, gloo between CPUs); leave it at the end."""
    if num_ranks() == 1:
        yield Ranks()
        return
    # torchrun may offer the same store to the processes it starts again; without a name of their own they find there
    # the addresses of those that died (torch 2.14, --standalone: "Connection refused" at every restart).
    store, rank, world_size = next(rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    # After an error the group is left as it is: waiting for the others could take until their time-out, and torchrun
    # ends them all.
    ranks = Ranks(rank, world_size)
    yield ranks
    wait_for_all(ranks)
    # gloo's threads must not outlive the tensors they hold, or the interpreter aborts at its end.
    gc.collect()
    dist.destroy_process_group()


def gather_strided(values: np.ndarray, total: int, ranks: Ranks) -> np.ndarray:
    """Undo `rows[rank::world_size]`: every rank's values -> (total,) in the order of the rows, on every rank."""
    result = np.empty(total, dtype=values.dtype)
    for rank, part in enumerate(gather_objects(values, ranks)):
        result[rank :: ranks.world_size] = part
    return result


def gather_objects(value: object, ranks: Ranks) -> list:
    """Every rank's value, on every rank."""
    if ranks.world_size == 1:
        return [value]
    found: list = [None] * ranks.world_size
    dist.all_gather_object(found, value)
    return found


def gather_rows(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """(K,) on the CPU -> (R, K), a row of every rank, on every rank."""
    return torch.stack(gather_objects(values, ranks))


def wait_for_all(ranks: Ranks) -> None:
    """Every rank gets here before any goes on."""
    if ranks.world_size > 1:
        dist.all_reduce(torch.zeros(1))


class SharedDecision:
    """Agreement of all ranks to save or to stop after the same step, though only one of them may request it.

    A request made after one step takes effect after the next: it travels meanwhile, so no step waits for it, and every
    rank gets the same result after the same step.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def agree(self, request: int) -> int:
        """The strongest request of any rank: of this step for one process, of the step before for several."""
        if self.ranks.world_size == 1:
            return request
        strongest = self.settle()
        requests = torch.tensor([request])
        self._pending = dist.all_reduce(requests, op=dist.ReduceOp.MAX, async_op=True), requests
        return strongest

    def settle(self) -> int:
        """The strongest request that is still on its way; `CONTINUE` where there is none."""
        if self._pending is None:
            return CONTINUE
        work, requests = self._pending
        self._pending = None
        work.wait()
        return int(requests)
