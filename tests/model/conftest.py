"""One thread a test: the tensors are tiny, and other tests run beside these. Weights to start a backbone from."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def imagenet_state() -> dict[str, Tensor]:
    """A stand-in for tinynet_e's ImageNet weights with timm's naming, classifier included."""
    torch.manual_seed(5)
    return timm.create_model("tinynet_e", pretrained=False).state_dict()
