"""A folder of videos -> submission, offline: what `multiattn submit` and the Kaggle notebook both call."""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from multiattn.datasets.manifest import video_files
from multiattn.inference.folder_faces import extract_folder_faces
from multiattn.inference.out_of_fold import score_out_of_fold
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import TrainedModel, find_models, trained_on
from multiattn.inference.submission import Submission, build_submission, read_sample, write_submission
from multiattn.runtime import pick_device
from multiattn.scoring.aggregation import Aggregator
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.video.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")
SEARCH_DEPTH = 6


@dataclass(frozen=True, kw_only=True)
class KernelInputs:
    """Where everything is that a submission needs."""

    runs: Path
    """An experiment's folder with fold0, fold1, ..."""
    videos_dir: Path
    """The test videos, directly in this folder."""
    sample_submission: Path
    """The competition's sample: its rows, in its order, are answered."""
    out: Path
    """The submission folder."""
    faces: Path
    """Faces of the test videos are kept here, so that a killed kernel continues."""
    aggregator: Aggregator = field(default_factory=Aggregator)
    device: str = "auto"
    precision: str = "auto"
    jobs: int | None = None
    weights: Path | None = None
    """The weights file of the detector the runs' faces were found with; mtcnn needs none."""


def run_kernel(inputs: KernelInputs) -> Submission:
    """Extract faces, predict with every fold, aggregate, and write the submission folder.

    A video that cannot be read, shows no face or is not there costs its own row only: it gets the prior and is
    counted. Faces that were extracted before are not extracted again.

    Returns:
        What was written to `inputs.out`.

    Raises:
        FileNotFoundError: no runs, no videos folder, no sample submission.
        ValueError: the sample is not one, none of its videos is in the folder, or imported and trained runs in one.
    """
    sample = read_sample(inputs.sample_submission)
    models = find_models(inputs.runs)
    # Before the hours of work: this needs files of the runs that the weights alone do not bring.
    history = _history(inputs, models, sample)
    device = pick_device(inputs.device)
    present = _sample_videos(sample, inputs)
    logger.info("%d models, %d of %d sample videos, on %s", len(models), len(present), len(sample), device)
    videos = extract_folder_faces(
        inputs.videos_dir,
        inputs.faces,
        models[0].recipe,
        jobs=inputs.jobs,
        device=device,
        filenames=present,
        weights=inputs.weights,
    )
    predictions = predict_faces(models, inputs.faces, device=device, precision=inputs.precision)
    predictions = predictions[predictions["video_id"].isin(set(videos["video_id"]))]
    _, statuses, _ = read_faces_folder(inputs.faces)
    statuses = statuses[statuses["video_id"].isin(set(videos["video_id"]))]
    result = build_submission(predictions, statuses, sample, inputs.aggregator)
    card = {"runs": [model.name for model in models], **history}
    write_submission(result, sample, inputs.out, card)
    FRAME_PREDICTIONS.write(predictions, inputs.out / "frame_predictions.parquet")
    logger.info("%s: %s", inputs.out / "submission.csv", result.coverage)
    return result


def _history(inputs: KernelInputs, models: list[TrainedModel], sample: pd.DataFrame) -> dict[str, Any]:
    """What the card says of the runs' training: their out-of-fold scores, and the sample's videos they have seen.

    An imported checkpoint brings neither held-out predictions nor a list of its training videos; a run trained here
    that lacks them is an error.
    """
    imported = [model.name for model in models if model.imported]
    if len(imported) == len(models):
        return {"seen_in_training": None, "out_of_fold": None, "out_of_fold_reason": "imported"}
    if imported:
        raise ValueError(
            f"{inputs.runs}: {', '.join(imported)} imported, the other runs trained here. Submit them apart."
        )
    out_of_fold = score_out_of_fold(inputs.runs, inputs.aggregator)
    seen = set(sample["filename"].map(lambda name: Path(name).stem)) & trained_on(inputs.runs)
    return {
        "seen_in_training": len(seen),
        "out_of_fold": {"log_loss": out_of_fold.overall.log_loss, "auc": out_of_fold.overall.auc},
    }


def _sample_videos(sample: pd.DataFrame, inputs: KernelInputs) -> set[str]:
    if not inputs.videos_dir.is_dir():
        raise FileNotFoundError(f"{inputs.videos_dir}: expected a folder of videos, found none.")
    present = set(video_files(inputs.videos_dir)) & set(sample["filename"])
    if not present:
        raise ValueError(
            f"{inputs.videos_dir}: none of the {len(sample)} videos of {inputs.sample_submission} is here, "
            "so every answer would be the prior."
        )
    return present


def find_inputs(root: Path | None = None) -> KernelInputs:
    """What the notebook needs, found below `/kaggle/input` or, elsewhere, in the repository's `runs` and `data`.

    Each of the environment variables MULTIATTN_RUNS, MULTIATTN_VIDEOS_DIR, MULTIATTN_SAMPLE_SUBMISSION, MULTIATTN_OUT
    and MULTIATTN_FACES decides its path instead of the search. Without them: the first folder with trained folds, the
    first folder named test_videos, and the sample_submission.csv beside it or else the first one. MULTIATTN_WEIGHTS is
    the detector's weights file, where the runs' faces were found with one that needs it.

    Args:
        root: the repository; by default the working directory.

    Raises:
        FileNotFoundError: something was not found; says what and where it was looked for.
    """
    on_kaggle = KAGGLE_INPUT.is_dir()
    root = root or Path.cwd()
    # Not below /kaggle/working, where every crop would become an output of the notebook.
    faces = (Path("/tmp") if on_kaggle else root / "data") / "faces"
    runs = _from_environment("RUNS") or _first(
        sorted({path.parent.parent for path in _search(root / "runs", "fold*/best.safetensors", on_kaggle)}),
        "trained runs (fold*/best.safetensors)",
        root / "runs",
    )
    videos = _from_environment("VIDEOS_DIR") or _first(
        _search(root / "data", "test_videos", on_kaggle), "folder test_videos", root / "data"
    )
    samples = _search(root / "data", "sample_submission.csv", on_kaggle)
    samples = [path for path in samples if path.parent == videos.parent] or samples
    sample = _from_environment("SAMPLE_SUBMISSION") or _first(samples, "sample_submission.csv", root / "data")
    return KernelInputs(
        runs=runs,
        videos_dir=videos,
        sample_submission=sample,
        out=_from_environment("OUT") or (KAGGLE_WORKING if on_kaggle else root / "submissions" / runs.name),
        faces=_from_environment("FACES") or faces / f"{runs.name}_test",
        weights=_from_environment("WEIGHTS"),
    )


def _search(folder: Path, pattern: str, on_kaggle: bool) -> list[Path]:
    """Matches a few levels down. Not `**`: a faces folder may hold millions of crops."""
    folder = KAGGLE_INPUT if on_kaggle else folder
    return [path for depth in range(SEARCH_DEPTH) for path in sorted(folder.glob("*/" * depth + pattern))]


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(f"MULTIATTN_{name}")
    return Path(value) if value else None


def _first(found: list[Path], what: str, folder: Path) -> Path:
    if not found:
        place = KAGGLE_INPUT if KAGGLE_INPUT.is_dir() else folder
        raise FileNotFoundError(f"{place}: expected {what} at most {SEARCH_DEPTH} levels down, found none.")
    if len(found) > 1:
        logger.warning("several candidates for %s, taking the first: %s", what, ", ".join(map(str, found[:3])))
    return found[0]
