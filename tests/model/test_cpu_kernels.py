"""The CPU kernels of training against ATen's: outputs, gradients, statistics, and when they stand aside."""

import copy
import os
import pickle
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import timm
import torch
from kernel_checks import assert_close, assert_same_training, functions_of, gradients, pair, random_input, uses_kernels
from timm.layers import BatchNormAct2d
from timm.layers.conv2d_same import Conv2dSame
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import nn

from multiattn.model import cpu_layers
from multiattn.model.cpu_layers import speed_up_cpu_training

SHAPES = [
    pytest.param((2, 7, 9, 12), False, id="odd and even"),
    pytest.param((2, 7, 9, 12), True, id="contiguous"),
    pytest.param((1, 1, 5, 6), False, id="one image, one channel"),
    pytest.param((3, 130, 8, 7), False, id="more channels than two blocks"),
    pytest.param((2, 3, 1, 1), False, id="one pixel"),
    pytest.param((1, 24, 70, 61), False, id="several chunks"),
]


@pytest.mark.parametrize("same", [pytest.param(True, id="SAME"), pytest.param(False, id="symmetric")])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize(("shape", "contiguous"), SHAPES)
def test_the_depthwise_convolution_and_its_gradients_are_those_of_aten(shape, contiguous, size, stride, same):
    options = {"stride": stride, "groups": shape[1], "bias": False}
    if not same:
        options["padding"] = size // 2
    plain, fast = pair((Conv2dSame if same else nn.Conv2d)(shape[1], shape[1], size, **options))
    x = random_input(*shape, contiguous=contiguous)
    assert uses_kernels(fast(x))
    assert_same_training(plain, fast, x)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(nn.Conv2d(4, 4, 3, groups=4), id="bias"),
        pytest.param(nn.Conv2d(4, 4, 7, groups=4, bias=False), id="7 x 7"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=4, bias=False), id="two outputs a channel"),
        pytest.param(nn.Conv2d(4, 4, 3, bias=False), id="dense"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4, dilation=2, bias=False), id="dilated"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4, padding="same", bias=False), id="padding by name"),
        pytest.param(nn.Conv2d(4, 4, 3, groups=4, padding=1, padding_mode="reflect", bias=False), id="reflected"),
        pytest.param(BatchNormAct2d(4, act_layer=nn.ReLU), id="ReLU"),
        pytest.param(BatchNormAct2d(4, apply_act=False), id="no activation"),
        pytest.param(nn.BatchNorm2d(4), id="plain batch norm"),
    ],
)
def test_layers_the_kernels_do_not_know_stay_what_they_are(layer):
    assert type(speed_up_cpu_training(copy.deepcopy(layer))) is type(layer)


@pytest.mark.parametrize(("shape", "contiguous"), [case for case in SHAPES if case.id != "one pixel"])
@pytest.mark.parametrize("scale, shift", [pytest.param(1.0, 0.0, id="centred"), pytest.param(0.5, 30.0, id="far off")])
def test_batch_norm_with_silu_and_its_gradients_are_those_of_aten(shape, contiguous, scale, shift):
    layer = BatchNormAct2d(shape[1], act_layer=nn.SiLU, eps=1e-3)
    nn.init.normal_(layer.weight, 1.0, 0.3)
    nn.init.normal_(layer.bias)
    plain, fast = pair(layer)
    x = random_input(*shape, contiguous=contiguous, scale=scale, shift=shift)
    assert uses_kernels(fast(x))
    assert_same_training(plain, fast, x)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
def test_the_running_statistics_follow_as_in_torch(momentum):
    plain, fast = pair(BatchNormAct2d(5, act_layer=nn.SiLU, momentum=momentum))
    for step in range(3):
        x = random_input(2, 5, 6, 7, scale=1.0 + step, shift=float(step))
        plain(x), fast(x)
    assert int(fast.num_batches_tracked) == int(plain.num_batches_tracked) == 3
    torch.testing.assert_close(fast.running_mean, plain.running_mean)
    torch.testing.assert_close(fast.running_var, plain.running_var)
    if momentum == 0.0:
        assert torch.equal(fast.running_mean, torch.zeros(5))
        assert torch.equal(fast.running_var, torch.ones(5))


def test_silu_keeps_its_limits_and_lets_nan_through():
    _, fast = pair(BatchNormAct2d(1, act_layer=nn.SiLU))
    nn.init.constant_(fast.weight, 200.0)
    x = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2).requires_grad_()
    out = fast(x).detach()
    assert out[0, 0, 0, 1] == pytest.approx(200.0, rel=1e-3)
    assert out[0, 0, 0, 0] == pytest.approx(0.0, abs=1e-30)
    assert torch.isnan(fast(torch.tensor([float("nan"), 1.0]).view(1, 1, 1, 2))).all()


