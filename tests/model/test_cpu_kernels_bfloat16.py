"""The CPU kernels under bfloat16 autocast: float64's results rounded once, and nearer to them than ATen's own."""

import copy
from functools import partial

import numba
import numpy as np
import pytest
import timm
import torch
from kernel_checks import functions_of, gradients, pair, random_input, uses_kernels
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import Tensor, nn

from multiattn.model.cpu_arithmetic import narrow, silu_and_slope, silu_of, widen
from multiattn.model.cpu_layers import normalise_and_add, normalise_and_gate

HALF_UNIT = 2.0**-8
"""Relative spacing of bfloat16's numbers is 2^-8 to 2^-7; rounding is off by half of it at most."""
bfloat16 = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@numba.njit
def rounded(values, out):
    for place in range(len(values)):
        out[place] = narrow(values[place], out)


@numba.njit
def widened(values, out):
    for place in range(len(values)):
        out[place] = widen(values[place])


@numba.njit
def activated(values, silu, value, slope):
    for place in range(len(values)):
        silu[place] = silu_of(values[place])
        value[place], slope[place] = silu_and_slope(values[place])


def test_rounding_and_widening_are_those_of_torch():
    """Ties to even, the largest numbers, denormal ones, infinities and NaN among them."""
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 2**32, 20000, dtype=np.uint64).astype(np.uint32)
    ties = (bits & 0xFFFF0000) | 0x8000
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-40, 1.0, 1.00390625], np.float32)
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32), special, special[:0]])
    values = values[~(np.isnan(values) & (values.view(np.uint32) != special[4:5].view(np.uint32)))]
    out, back = np.empty(len(values), np.uint16), np.empty(len(values), np.float32)
    rounded(values, out)
    expected = torch.from_numpy(values).bfloat16()
    numbers = ~np.isnan(values)
    assert np.array_equal(out[numbers], expected.view(torch.uint16).numpy()[numbers])
    widened(out, back)
    assert np.array_equal(back, expected.float().numpy(), equal_nan=True)


@pytest.mark.parametrize("limit", [1e-3, 1.0, 10.0, 80.0])
def test_silu_and_its_slope_are_those_of_float64(limit):
    z = np.linspace(-limit, limit, 4001, dtype=np.float32)
    out = np.empty((3, len(z)), np.float32)
    activated(z, *out)
    exact = z.astype(np.float64)
    s = 1 / (1 + np.exp(-exact))
    np.testing.assert_allclose(out[0], exact * s, rtol=2e-5 if limit > 20 else 2e-6, atol=1e-37)
    np.testing.assert_allclose(out[1], exact * s, rtol=2e-5 if limit > 20 else 2e-6, atol=1e-37)
    np.testing.assert_allclose(out[2], s + exact * s * (1 - s), rtol=2e-5, atol=1e-6)


def test_silu_of_what_is_no_number_is_none():
    out = np.empty((3, 16), np.float32)
    activated(np.full(16, np.nan, np.float32), *out)
    assert np.isnan(out).all()


def assert_rounded_once(actual: Tensor, exact: Tensor) -> None:
    """Within bfloat16's rounding of float64's result, and of what float32 sums leave of the largest."""
    assert actual.dtype == torch.bfloat16
    assert actual.shape == exact.shape
    slack = HALF_UNIT * exact.abs() + 2e-5 * max(1.0, float(exact.abs().max()))
    assert bool(((actual.double() - exact).abs() <= slack).all())


def layer_of(make) -> nn.Module:
    """A layer with weights that are bfloat16's numbers, so that casting them changes nothing."""
    torch.manual_seed(0)
    layer = make()
    for module in layer.modules():
        if isinstance(module, BatchNormAct2d):
            nn.init.normal_(module.weight, 1.0, 0.3), nn.init.normal_(module.bias)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    return layer.train()


SINGLE = [
    pytest.param(lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False), id="3 x 3"),
    pytest.param(lambda c: nn.Conv2d(c, c, 5, padding=2, groups=c, bias=False), id="5 x 5"),
    pytest.param(lambda c: Conv2dSame(c, c, 3, stride=2, groups=c, bias=False), id="3 x 3, stride 2"),
    pytest.param(lambda c: Conv2dSame(c, c, 5, stride=2, groups=c, bias=False), id="5 x 5, stride 2"),
    pytest.param(lambda c: BatchNormAct2d(c, act_layer=nn.SiLU, eps=1e-3), id="normalisation"),
    pytest.param(lambda c: SqueezeExcite(c, rd_channels=2, act_layer=nn.SiLU), id="gate"),
]
SHAPES = [
    pytest.param((2, 7, 9, 12), False, id="odd and even"),
    pytest.param((2, 7, 9, 12), True, id="contiguous"),
    pytest.param((3, 130, 8, 7), False, id="more channels than a block"),
    pytest.param((1, 24, 70, 61), False, id="several chunks"),
]


