"""Distance of face crops from those a network was trained on, by its pooled features and statistics of the pixels.

Gaussians are fitted to training crops, and their scale is taken from held-out ones, which the network has not seen:
there a new face of the same kind lies as far as it will later. Distances are given on that scale, 0 = the median of the
held-out crops and 1 = their 99th percentile, so that those of several networks can be averaged. Beyond 1 a face lies
outside, and its probability rests on nothing that was validated.

Plain Mahalanobis distance, as MDS of OpenOOD v1.5 (arXiv:2306.09301). Departures: statistics of the pixels have a
Gaussian of their own, and both count alike; of the features' covariance the largest directions are kept and the others
share their mean variance (probabilistic PCA); both are shrunk; one mean for both classes, for a face of either is one
the network knows. Features alone told neither blurred, dark or noisy faces from those of the training nor the demo's
portrait from DFDC's faces (inference/README.md has the comparison).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

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
All but the last are measured on the crop as the network sees it, and take part in the distance."""
NUM_WORDS = len(STATISTICS) - 1
"""Pixel statistics that have words; they come first."""
OCTAVES = 5
DIRECTIONS = 32
"""Directions of the features' covariance that are kept."""
SHRINKAGE, PIXEL_SHRINKAGE = 0.05, 0.01
YCBCR = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
LIMIT_QUANTILE = 0.99
WORD_QUANTILES = (0.005, 0.995)
"""Quantiles of held-out training crops; beyond them a statistic is a reason."""
MOST_WORDS = 2
LEAST_CROPS = 50
"""Fewer training or held-out crops have no 99th percentile to speak of."""
TINY = 1e-6
"""Below the spread of any feature of pictures that differ; nothing is divided by less."""
VERSION = "2"


