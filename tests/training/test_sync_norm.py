"""Several processes: batch normalisation over their shares is that of one process with the whole batch, and they decide
and gather together."""

import copy
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from multiattn.model.backbone import Backbone
from multiattn.model.rewrites import checkpoint_blocks, frozen_statistics
from multiattn.training.engine import sync_norm
from multiattn.training.engine.ranks import (
    CONTINUE,
    SAVE,
    STOP,
    Ranks,
    SharedDecision,
    gather_objects,
    gather_rows,
    gather_strided,
)
from multiattn.training.engine.sync_norm import SynchronisedBatchNormAct2d, synchronise_norms
from pipeline import forked

CPU, BATCH, STEPS = torch.device("cpu"), 8, 2
SHARES = {2: {"even": [4, 4], "uneven": [7, 1], "one rank empty": [8, 0]}, 4: {"uneven": [3, 1, 2, 2]}}
"""World size -> name -> samples of each rank."""
LAYERS = {
    "2d": (lambda: nn.BatchNorm2d(3), (3, 5, 4)),
    "1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "1d, with a length": (lambda: nn.BatchNorm1d(3), (3, 6)),
    "no weight": (lambda: nn.BatchNorm2d(3, affine=False), (3, 5, 4)),
    "cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (3, 5, 4)),
    "no statistics": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (3, 5, 4)),
    "timm's": (lambda: BatchNormAct2d(3, act_layer=nn.SiLU), (3, 5, 4)),
}
"""Name -> layer, and a sample's shape."""
KINDS = [(name, torch.float64, 1e-12) for name in LAYERS] + [(name, torch.float32, 1e-6) for name in ("2d", "timm's")]
"""Layer, dtype, and how far apart the values may lie."""


def make_layer(name: str, dtype: torch.dtype) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A layer with weights that are not 1 and 0, and for each step inputs far from zero and the output's gradients."""
    make, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    layer = make().to(dtype)
    for parameter in layer.parameters():
        parameter.data.normal_(generator=generator)
    draws = torch.randn(2 * STEPS, BATCH, *shape, generator=generator, dtype=torch.float64)
    return layer, list((5 + 2 * draws[:STEPS]).to(dtype)), list(draws[STEPS:].to(dtype))


def run_layer(layer: nn.Module, inputs: list[Tensor], slopes: list[Tensor], share: slice) -> list[Tensor]:
    """Outputs, input gradients, weight gradients and buffers of a few steps; the last with frozen statistics."""
    found = []
    for number, (x, slope) in enumerate(zip(inputs, slopes, strict=True)):
        x = x[share].clone().requires_grad_()
        layer.zero_grad()
        if number + 1 == STEPS:
            with frozen_statistics(layer):
                out = layer(x)
        else:
            out = layer(x)
        out.backward(slope[share])
        gradients = [parameter.grad.clone() for parameter in layer.parameters()]
        found += [out.detach(), x.grad, *gradients, *(buffer.clone() for buffer in layer.buffers())]
    return found


