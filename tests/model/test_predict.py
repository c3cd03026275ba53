"""Crops become the network's input."""

import numpy as np
import pytest
import torch

from multiattn.model.predict import normalize_crops


def test_a_crop_is_normalised_with_mean_half_and_deviation_half():
    crops = torch.arange(256, dtype=torch.uint8).repeat(3)[: 2 * 8 * 16 * 3].reshape(2, 8, 16, 3)
    expected = ((crops.numpy().astype(np.float64) / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2)
    result = normalize_crops(crops)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (1, 1, 1, 3), (2, 5, 7, 3)], ids=["empty", "one pixel", "oblong"])
def test_the_channels_come_second(shape):
    batch, height, width, _ = shape
    assert normalize_crops(torch.zeros(shape, dtype=torch.uint8)).shape == (batch, 3, height, width)


@pytest.mark.parametrize(
    "crops",
    [torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, 3, dtype=torch.uint8)],
    ids=["float", "channels first", "one image"],
)
def test_other_inputs_are_refused_with_what_was_found(crops):
    with pytest.raises(ValueError, match=r"expected uint8 \(B, H, W, 3\), found torch\."):
        normalize_crops(crops)
