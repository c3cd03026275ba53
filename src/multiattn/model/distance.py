"""Distance of face crops from those a network was trained on, by its pooled features and statistics of the pixels.

A Gaussian is fitted to training crops and its scale taken from held-out ones, which the network has not seen: there a
new face of the same kind lies as far as it will later. Distances are given on that scale, 0 = the median of the
held-out crops and 1 = their 99th percentile, so that those of several networks can be averaged. Beyond 1 a face lies
outside, and its probability rests on nothing that was validated.

Plain Mahalanobis distance, as MDS of OpenOOD v1.5 (arXiv:2306.09301). Departures: statistics of the pixels stand beside
the features; of the covariance the largest directions are kept and the others share their mean variance (probabilistic
PCA), shrunk towards the mean of all; one mean for both classes, for a face of either is a face the network knows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from multiattn.model.checkpoints import save_weights
from multiattn.model.network import NetworkOutput
from multiattn.model.predict import predict_logits
from multiattn.runtime.tensor_files import read_metadata, read_state

STATISTICS = {
    "sharpness": ("blurred", "sharp"),
    "brightness": ("dark", "bright"),
    "contrast": ("pale", "of hard contrast"),
    "smooth area": ("grainy", "smooth"),
    "block edges": ("", "blocky"),
    "noise": ("", "noisy"),
    "face size": ("small", "large"),
}
"""Name -> words for a face whose value is lower, and higher, than those of held-out training faces; "" says nothing.
All but the last are measured on the crop as the network sees it and take part in the distance."""
NUM_PIXEL_STATISTICS = len(STATISTICS) - 1
DIRECTIONS = 32
"""Of the covariance, that are kept."""
SHRINKAGE = 0.05
LIMIT_QUANTILE = 0.99
WORD_QUANTILES = (0.005, 0.995)
"""Of held-out training crops; beyond them a statistic is a reason."""
MOST_WORDS = 2
LEAST_CROPS = 50
"""Fewer training or held-out crops have no 99th percentile to speak of."""
TINY = 1e-6
"""Below the spread of any feature of pictures that differ; nothing is divided by less."""
VERSION = "1"


def pixel_statistics(crops: Tensor) -> Tensor:
    """Simple statistics of crops at the network's size: (B, H, W, 3) uint8 RGB -> (B, 6) float32.

    Logarithm of the standard deviation of the Laplacian; mean and standard deviation of the luma, in [0, 255]; share of
    pixels with a Laplacian below 1 (areas that compression, blur or a pen left without texture); the steepest column
    of eight over the mean one, which JPEG's grid raises where the crop keeps it; and the logarithm of the Laplacian in
    the quietest tenth of all 8x8 cells, which noise alone raises.
    """
    luma = crops.float() @ torch.tensor([0.299, 0.587, 0.114], device=crops.device)  # (B, H, W)
    inner = luma[:, 1:-1, 1:-1]
    laplacian = 4 * inner - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1] - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    cells = nn.functional.avg_pool2d(laplacian.abs()[:, None], 8).flatten(1)
    columns = (luma[:, :, 1:] - luma[:, :, :-1]).abs().mean(dim=1)  # (B, W - 1)
    steepest = torch.stack([columns[:, offset::8].mean(dim=1) for offset in range(8)]).amax(dim=0)
    return torch.stack(
        [
            (laplacian.flatten(1).std(dim=1) + 0.1).log(),
            luma.flatten(1).mean(dim=1),
            luma.flatten(1).std(dim=1),
            (laplacian.abs() < 1).float().mean(dim=(1, 2)),
            steepest / columns.mean(dim=1).clamp(min=0.1),
            (cells.quantile(0.1, dim=1) + 0.1).log(),
        ],
        dim=1,
    )


class Faces(NamedTuple):
    """N crops as one network sees them.

    Attributes:
        features: (N, C) float64, pooled.
        statistics: (N, 7) float64, in the order of `STATISTICS`; the face's size is NaN where it is not known.
    """

    features: np.ndarray
    statistics: np.ndarray


def see_faces(
    network: nn.Module, batches: Iterable[Tensor], sides: np.ndarray, *, device: torch.device, precision: str
) -> Faces:
    """Features and statistics of crops.

    Args:
        batches: (B, H, W, 3) uint8 RGB, of N crops together.
        sides: (N,) pixels of the face's box in its frame, NaN where they are not known.
    """
    features, statistics = [], []

    def watch(crops: Tensor, output: NetworkOutput) -> None:
        features.append(output.features.double().cpu().numpy())
        statistics.append(pixel_statistics(crops).double().cpu().numpy())

    predict_logits(network, batches, device=device, precision=precision, watch=watch)
    return Faces(np.concatenate(features), np.column_stack([np.concatenate(statistics), sides]))


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceDistance:
    """A fitted distance: D = C + 6 features and statistics, K directions."""

    mean: Tensor
    """(D,) float32, as all tensors here."""
    weight: Tensor
    """(D,), by which each is multiplied after the mean is taken off."""
    directions: Tensor
    """(K, D), unit rows."""
    variances: Tensor
    """(K,)."""
    other_variance: Tensor
    """(), of each direction beyond them."""
    scale: Tensor
    """(2,): median and 99th percentile of the held-out crops' distances."""
    usual: Tensor
    """(2, 7): statistics below the first row or above the second are a reason; NaN where they are not known."""
    notes: dict[str, str] = field(default_factory=dict)
    """How it was fitted; text to text."""

    def to(self, device: torch.device) -> "FaceDistance":
        """The same on a device."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def measure(self, features: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) and pixel statistics (B, 6) of features (B, C) and crops (B, H, W, 3) uint8 on its device."""
        statistics = pixel_statistics(crops)
        raw = self.raw_distance(torch.cat([features.float(), statistics], dim=1))
        return (raw - self.scale[0]) / (self.scale[1] - self.scale[0]), statistics

    def raw_distance(self, points: Tensor) -> Tensor:
        """(B,) Mahalanobis distances, not on the scale of held-out crops, of features and statistics (B, D) float32."""
        with torch.autocast(points.device.type, enabled=False):
            points = (points - self.mean) * self.weight
            along = points @ self.directions.T
            rest = (points.square().sum(dim=1) - along.square().sum(dim=1)).clamp(min=0)
            return ((along.square() / self.variances).sum(dim=1) + rest / self.other_variance).sqrt()

    def reasons(self, statistics: np.ndarray) -> list[str]:
        """Words for faces by their statistics (N, 7), the most unusual first, as `dark, small`; empty where none is."""
        low, high = self.usual.double().numpy()
        span = np.maximum(high - low, 1e-6)
        excess = np.stack([(low - statistics) / span, (statistics - high) / span], axis=2)  # (N, 7, 2)
        words = np.array(list(STATISTICS.values()))  # (7, 2)
        excess = np.where((words != "") & (excess > 0), excess, 0.0).reshape(len(statistics), words.size)
        order = np.argsort(-excess, axis=1, kind="stable")[:, :MOST_WORDS]
        flat = words.reshape(-1)
        return [
            ", ".join(flat[place] for place in places if row[place] > 0)
            for row, places in zip(excess, order, strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically, with its notes."""
        save_weights(self._tensors(), path, {"version": VERSION, **self.notes})

    @classmethod
    def load(cls, path: Path) -> "FaceDistance":
        """Read the file that `save` wrote.

        Raises:
            FileNotFoundError, ValueError: no such file, or not this.
        """
        tensors, notes = read_state(path), read_metadata(path)
        if notes.get("version") != VERSION or {*tensors, "notes"} != {one.name for one in fields(cls)}:
            raise ValueError(
                f"{path}: expected the distance of faces, version {VERSION}, found another version or file. Make it "
                "anew with `multiattn predict --runs RUNS --faces FACES --fit-distance`."
            )
        return cls(**tensors, notes=notes)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if name != "notes"}


def fit_distance(training: Faces, held_out: Faces, notes: dict[str, str]) -> FaceDistance:
    """A Gaussian of training crops, with the scale of held-out ones; of each at least `LEAST_CROPS`."""
    counts = len(training.features), len(held_out.features)
    points = _points(training)
    num_features, (mean, deviation) = training.features.shape[1], (points.mean(axis=0), points.std(axis=0))
    # Features keep their proportions; all statistics together weigh as much as all features.
    share = np.sqrt(num_features / NUM_PIXEL_STATISTICS)
    spread = np.sqrt(np.mean(deviation[:num_features] ** 2) + TINY)
    weight = np.r_[np.full(num_features, 1 / spread), share / (deviation[num_features:] + TINY)]
    values, vectors = np.linalg.eigh(np.cov((points - mean) * weight, rowvar=False))
    values, vectors = values[::-1].clip(min=TINY), vectors[:, ::-1]  # the largest first
    kept = min(DIRECTIONS, counts[0] // 3, len(values) - 1)
    shrunk = (1 - SHRINKAGE) * np.r_[values[:kept], values[kept:].mean()] + SHRINKAGE * values.mean()
    arrays = {
        "mean": mean,
        "weight": weight,
        "directions": vectors[:, :kept].T,
        "variances": shrunk[:kept],
        "other_variance": shrunk[kept],
        "scale": [0.0, 1.0],
        "usual": np.quantile(held_out.statistics, WORD_QUANTILES, axis=0),  # NaN where one of them is not known
    }
    tensors = {name: torch.tensor(np.ascontiguousarray(array), dtype=torch.float32) for name, array in arrays.items()}
    about = {"training_crops": str(counts[0]), "held_out_crops": str(counts[1]), **notes}
    fitted = FaceDistance(**tensors, notes=about)
    distances = fitted.raw_distance(torch.from_numpy(_points(held_out)).float()).double().numpy()
    median, limit = np.quantile(distances, (0.5, LIMIT_QUANTILE))
    return replace(fitted, scale=torch.tensor([median, max(limit, 1.001 * median + TINY)], dtype=torch.float32))


def _points(faces: Faces) -> np.ndarray:
    """(N, D) features and pixel statistics side by side."""
    return np.column_stack([faces.features, faces.statistics[:, :NUM_PIXEL_STATISTICS]])
