"""The scoring rule: frame predictions -> a video's probability, as `scoring.json` keeps it.

Frames -> tracks -> video of one model (`aggregators.py`), mean over the folds of an experiment, experiments blended
(`ensembling.py`), calibrated, moved to the test set's prior where asked, clipped (`calibration.py`).
Out-of-fold scores, submissions, evaluation and single files all go through `ScoringRule.score`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from multiattn.scoring.aggregators import Aggregator, FrameGroups
from multiattn.scoring.calibration import Calibration, PriorShift
from multiattn.scoring.ensembling import Ensemble, score_experiments


@dataclass(frozen=True, kw_only=True)
class ScoringRule:
    """The way from frame predictions to probabilities; the default is the untuned rule."""

    aggregator: Aggregator = field(default_factory=Aggregator)
    """Frames -> video of one model; its clip and prior are the rule's."""
    ensemble: Ensemble = field(default_factory=Ensemble)
    """Experiments -> video. Folds of an experiment count alike: out of fold one model answers for a video, at test
    time the mean of all folds does, which is less extreme than what the rule was tuned on."""
    calibration: Calibration = field(default_factory=Calibration)
    prior_shift: PriorShift | None = None
    """None: the test set has the share of fakes that the rule was tuned on."""
    experiments: tuple[str, ...] = ()
    """Names of the experiments it was tuned for; empty: any."""
    out_of_fold: dict[str, float | None] | None = None
    """log_loss, balanced_log_loss and auc on videos that were held out of tuning, the first as expected at the stated
    share of fakes, where one was, else at theirs; last_epoch_log_loss and last_epoch_balanced_log_loss, the same with
    the last epochs' weights in place of the chosen ones', None where those are not known; and test_prior, the stated
    share. None where nothing was tuned."""

    @property
    def clip(self) -> float:
        """Probabilities lie in [clip, 1 - clip]."""
        return self.aggregator.clip

    @property
    def prior(self) -> float:
        """The answer for a video without a usable face."""
        return self.aggregator.prior

    def score(self, predictions: pd.DataFrame | FrameGroups) -> pd.DataFrame:
        """Frame predictions of any number of models -> one row a video.

        Args:
            predictions: a `frame_predictions` table, or the groups made of one; `model` is `<experiment>/fold<k>`. May
                be empty.

        Returns:
            video_id, probability (float64, in [clip, 1 - clip]) and num_crops (the most any model saw), sorted by
            video_id. A video some models did not see is scored by the others.

        Raises:
            ValueError: predictions of an experiment that the ensemble has no weight for.
        """
        scores = score_experiments(predictions, self.aggregator)
        probability = self.answer(scores.values, scores.experiments)
        return pd.DataFrame({"video_id": scores.video_ids, "probability": probability, "num_crops": scores.num_crops})

    def answer(self, values: np.ndarray, experiments: Sequence[str]) -> np.ndarray:
        """(V, E) P(fake) of experiments, as this rule's aggregator makes them -> (V,) in [clip, 1 - clip].

        NaN is an experiment that did not see the video; where none did, so is the answer.
        """
        probability = self.calibration.apply(self.ensemble.blend(values, experiments))
        if self.prior_shift is not None:
            probability = self.prior_shift.apply(probability)
        return np.clip(probability, self.clip, 1 - self.clip)
