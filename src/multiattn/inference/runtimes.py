"""The networks of runs as prediction runs them: by torch, or exported once and run by onnxruntime on a CPU."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import nn

from multiattn.config.choices import Runtime
from multiattn.inference.runs import TrainedModel
from multiattn.model.exported import OnnxNetwork, write_network
from multiattn.model.predict import normalize_crops
from multiattn.runtime.devices import EXPORT_SECONDS, require_exporter
from multiattn.runtime.environment import package_version
from multiattn.runtime.files import exclusive_folder
from multiattn.runtime.layout import DIGESTS_FILE, EXPORTED_FOLDER, experiment_folder
from multiattn.runtime.processor import tune_cpu

logger = logging.getLogger(__name__)

LARGEST_DIFFERENCE = 1e-4
"""Between a float32 export and torch, in a logit and so in P(fake): rounding is some 1e-6."""
LARGEST_SHIFT = 1e-3
"""Between their pooled features, as a part of the largest one: distances, and so doubts, are measured on them."""
OWN_FILES = "[0-9a-f]" * 16 + "-*.onnx"
"""Names of `exported_file`, as a pattern; other files beside them are not ours to delete."""
CHECKED_CROPS = 4


def load_network(model: TrainedModel, device: torch.device, *, threads: int | None = None) -> nn.Module:
    """The network as prediction runs it, images (B, 3, H, W) float in [-1, 1] -> `NetworkOutput`.

    Args:
        threads: that a call by another library than torch computes with; None: as many as torch.
    """
    return RUNTIMES[model.runtime](model, device, threads or torch.get_num_threads())


def _torch_network(model: TrainedModel, device: torch.device, threads: int) -> nn.Module:
    """On a CPU with its batch normalisations folded into convolutions, the same logits to rounding in about 0.6 of the
    time; on a GPU autocast would round the folded weights instead."""
    from multiattn.model.rewrites import fold_batch_norms  # timm, as in `model.network`

    network = model.load(device)
    return fold_batch_norms(network) if device.type == "cpu" else network


def _onnx_network(model: TrainedModel, device: torch.device, threads: int) -> nn.Module:
    """Without attention maps."""
    _require_cpu(device)
    return OnnxNetwork(exported_network(model), threads=threads)


RUNTIMES: dict[Runtime, Callable[[TrainedModel, torch.device, int], nn.Module]] = {
    "torch": _torch_network,
    "onnxruntime": _onnx_network,
}
if set(RUNTIMES) != set(get_args(Runtime)):
    raise TypeError(f"Runtime lists {', '.join(get_args(Runtime))}; those there are: {', '.join(RUNTIMES)}.")


def with_runtime(models: Sequence[TrainedModel], runtime: Runtime, *devices: torch.device) -> list[TrainedModel]:
    """The same models, which predict by this library; what it needs of them is made where it is not there yet.

    Raises:
        ValueError: a device that it does not run on, a package that is missing, or an export that answers otherwise.
    """
    models = [replace(model, runtime=runtime) for model in models]
    if runtime != "torch":
        for device in devices:
            _require_cpu(device)
        for model in models:
            exported_network(model)
    return models


def can_predict(models: Sequence[TrainedModel], runtime: Runtime, *devices: torch.device) -> bool:
    """False where `with_runtime` has files to make first; raises as it does of what can be known before."""
    if runtime == "torch":
        return True
    for device in devices:
        _require_cpu(device)
    if all(exported_file(model).is_file() for model in models):
        return True
    require_exporter("onnxruntime")
    return False


def _require_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        raise ValueError(f"--runtime onnxruntime: expected a CPU to compute on, found {device}. Add --device cpu.")


def exported_file(model: TrainedModel) -> Path:
    """Where the ONNX file of a model's network is or will be: in the run's folder, or for a packaged run and a folder
    that cannot be written, as a bundle's that brings none, in the user's cache; named by all that decides its
    answers."""
    weights = replace(model, tta="none").fingerprint()
    name = f"{weights}-{package_version()}.onnx"
    path = model.path / EXPORTED_FOLDER / name
    is_packaged = (experiment_folder(model.path) / DIGESTS_FILE).is_file()
    is_beside = path.is_file() or os.access(model.path, os.W_OK)
    return path if is_beside and not is_packaged else user_cache() / weights / name


def exported_network(model: TrainedModel) -> Path:
    """The `exported_file` of a model, made by the first that asks.

    Raises:
        ValueError: packages that export are missing, or the file answers otherwise than torch.
    """
    path = exported_file(model)
    folder = path.parent
    if path.is_file():  # whole, since it is renamed when it is
        return path
    require_exporter("onnxruntime")
    with exclusive_folder(folder, patience_seconds=EXPORT_SECONDS):
        if not path.is_file():
            logger.info("%s: exported once for onnxruntime, to %s", model.name, path)
            _export(model, path)
            for earlier in folder.glob(OWN_FILES):  # of weights or of a version that the run no longer has
                if earlier != path and earlier.resolve().parent == folder.resolve():
                    earlier.unlink(missing_ok=True)
    return path


def _export(model: TrainedModel, path: Path) -> None:
    """Write the file under its name once it has answered as torch does, on noise."""
    cpu, size, unchecked = torch.device("cpu"), model.experiment.data.image_size, path.with_suffix(".unchecked")
    tune_cpu()
    network, threads = _torch_network(model, cpu, 1), torch.get_num_threads()
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (CHECKED_CROPS, size, size, 3), np.uint8))
    try:
        write_network(network, size, unchecked)
        with torch.inference_mode():
            expected, found = (
                run(normalize_crops(noise)) for run in (network, OnnxNetwork(unchecked, threads=threads))
            )
        require_same(model.name, float((found.logits - expected.logits).abs().max()))
        _require_same_features(model.name, expected.features, found.features)
        unchecked.replace(path)
    finally:
        unchecked.unlink(missing_ok=True)


def require_same(name: str, difference: float) -> None:
    """Raise `ValueError` where a float32 export answers otherwise than torch; NaN too."""
    if not difference <= LARGEST_DIFFERENCE:
        raise ValueError(
            f"{name}: expected an export whose logits and P(fake) are torch's to {LARGEST_DIFFERENCE:g}, found a "
            f"difference of {difference:.1e}, so it is not kept. Predict with --runtime torch, and report the backbone."
        )


def _require_same_features(name: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    """The same of pooled features (B, C), without which faces unlike those of the training would not be told."""
    shift = float((found - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny))
    if not shift <= LARGEST_SHIFT:
        raise ValueError(
            f"{name}: expected an export whose features are torch's to {LARGEST_SHIFT:g} of the largest, found "
            f"{shift:.1e}, so it is not kept. Predict with --runtime torch, and report the backbone."
        )


def user_cache() -> Path:
    """The folder of files that can be made again, of this user and package."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multiattn"