def pixel_statistics(crops: Tensor) -> Tensor:
    """Statistics of crops at the network's size: (B, H, W, 3) uint8 RGB -> (B, 31) float32.

    First those with words: logarithm of the standard deviation of the Laplacian; mean and standard deviation of the
    luma, in [0, 255]; share of pixels with a Laplacian below 1 (areas that compression, blur or a pen left without
    texture); the steepest column of eight over the mean one, which JPEG's grid raises where the crop keeps it; and the
    logarithm of the Laplacian in the quietest tenth of all 8x8 cells, which noise alone raises. Then the mean chroma;
    in each of five octaves the logarithm of the standard deviation of luma and chroma, and of the luma's quietest
    tenth; and the former of what is left below them.
    """
    red, green, blue = (crops[..., channel].float() for channel in range(3))
    planes = torch.stack([r * red + g * green + b * blue for r, g, b in YCBCR], dim=1)  # faster than einsum
    luma = planes[:, 0]  # (B, H, W)
    inner = luma[:, 1:-1, 1:-1]
    laplacian = 4 * inner - luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1] - luma[:, 1:-1, :-2] - luma[:, 1:-1, 2:]
    columns = (luma[:, :, 1:] - luma[:, :, :-1]).abs().mean(dim=1)  # (B, W - 1)
    steepest = torch.stack([columns[:, offset::8].mean(dim=1) for offset in range(8)]).amax(dim=0)
    found = [
        _log(_spread(laplacian)),
        luma.mean(dim=(1, 2)),
        _spread(luma),
        (laplacian.abs() < 1).float().mean(dim=(1, 2)),
        steepest / columns.mean(dim=1).clamp(min=0.1),
        _quietest_tenth(laplacian, 8),
        *planes[:, 1:].mean(dim=(2, 3)).unbind(1),
    ]
    for _ in range(OCTAVES):
        coarse = functional.avg_pool2d(planes, 2)
        height, width = (2 * side for side in coarse.shape[2:])
        smooth = functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        octave = planes[:, :, :height, :width] - smooth
        found += [*_log(_spread(octave)).unbind(1), _quietest_tenth(octave[:, 0], max(2, height // 16))]
        planes = coarse
    return torch.stack([*found, *_log(_spread(planes)).unbind(1)], dim=1)


def _spread(planes: Tensor) -> Tensor:
    """Standard deviation over space; `std` is several times slower on a CPU."""
    return (planes - planes.mean(dim=(-2, -1), keepdim=True)).square().mean(dim=(-2, -1)).sqrt()


def _log(values: Tensor) -> Tensor:
    return (values + 0.1).log()


def _quietest_tenth(planes: Tensor, cell: int) -> Tensor:
    """Logarithm of the mean |value| in the quietest tenth of all cells of so many pixels; (B, H, W) -> (B,)."""
    cells = functional.avg_pool2d(planes.abs()[:, None], min(cell, *planes.shape[1:])).flatten(1)
    return _log(cells.quantile(0.1, dim=1))


class Faces(NamedTuple):
    """N crops as one network sees them."""

    features: np.ndarray
    """(N, C) float64, pooled."""
    pixels: np.ndarray
    """(N, 31) float64, of `pixel_statistics`."""
    sides: np.ndarray
    """(N,) pixels of the face's box in its frame, NaN where they are not known."""


def see_faces(network: nn.Module, batches: Iterable[Tensor], sides: np.ndarray, *, device: torch.device) -> Faces:
    """N crops in batches (B, H, W, 3) uint8 RGB, as the network sees them in float32."""
    features, pixels = [], []

    def watch(crops: Tensor, output: NetworkOutput) -> None:
        features.append(output.features.double().cpu().numpy())
        pixels.append(pixel_statistics(crops).double().cpu().numpy())

    predict_logits(network, batches, device=device, precision="fp32", watch=watch)
    return Faces(np.concatenate(features), np.concatenate(pixels), sides)


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceDistance:
    """A fitted distance: C features in K directions, S statistics of the pixels."""

    mean: Tensor
    """(C,) float32, as all tensors here."""
    directions: Tensor
    """(K, C), unit rows."""
    variances: Tensor
    """(K,)."""
    other_variance: Tensor
    """(), of each direction beyond them."""
    pixel_mean: Tensor
    """(S,)."""
    pixel_whitening: Tensor
    """(S, S): statistics without their mean, times this, are uncorrelated and of variance 1."""
    shares: Tensor
    """(2,): factors on the squared distances of features and of statistics, by which both have a median of 1 over
    held-out crops."""
    scale: Tensor
    """(2,): median and 99th percentile of the held-out crops' distances."""
    usual: Tensor
    """(2, 7): of `STATISTICS`, values below the first row or above the second are a reason; NaN where they are not
    known."""
    notes: dict[str, str] = field(default_factory=dict)
    """The way it was fitted; text to text."""

    def to(self, device: torch.device) -> "FaceDistance":
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def measure(self, features: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (B,) and pixel statistics (B, S) of features (B, C) and crops (B, H, W, 3) uint8 on its device."""
        pixels = pixel_statistics(crops)
        raw = (self.squares(features.float(), pixels) * self.shares).sum(dim=1).sqrt()
        return (raw - self.scale[0]) / (self.scale[1] - self.scale[0]), pixels

    def squares(self, features: Tensor, pixels: Tensor) -> Tensor:
        """(B, 2) squared Mahalanobis distances of features (B, C) and of statistics (B, S), both float32."""
        with torch.autocast(features.device.type, enabled=False):
            centred = features - self.mean
            along = (centred @ self.directions.T).square()
            rest = (centred.square().sum(dim=1) - along.sum(dim=1)).clamp(min=0)
            of_features = (along / self.variances).sum(dim=1) + rest / self.other_variance
            of_pixels = ((pixels - self.pixel_mean) @ self.pixel_whitening).square().sum(dim=1)
            return torch.stack([of_features, of_pixels], dim=1)

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


class DistanceMeter:
    """Distances of the crops of one prediction, batch by batch; None measures nothing."""

    def __init__(self, distance: FaceDistance | None) -> None:
        self.distance = distance
        self._measured: list[tuple[np.ndarray, np.ndarray]] = []

    def watch(self, crops: Tensor, output: NetworkOutput) -> None:
        """Measure a batch: crops (B, H, W, 3) uint8 and the network's output, both on the device."""
        if self.distance is not None:
            measured = self.distance.to(crops.device).measure(output.features, crops)
            self._measured.append(tuple(values.double().cpu().numpy() for values in measured))

    def results(self, sides: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """(N,) distances, NaN where they are not measured, and reasons; "" for crops that lie inside."""
        if not self._measured:
            return np.full(len(sides), np.nan), [""] * len(sides)
        distances, pixels = (np.concatenate(parts) for parts in zip(*self._measured, strict=True))
        reasons, outside = np.full(len(sides), "", dtype=object), distances > 1
        reasons[outside] = self.distance.reasons(np.column_stack([pixels[:, :NUM_WORDS], sides])[outside])
        return distances, reasons.tolist()


def fit_distance(training: Faces, held_out: Faces, notes: dict[str, str]) -> FaceDistance:
    """Gaussians of training crops, with the scale of held-out ones; of each at least `LEAST_CROPS`."""
    counts = len(training.features), len(held_out.features)
    values, vectors = np.linalg.eigh(np.cov(training.features, rowvar=False))
    values, vectors = values[::-1].clip(min=TINY), vectors[:, ::-1]  # the largest first
    kept = min(DIRECTIONS, counts[0] // 3, len(values) - 1)
    shrunk = (1 - SHRINKAGE) * np.r_[values[:kept], values[kept:].mean()] + SHRINKAGE * values.mean()
    deviation = training.pixels.std(axis=0) + TINY
    correlation = np.cov(training.pixels / deviation, rowvar=False)
    spreads, axes = np.linalg.eigh((1 - PIXEL_SHRINKAGE) * correlation + PIXEL_SHRINKAGE * np.eye(len(correlation)))
    worded = np.column_stack([held_out.pixels[:, :NUM_WORDS], held_out.sides])
    arrays = {
        "mean": training.features.mean(axis=0),
        "directions": vectors[:, :kept].T,
        "variances": shrunk[:kept],
        "other_variance": shrunk[kept],
        "pixel_mean": training.pixels.mean(axis=0),
        "pixel_whitening": axes / np.sqrt(spreads.clip(min=TINY)) / deviation[:, None],
        "shares": [1.0, 1.0],
        "scale": [0.0, 1.0],
        "usual": np.quantile(worded, WORD_QUANTILES, axis=0),  # NaN where a size is not known
    }
    tensors = {name: torch.tensor(np.ascontiguousarray(array), dtype=torch.float32) for name, array in arrays.items()}
    fitted = FaceDistance(
        **tensors, notes={"training_crops": str(counts[0]), "held_out_crops": str(counts[1]), **notes}
    )
    held_out_squares = fitted.squares(*(torch.from_numpy(part).float() for part in held_out[:2]))
    shares = 1 / held_out_squares.median(dim=0).values.clamp(min=TINY)
    median, limit = np.quantile((held_out_squares * shares).sum(dim=1).sqrt().double().numpy(), (0.5, LIMIT_QUANTILE))
    scale = torch.tensor([median, max(limit, 1.001 * median + TINY)], dtype=torch.float32)
    return replace(fitted, shares=shares, scale=scale)
