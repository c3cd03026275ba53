"""The one rule from frame predictions to a video's probability, as `scoring.json` keeps it.

Frames -> tracks -> video of one model (`aggregation.py`), mean over the folds of an experiment, experiments blended,
calibrated, clipped. Out-of-fold scores, submissions, evaluation and single files all go through `ScoringRule.score`.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from multiattn.scoring.aggregation import Aggregator, aggregate_frames


@dataclass(frozen=True, kw_only=True)
class ScoringRule:
    """How frame predictions become probabilities; the default is what was never tuned."""

    aggregator: Aggregator = field(default_factory=Aggregator)
    """Frames -> video; its clip and prior are the rule's."""
    experiments: tuple[str, ...] = ()
    """Names of the experiments it was tuned for; empty: any."""
    out_of_fold: dict[str, float] | None = None
    """What tuning measured on videos that were held out of it: log_loss, auc; None where nothing was tuned."""

    @property
    def clip(self) -> float:
        """Probabilities lie in [clip, 1 - clip]."""
        return self.aggregator.clip

    @property
    def prior(self) -> float:
        """The answer for a video without a usable face."""
        return self.aggregator.prior

    def score(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Frame predictions of any number of models -> one row a video.

        Args:
            predictions: a `frame_predictions` table; `model` is `<experiment>/fold<k>`. May be empty.

        Returns:
            video_id, probability (float64, in [clip, 1 - clip]) and num_crops (the most any model saw), sorted by
            video_id. A video some models did not see is scored by the others.
        """
        return aggregate_frames(predictions, self.aggregator)

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for `scoring.json`."""
        return {**asdict(self), "experiments": list(self.experiments)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ScoringRule":
        """The inverse of `as_dict`.

        Raises:
            ValueError: a field is missing, unknown, or has a value the rule does not take.
        """
        try:
            return cls(
                aggregator=Aggregator(**values["aggregator"]),
                experiments=tuple(values["experiments"]),
                out_of_fold=values["out_of_fold"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a scoring rule: {error}") from error
