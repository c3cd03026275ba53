"""Trained (or imported) models of a folder, and one of them as a network with its own preprocessing."""

import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from multiattn.config import Experiment, ModelConfig, run_experiment, to_json
from multiattn.config.choices import Runtime, Tta
from multiattn.config.model import HALF
from multiattn.model.checkpoints import load_weights
from multiattn.model.distance import FaceDistance
from multiattn.model.network import BaselineNet, MultiAttentionNet, NetworkOutput, make_network
from multiattn.model.precision import resolve_precision
from multiattn.model.predict import VIEWS, normalize_crops, predict_logits
from multiattn.runtime import layout
from multiattn.runtime.devices import pick_device
from multiattn.runtime.files import file_digest, read_json
from multiattn.scoring.frame_rules import sigmoid
from multiattn.tables import FOLDS
from multiattn.video.crops.recipe import CropRecipe, describe_difference, read_recipe

logger = logging.getLogger(__name__)

PREDICT_BATCH = 32


EARLIER = {"input_mean": list(HALF), "input_std": list(HALF), "tune": "all", "lora_rank": ModelConfig.lora_rank}
"""Settings of the network that once there were not -> what every run had then: its fingerprint goes without them."""


@dataclass(frozen=True)
class TrainedModel:
    """The best checkpoint of one fold."""

    path: Path
    """The run folder `runs/<experiment>/fold<k>`."""
    fold: int
    experiment: Experiment
    recipe: CropRecipe
    """The recipe of the crops it was trained on; it must be given such crops."""
    any_crops: bool = False
    """Take crops that were made another way, with a warning."""
    tta: Tta = "none"
    """Views of each crop whose logits are averaged, a name in `VIEWS`."""
    runtime: Runtime = "torch"
    """The library that predicts, a name in `runtimes.RUNTIMES`; answers are the same to 1e-4."""

    @functools.cached_property
    def name(self) -> str:
        """`<experiment>/fold<k>`."""
        return layout.fold_name(self.path)

    @property
    def imported(self) -> bool:
        """True for somebody else's checkpoint, of which the training videos are not known."""
        return (self.path / layout.IMPORT_FILE).is_file()

    def fingerprint(self) -> str:
        """16 hex digits of all that decides a prediction: weights, the network's settings, the size of its crops, and
        their views where they are several."""
        model = dict(item for item in to_json(self.experiment.model).items() if item not in EARLIER.items())
        settings = {"model": model, "image_size": self.experiment.data.image_size}
        settings |= {"tta": self.tta} if self.tta != "none" else {}
        content = json.dumps(settings, sort_keys=True) + file_digest(self.path / layout.BEST_WEIGHTS)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def trained_videos(self) -> set[str]:
        """The video_ids of the other folds; empty where no folds table is there, as for an imported checkpoint."""
        folds = self.folds()
        return set(folds.loc[folds["fold"] != self.fold, "video_id"])

    def held_out_videos(self) -> set[str]:
        """The video_ids of its own fold; empty as `trained_videos`."""
        folds = self.folds()
        return set(folds.loc[folds["fold"] == self.fold, "video_id"])

    def folds(self) -> pd.DataFrame:
        """The `folds` table it was trained with; empty where there is none."""
        path = folds_table(self.path)
        return FOLDS.read(path) if path.is_file() else FOLDS.empty()

    def distance(self) -> FaceDistance | None:
        """The measure of how far faces lie from those it was trained on; None where its run has none."""
        path = self.path / layout.DISTANCE_FILE
        return FaceDistance.load(path) if path.is_file() else None

    def require_same_crops(self, folder: Path, recipe: CropRecipe) -> None:
        """Raise `ValueError` where the crops of a faces folder were made another way than the model's; a model with
        `any_crops` warns instead.

        The policies `all-tracks` and `forged-mask` are alike here: without a mask both keep every face.
        """
        difference = describe_difference(self.recipe.for_prediction(), recipe.for_prediction())
        if not difference:
            return
        message = f"{folder}: its crops differ from those {self.name} was trained on: {difference}."
        if not self.any_crops:
            raise ValueError(
                f"{message} Make the faces again with the run's settings (faces.json in the run folder), or let "
                "`multiattn predict --any-recipe` take them as they are."
            )
        logger.warning("%s Its predictions are made all the same, as asked for.", message)

    def load(self, device: torch.device) -> MultiAttentionNet | BaselineNet:
        """The network with its weights, in eval mode on the device."""
        network = make_network(self.experiment.model, load_weights=False)
        load_weights(network, self.path / layout.BEST_WEIGHTS)
        return network.to(device).eval()


