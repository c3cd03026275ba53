"""The benchmark: both sides compute the same thing, in processes of their own."""

import dataclasses
import multiprocessing
import re

import pytest
import torch

from multiattn.config import AgdaConfig, DataConfig, Experiment, LossConfig, ModelConfig
from multiattn.experiments import baseline, official
from multiattn.model.preprocess import normalize_crops
from multiattn.runtime import seed_everything
from multiattn.stages.bench import main
from multiattn.training.bench import _Side, compare, settle_statistics
from multiattn.training.plain_network import is_plain, joint_backward, make_plain, summed_products
from multiattn.training.step import TrainingStep, backward_passes

TINY = Experiment(
    name="tiny",
    model=ModelConfig(backbone="tinynet_e", pretrained=False),
    data=DataConfig(image_size=96, batch_size=4),
)
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
            torch.testing.assert_close(plain[name].grad, parameter.grad, atol=1e-4 * largest, rtol=1e-4)
            compared += 1
    assert compared > 100
    with torch.no_grad():
        logits = [step.eval().network(normalize_crops(crops)).logits for step in steps]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=0)


def test_the_plain_side_is_plain_and_ours_is_not():
    ours, plain = both_sides(TINY)
    assert is_plain(plain)
    assert not is_plain(ours)
    seen = []
    plain.network.backbone.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output[1])))
    plain(*batch())
    assert all(tensor.is_contiguous() for pair in seen for tensor in pair), "maps stay (B, C, H, W) in memory"
    layers = {type(module).__module__ for module in plain.modules()}
    assert not [name for name in layers if name.startswith("multiattn.model.cpu")], "none of our own kernels"


def test_summed_products_are_those_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    features, attention = torch.randn(2, 3, 4, 5, generator=generator), torch.rand(2, 2, 4, 5, generator=generator)
    expected = torch.zeros(2, 2, 3)
    for image in range(2):
        for k in range(2):
            for channel in range(3):
                expected[image, k, channel] = (features[image, channel] * attention[image, k]).sum()
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


@pytest.mark.parametrize("work", ["train", "infer"])
def test_the_stage_prints_both_sides_and_their_ratios(work, capsys):
    main([work, "dfdc_b4", "--tiny", "--repeats", "2", "--batch-size", "2"])
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("ours", "plain", "rat"))}
    ours, plain = ([float(cell.replace(",", "")) for cell in rows[side]] for side in ("ours", "plain"))
    assert 0 < ours[1] <= ours[0] <= ours[2]
    assert 0 < plain[1] <= plain[0] <= plain[2]
    assert float(rows["ratio"][0]) == pytest.approx(ours[0] / plain[0], rel=0.2)
    assert float(rows["ratio"][1]) == pytest.approx(ours[4] / plain[4], rel=0.01)
    difference = re.search(r"the sides differ by at most (\S+)", out)
    assert float(difference[1]) < 1e-4
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"repeats": 0, "batch_size": 2}, "--repeats: expected at least 1, found 0", id="no repeat"),
        pytest.param({"repeats": 1, "batch_size": 1}, "--batch-size: expected at least 2", id="one crop"),
    ],
)
def test_a_benchmark_of_nothing_is_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        compare(TINY, "train", device=torch.device("cpu"), **settings)


def test_a_side_that_dies_is_an_error_that_names_it():
    here, there = multiprocessing.Pipe()
    there.close()
    with pytest.raises(ValueError, match="the side `plain` ended early"):
        _Side("plain", here).ask()


def test_the_experiment_comes_second():
    with pytest.raises(ValueError, match="the experiment comes second: multiattn bench infer demo"):
        main(["infer", "--tiny", "demo"])
