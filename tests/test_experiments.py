"""Experiments by name, of a file outside the package, and of a run's settings."""

import json
from pathlib import Path

import pytest

from multiattn.command_line import parse_experiment
from multiattn.config import to_json
from multiattn.experiments import get_experiment
from multiattn.stages.train import Options

MINE = """
import dataclasses
from multiattn.experiments import demo

def mine():
    return dataclasses.replace(demo(), name="mine", epochs=3)

def nothing():
    return 3

def asks(name):
    return demo()
"""
TABLES = ("--faces", "faces", "--folds", "folds.csv")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory: experiments of one's own, and the settings of a run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("def x(:")
    (tmp_path / "experiment.json").write_text(json.dumps(to_json(get_experiment("ffpp_b4"))))
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "nan.json").write_text('{"name": "x", "optim": {"lr": NaN}}')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "name", "epochs"),
    [
        pytest.param(["mine.py:mine"], "mine", 3, id="a function of a file"),
        pytest.param(["mine.py:mine", "--tiny"], "mine_tiny", 1, id="its tiny variant"),
        pytest.param(["./mine.py:mine", "--epochs", "5"], "mine", 5, id="with an option"),
        pytest.param(["--config", "experiment.json"], "ffpp_b4", 20, id="the settings of a run"),
        pytest.param(["--config", "."], "ffpp_b4", 20, id="the folder of a run"),
        pytest.param(["--tiny", "--config=experiment.json"], "ffpp_b4_tiny", 1, id="their tiny variant"),
        pytest.param(["--config", "experiment.json", "--name", "again", "--epochs", "5"], "again", 5, id="and options"),
    ],
)
def test_an_experiment_comes_from_a_file(words, name, epochs, folder):
    options = parse_experiment(Options, [*words, *TABLES], stage="train", doc=None)
    assert (options.settings.name, options.settings.epochs) == (name, epochs)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["gone.py:mine"], r"gone\.py: no such file", id="no file"),
        pytest.param(["mine.py:mien"], "no function of mine.py: 'mien'. Did you mean 'mine'", id="no such function"),
        pytest.param(["mine.py:nothing"], "returns an Experiment, found int", id="a function of something else"),
        pytest.param(["mine.py:asks"], "without arguments, found TypeError", id="a function with arguments"),
        pytest.param(["broken.py:x"], r"broken\.py: expected a file of Python, found SyntaxError", id="no Python"),
        pytest.param(["--config", "gone.json"], r"gone\.json", id="no settings"),
        pytest.param(["--config", "mine.py"], r"mine\.py: expected a JSON file", id="settings that are none"),
        pytest.param(["--config", "deep.json"], "expected a JSON file, found something else: maximum", id="deep JSON"),
        pytest.param(["--config", "nan.json"], "NaN is no number", id="not a number"),
        pytest.param(["ffpp_b4_official", "--optim.lr", "1e-4"], r"--optim.lr: .* --phases.0", id="no phase's"),
        pytest.param(["ffpp_b4_official", "--epochs=5"], r"--epochs=5: .* trains in phases", id="epochs of no phase"),
        pytest.param(["demo", "--config", "experiment.json"], "found both: demo and experiment.json", id="both"),
        pytest.param(["--config", "experiment.json", "demo"], "found both: demo and experiment.json", id="behind"),
    ],
)
def test_an_experiment_that_a_file_does_not_give_is_refused(words, expected, folder):
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        parse_experiment(Options, [*words, *TABLES], stage="train", doc=None)
