"""Which apex is found, for a folder laid out like each package of that name, and what is said about it.

NVIDIA's apex itself was not built by us; where it is installed beside a GPU, the last test updates weights with it. The
stand-in for `apex.amp` keeps to the protocol of its documentation.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from multiattn.config import OptimConfig
from multiattn.training.engine.apex import find_apex, initialize_apex_o1, require_amp, require_fused
from multiattn.training.engine.optimizer import make_optimizer

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FUSED_ADAM = """
import torch
class FusedAdam(torch.optim.AdamW):
    def __init__(self, params, adam_w_mode=True, **options):
        super().__init__(params, **options)
        self.adam_w_mode = adam_w_mode
    def zero_grad(self):
        super().zero_grad()
"""
AMP = """
import contextlib
state = {"loss_scale": 65536.0, "unskipped": 0}

def initialize(model, optimizer, opt_level, verbosity):
    assert opt_level == "O1"
    return model, optimizer

@contextlib.contextmanager
def scale_loss(loss, optimizer, delay_unscale=False):
    yield loss.float() * state["loss_scale"]
    if delay_unscale:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    for gradient in gradients:
        gradient /= state["loss_scale"]
    if all(gradient.isfinite().all() for gradient in gradients):
        state["unskipped"] += 1
        return
    state["loss_scale"], state["unskipped"] = state["loss_scale"] / 2, 0
    step = optimizer.step
    def skip(closure=None):
        optimizer.step = step
    optimizer.step = skip

def state_dict():
    return {"loss_scaler0": dict(state)}

def load_state_dict(saved):
    state.update(saved["loss_scaler0"])
"""
PYPI = {"apex/__init__.py": "from pyramid.session import UnencryptedCookieSessionFactoryConfig"}
PYTHON_ONLY = {
    "apex/__init__.py": "from . import optimizers",
    "apex/optimizers/__init__.py": "from .fused_adam import FusedAdam",
    "apex/optimizers/fused_adam.py": FUSED_ADAM,
}
OPTIMIZERS = {**PYTHON_ONLY, "amp_C.py": ""}
WITH_AMP = {**OPTIMIZERS, "apex/amp/__init__.py": AMP}
UNDEFINED_SYMBOL = {**PYTHON_ONLY, "amp_C.py": "raise ImportError('amp_C.so: undefined symbol: _ZN2at')"}
Install = Callable[[dict[str, str]], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts files on the import path, and takes what was imported from there out again."""

    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield write
    for module in [name for name in sys.modules if name.split(".")[0] in ("apex", "amp_C")]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        pytest.param({}, "none", "no apex is installed", id="nothing"),
        pytest.param(PYPI, "other-project", "not NVIDIA's but another project", id="PyPI's, which fails at import"),
        pytest.param({"apex/README.md": ""}, "other-project", "not NVIDIA's", id="a folder of that name"),
        pytest.param({"apex.py": "raise KeyError"}, "other-project", "not NVIDIA's", id="a module of that name"),
        pytest.param(PYTHON_ONLY, "no-extensions", "No module named 'amp_C'", id="Python-only build"),
        pytest.param(UNDEFINED_SYMBOL, "no-extensions", "undefined symbol", id="built for another torch"),
        pytest.param(
            {**OPTIMIZERS, "apex/__init__.py": "import torch; torch._six"},
            "no-extensions",
            "has no attribute '_six'",
            id="written for another torch",
        ),
        pytest.param(OPTIMIZERS, "optimizers", "but without apex.amp", id="NVIDIA's of today"),
        pytest.param(
            {**OPTIMIZERS, "apex/amp/__init__.py": "from torch._six import string_classes"},
            "optimizers",
            "but without apex.amp",
            id="an amp for another torch",
        ),
        pytest.param(WITH_AMP, "amp", "and apex.amp", id="NVIDIA's until 25.05"),
    ],
)
def test_the_apex_that_is_there_is_recognised(install, files, kind, message):
    folder = install(files)
    finding = find_apex()
    assert finding.kind == kind and message in finding.message
    if files:
        assert finding.location.startswith(str(folder)) and finding.location in finding.message


def test_the_version_is_that_of_its_metadata(install):
    install(
        {**PYPI, "apex-0.9.10.dev0.dist-info/METADATA": "Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\n"}
    )
    assert find_apex().version == "0.9.10.dev0"
    assert "the installed apex 0.9.10.dev0 (" in find_apex().message


FUSED = partial(require_fused, "fusedadamw")


@pytest.mark.parametrize(
    ("require", "files", "device", "found"),
    [
        pytest.param(FUSED, {}, CPU, "this one is on the cpu, and no apex is installed", id="fused: CPU"),
        pytest.param(FUSED, WITH_AMP, CPU, "this one is on the cpu, and the installed", id="fused: CPU with apex"),
        pytest.param(FUSED, {}, GPU, "no apex is installed", id="fused: nothing"),
        pytest.param(FUSED, PYPI, GPU, "is not NVIDIA's", id="fused: PyPI's"),
        pytest.param(FUSED, PYTHON_ONLY, GPU, "its CUDA extensions do not load", id="fused: Python-only build"),
        pytest.param(require_amp, WITH_AMP, CPU, "this one is on the cpu", id="O1: CPU"),
        pytest.param(require_amp, {}, GPU, "no apex is installed", id="O1: nothing"),
        pytest.param(require_amp, PYPI, GPU, "is not NVIDIA's", id="O1: PyPI's"),
        pytest.param(require_amp, OPTIMIZERS, GPU, "but without apex.amp", id="O1: NVIDIA's of today"),
    ],
)
def test_an_apex_that_cannot_run_is_one_error_with_a_way_out(install, require, files, device, found):
    install(files)
    option, instead, remedy = {
        FUSED: ("--optim.name fusedadamw", "use `--optim.name adamw`", "APEX_CUDA_EXT=1 pip install"),
        require_amp: ("--precision apex-O1", "`--precision bf16`", "at its tag 25.05 or before"),
    }[require]
    with pytest.raises(ValueError, match=f"^{option}: expected ") as caught:
        require(device)
    message = str(caught.value)
    assert found in message and instead in message
    assert (remedy in message) == (device == GPU)


