"""Two processes with half a batch each train as one process with all of it."""

import gc
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from multiattn.config import LossConfig
from multiattn.model.losses import make_auxiliary

NUM_MAPS, FEATURES, STEPS = 3, 5, 3
CASES = {
    "mean, even": ("per-part", "mean", 4),
    "sum, even": ("per-part", "sum", 4),
    "mean, uneven": ("per-part", "mean", 5),
    "mean, one rank empty": ("per-part", "mean", 8),
    "joint, even": ("joint", "mean", 4),
    "joint, uneven": ("joint", "mean", 5),
}


class Parts(nn.Module):
    """A small network with unit rows, as BAP gives them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(6, NUM_MAPS * FEATURES, generator=generator, dtype=torch.float64))

    def forward(self, inputs):
        return nn.functional.normalize((inputs @ self.weight).view(-1, NUM_MAPS, FEATURES), dim=-1)


def batches():
    generator = torch.Generator().manual_seed(4)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    return [(torch.randn(8, 6, generator=generator, dtype=torch.float64), labels) for _ in range(STEPS)]


def train(module, share, form, reduction):
    """Losses, gradients and centres of a few steps over a share of each batch."""
    config = LossConfig(ril=form, reduction=reduction, center_rate=0.4, inter_margin=2.0, intra_margin_fake=-2.5)
    criterion = make_auxiliary(NUM_MAPS, FEATURES, config).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    history = []
    for inputs, labels in batches():
        optimizer.zero_grad()
        loss = criterion(module(inputs[share]), labels[share])
        loss.backward()
        history.append((loss.detach(), next(module.parameters()).grad.clone(), criterion.centers.clone()))
        optimizer.step()
    return history


def train_share(rank: int, form: str, reduction: str, first: int):
    """This rank's history; its DistributedDataParallel, which holds the process group, is gone on return."""
    share = slice(0, first) if rank == 0 else slice(first, 8)
    return train(nn.parallel.DistributedDataParallel(Parts()), share, form, reduction)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, (form, reduction, first) in CASES.items():
        torch.save(train_share(rank, form, reduction, first), f"{folder}/{name}-{rank}.pt")
    # Gloo's threads may still hold tensors when the interpreter shuts down, and then abort it (2 runs of 17 did): wait
    # until both ranks are through, drop every user of the group before the group, and skip the shutdown.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    mp.spawn(work, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_loss_gradients_and_centres_equal_those_of_one_process(results, name):
    form, reduction, _ = CASES[name]
    ranks = [torch.load(results / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
    alone = train(Parts(), slice(None), form, reduction)
    for step, (loss, gradient, centers) in enumerate(alone):
        first, second = ranks[0][step], ranks[1][step]
        torch.testing.assert_close((first[0] + second[0]) / 2, loss)
        assert gradient.abs().max() > 1e-3
        for found in (first, second):
            torch.testing.assert_close(found[1], gradient)
            torch.testing.assert_close(found[2], centers)
