"""Figures on attention maps: against hand arithmetic and NumPy; when maps count as collapsed."""

import numpy as np
import pytest
import torch

from multiattn.config import Experiment, LossConfig, OptimConfig, Phase
from multiattn.model.attention import ATTENTION_MODULES
from multiattn.model.diagnostics import (
    COLLAPSED_COSINE,
    COLLAPSED_SHARE,
    DEAD_SHARE,
    AttentionStatistics,
    center_distance,
    collapse_warning,
)

EXPERIMENT = Experiment(name="x")
HEALTHY = {"map_cosine": 0.3, "map_strongest_share": 0.4, "map_entropy": 0.7, "map_dead_share": 0.0}


def warn(found: dict[str, float], experiment: Experiment = EXPERIMENT) -> str | None:
    return collapse_warning(found, experiment, experiment.schedule[-1])


def figures(*batches: torch.Tensor) -> dict[str, float]:
    statistics = AttentionStatistics()
    for batch in batches:
        statistics.update(batch)
    return statistics.compute()


def cells(*values: list[float]) -> torch.Tensor:
    """One face whose maps have these four values each: (1, M, 2, 2)."""
    return torch.tensor(values).reshape(1, len(values), 2, 2)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        pytest.param(
            cells([1, 2, 3, 4], [1, 2, 3, 4]), {"map_cosine": 1, "map_strongest_share": 1}, id="identical maps"
        ),
        pytest.param(cells([1, 2, 3, 4], [5, 10, 15, 20]), {"map_cosine": 1}, id="the same map in another strength"),
        pytest.param(cells([1, 2, 0, 0], [0, 0, 3, 4]), {"map_cosine": 0}, id="disjoint maps"),
        pytest.param(cells([1, 1, 0, 0], [1, 0, 0, 0]), {"map_cosine": 2**-0.5}, id="45 degrees"),
        pytest.param(cells([0, 9, 0, 0]), {"map_entropy": 0, "map_dead_share": 0}, id="one hot cell"),
        pytest.param(cells([2, 2, 2, 2]), {"map_entropy": 1}, id="everywhere alike"),
        pytest.param(cells([2, 2, 0, 0]), {"map_entropy": 0.5}, id="half of the cells"),
        pytest.param(
            cells([0, 0, 0, 0], [0, 5, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]),
            {"map_cosine": 1, "map_strongest_share": 1, "map_entropy": 0, "map_dead_share": 0.5},
            id="dead maps are in no pair",
        ),
        pytest.param(
            torch.zeros(3, 2, 4, 4),
            {"map_cosine": 0, "map_strongest_share": 0, "map_entropy": 0, "map_dead_share": 1},
            id="all dead",
        ),
        pytest.param(torch.ones(2, 2, 1, 1), {"map_cosine": 1, "map_entropy": 0}, id="a grid of one cell"),
    ],
)
def test_figures_by_hand(attention, expected):
    found = figures(attention)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_the_strongest_map_is_counted_by_face_among_faces_that_have_one():
    weak, strong, dead = [0.0, 1, 0, 0], [0.0, 0, 7, 0], [0.0] * 4
    first, second, none = cells(strong, weak), cells(weak, strong), cells(dead, dead)
    assert figures(torch.cat([first, first, second]))["map_strongest_share"] == pytest.approx(2 / 3)
    assert figures(torch.cat([first, second, none, none]))["map_strongest_share"] == pytest.approx(1 / 2)


