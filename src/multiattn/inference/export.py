"""A run's networks as one file that runs without this package, checked before it is delivered."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from multiattn.config import to_json
from multiattn.config.choices import ExportFormat, ExportPrecision
from multiattn.inference.attention_maps import spread_crops
from multiattn.inference.kit.half_weights import crops_to_compare
from multiattn.inference.runs import TrainedModel, find_models
from multiattn.inference.runtimes import require_same
from multiattn.model.exported import (
    OPSET,
    CropClassifier,
    quantize,
    run_classifier,
    write_classifier,
    write_program,
)
from multiattn.model.predict import predict_logits
from multiattn.model.rewrites import fold_batch_norms
from multiattn.runtime.crop_files import crops_root
from multiattn.runtime.environment import package_version
from multiattn.runtime.files import atomic_path, file_digest
from multiattn.runtime.layout import BEST_WEIGHTS
from multiattn.runtime.processor import tune_cpu
from multiattn.runtime.text_tables import counted
from multiattn.scoring.aggregators import DEFAULT_CLIP
from multiattn.scoring.frame_rules import sigmoid
from multiattn.scoring.metrics import log_loss
from multiattn.tables import FAKE, REAL
from multiattn.video.crops.images import read_crop
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

BATCH_SIZE = 16
CPU = torch.device("cpu")
CHECKED_CROPS = 64
"""Crops that a float32 file is compared with torch on."""
MOST_CROPS, LEAST_CROPS = 200, 20
"""Held-out crops of each fold, for calibration and as many others to judge it by."""
LARGEST_LOSS = 0.01
"""Log loss that a lower precision may add."""


@dataclass(frozen=True)
class Exported:
    """A delivered file."""

    path: Path
    models: tuple[str, ...]
    size: int
    """Pixels along a side of its crops."""
    differences: tuple[float, float]
    """The largest from torch in float32, of P(fake) and of a logit."""
    crops: int
    """Crops that these are of."""
    losses: tuple[float, float, int] | None = None
    """Log loss in float32 and in the file's precision, and the held-out crops that they are of."""


def export_run(
    run: Path,
    path: Path,
    *,
    form: ExportFormat,
    precision: ExportPrecision = "float32",
    faces: Path | None = None,
) -> Exported:
    """Write one file of a fold's network, or of all folds' of an experiment, whose P(fake) is the mean of theirs, as
    that of the untuned rule is; nothing is left where it is refused.

    Args:
        run: the folder of the fold, or of the experiment.
        faces: a faces folder whose held-out crops it is checked on, and calibrated for int8; None: on drawn pictures.

    Raises:
        FileNotFoundError: no run there.
        ValueError: answers that differ from torch's by more than 1e-4, or a lower precision that costs more than 0.01
            of log loss or has too few held-out crops.
    """
    tune_cpu()
    models = find_models(run)
    size = models[0].experiment.data.image_size
    crops = crops_to_compare(models[0], [faces] if faces else [], CHECKED_CROPS)
    held_out = [] if precision == "float32" else [HeldOutCrops.of(model, faces) for model in models]
    networks = [model.load(CPU) for model in models]
    batches = torch.from_numpy(crops).split(BATCH_SIZE)
    logits = [predict_logits(network, batches, device=CPU, precision="fp32") for network in networks]
    classifier = CropClassifier(*map(fold_batch_norms, networks))
    logger.info("%s: traced, written and asked about %s", path, counted(len(crops), "crop"))
    write = write_classifier if form == "onnx" else write_program
    losses = None
    with tempfile.TemporaryDirectory(prefix="multiattn_export_") as folder, atomic_path(path) as temporary:
        # A name that ends as the file will: torch and `run_classifier` go by it.
        exact = Path(folder) / f"float32{path.suffix}"
        write(classifier, size, exact, metadata(models, precision))
        differences = _differences(exact, crops, np.stack(logits, axis=1))
        require_same(str(path), float(np.max(differences)))  # NaN too
        delivered = exact
        if precision != "float32":
            delivered = exact.with_name(f"{precision}{path.suffix}")
            LOWER_PRECISIONS[precision](exact, delivered, held_out)
            losses = _losses(exact, held_out), _losses(delivered, held_out), sum(len(it.labels) for it in held_out)
            _require_no_worse(path, precision, losses)
        shutil.copyfile(delivered, temporary)
    return Exported(path, tuple(model.name for model in models), size, differences, len(crops), losses)


def metadata(models: Sequence[TrainedModel], precision: ExportPrecision) -> dict[str, str]:
    """The notes inside a file: what it is made of, takes and gives; text to text."""
    size = models[0].experiment.data.image_size
    return {
        "made_by": f"multiattn {package_version()}",
        "experiment": models[0].experiment.name,
        "models": json.dumps([model.name for model in models]),
        "weights_sha256": json.dumps([file_digest(model.path / BEST_WEIGHTS) for model in models]),
        "labels": json.dumps({"real": REAL, "fake": FAKE}),
        "image_size": str(size),
        "precision": precision,
        "opset": str(OPSET),
        "input": f"crops: (B, {size}, {size}, 3) uint8 RGB face crops, cut as crop_recipe says",
        "outputs": f"probability: (B,) float32 P(fake) of a crop, the mean over the models, before any scoring rule; "
        f"logits: (B, {len(models)}) float32, of P(fake) by each model",
        "crop_recipe": json.dumps(to_json(models[0].recipe.for_prediction())),
    }


