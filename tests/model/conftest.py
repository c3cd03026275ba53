"""The same random numbers in every test, and weights to start a backbone from."""

import pytest
import timm
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def imagenet_state() -> dict[str, Tensor]:
    """A stand-in for tinynet_e's ImageNet weights with timm's naming, classifier included."""
    torch.manual_seed(5)
    return timm.create_model("tinynet_e", pretrained=False).state_dict()
