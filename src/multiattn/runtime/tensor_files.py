"""Files of tensors: read without running what they hold, and compared with what a network expects."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

SHOWN = 3
"""Names an error lists of each kind of problem."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a .safetensors or a PyTorch file, on the CPU; of a training checkpoint its `state_dict`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, no state dict, or pickled objects, which are never unpickled.
    """
    path = Path(path)
    require_file(path)
    if path.suffix == ".safetensors":
        return read_state(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        if "GLOBAL" in str(error):
            raise ValueError(
                f"{path}: holds pickled Python objects, which are refused: unpickling runs code that the file names. "
                "Where you trust its origin, save its tensors alone: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)."
            ) from error
        raise ValueError(f"{path}: not a PyTorch file of plain tensors ({first_line(error)}).") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict (name -> tensor), found {type(state).__name__}.")
    return dict(state)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, or no safetensors file at all.
    """
    require_file(path)
    try:
        return safetensors.torch.load_file(path, device="cpu")
    except SafetensorError as error:
        raise unreadable(path, error) from error


def state_problems(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, counters: bool = True) -> list[str]:
    """Reasons why `found` does not fill `expected`, one phrase a kind of problem; empty when all fits.

    Args:
        expected: the module's state dict.
        found: the file's.
        counters: False if `num_batches_tracked` may be missing: it changes nothing in eval mode, and files of old
            PyTorch versions do not have it.
    """
    missing = [n for n in expected if n not in found and (counters or not n.endswith("num_batches_tracked"))]
    unexpected = [name for name in found if name not in expected]
    different = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", different))
    return [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds if names]


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def require_file(path: str | Path) -> None:
    """Raise `FileNotFoundError` unless there is such a weights file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file.")


def unreadable(path: str | Path, error: SafetensorError) -> ValueError:
    """The error to raise for a file that is no whole safetensors file."""
    size = Path(path).stat().st_size
    return ValueError(f"{path}: not a complete safetensors file ({size} bytes; {error}). Copy or train it again.")


def first_line(error: Exception) -> str:
    """The first line of an error's message; its class where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