def test_one_value_a_channel_is_refused_as_torch_refuses_it():
    _, fast = pair(BatchNormAct2d(3, act_layer=nn.SiLU))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast(torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize(("shape", "contiguous"), SHAPES)
def test_squeeze_and_excitation_and_its_gradients_are_those_of_timm(shape, contiguous):
    plain, fast = pair(SqueezeExcite(shape[1], rd_channels=2, act_layer=nn.SiLU))
    x = random_input(*shape, contiguous=contiguous)
    assert uses_kernels(fast(x))
    assert_same_training(plain, fast, x)


def block(kind: type[nn.Module], *, channels: int = 6, out: int = 6, **options) -> nn.Module:
    """A timm block with SiLU, and squeeze and excitation unless told otherwise; weights drawn, normalisations too."""
    torch.manual_seed(0)
    options = {"act_layer": nn.SiLU, "se_layer": partial(SqueezeExcite, rd_ratio=0.5), "pad_type": "same", **options}
    made = kind(channels, out, **options)
    for norm in made.modules():
        if isinstance(norm, BatchNormAct2d):
            nn.init.normal_(norm.weight, 1.0, 0.3), nn.init.normal_(norm.bias)
    return made.train()


WHOLE = {"DepthwiseConvolution", "NormSqueeze", "NormExcite", "NormAdd"}
BLOCKS = [
    pytest.param(block(InvertedResidual, exp_ratio=4.0), {*WHOLE, "NormSiLU"}, id="inverted residual"),
    pytest.param(block(InvertedResidual, stride=2, out=7), {*WHOLE, "NormSiLU"}, id="strided, other channels"),
    pytest.param(block(InvertedResidual, noskip=True, dw_kernel_size=5), {*WHOLE, "NormSiLU"}, id="no shortcut"),
    pytest.param(block(InvertedResidual, drop_path_rate=0.5), {*WHOLE, "NormSiLU"}, id="stochastic depth"),
    pytest.param(block(InvertedResidual, se_layer=None), {"DepthwiseConvolution", "NormSiLU", "NormAdd"}, id="no gate"),
    pytest.param(block(DepthwiseSeparableConv), WHOLE, id="separable"),
    pytest.param(block(DepthwiseSeparableConv, drop_path_rate=0.5), WHOLE, id="separable, stochastic depth"),
    pytest.param(block(DepthwiseSeparableConv, pw_act=True), {*WHOLE, "NormSiLU"} - {"NormAdd"}, id="two activations"),
    pytest.param(
        block(InvertedResidual, act_layer=nn.ReLU), {"DepthwiseConvolution", "NormAdd", "Squeeze", "Excite"}, id="ReLU"
    ),
]


@pytest.mark.parametrize(("layer", "functions"), BLOCKS)
def test_a_block_and_its_gradients_are_those_of_timm(layer, functions):
    plain, fast = pair(copy.deepcopy(layer))
    x = random_input(4, 6, 9, 8)
    assert functions_of(fast(x)) == functions
    fast.load_state_dict(plain.state_dict())
    assert_same_training(plain, fast, x)
    reference = copy.deepcopy(plain).double()
    plain.load_state_dict(reference.state_dict())
    gradients(plain, x)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(fast.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("watched", ["bn2", "se", "se.conv_reduce", "bn3", "drop_path"])
def test_a_hook_on_a_part_of_a_block_is_called_as_ever(watched):
    plain, fast = pair(block(InvertedResidual, drop_path_rate=0.5))
    x, seen = random_input(4, 6, 9, 8), []
    for module in (plain, fast):
        torch.manual_seed(5)
        module.get_submodule(watched).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        module(x)
    assert len(seen) == 2
    assert_close(seen[1].detach(), seen[0].detach())


@pytest.mark.parametrize("kind", [InvertedResidual, DepthwiseSeparableConv])
def test_a_block_with_space_to_depth_stays_what_it_is(kind):
    layer = block(kind, s2d=1, out=24)
    assert type(speed_up_cpu_training(copy.deepcopy(layer))) is kind


LAYERS = [
    pytest.param(nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), id="convolution"),
    pytest.param(Conv2dSame(6, 6, 5, stride=2, groups=6, bias=False), id="SAME convolution"),
    pytest.param(BatchNormAct2d(6, act_layer=nn.SiLU), id="normalisation"),
    pytest.param(SqueezeExcite(6, rd_channels=2, act_layer=nn.SiLU), id="gate"),
    pytest.param(block(InvertedResidual), id="inverted residual"),
    pytest.param(block(DepthwiseSeparableConv), id="separable"),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_evaluation_without_gradients_is_timms_bit_for_bit(layer):
    plain, fast = pair(copy.deepcopy(layer).eval())
    x = random_input(2, 6, 9, 8)
    with torch.no_grad():
        assert torch.equal(fast(x), plain(x))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["float64", "bfloat16 weights", "float16 by autocast"])
def test_what_the_kernels_do_not_serve_takes_timms_path(layer, kind):
    plain, fast = pair(copy.deepcopy(layer))
    x = random_input(2, 6, 9, 8)
    if not kind.endswith("autocast"):
        dtype = torch.float64 if kind == "float64" else torch.bfloat16
        plain, fast, x = plain.to(dtype), fast.to(dtype), x.to(dtype)
    with torch.autocast("cpu", dtype=torch.float16, enabled=kind.endswith("autocast")):
        # A block's normalisations have float32 weights and see float32 unless a convolution came before.
        out, expected = (
            fast(x.half() if kind.endswith("autocast") else x),
            plain(x.half() if kind.endswith("autocast") else x),
        )
    assert not uses_kernels(out)
    assert torch.equal(out, expected)


def test_a_normalisation_frozen_in_evaluation_mode_is_timms_and_hands_gradients_on():
    plain, fast = pair(BatchNormAct2d(6, act_layer=nn.SiLU).eval())
    x = random_input(2, 6, 9, 8)
    assert not uses_kernels(fast(x))
    assert torch.equal(gradients(fast, x)[1]["x"], gradients(plain, x)[1]["x"])
    assert torch.equal(fast.running_mean, torch.zeros(6))


@pytest.mark.parametrize("layer", LAYERS)
def test_copies_and_pickles_train_alike(layer):
    _, fast = pair(copy.deepcopy(layer))
    x = random_input(2, 6, 9, 8)
    _, expected = gradients(copy.deepcopy(fast), x)
    _, actual = gradients(pickle.loads(pickle.dumps(fast)), x)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_frozen_layer_still_hands_its_gradient_on(layer):
    plain, fast = pair(copy.deepcopy(layer).requires_grad_(False))
    x = random_input(2, 6, 9, 8)
    assert_close(gradients(fast, x)[1]["x"], gradients(plain, x)[1]["x"])


def network(name: str = "tinynet_e") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=2).train()