@pytest.mark.parametrize(("shape", "contiguous"), SHAPES)
@pytest.mark.parametrize("make", SINGLE)
def test_a_layer_and_its_gradients_are_those_of_float64_rounded_once(make, shape, contiguous):
    plain, fast = pair(layer_of(partial(make, shape[1])))
    x = random_input(*shape, contiguous=contiguous).bfloat16()
    exact, exact_gradients = gradients(plain.double(), x.double())
    with bfloat16():
        assert uses_kernels(fast(x))
    found, found_gradients = gradients(fast, x, bfloat16())
    assert_rounded_once(found, exact)
    assert_rounded_once(found_gradients.pop("x"), exact_gradients.pop("x"))
    for name, gradient in found_gradients.items():
        assert gradient.dtype == torch.float32
        largest = max(1.0, float(exact_gradients[name].abs().max()))
        assert (gradient.double() - exact_gradients[name]).abs().max() <= 5e-5 * largest, name


@pytest.mark.parametrize("with_shortcut", [True, False])
def test_normalising_and_adding_round_once(with_shortcut):
    norm = layer_of(lambda: BatchNormAct2d(6, apply_act=False))
    x, shortcut = random_input(4, 6, 9, 8).bfloat16().requires_grad_(), random_input(4, 6, 9, 8, shift=1.0).bfloat16()
    exact = copy.deepcopy(norm).double()(x.detach().double()) + (shortcut.double() if with_shortcut else 0.0)
    found = normalise_and_add(x, norm, nn.Identity(), shortcut if with_shortcut else None)
    assert functions_of(found) == {"NormAdd"}
    assert_rounded_once(found.detach(), exact.detach())


def test_normalising_and_gating_round_once():
    parts = layer_of(lambda: nn.Sequential(BatchNormAct2d(6, act_layer=nn.SiLU), SqueezeExcite(6, rd_channels=2)))
    (norm, gate), (_, fast_gate) = parts, pair(parts)[1]
    x = random_input(4, 6, 9, 8).bfloat16().requires_grad_()
    exact = copy.deepcopy(parts).double()(x.detach().double())
    with bfloat16():
        found = normalise_and_gate(x, norm, nn.Identity(), fast_gate)
    assert functions_of(found) == {"NormSqueeze", "NormExcite"}
    assert_rounded_once(found.detach(), exact.detach())
    assert gate is not fast_gate


NETWORKS = ["tinynet_e", "test_efficientnet"]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_networks_gradients_are_as_near_to_float64s_as_atens(name):
    torch.manual_seed(0)
    plain, fast = pair(timm.create_model(name, num_classes=2, drop_path_rate=0.2).train())
    x = random_input(8, 3, 64, 64)
    exact_out, exact = gradients(copy.deepcopy(plain).double(), x.double())
    aten_out, aten = gradients(plain, x, bfloat16())
    out, found = gradients(fast, x, bfloat16())
    assert (out - exact_out).norm() <= 1.3 * (aten_out - exact_out).norm()
    total, usual = (sum(float((one[n] - exact[n]).square().sum()) for n in exact) ** 0.5 for one in (found, aten))
    assert total <= 1.1 * usual
    for buffer, expected in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[buffer], expected, rtol=0.05, atol=0.05)
        assert fast.state_dict()[buffer].dtype == expected.dtype


def test_a_block_stores_bfloat16_for_backward_and_float32_nowhere_but_in_small():
    block = InvertedResidual(6, 6, exp_ratio=4.0, act_layer=nn.SiLU, se_layer=SqueezeExcite)
    _, fast = pair(layer_of(lambda: block))
    x, kept = random_input(4, 6, 16, 16).bfloat16().requires_grad_(), []
    with bfloat16(), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = fast(x)
    assert out.dtype == torch.bfloat16
    large = [tensor for tensor in kept if tensor.numel() >= 4 * 24 * 16 * 16]
    assert len(large) >= 4
    assert {tensor.dtype for tensor in large} == {torch.bfloat16}


@pytest.mark.parametrize("kind", [InvertedResidual, DepthwiseSeparableConv])
def test_a_float32_shortcut_meets_a_bfloat16_sum_as_in_timm(kind):
    """The first block of a network may see float32: what comes out is float32, as torch adds them."""
    plain, fast = pair(layer_of(lambda: kind(6, 6, act_layer=nn.SiLU, se_layer=SqueezeExcite)))
    x = random_input(4, 6, 9, 8)
    with bfloat16():
        found, expected = fast(x), plain(x)
    assert uses_kernels(found)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_without_autocast_a_bfloat16_input_is_refused_as_atens_convolution_refuses_it():
    _, fast = pair(nn.Conv2d(4, 4, 3, groups=4, bias=False))
    with pytest.raises(RuntimeError, match=r"same|expected scalar type"):
        fast(random_input(1, 4, 5, 5).bfloat16())


@pytest.mark.parametrize("make", SINGLE)
def test_bits_are_the_same_each_time_and_with_every_number_of_threads(make):
    before = torch.get_num_threads()
    _, fast = pair(layer_of(partial(make, 6)))
    x, found = random_input(2, 6, 301, 203).bfloat16(), []
    try:
        for threads in (2, 2, 1):
            torch.set_num_threads(threads)
            out, found_gradients = gradients(copy.deepcopy(fast), x, bfloat16())
            found.append([out, *found_gradients.values()])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))
