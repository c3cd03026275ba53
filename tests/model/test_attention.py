"""Attention maps; bilinear attention pooling against loops in float64."""

import numpy as np
import pytest
import torch

from multiattn.model.attention import (
    AttentionModule,
    MaskedAttentionModule,
    global_vector,
    normalized_average_pool,
    standardize,
    weighted_mean,
)


def pool_by_loops(features: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Eq. (2) written out; features (B, C, H, W), attention (B, M, H, W)."""
    batch, channels, height, width = features.shape
    result = np.zeros((batch, attention.shape[1], channels))
    for b in range(batch):
        for k in range(attention.shape[1]):
            total = np.zeros(channels)
            for m in range(height):
                for n in range(width):
                    total += features[b, :, m, n] * attention[b, k, m, n]
            length = np.sqrt((total**2).sum())
            result[b, k] = total / length if length > 0 else 0.0
    return result


@pytest.mark.parametrize(
    ("batch", "maps", "channels", "size"),
    [(2, 4, 5, (6, 7)), (1, 1, 1, (1, 1)), (3, 1, 8, (2, 5)), (0, 4, 5, (6, 7))],
    ids=["usual", "one of everything", "one map", "empty"],
)
def test_pooling_equals_the_equation_written_as_loops(batch, maps, channels, size):
    rng = np.random.default_rng(1)
    features = rng.normal(size=(batch, channels, *size))
    attention = rng.uniform(size=(batch, maps, *size))
    result = normalized_average_pool(torch.tensor(features), torch.tensor(attention))
    np.testing.assert_allclose(result.numpy(), pool_by_loops(features, attention), atol=1e-12)


def test_maps_are_resized_bilinearly_to_the_features():
    features = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    attention = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]], dtype=torch.float64)
    # Half-pixel centres: between two cells the weights are 1/4 and 3/4, beyond the outer ones the edge is held.
    row = np.array([0.0, 0.25, 0.75, 1.0])
    resized = (2 * row[:, None] + row[None])[None, None]
    expected = pool_by_loops(features.numpy(), resized)
    np.testing.assert_allclose(normalized_average_pool(features, attention).numpy(), expected, atol=1e-12)


def test_rows_are_unit_vectors_in_float32_under_autocast():
    features, attention = torch.randn(2, 16, 9, 9).bfloat16(), torch.rand(2, 4, 5, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = normalized_average_pool(features, attention)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=-1), torch.ones(2, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(result, normalized_average_pool(features.float(), attention.float()))


def test_an_all_zero_map_gives_a_zero_row_and_zero_gradient():
    features = torch.randn(1, 3, 4, 4, requires_grad=True)
    attention = torch.rand(1, 2, 4, 4)
    attention[:, 1] = 0
    attention.requires_grad_()
    result = normalized_average_pool(features, attention)
    (result * torch.tensor([[[1.0, 2.0, 3.0]]])).sum().backward()
    assert result[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert torch.isfinite(features.grad).all() and features.grad.abs().sum() > 0
    assert attention.grad[0, 1].abs().max() == 0
    assert attention.grad[0, 0].abs().sum() > 0


def test_the_gradient_is_that_of_finite_differences():
    features = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    attention = torch.rand(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalized_average_pool, (features, attention))


def test_the_global_vector_pools_with_the_sum_of_all_maps():
    last, attention = torch.randn(2, 6, 3, 3), torch.rand(2, 4, 3, 3)
    expected = pool_by_loops(last.double().numpy(), attention.double().numpy().sum(axis=1, keepdims=True))[:, 0]
    np.testing.assert_allclose(global_vector(last, attention).numpy(), expected, atol=1e-5)


def test_a_texture_a_map_is_pooled_under_its_own_map():
    rng = np.random.default_rng(4)
    features, attention = rng.normal(size=(2, 3, 5, 6, 7)), rng.uniform(size=(2, 3, 6, 7))
    found = normalized_average_pool(torch.tensor(features), torch.tensor(attention)).numpy()
    for k in range(3):
        expected = pool_by_loops(features[:, k], attention[:, k : k + 1])[:, 0]
        np.testing.assert_allclose(found[:, k], expected, atol=1e-12)


def test_the_weighted_mean_is_numpys_average_and_the_plain_mean_under_an_empty_map():
    rng = np.random.default_rng(5)
    features, attention = rng.normal(size=(2, 3, 4, 5)), rng.uniform(size=(2, 2, 4, 5))
    attention[1, 1] = 0
    found = weighted_mean(torch.tensor(features), torch.tensor(attention)).numpy()
    for b in range(2):
        for k in range(2):
            weights = attention[b, k] if attention[b, k].any() else np.ones((4, 5))
            expected = np.average(features[b].reshape(3, -1), axis=1, weights=weights.ravel())
            np.testing.assert_allclose(found[b, k], expected, atol=1e-5)


def test_standardised_channels_have_mean_zero_and_deviation_one():
    maps = torch.tensor(np.random.default_rng(6).normal(3.0, 5.0, size=(2, 3, 6, 6)))
    found = standardize(maps).numpy()
    np.testing.assert_allclose(found.mean(axis=(2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=(2, 3), ddof=1), 1, atol=1e-6)
    assert standardize(torch.full((1, 1, 4, 4), 2.0)).abs().max() == 0


@pytest.mark.parametrize("num_maps", [1, 4])
def test_attention_maps_are_non_negative_and_keep_the_grid(num_maps):
    maps = AttentionModule(6, num_maps)(torch.randn(3, 6, 5, 7))
    assert maps.shape == (3, num_maps, 5, 7)
    assert maps.min() == 0 and maps.max() > 0


@pytest.mark.parametrize(("grid", "silent"), [(24, {0, 1, 22, 23}), (23, {0, 1, 22}), (16, {0, 1, 15})])
def test_the_released_attention_is_zero_at_the_border(grid, silent):
    maps = MaskedAttentionModule(6, 3)(torch.randn(2, 6, grid, grid))
    dark = (maps == 0).all(dim=1).all(dim=0)
    assert set(torch.nonzero(dark.all(dim=1)).flatten().tolist()) == silent
    assert set(torch.nonzero(dark.all(dim=0)).flatten().tolist()) == silent
    inside = [i for i in range(grid) if i not in silent]
    assert maps[:, :, inside][..., inside].min() > 0
