"""Ranks of a `torchrun` job, and gathering what they computed. One process without torchrun is rank 0 of 1."""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    """Who this process is."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Rank 0 writes files and shows progress."""
        return self.rank == 0


@contextlib.contextmanager
def distributed(device: torch.device) -> Iterator[Ranks]:
    """Join the process group torchrun describes (NCCL on GPUs, gloo on CPUs); leave it at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # After an error the group is left as it is: waiting for the others could take until their time-out, and torchrun
    # ends them all.
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.barrier()
    # gloo's threads must not outlive the tensors they hold, or the interpreter aborts at its end.
    gc.collect()
    dist.destroy_process_group()


def gather_strided(values: np.ndarray, total: int, ranks: Ranks) -> np.ndarray:
    """Undo `rows[rank::world_size]`: every rank's values -> (total,) in the order of the rows, on every rank."""
    if ranks.world_size == 1:
        return values
    parts: list[np.ndarray] = [values] * ranks.world_size
    dist.all_gather_object(parts, values)
    result = np.empty(total, dtype=values.dtype)
    for rank, part in enumerate(parts):
        result[rank :: ranks.world_size] = part
    return result


def mean_over_ranks(values: dict[str, float], device: torch.device, ranks: Ranks) -> dict[str, float]:
    """Each value's mean over the ranks."""
    if ranks.world_size == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return dict(zip(values, (tensor / ranks.world_size).tolist(), strict=True))


def wait_for_all(ranks: Ranks) -> None:
    """Every rank gets here before any goes on."""
    if ranks.world_size > 1:
        dist.barrier()