def _differences(path: Path, crops: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """The largest of P(fake) and of the logits (N, K), by a file and by torch."""
    found, of_models = _run(path, crops)
    return float(np.abs(found - sigmoid(logits).mean(axis=1)).max()), float(np.abs(of_models - logits).max())


def _run(path: Path, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return run_classifier(path, crops, batch_size=BATCH_SIZE, threads=torch.get_num_threads())


@dataclass(frozen=True, eq=False)
class HeldOutCrops:
    """Crops of videos that a model was not trained on, by videos dealt into those to calibrate and those to judge by.

    Their labels are those of the folds table.
    """

    calibration: np.ndarray
    """(N, size, size, 3) uint8 RGB."""
    judged: np.ndarray
    """(J, size, size, 3), of other videos."""
    labels: np.ndarray
    """(J,) 0 real, 1 fake."""

    @classmethod
    def of(cls, model: TrainedModel, folder: Path) -> "HeldOutCrops":
        """Evenly spaced over the folder's; raises as `export_run`."""
        model.require_same_crops(folder, read_recipe(folder))
        labels = model.folds().set_index("video_id")["label"]
        table = read_faces_folder(folder)[0].sort_values(["video_id", "frame_index", "track"])
        table = table.assign(label=table["video_id"].map(labels))
        table = table[table["video_id"].isin(model.held_out_videos()) & table["label"].isin([REAL, FAKE])]
        # Half of the reals' videos and half of the fakes' each.
        videos = table.drop_duplicates("video_id")
        is_judged = videos.groupby("label").cumcount() % 2 == 1
        judged = table["video_id"].isin(videos["video_id"][is_judged])
        parts = [spread_crops(part, MOST_CROPS) for part in (table[~judged], table[judged])]
        if (least := min(map(len, parts))) < LEAST_CROPS:
            raise ValueError(
                f"{folder}: expected at least {LEAST_CROPS} crops of each half of the videos that {model.name} held "
                f"out, found {least}. Give the faces folder that the run was trained on."
            )
        size, root = model.experiment.data.image_size, crops_root(folder)
        pixels = [np.stack([read_crop(root / name, size) for name in part["crop"]]) for part in parts]
        return cls(*pixels, parts[1]["label"].to_numpy(np.int64))


def _losses(path: Path, held_out: Sequence[HeldOutCrops]) -> float:
    """Log loss of the judged crops, each by the model that never saw its video."""
    of_models = [_run(path, it.judged)[1][:, number] for number, it in enumerate(held_out)]
    probabilities = np.clip(sigmoid(np.concatenate(of_models)), 0, 1)
    return log_loss(np.concatenate([it.labels for it in held_out]), probabilities, clip=DEFAULT_CLIP)


def _require_no_worse(path: Path, precision: str, losses: tuple[float, float, int]) -> None:
    exact, lower, count = losses
    if not lower <= exact + LARGEST_LOSS:
        raise ValueError(
            f"{path}: expected a log loss at most {LARGEST_LOSS} above float32's {exact:.4f} in {precision}, found "
            f"{lower:.4f} on {count} held-out crops, so nothing is delivered. Export it in float32."
        )


def _to_float16(source: Path, path: Path, held_out: Sequence[HeldOutCrops]) -> None:
    """Weights and arithmetic in float16; inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), path)


def _to_int8(source: Path, path: Path, held_out: Sequence[HeldOutCrops]) -> None:
    """Convolutions and linear layers in 8 bits, with a scale a channel of the weights, and ranges of activations from
    the crops to calibrate."""
    crops = np.concatenate([it.calibration for it in held_out])
    quantize(source, path, np.array_split(crops, -(-len(crops) // BATCH_SIZE)))


LOWER_PRECISIONS: dict[ExportPrecision, Callable[[Path, Path, Sequence[HeldOutCrops]], None]] = {
    "float16": _to_float16,
    "int8": _to_int8,
}
"""Precision -> what makes a file of it from one in float32."""
if {"float32", *LOWER_PRECISIONS} != set(get_args(ExportPrecision)):
    raise TypeError(
        f"ExportPrecision lists {', '.join(get_args(ExportPrecision))}; made are {', '.join(LOWER_PRECISIONS)}."
    )


def describe_file(found: Exported) -> Iterator[str]:
    """Lines for a terminal."""
    size, count = found.size, len(found.models)
    yield (
        f"{found.path} ({found.path.stat().st_size / 1e6:.1f} MB) of {', '.join(found.models)}: crops (B, {size}, "
        f"{size}, 3) uint8 RGB -> probability (B,), logits (B, {count})"
    )
    yield (
        f"in float32 beside torch, on {found.crops} crops: P(fake) differs by at most {found.differences[0]:.1e}, "
        f"logits by at most {found.differences[1]:.1e}"
    )
    if found.losses is not None:
        exact, lower, crops = found.losses
        yield f"log loss on {crops} held-out crops: {exact:.4f} in float32, {lower:.4f} in the file"
