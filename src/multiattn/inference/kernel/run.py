"""A folder of videos -> submission, offline: what `multiattn submit` and the Kaggle notebook both call."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from multiattn.datasets.manifest import video_files
from multiattn.inference.folder_faces import extract_folder_faces
from multiattn.inference.kernel.inputs import KernelInputs
from multiattn.inference.out_of_fold import score_out_of_fold
from multiattn.inference.predictor import predict_faces
from multiattn.inference.runs import TrainedModel, find_models, trained_on
from multiattn.inference.submission import Submission, build_submission, read_sample, write_submission
from multiattn.runtime import pick_device
from multiattn.tables import FRAME_PREDICTIONS
from multiattn.video.faces_folder import read_faces_folder

logger = logging.getLogger(__name__)


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
    models = find_models(*inputs.runs)
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
    result = build_submission(predictions, statuses, sample, inputs.rule)
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
            f"{', '.join(map(str, inputs.runs))}: {', '.join(imported)} imported, the other runs trained here. "
            "Submit them apart."
        )
    names = set(sample["filename"].map(lambda name: Path(name).stem))
    seen = names & set().union(*(trained_on(run) for run in inputs.runs))
    figures = inputs.rule.out_of_fold  # of videos held out of the tuning, where there was one
    if figures is None:
        overall = score_out_of_fold(*inputs.runs, rule=inputs.rule).overall
        figures = {"log_loss": overall.log_loss, "auc": overall.auc}
    return {"seen_in_training": len(seen), "out_of_fold": figures}


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
