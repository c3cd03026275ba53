"""`frame_predictions` tables for tests: by hand, by chance, and simulated out-of-fold ones with a known truth.

In a simulation the evidence x of a video is +-d/2 by its label, plus an error that all experiments share (of its group,
and its own difficulty), plus one of each experiment. An experiment answers with the logit that is right for its own x,
made steeper or flatter by `sharpness`; its model of a fold adds an offset, every frame its noise. What is known of a
video at best is the logit that is right for the x of all experiments together: `Simulated.best`.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from multiattn.scoring.frame_rules import sigmoid
from multiattn.tables import FRAME_PREDICTIONS


def predictions(*rows: tuple, logits: list[float] | None = None) -> pd.DataFrame:
    """Rows of (model, video, track, probability); frames are numbered as they come."""
    if not rows:
        return FRAME_PREDICTIONS.empty()
    frame = pd.DataFrame(rows, columns=["model", "video_id", "track", "probability"])
    frame["frame_index"] = range(len(frame))
    frame["logit"] = logit(frame["probability"]) if logits is None else logits
    return FRAME_PREDICTIONS.validate(frame.assign(fold=0), "made here")


def random_predictions(seed: int, videos: int = 12, spread: float = 3.0) -> pd.DataFrame:
    """Up to 3 models, 3 tracks and 6 frames a track, in no order that sorting would keep."""
    rng = np.random.default_rng(seed)
    rows, logits = [], []
    for video in range(videos):
        for model in rng.permutation(3)[: rng.integers(1, 4)]:
            for track in range(rng.integers(1, 4)):
                for _ in range(rng.integers(1, 7)):
                    logits.append(float(rng.normal(0, spread)))
                    rows.append((f"m/fold{model}", f"v/{video:02d}", track, float(expit(logits[-1]))))
    return predictions(*rows, logits=logits)


@dataclass(frozen=True)
class Simulated:
    """A simulation's tables."""

    predictions: pd.DataFrame
    """A `frame_predictions` table (video_id and model as categories), each video by the model of its fold."""
    videos: pd.DataFrame
    """A `folds` table, sorted by video_id."""
    best: np.ndarray
    """(V,) P(fake) of the videos, as right as can be for who knows every experiment's x but no other video."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """The defaults are of DFDC's size and class balance: 119,154 videos, 84 % fake, in 50 parts."""

    num_videos: int = 119_154
    num_frames: int = 32
    num_groups: int = 50
    num_folds: int = 5
    fake_share: float = 0.84
    faceless_share: float = 0.02
    """Videos without predictions."""
    separation: float = 2.5
    """d, the distance of the two classes."""
    group_sd: float = 0.3
    difficulty_sd: float = 0.9
    """Standard deviations of the errors that all experiments share."""
    experiment_sd: tuple[float, ...] = (0.6, 0.8, 1.0)
    """Standard deviation of each experiment's own error; infinite: it knows nothing and answers with noise."""
    sharpness: float = 1.0
    """Of the experiments' logits: 1 calibrated, 3 overconfident, 1/3 underconfident."""
    training_prior: float = 0.5
    """The share of fakes the networks were shown; other than `fake_share`, all logits are off by a constant."""
    offset_sd: float = 0.1
    """Of the offset of each model."""
    frame_sd: float = 1.0
    tail: float = np.inf
    """Degrees of freedom of the frames' noise (Student's t): infinite is normal, 2 has frames far off."""
    seed: int = 0

    def draw(self) -> Simulated:
        """The same for the same settings."""
        rng = np.random.default_rng(self.seed)
        num_experiments = len(self.experiment_sd)
        group = rng.permutation(np.arange(self.num_videos) % self.num_groups)
        fold = rng.permutation(np.arange(self.num_groups) % self.num_folds)[group]
        label = (rng.random(self.num_videos) < self.fake_share).astype(np.int64)

        own_sd = np.array(self.experiment_sd)
        knows = np.isfinite(own_sd)
        own_sd = np.where(knows, own_sd, 1.0)
        shared = self.separation * (label - 0.5)
        shared += self.group_sd * rng.standard_normal(self.num_groups)[group]
        shared += self.difficulty_sd * rng.standard_normal(self.num_videos)
        own = own_sd * rng.standard_normal((self.num_videos, num_experiments))
        x = np.where(knows, shared[:, None], 0.0) + own
        shared_variance = self.group_sd**2 + self.difficulty_sd**2
        logits = self.separation * x / (shared_variance + own_sd**2) + logit(self.training_prior)
        logits = self.sharpness * logits + self.offset_sd * rng.standard_normal((self.num_folds, num_experiments))[fold]

        # A sum over the inverse of (shared variance everywhere + own variance on the diagonal), by Sherman-Morrison.
        precision = knows / own_sd**2
        at_best = self.separation * (x @ precision) / (1 + shared_variance * precision.sum())
        names = [f"simulated/{number:06d}" for number in range(self.num_videos)]
        groups = pd.Series([f"part_{number:03d}" for number in range(self.num_groups)]).take(group).to_numpy()
        videos = pd.DataFrame({"video_id": names, "label": label, "group": groups, "fold": fold.astype(np.int64)})
        predictions = self._frames(rng, logits, fold, videos["video_id"])
        return Simulated(predictions, videos, sigmoid(at_best + logit(self.fake_share)))

    def _frames(self, rng: np.random.Generator, logits: np.ndarray, fold: np.ndarray, names: pd.Series) -> pd.DataFrame:
        seen = np.flatnonzero(rng.random(self.num_videos) >= self.faceless_share)
        num_experiments, num_frames = logits.shape[1], self.num_frames
        size = (len(seen), num_experiments, num_frames)
        noise = rng.standard_normal(size) if np.isinf(self.tail) else rng.standard_t(self.tail, size)
        values = (logits[seen][:, :, None] + self.frame_sd * noise).ravel()
        models = [f"experiment{e}/fold{k}" for e in range(num_experiments) for k in range(self.num_folds)]
        model = np.arange(num_experiments) * self.num_folds + fold[seen][:, None]
        return pd.DataFrame(
            {
                "model": pd.Categorical.from_codes(np.repeat(model.ravel(), num_frames), models),
                "fold": np.repeat(fold[seen], num_experiments * num_frames),
                "video_id": pd.Categorical.from_codes(np.repeat(seen, num_experiments * num_frames), names),
                "frame_index": np.tile(np.arange(num_frames), len(seen) * num_experiments),
                "track": 0,
                "logit": values,
                "probability": sigmoid(values),
            },
            copy=False,
        )
