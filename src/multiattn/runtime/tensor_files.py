"""Files of tensors: read without running what they hold, and compared with what a network expects."""

import contextlib
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multiattn.runtime.files import require_file

DAMAGE = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, LookupError, ValueError, TypeError),
    *(AssertionError, AttributeError, ArithmeticError),
)
"""Errors of `torch.load` from a file of altered bytes."""
SHOWN = 3
"""Names an error lists of each kind of problem."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or a PyTorch file, on the CPU; of a training checkpoint its `state_dict`.

    Raises:
        ValueError: unreadable, no state dict, or pickled objects, which are never unpickled.
    """
    path = Path(path)
    require_file(path)
    if path.suffix == ".safetensors":
        return read_state(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGE as error:
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"  # the opcode that opens every pickle since protocol 2
        if isinstance(error, pickle.UnpicklingError) and (is_pickle or "GLOBAL" in str(error)):
            raise ValueError(
                f"{path}: holds pickled Python objects, which are refused: unpickling runs code that the file names. "
                "Name the file with the tensors. Where this one has them and you trust its origin, save them alone: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)."
            ) from error
        # torch advises to unpickle anything, in the first line of its UnpicklingError.
        reason = type(error).__name__ if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise ValueError(f"{path}: not a PyTorch file of plain tensors ({reason}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path}: expected a state dict (name -> tensor), found {type(state).__name__}.")
    for name, value in state.items():
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        if not (isinstance(name, str) and is_plain):
            found = f"{value.layout} tensor" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{path}: expected a state dict (name -> dense tensor), found {name!r} -> {found}.")
    return dict(state)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or no safetensors file at all.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict


def read_metadata(path: str | Path) -> dict[str, str]:
    """The notes in a safetensors file's header; empty when it has none."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[safe_open]:
    require_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        size = Path(path).stat().st_size
        message = f"{path}: not a complete safetensors file ({size} bytes; {error}). Copy or train it again."
        raise ValueError(message) from error


def state_problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, counters: bool = True) -> list[str]:
    """Reasons why `found` does not fill a module's state `expected`, a phrase for each kind; empty when all fits.

    Without `counters`, `num_batches_tracked` may be missing: it changes nothing in eval mode, and files of old PyTorch
    versions do not have it.
    """
    missing = [n for n in expected if n not in found and (counters or not n.endswith("num_batches_tracked"))]
    unexpected = [name for name in found if name not in expected]
    both = [(name, tensor, found[name]) for name, tensor in expected.items() if name in found]
    different = [
        f"{name} {tuple(other.shape)} instead of {tuple(tensor.shape)}"
        for name, tensor, other in both
        if other.shape != tensor.shape
    ]
    # Of the right shape alone: a hostile file may claim one that no memory holds.
    fitting = [
        (name, other) for name, tensor, other in both if other.shape == tensor.shape and tensor.is_floating_point()
    ]
    integers = [f"{name} {other.dtype}" for name, other in fitting if not other.is_floating_point()]
    infinite = [name for name, other in fitting if other.is_floating_point() and not _is_finite(other)]
    kinds = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", different),
        ("no floating-point numbers", integers),
        ("not finite", infinite),
    )
    shown = [(kind, len(names), names[:SHOWN] + ["..."] * (len(names) > SHOWN)) for kind, names in kinds if names]
    return [f"{count} {kind} ({', '.join(names)})" for kind, count, names in shown]


def _is_finite(tensor: Tensor) -> bool:
    values = tensor.float() if tensor.element_size() == 1 else tensor  # torch has no `isfinite` of 8 bits
    return tensor.is_meta or bool(torch.isfinite(values).all())


def in_dtype_of(expected: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the other's floating-point type; as it is where shapes or kinds of numbers differ."""
    fits = tensor.shape == expected.shape and tensor.is_floating_point() and expected.is_floating_point()
    return tensor.to(expected.dtype) if fits else tensor


def first_line(error: Exception) -> str:
    """First line of an error's message; its class where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
