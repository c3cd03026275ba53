"""Networks as files that run without this package, ONNX graphs and `torch.export` programs; and onnxruntime on them.

Exporting takes the packages of the extra `onnx`, running an ONNX file onnxruntime alone.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from multiattn.model.network import NetworkOutput, fake_logit
from multiattn.model.predict import normalize_crops
from multiattn.runtime.files import atomic_path

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 18
"""Version of ONNX's operators: the oldest that torch's exporter writes, which most programs read."""
METADATA_FILE = "metadata.json"
"""Inside the archive of a `torch.export` program."""
MOST_BYTES = 1.9e9
"""Bytes of weights in an ONNX file: beyond 2 GB it would be several files."""
EXAMPLES = 2
"""Crops that a network is traced with; one would be taken for a batch that is always one."""


class CropClassifier(nn.Module):
    """Networks from uint8 crops to P(fake), with their preprocessing.

    Args:
        networks: at least one, in eval mode, of one size of crops.
    """

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """(B, size, size, 3) uint8 RGB -> (B,) P(fake), the mean over the K networks, and (B, K) their logits, both
        float32."""
        images = normalize_crops(crops)
        logits = torch.stack([fake_logit(network(images).logits.float()) for network in self.networks], dim=1)
        return logits.sigmoid().mean(dim=1), logits


class _PlainOutput(nn.Module):
    """A network from images to the tensors that prediction takes of it: class logits and pooled features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.network(images)
        return output.logits, output.features


def write_network(network: nn.Module, size: int, path: Path) -> None:
    """Write the ONNX file that `OnnxNetwork` runs: images (B, 3, size, size) float32 in [-1, 1] -> logits and
    features, as of `NetworkOutput`."""
    _write_onnx(_PlainOutput(network), torch.zeros(EXAMPLES, 3, size, size), path, ("images", "logits", "features"), {})


def write_classifier(classifier: CropClassifier, size: int, path: Path, metadata: Mapping[str, str]) -> None:
    """Write an ONNX file: `crops` (B, size, size, 3) uint8 RGB -> `probability` (B,) and `logits` (B, K) float32.

    Raises:
        ValueError: more weights than one file holds.
    """
    names = "crops", "probability", "logits"
    _write_onnx(classifier, torch.zeros(EXAMPLES, size, size, 3, dtype=torch.uint8), path, names, metadata)


def _write_onnx(
    network: nn.Module, example: Tensor, path: Path, names: tuple[str, ...], metadata: Mapping[str, str]
) -> None:
    if (needed := sum(it.numel() * it.element_size() for it in network.state_dict().values())) > MOST_BYTES:
        raise ValueError(
            f"{path.name}: expected at most {MOST_BYTES / 1e9:g} GB of weights for one ONNX file, found "
            f"{needed / 1e9:.1f}. Export single folds, or --format torch-export."
        )
    with _quietly():
        program = torch.onnx.export(
            network.eval(), (example,), dynamo=True, opset_version=OPSET, input_names=names[:1],
            output_names=names[1:], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False,
            verbose=False,
        )  # fmt: skip
    program.model.metadata_props.update(metadata)
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)


def quantize(source: Path, path: Path, batches: Sequence[np.ndarray], name: str = "crops") -> None:
    """Write an ONNX file's int8 form (QDQ), calibrated on batches of its input `name`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[np.ndarray] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._left, None)
            return None if batch is None else {name: batch}

    joined = path.with_name(f"joined_{path.name}")
    quant_pre_process(source, joined, skip_symbolic_shape=True)
    quantize_static(
        joined, path, Batches(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        reduce_range=True,  # 7 bits: sums of two products overflow 16 bits on processors without VNNI
        extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    joined.unlink()


def write_program(classifier: CropClassifier, size: int, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a `torch.export` program of a classifier, which `torch.export.load(path).module()` calls as it is called
    here; `METADATA_FILE` is among its extra files."""
    example = torch.zeros(EXAMPLES, size, size, 3, dtype=torch.uint8)
    # Autocast is off, so that the contexts that forbid it change nothing: torch cannot read a program with them back.
    with _quietly(), mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()):
        program = torch.export.export(
            classifier.eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
        )
    with atomic_path(path) as temporary:
        torch.export.save(program, temporary, extra_files={METADATA_FILE: json.dumps(dict(metadata))})


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the remarks of torch's exporter on operators that are not installed, and without gradients."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with torch.no_grad():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def open_session(path: Path, threads: int) -> "InferenceSession":
    """An ONNX file ready to run on the CPU with so many threads.

    Raises:
        ValueError: no ONNX file, or a damaged one.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as `set_wait_policy` has it for torch
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (errors.Fail, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoSuchFile) as error:
        found = "a damaged one" if path.is_file() else "none"
        raise ValueError(
            f"{path}: expected an ONNX file, found {found} ({error}). Delete it, and run again."
        ) from error


class OnnxNetwork(nn.Module):
    """A file of `write_network` in the place of its network, run by onnxruntime in float32. Safe for threads.

    Args:
        threads: that a call computes with.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        super().__init__()
        self.session = open_session(path, threads)

    def forward(self, images: Tensor) -> NetworkOutput:
        """(B, 3, size, size) float32 in [-1, 1] on the CPU -> logits and features; no attention, no parts."""
        logits, features = self.session.run(None, {"images": images.contiguous().numpy()})
        return NetworkOutput(torch.from_numpy(logits), None, None, torch.from_numpy(features))


def run_classifier(path: Path, crops: np.ndarray, *, batch_size: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """P(fake) (N,) and logits (N, K), both float64, of crops (N, size, size, 3) uint8 by a written classifier."""
    if path.suffix == ".onnx":
        session = open_session(path, threads)

        def run(batch: np.ndarray) -> list[np.ndarray]:
            return session.run(None, {"crops": batch})
    else:
        module = torch.export.load(path).module()

        def run(batch: np.ndarray) -> list[np.ndarray]:
            with torch.inference_mode():
                return [output.numpy() for output in module(torch.from_numpy(batch))]

    found = [run(crops[start : start + batch_size]) for start in range(0, len(crops), batch_size)]
    probability, logits = (np.concatenate(part).astype(np.float64) for part in zip(*found, strict=True))
    return probability, logits