class Net(nn.Module):
    """A small backbone whose blocks are recomputed, and a head with a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Backbone("test_efficientnet", stages=())
        checkpoint_blocks(self.backbone.net, "test_efficientnet")
        self.head = nn.Sequential(nn.Linear(self.backbone.num_features, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)[1].mean(dim=(-2, -1))).squeeze(1)


def train_net(module: nn.Module, share: slice, world_size: int) -> list[Tensor]:
    """Losses and the final state of a few steps over a share of each batch.

    DistributedDataParallel takes the mean of the ranks' gradients: a rank's loss is its sum over the global batch size,
    times the number of ranks.
    """
    optimizer, device = torch.optim.SGD(module.parameters(), lr=0.05), next(module.parameters()).device
    generator = torch.Generator().manual_seed(2)
    found = []
    for _ in range(STEPS):
        images = torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64).to(device)
        optimizer.zero_grad()
        loss = (module(images[share]) - torch.arange(BATCH, device=device)[share] / BATCH).square().sum() / BATCH
        (loss * world_size).backward()
        optimizer.step()
        found.append(loss.detach())
    return [*found, *(value.clone() for value in module.state_dict().values())]


def work_in_group(rank: int, world_size: int, folder: Path) -> None:
    """Every case with so many ranks; what this rank found goes into files."""
    rendezvous = f"file://{folder}/rendezvous{world_size}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world_size)
    for share_name, counts in SHARES[world_size].items():
        share = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        found = {}
        for name, dtype, _ in KINDS:
            layer, inputs, slopes = make_layer(name, dtype)
            found[f"{name} {dtype}"] = run_layer(synchronise_norms(layer, CPU), inputs, slopes, share)
        if share_name == "uneven":
            net = nn.parallel.DistributedDataParallel(synchronise_norms(Net().double(), CPU), broadcast_buffers=False)
            found["net"] = train_net(net, share, world_size)
            del net
        torch.save(found, folder / f"{world_size} {share_name} {rank}.pt")
    single = synchronise_norms(nn.BatchNorm1d(3), CPU)
    try:
        single(torch.zeros(int(rank == 0), 3))
        message = "none"
    except ValueError as error:
        message = str(error)
    (folder / f"{world_size} single {rank}.txt").write_text(message, encoding="utf-8")
    torch.save(decide(Ranks(rank, world_size)), folder / f"{world_size} decided {rank}.pt")
    # As in test_losses_distributed: every user of the group goes before it, and no rank before the others are through.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def decide(ranks: Ranks) -> dict[str, list]:
    """Only rank 1 requests anything; all must learn of it after the same step."""
    decision, requests = SharedDecision(ranks), {2: SAVE, 4: STOP} if ranks.rank == 1 else {}
    answers = [decision.agree(requests.get(step, CONTINUE)) for step in range(6)]
    return {
        "answers": [*answers, decision.settle()],
        "objects": gather_objects({"rank": ranks.rank}, ranks),
        "rows": gather_rows(torch.tensor([ranks.rank, 10.0 * ranks.rank]), ranks).tolist(),
        "strided": gather_strided(np.arange(7)[ranks.rank :: ranks.world_size], 7, ranks).tolist(),
    }


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    work_in_group(rank, 4, Path(folder))
    if rank < 2:
        work_in_group(rank, 2, Path(folder))
    os._exit(0)  # gloo's threads may abort the interpreter at its end


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    forked()
    mp.start_processes(work, args=(str(folder),), nprocs=4, start_method="forkserver")
    return folder


def load_ranks(results: Path, world_size: int, share: str, case: str) -> list[list[Tensor]]:
    return [
        torch.load(results / f"{world_size} {share} {rank}.pt", weights_only=True)[case] for rank in range(world_size)
    ]


CASES = [pytest.param(world, share, id=f"{world} ranks, {share}") for world in SHARES for share in SHARES[world]]


@pytest.mark.parametrize(("world_size", "share"), CASES)
@pytest.mark.parametrize(("name", "dtype", "tolerance"), KINDS)
def test_a_layer_is_that_of_one_process_with_the_whole_batch(results, name, world_size, share, dtype, tolerance):
    ranks = load_ranks(results, world_size, share, f"{name} {dtype}")
    layer, inputs, slopes = make_layer(name, dtype)
    alone = run_layer(layer, inputs, slopes, slice(None))
    per_step = len(alone) // STEPS
    num_weights = len(list(layer.parameters()))
    for number, expected in enumerate(alone):
        found, place = [rank[number] for rank in ranks], number % per_step
        if place < 2:  # outputs and input gradients: each rank's share
            found = [torch.cat(found)]
        elif place < 2 + num_weights:  # gradients of the weights: sums over ranks
            found = [torch.stack(found).sum(dim=0)]
        for one in found:  # buffers: the same on every rank
            assert one.dtype == expected.dtype
            # Of the largest value: sums over the batch are added up in another order.
            assert (one - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))
    if layer.track_running_stats:
        for rank in ranks[1:]:
            assert all(torch.equal(*pair) for pair in zip(ranks[0][-3:], rank[-3:], strict=True))  # to the bit


@pytest.mark.parametrize("world_size", SHARES)
def test_a_network_with_recomputed_blocks_trains_as_in_one_process(results, world_size):
    ranks = load_ranks(results, world_size, "uneven", "net")
    alone = train_net(Net().double(), slice(None), 1)
    for step in range(STEPS):
        torch.testing.assert_close(sum(rank[step] for rank in ranks), alone[step], rtol=1e-12, atol=0)
    for rank in ranks:
        for found, expected in zip(rank[STEPS:], alone[STEPS:], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world_size", SHARES)
def test_a_single_value_over_all_ranks_is_an_error_on_every_rank(results, world_size):
    for rank in range(world_size):
        message = (results / f"{world_size} single {rank}.txt").read_text(encoding="utf-8")
        assert message.startswith("expected more than 1 value a channel over all ranks")


@pytest.mark.parametrize("world_size", SHARES)
def test_ranks_decide_and_gather_together(results, world_size):
    for rank in range(world_size):
        assert torch.load(results / f"{world_size} decided {rank}.pt", weights_only=True) == {
            "answers": [CONTINUE, CONTINUE, CONTINUE, SAVE, CONTINUE, STOP, CONTINUE],
            "objects": [{"rank": number} for number in range(world_size)],
            "rows": [[number, 10.0 * number] for number in range(world_size)],
            "strided": list(range(7)),
        }


def test_one_process_decides_at_once_and_gathers_itself():
    decision = SharedDecision(Ranks())
    assert [decision.agree(request) for request in (CONTINUE, STOP, SAVE)] == [CONTINUE, STOP, SAVE]
    assert decision.settle() == CONTINUE
    assert gather_objects("x", Ranks()) == ["x"]
    assert gather_rows(torch.tensor([1.0]), Ranks()).tolist() == [[1.0]]
    assert gather_strided(np.arange(3), 3, Ranks()).tolist() == [0, 1, 2]


def test_one_process_is_left_as_it_is():
    net = nn.Sequential(BatchNormAct2d(3), nn.BatchNorm1d(4))
    assert synchronise_norms(net, CPU) is net
    assert [type(layer) for layer in net] == [BatchNormAct2d, nn.BatchNorm1d]


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world size of two for what converts, not for what computes."""
    monkeypatch.setattr(sync_norm, "_world_size", lambda: 2)


