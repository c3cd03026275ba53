"""Crops become the network's input, and views of a crop become one logit."""

import copy

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiattn.experiments import get_experiment
from multiattn.model.diagnostics import AttentionStatistics
from multiattn.model.network import NetworkOutput, fake_logit, make_network
from multiattn.model.predict import VIEWS, forward_views, normalize_crops, predict_logits

CPU = torch.device("cpu")


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


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return make_network(get_experiment("demo", tiny=True).model, load_weights=False).eval()


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    return torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def logits_of(network: torch.nn.Module, crops: torch.Tensor, tta: str = "none", **more) -> np.ndarray:
    return predict_logits(network, crops.split(2), device=CPU, precision="fp32", tta=tta, **more)


@torch.inference_mode()
def test_flip_is_the_mean_of_two_forward_passes_and_one_view_has_the_bits_of_one(network, crops):
    by_hand = [
        torch.cat([fake_logit(network(normalize_crops(batch)).logits) for batch in of.split(2)]).double().numpy()
        for of in (crops, crops.flip(2))
    ]
    assert np.abs(by_hand[0] - by_hand[1]).max() > 1e-4, "the mirror image is another input"
    np.testing.assert_array_equal(logits_of(network, crops), by_hand[0])
    np.testing.assert_allclose(logits_of(network, crops, "flip"), np.mean(by_hand, axis=0), atol=1e-6)


def test_a_symmetric_crop_has_the_same_logit_with_its_mirror_image(network, crops):
    symmetric = torch.cat([crops[:, :, :32], crops[:, :, :32].flip(2)], dim=2)
    np.testing.assert_array_equal(logits_of(network, symmetric, "flip"), logits_of(network, symmetric))


@pytest.mark.parametrize("tta", VIEWS)
def test_who_watches_sees_each_crop_once_and_as_it_is(tta, network, crops):
    seen: list[tuple[torch.Tensor, NetworkOutput]] = []
    logits_of(network, crops, tta, watch=lambda *of_batch: seen.append(of_batch))
    assert torch.equal(torch.cat([pixels for pixels, _ in seen]), crops)
    logits = torch.cat([fake_logit(output.logits) for _, output in seen])
    np.testing.assert_array_equal(logits.double().numpy(), logits_of(network, crops))


def test_scales_show_a_smaller_and_a_larger_square_around_the_centre():
    """A slope stays a slope about the same centre, so much flatter or steeper; mirrored it falls."""
    slope = ((torch.arange(40) - 19.5) / 40).expand(2, 3, 40, 40)
    seen: list[torch.Tensor] = []

    def forward(inputs: torch.Tensor) -> NetworkOutput:
        seen.append(inputs)
        return NetworkOutput(torch.full((len(inputs), 2), float(len(seen))), None, None)

    logits, first = forward_views(forward, slope, "flip+scales")
    assert seen[0] is slope and first.logits[0, 0] == 1 and logits.shape == (2,)
    inside = slice(4, -4)  # beyond the crop its edge is mirrored
    for view, factor in zip(seen, (1, 0.9, 1.1, -1, -0.9, -1.1), strict=True):
        torch.testing.assert_close(view[..., inside], factor * slope[..., inside])
    assert seen[2].abs().max() <= slope.abs().max()


class NothingRead(TorchDispatchMode):
    """Refuse copies from the device, for which the host would wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given, made = ({t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)} for x in (args, out))
        assert not ("cuda" in given and "cpu" in made), f"{function.name()} reads from the device"
        return out


class EndError(Exception):
    pass


def test_no_batch_of_a_validation_waits_for_the_gpu(network):
    """On shapes alone, so without a GPU: whatever needs a value (`item`, boolean indexing) is an error there."""
    seen = []

    def batches():
        for _ in range(3):
            yield torch.zeros(2, 64, 64, 3, dtype=torch.uint8, device="cuda")
        raise EndError

    def watch(_, output):
        statistics.update(output.attention)
        seen.append(len(output.logits))

    network, statistics = copy.deepcopy(network), AttentionStatistics()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in network.modules():
            part._parameters = {
                name: value if value is None else torch.nn.Parameter(torch.empty(value.shape, device="cuda"))
                for name, value in part._parameters.items()
            }
            part._buffers = {
                name: torch.empty(value.shape, dtype=value.dtype, device="cuda")
                for name, value in part._buffers.items()
            }
        with NothingRead(), pytest.raises(EndError):
            predict_logits(network, batches(), device=torch.device("cuda"), precision="bf16", watch=watch)
    assert seen == [2, 2, 2]


@pytest.mark.parametrize("tta", VIEWS)
def test_views_in_bf16_are_those_of_float32(tta, network, crops):
    half = predict_logits(network, [crops], device=CPU, precision="bf16", tta=tta)
    np.testing.assert_allclose(half, logits_of(network, crops, tta), atol=0.02)
