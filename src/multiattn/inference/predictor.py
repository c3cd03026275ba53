"""Frame predictions of a faces folder by every fold's best checkpoint, and the out-of-fold score of runs."""

import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from multiattn.config.choices import Tta
from multiattn.inference.replicas import Replicas, in_order
from multiattn.inference.runs import TrainedModel, require_one_recipe
from multiattn.inference.runtimes import load_network
from multiattn.model.distance import DistanceMeter
from multiattn.model.precision import TRIAL_CROPS, Trial, resolve_precision, try_prediction
from multiattn.model.predict import predict_logits
from multiattn.runtime import layout
from multiattn.runtime.crop_files import declared_root
from multiattn.runtime.devices import as_devices
from multiattn.runtime.files import exclusive_folder, write_text
from multiattn.runtime.processor import tune_cpu
from multiattn.runtime.progress import progress_bar
from multiattn.runtime.table_files import read_history
from multiattn.runtime.text_tables import counted
from multiattn.scoring.aggregators import frame_predictions
from multiattn.scoring.metrics import CONSTANT_LOG_LOSS, VideoMetrics, describe_losses, video_metrics
from multiattn.scoring.rule import ScoringRule
from multiattn.tables import BOX, FOLDS, FRAME_PREDICTIONS, OUT_OF_FOLD
from multiattn.video.crops.images import CropImages, crop_loader
from multiattn.video.crops.recipe import read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
PLACE = ["video_id", "frame_index", "track"]
"""Columns that name a crop."""


def predict_faces(
    models: list[TrainedModel],
    folder: Path,
    *,
    device: torch.device | Sequence[torch.device],
    precision: str,
    video_ids: Collection[str] | None = None,
    places: pd.DataFrame | None = None,
    batch_size: int = BATCH_SIZE,
    loaded: dict[str, tuple[nn.Module, str]] | None = None,
    begun: Mapping[str, Future[nn.Module]] | None = None,
    change: Callable[[np.ndarray, str], np.ndarray] | None = None,
) -> pd.DataFrame:
    """A `frame_predictions` table of every crop by every model, with its views; empty when the folder has no crops.

    Args:
        device: one, or several, each with networks of its own: whichever is free takes the next batch. The batches are
            those of one device, and one that fails leaves its own to the others.
        precision: `auto` is half precision on a GPU, and bf16 or float32 on a CPU (`model.precision`).
        video_ids: the videos whose crops are predicted; None takes all of the folder.
        places: video_id, frame_index and track of the crops that are predicted, in this order; None takes all of them.
        loaded: model -> its network and precision on the one device, taken from here by later calls; models of one
            size then share each crop, read and changed once. None keeps no network, and has one in memory at a time.
        begun: model -> its network on the first device, which another thread may still be loading (`load_network`).
        change: what happens to each crop before, as of `CropImages`.

    Raises:
        ValueError: the crops were not made the way the models' were, or not all of `places` are in the folder.
    """
    recipe = read_recipe(folder)
    for model in models:
        model.require_same_crops(folder, recipe)
    faces, _, _ = read_faces_folder(folder)
    if video_ids is not None:
        faces = faces[faces["video_id"].isin(set(video_ids))].reset_index(drop=True)
    if places is not None:
        faces = places[PLACE].merge(faces, on=PLACE, how="left")
        if (absent := faces["crop"].isna()).any():
            raise ValueError(
                f"{folder}: expected all {len(faces)} crops of the out-of-fold predictions, found no crop of "
                f"{absent.sum()}; the first: {faces['video_id'][absent].iloc[0]}. Pass the faces folder that the run "
                "was trained on."
            )
    devices = as_devices(device)
    if devices[0].type == "cpu":
        tune_cpu()
    sides = face_sides(faces, folder)
    tables = {}
    sharing = [[model] for model in models]
    if loaded is not None:
        sizes = {model.experiment.data.image_size for model in models}
        sharing = [[model for model in models if model.experiment.data.image_size == size] for size in sorted(sizes)]
    with progress_bar(len(sharing) * len(faces), "predict", "crops") as bar:
        for together in sharing if len(faces) else []:
            dataset = CropImages(folder, faces["crop"], together[0].experiment.data.image_size, change=change)
            batches = watched(crop_loader(dataset, batch_size=batch_size, num_workers=num_workers(*devices)), bar)
            how = {"precision": precision, "dataset": dataset, "loaded": loaded, "begun": begun or {}}
            load = partial(_Predictor, together, **how)
            starts = range(0, len(faces), batch_size)
            work = ((batch, sides[start : start + batch_size]) for start, batch in zip(starts, batches, strict=True))
            of_batches = in_order(work, Replicas(devices, load))
            for model, own in zip(together, zip(*of_batches, strict=True), strict=True):
                logits, distances, reasons = zip(*own, strict=True)
                tables[model.name] = frame_predictions(
                    faces, np.concatenate(logits), model=model.name, fold=model.fold,
                    distances=np.concatenate(distances), reasons=list(itertools.chain.from_iterable(reasons)),
                )  # fmt: skip
    made = [FRAME_PREDICTIONS.empty(), *(tables[model.name] for model in models if model.name in tables)]
    return FRAME_PREDICTIONS.validate(pd.concat(made, ignore_index=True), f"predictions of {folder}")


