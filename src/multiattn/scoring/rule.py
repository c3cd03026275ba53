"""The scoring rule: frame predictions -> a video's probability, as `scoring.json` keeps it.

Frames -> tracks -> video of one model (`aggregators.py`), mean over the folds of an experiment, experiments blended
(`ensembling.py`), calibrated, moved to the test set's prior where asked, clipped (`calibration.py`). A rule tuned on
single crops does all but the first and the last of that frame by frame, before frames -> tracks -> video.
Out-of-fold scores, submissions, evaluation and single files all go through `ScoringRule.score`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from multiattn.config.choices import Tta
from multiattn.scoring.aggregators import Aggregator, FrameGroups, complete_videos, frame_predictions
from multiattn.scoring.answers import HeldOutAnswers
from multiattn.scoring.calibration import Calibration, PriorShift
from multiattn.scoring.ensembling import Ensemble, experiment_of, score_experiments
from multiattn.scoring.frame_rules import to_logits

FRAME = ["video_id", "track", "frame_index"]


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
    outside: tuple[str, ...] = ()
    """Names of outside models, which it blends like experiments. Their answers are given for whole videos."""
    out_of_fold: dict[str, float | None] | None = None
    """log_loss, balanced_log_loss and auc on videos that were held out of tuning, the first as expected at the stated
    share of fakes, where one was, else at theirs; last_epoch_log_loss and last_epoch_balanced_log_loss, the same with
    the last epochs' weights in place of the chosen ones', None where those are not known; and test_prior, the stated
    share. None where nothing was tuned."""
    per_frame: bool = False
    """Every frame is blended and calibrated as a video of one crop, and the aggregator takes the calibrated
    probabilities: with its `mean` the answer is their mean. Where the held-out videos had one crop each, the
    calibration is one of single crops, and would be of too little doubt for what many frames agree on. A video of which
    experiments saw different faces, by their recipes of crops, is blended and calibrated as a whole."""
    tta: Tta = "none"
    """Views of each crop whose logits were averaged in the predictions it was tuned on, and are in those it scores."""
    held_out: HeldOutAnswers | None = None
    """Its answers for held-out videos, beside which others are put (`answers.py`); None where nothing was tuned, or by
    a version that did not keep them."""

    @property
    def clip(self) -> float:
        """Probabilities lie in [clip, 1 - clip]."""
        return self.aggregator.clip

    @property
    def prior(self) -> float:
        """The answer for a video without a usable face."""
        return self.aggregator.prior

    def score(self, predictions: pd.DataFrame | FrameGroups, outside: pd.DataFrame | None = None) -> pd.DataFrame:
        """Frame predictions of any number of models -> one row a video.

        Args:
            predictions: a `frame_predictions` table, or but for a rule `per_frame` the groups made of one; `model` is
                `<experiment>/fold<k>`. May be empty.
            outside: rows by video_id, a column of P(fake) for each outside model; None where the rule names none.

        Returns:
            video_id, probability (float64, in [clip, 1 - clip]) and num_crops (the most any model saw), sorted by
            video_id. A video some models did not see is scored by the others.

        Raises:
            ValueError: predictions of an experiment that the ensemble has no weight for, or no answers of an outside
                model.
        """
        if missing := sorted(set(self.outside) - set([] if outside is None else outside)):
            raise ValueError(f"the scoring rule blends outside models: found no answers of {', '.join(missing)}.")
        if self.per_frame:
            apart = seen_apart(predictions)
            if apart.any():
                own = others = None
                if outside is not None:
                    is_apart = outside.index.isin(predictions.loc[apart, "video_id"].unique())
                    own, others = outside[~is_apart], outside[is_apart]
                whole = replace(self, per_frame=False).score(predictions[apart], others)
                both = pd.concat([self.score(predictions[~apart], own), whole])
                return both.sort_values("video_id", ignore_index=True)
            frames = self.answer_frames(predictions, outside)
            table = frame_predictions(frames, to_logits(frames["probability"]), model="calibrated", fold=-1)
            scores = score_experiments(table, self.aggregator)
            probability = np.clip(scores.values.reshape(-1), self.clip, 1 - self.clip)
        else:
            scores = score_experiments(predictions, self.aggregator).beside(outside)
            probability = self.answer(scores.values, scores.experiments)
        table = pd.DataFrame({"video_id": scores.video_ids, "probability": probability, "num_crops": scores.num_crops})
        if outside is None or outside.index.isin(table["video_id"]).all():
            return table
        alone = outside[~outside.index.isin(table["video_id"])]  # of a rule `per_frame`: videos without a frame
        answers = self.answer(alone.to_numpy(np.float64), tuple(alone))
        alone = pd.DataFrame({"video_id": alone.index, "probability": answers, "num_crops": 0})
        return pd.concat([table, alone]).sort_values("video_id", ignore_index=True)

    def score_videos(
        self,
        video_ids: pd.Series,
        predictions: pd.DataFrame | FrameGroups,
        outside: pd.DataFrame | None = None,
    ) -> pd.DataFrame:
        """`score` of each video asked for, in the order given: the prior, and 0 crops, where nothing was predicted."""
        return complete_videos(video_ids, self.score(predictions, outside), self.prior)

    def answer_frames(self, predictions: pd.DataFrame, outside: pd.DataFrame | None = None) -> pd.DataFrame:
        """Every frame predicted as a video of this one crop, but not clipped: video_id, track, frame_index and
        probability, sorted by the first three. An outside model's answer to a video is its answer to each frame."""
        numbers = predictions.groupby(FRAME, sort=True, observed=True).ngroup()
        frames = predictions[FRAME].assign(number=numbers).drop_duplicates("number").sort_values("number")
        scores = score_experiments(predictions.assign(video_id=numbers, track=0, frame_index=0), self.aggregator)
        if outside is not None:
            scores = scores.beside(outside.reindex(frames["video_id"]).set_axis(frames["number"]))
        answers = self._calibrate(scores.values, scores.experiments)
        return frames[FRAME].assign(probability=answers).reset_index(drop=True)

    def answer(self, values: np.ndarray, experiments: Sequence[str]) -> np.ndarray:
        """(V, E) P(fake) of experiments, as this rule's aggregator makes them -> (V,) in [clip, 1 - clip].

        NaN is an experiment that did not see the video; where none did, so is the answer.
        """
        return np.clip(self._calibrate(values, experiments), self.clip, 1 - self.clip)

    def _calibrate(self, values: np.ndarray, experiments: Sequence[str]) -> np.ndarray:
        probability = self.calibration.apply(self.ensemble.blend(values, experiments))
        return probability if self.prior_shift is None else self.prior_shift.apply(probability)


def seen_apart(predictions: pd.DataFrame) -> np.ndarray:
    """(N,) bool: the rows of videos in which an experiment saw a face of a frame that another one did not."""
    experiments = {model: experiment_of(model) for model in predictions["model"].unique()}
    if len(set(experiments.values())) < 2:
        return np.zeros(len(predictions), dtype=bool)
    seen = predictions[FRAME].assign(experiment=predictions["model"].map(experiments))
    of_video, of_frame = (seen.groupby(key, observed=True)["experiment"] for key in ("video_id", FRAME))
    differs = of_frame.transform("nunique") != of_video.transform("nunique")
    return differs.groupby(seen["video_id"], observed=True).transform("any").to_numpy(dtype=bool)
