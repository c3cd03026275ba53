"""The package as a library: what `import multiattn` offers, and what it costs."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multiattn
from multiattn.config import ModelConfig
from multiattn.inference.detector import DeepfakeDetector
from multiattn.inference.runs import load_run
from multiattn.model import network


def test_the_public_names_are_the_ones_of_their_modules():
    found = {name: getattr(multiattn, name) for name in multiattn.__all__}
    modules = {"ModelConfig": ModelConfig, "MultiAttentionNet": network.MultiAttentionNet, "load_run": load_run}
    assert found == {"DeepfakeDetector": DeepfakeDetector, **modules}
    assert set(multiattn.__all__) <= set(dir(multiattn))


def test_a_name_it_does_not_have_is_an_error_that_lists_those_it_has():
    with pytest.raises(
        AttributeError,
        match="no attribute 'MultiAttention'; it offers DeepfakeDetector, ModelConfig, MultiAttentionNet",
    ):
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


def test_the_package_requires_what_its_commands_need_and_leaves_tools_to_extras():
    script = (
        "import setuptools; from distutils.core import run_setup; made = run_setup('setup.py', stop_after='init');"
        "print((made.install_requires, made.extras_require))"
    )
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    product, extras = ast.literal_eval(result.stdout)
    named = {name: {re.match(r"[\w-]+", word)[0] for word in words} for name, words in {"": product, **extras}.items()}
    assert named[""] >= {"torch", "timm", "av", "tyro"} and not named[""] & {"pytest", "pytest-xdist", "ruff", "dask"}
    assert named["test"] == {"pytest", "pytest-xdist", "ruff", "httpx", "schemathesis", "playwright"}
    assert {name: named[name] for name in ("dask", "lora", "onnx", "ray", "lab")} == {
        "dask": {"dask"}, "lora": {"peft"}, "onnx": {"onnx", "onnxscript", "onnxruntime"}, "ray": {"ray"},
        "lab": {"jupyterlab"},
    }  # fmt: skip
    listed = re.findall(r"^([\w-]+)(?=[=>\[])", (root / "requirements.txt").read_text(), re.MULTILINE)
    extras = set().union(*(named[name] for name in ("test", "serve", "dask", "ray", "lora", "onnx")))
    assert set(listed) == named[""] | extras, "all that a fresh clone installs"
    assert all((">=" in word and "<" in word) or "==" in word for word in product), "bounds on either side"


def test_the_example_in_the_networks_docstring_runs():
    outcome = doctest.testmod(network)
    assert outcome.attempted >= 4
    assert outcome.failed == 0
