"""Attention-guided data augmentation."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from multiattn.config import AgdaConfig
from multiattn.model.agda import (
    AttentionGuidedAugmentation,
    degrade,
    draw_by_mass,
    draw_uniform,
    gate_maps,
    gaussian_blur,
    mask_hard,
    mix_soft,
    unit_maps,
)


def images(batch=2, size=(20, 24)):
    return torch.rand(batch, 3, *size) * 2 - 1


def test_a_soft_mix_is_the_image_where_the_map_is_zero_and_the_degraded_copy_where_it_is_one():
    original, degraded = images(), images()
    a_star = torch.zeros(2, 1, 20, 24)
    a_star[..., 12:] = 1.0
    a_star[..., :6, 5] = 0.25
    mixed = mix_soft(original, degraded, a_star)
    assert torch.equal(mixed[..., 12:], degraded[..., 12:])
    assert torch.equal(mixed[..., :5], original[..., :5])
    expected = 0.75 * original[..., :6, 5] + 0.25 * degraded[..., :6, 5]
    torch.testing.assert_close(mixed[..., :6, 5], expected)


def test_a_hard_mask_erases_what_exceeds_the_threshold_only():
    original, a_star = images(1, (1, 3)), torch.tensor([0.4, 0.5, 0.6]).view(1, 1, 1, 3)
    masked = mask_hard(original, a_star, 0.5)
    assert torch.equal(masked[..., :2], original[..., :2])
    assert masked[..., 2].abs().max() == 0


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_the_whole_augmentation_touches_only_what_the_map_covers(mode):
    original = images(3, (32, 32))
    attention = torch.zeros(3, 2, 4, 4)
    attention[:, :, 0, 0] = torch.tensor([0.1, 1.0, 30.0])[:, None]
    result = AttentionGuidedAugmentation(AgdaConfig(mode=mode))(original, attention).images
    # Bilinear resizing carries a cell no further than half a cell into its neighbours: 8 + 4 pixels.
    assert torch.equal(result[..., 12:, :], original[..., 12:, :])
    assert torch.equal(result[..., :, 12:], original[..., :, 12:])
    corner = result[..., :4, :4]
    if mode == "hard":
        assert corner.abs().max() == 0
    else:
        torch.testing.assert_close(corner, degrade(original, 0.3, 7.0)[..., :4, :4])


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_an_all_zero_map_leaves_its_image_unchanged(mode):
    original, attention = images(), torch.rand(2, 3, 4, 4)
    attention[1] = 0
    result = AttentionGuidedAugmentation(AgdaConfig(mode=mode))(original, attention).images
    assert not torch.equal(result[0], original[0])
    assert torch.equal(result[1], original[1])


def test_the_map_that_was_degraded_is_named():
    original = images(16, (32, 32))
    attention = torch.zeros(16, 2, 2, 2)
    attention[:, 0, 0, 0] = attention[:, 1, 1, 1] = 1.0
    copies = AttentionGuidedAugmentation(AgdaConfig(mode="hard"))(original, attention, torch.Generator().manual_seed(0))
    assert set(copies.dropped.tolist()) == {0, 1}
    for copy, dropped in zip(copies.images, copies.dropped, strict=True):
        corners = copy[..., :4, :4].abs().max(), copy[..., -4:, -4:].abs().max()
        assert corners[dropped] == 0 < corners[1 - dropped]


def test_noise_falls_where_the_map_is_and_on_the_copy_only():
    quiet = torch.zeros(1, 3, 32, 32)
    attention = torch.zeros(1, 1, 4, 4)
    attention[..., 0, 0] = 1.0
    found = AttentionGuidedAugmentation(AgdaConfig(noise=0.1))(quiet, attention).images
    assert 0.02 < found[..., :4, :4].std() < 0.2
    assert found[..., 12:, :].abs().max() == 0
    assert quiet.abs().max() == 0


def test_noise_is_added_to_the_small_copy_and_scaled_up_with_it():
    config = AgdaConfig(resize_factor=0.5, resample="align-corners", noise=0.1)
    found = AttentionGuidedAugmentation(config)(torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 4, 4)).images
    neighbours = (found[..., 1:] * found[..., :-1]).mean() / found.square().mean()
    assert neighbours > 0.5  # 0 for noise drawn pixel by pixel
    small = 0.1 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=True)
    generator = torch.Generator().manual_seed(1)
    copy = degrade(torch.zeros(1, 3, 64, 64), 0.5, 7.0, align_corners=True, noise=0.1, generator=generator)
    torch.testing.assert_close(copy, expected)


def test_the_gate_is_drawn_once_a_batch_and_anew_for_the_next():
    images_, attention = images(1).expand(4, -1, -1, -1), torch.rand(1, 1, 5, 6).expand(4, -1, -1, -1)
    augment = AttentionGuidedAugmentation(AgdaConfig(gate=True))
    first, second = augment(images_, attention).images, augment(images_, attention).images
    assert torch.equal(first, first[:1].expand(4, -1, -1, -1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("slope", [3.0, 5.0])
def test_the_gate_keeps_zero_and_order_and_stays_below_one(slope):
    a_star = torch.linspace(0, 1, 11).view(1, 1, 1, 11)
    gated = gate_maps(a_star, 0.5, slope).flatten()
    assert gated[0] == 0
    assert (gated.diff() > 0).all()
    assert gated[-1] < 1
    # (s(1) - s(0)) / (1 - s(0)) by hand
    low, high = 1 / (1 + np.exp(0.5 * slope)), 1 / (1 + np.exp(-0.5 * slope))
    assert gated[-1].item() == pytest.approx((high - low) / (1 - low), abs=1e-6)


def test_each_map_is_scaled_to_a_maximum_of_one():
    maps = torch.rand(3, 1, 5, 5) * torch.tensor([1e-20, 1.0, 1e4]).view(3, 1, 1, 1)
    a_star = unit_maps(maps, (17, 23))
    assert a_star.shape == (3, 1, 17, 23)
    assert a_star.min() >= 0
    torch.testing.assert_close(a_star.amax((1, 2, 3)), torch.ones(3))


@pytest.mark.parametrize(
    ("draw", "weights"),
    [(draw_uniform, [1, 1, 1]), (draw_by_mass, [1, 2, 3])],
    ids=["uniform", "by mass: the root of the sum and 1"],
)
def test_maps_are_drawn_by_their_weights_differently_for_each_sample(draw, weights):
    attention = torch.tensor([0.0, 3.0, 8.0]).view(1, 3, 1, 1).expand(6000, 3, 1, 1)
    drawn = draw(attention, torch.Generator().manual_seed(3))
    counts = torch.bincount(drawn, minlength=3).double()
    expected = torch.tensor(weights, dtype=torch.float64) * 6000 / sum(weights)
    assert ((counts - expected) ** 2 / expected).sum() < 13.82  # chi-square, 2 degrees of freedom, p = 0.001
    assert torch.equal(draw(attention, torch.Generator().manual_seed(3)), drawn)


@pytest.mark.parametrize("sigma", [1.5, 7.0])
def test_the_blur_equals_that_of_scipy(sigma):
    picture = np.random.default_rng(0).normal(size=(60, 70))
    expected = gaussian_filter(picture, sigma, mode="mirror", truncate=3.0)
    found = gaussian_blur(torch.tensor(picture)[None, None], sigma)[0, 0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


@pytest.mark.parametrize("size", [(380, 380), (112, 112), (33, 20), (3, 5), (1, 1)])
def test_degrading_keeps_size_and_constant_images_at_any_size(size):
    degraded = degrade(torch.full((1, 3, *size), 0.3), 0.3, 7.0)
    assert degraded.shape == (1, 3, *size)
    torch.testing.assert_close(degraded, torch.full((1, 3, *size), 0.3))


def test_degrading_removes_detail_and_keeps_the_large_shapes():
    columns = torch.arange(380)
    detail = ((columns // 4) % 2).float().expand(1, 3, 380, 380)
    shapes = torch.cos(columns / 379 * np.pi).expand(1, 3, 380, 380)
    assert degrade(detail, 0.3, 7.0).std() < 0.02 * detail.std()
    assert (degrade(shapes, 0.3, 7.0) - shapes).abs().max() < 0.1


def test_no_gradient_flows_and_the_dtype_stays():
    original, attention = images().bfloat16(), torch.rand(2, 3, 4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = AttentionGuidedAugmentation(AgdaConfig())(original, attention).images
    assert not result.requires_grad
    assert result.dtype == torch.bfloat16


def test_an_empty_batch_stays_empty():
    result = AttentionGuidedAugmentation(AgdaConfig())(images(0), torch.rand(0, 3, 4, 4)).images
    assert result.shape == (0, 3, 20, 24)
