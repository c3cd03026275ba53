"""`bench train` and `infer`: both sides compute the same thing, and the table shows what they took."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiattn.bench.options import Beside
from multiattn.bench.train import (
    Comparison,
    Timing,
    compare,
    comparison_lines,
    network_flops,
    network_traffic,
    training_rate,
)
from multiattn.bench.train_sides import (
    PIECES,
    SIDES,
    Task,
    joint_backward,
    make_plain,
    measured_bandwidth,
    measured_ceiling,
    never_waiting,
    settle_statistics,
    summed_products,
    write_weights,
)
from multiattn.config import AgdaConfig, DataConfig, Experiment, LossConfig, ModelConfig
from multiattn.config.model import HALF
from multiattn.experiments import baseline, get_experiment, official
from multiattn.model.describe import describe_network
from multiattn.model.network import make_network
from multiattn.model.predict import normalize_crops
from multiattn.runtime.devices import seed_everything
from multiattn.stages.bench import main
from multiattn.training.engine.memory import Moved, on_shapes
from multiattn.training.engine.step import TrainingStep, backward_passes

PAPERS_RANGE = {"input_mean": HALF, "input_std": HALF}
TINY = Experiment(
    name="tiny",
    model=ModelConfig(backbone="tinynet_e", pretrained=False, **PAPERS_RANGE),
    data=DataConfig(image_size=96, batch_size=4),
)
TOKENS = dataclasses.replace(TINY, model=ModelConfig(backbone="test_vit", pretrained=False))
OFFICIAL = official(TINY)
OFFICIAL = dataclasses.replace(OFFICIAL, model=dataclasses.replace(OFFICIAL.model, padding="dynamic"))


@pytest.fixture(autouse=True)
def denormals_count():
    """As a process starts; a test before this one may have flushed them."""
    torch.set_flush_denormal(False)


def batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    crops = torch.randint(0, 256, (size, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return crops, torch.arange(size) % 2


def both_sides(experiment: Experiment) -> tuple[TrainingStep, TrainingStep]:
    """Two steps of equal weights, ours and the plain one."""
    ours, other = TrainingStep(experiment, load_weights=False), TrainingStep(experiment, load_weights=False)
    other.load_state_dict(ours.state_dict())
    return ours, make_plain(other)


CASES = pytest.mark.parametrize(
    "experiment",
    [
        pytest.param(TINY, id="paper"),
        pytest.param(OFFICIAL, id="official, with a loss over both passes"),
        pytest.param(baseline(TINY), id="baseline"),
        pytest.param(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, num_maps=1)), id="one map"),
        pytest.param(
            dataclasses.replace(TINY, loss=LossConfig(auxiliary="ams"), agda=AgdaConfig(mode="hard")),
            id="margin loss, hard AGDA",
        ),
        pytest.param(TOKENS, id="a vision transformer"),
    ],
)


@CASES
def test_both_sides_compute_the_same_loss_gradients_and_logits(experiment):
    steps = both_sides(experiment)
    crops, labels = batch()
    seed_everything(3)  # both drop the same paths and draw the same maps
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    expected = backward_passes(steps[0].train(), steps[0], crops, labels, scaler=scaler)
    seed_everything(3)
    found = joint_backward(steps[1].train(), crops, labels)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
    ours, plain = (dict(step.named_parameters()) for step in steps)
    largest = max(float(parameter.grad.abs().max()) for parameter in ours.values() if parameter.grad is not None)
    compared = 0
    for name, parameter in ours.items():
        if parameter.grad is not None:
            torch.testing.assert_close(plain[name].grad, parameter.grad, atol=2e-4 * largest, rtol=1e-4)
            compared += 1
    assert compared > 100
    with torch.no_grad():
        logits = [step.eval().network(normalize_crops(crops)).logits for step in steps]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)


def is_plain(module: nn.Module) -> bool:
    """Return whether every parameter and buffer lies in memory in the order of its axes."""
    values = (*module.parameters(), *module.buffers())
    return all(value.stride() == torch.empty(value.shape, device="meta").stride() for value in values)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_plain_side_is_plain_and_ours_is_channels_last(device):
    ours, plain = (side.to(device) for side in both_sides(TINY))
    assert is_plain(plain)
    assert not is_plain(ours)
    seen = {}
    for name, side in (("ours", ours), ("plain", plain)):
        side.network.backbone.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output[1]}))
        side(*(tensor.to(device) for tensor in batch()))
    assert seen["plain"].is_contiguous(), "maps stay (B, C, H, W) in memory"
    assert seen["ours"].is_contiguous(memory_format=torch.channels_last) and not seen["ours"].is_contiguous()


@pytest.mark.parametrize("beside", [name for name in get_args(Beside) if not name.startswith("onnxruntime")])
def test_sides_beside_ours_are_ours_but_for_one_thing(beside, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: setattr(module, "was_compiled", True))
    of_task, losses = task(tmp_path), []
    for name in ("ours", beside):
        side = SIDES[name](of_task)
        losses.append(float(side.run()))
    other = side.step.network
    assert is_plain(other) == (beside == "nchw")
    assert hasattr(other, "was_compiled") == (beside == "compiled")
    assert torch.backends.cudnn.benchmark == (beside == "cudnn-benchmark")
    if beside == "twin":  # timm's own network with pooling and a linear layer
        model = timm.create_model("tinynet_e", num_classes=2).eval()
        model.load_state_dict({**other.backbone.net.state_dict(), **{
            f"classifier.{name}": value for name, value in other.head.linear.state_dict().items()
        }})  # fmt: skip
        images = normalize_crops(batch()[0])
        with torch.no_grad():
            torch.testing.assert_close(other.eval()(images).logits, model(images), atol=1e-4, rtol=1e-4)
    else:
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_summed_products_are_one_contraction():
    generator = torch.Generator().manual_seed(0)
    features, attention = torch.randn(2, 3, 4, 5, generator=generator), torch.rand(2, 2, 4, 5, generator=generator)
    expected = torch.einsum("bchw,bmhw->bmc", features, attention)
    torch.testing.assert_close(summed_products(features, attention), expected)


def test_settled_statistics_are_those_of_the_images_and_momenta_are_as_before():
    network = TrainingStep(TINY, load_weights=False).network
    images = normalize_crops(batch()[0])
    settle_statistics(network, images)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        stem = network.backbone.net.conv_stem(images)
    torch.testing.assert_close(network.backbone.net.bn1.running_mean, stem.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network.backbone.net.bn1.running_var, stem.var(dim=(0, 2, 3)))
    assert {norm.momentum for norm in norms} == {0.1}
    assert not any(module.training for module in network.modules())


def test_the_table_has_a_row_a_side_their_ratios_and_the_pieces_of_a_step():
    pieces = dict(zip(PIECES, (0.01, 0.2, 0.02, 0.5, 0.03), strict=True))
    ours = Timing(
        name="ours", precision="bf16", seconds=(1.0, 3.0, 2.0), peak_bytes=3 * 2**20, first=(1.0, 2.0), ceiling=2e9,
        bandwidth=8e9, flops=10**9, moved=4 * 10**9, pieces=pieces,
    )  # fmt: skip
    compiled = dataclasses.replace(ours, name="compiled", seconds=(0.5, 0.5, 0.5), pieces={})
    plain = Timing(
        name="plain", precision="fp32", seconds=(4.0, 5.0, 9.0), peak_bytes=6 * 2**20, first=(1.5, 2.0), ceiling=1e9,
        bandwidth=8e9, flops=10**9, moved=8 * 10**9, pieces=pieces,
    )  # fmt: skip
    comparison = Comparison(sides=(ours, compiled, plain), machine="a machine", fed=(9.5, 10.0))
    assert comparison.difference == 0.5
    lines = comparison_lines(comparison, batch_size=4)
    assert [" ".join(line.split()) for line in lines if line] == [
        "precision fastest, s median slowest crops/s peak, MiB of ceiling of memory",
        "ours bf16 1.000 2.000 3.000 2.00 3 25% 25%",
        "compiled bf16 0.500 0.500 0.500 8.00 3 100% 100%",
        "plain fp32 4.000 5.000 9.000 0.80 6 20% 20%",
        "ours/plain 0.250 0.400 2.50x 0.500",
        "compiled/plain 0.125 0.100 10.00x 0.500",
        "a step, s data forward AGDA backward optimiser",
        "ours 0.0100 0.2000 0.0200 0.5000 0.0300",
        "plain 0.0100 0.2000 0.0200 0.5000 0.0300",
        "1 GFLOP in convolutions and products; ceiling: 2 in bf16 and 1 in fp32 GFLOP/s",
        "4.0 GB read and written by ours; memory: 8 GB/s",
        "ours fed from crops: 9.50 crops/s, 95.0% of the 10.00 with a ready batch",
    ]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("work", [pytest.param("train", marks=pytest.mark.slow), "infer"])
@pytest.mark.usefixtures("in_this_process")
def test_the_stage_prints_both_sides_and_their_ratios(work, capsys):
    main([work, "dfdc_b4", "--tiny", "--repeats", "2", "--batch-size", "2"])
    out = capsys.readouterr().out
    rows = [line.split()[1:] for line in out.splitlines() if line.startswith(("ours", "plain"))][:3]
    ours, plain, ratios = (
        [float(cell.rstrip("x%").replace(",", "")) for cell in row if cell != "fp32"] for row in rows
    )
    for side in (ours, plain):
        assert 0 < side[0] <= side[1] <= side[2]
        assert side[5] > 0, "share of the ceiling"
    for number in range(2):  # a small network takes a few of the milliseconds that are printed
        low = (ours[number] - 6e-4) / (plain[number] + 6e-4)
        assert low - 6e-3 <= ratios[number] <= (ours[number] + 6e-4) / (plain[number] - 6e-4) + 6e-3
    assert ratios[3] == pytest.approx(ours[4] / plain[4], rel=0.01)
    assert ("optimiser" in out.split("a step, s")[-1].splitlines()[0]) == (work == "train")
    assert out.count(" in fp32 GFLOP/s") == 1
    difference = re.search(r"ours and plain differ by at most (\S+)", out)
    assert float(difference[1]) < 1e-4
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_onnxruntime_stands_beside_ours_with_its_logits_in_float32():
    beside, small = ("onnxruntime", "onnxruntime-int8"), get_experiment("demo", tiny=True)
    sides = compare(small, "infer", repeats=1, device=torch.device("cpu"), beside=beside).sides
    assert [(side.name, side.precision) for side in sides[:3]] == [
        ("ours", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime-int8", "int8")
    ]  # fmt: skip
    assert sides[1].first == pytest.approx(sides[0].first, abs=1e-4)
    assert sides[2].first == pytest.approx(sides[0].first, abs=0.5) and sides[2].first != sides[1].first


def test_onnxruntime_trains_nothing():
    with pytest.raises(ValueError, match="--beside onnxruntime: only `multiattn bench infer` has it, and on a CPU"):
        compare(TINY, "train", repeats=1, device=torch.device("cpu"), beside=("twin", "onnxruntime"))


def task(tmp_path: Path, experiment: Experiment = TINY, **options) -> Task:
    made = Task(
        experiment=experiment, work="train", device=torch.device("cpu"), weights=tmp_path / "step.pt",
        **options,
    )  # fmt: skip
    write_weights(made)
    return made


@pytest.mark.parametrize("side", ["ours", "plain"])
def test_the_pieces_of_a_step_are_timed_one_by_one(tmp_path, side):
    training = SIDES[side](task(tmp_path))
    seconds = training.split()
    assert tuple(seconds) == PIECES
    assert all(value > 0 for value in seconds.values())
    assert seconds["backward"] > seconds["data"]
    assert not training.step._forward_hooks and not training.step.network._forward_hooks


def test_without_agda_its_piece_is_empty(tmp_path):
    seconds = SIDES["ours"](task(tmp_path, dataclasses.replace(TINY, agda=AgdaConfig(mode="none")))).split()
    assert seconds["AGDA"] == 0
    assert seconds["forward"] > 0


def test_the_split_step_is_the_step(tmp_path):
    losses = []
    for split_first in (False, True):
        training = SIDES["ours"](task(tmp_path))
        training.split() if split_first else training.run()
        losses.append(float(training.run()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("experiment", "factor"),
    [
        pytest.param(TINY, 6, id="two passes"),
        pytest.param(dataclasses.replace(TINY, agda=AgdaConfig(mode="none")), 3, id="no AGDA"),
        pytest.param(baseline(TINY), 3, id="baseline"),
    ],
)
def test_a_steps_operations_are_three_forwards_a_pass(experiment, factor):
    network = make_network(experiment.model, load_weights=False)
    forward = describe_network(network, experiment.data.image_size).total.flops
    assert network_flops(experiment, "infer") == 4 * forward
    assert network_flops(experiment, "train") == 4 * factor * forward


def test_the_bytes_that_operations_move_are_counted_by_hand():
    def work(layer: nn.Module) -> None:
        product = layer(torch.zeros(2, 8).expand(2, 8))  # zeros are written: 64 bytes
        (product.view(4, 2) * torch.ones(1).expand(4, 2)).sum()

    product = 64 + 4 * (2 * 8 + 8 * 4 + 2 * 4)  # the view of the weight moves nothing
    scaled = 4 + (32 + 4 + 32)  # one number, repeated by a view, counts once
    assert on_shapes(nn.Linear(8, 4, bias=False), work, Moved()).bytes == product + scaled + (32 + 4)


def test_half_precision_moves_less_and_training_more():
    tiny = get_experiment("dfdc_b4", tiny=True)
    infer, half, train = (
        network_traffic(tiny, *how) for how in (("infer", "fp32"), ("infer", "bf16"), ("train", "fp32"))
    )
    assert 0.4 < half / infer < 0.9 and train > 5 * infer


def test_the_measured_bandwidth_is_a_rate(monkeypatch):
    monkeypatch.setitem(measured_bandwidth.__globals__["COPIED_BYTES"], "cpu", 2**24)
    assert 1e8 < measured_bandwidth(torch.device("cpu")) < 1e13


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_measured_ceiling_is_a_rate(monkeypatch, precision):
    monkeypatch.setitem(measured_ceiling.__globals__["MATRIX_SIDE"], "cpu", 256)
    assert 1e8 < measured_ceiling(torch.device("cpu"), precision) < 1e15


def test_our_side_is_fed_from_the_crops_of_a_folder(tmp_path, faces):
    data = dataclasses.replace(TINY.data, num_workers=0)
    training = SIDES["ours"](task(tmp_path, dataclasses.replace(TINY, data=data), faces=faces))
    fed, ready = training.feed(1)
    assert fed > 0 and ready > 0


def test_a_faces_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        SIDES["ours"](task(tmp_path, faces=tmp_path / "nothing")).feed(1)


def test_the_rate_of_training_is_crops_a_second_of_a_ready_batch_or_of_a_folders_crops(
    in_this_process, faces, monkeypatch
):
    assert 0 < training_rate(TINY, device=torch.device("cpu")) < 1e5
    monkeypatch.setitem(training_rate.__globals__, "FED_UPDATES", 1)
    data = dataclasses.replace(TINY.data, num_workers=0)
    fed = dataclasses.replace(TINY, data=data)
    assert 0 < training_rate(fed, device=torch.device("cpu"), faces=faces) < 1e5


class NoCopies(TorchDispatchMode):
    """Refuse copies of the host's tensors to the device: from pageable memory they wait for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        devices = [
            {t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)} for x in ((args, kwargs), out)
        ]
        if "copy" in function.name() and "cpu" in devices[0] and "cuda" in devices[1]:
            raise AssertionError(f"{function.name()} copies from the host")
        return out