def find_models(*runs: Path, any_recipes: bool = False) -> list[TrainedModel]:
    """Every fold's best checkpoint of experiments' folders, or of single folds.

    Args:
        any_recipes: experiments may be of crops made differently; the folds of one experiment never are.

    Raises:
        FileNotFoundError: no runs there, or a fold without a checkpoint.
        ValueError: runs of crops made differently, two folders have the same name, or the files of a packaged run are
            not as they were packed.
    """
    for packaged in {layout.experiment_folder(run) for run in runs}:
        if (packaged / layout.DIGESTS_FILE).is_file():
            layout.require_unchanged(packaged)
    models = []
    for folder in (folder for run in runs for folder in layout.fold_folders(run)):
        path = folder / layout.EXPERIMENT_FILE
        if not path.is_file() or not (folder / layout.BEST_WEIGHTS).is_file():
            missing = layout.BEST_WEIGHTS if path.is_file() else path.name
            unfinished = "the fold has not finished its first epoch", "multiattn train"
            if (folder / layout.IMPORT_FILE).is_file():
                unfinished = "the import did not finish", "multiattn import-checkpoint"
            raise FileNotFoundError(
                f"{folder}: no {missing}; {unfinished[0]}. Run the same `{unfinished[1]}` command again."
            )
        experiment = run_experiment(read_json(path), source=str(path))
        models.append(TrainedModel(folder, layout.fold_number(folder), experiment, read_recipe(folder)))
    require_one_recipe({model.path: model.recipe for model in models}, within_experiments=any_recipes)
    by_name = {model.name: model for model in models}
    for model in models:
        if by_name[model.name] is not model:
            raise ValueError(
                f"{model.path} and {by_name[model.name].path}: two runs of one name, {model.name}. Rename one's folder."
            )
    return models


def with_tta(models: Sequence[TrainedModel], tta: Tta) -> list[TrainedModel]:
    """The same models, which predict these views of each crop; logs what it costs."""
    if tta != "none":
        logger.info("%s: logits of each crop are means over %d views, at as many times the cost", tta, len(VIEWS[tta]))
    return [replace(model, tta=tta) for model in models]


def require_one_recipe(recipes: Mapping[Path, CropRecipe], *, within_experiments: bool = False) -> None:
    """Raise `ValueError` where folds, by their folders, were trained on crops made differently: folds of any
    experiments, or of one and the same."""
    firsts: dict[Path | None, Path] = {}
    for folder, recipe in recipes.items():
        first = firsts.setdefault(layout.experiment_folder(folder) if within_experiments else None, folder)
        if difference := describe_difference(recipes[first], recipe):
            raise ValueError(
                f"{folder}: trained on other crops than {first}: {difference}. Take runs of one kind of crops together."
            )


def group_by_recipe(models: Sequence[TrainedModel]) -> dict[CropRecipe, list[TrainedModel]]:
    """Recipe for prediction -> the models whose crops it makes, both in the order given; of recipes that differ only in
    the number of frames and the like (`describe_difference`) the first."""
    groups: dict[CropRecipe, list[TrainedModel]] = {}
    for model in models:
        own = model.recipe.for_prediction()
        alike = next((recipe for recipe in groups if not describe_difference(recipe, own)), own)
        groups.setdefault(alike, []).append(model)
    return groups


