"""MTCNN's networks: the package's answers, and the same bits whatever the batch and the number of threads."""

import pytest
import torch
from facenet_pytorch.models.mtcnn import ONet, PNet, RNet
from torch import nn

from multiattn.video.detectors.mtcnn import LargestPixel, PatchNetwork, ProposalNetwork
from sums import machine_was_measured

BATCHES = [1, 2, 3, 5, 7, 8, 9, 20]
PATCH_NETWORKS = [pytest.param(RNet, 24, id="refine"), pytest.param(ONet, 48, id="output")]


def images(*shape: int) -> torch.Tensor:
    drawn = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return drawn.contiguous(memory_format=torch.channels_last)


def ours(network: nn.Module) -> nn.Module:
    return network.eval().to(memory_format=torch.channels_last)


@torch.inference_mode()
def answers_of(network: nn.Module, frames: torch.Tensor) -> list[torch.Tensor]:
    answers = network(frames)
    return [answers] if isinstance(answers, torch.Tensor) else answers


@pytest.mark.parametrize("size_hw", [(12, 12), (12, 14), (46, 90)])
def test_the_proposal_network_is_the_packages(size_hw):
    frames = images(2, 3, *size_hw)
    with torch.inference_mode():
        offsets, probabilities = PNet().eval()(frames)
        answers = ours(ProposalNetwork(PNet()))(frames)
    torch.testing.assert_close(answers[:, 1:], offsets, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.sigmoid(answers[:, 0]), probabilities[:, 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 9])
@pytest.mark.parametrize(("package", "side"), PATCH_NETWORKS)
def test_the_patch_networks_are_the_packages(package, side, batch):
    patches = images(batch, 3, side, side)
    with torch.inference_mode():
        *expected, probabilities = package().eval()(patches)
        scores, *answers = ours(PatchNetwork(package()))(patches)
    torch.testing.assert_close(scores, probabilities[:, 1], atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(answers, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "size_hw"),
    [
        pytest.param(3, (22, 22), id="the last window cut off"),
        pytest.param(3, (23, 9), id="all windows whole"),
        pytest.param(3, (3, 4), id="one window"),
        pytest.param(2, (8, 8), id="pairs"),
    ],
)
def test_pooling_is_torchs(side, size_hw):
    features = images(2, 5, *size_hw)
    expected = nn.MaxPool2d(side, stride=2, ceil_mode=True)(features)
    assert torch.equal(LargestPixel(side)(features), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("network", "size_hw"),
    [
        pytest.param(lambda: ProposalNetwork(PNet()), (12, 12), id="smallest proposals"),
        pytest.param(lambda: ProposalNetwork(PNet()), (12, 22), id="a wide film's smallest proposals"),
        pytest.param(lambda: ProposalNetwork(PNet()), (90, 70), id="proposals"),
        pytest.param(lambda: PatchNetwork(RNet()), (24, 24), id="refine"),
        pytest.param(lambda: PatchNetwork(ONet()), (48, 48), id="output"),
    ],
)
def test_an_answer_depends_on_its_image_alone(network, size_hw, thread_setter, threads):
    network, frames = ours(network()), images(max(BATCHES), 3, *size_hw)
    thread_setter(1)
    expected = answers_of(network, frames)
    thread_setter(threads)
    atol = 0.0 if machine_was_measured() else 1e-4
    for batch in BATCHES:
        for mine, all_of_them in zip(answers_of(network, frames[-batch:]), expected, strict=True):
            torch.testing.assert_close(mine, all_of_them[-batch:], rtol=0, atol=atol)