def as_fake_gpu_tensors(module: nn.Module) -> None:
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype, device="cuda"))
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")


@CASES
def test_no_pass_of_a_step_reads_from_the_gpu_or_copies_to_it(experiment):
    """On shapes alone, so without a GPU: whatever needs a value (`item`, boolean indexing) is an error there."""
    step = TrainingStep(experiment, load_weights=False).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        as_fake_gpu_tensors(step)
        crops = torch.empty(4, 96, 96, 3, dtype=torch.uint8, device="cuda")
        labels = torch.empty(4, dtype=torch.int64, device="cuda")
        with NoCopies():
            clean = step(crops, labels)
            if step.augmentation is not None:
                step(crops, labels, before=clean)


@pytest.mark.gpu
@CASES
def test_no_step_on_a_gpu_waits_for_it(experiment, tmp_path):
    training = SIDES["ours"](dataclasses.replace(task(tmp_path, experiment), device=torch.device("cuda")))
    training.run()
    with never_waiting(torch.device("cuda")):
        training.run()


@pytest.mark.gpu
def test_on_a_gpu_a_wait_inside_is_an_error():
    value = torch.ones(1, device="cuda")
    with never_waiting(torch.device("cuda")), pytest.raises(RuntimeError, match="synchron"):
        value.item()
    assert value.item() == 1


@pytest.mark.parametrize(
    ("changes", "repeats", "expected"),
    [
        pytest.param({}, 0, "--repeats: expected at least 1, found 0", id="no repeat"),
        pytest.param({"precision": "apex-O1"}, 1, "--precision apex-O1: the benchmark has torch's", id="apex"),
    ],
)
def test_a_benchmark_of_nothing_is_refused(changes, repeats, expected):
    with pytest.raises(ValueError, match=expected):
        compare(dataclasses.replace(TINY, **changes), "train", repeats=repeats, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("--tiny demo", "the experiment comes before all options: multiattn bench infer demo", id="order"),
        pytest.param("demo --fed-from data/faces", "only a training step is fed", id="fed"),
    ],
)
def test_words_that_make_no_benchmark_are_refused(words, expected):
    with pytest.raises(ValueError, match=expected):
        main(["infer", *words.split()])
