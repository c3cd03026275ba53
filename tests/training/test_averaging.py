"""The moving average against hand arithmetic, its resumption to the bit, and the mean of saved weights."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from multiattn.config import ModelConfig
from multiattn.model.checkpoints import save_weights
from multiattn.model.network import BaselineNet
from multiattn.training.engine.averaging import average_of, load_average, moving_average


class Counter(nn.Module):
    """A weight, a running statistic, and a count."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([float(value)]))
        self.register_buffer("running_mean", torch.tensor([10.0 * value]))
        self.register_buffer("num_batches_tracked", torch.tensor(int(value)))

    def set(self, value: float) -> None:
        self.load_state_dict(Counter(value).state_dict())


def values(module: nn.Module) -> list[float]:
    return [float(value) for value in module.state_dict().values()]


def make_network() -> BaselineNet:
    torch.manual_seed(0)
    return BaselineNet(ModelConfig(network="baseline", backbone="tinynet_e", pretrained=False, drop_path_rate=0.0))


def train(network: nn.Module, average: ModelEmaV3 | None, updates: range) -> None:
    """So many updates, each by a batch of its own; `sgd` without momentum, so that nothing else is to be saved."""
    optimizer = create_optimizer_v2(network.train(), opt="momentum", lr=0.05, momentum=0.0)
    for update in updates:
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(update))
        optimizer.zero_grad()
        network(images).logits.square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update(network, step=update + 1)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        pytest.param(False, [1.0, 0.9 * 1 + 0.1 * 2, 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3], id="constant decay"),
        # 1 - 2^(-2/3) = 0.370039, then 1 - 3^(-2/3) = 0.519250
        pytest.param(True, [1.0, 1.629961, 2.288607], id="rising decay"),
    ],
)
def test_the_average_is_the_one_of_hand_arithmetic(warmup, expected):
    network = Counter(0.0)
    average = moving_average(network, decay=0.9, warmup=warmup)
    for update, value in enumerate(expected, start=1):
        network.set(update)
        average.update(network, step=update)
        assert values(average.module) == pytest.approx([value, 10 * value, update], rel=1e-6)


def test_a_decay_that_has_risen_stays_at_its_highest():
    network = Counter(0.0)
    average = moving_average(network, decay=0.9, warmup=True)
    network.set(1.0)
    average.update(network, step=33)  # 1 - 33^(-2/3) = 0.9028
    assert values(average.module) == pytest.approx([0.1, 1.0, 1])


def test_the_network_does_not_notice_its_average():
    plain, followed = make_network(), make_network()
    average = moving_average(followed, decay=0.9)
    assert same(average.module.state_dict(), followed.state_dict()), "before the first update"
    train(plain, None, range(3))
    train(followed, average, range(3))
    assert same(plain.state_dict(), followed.state_dict())
    assert not same(plain.state_dict(), average.module.state_dict())


def test_the_average_can_be_validated_with():
    network = make_network()
    average = moving_average(network, decay=0.5, warmup=False)
    train(network, average, range(3))
    images, name = torch.randn(2, 3, 32, 32), "backbone.net.bn1"
    assert not average.module.training and network.training
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    followed, kept = network.state_dict(), average.module.state_dict()
    assert kept[f"{name}.num_batches_tracked"] == followed[f"{name}.num_batches_tracked"] == 3
    assert not torch.equal(kept[f"{name}.running_var"], followed[f"{name}.running_var"])
    by_hand = make_network().eval()
    by_hand.load_state_dict(kept)
    assert torch.equal(average.module(images).logits, by_hand(images).logits)
    assert not torch.equal(average.module(images).logits, copy.deepcopy(network).eval()(images).logits)


@pytest.mark.parametrize("warmup", [False, True], ids=["constant decay", "rising decay"])
def test_a_run_that_continues_has_the_average_of_an_undisturbed_one_to_the_bit(warmup, tmp_path):
    undisturbed = make_network()
    expected = moving_average(undisturbed, decay=0.9, warmup=warmup)
    train(undisturbed, expected, range(5))
    killed = make_network()
    average = moving_average(killed, decay=0.9, warmup=warmup)
    train(killed, average, range(2))
    state = {"network": killed.state_dict(), "average": average.module.state_dict()}
    torch.save(state, tmp_path / "resume.pt")
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    continued = make_network()
    average = moving_average(continued, decay=0.9, warmup=warmup)
    continued.load_state_dict(state["network"])
    average.module.load_state_dict(state["average"])
    train(continued, average, range(2, 5))
    assert same(continued.state_dict(), undisturbed.state_dict())
    assert same(average.module.state_dict(), expected.module.state_dict())


