"""NVIDIA's apex: detect which package of that name is installed, and use its mixed precision and fused optimisers.

Nothing of apex is needed: torch's own mixed precision and fused optimisers do the same work, and are the default.
timm imports whatever apex it finds and passes over an ImportError, which PyPI's raises; one that raises something else
stops every import of timm, and this program with it. Training with a real apex was not run by us: tests cover the
detection, the messages, and the calls to `apex.amp` against a stand-in that keeps to its documented protocol.
"""

import contextlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

FUSED_PREFIX = "fused"
"""Beginning of the names timm's factory gives apex's optimisers: `fusedadam`, `fusedadamw`, `fusedlamb`, ..."""
BUILD = (
    "uninstall what is there (`pip uninstall apex`), clone NVIDIA's repository (NVIDIA/apex){tag} and, inside it, with "
    "the CUDA toolkit that torch was built with, run {command}"
)
IMPORT_FAILURES = (
    AssertionError, AttributeError, ImportError, LookupError, NameError,
    OSError, RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""Errors that code written for another version of Python or torch raises when it is imported."""


@dataclass(frozen=True)
class ApexFinding:
    """The installed apex."""

    kind: Literal["none", "other-project", "no-extensions", "optimizers", "amp"]
    version: str | None = None
    location: str | None = None
    reason: str | None = None
    """The error of CUDA extensions that are missing or do not load."""

    @property
    def message(self) -> str:
        if self.kind == "none":
            return "no apex is installed"
        finding = {
            "other-project": "not NVIDIA's but another project of that name, such as `pip install apex` brings",
            "no-extensions": f"NVIDIA's, but its CUDA extensions do not load ({self.reason})",
            "optimizers": "NVIDIA's with its CUDA extensions, but without apex.amp",
            "amp": "NVIDIA's with its CUDA extensions, and apex.amp",
        }[self.kind]
        return f"the installed apex{f' {self.version}' if self.version else ''} ({self.location}) is {finding}"


def find_apex() -> ApexFinding:
    """Detect the installed apex. Only a package with NVIDIA's optimisers in it is imported, and that may fail."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return ApexFinding("none")
    folders = [Path(folder) for folder in spec.submodule_search_locations or [Path(spec.origin or "").parent]]
    found: dict[str, Any] = {"location": str(folders[0])}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found["version"] = importlib.metadata.version("apex")
    if not any((folder / "optimizers" / "fused_adam.py").is_file() for folder in folders):
        return ApexFinding("other-project", **found)
    try:
        # The second import succeeds without the first, and fails when an optimiser is made.
        import amp_C  # noqa: F401
        import apex.optimizers  # noqa: F401
    except IMPORT_FAILURES as error:
        return ApexFinding("no-extensions", **found, reason=str(error))
    return ApexFinding("optimizers" if _import_amp() is None else "amp", **found)


def require_fused(name: str, device: torch.device) -> None:
    """Refuse one of apex's optimisers where there is no GPU, or no apex with its CUDA extensions."""
    _require(
        f"--optim.name {name}",
        device,
        kinds=("optimizers", "amp"),
        expected="NVIDIA's apex with its CUDA extensions",
        build=BUILD.format(tag="", command="`APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation .`"),
        instead=f"use `--optim.name {name.lower().replace(FUSED_PREFIX, '')}`, which needs no apex",
    )


def require_amp(device: torch.device) -> None:
    """Refuse `--precision apex-O1` where there is no GPU, or no apex that still has `amp`."""
    command = (
        '`pip install -v --no-build-isolation --config-settings "--build-option=--cpp_ext" '
        '--config-settings "--build-option=--cuda_ext" ./`'
    )
    _require(
        "--precision apex-O1",
        device,
        kinds=("amp",),
        expected="an NVIDIA apex that has apex.amp and its CUDA extensions",
        # Removed in May 2025: the next tag, 25.07, is without it.
        build=BUILD.format(tag=" at its tag 25.05 or before", command=command),
        instead="use torch's own mixed precision: `--precision bf16`, or `fp16` on a GPU without bf16",
    )


def _require(
    option: str, device: torch.device, *, kinds: tuple[str, ...], expected: str, build: str, instead: str
) -> None:
    finding = find_apex()
    if device.type != "cuda":
        raise ValueError(
            f"{option}: expected a run on a GPU, which apex needs; this one is on the {device.type}, and "
            f"{finding.message}. Instead, {instead}."
        )
    if finding.kind not in kinds:
        raise ValueError(f"{option}: expected {expected}; {finding.message}. To get it, {build}. Or {instead}.")


class ApexScaler:
    """apex's dynamic loss scaling behind the methods of `torch.amp.GradScaler` that training calls.

    Every backward pass leaves scaled gradients (`delay_unscale`, apex's way of accumulating them), so that several
    passes add up, and the reduction of DistributedDataParallel sees their sum; they are unscaled once, before clipping
    or before the step. An overflow then skips that step and halves the scale.
    """

    def __init__(self, amp: ModuleType, optimizer: Optimizer, device: torch.device) -> None:
        self._amp, self._optimizer, self._device = amp, optimizer, device
        self._is_unscaled = False

    def is_enabled(self) -> bool:
        return True

    def scale(self, loss: Tensor) -> Tensor:
        with self._amp.scale_loss(loss, self._optimizer, delay_unscale=True) as scaled:
            return scaled

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, check for overflow, and set the next step's scale."""
        with self._amp.scale_loss(torch.zeros((), device=self._device), optimizer):
            pass  # leaving it does the work
        self._is_unscaled = True

    def step(self, optimizer: Optimizer) -> None:
        if not self._is_unscaled:
            self.unscale_(optimizer)
        optimizer.step()
        self._is_unscaled = False

    def update(self) -> None:
        """Nothing: the scale has been set with the gradients."""

    def get_scale(self) -> float:
        return float(self._amp.state_dict()["loss_scaler0"]["loss_scale"])

    def state_dict(self) -> dict[str, Any]:
        """apex's own: scale, and steps since an overflow."""
        return {name: dict(value) for name, value in self._amp.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._amp.load_state_dict(state)


def initialize_apex_o1(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer, ApexScaler]:
    """Model, optimiser and scaler of apex's O1: float32 weights, torch's functions patched to cast their inputs.

    Call it where `require_amp` lets it pass, before DistributedDataParallel, once for each optimiser, and use no
    autocast beside it. The patches are the process's: they cast in validation too, and every further call (another
    phase, another fold) wraps them once more.
    """
    amp = _import_amp()
    model, optimizer = amp.initialize(model, optimizer, opt_level="O1", verbosity=0)
    return model, optimizer, ApexScaler(amp, optimizer, next(model.parameters()).device)


def _import_amp() -> ModuleType | None:
    try:
        from apex import amp
    except IMPORT_FAILURES:
        return None
    return amp
