"""The package as a library: what `import multiattn` offers, and what it costs."""

import doctest
import subprocess
import sys

import pytest

import multiattn
from multiattn.config import ModelConfig
from multiattn.inference.runs import load_run
from multiattn.model import network


def test_the_public_names_are_the_ones_of_their_modules():
    found = {name: getattr(multiattn, name) for name in multiattn.__all__}
    assert found == {"ModelConfig": ModelConfig, "MultiAttentionNet": network.MultiAttentionNet, "load_run": load_run}
    assert set(multiattn.__all__) <= set(dir(multiattn))


def test_a_name_it_does_not_have_is_an_error_that_lists_those_it_has():
    with pytest.raises(AttributeError, match="no attribute 'MultiAttention'; it offers ModelConfig, MultiAttentionNet"):
        _ = multiattn.MultiAttention
    with pytest.raises(ImportError, match="cannot import name 'load_runs'"):
        from multiattn import load_runs  # noqa: F401


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import multiattn", id="the package"),
        pytest.param("import multiattn; dir(multiattn)", id="its names listed"),
        pytest.param("from multiattn import ModelConfig", id="settings"),
    ],
)
def test_torch_is_not_imported_before_a_name_that_needs_it(statement):
    command = [sys.executable, "-c", f"import sys; {statement}; print('torch' in sys.modules)"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_the_example_in_the_networks_docstring_runs():
    outcome = doctest.testmod(network)
    assert outcome.attempted >= 4
    assert outcome.failed == 0