def test_a_compiled_forward_is_followed():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.SiLU))
    average = moving_average(network, decay=0.9, warmup=False)
    network.compile(backend="eager")
    states = []
    for update in range(2):
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        network[0].weight.data -= network[0].weight.grad
        average.update(network, step=update + 1)
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    for name in ("0.weight", "1.running_mean"):
        assert not torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(average.module.state_dict()[name], 0.9 * states[0][name] + 0.1 * states[1][name])
    assert average.module[1].num_batches_tracked == 2


@pytest.fixture
def saved(tmp_path):
    """Files of counters with these values."""

    def save(*numbers: float) -> list:
        paths = [tmp_path / f"{place}.safetensors" for place, _ in enumerate(numbers)]
        for path, number in zip(paths, numbers, strict=True):
            save_weights(Counter(number), path, {})
        return paths

    return save


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        pytest.param([3.0], [3.0, 30.0, 3], id="one"),
        pytest.param([1.0, 2.0, 6.0], [3.0, 30.0, 6], id="three"),
        pytest.param([6.0, 2.0, 1.0], [3.0, 30.0, 1], id="the count is the last one's"),
        pytest.param([2.0, 2.0, 2.0], [2.0, 20.0, 2], id="of equals"),
    ],
)
def test_the_mean_of_saved_weights_is_uniform(saved, numbers, expected):
    network = Counter()
    load_average(network, saved(*numbers))
    assert values(network) == pytest.approx(expected)
    assert network.num_batches_tracked.dtype == torch.int64


def test_the_mean_is_taken_in_float64(tmp_path):
    paths = [tmp_path / f"{number}.safetensors" for number in range(20)]
    for number, path in enumerate(paths):
        save_weights({"weight": torch.tensor([1e8 if number == 0 else 1.0])}, path, {})
    assert average_of(paths)["weight"].item() == torch.tensor((1e8 + 19) / 20).item()
    assert average_of(paths)["weight"].dtype == torch.float32


def test_the_mean_of_one_file_is_that_file_to_the_bit(tmp_path):
    network, copied = make_network(), make_network()
    train(network, None, range(2))
    save_weights(network, tmp_path / "one.safetensors", {})
    load_average(copied, [tmp_path / "one.safetensors"])
    assert same(copied.state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param({"weight": torch.zeros(1)}, "2 missing", id="missing"),
        pytest.param({**Counter().state_dict(), "more": torch.zeros(1)}, r"1 unexpected \(more\)", id="unexpected"),
        pytest.param({**Counter().state_dict(), "weight": torch.zeros(2)}, "1 of another shape", id="another shape"),
    ],
)
def test_weights_of_another_network_are_an_error_and_change_nothing(saved, tmp_path, state, message):
    paths = saved(1.0)
    save_weights(state, tmp_path / "other.safetensors", {})
    network = Counter(7.0)
    with pytest.raises(ValueError, match=f"other.safetensors: cannot be averaged with .*{message}"):
        load_average(network, [*paths, tmp_path / "other.safetensors"])
    with pytest.raises(ValueError, match=f"other.safetensors: these are not the weights of this Counter: .*{message}"):
        load_average(network, [tmp_path / "other.safetensors"])
    assert values(network) == [7.0, 70.0, 7]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        pytest.param([], ValueError, "expected at least one weights file", id="no files"),
        pytest.param(["0", "gone"], FileNotFoundError, r"gone\.safetensors", id="one that is not there"),
    ],
)
def test_files_that_are_not_there_cannot_be_averaged(saved, tmp_path, names, error, message):
    saved(1.0)
    with pytest.raises(error, match=message):
        average_of([tmp_path / f"{name}.safetensors" for name in names])
