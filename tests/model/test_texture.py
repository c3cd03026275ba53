"""The texture block in both forms."""

import numpy as np
import pytest
import torch
from torch import nn

from multiattn.model.texture import GroupedTextureEnhancement, TextureEnhancement, texture_residual


@pytest.mark.parametrize("size", [(95, 95), (8, 8), (9, 7)], ids=["B4 at 380", "even", "odd"])
def test_a_constant_feature_map_has_no_texture(size):
    residual, pooled = texture_residual(torch.full((1, 2, *size), 3.7, dtype=torch.float64), (4, 4))
    assert residual.abs().max() < 1e-12
    torch.testing.assert_close(pooled, torch.full((1, 2, 4, 4), 3.7, dtype=torch.float64))


def test_a_linear_ramp_has_no_texture_away_from_the_border():
    ramp = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    residual, _ = texture_residual(ramp, (8, 8))
    assert residual[..., 4:-4].abs().max() < 1e-5


def test_the_pooled_map_holds_the_mean_of_each_patch():
    features = np.random.default_rng(0).normal(size=(2, 3, 12, 8))
    _, pooled = texture_residual(torch.tensor(features), (3, 2))
    expected = features.reshape(2, 3, 3, 4, 2, 4).mean(axis=(3, 5))
    np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-12)


def test_a_fine_pattern_passes_the_residual_unchanged():
    pattern = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)[None, None]
    residual, pooled = texture_residual(pattern, (4, 4))
    torch.testing.assert_close(residual, pattern)
    assert pooled.abs().max() == 0


def test_each_dense_layer_sees_everything_before_it():
    block = TextureEnhancement(5, 4)
    convolutions = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.in_channels for conv in convolutions] == [5, 10, 15]
    assert [conv.kernel_size for conv in convolutions] == [(3, 3)] * 3
    seen = []
    for conv in convolutions:
        conv.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    textural, _ = block(torch.randn(2, 5, 8, 8), torch.rand(2, 4, 2, 2))
    assert textural.shape == (2, block.out_channels, 8, 8)
    assert textural is seen[-1][1]
    for layer in (1, 2):
        # Behind its own BN-ReLU a layer's last channels are the output of the layer before it.
        norm = block.layers[layer].norm
        made = seen[layer - 1][1]
        scaled = (made - made.mean((0, 2, 3), keepdim=True)) / (
            made.var((0, 2, 3), keepdim=True, unbiased=False) + norm.eps
        ).sqrt()
        torch.testing.assert_close(seen[layer][0][:, -5:], scaled.relu(), atol=1e-5, rtol=1e-4)


def test_each_map_has_a_texture_of_its_own_that_the_others_do_not_touch():
    torch.manual_seed(0)
    block = GroupedTextureEnhancement(5, 3).eval()
    features, attention = torch.randn(2, 5, 8, 8), torch.rand(2, 3, 4, 4)
    before, pooled = block(features, attention)
    assert before.shape == (2, 3, 5, 8, 8)
    assert pooled.shape == (2, 5, 4, 4)
    changed = attention.clone()
    changed[:, 1] *= 3
    after, _ = block(features, changed)
    assert torch.equal(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.equal(after[:, 1], before[:, 1])


def test_the_grouped_texture_trains_nothing_through_the_attention():
    attention = torch.rand(2, 3, 4, 4, requires_grad=True)
    textural, _ = GroupedTextureEnhancement(5, 3)(torch.randn(2, 5, 8, 8), attention)
    assert textural.requires_grad
    textural.sum().backward()
    assert attention.grad is None