@pytest.mark.parametrize("files", [OPTIMIZERS, WITH_AMP], ids=["of today", "with amp"])
def test_the_right_apex_on_a_gpu_is_let_through(install, files):
    install(files)
    require_fused("fusedlamb", GPU)
    if files is WITH_AMP:
        require_amp(GPU)


@pytest.mark.parametrize(("name", "decoupled"), [("fusedadam", False), ("FusedAdamW", True)])
def test_timm_makes_the_optimiser_of_that_name_from_apex(install, monkeypatch, name, decoupled):
    install(OPTIMIZERS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("multiattn.training.engine.optimizer.require_fused", lambda name, _: require_fused(name, GPU))
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig(name=name, lr=0.25))
    assert type(optimizer).__module__ == "apex.optimizers.fused_adam"
    assert optimizer.adam_w_mode is decoupled and optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.slow
def test_training_starts_beside_pypis_apex(tmp_path):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text(PYPI["apex/__init__.py"], encoding="utf-8")
    code = (
        "import torch\n"
        "from multiattn.config import OptimConfig\n"
        "from multiattn.training.engine.optimizer import make_optimizer\n"
        "make_optimizer(torch.nn.Linear(2, 2), OptimConfig())\n"
        "make_optimizer(torch.nn.Linear(2, 2), OptimConfig(name='fusedadam'))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    *_, last = finished.stderr.strip().splitlines()
    assert last.startswith("ValueError: --optim.name fusedadam: expected a run on a GPU")
    assert "is not NVIDIA's" in last


@pytest.fixture
def initialize(install: Install) -> Callable:
    install(WITH_AMP)
    return initialize_apex_o1


def passes(scaler, module: nn.Module) -> None:
    """Two backward passes of one update, as of the clean and the AGDA crops."""
    for inputs in torch.arange(12.0).view(2, 3, 2):
        scaler.scale(module(inputs).square().mean()).backward()


@pytest.mark.parametrize("clips", [False, True], ids=["plain", "clipped"])
def test_scaled_training_is_plain_training(initialize, clips):
    weights = []
    for is_scaled in (False, True):
        torch.manual_seed(0)
        module = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        if is_scaled:
            module, optimizer, scaler = initialize(module, optimizer)
            assert scaler.is_enabled() and scaler.get_scale() == 65536.0
        for _ in range(3):
            optimizer.zero_grad()
            passes(scaler, module)
            if clips:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        weights.append(module.weight.detach())
    assert torch.equal(*weights)  # the scale is a power of two


def test_an_overflow_skips_the_step_and_halves_the_scale(initialize):
    module, optimizer, scaler = initialize(model := nn.Linear(2, 1), torch.optim.SGD(model.parameters(), lr=0.1))
    before = module.weight.detach().clone()
    scaler.scale(module(torch.full((1, 2), math.inf)).mean()).backward()
    scaler.step(optimizer)
    assert torch.equal(module.weight, before) and scaler.get_scale() == 32768.0
    optimizer.zero_grad()
    passes(scaler, module)
    scaler.step(optimizer)
    assert not torch.equal(module.weight, before)


def test_the_scale_can_be_saved_and_taken_up_again(initialize, tmp_path):
    _, _, scaler = initialize(model := nn.Linear(2, 1), torch.optim.SGD(model.parameters(), lr=0.1))
    scaler.load_state_dict({"loss_scaler0": {"loss_scale": 1024.0, "unskipped": 7}})
    torch.save(scaler.state_dict(), tmp_path / "scaler.pt")
    scaler.load_state_dict({"loss_scaler0": {"loss_scale": 2.0, "unskipped": 0}})
    scaler.load_state_dict(torch.load(tmp_path / "scaler.pt", weights_only=True))
    assert scaler.get_scale() == 1024.0 and scaler.state_dict()["loss_scaler0"]["unskipped"] == 7


@pytest.mark.gpu
def test_an_installed_apex_updates_weights_as_torch_does():
    if (finding := find_apex()).kind not in ("optimizers", "amp"):
        pytest.skip(finding.message)
    updated = []
    for name in ("adamw", "fusedadamw"):
        torch.manual_seed(0)
        module = nn.Linear(16, 4).cuda()
        optimizer = make_optimizer(module, OptimConfig(name=name, lr=0.01, weight_decay=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            module(torch.ones(8, 16, device="cuda")).square().mean().backward()
            optimizer.step()
        updated.append(module.weight.detach())
    torch.testing.assert_close(updated[1], updated[0], rtol=1e-4, atol=1e-6)
