"""Means of the loss terms, the step at which one stopped being a number, and states of earlier versions."""

import math
from pathlib import Path

import pytest
import torch

from multiattn.training.engine.fold_training import LossMeter, progress_of
from multiattn.training.engine.ranks import Ranks
from multiattn.training.engine.run_folder import RunFolder

CPU = torch.device("cpu")


def filled(*steps: tuple[float, float]) -> LossMeter:
    meter = LossMeter(CPU)
    for first, second in steps:
        meter.add({"loss": torch.tensor(first), "cross_entropy": torch.tensor(second)})
    return meter


@pytest.mark.parametrize(
    ("steps", "means"),
    [
        pytest.param([], {}, id="no step"),
        pytest.param([(2.0, 1.0)], {"loss": 2.0, "cross_entropy": 1.0}, id="one step"),
        pytest.param([(2.0, 1.0), (4.0, 0.0), (6.0, 0.5)], {"loss": 4.0, "cross_entropy": 0.5}, id="three steps"),
        pytest.param([(0.1, 0.5)] * 20_000, pytest.approx({"loss": 0.1, "cross_entropy": 0.5}, rel=2e-8), id="many"),
    ],
)
def test_means_are_over_the_steps(steps, means):
    assert filled(*steps).means(Ranks()) == (means, {})


@pytest.mark.parametrize(
    ("steps", "bad"),
    [
        pytest.param([(1.0, math.nan)], {"cross_entropy": 0}, id="at once"),
        pytest.param([(1.0, 1.0), (1.0, math.inf), (math.nan, math.nan)], {"loss": 2, "cross_entropy": 1}, id="later"),
        pytest.param([(1.0, 1.0), (-math.inf, 1.0), (1.0, 1.0)], {"loss": 1}, id="and then a number again"),
    ],
)
def test_the_first_step_of_each_term_that_is_no_number_is_known(steps, bad):
    assert filled(*steps).means(Ranks())[1] == bad


def test_a_continued_epoch_has_the_means_of_an_undisturbed_one():
    steps = [(0.1 * number, 1.7 / (number + 1)) for number in range(7)]
    meter = LossMeter(CPU)
    meter.restore(filled(*steps[:3]).state(Ranks()), Ranks())
    for first, second in steps[3:]:
        meter.add({"loss": torch.tensor(first), "cross_entropy": torch.tensor(second)})
    assert meter.means(Ranks()) == filled(*steps).means(Ranks())
    assert meter.count == 7
    for value in (2.0, 4.0):  # settings that were changed on the way: another term, one less
        meter.add({"loss": torch.tensor(value), "match": torch.tensor(1.0)})
    assert meter.means(Ranks()) == ({"loss": 3.0, "match": 1.0}, {})


def test_a_state_that_names_its_progress_as_earlier_versions_did_is_taken_up():
    run = RunFolder(Path("runs/x/fold0"), 0)
    assert progress_of({"progress": {"epoch": 3, "is_judged": False}}, run).is_validated is False
    for strange in ({"epoch": 3, "unknown": 1}, {"epoch": -1}, {"batch": math.nan}, {"epoch": "3"}, [3], "text"):
        with pytest.raises(ValueError, match="not the state of this experiment"):
            progress_of({"progress": strange}, run)