class _Predictor:
    """Models on a device; the arguments are those of `predict_faces`, and the crops that a precision is tried on."""

    def __init__(
        self,
        models: Sequence[TrainedModel],
        device: torch.device,
        *,
        precision: str,
        dataset: CropImages,
        loaded: dict[str, tuple[nn.Module, str]] | None,
        begun: Mapping[str, Future[nn.Module]],
    ) -> None:
        self.models, self.device = models, device
        self.distances = [model.distance() for model in models]
        kept = {} if loaded is None else loaded
        self.networks = [kept.get(model.name) or _load(model, device, precision, dataset, begun) for model in models]
        kept |= {model.name: network for model, network in zip(models, self.networks, strict=True)}

    def __call__(self, work: tuple[torch.Tensor, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
        """Logits, distances and reasons by each model, of crops (B, H, W, 3) and the sides of their faces (B,)."""
        crops, sides = work
        answers = []
        for model, distance, (network, chosen) in zip(self.models, self.distances, self.networks, strict=True):
            meter = DistanceMeter(distance)
            how = {"device": self.device, "precision": chosen, "tta": model.tta}
            answers.append((predict_logits(network, [crops], watch=meter.watch, **how), *meter.results(sides)))
        return answers


def _load(
    model: TrainedModel,
    device: torch.device,
    precision: str,
    dataset: CropImages,
    begun: Mapping[str, Future[nn.Module]],
) -> tuple[nn.Module, str]:
    """The network, and the precision it predicts in."""
    network = begun[model.name].result() if model.name in begun else None
    if network is None or any(it.device != device for it in itertools.islice(network.parameters(), 1)):
        network = load_network(model, device)
    chosen = resolve_precision(precision, device, partial(_try, network, dataset))
    logger.info("%s: predicts in %s: %s", model.name, chosen.name, chosen.reason)
    return network, chosen.name


def num_workers(*devices: torch.device) -> int:
    """Processes that read crops for predictions; none beside a CPU, whose cores the network takes."""
    return 0 if devices[0].type == "cpu" else min(8 * len(devices), os.cpu_count() or 1)


def _try(network: nn.Module, dataset: CropImages) -> Trial:
    """Both precisions on crops from all over the folder."""
    rows = range(0, len(dataset), -(-len(dataset) // TRIAL_CROPS))
    return try_prediction(network, torch.stack([dataset[row] for row in rows]))


def face_sides(faces: pd.DataFrame, folder: Path) -> np.ndarray:
    """(N,) pixels of the longer side of each face's box in its frame; NaN where another program cut the crops."""
    if declared_root(folder) is not None or read_recipe(folder).foreign:
        return np.full(len(faces), np.nan)
    x1, y1, x2, y2 = (faces[name].to_numpy(dtype=np.float64) for name in BOX)
    return np.maximum(x2 - x1, y2 - y1)


def watched(loader: DataLoader, bar) -> Iterator[torch.Tensor]:
    """The loader's batches; the bar moves with each."""
    for batch in loader:
        yield batch
        bar.update(len(batch))


def predict_held_out(
    models: Sequence[TrainedModel], folder: Path, *, device: torch.device | Sequence[torch.device], precision: str
) -> int:
    """Predict the crops of each model's `oof.parquet` again, with its views, and keep the table beside that one under
    its own name (`layout.held_out_file`); returns how many models have one now.

    Training removes them when it finds better weights, so that those that are there are of the present weights, and
    are left as they are.

    Raises:
        FileNotFoundError: a model without out-of-fold predictions.
        ValueError: as `predict_faces`, or another process trains the fold.
    """
    for model in models:
        path, first = (model.path / layout.held_out_file(tta) for tta in (model.tta, "none"))
        if not first.is_file():
            raise FileNotFoundError(f"{first}: expected the predictions that `multiattn train` keeps, found none.")
        with exclusive_folder(model.path):
            places = FRAME_PREDICTIONS.read(first, allow_empty=True)[PLACE]
            if path.is_file() and FRAME_PREDICTIONS.read(path, allow_empty=True)[PLACE].equals(places):
                logger.info("%s is there already", path)
                continue
            found = predict_faces([model], folder, device=device, precision=precision, places=places)
            FRAME_PREDICTIONS.write(found, path)
    return len(models)


@dataclass(frozen=True)
class OutOfFold:
    """Metrics over the videos of all finished folds together, and of each fold."""

    overall: VideoMetrics
    folds: pd.DataFrame
    """fold, and the fields of `VideoMetrics`."""
    without_face: int
    """Videos that count with the prior."""
    last_epoch: tuple[float, float | None] | None
    """As of `last_epoch_losses`."""
    videos: pd.DataFrame
    """The answers, an `out-of-fold` table."""

    def describe(self) -> str:
        columns = ["fold", "log_loss", "balanced_log_loss", "auc", "accuracy", "num_videos"]
        table = self.folds[columns].to_string(index=False, float_format="%.4f")
        last = "not known" if self.last_epoch is None else describe_losses(*self.last_epoch)
        overall = self.overall
        return (
            f"{table}\nout of fold: log loss {describe_losses(overall.log_loss, overall.balanced_log_loss)} "
            f"(constant 0.5: {CONSTANT_LOG_LOSS:.4f}), of the last epoch, which nobody chose on these videos, {last}; "
            f"AUC {overall.auc:.4f}, accuracy {overall.accuracy:.3f} over {counted(overall.num_videos, 'video')}, "
            f"{self.without_face} of them without a face"
        )


@dataclass(frozen=True)
class HeldOut:
    """Frame predictions of videos by the models that never saw them."""

    predictions: pd.DataFrame
    """A `frame_predictions` table, of each experiment every held-out video by the model of its fold."""
    videos: pd.DataFrame
    """Rows of the `folds` table, video_id, label, group, fold; a video without a face has no predictions."""
    last_epoch: pd.DataFrame | None = None
    """As `predictions`, by the last epochs' weights; None where a fold was trained before those were kept, and with
    several views."""


def read_out_of_fold(*runs: Path, unfinished: Literal["refuse", "skip"] = "refuse", tta: Tta = "none") -> HeldOut:
    """The `oof.parquet` of every fold of some experiments, or the predictions with these views beside it.

    Args:
        runs: folders of experiments, or of single folds.
        unfinished: `skip` leaves out folds without predictions, which another process may still be training.

    Raises:
        FileNotFoundError: a fold has no predictions yet (with `skip`: none has).
        ValueError: the runs were made from different folds tables, or have different folds; the folds of one are of
            crops made differently.
    """
    made = [folder for run in runs for folder in layout.fold_folders(run) if (folder / layout.RECIPE_FILE).is_file()]
    require_one_recipe({folder: read_recipe(folder) for folder in made}, within_experiments=True)
    tables: list[pd.DataFrame] = []
    last: list[pd.DataFrame] = []
    numbers: dict[Path, set[int]] = {}
    kept: pd.DataFrame | None = None
    for run, folder in [(given, folder) for given in runs for folder in layout.fold_folders(given)]:
        if unfinished == "skip" and not (folder / layout.HELD_OUT_FILE).is_file():
            logger.info("%s: no finished epoch yet, left out of the out-of-fold score", folder)
            continue
        folds = FOLDS.read(folder / layout.FOLDS_FILE)
        if kept is not None and not kept.equals(folds):
            raise ValueError(f"{folder / layout.FOLDS_FILE}: not the folds of the other runs in {_names(runs)}.")
        kept = folds
        if tta != "none" and not (folder / layout.held_out_file(tta)).is_file():
            raise FileNotFoundError(f"{folder}: no {layout.held_out_file(tta)}. {held_out_advice(run, tta)}")
        table = FRAME_PREDICTIONS.read(folder / layout.held_out_file(tta), allow_empty=True)
        # A folder may have been renamed since; weights of a scoring rule go by the name that predictions get now.
        tables.append(table.assign(model=layout.fold_name(folder)))
        if tta == "none" and (path := folder / layout.LAST_HELD_OUT_FILE).is_file():
            last.append(FRAME_PREDICTIONS.read(path, allow_empty=True).assign(model=layout.fold_name(folder)))
        numbers.setdefault(run, set()).add(layout.fold_number(folder))
    if kept is None:
        raise FileNotFoundError(f"{_names(runs)}: no fold has finished its first epoch.")
    for run in runs:
        if numbers.get(run, set()) != numbers[min(numbers)]:
            raise ValueError(
                f"{run}: expected the folds of {min(numbers)}, {sorted(numbers[min(numbers)])}, found "
                f"{sorted(numbers.get(run, set())) or 'none'}. Out-of-fold "
                "predictions of several runs are of the same folds."
            )
    videos = kept[kept["fold"].isin(numbers[min(numbers)])].reset_index(drop=True)
    last_epoch = pd.concat(last, ignore_index=True) if len(last) == len(tables) else None
    return HeldOut(pd.concat(tables, ignore_index=True), videos, last_epoch)


def held_out_advice(run: Path, tta: Tta) -> str:
    """The command that makes a run's out-of-fold predictions with these views, in a sentence."""
    return f"Make it with `multiattn predict --runs {run} --faces FACES --held-out --tta {tta}`."


def score_out_of_fold(
    *runs: Path, rule: ScoringRule | None = None, unfinished: Literal["refuse", "skip"] = "refuse"
) -> OutOfFold:
    """Score held-out videos with the rule that makes submissions; arguments and errors as `read_out_of_fold`.

    A rule that was tuned on these very videos looks better here than it is; its `out_of_fold` says how good.
    """
    rule = rule or ScoringRule()
    held_out = read_out_of_fold(*runs, unfinished=unfinished, tta=rule.tta)
    videos = rule.score_videos(held_out.videos["video_id"], held_out.predictions)
    videos[["label", "fold"]] = held_out.videos[["label", "fold"]].to_numpy()
    rows = [
        {"fold": fold, **asdict(_metrics(of_fold, rule.clip))} for fold, of_fold in videos.groupby("fold", sort=True)
    ]
    without_face = int((videos["num_crops"] == 0).sum())
    last_epoch = last_epoch_losses(runs, held_out, rule)
    answers = OUT_OF_FOLD.validate(videos, "out-of-fold answers")
    return OutOfFold(_metrics(videos, rule.clip), pd.DataFrame(rows), without_face, last_epoch, answers)


def keep_out_of_fold(experiment: Path) -> OutOfFold:
    """`score_out_of_fold` of an experiment's finished folds by the untuned rule; its folder keeps the answers for
    others, in `oof.csv`."""
    path = experiment / layout.VIDEO_HELD_OUT_FILE
    with exclusive_folder(experiment):
        found = score_out_of_fold(experiment, unfinished="skip")
        text = found.videos.to_csv(index=False, lineterminator="\n")
        if not path.is_file() or path.read_bytes() != text.encode():  # a finished run is left as it is
            write_text(path, text)
    return found


def last_epoch_losses(runs: Sequence[Path], held_out: HeldOut, rule: ScoringRule) -> tuple[float, float | None] | None:
    """Log loss of the held-out videos by the last epochs' weights, which no choice of an epoch went into, plain and
    balanced over the classes (None where it was not noted): of predictions that were kept, or for the untuned rule and
    one experiment the mean over folds of what `epochs.csv` noted; else None."""
    if held_out.last_epoch is not None:
        videos = rule.score_videos(held_out.videos["video_id"], held_out.last_epoch)
        found = _metrics(videos.assign(label=held_out.videos["label"].to_numpy()), rule.clip)
        return found.log_loss, found.balanced_log_loss
    paths = {
        layout.fold_number(folder): folder / layout.EPOCHS_FILE for run in runs for folder in layout.fold_folders(run)
    }
    if len(runs) > 1 or rule != ScoringRule() or not all(path.is_file() for path in paths.values()):
        return None
    noted = {fold: read_history(path, ("epoch", "validation_log_loss")).iloc[-1] for fold, path in paths.items()}
    means = [
        held_out.videos["fold"]
        .map({fold: row.get(f"validation_{name}", np.nan) for fold, row in noted.items()})
        .mean(skipna=False)
        for name in ("log_loss", "balanced_log_loss")
    ]
    plain, balanced = (None if pd.isna(mean) else float(mean) for mean in means)
    return None if plain is None else (plain, balanced)


def out_of_fold_figures(
    models: Sequence[TrainedModel], runs: Sequence[Path], rule: ScoringRule
) -> dict[str, float | None] | None:
    """Figures as of `ScoringRule.out_of_fold`, of videos that neither the models of `runs` nor the rule have seen, for
    a submission's card.

    Those of the tuning where there was one, else of the held-out videos; None for imported checkpoints, which bring no
    held-out predictions.

    Raises:
        ValueError: imported and trained runs together.
        FileNotFoundError: as `read_out_of_fold`.
    """
    imported = [model.name for model in models if model.imported]
    if imported and len(imported) < len(models):
        raise ValueError(
            f"{_names(runs)}: {', '.join(imported)} imported, the other runs trained here. Take them apart: what is "
            "imported has no out-of-fold figures."
        )
    if imported or rule.out_of_fold is not None:
        return None if imported else rule.out_of_fold
    found = score_out_of_fold(*runs, rule=rule)
    figures = {name: getattr(found.overall, name) for name in ("log_loss", "balanced_log_loss", "auc")}
    plain, balanced = found.last_epoch or (None, None)
    return {**figures, "last_epoch_log_loss": plain, "last_epoch_balanced_log_loss": balanced}


def _metrics(videos: pd.DataFrame, clip: float) -> VideoMetrics:
    return video_metrics(videos["label"].to_numpy(), videos["probability"].to_numpy(), clip=clip)


def _names(runs: Sequence[Path]) -> str:
    return ", ".join(map(str, runs))