def test_every_normalisation_of_a_backbone_is_synchronised_and_keeps_its_name_and_its_eval_mode(two_ranks):
    backbone, images = Backbone("test_efficientnet", stages=()).eval(), torch.randn(2, 3, 32, 32)
    names, expected = list(backbone.state_dict()), backbone(images)[1]
    backbone = copy.deepcopy(synchronise_norms(backbone, CPU))
    norms = [type(module) for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert set(norms) == {SynchronisedBatchNormAct2d}
    assert list(backbone.state_dict()) == names
    assert torch.equal(backbone(images)[1], expected)


def test_without_a_group_a_synchronised_layer_is_a_plain_one(two_ranks, monkeypatch):
    torch.manual_seed(0)
    plain = BatchNormAct2d(3)
    layer = synchronise_norms(copy.deepcopy(plain), CPU)
    monkeypatch.undo()
    images = torch.randn(4, 3, 5, 5)
    assert torch.equal(layer(images), plain(images))
    assert torch.equal(layer.running_var, plain.running_var)


def test_on_gpus_timms_layers_are_taken(two_ranks):
    converted = synchronise_norms(Backbone("test_efficientnet", stages=()), torch.device("cuda"))
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(module, nn.SyncBatchNorm) for module in norms)


def work_on_gpus(rank: int, folder: str, backend: str, world_size: int) -> None:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    net = convert_sync_batchnorm(Net().double().cuda())  # as `synchronise_norms` does from two ranks on
    net = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
    share = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    torch.save([value.cpu() for value in train_net(net, share, world_size)], f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "world_size"), [("nccl", 1), ("gloo", 2), ("nccl", 2)])
def test_ranks_on_gpus_train_as_one_process(backend, world_size, tmp_path):
    """Two processes on one GPU by gloo, which NCCL refuses; by NCCL where there are two GPUs."""
    if backend == "nccl" and torch.cuda.device_count() < world_size:
        pytest.skip("one GPU")
    forked()
    mp.start_processes(
        work_on_gpus, args=(str(tmp_path), backend, world_size), nprocs=world_size, start_method="forkserver"
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world_size)]
    alone = train_net(Net().double(), slice(None), 1)
    for step in range(STEPS):
        torch.testing.assert_close(sum(rank[step] for rank in ranks), alone[step], rtol=1e-6, atol=0)
    for found in ranks:
        for one, expected in zip(found[STEPS:], alone[STEPS:], strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-6, atol=1e-9)


def test_a_normalisation_that_cannot_be_synchronised_is_an_error(two_ranks):
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm3d(2))
    with pytest.raises(
        ValueError, match=r"^1: expected a batch normalisation of the classes BatchNorm1d, .*BatchNorm3d"
    ):
        synchronise_norms(net, CPU)