@pytest.mark.parametrize("name", ["tinynet_e", "tf_efficientnet_lite0", "test_efficientnet"])
def test_a_whole_network_trains_as_before(name):
    plain, fast = pair(network(name))
    assert {k: v.shape for k, v in fast.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    x = random_input(4, 3, 64, 64)
    out, actual = gradients(fast, x)
    reference_out, reference = gradients(copy.deepcopy(plain).double(), x.double())
    _, expected = gradients(plain, x)
    assert_close(out, reference_out.float(), 1e-4)
    # Normalising by few values amplifies rounding: what counts is float64, and how far ATen's float32 is from it.
    for parameter, gradient in reference.items():
        error, usual = ((found[parameter] - gradient).norm() for found in (actual, expected))
        assert error <= 1e-4 * gradient.norm() + 3 * usual + 1e-6, parameter
    for buffer, expected_buffer in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[buffer], expected_buffer, rtol=1e-4, atol=1e-5)


def test_every_layer_of_an_efficientnet_the_kernels_know_is_changed():
    with torch.device("meta"):
        fast = speed_up_cpu_training(timm.create_model("tf_efficientnet_b4"))
    kinds = [type(layer) for layer in fast.modules()]
    assert kinds.count(cpu_layers.CpuConv2d) + kinds.count(cpu_layers.CpuConv2dSame) == 32
    assert kinds.count(cpu_layers.CpuConv2dSame) == 4
    assert kinds.count(cpu_layers.CpuBatchNormSiLU) == 64
    assert kinds.count(cpu_layers.CpuSqueezeExcite) == 32
    assert kinds.count(cpu_layers.CpuInvertedResidual) + kinds.count(cpu_layers.CpuDepthwiseSeparableConv) == 32


def test_doing_it_twice_changes_nothing_more():
    fast = speed_up_cpu_training(network())
    kinds = [type(layer) for layer in fast.modules()]
    assert [type(layer) for layer in speed_up_cpu_training(fast).modules()] == kinds


def test_an_exported_network_does_not_see_the_kernels():
    plain, fast = pair(network("test_efficientnet"))
    x = random_input(2, 3, 64, 64)
    with torch.no_grad():
        exported = torch.export.export(fast.eval(), (x,)).module()
        assert_close(exported(x), plain.eval()(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_results_have_the_same_bits_each_time_and_with_every_number_of_threads(layer, thread_setter):
    _, fast = pair(copy.deepcopy(layer))
    x = random_input(2, 6, 301, 203)
    found = []
    # Inside a gate and a block are products of ATen's, whose sums depend on the number of threads.
    for threads in (2, 2, 1) if isinstance(layer, nn.Conv2d | BatchNormAct2d) else (2, 2, 2):
        thread_setter(threads)
        out, found_gradients = gradients(copy.deepcopy(fast), x)
        found.append([out, *found_gradients.values()])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_an_empty_batch_and_a_tensor_of_other_rank_are_torchs_business():
    plain, fast = pair(nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False))
    assert fast(torch.zeros(0, 3, 4, 4)).shape == plain(torch.zeros(0, 3, 4, 4)).shape
    x = torch.from_numpy(np.ones((3, 4, 4), np.float32))
    assert torch.equal(fast(x), plain(x))


def test_omp_num_threads_still_counts_after_the_first_kernel():
    code = """
import torch
from timm.layers import BatchNormAct2d
from multiattn.model.cpu_layers import speed_up_cpu_training
layer = speed_up_cpu_training(BatchNormAct2d(4, act_layer=torch.nn.SiLU))
layer(torch.randn(2, 4, 8, 8))
print(torch.get_num_threads())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
