"""Weights to and from safetensors files; a tensor that is missing, unexpected or of another shape is an error."""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

from multiattn.model.tuning import whole_state
from multiattn.runtime.files import atomic_path
from multiattn.runtime.tensor_files import state_problems


def save_weights(module_or_state: nn.Module | Mapping[str, Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write a module's state to a safetensors file, atomically: a reader finds the old file or the new one.

    Tied tensors are written once under each of their names, since safetensors refuses shared memory and a strict
    load wants every name. Names are kept as they are (a `module.` of DistributedDataParallel included). The metadata
    goes into the file's header, which holds text to text only.
    """
    bad = [key for key, value in metadata.items() if not (isinstance(key, str) and isinstance(value, str))]
    if bad:
        raise ValueError(f"{path}: metadata must map str to str (safetensors' header); {bad[0]!r} does not.")
    state = module_or_state.state_dict() if isinstance(module_or_state, nn.Module) else module_or_state
    # Own memory for every tensor: contiguous, and not shared with a tied one or with the rest of a bigger storage.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with atomic_path(Path(path)) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the notes of a safetensors file in order, which the library writes in another at every call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size))


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Fill a module from a file of `save_weights`; the module is untouched unless every tensor fits.

    The module keeps its own dtypes: tensors stored in float16, as bundles have them, are widened. A file with the tuned
    part of a network alone is completed, as `whole_state` does.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, or a tensor that is missing, unexpected or of another shape.
    """
    state = whole_state(path)
    problems = state_problems(module.state_dict(), state)
    if problems:
        raise ValueError(
            f"{path}: these are not the weights of this {type(module).__name__}: {'; '.join(problems)}. "
            "Is it the checkpoint of another experiment? Build the network from the experiment.json beside the file."
        )
    module.load_state_dict(state, strict=True)
