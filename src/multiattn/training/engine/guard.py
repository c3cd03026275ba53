"""Real faces of another folder, to see while a run is fine-tuned on one's own whether everything turns fake to it.

The threshold is the P(fake) above which the network it starts from calls 5 % of these faces fake. It stays where it is,
as a user's does, and each validation says how many lie above it now.
"""

from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from multiattn.config import Experiment
from multiattn.runtime.layout import experiment_name
from multiattn.tables import REAL
from multiattn.video.crops.images import CropImages, crop_loader
from multiattn.video.crops.recipe import describe_difference, read_recipe
from multiattn.video.extraction.faces_folder import read_faces_folder

MOST_VIDEOS = 500
"""A crop of each: of 500, a rate of 10 % is known to 2.7 %."""
START_RATE, MOST_RATE = 0.05, 0.10
"""False-alarm rate of the start, by which the threshold is set, and the one beyond which a checkpoint is the worse."""
BEYOND = 1e6
"""Weight of what a rate is too much: more than any metric can make up for."""


def guard_crops(experiment: Experiment, run: Path) -> DataLoader | None:
    """Batches (B, size, size, 3) uint8 of one crop of each real video of `validation.guard`, evenly spaced over its
    videos and made by the run folder's recipe; None without one.

    Raises:
        ValueError: no real crops there, or such as were made another way.
    """
    if experiment.validation.guard is None:
        return None
    folder = Path(experiment.validation.guard)
    if difference := describe_difference(read_recipe(run).for_prediction(), read_recipe(folder).for_prediction()):
        raise ValueError(f"--guard {folder}: expected crops made as those of {experiment_name(run)}: {difference}.")
    faces, _, videos = read_faces_folder(folder)
    reals = faces[faces["video_id"].isin(videos.loc[videos["label"] == REAL, "video_id"])]
    crops = reals.sort_values(["video_id", "frame_index", "track"]).drop_duplicates("video_id")["crop"]
    if crops.empty:
        raise ValueError(f"--guard {folder}: expected crops of real videos, found none.")
    kept = np.unique(np.linspace(0, len(crops) - 1, min(MOST_VIDEOS, len(crops))).round().astype(int))
    dataset = CropImages(folder, crops.iloc[kept], experiment.data.image_size)
    return crop_loader(dataset, batch_size=2 * experiment.data.batch_size, num_workers=0)


def guard_threshold(probabilities: np.ndarray) -> float:
    """The least P(fake) of (N,) that at most `START_RATE` of them exceed."""
    return float(np.sort(probabilities)[len(probabilities) - 1 - int(START_RATE * len(probabilities))])


def guarded_value(value: float, false_alarms: float | None) -> float:
    """The value, the larger the better, of a checkpoint with this false-alarm rate; None is without a guard."""
    return value if false_alarms is None else value - BEYOND * max(0.0, false_alarms - MOST_RATE)