def trained_on(runs: Path) -> set[str]:
    """File names without extension of all videos in the folds of an experiment: of the Kaggle competition's 400 public
    test videos too, if it was trained on parts 0 to 2."""
    tables = [FOLDS.read(path) for path in sorted({folds_table(folder) for folder in layout.fold_folders(runs)})]
    return {Path(video).name for table in tables for video in table["video_id"]}


def folds_table(folder: Path) -> Path:
    """The `folds.csv` of a run: its own, or the one that `multiattn bundle` keeps for all folds of an experiment."""
    own, shared = folder / layout.FOLDS_FILE, folder.parent / layout.FOLDS_FILE
    return shared if shared.is_file() and not own.is_file() else own


class LoadedRun(nn.Module):
    """A run's network with its own preprocessing, in eval mode: uint8 crops in, P(fake) out.

    Attributes:
        network: the network itself, (B, 3, H, W) float in [-1, 1] -> `NetworkOutput`.
        experiment: the experiment it was made with.
        recipe: how the crops it expects are made (alignment, size).
    """

    def __init__(self, model: TrainedModel, device: torch.device) -> None:
        super().__init__()
        self.network = model.load(device)
        self.experiment, self.recipe = model.experiment, model.recipe
        self._device = device
        self.eval()

    def forward(self, crops: np.ndarray | Tensor) -> NetworkOutput:
        """Logits, attention maps and part vectors of crops (as `predict` takes them), with gradient where it is on."""
        return self.network(normalize_crops(self.sized(crops).to(self._device)))

    def predict(self, crops: np.ndarray | Tensor) -> np.ndarray:
        """P(fake) of each crop.

        Args:
            crops: RGB uint8, (H, W, 3) or (B, H, W, 3), square, aligned as `recipe` says. Larger ones than the
                experiment's are averaged down, smaller ones (which `multiattn predict` refuses) enlarged bilinearly.

        Returns:
            (B,) float64; (1,) for a single crop, (0,) for none.

        Raises:
            ValueError: another dtype or shape.
        """
        batches = self.sized(crops).split(PREDICT_BATCH) if len(crops) else []
        precision = resolve_precision("auto", self._device).name
        return sigmoid(predict_logits(self.network, batches, device=self._device, precision=precision))

    def sized(self, crops: np.ndarray | Tensor) -> Tensor:
        """(B, size, size, 3) uint8 on the CPU, `size` the experiment's image size; arguments and errors as
        `predict`."""
        array = crops.detach().cpu().numpy() if isinstance(crops, Tensor) else np.asarray(crops)
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
            raise ValueError(f"crops: expected RGB uint8 (H, W, 3) or (B, H, W, 3), found {array.dtype} {array.shape}.")
        array = array[None] if array.ndim == 3 else array
        height, width = array.shape[1:3]
        if height != width or height == 0:
            raise ValueError(f"crops: expected square crops, as `multiattn faces` makes them, found {width}x{height}.")
        size = self.experiment.data.image_size
        if height != size:
            way = cv2.INTER_AREA if height > size else cv2.INTER_LINEAR
            resized = [cv2.resize(crop, (size, size), interpolation=way) for crop in array]
            array = np.stack(resized) if resized else np.zeros((0, size, size, 3), np.uint8)
        return torch.from_numpy(np.array(array))  # a copy: torch wants to own writable memory


def load_run(path: str | Path, device: str = "cpu") -> LoadedRun:
    """The best checkpoint of a run as a network with its own preprocessing.

        run = load_run("runs/dfdc_b4/fold0")
        crop = cv2.imread("crop.jpg", cv2.IMREAD_COLOR_RGB)  # aligned as run.recipe says
        probability = run.predict(crop)[0]  # P(fake)

    Args:
        path: a fold's folder, or an experiment's folder that has exactly one fold.
        device: `cpu`, `cuda`, `cuda:N` or `auto`.

    Raises:
        FileNotFoundError: no run there, or one without a checkpoint.
        ValueError: several folds; names them.
    """
    folders = layout.fold_folders(Path(path))
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"{path}: holds several folds ({names}); name one of them: load_run({str(folders[0])!r}).")
    return LoadedRun(find_models(folders[0])[0], pick_device(device))