def test_random_maps_against_numpy():
    attention = torch.rand(6, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps = attention.numpy().reshape(6, 3, 20)
    correlations = [
        np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for m in maps for a, b in zip(m, m[[1, 2, 0]], strict=True)
    ]
    shares = maps / maps.sum(axis=-1, keepdims=True)
    expected = {
        "map_cosine": np.mean(correlations),
        "map_strongest_share": np.bincount(maps.sum(axis=-1).argmax(axis=1)).max() / 6,
        "map_entropy": np.mean(-(shares * np.log(shares)).sum(axis=-1) / np.log(20)),
        "map_dead_share": 0.0,
    }
    assert figures(attention) == pytest.approx(expected, abs=1e-12)


def test_neither_the_order_nor_the_cutting_of_batches_matters():
    attention = torch.rand(7, 4, 3, 3, generator=torch.Generator().manual_seed(1)).relu()
    attention[2, 1] = 0
    whole = figures(attention)
    assert figures(attention[4:], attention[:0], attention[:4]) == pytest.approx(whole)
    assert figures(*attention.flip(0).split(1)) == pytest.approx(whole)


def test_half_precision_is_summed_in_double():
    attention = torch.full((1, 2, 300, 300), 60000.0, dtype=torch.float16)  # a float16 sum would be infinite
    assert figures(attention)["map_cosine"] == pytest.approx(1)


def test_one_map_has_no_cosine_and_no_rival():
    assert set(figures(cells([1, 2, 3, 4]))) == {"map_entropy", "map_dead_share"}
    assert warn(figures(cells([1, 2, 3, 4]))) is None


@pytest.mark.parametrize("batches", [(), (torch.zeros(0, 4, 3, 3),)], ids=["no batch", "an empty batch"])
def test_no_faces_have_no_figures_and_no_warning(batches):
    assert figures(*batches) == {}
    assert warn({}) is None


@pytest.mark.parametrize(
    ("name", "threshold", "words"),
    [
        ("map_cosine", COLLAPSED_COSINE, "nearly the same map"),
        ("map_strongest_share", COLLAPSED_SHARE, "is the strongest on"),
        ("map_dead_share", DEAD_SHARE, "zero everywhere"),
    ],
)
def test_a_warning_comes_above_its_threshold_and_not_at_it(name, threshold, words):
    assert warn({**HEALTHY, name: threshold}) is None
    assert words in warn({**HEALTHY, name: np.nextafter(threshold, 1)})


ADVICE = {
    "dead": ("map_dead_share", {}, "a lower --optim.lr or --optim.warmup-epochs 1 or --optim.clip-grad-norm 5 in"),
    "dead, with warm-up and clipping": (
        "map_dead_share",
        {"optim": OptimConfig(warmup_epochs=1, clip_grad_norm=5)},
        "Try a lower --optim.lr in `multiattn train`.",
    ),
    "dead, in a phase, which has no options": (
        "map_dead_share",
        {"phases": (Phase(name="full", epochs=3),)},
        "Try a lower lr or warmup-epochs 1 or clip-grad-norm 5 in phase 'full'.",
    ),
    "alike": ("map_cosine", {}, "a larger --loss.auxiliary-weight or --loss.inter-margin in"),
    "alike, no such margin": ("map_cosine", {"loss": LossConfig(auxiliary="ams")}, "larger --loss.auxiliary-weight in"),
    "alike, no loss": (
        "map_cosine",
        {"loss": LossConfig(auxiliary="none")},
        "No loss keeps them apart: try --loss.aux",
    ),
    "alike, weight 0": ("map_cosine", {"loss": LossConfig(auxiliary_weight=0)}, "try --loss.auxiliary-weight 1 in"),
}


@pytest.mark.parametrize(("figure", "settings", "advice"), ADVICE.values(), ids=ADVICE.keys())
def test_a_warning_advises_what_the_experiment_has_and_has_not_done_yet(figure, settings, advice):
    assert advice in warn({**HEALTHY, figure: 0.999}, Experiment(name="x", **settings))


def test_a_map_that_is_always_the_strongest_is_reported_though_the_others_differ():
    attention = cells([0, 9, 0, 0], [1, 0, 0, 0]).expand(100, -1, -1, -1)
    assert "strongest on 100% of the faces" in warn(figures(attention))


@pytest.mark.parametrize(("form", "expected"), [("relu", 1 / np.pi), ("masked-elu", 0.685)], ids=["relu", "masked-elu"])
def test_maps_of_an_untrained_module_are_far_from_collapsed(form, expected):
    """Of independent standard normal x, E[f]^2 / E[f^2]: 1 / pi for ReLU; 1.161^2 / 1.967 = 0.685 for ELU + 1."""
    torch.manual_seed(0)
    module = ATTENTION_MODULES[form](16, 4).train()  # batch statistics: outputs standardised
    with torch.no_grad():
        found = figures(module(torch.randn(64, 16, 24, 24)))
    assert found["map_cosine"] == pytest.approx(expected, abs=0.12)
    assert warn({**HEALTHY, "map_cosine": found["map_cosine"]}) is None


@pytest.mark.parametrize(
    ("centers", "expected"),
    [
        pytest.param([[1.0, 2.0]], 0, id="one centre"),
        pytest.param([[0.0, 0.0], [3.0, 4.0]], 5, id="3-4-5"),
        pytest.param([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], 4, id="mean of 3, 4 and 5"),
        pytest.param([[1.0, 1.0]] * 3, 0, id="all the same"),
    ],
)
def test_center_distance_by_hand(centers, expected):
    assert center_distance(torch.tensor(centers)) == pytest.approx(expected)
